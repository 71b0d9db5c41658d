"""Named changes of a config, by dotted names of its fields."""

import dataclasses
from typing import Any

from infomask_jax.config import Config, LossConfig

ONE_VIEW = {"model.two_views": False, "loss.hidden": 0.0, "loss.consistency": 0.0}
TWO_VIEWS = {"model.two_views": True, "loss.hidden": LossConfig.hidden, "loss.consistency": LossConfig.consistency}
PLAIN = {"model.kind": "plain", "loss.beta_z": 0.0, "loss.beta_m": 0.0, "loss.auxiliary": 0.0}
# CAM's home (Zhou et al. 2016): linear, mean-pooled, all cells, the image as it is.
CAM = PLAIN | ONE_VIEW | {"model.pooling": "mean", "model.evidence_bound": 0.0, "model.close_empty": False}
# NLL + beta_z KL_z + beta_m KL_m teach everything; of our recipe only the delay of the KLs is left.
PAPER = ONE_VIEW | {
    "loss.auxiliary": 0.0,
    "model.teach_through_mask": True,
    "model.close_empty": False,
    "model.mask_samples": 1,
    "model.evidence_bound": 0.0,
    "model.mask_coupling": 0.0,
    "model.mask_evidence": 0.0,
    "map_shifts": 1,
}

# Encoders with trained weights. Features of stride 8 and less stay as ImageNet made them: on a CPU that halves a step,
# and was no worse (experiments/NOTEBOOK.md).
CPU = TWO_VIEWS | {
    "model.encoder": "efficientnet_lite0",
    "model.init": "imagenet",
    "model.frozen_stages": 3,
    "model.stride": 8,
    "model.top_down": True,
    "model.evidence_bound": 7.0,
    "train.learning_rate": 5e-3,
    "train.encoder_rate": 0.2,
    "data.image_size": 224,
    "data.batch_size": 32,
    "map_shifts": 2,
}
# Torchvision's weights, under the name of its own file; never run (docs/running.md).
GPU = CPU | {
    "model.encoder": "resnet50",
    "model.init": "resnet50-11ad3fa6.pth",
    "model.frozen_stages": 1,
    "model.stride": 16,
    "model.dtype": "bfloat16",
    "train.learning_rate": 1e-3,
    "data.image_size": 512,
    "data.batch_size": 64,
    "machine.workers": 8,
}
TPU = GPU | {"data.batch_size": 256, "machine.workers": 16}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """The config with fields replaced by their dotted names. ValueError for values that it does not allow."""
    parts = {}
    for name, value in changes.items():
        *group, field = name.split(".")
        parts.setdefault(group[0] if group else "", {})[field] = value
    top = parts.pop("", {})
    nested = {group: dataclasses.replace(getattr(config, group), **own) for group, own in parts.items()}
    return dataclasses.replace(config, **top, **nested)
