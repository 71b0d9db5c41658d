"""The rivals without a mask, with the `out` of InfoMask: mask 1, kl_m 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model.infomask import LOG_SIGMA, Dense, bounded, constant, first_bias, with_content
from infomask_jax.model.pooling import pool
from infomask_jax.model.sampling import Keys, image_keys, kl_normal, sample_normal
from infomask_jax.model.views import encode, view_terms


class Unmasked(nn.Module):
    """Plain classifier, whose `evidence`, mean-pooled and not bounded, is its class activation map (Zhou et al. 2016).

    vib: of z ~ N(mu, sigma^2) (Alemi et al. 2017). attention_mil: of cells weighed by out["attention"] =
    softmax(w_k . (tanh(V x) * sigmoid(U x))) (Ilse et al. 2018, eq. 9; V and U shared, square)."""

    config: ModelConfig
    findings: int
    encoder: nn.Module

    @nn.compact
    def __call__(self, images, *, train: bool, features=None, positions=None):
        c = self.config
        keys = image_keys(self, images, features, positions) if train else Keys()
        features, views = encode(c, self.encoder, images, keys.hide) if features is None else (features, None)
        content = with_content(c, features)
        z, to_mu, kl_z = features, lambda features: features, 0.0 * content[..., 0]
        mu, log_sigma = features, jnp.zeros_like(features)
        if c.kind == "vib":
            to_mu = Dense(c.latent_channels, name="mu")
            mu = to_mu(features)
            log_sigma = Dense(c.latent_channels, bias_init=constant(LOG_SIGMA), name="log_sigma")(features)
            log_sigma = log_sigma.clip(-8.0, 2.0)
            z = sample_normal(keys.z, mu, log_sigma) if train else mu
            kl_z = content[..., 0] * kl_normal(mu, log_sigma)
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
            out |= view_terms(views, lambda of_view: evidence(to_mu(of_view)), lambda x: pool(x + bias, c.pooling))
        return pool(out["evidence"], c.pooling), out
