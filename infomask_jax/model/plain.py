"""The rivals without a mask, with the signature and `out` of InfoMask: mask 1, kl_m 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model import sampling
from infomask_jax.model.infomask import LOG_SIGMA, Dense, begin, bounded, constant, first_bias
from infomask_jax.model.pooling import pool
from infomask_jax.model.views import view_terms


class Unmasked(nn.Module):
    """Plain classifier; `vib`: of z ~ N(mu, sigma^2) (Alemi et al. 2017); `attention_mil`: of cells weighed by
    softmax(w_k . (tanh(V x) * sigmoid(U x))), out["attention"] (Ilse et al. 2018, eq. 9; V and U shared, square).

    Mean-pooled and not bounded, `evidence` of the plain one is its class activation map (Zhou et al. 2016).
    """

    config: ModelConfig
    findings: int
    encoder: nn.Module

    @nn.compact
    def __call__(self, images, *, train: bool, features=None, positions=None):
        c = self.config
        keys, features, views, content = begin(self, images, train, features, positions)
        z, to_mu, kl_z = features, lambda features: features, 0.0 * content[..., 0]
        mu, log_sigma = features, jnp.zeros_like(features)
        if c.kind == "vib":
            to_mu = Dense(c.latent_channels, name="mu")
            mu = to_mu(features)
            log_sigma = Dense(c.latent_channels, bias_init=constant(LOG_SIGMA), name="log_sigma")(features)
            log_sigma = jnp.clip(log_sigma, -8.0, 2.0)
            z = jax.vmap(sampling.sample_normal)(keys["z"], mu, log_sigma) if train else mu
            kl_z = content[..., 0] * sampling.kl_normal(mu, log_sigma)
        head = Dense(self.findings, use_bias=False, name="head")
        bias = self.param("closed_evidence", constant(first_bias(c, features)), (self.findings,))

        def evidence(z):
            return content * bounded(c, head(z))

        one = jnp.ones_like(content)
        out = {"features": features, "mu": mu, "log_sigma": log_sigma, "kl_z": kl_z, "evidence": evidence(z) + bias}
        out |= {"mask": one, "mask_logits": jnp.inf * one, "kl_m": 0.0 * one}
        if c.kind == "attention_mil":
            tanh, gate = (Dense(z.shape[-1], use_bias=False, name=name)(z) for name in ("tanh", "gate"))
            scores = Dense(self.findings, use_bias=False, name="weights")(nn.tanh(tanh) * nn.sigmoid(gate))
            out["attention"] = jax.nn.softmax(scores, axis=(1, 2))
            return jnp.sum(out["attention"] * out["evidence"], axis=(1, 2)), out
        if train and views:
            out |= view_terms(views, lambda features: evidence(to_mu(features)), lambda x: pool(x + bias, c.pooling))
        return pool(out["evidence"], c.pooling), out
