"""Every setting of a run. docs/method.md has the reasons."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

# What may be another when a run is gone on with: where things are, how maps are made afterwards, where it runs.
FREE = ("data_dir", "workdir", "baseline", "map_shifts", "machine")


def setting(default: Any, lowest: float | None = None, highest: float | None = None, before: Any = None) -> Any:
    """A field with its range, both ends allowed, and its value in runs older than it, by default the default."""
    before = default if before is None else before
    return field(default=default, metadata={"range": (lowest, highest), "before": before})


@dataclass(frozen=True)
class DataConfig:
    """What the pipeline reads."""

    image_size: int = setting(64, 8, 4096)  # Side of the square model input, pixels.
    batch_size: int = setting(32, 1, 2**20)  # Images in one step, over all devices.


@dataclass(frozen=True)
class ModelConfig:
    """z ~ q(z|x), m ~ q(m|x), logits = pool(evidence(m z))."""

    # The method, a bottleneck without mask, or a rival without bottleneck.
    kind: Literal["infomask", "vib", "plain", "attention_mil"] = setting("infomask")
    # The network that sees the film; small: ours, from scratch.
    encoder: Literal["small", "efficientnet_lite0", "resnet18", "resnet34", "resnet50", "densenet121"] = setting(
        "small"
    )
    init: str = setting("")  # Trained weights of the encoder: imagenet, or a file.
    frozen_stages: int = setting(0, 0, 5)  # Encoder stages, from the image on, that stay as they are.
    width: int = setting(16, 2, 4096)  # Channels of the small encoder's first stage; doubles at each.
    stride: Literal[2, 4, 8, 16, 32] = setting(4)  # Image pixels per side of one cell.
    top_down: bool = setting(False)  # Reach the stride by a top-down path, not by dilation.
    remat: bool = setting(False)  # Compute stages anew for the gradient, to save memory.
    two_views: bool = setting(True)  # Features are means over the image and its half turn.
    close_empty: bool = setting(True)  # Cells whose pixels are all alike give no evidence.
    latent_channels: int = setting(16, 1, 65536)  # Channels of the representation z.
    # How the mask is sampled in training; sigmoid: not at all.
    sampler: Literal["concrete", "hard_concrete", "straight_through", "gaussian_gate", "sigmoid"] = setting("concrete")
    mask_samples: int = setting(4, 1, 1024)  # Masks drawn per image and step.
    mask_per_finding: bool = setting(False)  # One mask for each finding instead of one for all.
    # How the cells' evidence becomes one logit per finding.
    pooling: Literal["lse", "max", "topk", "mean", "noisy_or"] = setting("lse")
    evidence_bound: float = setting(12.0, 0, 1e6)  # Largest evidence of a cell above a closed one; 0: unbounded.
    mask_prior: float = setting(0.05, 1e-6, 1 - 1e-6)  # Prior probability that a cell among closed ones is open.
    mask_coupling: float = setting(4.0, 0, 100)  # Prior's coupling to cells around; 0: independent, prior not learned.
    mask_evidence: float = setting(0.5, 0, 100)  # What a cell's evidence adds to its mask logit.
    teach_through_mask: bool = setting(False)  # The masked likelihood teaches all; False: the mask alone.
    dtype: Literal["float32", "bfloat16"] = setting("float32")  # Compute type of the encoder; all else is float32.


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of the objective, see losses.py."""

    beta_z: float = setting(3e-5, 0, 1e6)  # Weight of the representation's KL, per nat.
    beta_m: float = setting(1e-3, 0, 1e6)  # Weight of the mask's KL, per nat.
    delay: float = setting(0.25, 0, 1)  # Share of the steps before the KLs are charged.
    auxiliary: float = setting(1.0, 0, 1e6)  # Weight of the likelihood without mask.
    hidden: float = setting(0.5, 0, 1e6)  # Weight of the second view's likelihood, with parts hidden.
    consistency: float = setting(0.03, 0, 1e6)  # Weight of the squared difference of the views' evidence.
    # Weight of positive labels; auto: negatives by positives of each finding.
    positive_weight: float | Literal["auto"] = setting(1.0, 1e-6, 1e6)
    target_nll: float = setting(0.0, 0, 1e6)  # Nats per image to pay by adapting both betas; 0: off.


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    steps: int = setting(2700, 2, 10**9)  # Optimizer steps.
    learning_rate: float = setting(2e-3, 0, 1e38)  # Its peak.
    encoder_rate: float = setting(1.0, 0, 1e6)  # Times the learning rate, for the encoder's trained weights.
    head_first: float = setting(0.0, 0, 1)  # Share of the steps before the trained weights move.


