"""What attribution methods ask of a model in evaluation mode: features, and the logit and evidence of one finding.

`model` is a module of infomask_jax.model, `variables` what its `apply` takes, `finding` an index (may be traced).
"""

import flax.linen as nn
import jax


def encode(model: nn.Module, variables: dict, images: jax.Array) -> jax.Array:
    """[B, H, W, 1] -> features [B, h, w, D]; with `two_views` the mean over the image and its half turn."""
    return model.apply(variables, images, train=False)[1]["features"]


def classify(model: nn.Module, variables: dict, features: jax.Array, finding: int) -> tuple[jax.Array, jax.Array]:
    """Features [B, h, w, D] -> logit [B] and evidence of each cell [B, h, w]."""
    logits, out = model.apply(variables, None, train=False, features=features)
    return logits[:, finding], out["evidence"][..., finding]


def image_logit(model: nn.Module, variables: dict, images: jax.Array, finding: int) -> jax.Array:
    """[B, H, W, 1] -> logit [B]."""
    return model.apply(variables, images, train=False)[0][:, finding]
