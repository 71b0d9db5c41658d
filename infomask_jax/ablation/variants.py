"""The named variants of a config, and the choice among them."""

import contextlib
import dataclasses
import difflib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infomask_jax.config import Config, ModelConfig, leaves
from infomask_jax.explain import METHODS
from infomask_jax.presets import CAM, ONE_VIEW, PAPER, PLAIN, changed

LINEAR = {"model.evidence_bound": 0.0}
FIXED = ("data_dir", "workdir", "dataset", "seed", "folds", "fold", "baseline", "machine")  # of all runs of a table
SHARED = {"no_shifts": "default", "cam_no_shifts": "cam"}  # the same networks, asked in another way
SCRATCH = {"model.init": "", "model.frozen_stages": 0, "train.encoder_rate": 1.0, "train.head_first": 0.0}
ATTENTION = {"model.sampler": "sigmoid", "model.teach_through_mask": True, "loss.beta_z": 0.0, "loss.beta_m": 0.0}


@dataclass(frozen=True)
class Variant:
    """A small change of the base config."""

    name: str
    group: str
    changes: dict[str, Any]  # {"model.sampler": value}: the fields that differ from the base
    run: str = ""  # whose run it asks; "": its own
    method: str = ""  # attribution method that explains that run; "": the model's own maps
    skip: str = ""  # why there is no such run
    twin: str = ""  # the variant that has the same settings, if that is why


def variants(base: Config, findings: int) -> list[Variant]:
    """Every variant of a base config for data with that many findings, `default` first. Some only say why not.

    `terms` keep the recipe's two views, so that they lack the term alone. `rivals` have one view, as published, and
    otherwise ours, unless they name their own; `cam_no_shifts` has the map of one pass, as published. Betas are not
    adapted to a finer or coarser grid, over whose cells the rates are summed.
    """
    base = dataclasses.replace(base, baseline=False)
    model, loss, size = base.model, base.loss, base.data.image_size
    strides, factors = _choices("stride"), (0.0625, 0.25, 4.0, 16.0)
    at = strides.index(model.stride)
    near = [*strides[max(at - 1, 0) : at], *strides[at + 1 : at + 2]]
    groups = {
        "default": {"default": {}},
        "terms": {
            "no_bottleneck": PLAIN,
            "no_mask": {"model.kind": "vib"},
            "no_kl_z": {"loss.beta_z": 0.0},
            "no_kl_m": {"loss.beta_m": 0.0},
            "no_auxiliary": {"loss.auxiliary": 0.0, "model.teach_through_mask": True},
        },
        "rivals": {
            "plain": PLAIN | ONE_VIEW,
            "vib": {"model.kind": "vib"} | ONE_VIEW,
            "attention": ATTENTION | ONE_VIEW,
            "attention_mil": PLAIN | LINEAR | ONE_VIEW | {"model.kind": "attention_mil"},
            "lse_mil": PLAIN | LINEAR | ONE_VIEW | {"model.pooling": "lse"},
            "noisy_or_mil": PLAIN | LINEAR | ONE_VIEW | {"model.pooling": "noisy_or"},
            "cam": CAM,
            "paper": PAPER,
        },
        "recipe": {
            "no_consistency": {"loss.consistency": 0.0},
            "one_view": ONE_VIEW,
            "cam_of_recipe": PLAIN | LINEAR | {"model.pooling": "mean"},
            "empty_cells": {"model.close_empty": False},
            "no_coupling": {"model.mask_coupling": 0.0},
            "no_mask_evidence": {"model.mask_evidence": 0.0},
            "teach_through_mask": {"model.teach_through_mask": True},
            "no_shifts": {"map_shifts": 1},
            "cam_no_shifts": CAM | {"map_shifts": 1},
        },
        "samplers": {f"sampler_{v}": {"model.sampler": v} for v in _choices("sampler") if v != model.sampler},
        "poolings": {f"pooling_{v}": {"model.pooling": v} for v in _choices("pooling") if v != model.pooling},
        "prior": {f"mask_prior_{v:g}": {"model.mask_coupling": 0.0, "model.mask_prior": v} for v in (0.01, 0.2)},
        "beta": {f"beta_x{x:g}": {"loss.beta_z": x * loss.beta_z, "loss.beta_m": x * loss.beta_m} for x in factors},
        "delay": {f"delay_{v:g}": {"loss.delay": v} for v in (0.0, 0.5)},
        "grid": {f"stride_{v}": {"model.stride": v, "map_shifts": min(base.map_shifts, v)} for v in near},
        "encoder": {"from_scratch": SCRATCH} if model.init else {},
        "masks": {
            "mask_per_finding": {"model.mask_per_finding": True},
            **{f"mask_samples_{v}": {"model.mask_samples": v} for v in (1, 16)},
        },
    }
    before, found, known = {name: value for name, _, value in leaves(base)}, [], {}
    for group, members in groups.items():
        for name, changes in members.items():
            changes = {k: v for k, v in changes.items() if before[k] != v}
            skip = twin = ""
            if name == "mask_per_finding" and findings == 1:
                skip = "the data has one finding, so one mask is all there is"
            elif size % changes.get("model.stride", model.stride):
                skip = f"images of {size} px do not divide into such cells"
            else:
                try:
                    if (first := known.setdefault(changed(base, changes), name)) != name:
                        skip, twin = f"the settings of {first}", first
                except ValueError as error:
                    skip = " ".join(str(error).split())
            found.append(Variant(name, group, changes, SHARED.get(name, ""), skip=skip, twin=twin))
    cam = next(v for v in found if v.name == "cam")
    return found + [Variant(f"cam/{m}", "attributions", cam.changes, "cam", m, cam.skip) for m in METHODS if m != "cam"]


