"""What the run of a variant predicts: trained, asked and written down once, then read."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from infomask_jax import checkpoint, experiment, manifest, pipeline
from infomask_jax.ablation.variants import Variant
from infomask_jax.config import FREE, Config, leaves
from infomask_jax.datasets import Prepared
from infomask_jax.evaluate.truth import Truth, finding_truth
from infomask_jax.explain import attribution, shifted_heat_maps
from infomask_jax.explain.bottleneck import feature_statistics
from infomask_jax.losses import BITS
from infomask_jax.model import build
from infomask_jax.system import read_json
from infomask_jax.train import train

STORED = 4  # raise it when what a run predicts changes for the same parameters
WITHOUT_EFFECT = {*FREE} - {"map_shifts"}  # on maps and logits


class Split(NamedTuple):
    """One split that is scored or tunes thresholds."""

    data: Prepared
    name: str
    examples: dict  # see experiment.read_examples
    truths: list[Truth]  # of each finding


def read_splits(data: Prepared, split: str, frame: int) -> list[Split]:
    """The scored split and, if there is one beside it, `val`."""
    names, findings = [split, *(["val"] if "val" in data.splits and split != "val" else [])], list(data.findings)
    examples = [experiment.read_examples(data, name, findings) for name in names]
    return [
        Split(data, name, e, [finding_truth(e, k, frame) for k in range(len(findings))])
        for name, e in zip(names, examples, strict=True)
    ]


def trained(config: Config, data: Prepared) -> Any:
    """Parameters of a run, trained first if it is not finished. ValueError if its folder is another run's."""
    if (Path(config.workdir) / "config.json").exists():
        with manifest.claim(config, data):
            try:
                params, step = checkpoint.load_params(config.workdir)
            except OSError:  # none is there, or it cannot be read: `train` goes on from the one before
                step = 0
        if step == config.train.steps:
            return params
    train(config, data)
    return checkpoint.load_params(config.workdir)[0]


def maps_of(v: Variant, config: Config, params, trained_on: Prepared, split: Split) -> tuple[dict, dict]:
    """({name: float16 [N, h, w] or [N, h, w, K]}, {"logits": [N][K], "rates": [N][2]}) of a run.

    From its files if they are of these parameters, settings and data, else computed and written there.

    Of an attribution method: its own map, in units of the largest magnitude of each image, 0 for images that are not
    scored, and no numbers. Rates are bits per image of representation and mask, null for a plain classifier, which has
    no bound.
    """
    data, path = split.data, Path(config.workdir) / "maps"
    source, findings = data.source(split.name, pipeline.FIELDS), len(data.findings)
    facts = {name: value for name, _, value in leaves(config) if name.split(".")[0] not in WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps([STORED, facts, data.fingerprint, split.name, v.method], default=str).encode())
    for name, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(name)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())

    def compute() -> tuple[dict, dict]:
        if v.method:
            return {v.method: attribute(v.method, config, params, trained_on, split)}, {}
        logits, maps = experiment.predict(config, params, source, findings)
        rates = mean_rates(config, params, source, findings)
        return maps, {"logits": logits.tolist(), "rates": rates.tolist()}

    stem = f"{split.name}-{v.method or v.name}" if v.run else split.name
    if data.fingerprint != trained_on.fingerprint:
        stem = f"{stem}-{data.beside}"
    return _stored(path / f"{stem}.npz", digest.hexdigest(), split.examples["image_id"], compute)


def _stored(path: Path, key: str, ids: list[str], compute: Callable[[], tuple[dict, dict]]) -> tuple[dict, dict]:
    beside = path.with_suffix(".json")
    if path.exists() and beside.exists():
        facts = {}
        with contextlib.suppress(ValueError):  # what is damaged is made again
            facts = read_json(beside, {"key": str, "sha256": str, "numbers": {}})
        if facts.get("key") == key and all(
            facts.get(name, own) == own  # older revisions had no sum of the numbers
            for name, own in _sums(path, facts["numbers"]).items()
        ):
            with np.load(path) as arrays:
                maps = {name: arrays[name] for name in arrays.files if name not in ("image_id", "probability")}
            return maps, facts["numbers"]
    maps, numbers = compute()
    maps = {name: array[..., 0] if array.shape[-1] == 1 else array for name, array in maps.items()}
    probability = {}
    if "logits" in numbers:
        probability = {"probability": scipy.special.expit(np.array(numbers["logits"]))}
    experiment.save_maps(path, ids, maps | probability)
    manifest.write_json(beside, {"key": key, **_sums(path, numbers), "numbers": numbers})
    return maps, numbers


def _sums(path: Path, numbers: dict) -> dict[str, str]:
    contents = {"sha256": path.read_bytes(), "numbers_sha256": json.dumps(numbers).encode()}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def mean_rates(config: Config, params, source, findings: int) -> np.ndarray:
    """Bits per image [N, 2] of representation and mask, as the loss charges them; None for a plain classifier."""
    if config.model.kind not in ("infomask", "vib"):
        return np.full((len(source), 2), None)
    model = build(config.model, findings)

    @jax.jit
    def rates(params, images):
        out = model.apply({"params": params}, images, train=False)[1]
        return jnp.stack([out["kl_z"].sum(axis=(1, 2)), out["kl_m"].sum(axis=(1, 2, 3))], axis=-1) * BITS

    batches = pipeline.eval_batches(source, config.data.image_size, config.data.batch_size)
    return np.concatenate([jax.device_get(rates(params, batch["image"]))[batch["valid"] > 0] for batch in batches])


def attribute(method: str, config: Config, params, trained_on: Prepared, split: Split) -> np.ndarray:
    """Maps of an attribution method for every finding, float16 [N, h, w, K] with largest magnitude 1, on scored images.

    Maps on the latent grid are means over the shifts of `map_shifts`, as CAM's are; those on pixels are as they are.
    """
    source, size = split.data.source(split.name, pipeline.FIELDS), config.data.image_size
    findings = len(split.data.findings)
    variables = {"params": params}
    if method == "iba":
        batches = pipeline.eval_batches(trained_on.source("train", pipeline.FIELDS), size, config.data.batch_size)
        images = (batch["image"][batch["valid"] > 0] for batch in batches)
        variables["feature_statistics"] = feature_statistics(config.model, findings, variables, images)
    explain, out = attribution(method, config.model, findings), None
    for k, truth in enumerate(split.truths):
        wanted = [source[int(i)] for i in truth.scored]
        if not wanted:
            continue
        maps = []
        for batch in pipeline.eval_batches(wanted, size, config.data.batch_size):
            if jax.eval_shape(partial(explain, finding=k), variables, batch["image"]).shape[1] == size:
                found = explain(variables, batch["image"], k)
            else:

                def forward(images, k=k):
                    return {method: explain(variables, images, k)[..., None]}

                shifted = shifted_heat_maps(forward, batch["image"], config.model.stride, config.map_shifts)
                found = shifted[method][..., 0]
            maps.append(np.asarray(found)[batch["valid"] > 0])
        maps = np.concatenate(maps)
        maps = maps / np.maximum(np.abs(maps).max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
        out = np.zeros((len(source), *maps.shape[1:], findings), np.float16) if out is None else out
        out[truth.scored, ..., k] = maps
    return np.zeros((len(source), 1, 1, findings), np.float16) if out is None else out
