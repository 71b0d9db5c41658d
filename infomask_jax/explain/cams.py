"""The CAM family: [B, h, w] maps from the encoder's features A [B, h, w, D] and the gradient of the finding's logit.

All read the last features before the bottleneck. For a mean-pooled linear head, evidence_ij = w . A_ij + b: then
Grad-CAM before its ReLU and HiResCAM are both (evidence - b) / (h w), the map of Zhou et al. 2016.
"""

import jax
import jax.numpy as jnp

from infomask_jax.explain.readout import Readout


def cam(model: Readout, images: jax.Array) -> jax.Array:
    """Class activation map (Zhou et al. 2016): the evidence of each cell, in logits, before it is pooled (ours: after
    mask and bound, whatever pools it)."""
    return model.classify(model.encode(images))[1]


def feature_gradients(model: Readout, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Features A and d logit / dA, both [B, h, w, D]. Images do not mix, so one gradient serves the whole batch."""
    features = model.encode(images)
    return features, jax.grad(lambda a: model.classify(a)[0].sum())(features)


def gradcam(model: Readout, images: jax.Array) -> jax.Array:
    """Grad-CAM (Selvaraju et al. 2017): relu(sum_d w_d A_d), w_d the gradient's mean over cells."""
    features, gradients = feature_gradients(model, images)
    return jax.nn.relu(jnp.einsum("bijd,bd->bij", features, gradients.mean(axis=(1, 2))))


def gradcam_plus_plus(model: Readout, images: jax.Array) -> jax.Array:
    """Grad-CAM++ (Chattopadhyay et al. 2018): relu(sum_d w_d A_d), w_d = sum_ij alpha_ijd relu(g_ijd) with alpha = g^2
    / (2 g^2 + g^3 sum_ab A_ab), for the class score exp(logit). Its factor exp(logit), one number per image, is left
    out (ours, as in common implementations): it overflows."""
    features, gradients = feature_gradients(model, images)
    positive = jax.nn.relu(gradients)
    total = features.sum(axis=(1, 2), keepdims=True)
    weights = (positive / (2.0 + positive * total)).sum(axis=(1, 2))  # g^2 cancelled: no 0 / 0, no underflow
    return jax.nn.relu(jnp.einsum("bijd,bd->bij", features, weights))


def hirescam(model: Readout, images: jax.Array) -> jax.Array:
    """HiResCAM (Draelos & Carin 2020): sum_d g_ijd A_ijd, signed: a linear head's cells sum to its logit less bias."""
    features, gradients = feature_gradients(model, images)
    return jnp.sum(gradients * features, axis=-1)


def layercam(model: Readout, images: jax.Array) -> jax.Array:
    """LayerCAM (Jiang et al. 2021): relu(sum_d relu(g_ijd) A_ijd)."""
    features, gradients = feature_gradients(model, images)
    return jax.nn.relu(jnp.sum(jax.nn.relu(gradients) * features, axis=-1))


def eigencam(model: Readout, images: jax.Array) -> jax.Array:
    """Eigen-CAM (Muhammad & Yeasin 2020): projection of each cell on the first right singular vector of A [h w, D],
    whose sign, which is free, makes the map's sum positive. Blind to the finding."""
    features = model.encode(images)
    gram = jnp.einsum("bijd,bije->bde", features, features)
    first = jnp.linalg.eigh(gram)[1][..., -1]  # [B, D], of the largest eigenvalue
    maps = jnp.einsum("bijd,bd->bij", features, first)
    return jnp.where(maps.sum(axis=(1, 2), keepdims=True) < 0, -maps, maps)
