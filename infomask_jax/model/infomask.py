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

Dense = partial(nn.Dense, precision="highest")  # float32, which accelerators otherwise round to half of its digits
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
          train: sample z and m, with the rng stream `sample`; otherwise take mu and pi.
          features: [B, h, w, D] in place of the encoder's, for attribution; `images` is not read.
          positions: [B] int32, by default 0 .. B - 1: places of the images in the global batch. They pick the draws,
            which are then the same however the batch is split.
          mask: [B, h, w, M] in place of the mean of q(m|x), in evaluation.

        `out`: features; mu, log_sigma [B, h, w, C]; mask_logits, mask [B, h, w, M]; kl_z [B, h, w], weighed by the
        probability that the cell is open, and kl_m [B, h, w, M], nats; evidence [B, h, w, K], of m z and b. In
        training also sample_logits [S, B, K], auxiliary_logits [B, K] without the mask and, with two views,
        hidden_logits and view_difference, see views.py.
        """
        c, masks = self.config, self.findings if self.config.mask_per_finding else 1
        keys = sampling.image_keys(self, images, features, positions) if train else sampling.Keys()
        features, views = encode(c, self.encoder, images, keys.hide) if features is None else (features, None)
        content = with_content(c, features)
        stop = jax.lax.stop_gradient if train else lambda x: x  # attributions, in evaluation, need every gradient

        # z ~ q(z|x) = N(mu, sigma^2)
        to_mu = Dense(c.latent_channels, name="mu")
        mu = to_mu(features)
        log_sigma = Dense(c.latent_channels, bias_init=constant(LOG_SIGMA), name="log_sigma")(features).clip(-8.0, 2.0)
        z = sampling.sample_normal(keys.z, mu, log_sigma) if train else mu

        # The evidence of a cell, w . z
        head = Dense(self.findings, use_bias=False, name="head")  # no bias: a closed cell, z = 0, adds nothing

        def evidence(z):  # [B, h, w, C] -> [B, h, w, K]
            return content * bounded(c, head(z))

        # m ~ q(m|x) = Bernoulli(pi); its logit: a share of the evidence, and what it learns itself (train.mask_waits)
        known = stop(evidence(mu))
        known = known if c.mask_per_finding else known.max(axis=-1, keepdims=True)
        own = Dense(masks, kernel_init=nn.initializers.zeros, bias_init=constant(MASK_LOGIT), name="mask")(features)
        mask_logits = LOGIT_BOUND * jnp.tanh((c.mask_evidence * known + own) / LOGIT_BOUND)
        mask_logits = jnp.where(content > 0, mask_logits, -LOGIT_BOUND)
        pi = content * jax.nn.sigmoid(mask_logits)
        if train:
            m = content * sampling.sample_mask(keys.mask, mask_logits, c.mask_samples, c.sampler)  # [S, B, h, w, M]
        else:
            m = content * (sampling.mean_mask(mask_logits, c.sampler) if mask is None else mask)[None]

        # q(y|m z), where evidence(m z) = m evidence(z) if m is binary or evidence not bounded
        cells = evidence(z)
        masked_evidence = m * (cells if c.teach_through_mask else stop(cells))  # stopped, it teaches the mask alone
        bias = self.param("closed_evidence", constant(first_bias(c, features)), (self.findings,))

        def pooled(cells):  # [..., h, w, K] -> [..., K]
            return pool(cells + bias, c.pooling)

        logits = pooled(masked_evidence)

        # What they cost, and so what pi learns: z where some mask over it is open, m in every cell with content
        kl_z = (1.0 - jnp.prod(1.0 - pi, axis=-1)) * sampling.kl_normal(mu, log_sigma)
        odds, coupling = math.log(c.mask_prior / (1.0 - c.mask_prior)), c.mask_coupling
        if coupling:  # then both are learned
            odds = self.param("prior_logit", constant(odds), (masks,))
            coupling = self.param("prior_coupling", constant(coupling), (masks,))
        kl_m = content * sampling.kl_bernoulli(mask_logits, sampling.mask_prior_logits(pi, odds, coupling))

        out = {"features": features, "mu": mu, "log_sigma": log_sigma, "kl_z": kl_z, "kl_m": kl_m}
        out |= {"mask_logits": mask_logits, "mask": m.mean(axis=0), "evidence": masked_evidence.mean(axis=0) + bias}
        if train:
            out |= {"sample_logits": logits, "auxiliary_logits": pooled(cells)}
            if views:
                out |= view_terms(views, lambda of_view: evidence(to_mu(of_view)), pooled)
        return logits.mean(axis=0), out


def with_content(c: ModelConfig, features: jax.Array) -> jax.Array:
    """1 for cells that may give evidence, 0 for those that `close_empty` has closed: [B, h, w, D] -> [B, h, w, 1]."""
    return (jnp.any(features != 0, axis=-1, keepdims=True) | (not c.close_empty)).astype(jnp.float32)


def bounded(c: ModelConfig, evidence: jax.Array) -> jax.Array:
    """Evidence within +- evidence_bound: no cell alone carries the label, the mask has to cover the finding (ours)."""
    return c.evidence_bound * jnp.tanh(evidence / c.evidence_bound) if c.evidence_bound else evidence


def first_bias(c: ModelConfig, features: jax.Array) -> float:
    """Evidence of a closed cell at first: ABSENT, or 0 where evidence is not bounded."""
    if c.pooling == "noisy_or":  # every cell adds to the probability
        return ABSENT - math.log(features.shape[1] * features.shape[2])
    return ABSENT if c.evidence_bound else 0.0
