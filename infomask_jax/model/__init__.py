"""InfoMask and its rivals: `logits, out = build(config, findings).apply(variables, images, train=False)`."""

import flax.linen as nn

from infomask_jax.config import ModelConfig
from infomask_jax.model import densenet, efficientnet, resnet
from infomask_jax.model.backbone import Backbone
from infomask_jax.model.encoder import Encoder
from infomask_jax.model.infomask import InfoMask
from infomask_jax.model.plain import Unmasked


def build(config: ModelConfig, findings: int, encoder: nn.Module | None = None) -> nn.Module:
    """The model of a config; `encoder`: see InfoMask, by default that of the config."""
    return (InfoMask if config.kind == "infomask" else Unmasked)(config, findings, encoder or build_encoder(config))


def build_encoder(c: ModelConfig) -> nn.Module:
    """A module of images [B, H, W, 1] -> features [B, H / stride, W / stride, D], with an attribute `stride`."""
    if c.encoder == "small":
        return Encoder(c.width, c.stride, c.dtype)
    depth = 32 if c.top_down else c.stride
    parts = stages(c.encoder, depth, bool(c.init), c.dtype)
    return Backbone(parts, c.stride, c.top_down, c.remat)


def stages(name: str, output_stride: int, pretrained: bool, dtype: str = "float32") -> tuple[nn.Module, ...]:
    """The five stages of an encoder, dilated beyond `output_stride`."""
    options = {"output_stride": output_stride, "pretrained": pretrained, "dtype": dtype}
    if name == "efficientnet_lite0":
        return tuple(efficientnet.Stage(index, **options) for index in range(5))
    if name == "densenet121":
        return tuple(densenet.Stage(index, **options) for index in range(5))
    return tuple(resnet.Stage(name, index, **options) for index in range(5))
