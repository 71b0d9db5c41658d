"""What a trained model says of a split: one forward pass, compiled once a model, for every command that needs it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from infomask_jax import parallel, pipeline, pixels
from infomask_jax.config import Config, ModelConfig
from infomask_jax.datasets import Prepared
from infomask_jax.evaluate import controls
from infomask_jax.explain import heat_maps, shifted_heat_maps
from infomask_jax.losses import BITS
from infomask_jax.model import build
from infomask_jax.system import write_all

LARGEST = np.finfo(np.float16).max  # a map beyond it stays finite and keeps its order up to there


class Predicted(NamedTuple):
    """Of N images."""

    logits: np.ndarray  # [N, K] float32
    maps: dict[str, np.ndarray]  # by method, [N, h, w, K] or, shared by all findings, [N, h, w, 1]; float16
    rates: np.ndarray  # [N, 2] bits an image of representation and mask, nan of a classifier that nothing bounds
    spread: np.ndarray | None = None  # [N, K, 2] mean and deviation of the probability over samples, see `sampled`


@functools.cache
def forward(model: ModelConfig, findings: int, shifts: int) -> Callable:
    """The pure function forward(params, images [B, H, W, 1]) -> (logits [B, K], {method: maps [B, h, w, 1 or K]}, rates
    [B, 2]), all float32; h and w are the grid's times `shifts`, see `explain.shifted_heat_maps`."""
    network = build(model, findings)

    def once(params, images):
        logits, out = network.apply({"params": params}, images, train=False)
        rates = jnp.stack([out["kl_z"].sum(axis=(1, 2)), out["kl_m"].sum(axis=(1, 2, 3))], axis=-1) * BITS
        bounded = model.kind in ("infomask", "vib")
        return (logits, rates if bounded else jnp.full_like(rates, jnp.nan)), heat_maps(out, model.kind)

    def predict(params, images):
        pass_of = functools.partial(once, params)
        (logits, rates), maps = shifted_heat_maps(pass_of, images, model.stride, shifts)
        return logits, maps, rates

    return predict


@functools.cache
def sampled(model: ModelConfig, findings: int, samples: int, seed: int = 0) -> Callable:
    """The pure function sampled(params, images [B, H, W, 1]) -> (mean and standard deviation over samples of the
    probability [B, K, 2], and of the mask by "infomask_mean" and "infomask_sd", [B, h, w, M] on the model's own grid).

    A sample draws z and m as in training, of the features that evaluation sees. The draws depend on the seed, and are
    the same for every image: what is found does not depend on the other images, or on their order. ValueError where
    the model draws nothing, or for less than two samples."""
    if model.kind not in ("infomask", "vib"):
        raise ValueError(f"samples: expected 0, for a model of kind {model.kind} draws nothing; found {samples}")
    if samples < 2:
        raise ValueError(f"samples: expected 0 or a number from 2 on, found {samples}")
    network = build(dataclasses.replace(model, mask_samples=1), findings)

    def predict(params, images):
        features = network.apply({"params": params}, images, train=False)[1]["features"]
        given = {"features": features, "positions": jnp.zeros(len(images), jnp.int32)}

        def draw(_, key):
            logits, out = network.apply({"params": params}, images, train=True, rngs={"sample": key}, **given)
            return None, (jax.nn.sigmoid(logits), out["mask"])

        probability, mask = jax.lax.scan(draw, None, jax.random.split(jax.random.key(seed), samples))[1]
        spread = jnp.stack([probability.mean(axis=0), probability.std(axis=0)], axis=-1)
        masked = {"infomask_mean": mask.mean(axis=0), "infomask_sd": mask.std(axis=0)}
        return spread, masked if model.kind == "infomask" else {}

    return predict


@functools.cache
def _compiled(function: Callable) -> Callable:
    return jax.jit(function)


