"""Named changes of a config, by dotted names of its fields."""

import dataclasses
from typing import Any

from infomask_jax.config import Config

ONE_VIEW = {"model.two_views": False, "loss.hidden": 0.0, "loss.consistency": 0.0}
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
PRESETS = {"paper": PAPER}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """The config with fields replaced by their dotted names. ValueError for values that it does not allow."""
    parts = {}
    for name, value in changes.items():
        *group, field = name.split(".")
        parts.setdefault(group[0] if group else "", {})[field] = value
    top = parts.pop("", {})
    nested = {group: dataclasses.replace(getattr(config, group), **own) for group, own in parts.items()}
    return dataclasses.replace(config, **top, **nested)
