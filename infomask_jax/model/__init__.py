"""InfoMask and its rivals: `logits, out = build(config, findings).apply(variables, images, train=False)`."""

import flax.linen as nn

from infomask_jax.config import ModelConfig
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.infomask import InfoMask
from infomask_jax.model.plain import Unmasked


def build(config: ModelConfig, findings: int, encoder: nn.Module | None = None) -> nn.Module:
    """The model of a config; `encoder`: see InfoMask, by default our own."""
    encoder = encoder or Encoder(config.width, config.stride, config.dtype)
    return (InfoMask if config.kind == "infomask" else Unmasked)(config, findings, encoder)