def predicted_batches(
    config: Config,
    params,
    source: Sequence,
    findings: int,
    function: Callable | None = None,
    samples: int = 0,
    progress: bool = True,
) -> Iterator[Predicted]:
    """What `predict` returns, a batch of images at a time. Every process of several has to take all of them.

    samples: also draw so many, see `sampled`, by a program of their own: nothing else changes by a bit. progress: show
    a bar."""
    devices = jax.device_count()
    batch_size = -(-config.data.batch_size // devices) * devices  # padding takes up what does not divide
    replicated, split = parallel.shardings(batch_size)
    compiled = _compiled(function or forward(config.model, findings, config.map_shifts))
    draw = _compiled(sampled(config.model, findings, samples)) if samples else None
    params = parallel.place(params, replicated)
    name = "plain classifier" if config.model.kind == "plain" else config.model.kind
    stream = pipeline.eval_batches(source, config.data.image_size, batch_size, *parallel.part())
    total, done = -(-len(source) // batch_size), 0
    for batch in track(stream, f"maps of {name}", total=total, disable=not (progress and parallel.is_main())):
        placed = parallel.to_devices({key: batch[key] for key in ("image", "index")}, split)
        found = compiled(params, placed["image"]), draw(params, placed["image"]) if draw else (None, {})
        index, ((logits, maps, rates), (spread, drawn)) = parallel.fetch((placed["index"], found))
        keep = index >= 0
        if not np.array_equal(index[keep], np.arange(done, done + keep.sum())):
            raise RuntimeError(f"images came back from the devices out of order: {index.tolist()} from {done} on")
        done += keep.sum()
        maps = {method: np.clip(m[keep], -LARGEST, LARGEST).astype(np.float16) for method, m in (maps | drawn).items()}
        yield Predicted(logits[keep], maps, rates[keep], None if spread is None else spread[keep])


def predict(config: Config, params, source: Sequence, findings: int, function: Callable | None = None) -> Predicted:
    """Logits, heat maps and rates of every image of a source of stored examples, in its order.

    function: (params, images) -> (logits, maps, rates) in place of `forward`; the same one is compiled once.
    """
    return joined(list(predicted_batches(config, params, source, findings, function)))


def joined(parts: Sequence[Predicted]) -> Predicted:
    """Of the images of all parts."""
    maps = {method: np.concatenate([part.maps[method] for part in parts]) for method in parts[0].maps}
    return Predicted(np.concatenate([p.logits for p in parts]), maps, np.concatenate([p.rates for p in parts]))


def read_examples(data: Prepared, split: str, findings: Sequence[str], brightness: bool = True) -> dict:
    """Ids, labels of `findings`, views, boxes, exact masks, source frames and, for its control, brightness of a split,
    as `evaluate.score` takes them."""
    source, order = data.source(split), [data.findings.index(name) for name in findings]
    place = {old: new for new, old in enumerate(order)}
    examples = {key: [] for key in ("image_id", "patient_id", "view", "labels", "boxes", "masks", "sizes")}
    shown = []
    for i in range(len(source)):
        example = source[i]
        for key in ("image_id", "patient_id", "view"):
            examples[key].append(example[key])
        examples["labels"].append(np.asarray(example["labels"])[order])
        examples["boxes"].append((example["boxes"], [place.get(int(k), -1) for k in example["box_labels"]]))
        examples["masks"].append(pixels.decode_gray(example["mask"]) > 0 if example["mask"] else None)
        examples["sizes"].append((example["height"], example["width"]))
        if brightness:
            shown.append(controls.brightness(pixels.decode_gray(example["image"])))
    examples["labels"] = np.stack(examples["labels"])
    return examples | {"brightness": np.stack(shown)} if brightness else examples


def save_maps(path: Path, image_ids: Sequence[str], maps: dict[str, np.ndarray]) -> None:
    """maps/SPLIT.npz, which `evaluate --maps` reads: image_id [N] and an array by method, [N, h, w] where all findings
    share it, else [N, h, w, K]; other arrays are stored by their names as they are."""
    maps = {name: m[..., 0] if m.ndim == 4 and m.shape[-1] == 1 else m for name, m in maps.items()}

    def write(file):  # straight to the disk: in memory they are there already
        np.savez_compressed(file, image_id=np.array(image_ids), **maps)

    write_all({path: write})