@dataclass(frozen=True)
class MachineConfig:
    """Where and how a run runs: may change between stop and resume."""

    workers: int = setting(0, 0, 1024)  # Loader processes; 0: threads of this one.
    cache_gib: float = setting(1.0, 0, 2**20)  # Memory for decoded training images, GiB.
    log_every: int = setting(20, 1, 10**9)  # Steps between two lines of metrics.jsonl.
    validations: int = setting(10, 0, 10**6)  # Times in a run that val is scored; 0: never.
    checkpoint_every: int = setting(500, 1, 10**9)  # Steps between two checkpoints.
    accumulate: int = setting(1, 1, 2**20)  # Parts of a batch, one after the other, to save memory.
    parallel: Literal["jit", "pmap"] = setting("jit")  # How a step runs on several devices.
    profile: bool = setting(False)  # Write a trace of ten steps to workdir/profile.
    hosts: str = setting("")  # HOST:PORT,PROCESSES,THIS of processes started by hand; auto: the scheduler's.


@dataclass(frozen=True)
class Config:
    """One run: where the data is, where the results go, and every choice in between."""

    data_dir: Path  # Folder given to `prepare`.
    workdir: Path  # Folder of this run; the same command again resumes it.
    dataset: str = setting("synthetic")  # Prepared dataset: synthetic, implanted, rsna, nih or folder.
    seed: int = setting(0, 0, 2**32 - 1)  # Seed of initialisation, sampling, data order and augmentation.
    folds: int = setting(1, 1, 1000)  # Folds by patient over all splits; 1: the splits as they are.
    fold: int = setting(-1, -1, 999)  # The one that is scored, by what the others taught; -1: all.
    baseline: bool = setting(True)  # Also train the plain classifier that CAM explains.
    map_shifts: Literal[1, 2, 4] = setting(4)  # Heat maps are means over this many shifts, squared.
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: OptimizerConfig = field(default_factory=OptimizerConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    def __post_init__(self):
        wrong, values = [], {name: value for name, _, value in leaves(self)}

        def require(holds: bool, name: str, expected: str) -> None:
            if not holds:
                wrong.append(f"{name}: expected {expected}, found {values[name]}")

        for name, leaf, value in leaves(self):
            lowest, highest = leaf.metadata.get("range", (None, None))
            if lowest is not None and value != "auto":  # NaN fails too
                require(lowest <= value <= highest, name, f"{lowest:g} to {highest:.10g}")
        model, loss, stride = self.model, self.loss, self.model.stride
        require(model.two_views or not loss.hidden, "loss.hidden", "0 without model.two_views")
        require(model.two_views or not loss.consistency, "loss.consistency", "0 without model.two_views")
        require(not model.two_views or model.kind != "attention_mil", "model.two_views", "False for attention_mil")
        taught = model.kind != "infomask" or model.teach_through_mask or loss.auxiliary
        require(taught, "loss.auxiliary", "above 0 without model.teach_through_mask (nothing teaches)")
        require(self.map_shifts <= stride, "map_shifts", f"at most model.stride, {stride}")
        small = model.encoder == "small"
        require(not small or stride < 32, "model.stride", "2 to 16 for the small encoder")
        require(small or stride > 4, "model.stride", f"8, 16 or 32 for {model.encoder}")
        require(not small or not model.init, "model.init", "nothing for the small encoder")
        fits = not small and stride in (8, 16)
        require(fits or not model.top_down, "model.top_down", "False but for stride 8 or 16 of a large encoder")
        require(not small or not model.remat, "model.remat", "False for the small encoder")
        trained = model.init and not small
        require(trained or not model.frozen_stages, "model.frozen_stages", "0 without model.init")
        require(trained or self.train.encoder_rate == 1, "train.encoder_rate", "1 without model.init")
        require(trained or not self.train.head_first, "train.head_first", "0 without model.init")
        cell, side = stride * (2 if fits and model.top_down else 1), self.data.image_size
        multiple = f"a multiple of {cell}, as {side // cell * cell or cell}"
        require(side < 8 or not side % cell, "data.image_size", multiple)
        require(self.folds > 1 or self.fold < 0, "fold", "--folds as well")
        require(self.folds == 1 or self.fold < self.folds, "fold", f"below folds, {self.folds}")
        size, parts = self.data.batch_size, self.machine.accumulate
        require(not parts or not size % parts, "machine.accumulate", f"a divisor of data.batch_size, {size}")
        if wrong:
            raise ValueError("settings out of range:\n  " + "\n  ".join(wrong))

    def to_dict(self) -> dict[str, Any]:
        """JSON types; paths absolute, so that the run can be read from any folder."""
        found = {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}
        if self.model.init not in ("", "imagenet"):
            found["model"]["init"] = os.path.abspath(os.path.expanduser(self.model.init))
        return found

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Config":
        """The config that `to_dict` has told of. TypeError or ValueError for what no config has."""
        return _read(cls, values, "", [])

    @classmethod
    def load(cls, workdir: Path) -> "Config":
        """The config of a run. FileNotFoundError where there is none; ValueError for fields that are unknown or of
        another type. Fields that the run is older than take their value of `before`; a line on stderr tells of it."""
        path = Path(workdir) / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{workdir} is not a run, it has no {path.name}: give the --workdir of a training")
        try:
            config = _read(cls, json.loads(path.read_text()), "", younger := [])
        except (TypeError, ValueError, RecursionError) as error:
            hint = "Use the revision that its manifest.json names, or train again."
            raise ValueError(f"{path} is not a config of this version: {error}. {hint}") from error
        younger = [name for name in younger if not name.startswith("machine.")]  # which say nothing of the run
        if younger:
            _tell_once(f"{path} is older than {', '.join(younger)}")
        return config


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, field, value) of every setting."""
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{part.name}.")
        else:
            yield prefix + part.name, part, value


def _read(kind: type, values: Any, prefix: str, younger: list[str]) -> Any:
    """A dataclass from what JSON has for it. The fields that it lacks are added to `younger`."""
    types = get_type_hints(kind)
    if not isinstance(values, dict):
        raise TypeError(f"{prefix[:-1] or 'all of it'}: expected an object, found {values!r}")
    if unknown := sorted(values.keys() - types.keys()):
        raise ValueError(f"unknown {', '.join(prefix + name for name in unknown)}")
    found = {}
    for part in dataclasses.fields(kind):
        name, wanted, value = prefix + part.name, types[part.name], values.get(part.name)
        if dataclasses.is_dataclass(wanted):
            value = _read(wanted, values.get(part.name, {}), f"{name}.", younger)
        elif part.name not in values and "before" in part.metadata:
            value = part.metadata["before"]
            younger.append(f"{name} (so {value!r})")
        elif not _is_of(value, wanted):
            expected = " or ".join(map(str, get_args(wanted))) or wanted.__name__
            raise TypeError(f"{name}: expected {expected}, found {value!r}")
        found[part.name] = Path(value) if wanted is Path else value
    return kind(**found)


def _is_of(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(wanted))
    if get_origin(wanted) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(wanted))
    return type(value) in {float: (int, float), Path: (str,)}.get(wanted, (wanted,))


@functools.cache
def _tell_once(line: str) -> None:
    print(line, file=sys.stderr)
