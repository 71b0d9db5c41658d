"""The InfoMask classifier: encoder -> posteriors of representation and mask -> masked representation -> evidence."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model import masks
from infomask_jax.model.encoder import Encoder

LOGIT_BOUND = 6.0  # of the mask posterior: pi stays within 0.0025 .. 0.9975 and can always move back


class GatedAttention(nn.Module):
    """Scores w_k . (tanh(V z) * sigmoid(U z)) of the cells, whose softmax weighs them (Ilse et al. 2018, eq. 9).

    One w per finding; V and U are shared and have as many rows as z has channels (ours). Without biases, as in the
    paper: a cell that holds zeros scores zero. [B, h, w, C] -> [B, h, w, K].
    """

    findings: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, use_bias=False)
        gated = nn.tanh(dense(z.shape[-1], name="tanh")(z)) * nn.sigmoid(dense(z.shape[-1], name="gate")(z))
        return dense(self.findings, name="weights")(gated)


class InfoMask(nn.Module):
    """Image classifier through a masked variational representation (arXiv 1903.11741; details ours, see ModelConfig).

    `bottleneck="vib"` keeps z and drops the mask (Alemi et al. 2017); `"none"` keeps neither: a plain classifier.
    With `evidence_bound=0` the head is linear in each cell: `evidence` of a mean-pooled plain classifier is then its
    class activation map. `pooling="attention"` adds parameters under the name `attention`, read from z: what weighs the
    cells has passed the bottleneck too.
    """

    config: ModelConfig
    findings: int

    @nn.compact
    def __call__(
        self, images: jax.Array | None, *, train: bool, features: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits and everything between.

        Args:
          images: [B, H, W, 1] float32, standardised.
          train: sample z and the mask (needs the rng stream `sample`); otherwise use the posterior means, no rng.
          features: [B, h, w, D] float32 to classify in place of the encoder's, for attribution; `images` is not read.

        Returns:
          logits [B, K] and `out`, all float32: features [B, h, w, D]; mu, log_sigma [B, h, w, C]; mask_logits, mask
          [B, h, w, M]; kl_z [B, h, w] (already weighed by the probability that the cell is open) and kl_m [B, h, w, M],
          nats; evidence [B, h, w, K], the logit contributions that are pooled. In training also sample_logits
          [S, B, K], one for each mask sample; logits, mask and evidence are then means over the samples. With a mask
          auxiliary_logits [B, K], through the unmasked representation; with attention pooling attention [B, h, w, K],
          the weights of the cells, summing to 1 over the grid. Without mask: mask 1, kl_m 0; without z: mu =
          features, kl_z 0.
        """
        c = self.config
        if features is None:
            encoder = Encoder(
                c.width, c.depth, c.stride, c.second_kernel, c.norm, dtype=jnp.dtype(c.dtype), name="encoder"
            )
            features = encoder(images).astype(jnp.float32)  # [B, h, w, D]
            if c.half_turn:
                turned = encoder(images[:, ::-1, ::-1]).astype(jnp.float32)
                features = (features + turned[:, ::-1, ::-1]) / 2
        grid = features.shape[:3]
        if train and c.bottleneck != "none":
            key_z, key_mask, key_fill = jax.random.split(self.make_rng("sample"), 3)

        mask_logits = jnp.full((*grid, 1), jnp.inf)
        mask, kl_m = jnp.ones((1, *grid, 1)), jnp.zeros((*grid, 1))  # mask: [S, B, h, w, M]
        if c.bottleneck == "infomask":
            count = self.findings if c.mask_per_finding else 1
            mask_bias = nn.initializers.constant(c.mask_bias)
            # Kernel zero: every cell starts at the bias and stays there until the rates are charged (see train.py).
            mask_logits = nn.Dense(count, kernel_init=nn.initializers.zeros, bias_init=mask_bias, name="mask")(features)
            mask_logits = LOGIT_BOUND * jnp.tanh(mask_logits / LOGIT_BOUND)
            if train:
                shape = (c.mask_samples, *mask_logits.shape)
                mask = masks.sample_mask(key_mask, jnp.broadcast_to(mask_logits, shape), c.sampler, c.temperature)
            else:
                mask = masks.mean_mask(mask_logits, c.sampler)[None]
            kl_m = masks.kl_bernoulli(mask_logits, c.mask_prior)

        if c.bottleneck == "none":
            mu = z = features
            log_sigma, kl_z = jnp.zeros_like(features), jnp.zeros(grid)
        else:
            mu = nn.Dense(c.latent_channels, name="mu")(features)  # [B, h, w, C]
            sigma_bias = nn.initializers.constant(c.log_sigma_bias)
            log_sigma = nn.Dense(c.latent_channels, bias_init=sigma_bias, name="log_sigma")(features)
            log_sigma = jnp.clip(log_sigma, -8.0, 2.0)  # exp(2 log_sigma) stays finite
            z = masks.sample_normal(key_z, mu, log_sigma) if train else mu
            # A cell's z is irrelevant only when every mask over it is closed.
            any_open = 1.0 - jnp.prod(1.0 - jax.nn.sigmoid(mask_logits), axis=-1)  # [B, h, w]
            kl_z = any_open * masks.kl_normal(mu, log_sigma)

        bias = self.param("closed_evidence", nn.initializers.constant(c.closed_evidence), (self.findings,))
        weights = nn.Dense(self.findings, use_bias=False, name="head")

        def head(z):  # [B, h, w, C] -> evidence beyond the bias [B, h, w, K]
            evidence = weights(z)
            bound = c.evidence_bound
            return bound * jnp.tanh(evidence / bound) if bound else evidence

        noise = None
        if c.fill == "noise" and train and c.bottleneck == "infomask":
            noise = jax.random.normal(key_fill, z.shape)

        def masked(cells, function):  # cells = function(z) -> function of the masked representation, [S, B, h, w, K]
            # Exact for a binary mask (function(0) is 0), without forming m * z for every sample.
            closed = 0.0 if noise is None else function(noise)[None]
            return mask * cells[None] + (1.0 - mask) * closed

        unmasked = head(z)
        evidence = masked(unmasked, head) + bias[None, None, None, None]  # [S, B, h, w, K]
        pool = partial(masks.pool, pooling=c.pooling, sharpness=c.sharpness, topk=c.topk)
        attention = unmasked_attention = None
        if c.pooling == "attention":
            attend = GatedAttention(self.findings, name="attention")
            scores = attend(z)
            attention = jax.nn.softmax(masked(scores, attend), axis=(2, 3))  # [S, B, h, w, K]
            unmasked_attention = jax.nn.softmax(scores, axis=(1, 2))
        out = {
            "features": features,
            "mu": mu,
            "log_sigma": log_sigma,
            "mask_logits": mask_logits,
            "mask": mask.mean(axis=0),
            "kl_z": kl_z,
            "kl_m": kl_m,
            "evidence": evidence.mean(axis=0),
        }
        if c.bottleneck == "infomask":
            out["auxiliary_logits"] = pool(unmasked + bias[None, None, None], weights=unmasked_attention)
        if attention is not None:
            out["attention"] = attention.mean(axis=0)
        sample_logits = jax.vmap(pool)(evidence, weights=attention)  # [S, B, K]
        if train:
            out["sample_logits"] = sample_logits
        return sample_logits.mean(axis=0), out