def varied(base: Config, asked: tuple[tuple[str, ...], ...]) -> list[Variant]:
    """A variant for each value of each setting: ("loss.beta_m", "0", "1e-2") -> loss.beta_m=0, loss.beta_m=0.01. The
    base's own value is `default`. ValueError naming the setting that there is not, or that cannot be varied so."""
    found, known = [], {name: value for name, _, value in leaves(base) if name.split(".")[0] not in FIXED}
    for given, *values in asked:
        name = given.replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {close[0]}?)" if close else f": one of {', '.join(known)}"
            raise ValueError(f"--vary: expected a setting{hint}, found {given}")
        if not values:
            raise ValueError(f"--vary {given}: expected values after it, found none")
        for text in values:
            value = _value(text, known[name])
            try:
                values_of, own = base.to_dict(), name.split(".")
                (values_of if len(own) == 1 else values_of[own[0]])[own[-1]] = value
                Config.of(values_of)
            except (TypeError, ValueError) as error:
                raise ValueError(f"--vary {given}: {' '.join(str(error).split())}") from error
            if value != known[name] and f"{name}={value}" not in {v.name for v in found}:
                found.append(Variant(f"{name}={value}", "varied", {name: value}))
    return found


def _value(text: str, before: Any) -> Any:
    """A value as a setting of the type of `before` has it."""
    if isinstance(before, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            value = kind(text)
            return float(value) if isinstance(before, float) else value
    return text


def select(every: list[Variant], only: tuple[str, ...]) -> list[Variant]:
    """Those named, by their own names or their groups' (all if none is), with their twins and what they are compared
    with: `default`, and `cam` for attributions. ValueError that lists the names."""
    groups = {}
    for v in every:
        groups.setdefault(v.group, []).append(v.name)
    if unknown := [name for name in only if name not in groups and name not in {v.name for v in every}]:
        lines = "\n".join(f"  {group}: {', '.join(names)}" for group, names in groups.items())
        raise ValueError(f"no variant or group {', '.join(unknown)}; there are, by group:\n{lines}")
    chosen = [v for v in every if not only or v.name in only or v.group in only]
    needed = {"default", *(v.twin for v in chosen), *(["cam"] if any(v.method for v in chosen) else [])}
    return [v for v in every if v in chosen or v.name in needed]


def config_of(base: Config, variant: Variant, seed: int) -> Config:
    """The config of the run that a variant asks; base.workdir is the folder of all."""
    workdir = Path(base.workdir) / (variant.run or variant.name) / f"seed{seed}"
    changes = variant.changes | {"baseline": False, "seed": seed, "workdir": workdir}
    if variant.run:  # its maps alone are made in another way
        changes.pop("map_shifts", None)
    return changed(base, changes)


def _choices(field: str) -> tuple:
    return typing.get_args(typing.get_type_hints(ModelConfig)[field])
