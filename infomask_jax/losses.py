"""The objective."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infomask_jax.config import LossConfig

BITS = 1.0 / math.log(2.0)  # bits in one nat
LARGEST_WEIGHT = 100.0  # of positives of the rarest findings, where weights are "auto"
RAMP = 0.4  # share of the steps over which the KLs' weights rise


def infomask_loss(
    config: LossConfig, logits: jax.Array, out: dict, batch: dict, charge: jax.Array, positive_weight=None
) -> tuple:
    """L = mean_B [ NLL(y | m z) + charge (beta_z sum_ij pi_ij KL_z,ij + beta_m sum_ij KL_m,ij)
                    + auxiliary NLL(y | z) + hidden NLL(y | second view) + consistency mean_ij |e1_ij - e2_ij|^2 ]

    pi KL_z, with KL_z = KL(N(mu, sigma^2) || N(0, I)), is out["kl_z"], KL_m = KL(Bern(pi) || prior) is out["kl_m"], in
    nats; e1, e2 the evidence of the views. The first line is the method: for binary m, beta_z = beta_m = beta, charge 1
    and a fixed prior without coupling it bounds -I(m z; y) + beta I(m z; x) from above, up to the constant H(y)
    (docs/method.md). The second line is ours. A weight of zero leaves its term out.

    logits [B, K], out: of the model; batch: labels, label_mask [B, K] and valid [B], 0 for padding, which is not
    counted; charge: that of `kl_charge`, times GECO's factor if there is one; positive_weight [K]: what `config` calls
    auto, see `positive_weights`. Returns the scalar L, nats per image, and means over the images: nll (nats), rate_z,
    rate_m (bits per image), mask_mean.
    """
    weight = config.positive_weight if positive_weight is None else positive_weight
    count = jnp.maximum(batch["valid"].sum(), 1.0)

    def mean(per_image):  # one global sum, one division: exact under padding and sharding
        return jnp.sum(per_image * batch["valid"]) / count

    def mean_nll(logits):
        return mean(nll(logits, batch["labels"], batch["label_mask"], weight))

    loss = paid = jax.vmap(mean_nll)(out.get("sample_logits", logits[None])).mean()  # rivals have no samples
    rate_z, rate_m = mean(out["kl_z"].sum(axis=(1, 2))), mean(out["kl_m"].sum(axis=(1, 2, 3)))
    if config.beta_z:
        loss += charge * config.beta_z * rate_z
    if config.beta_m:
        loss += charge * config.beta_m * rate_m
    if config.auxiliary and "auxiliary_logits" in out:
        loss += config.auxiliary * mean_nll(out["auxiliary_logits"])
    if config.hidden and "hidden_logits" in out:
        loss += config.hidden * mean_nll(out["hidden_logits"])
    if config.consistency and "view_difference" in out:
        loss += config.consistency * mean(out["view_difference"])
    rates = {"rate_z": rate_z * BITS, "rate_m": rate_m * BITS}
    return loss, {"nll": paid, "mask_mean": mean(out["mask"].mean(axis=(1, 2, 3)))} | rates


def positive_weights(config: LossConfig, labels: np.ndarray) -> np.ndarray | None:
    """Of training labels [N, K] of 1, 0, -1: what "auto" stands for, negatives by positives of each finding, float32
    [K]; None where the config names a weight."""
    if config.positive_weight != "auto":
        return None
    return np.minimum(np.sum(labels == 0, 0) / np.maximum(np.sum(labels == 1, 0), 1), LARGEST_WEIGHT).astype(np.float32)


def nll(logits: jax.Array, labels: jax.Array, label_mask: jax.Array, positive_weight: float | jax.Array) -> jax.Array:
    """Negative log likelihood of the known labels, nats, summed over findings: [B, K] -> [B]. positive_weight: one for
    all findings, or [K]."""
    labels = jnp.where(label_mask > 0, labels, 0.0)  # an unknown one may be NaN
    weight = label_mask * jnp.where(labels > 0, positive_weight, 1.0)
    return jnp.sum(weight * optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)


def kl_charge(step: jax.Array, steps: int, delay: float) -> jax.Array:
    """Share of the betas at a step: 0 for `delay` of the run, then linear to 1 over RAMP of it."""
    return jnp.clip((step / steps - delay) / RAMP, 0.0, 1.0)
