"""The objective: unreduced terms, and the one function that weighs and sums them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

BITS = 1.0 / math.log(2.0)  # bits in one nat

LOG_BETA_BOUND = math.log(1e3)  # the factor on the betas stays within 1/1000 .. 1000
LOG_BETA_STEP = 0.03  # largest change of its logarithm in one step
NLL_DECAY = 0.95  # of the moving average of the batch NLL: about the last twenty steps


class Constraint(NamedTuple):
    """What `loss.target_nll` adds to the training state: two float32 scalars."""

    log_beta: jax.Array
    """u; the betas are multiplied by exp(u)."""
    average_nll: jax.Array
    """Moving average of the batch NLL, nats per image."""


def initial_constraint(target: float) -> Constraint:
    """Factor 1 and, so that nothing moves before there is something to average, an NLL on target."""
    return Constraint(jnp.float32(0.0), jnp.float32(target))


def adapt_beta(constraint: Constraint, target: float, batch_nll: jax.Array, scale: jax.Array) -> Constraint:
    """Raise the factor on the betas while the average NLL is under the target, lower it while it is above.

    GECO (Rezende & Viola 2018, "Taming VAEs") minimises rate + lambda (NLL - target) and raises lambda exponentially
    while a moving average of the constraint is violated. This is that Lagrangian divided by lambda, exp(u) = 1/lambda:
    the same stationary points, and a gradient whose scale stays that of the NLL. Ours: the division, that both betas
    share the factor, the bounded logarithm of target / average in place of their difference (the step has no unit),
    the bound on u, and that the step is multiplied by the schedule.

    Args:
      target: nats per image, positive; batch_nll: scalar, of this batch.
      scale: scalar in [0, 1] of the schedule: u rests until the rates are charged. The average runs from the start.
    """
    average = NLL_DECAY * constraint.average_nll + (1.0 - NLL_DECAY) * batch_nll
    gap = jnp.clip(jnp.log(target / average), -1.0, 1.0)
    log_beta = constraint.log_beta + LOG_BETA_STEP * scale * gap
    return Constraint(jnp.clip(log_beta, -LOG_BETA_BOUND, LOG_BETA_BOUND), average)


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
    """mean_B [ NLL + views + scale * (beta_z sum_ij pi KL_z + beta_m sum_ij KL_m) ].

    views = auxiliary NLL(unmasked) + hidden NLL(second view) + consistency |difference of the views|^2, see LossConfig.
    For binary masks (`straight_through`), beta_z = beta_m, views = 0 and a prior without coupling this is an upper
    bound on -I(zt; y) + beta I(zt; x) up to the constant H(y) (Alemi et al. 2017 with the masked representation zt).
    The relaxed samplers make it a surrogate; hard_concrete and gaussian_gate open cells more often than pi says. A
    weight of zero removes its term from the program. Without `teach_through_mask` the first NLL's gradient stops before
    the classifier: training then follows no gradient of this one sum.

    Args:
      config: LossConfig.
      logits: [B, K]; out: of InfoMask; batch: labels, label_mask [B, K] and valid [B] (0 = padding, not counted).
      scale: scalar on both betas: the schedule's, times the factor of a constrained run.

    Returns:
      Scalar loss, nats per image, and scalar means over the valid images: nll (nats), rate_z and rate_m (bits per
      image), mask_mean.
    """
    count = jnp.maximum(batch["valid"].sum(), 1.0)

    def mean(per_image):  # one global sum, one division: exact under padding and sharding
        return jnp.sum(per_image * batch["valid"]) / count

    labels = batch["labels"], batch["label_mask"], config.positive_weight
    samples = out.get("sample_logits", logits[:, None])  # [B, S, K]
    likelihood = mean(jax.vmap(nll, in_axes=(1, None, None, None))(samples, *labels).mean(axis=0))
    rate_z = mean(out["kl_z"].sum(axis=(1, 2)))
    rate_m = mean(out["kl_m"].sum(axis=(1, 2, 3)))
    loss = likelihood
    if config.auxiliary and "auxiliary_logits" in out:
        loss += config.auxiliary * mean(nll(out["auxiliary_logits"], *labels))
    if config.hidden and "hidden_logits" in out:
        loss += config.hidden * mean(nll(out["hidden_logits"], *labels))
    if config.consistency and "view_difference" in out:
        loss += config.consistency * mean(out["view_difference"])
    if config.beta_z:
        loss += scale * config.beta_z * rate_z
    if config.beta_m:
        loss += scale * config.beta_m * rate_m
    mask_mean = mean(out["mask"].mean(axis=(1, 2, 3)))
    return loss, {"nll": likelihood, "rate_z": rate_z * BITS, "rate_m": rate_m * BITS, "mask_mean": mask_mean}
