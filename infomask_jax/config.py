"""Every setting of a run, as frozen dataclasses. "paper" marks what InfoMask's paper fixes, "ours" what we chose."""

import dataclasses
import json
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class DataConfig:
    """What the pipeline reads and how it augments (train split only)."""

    image_size: int = 64
    """Side of the square model input, pixels: stored images (prepare --size) are shrunk or enlarged to it. Ours."""
    batch_size: int = 32
    """Images in one optimizer step, over all devices. Ours."""
    shift: float = 0.05
    """Largest random translation, as a share of the side. Ours."""
    scale: float = 0.1
    """Largest random zoom: factors in 1 - scale .. 1 + scale. Ours."""
    contrast: float = 0.2
    """Largest random gain: factors in 1 - contrast .. 1 + contrast, about the image mean. Ours."""
    flip: bool = False
    """Random left-right flips. Off: the heart has a side. Ours."""
    workers: int = 0
    """Loader processes; 0 reads in threads of this process. Does not change the batches."""
    cache_gib: float = 1.0
    """Memory for decoded training images, of all loader processes, GiB. Later epochs find them there; same batches."""


@dataclass(frozen=True)
class ModelConfig:
    """Encoder, posteriors, mask and classifier (z ~ q(z|x), m ~ q(m|x), logits = pool(head(m * z)))."""

    bottleneck: Literal["infomask", "vib", "none"] = "infomask"
    """infomask: masked variational representation (paper); vib: no mask (Alemi et al. 2017); none: plain classifier."""
    width: int = 16
    """Channels of the first encoder stage; doubles at every further stage. Ours."""
    depth: int = 2
    """Residual blocks in each stage. Ours."""
    stride: Literal[2, 4, 8, 16] = 4
    """Image pixels per side of one latent cell. Ours."""
    norm: Literal["group", "weight"] = "weight"
    """group: GroupNorm (statistics global in space); weight: scaled weight standardisation (local). Ours."""
    second_kernel: Literal[1, 3] = 1
    """Side of the second kernel of a block after the first stage, cells. With 1 a cell sees less beyond its own patch,
    so evidence stays where its cause is; 3: the usual residual block. Ours."""
    half_turn: bool = True
    """Two views: features are the mean of those of the image and of its half turn, turned back. An encoder that sees
    beyond a cell may put the evidence for a finding to one side of it, a side that changes with the seed; on the mean
    it counts in full only where it is. Ours."""
    hide: float = 1.0
    """Largest share of the second view that is hidden in training, in blocks of 2 x 2 cells (as in Hide-and-Seek, Singh
    & Lee 2017): an image's share is uniform in 0 .. hide. Hidden cells give no features. Ours."""
    close_empty: bool = True
    """Cells whose pixels are all alike (black borders, collimation) give no evidence and carry no rate; a mask is
    closed there. An encoder that sees beyond a cell may else put the evidence for a finding where nothing is. Ours."""
    latent_channels: int = 16
    """Channels C of the representation z. Ours."""
    sampler: Literal["concrete", "hard_concrete", "straight_through", "gaussian_gate", "sigmoid"] = "concrete"
    """How the mask is sampled in training; sigmoid is the deterministic attention baseline. Ours."""
    temperature: float = 0.5
    """Temperature of the relaxed samplers; standard deviation of the Gaussian gate's noise. Ours."""
    mask_samples: int = 4
    """Masks drawn per image and step, in antithetic pairs; their losses are averaged: a calmer gradient at the head's
    cost. Ours."""
    mask_per_finding: bool = False
    """One mask for each finding instead of one for all. Ours."""
    fill: Literal["zero", "noise"] = "zero"
    """What a closed cell holds: zeros, or a draw from the prior N(0, I) (its mean, zero, in evaluation). Ours."""
    pooling: Literal["lse", "max", "topk", "mean", "noisy_or", "attention"] = "lse"
    """How per-cell evidence becomes one logit per finding. Ours; noisy_or: Li et al. 2018, and every cell adds to the
    probability: start from a `closed_evidence` of about -3 - log(cells); attention: Ilse et al. 2018, gated weights."""
    sharpness: float = 1.0
    """r of log-sum-exp pooling (1/r) log mean exp(r e): towards 0 the mean, towards infinity the maximum. Ours."""
    topk: float = 0.0625
    """Share of cells averaged by topk pooling. Ours."""
    mask_prior: float = 0.05
    """rho: prior probability of an open cell among closed ones; where it is learned, its first value. Ours."""
    mask_coupling: float = 4.0
    """What the cells around add to the logit of that prior when all are open: findings are connected, lone cells cost
    more. Where it is learned, its first value. Ours; 0, not learned: cells are independent."""
    learn_prior: bool = True
    """Learn rho and the coupling of each mask: no one need know how much of a film a finding covers. Ours."""
    mask_evidence: float = 0.5
    """What one unit of a cell's evidence for the finding (the largest, where findings share a mask) adds to its mask
    logit, beside what the mask learns itself: a mask that has to find again what the classifier knows loses some of it.
    No gradient goes back through it. Ours; 0: the mask sees the features alone."""
    teach_through_mask: bool = False
    """Let the NLL of the masked representation teach the classifier too, not the mask alone (and the encoder, as far as
    the mask reads it). Off: the classifier learns from the unmasked NLL, `loss.auxiliary`, and the mask what of its
    evidence is needed. Ours; attention, as published, has it on."""
    mask_bias: float = 2.0
    """What the mask has learned itself at first, until the rates are charged: positive starts open. Ours."""
    closed_evidence: float = -3.0
    """Initial evidence of a closed cell, hence logit of an image whose mask is closed: absent unless shown. Ours."""
    evidence_bound: float = 12.0
    """Largest evidence of one cell above or below a closed one (tanh), so that one cell alone cannot carry the label
    and the mask has to cover the finding; 0: unbounded. Ours."""
    log_sigma_bias: float = -3.0
    """Initial log standard deviation of the posterior: negative starts nearly noise-free. Ours."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the encoder; parameters, posteriors, KL terms, logits and losses stay float32."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of NLL + beta_z sum_ij pi KL_z + beta_m sum_ij KL_m: sums over cells and channels, mean over images."""

    beta_z: float = 3e-5
    """Weight of the representation's rate, per nat. Ours; beta_z = beta_m without coupling is exactly the bound."""
    beta_m: float = 1e-3
    """Weight of the mask's rate, per nat. Ours."""
    delay: float = 0.25
    """Share of the steps before the rates are charged: full weight from step 0 collapses. Ours."""
    ramp: float = 0.4
    """Share of the steps over which the weights then rise linearly, as far as there are steps left. Ours."""
    auxiliary: float = 1.0
    """Weight of the NLL through the unmasked representation with the same head, which teaches the classifier. Ours."""
    hidden: float = 0.5
    """Weight of the NLL of the second view alone, with what it hides: unmasked, same head. Ours."""
    consistency: float = 0.03
    """Weight of the squared difference of evidence between the two views, mean over the cells that both show: evidence
    for what is hidden from one view may not stand elsewhere. Ours."""
    positive_weight: float = 1.0
    """Weight of positive labels in the NLL, for rare findings. Ours."""
    target_nll: float = 0.0
    """NLL to pay, nats per image as the metric `nll`: both betas are multiplied by a factor that rises while the NLL
    is under it and falls while it is above, so that the rate is the least for that NLL (after GECO, Rezende & Viola
    2018). It counts weighed positives; 0: off, the betas stay as they are. Ours."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer and loop."""

    steps: int = 2700
    """Optimizer steps. Ours."""
    learning_rate: float = 2e-3
    """Peak rate of AdamW: linear warm-up, then cosine to zero. Ours."""
    warmup: float = 0.05
    """Share of the steps spent warming up. Ours."""
    weight_decay: float = 1e-4
    """AdamW's decoupled decay, on kernels only. Ours."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global norm. Ours."""
    log_every: int = 20
    """Steps between two lines of metrics.jsonl, means over the steps since the last; a checkpoint adds one."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    accumulate: int = 1
    """Parts into which a batch is cut, one after the other on the devices: less memory, the same batch and the same
    random draws."""
    shard_optimizer: bool = False
    """Split the optimizer's state over the devices (ZeRO stage 1): less memory on each. Not with --parallel pmap."""


