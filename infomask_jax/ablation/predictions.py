"""What the run of a variant predicts: trained and asked once, and kept in its maps/SPLIT.npz (maps) and maps/SPLIT.json
(logits, rates, and of what all this is), of other data in SPLIT-on-NAME-FINGERPRINT."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.special

from infomask_jax import checkpoint, inference, pipeline
from infomask_jax.ablation.variants import Variant
from infomask_jax.config import FREE, Config, leaves
from infomask_jax.datasets import Prepared
from infomask_jax.evaluate.truth import Truth, finding_truth
from infomask_jax.explain import METHODS, ON_PIXELS, attribution, shifted_heat_maps
from infomask_jax.explain.bottleneck import feature_statistics
from infomask_jax.inference import Predicted
from infomask_jax.localize import four_axes
from infomask_jax.run import claim
from infomask_jax.system import read_json, write_json
from infomask_jax.train import train

STORED = 5  # raise it when what a run predicts changes for the same parameters
WITHOUT_EFFECT = {*FREE} - {"map_shifts"}  # on maps and logits


class Split(NamedTuple):
    """One split that is scored or tunes thresholds."""

    data: Prepared
    name: str
    examples: dict  # see inference.read_examples
    truths: list[Truth]  # of each finding


def read_splits(data: Prepared, split: str, frame: int) -> list[Split]:
    """The scored split and, if there is one beside it, `val`."""
    found = []
    for name in [split, "val"] if "val" in data.splits and split != "val" else [split]:
        examples = inference.read_examples(data, name, data.findings)
        truths = [finding_truth(examples, k, frame) for k in range(len(data.findings))]
        found.append(Split(data, name, examples, truths))
    return found


def trained(config: Config, data: Prepared) -> Any:
    """Parameters of a run, trained first if it is not finished."""
    if (Path(config.workdir) / "config.json").exists():
        with claim(config, data), contextlib.suppress(OSError):  # then `train` takes an older checkpoint
            params, step = checkpoint.load_params(config.workdir)
            if step == config.train.steps:
                return params
    train(config, data)
    return checkpoint.load_params(config.workdir)[0]


def predicted(v: Variant, config: Config, params, trained_on: Prepared, split: Split) -> Predicted:
    """Logits, maps and rates of a split, of an attribution method its map alone: those in its files, if they are of
    these parameters, settings and data, else computed and written there."""
    data = split.data
    settings = {name: value for name, _, value in leaves(config) if name.split(".")[0] not in WITHOUT_EFFECT}
    facts = [STORED, settings, data.fingerprint, split.name, v.method]
    key = hashlib.sha256(json.dumps(facts, default=str).encode())
    for name, leaf in jax.tree_util.tree_leaves_with_path(params):
        key.update(f"{jax.tree_util.keystr(name)} {leaf.shape} {leaf.dtype}".encode() + np.asarray(leaf).tobytes())
    stem = f"{split.name}-{v.method or v.name}" if v.run else split.name
    stem += f"-{data.beside}" if data.fingerprint != trained_on.fingerprint else ""
    path = Path(config.workdir) / "maps" / f"{stem}.npz"
    if found := _kept(path, key.hexdigest()):
        return found
    if v.method:
        found = Predicted(None, {v.method: attribute(v.method, config, params, trained_on, split)}, None)
    else:
        found = inference.predict(config, params, data.source(split.name, pipeline.FIELDS), len(data.findings))
    _keep(path, key.hexdigest(), split.examples["image_id"], found)
    return found


def _kept(path: Path, key: str) -> Predicted | None:
    with contextlib.suppress(OSError, ValueError):  # what is absent or damaged is made again
        stored = read_json(path.with_suffix(".json"), {"key": str, "sha256": str, "numbers": {}})
        if (stored["key"], stored["sha256"]) == (key, _sum(path, stored["numbers"])):
            with np.load(path) as arrays:
                names = [name for name in arrays.files if name not in ("image_id", "probability")]
                maps = {name: four_axes(arrays[name]) for name in names}
            numbers = {name: np.array(values, float) for name, values in stored["numbers"].items()}  # null: NaN
            return Predicted(numbers.get("logits"), maps, numbers.get("rates"))
    return None


def _keep(path: Path, key: str, image_ids: list[str], found: Predicted) -> None:
    arrays, numbers = dict(found.maps), {}
    if found.logits is not None:
        arrays["probability"] = scipy.special.expit(np.asarray(found.logits, float))
        rates = np.where(np.isnan(found.rates), None, found.rates)
        numbers = {"logits": found.logits.tolist(), "rates": rates.tolist()}
    inference.save_maps(path, image_ids, arrays)
    write_json(path.with_suffix(".json"), {"key": key, "sha256": _sum(path, numbers), "numbers": numbers})


def _sum(path: Path, numbers: dict) -> str:
    return hashlib.sha256(path.read_bytes() + json.dumps(numbers).encode()).hexdigest()


def attribute(method: str, config: Config, params, trained_on: Prepared, split: Split) -> np.ndarray:
    """Maps of an attribution method for every finding, float16 [N, h, w, K] with largest magnitude 1; 0 for images that
    are not scored. Those on the latent grid are means over the shifts of `map_shifts`, as CAM's are."""
    source, size, stride = split.data.source(split.name, pipeline.FIELDS), config.data.image_size, config.model.stride
    findings, variables = len(split.data.findings), {"params": params}
    if method == "iba":
        batches = pipeline.eval_batches(trained_on.source("train", pipeline.FIELDS), size, config.data.batch_size)
        images = (batch["image"][batch["valid"] > 0] for batch in batches)
        variables["feature_statistics"] = feature_statistics(config.model, findings, variables, images)
    explain, on_pixels = attribution(method, config.model, findings), METHODS[method] in ON_PIXELS
    side = size if on_pixels else size // stride * config.map_shifts
    out = np.zeros((len(source), side, side, findings), np.float16)

    @jax.jit
    def maps_of(variables, images, k):
        def forward(images):
            return None, {method: explain(variables, images, k)[..., None]}

        if on_pixels:
            return explain(variables, images, k)
        return shifted_heat_maps(forward, images, stride, config.map_shifts)[1][method][..., 0]

    for k, truth in enumerate(split.truths):
        if len(truth.scored):
            batches = pipeline.eval_batches([source[int(i)] for i in truth.scored], size, config.data.batch_size)
            maps = np.concatenate([np.asarray(maps_of(variables, b["image"], k))[b["valid"] > 0] for b in batches])
            largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
            out[truth.scored, ..., k] = maps / np.maximum(largest, np.finfo(np.float32).tiny)
    return out
