"""The rivals that have no mask, with the signature and `out` of InfoMask."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model.infomask import LOG_SIGMA, Dense, bounded, constant, first_bias, image_keys, with_content
from infomask_jax.model.pooling import pool
from infomask_jax.model.sampling import kl_normal, sample_normal
from infomask_jax.model.views import encode, view_terms


class Unmasked(nn.Module):
    """Plain classifier; `vib`: of a sample of z ~ N(mu, sigma^2) (Alemi et al. 2017); `attention_mil`: cells weighed by
    w_k . (tanh(V x) * sigmoid(U x)), softmax over cells (Ilse et al. 2018, eq. 9), one w per finding, V and U shared.

    Mean-pooled and not bounded, `evidence` of the plain one is its class activation map (Zhou et al. 2016). mask is 1,
    kl_m 0; without z, mu is the features and kl_z 0. `attention_mil` adds attention [B, h, w, K], 1 in sum.
    """

    config: ModelConfig
    findings: int
    encoder: nn.Module

    @nn.compact
    def __call__(self, images, *, train, features=None, positions=None):
        c = self.config
        keys = image_keys(self, images if features is None else features, positions) if train else {}
        features, views = encode(c, self.encoder, images, keys.get("hide")) if features is None else (features, None)
        content, to_mu = with_content(c, features), lambda features: features
        mu = z = features
        log_sigma = kl_z = jnp.zeros_like(features)
        if c.kind == "vib":
            to_mu = Dense(c.latent_channels, name="mu")
            mu = z = to_mu(features)
            log_sigma = Dense(c.latent_channels, bias_init=constant(LOG_SIGMA), name="log_sigma")(features)
            log_sigma = jnp.clip(log_sigma, -8.0, 2.0)
            kl_z = content * kl_normal(mu, log_sigma)[..., None]
            if train:
                z = jax.vmap(sample_normal)(keys["z"], mu, log_sigma)
        head = Dense(self.findings, use_bias=False, name="head")
        bias = self.param("closed_evidence", constant(first_bias(c, features)), (self.findings,))
        ones = jnp.ones((*features.shape[:3], 1))
        out = {"features": features, "mu": mu, "log_sigma": log_sigma, "kl_z": kl_z.sum(axis=-1)}
        out |= {"mask": ones, "mask_logits": jnp.inf * ones, "kl_m": 0.0 * ones}

        def evidence(z):
            return content * bounded(c, head(z))

        if c.kind == "attention_mil":
            gates = [Dense(z.shape[-1], use_bias=False, name=name)(z) for name in ("tanh", "gate")]
            scores = Dense(self.findings, use_bias=False, name="weights")(nn.tanh(gates[0]) * nn.sigmoid(gates[1]))
            out["attention"] = jax.nn.softmax(scores, axis=(1, 2))

        def pooled(cells):
            if c.kind == "attention_mil":
                return jnp.sum(out["attention"] * (cells + bias), axis=(1, 2))
            return pool(cells + bias, c.pooling)

        cells = evidence(z)
        logits, out["evidence"] = pooled(cells), cells + bias
        if train:
            out["sample_logits"] = logits[None]
            if views and c.two_views:
                out |= view_terms(views, lambda features: evidence(to_mu(features)), pooled)
        return logits, out
