"""The objective: unreduced terms, and the one function that weighs and sums them."""

import math

import jax
import jax.numpy as jnp
import optax

BITS = 1.0 / math.log(2.0)  # bits in one nat


def nll(logits: jax.Array, labels: jax.Array, label_mask: jax.Array, positive_weight: float) -> jax.Array:
    """Negative log likelihood of the known labels, nats, summed over findings: [B, K] -> [B].

    Labels are replaced where unknown *before* the loss, so that a NaN there cannot reach the gradient.
    """
    labels = jnp.where(label_mask > 0, labels, 0.0)
    weight = label_mask * jnp.where(labels > 0, positive_weight, 1.0)
    return jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


def beta_scale(step: jax.Array, steps: int, delay: float, ramp: float) -> jax.Array:
    """Share of the full beta at a step: 0 for `delay` of the run, then linear to 1 over `ramp` of it."""
    return jnp.clip((step / steps - delay) / max(ramp, 1e-6), 0.0, 1.0)


def infomask_loss(config, logits: jax.Array, out: dict, batch: dict, scale: jax.Array) -> tuple[jax.Array, dict]:
    """mean_B [ NLL + auxiliary NLL + scale * (beta_z sum_ij pi KL_z + beta_m sum_ij KL_m) ].

    For binary masks (`straight_through`), beta_z = beta_m and auxiliary = 0 this is an upper bound on
    -I(zt; y) + beta I(zt; x) up to the constant H(y) (Alemi et al. 2017 with the masked representation zt); the relaxed
    samplers make it a surrogate. A weight of zero removes its term from the program.

    Args:
      config: LossConfig.
      logits: [B, K]; out: of InfoMask; batch: labels, label_mask [B, K] and valid [B] (0 = padding, not counted).
      scale: scalar in [0, 1] of the schedule.

    Returns:
      Scalar loss, nats per image, and scalar means over the valid images: nll (nats), rate_z and rate_m (bits per
      image), mask_mean.
    """
    count = jnp.maximum(batch["valid"].sum(), 1.0)

    def mean(per_image):  # one global sum, one division: exact under padding and sharding
        return jnp.sum(per_image * batch["valid"]) / count

    labels = batch["labels"], batch["label_mask"], config.positive_weight
    samples = out.get("sample_logits", logits[None])  # [S, B, K]
    likelihood = mean(jax.vmap(nll, in_axes=(0, None, None, None))(samples, *labels).mean(axis=0))
    rate_z = mean(out["kl_z"].sum(axis=(1, 2)))
    rate_m = mean(out["kl_m"].sum(axis=(1, 2, 3)))
    loss = likelihood
    if config.auxiliary and "auxiliary_logits" in out:
        loss += config.auxiliary * mean(nll(out["auxiliary_logits"], *labels))
    if config.beta_z:
        loss += scale * config.beta_z * rate_z
    if config.beta_m:
        loss += scale * config.beta_m * rate_m
    mask_mean = mean(out["mask"].mean(axis=(1, 2, 3)))
    return loss, {"nll": likelihood, "rate_z": rate_z * BITS, "rate_m": rate_m * BITS, "mask_mean": mask_mean}
