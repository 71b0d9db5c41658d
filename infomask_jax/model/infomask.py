"""The InfoMask classifier: encoder -> posteriors of representation and mask -> masked representation -> evidence."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.config import ModelConfig
from infomask_jax.model import masks
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.heads import Affine, GatedAttention, Head, affine_maps, expected_evidence
from infomask_jax.model.views import has_content, mean_view, random_blocks

LOGIT_BOUND = 6.0  # of the mask posterior: pi stays within 0.0025 .. 0.9975 and can always move back


class MaskPrior(nn.Module):
    """Logits of the mask's prior r(m), see masks.mask_prior_logits; one rate and coupling a mask, learned or fixed.

    Without coupling any r bounds the information; the best one is that which the masks of all images together have, and
    minimizing KL_m in r too finds it (empirical Bayes). With it r reads the image's own mask, around the cell, and KL_m
    is a price, no bound. pi [B, h, w, M] -> the same shape.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, pi: jax.Array) -> jax.Array:
        c = self.config
        logit, coupling = math.log(c.mask_prior / (1.0 - c.mask_prior)), c.mask_coupling
        if c.learn_prior:
            logit = self.param("logit", nn.initializers.constant(logit), pi.shape[-1:])
            coupling = self.param("coupling", nn.initializers.constant(coupling), pi.shape[-1:])
        return masks.mask_prior_logits(pi, logit, coupling)


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
        self,
        images: jax.Array | None,
        *,
        train: bool,
        features: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits and everything between.

        Args:
          images: [B, H, W, 1] float32, standardised.
          train: sample the evidence of z (see Head) and the mask (needs the rng stream `sample`); otherwise use the
            posterior means, no rng.
          features: [B, h, w, D] float32 to classify in place of the encoder's, for attribution; `images` is not read.
          positions: [B] int32, by default 0 .. B - 1: place of each image in the global batch. It picks the image's
            random draws, which are then the same however the batch is split over devices or steps of accumulation.

        Returns:
          logits [B, K] and `out`, all float32: features [B, h, w, D]; mu, log_sigma [B, h, w, C]; mask_logits, mask
          [B, h, w, M]; kl_z [B, h, w] (already weighed by the probability that the cell is open) and kl_m [B, h, w, M],
          nats; evidence [B, h, w, K], the logit contributions that are pooled. In training also sample_logits
          [B, S, K], one for each mask sample; logits, mask and evidence are then means over the samples. With a mask
          auxiliary_logits [B, K], through the unmasked representation; with attention pooling attention [B, h, w, K],
          the weights of the cells, summing to 1 over the grid; with `half_turn` hidden_logits [B, K] of the second view
          alone and view_difference [B], the mean over the cells that both views show of the squared difference of their
          evidence, summed over findings. Without mask: mask 1, kl_m 0; without z: mu = features, kl_z 0.
        """
        c = self.config
        key_hide = key_z = key_mask = key_fill = None  # [B] keys each
        if train and (c.bottleneck != "none" or (c.half_turn and c.hide)):
            positions = jnp.arange(len(images if features is None else features)) if positions is None else positions
            keys = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("sample"), positions)
            key_hide, key_z, key_mask, key_fill = jax.vmap(lambda key: tuple(jax.random.split(key, 4)))(keys)
        views = None
        if features is None:
            features, views = self.encode(images, key_hide)
        grid = features.shape[:3]
        content = self.content(features)
        mu, log_sigma, own_logits, to_mu = self.posteriors(features)
        kl_z = jnp.zeros(grid) if c.bottleneck == "none" else content[..., 0] * masks.kl_normal(mu, log_sigma)

        bias = self.param("closed_evidence", nn.initializers.constant(c.closed_evidence), (self.findings,))
        head = Head(self.findings, name="head")
        attend = GatedAttention(self.findings, name="attention") if c.pooling == "attention" else None

        def bounded(evidence):  # [B, h, w, K]
            return c.evidence_bound * jnp.tanh(evidence / c.evidence_bound) if c.evidence_bound else evidence

        if train and views:  # linear in the features: what the losses need of each view gives that of both
            by_view = [expected_evidence(head, to_mu, view) for view in views[:2]]
            expected = mean_view(*by_view, views[2])  # of the evidence over z, [B, h, w, K]
        else:
            expected = head(mu)
        z, evidence = mu, expected
        if train and c.bottleneck != "none":
            draw = jax.vmap(masks.sample_normal)
            if attend:  # it reads z itself
                z = draw(key_z, mu, log_sigma)
                evidence = head(z)
            else:
                evidence = draw(key_z, expected, head(log_sigma, spread=True))
        evidence = bounded(evidence)

        mask_logits = jnp.full((*grid, 1), jnp.inf)
        mask, kl_m = jnp.ones((grid[0], 1, 1, grid[1] * grid[2])), jnp.zeros((*grid, 1))  # mask: [B, S, M, N] cells
        if c.bottleneck == "infomask":
            known = bounded(expected)  # [B, h, w, K]; the classifier learns it, the mask only reads it
            mask_logits = self.mask_logits(own_logits, jax.lax.stop_gradient(known) if train else known)
            mask_logits = LOGIT_BOUND * jnp.tanh(mask_logits / LOGIT_BOUND)
            mask_logits = jnp.where(content > 0, mask_logits, -LOGIT_BOUND)
            mask = self.mask_cells(mask_logits, key_mask) * masks.cells_last(content)[:, None]
            pi = content * jax.nn.sigmoid(mask_logits)
            kl_m = content * masks.kl_bernoulli(mask_logits, MaskPrior(c, name="prior")(pi))
            # A cell's z is irrelevant only when every mask over it is closed.
            kl_z *= 1.0 - jnp.prod(1.0 - pi, axis=-1)

        noise = None
        if c.fill == "noise" and train and c.bottleneck == "infomask":
            noise = jax.vmap(partial(jax.random.normal, shape=mu.shape[1:]))(key_fill)

        def masked(cells, function):  # cells = function(z) -> function of the masked representation, [B, S, K, N]
            # Exact for a binary mask (function(0) is 0), without forming m * z for every sample.
            closed = 0.0 if noise is None else masks.cells_last(function(noise))[:, None]
            if train and c.bottleneck == "infomask" and not c.teach_through_mask:
                cells, closed = jax.lax.stop_gradient((cells, closed))
            return mask * jnp.stack([cells] * mask.shape[1], axis=1) + (1.0 - mask) * closed

        def pooled(cells, scores):  # evidence beyond the bias and attention scores [..., K, N] -> [..., K], attention
            attention = None if scores is None else jax.nn.softmax(scores, axis=-1)
            base = bias.reshape((1,) * (cells.ndim - 2) + (-1, 1))
            return masks.pool(cells + base, c.pooling, c.sharpness, c.topk, attention), attention

        unmasked, scores = masks.cells_last(content * evidence), attend and masks.cells_last(attend(z))
        cells = masked(unmasked, lambda noise: bounded(head(noise)))
        masked_scores = None if attend is None else masked(scores, attend)
        sample_logits, attention = pooled(cells, masked_scores)  # [B, S, K]

        def mean_on_grid(x):  # [B, S, K, N] -> [B, h, w, K]
            return jnp.moveaxis(x.mean(axis=1), 1, 2).reshape(*grid, -1)

        out = {
            "features": features,
            "mu": mu,
            "log_sigma": log_sigma,
            "mask_logits": mask_logits,
            "mask": mean_on_grid(mask),
            "kl_z": kl_z,
            "kl_m": kl_m,
            "evidence": mean_on_grid(cells) + bias[None, None, None],
        }
        if c.bottleneck == "infomask":
            out["auxiliary_logits"] = pooled(unmasked, scores)[0]
        if attention is not None:
            out["attention"] = mean_on_grid(attention)
        if train:
            out["sample_logits"] = sample_logits
        if train and views:
            shown = views[2]
            seen, alone = (shown * bounded(e) for e in by_view)
            second = affine_maps(views[1], [to_mu])[0] if attend and to_mu else views[1]
            scores = attend and masks.cells_last(attend(second))
            out["hidden_logits"] = pooled(masks.cells_last(alone), scores)[0]
            squares = jnp.sum((seen - alone) ** 2, axis=(1, 2, 3))
            out["view_difference"] = squares / jnp.maximum(jnp.sum(shown, axis=(1, 2, 3)), 1.0)
        return sample_logits.mean(axis=1), out

    def encode(self, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
        """Features [B, h, w, D] and None, or with `half_turn` the mean of the views' features and, for the losses,
        (features of the first view, of the second, turned back, cells that the second shows [B, h, w, 1]).

        key [B]: of the blocks that are hidden from the second view; None hides nothing.
        """
        c = self.config
        encoder = Encoder(c.width, c.depth, c.stride, c.second_kernel, c.norm, dtype=jnp.dtype(c.dtype), name="encoder")
        features = encoder(images).astype(jnp.float32)
        shown = has_content(images, c.stride) if c.close_empty else jnp.ones((*features.shape[:3], 1))
        features *= shown
        if not c.half_turn:
            return features, None
        if key is not None and c.hide:
            kept = jax.vmap(partial(random_blocks, grid=features.shape[1:3], hide=c.hide))(key)
            images = images * kept.repeat(c.stride, axis=1).repeat(c.stride, axis=2)
            shown *= kept
        turned = shown * encoder(images[:, ::-1, ::-1])[:, ::-1, ::-1].astype(jnp.float32)
        return mean_view(features, turned, shown), (features, turned, shown)

    def content(self, features: jax.Array) -> jax.Array:
        """1 for cells that may give evidence, 0 for those that `close_empty` closes: [B, h, w, D] -> [B, h, w, 1].

        A cell counts as empty where all its features are zero, which needs no image.
        """
        if not self.config.close_empty:
            return jnp.ones((*features.shape[:3], 1))
        return jnp.any(features != 0, axis=-1, keepdims=True).astype(jnp.float32)

    def posteriors(self, features: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None, tuple | None]:
        """mu and log sigma of z [B, h, w, C]; what the mask learns itself [B, h, w, M], None without a mask; and the
        (kernel, bias) of mu, None without z, when mu is the features and log sigma 0."""
        c = self.config
        if c.bottleneck == "none":
            return features, jnp.zeros_like(features), None, None
        sigma_bias = nn.initializers.constant(c.log_sigma_bias)
        layers = [Affine(c.latent_channels, name="mu")]
        layers += [Affine(c.latent_channels, bias_init=sigma_bias, name="log_sigma")]
        if c.bottleneck == "infomask":
            # What the mask learns itself starts at the bias and stays until the rates are charged (train.py).
            count, bias = self.findings if c.mask_per_finding else 1, nn.initializers.constant(c.mask_bias)
            layers += [Affine(count, nn.initializers.zeros, bias, name="mask")]
        layers = [layer(features.shape[-1]) for layer in layers]
        mu, log_sigma, *own = affine_maps(features, layers)
        log_sigma = jnp.clip(log_sigma, -8.0, 2.0)  # exp(2 log_sigma) stays finite
        return mu, log_sigma, own[0] if own else None, layers[0]

    def mask_logits(self, own: jax.Array, evidence: jax.Array) -> jax.Array:
        """What the mask learns itself plus a fixed share of what the classifier knows, not yet bounded.

        own [B, h, w, M], evidence [B, h, w, K] -> [B, h, w, M], M = K or 1, where the largest evidence counts.
        """
        known = evidence if self.config.mask_per_finding else evidence.max(axis=-1, keepdims=True)
        return own + self.config.mask_evidence * known

    def mask_cells(self, logits: jax.Array, key: jax.Array | None) -> jax.Array:
        """Samples of the mask, with key [B], or its value in evaluation, without: [B, h, w, M] -> [B, S, M, N]."""
        c = self.config
        if key is None:
            return masks.cells_last(masks.mean_mask(logits, c.sampler))[:, None]

        def draw(key, logits):  # of one image: [M, N] -> [S, M, N]
            # Stacked, not broadcast: XLA:CPU reduces a broadcast's gradient several times as slowly.
            return masks.sample_mask(key, jnp.stack([logits] * c.mask_samples), c.sampler, c.temperature)

        return jax.vmap(draw)(key, masks.cells_last(logits))
