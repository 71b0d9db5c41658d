"""What attribution methods ask of a trained model."""

from dataclasses import dataclass

import flax.linen as nn
import jax


@dataclass(frozen=True)
class Readout:
    """A model of infomask_jax.model in evaluation mode, asked for one finding."""

    model: nn.Module
    variables: dict  # what its `apply` takes
    finding: int  # index, may be traced

    def encode(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 1] -> features [B, h, w, D]; with `two_views` the mean over the image and its half turn."""
        return self.model.apply(self.variables, images, train=False)[1]["features"]

    def classify(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features [B, h, w, D] -> logit [B] and evidence of each cell [B, h, w]."""
        logits, out = self.model.apply(self.variables, None, train=False, features=features)
        return logits[:, self.finding], out["evidence"][..., self.finding]

    def logit(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 1] -> logit [B]."""
        return self.model.apply(self.variables, images, train=False)[0][:, self.finding]