@dataclass(frozen=True)
class HostsConfig:
    """Processes that train together, where they do not find each other by themselves as on a TPU pod."""

    coordinator: str = ""
    """HOST:PORT of process 0; auto: ask the cluster's scheduler (SLURM, Open MPI, Kubernetes); empty: one process, or
    all hosts of a TPU pod."""
    processes: int = 0
    """How many there are; 0: not given."""
    process: int = -1
    """Which one this is, 0 to processes - 1; -1: not given."""


@dataclass(frozen=True)
class Config:
    """One run: where the data is, where the results go, and every choice in between."""

    data_dir: Path
    """Folder given to `prepare`."""
    workdir: Path
    """Folder of this run; the same command again resumes it."""
    dataset: str = "synthetic"
    """Name of the prepared dataset: synthetic, implanted, rsna, nih or folder."""
    seed: int = 0
    """Seed of initialisation, sampling, data order and augmentation, 0 to 2^32 - 1."""
    map_shifts: Literal[1, 2, 4] = 4
    """Heat maps, of the plain classifier too, are means over map_shifts x map_shifts shifts of the image by fractions
    of a cell, on a grid that many times as fine, at the cost of as many forward passes; 1: the image as it is. Logits
    are of the image as it is. Ours."""
    baseline: bool = True
    """Also train the plain mean-pooled classifier, CAM's home: same encoder (without half_turn), data and steps."""
    parallel: Literal["jit", "pmap"] = "jit"
    """How a step runs on several devices: jit over a mesh, or the same step through pmap."""
    profile: bool = False
    """Write a trace of ten steps to workdir/profile, for TensorBoard or Perfetto."""
    hosts: HostsConfig = field(default_factory=HostsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self):
        bounds = {  # field: (lowest, highest), both allowed
            "seed": (0, 2**32 - 1),
            "data.image_size": (8, 4096),
            "data.batch_size": (1, 2**20),
            "data.workers": (0, 1024),
            "data.cache_gib": (0, 2**20),
            "data.shift": (0, 0.5),
            "data.scale": (0, 0.9),
            "data.contrast": (0, 0.99),
            "model.width": (2, 4096),
            "model.depth": (1, 64),
            "model.latent_channels": (1, 65536),
            "model.temperature": (1e-3, 100),
            "model.mask_samples": (1, 1024),
            "model.sharpness": (1e-3, 1e3),
            "model.topk": (1e-6, 1),
            "model.mask_prior": (1e-6, 1 - 1e-6),
            "model.mask_coupling": (0, 100),
            "model.mask_evidence": (0, 100),
            "model.evidence_bound": (0, 1e6),
            "model.hide": (0, 1),
            "model.mask_bias": (-100, 100),
            "model.closed_evidence": (-1e6, 1e6),
            "model.log_sigma_bias": (-8, 2),
            "loss.beta_z": (0, 1e6),
            "loss.beta_m": (0, 1e6),
            "loss.delay": (0, 1),
            "loss.ramp": (0, 1),
            "loss.auxiliary": (0, 1e6),
            "loss.hidden": (0, 1e6),
            "loss.consistency": (0, 1e6),
            "loss.positive_weight": (1e-6, 1e6),
            "loss.target_nll": (0, 1e6),
            "train.steps": (2, 10**9),
            "train.learning_rate": (0, 1e38),
            "train.warmup": (0, 0.9),
            "train.weight_decay": (0, 1e6),
            "train.clip_norm": (1e-9, 1e30),
            "train.log_every": (1, 10**9),
            "train.checkpoint_every": (1, 10**9),
            "train.accumulate": (1, 2**20),
        }
        wrong = []
        for name, (low, high) in bounds.items():
            value = attrgetter(name)(self)
            if not low <= value <= high:  # NaN fails too
                wrong.append(f"{name}: expected {low:g} to {high:.10g}, found {value}")
        if not self.model.half_turn:
            for name in ("hidden", "consistency"):
                if value := getattr(self.loss, name):
                    wrong.append(f"loss.{name}: expected 0 without model.half_turn (there is one view), found {value}")
        if self.model.bottleneck == "infomask" and not (self.model.teach_through_mask or self.loss.auxiliary):
            wrong.append("loss.auxiliary: expected above 0 without model.teach_through_mask (nothing teaches), found 0")
        if self.model.norm == "group" and self.model.width % 8:
            wrong.append(f"model.width: expected a multiple of 8, which a group has, found {self.model.width}")
        if self.map_shifts > self.model.stride:
            wrong.append(f"map_shifts: expected at most model.stride, {self.model.stride}, found {self.map_shifts}")
        if self.data.batch_size % self.train.accumulate:
            wrong.append(
                f"train.accumulate: expected a divisor of data.batch_size, {self.data.batch_size}, "
                f"found {self.train.accumulate}"
            )
        if self.parallel == "pmap" and self.train.shard_optimizer:
            wrong.append("train.shard_optimizer: expected False with parallel pmap, found True")
        if wrong:
            raise ValueError("settings out of range:\n  " + "\n  ".join(wrong))

    def to_dict(self) -> dict[str, Any]:
        """JSON types; paths absolute, so that the run can be read from any folder."""
        return {k: str(v.absolute()) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Inverse of `to_dict`. Unknown fields raise TypeError, missing ones KeyError: a run need not have had our
        defaults of today."""
        nested = {f.name: f.type for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)}
        for kind, part in ((cls, values), *((nested[k], values[k]) for k in nested)):
            names = [f.name for f in dataclasses.fields(kind)]
            if missing := [name for name in names if name not in part]:
                unknown = [name for name in part if name not in names]
                raise KeyError(f"missing {', '.join(missing)}" + (f"; unknown {', '.join(unknown)}" if unknown else ""))
            for name, wanted in get_type_hints(kind).items():
                if name not in nested and not _is_of(part[name], wanted):
                    raise TypeError(f"{name}: expected {getattr(wanted, '__name__', wanted)}, found {part[name]!r}")
        values = {k: nested[k](**v) if k in nested else v for k, v in values.items()}
        return cls(**{**values, "data_dir": Path(values["data_dir"]), "workdir": Path(values["workdir"])})

    @classmethod
    def load(cls, workdir: Path) -> "Config":
        """The config of a run. FileNotFoundError where `workdir` holds none."""
        path = Path(workdir) / "config.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{workdir} is not a run: {path.name} is missing. Give the --workdir of a training run."
            )
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a config of this version: {error}. Use the revision that its manifest.json "
                "names, or train again."
            ) from error


def _is_of(value: Any, wanted: Any) -> bool:
    """Whether a value from JSON is of a field's type."""
    if get_origin(wanted) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(wanted))
    if wanted is float:
        return type(value) in (int, float)
    return type(value) is (str if wanted is Path else wanted)
