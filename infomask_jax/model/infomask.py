"""InfoMask, top to bottom: views -> z ~ q(z|x) -> evidence -> m ~ q(m|x) -> masked representation -> logits."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model import sampling
from infomask_jax.model.pooling import pool
from infomask_jax.model.views import encode, view_terms

LOGIT_BOUND = 6.0  # of the mask posterior: pi stays within 0.0025 .. 0.9975 and can always move back
LOG_SIGMA, MASK_LOGIT = -3.0, 2.0  # at first: z nearly without noise, cells open
ABSENT = -3.0  # logit of an image whose mask is closed, at first: absent unless shown

Dense = partial(nn.Dense, precision="highest")  # float32, which accelerators else round to half of its digits
constant = nn.initializers.constant


class InfoMask(nn.Module):
    """Image classifier through a masked variational representation (arXiv 1903.11741; details ours, docs/method.md).

    B images, S samples of the mask (1 in evaluation), h x w cells, D features, C channels of z, K findings, M masks (1,
    or K: one per finding). encoder: a module [B, H, W, 1] -> [B, h, w, D] with an attribute `stride`, H / h.
    """

    config: ModelConfig
    findings: int
    encoder: nn.Module

    @nn.compact
    def __call__(self, images, *, train: bool, features=None, positions=None, mask=None):
        """(logits [B, K], a mean over the samples, `out`), float32.

        Args:
          images: [B, H, W, 1] float32, standardised.
          train: sample z and m, which needs the rng stream `sample`; otherwise take their means.
          features: [B, h, w, D] in place of the encoder's, for attribution; `images` is not read.
          positions: [B] int32, by default 0 .. B - 1: places of the images in the global batch. They pick the draws,
            which are then the same however the batch is split.
          mask: [B, h, w, M] in place of the mean of q(m|x), in evaluation.

        `out`: features; mu, log_sigma [B, h, w, C]; mask_logits, mask [B, h, w, M]; kl_z [B, h, w], weighed by the
        probability that the cell is open, and kl_m [B, h, w, M], nats; evidence [B, h, w, K], what is pooled. In
        training also sample_logits [S, B, K], auxiliary_logits [B, K] without the mask and, with two views, view_terms.
        """
        c, masks = self.config, self.findings if self.config.mask_per_finding else 1
        keys, features, views, content = begin(self, images, train, features, positions)

        # q(z|x)
        to_mu = Dense(c.latent_channels, name="mu")
        mu = to_mu(features)
        log_sigma = Dense(c.latent_channels, bias_init=constant(LOG_SIGMA), name="log_sigma")(features)
        log_sigma = jnp.clip(log_sigma, -8.0, 2.0)
        z = jax.vmap(sampling.sample_normal)(keys["z"], mu, log_sigma) if train else mu

        head = Dense(self.findings, use_bias=False, name="head")  # no bias: a closed cell, z = 0, says nothing

        def evidence(z):  # [B, h, w, C] -> [B, h, w, K]
            return content * bounded(c, head(z))

        # q(m|x), whose logits are what it learns itself and a share of what the classifier knows
        known = jax.lax.stop_gradient(evidence(mu)) if train else evidence(mu)
        known = known if c.mask_per_finding else known.max(axis=-1, keepdims=True)
        own = Dense(masks, kernel_init=nn.initializers.zeros, bias_init=constant(MASK_LOGIT), name="mask")(features)
        mask_logits = LOGIT_BOUND * jnp.tanh((own + c.mask_evidence * known) / LOGIT_BOUND)
        mask_logits = jnp.where(content > 0, mask_logits, -LOGIT_BOUND)
        pi = content * jax.nn.sigmoid(mask_logits)
        if train:
            draw = partial(sampling.sample_mask, samples=c.mask_samples, sampler=c.sampler)
            m = jax.vmap(draw, out_axes=1)(keys["mask"], mask_logits)  # [S, B, h, w, M]
        else:
            m = (sampling.mean_mask(mask_logits, c.sampler) if mask is None else mask)[None]
        m = content * m

        # q(y|m z)
        cells = evidence(z)
        taught = cells if c.teach_through_mask or not train else jax.lax.stop_gradient(cells)
        masked = m * taught  # evidence(m z) = m evidence(z) for binary m; for every m where it is not bounded
        bias = self.param("closed_evidence", constant(first_bias(c, features)), (self.findings,))

        def pooled(cells):  # [..., h, w, K] -> [..., K]
            return pool(cells + bias, c.pooling)

        logits = pooled(masked)

        # What they cost
        kl_z = (1.0 - jnp.prod(1.0 - pi, axis=-1)) * sampling.kl_normal(mu, log_sigma)  # free behind closed masks
        prior = {"prior_logit": math.log(c.mask_prior / (1.0 - c.mask_prior)), "prior_coupling": c.mask_coupling}
        if c.mask_coupling:
            prior = {name: self.param(name, constant(value), (masks,)) for name, value in prior.items()}
        kl_m = content * sampling.kl_bernoulli(mask_logits, sampling.mask_prior_logits(pi, *prior.values()))

        out = {"features": features, "mu": mu, "log_sigma": log_sigma, "kl_z": kl_z, "kl_m": kl_m}
        out |= {"mask_logits": mask_logits, "mask": m.mean(axis=0), "evidence": masked.mean(axis=0) + bias}
        if train:
            out |= {"sample_logits": logits, "auxiliary_logits": pooled(cells)}
            if views:
                out |= view_terms(views, lambda features: evidence(to_mu(features)), pooled)
        return logits.mean(axis=0), out


def begin(module: nn.Module, images, train: bool, features, positions) -> tuple:
    """What every model begins with: keys [B] of the draws of each image, features [B, h, w, D], views (None of given
    features), and 1 for cells that may give evidence, 0 for those that `close_empty` has closed, [B, h, w, 1]."""
    keys = dict.fromkeys(("hide", "z", "mask"))
    if train:
        positions = jnp.arange(len(images if features is None else features)) if positions is None else positions
        own = jax.vmap(jax.random.fold_in, (None, 0))(module.make_rng("sample"), positions)
        keys = dict(zip(keys, jax.vmap(lambda key: tuple(jax.random.split(key, len(keys))))(own), strict=True))
    views = None
    if features is None:
        features, views = encode(module.config, module.encoder, images, keys["hide"])
    content = jnp.any(features != 0, axis=-1, keepdims=True) | (not module.config.close_empty)
    return keys, features, views, content.astype(jnp.float32)


def bounded(c: ModelConfig, evidence: jax.Array) -> jax.Array:
    """Evidence within +- evidence_bound: no cell alone carries the label, the mask has to cover the finding (ours)."""
    return c.evidence_bound * jnp.tanh(evidence / c.evidence_bound) if c.evidence_bound else evidence


def first_bias(c: ModelConfig, features: jax.Array) -> float:
    """Evidence of a closed cell at first: ABSENT when pooled, or 0 where the head is to be linear."""
    if c.pooling == "noisy_or":  # every cell adds to the probability
        return ABSENT - math.log(features.shape[1] * features.shape[2])
    return ABSENT if c.evidence_bound else 0.0
