"""Stored examples -> batches on devices (grain): an endless deterministic stream to train on, padded passes to score.

Batch: image float32 [B, H, W, 1], standardised per image; labels, label_mask float32 [B, K]; valid float32 [B], 0 for
padding; index int32 [B], position in the split (-1 for padding).
"""

import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from infomask_jax.config import DataConfig

Batch = dict[str, np.ndarray]


def decode_gray(data: bytes) -> np.ndarray:
    """Stored PNG bytes -> uint8 or uint16 [H, W]."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> float32 [size, size]; shrinking averages areas, enlarging is bilinear."""
    image = image.astype(np.float32)
    if image.shape == (size, size):
        return image
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR)


def standardise(image: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the image; a constant image becomes zeros."""
    return (image - image.mean()) / max(float(image.std()), 1e-3)


def to_sample(index: int, example: dict[str, Any], size: int, count: int) -> Batch:
    """Example (see datasets/schema.py) -> one unbatched, unaugmented element of a batch.

    `index` counts on over the epochs of an endless stream; `count` is the length of the split.
    """
    labels = np.asarray(example["labels"], np.float32)
    return {
        "image": standardise(fit(decode_gray(example["image"]), size))[..., None],
        "labels": np.maximum(labels, 0.0),
        "label_mask": (labels >= 0).astype(np.float32),
        "valid": np.float32(1.0),
        "index": np.int32(index % count),
    }


def augment(sample: Batch, rng: np.random.Generator, config: DataConfig) -> Batch:
    """Random zoom, translation, gain and (if asked for) left-right flip of the image; labels do not change."""
    size = sample["image"].shape[0]
    zoom = 1.0 + config.scale * rng.uniform(-1, 1)
    dx, dy = config.shift * size * rng.uniform(-1, 1, size=2)
    gain = 1.0 + config.contrast * rng.uniform(-1, 1)
    sign = -1.0 if config.flip and rng.random() < 0.5 else 1.0
    centre = (size - 1) / 2
    affine = np.array(
        [[sign * zoom, 0, centre - sign * zoom * centre + dx], [0, zoom, centre - zoom * centre + dy]], np.float32
    )
    image = sample["image"][..., 0]
    image = cv2.warpAffine(image, affine, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return {**sample, "image": gain * image[..., None]}


def train_batches(
    source,
    config: DataConfig,
    seed: int,
    to_devices: Callable[[Batch], Any] | None = None,
    process: int = 0,
    processes: int = 1,
) -> grain.IterDataset:
    """Endless stream of augmented batches: a pure function of (source, config, seed), whatever the worker count.

    Epochs stay whole: every image is drawn once before any is drawn again. The iterator (`iter`) is checkpointable.
    With `to_devices`, batches have gone through it, two of them ahead of the step. Of several processes each gets its
    consecutive part of every batch, and reads no other images.
    """
    if len(source) < 1:
        raise ValueError("the training split is empty: nothing to train on")
    dataset = (
        grain.MapDataset.source(source)
        .map_with_index(partial(to_sample, size=config.image_size, count=len(source)))
        .shuffle(seed=seed)
        .repeat()
        .random_map(partial(augment, config=config), seed=seed)
        .batch(config.batch_size // processes)[process::processes]
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )
    if config.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain asks absl for its flags; ours is not an absl program
        options = grain.MultiprocessingOptions(num_workers=config.workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_ignore_interrupt)
    if to_devices is not None:
        dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2).map(to_devices)
        dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
    return dataset


def eval_batches(source, image_size: int, batch_size: int, process: int = 0, processes: int = 1) -> grain.IterDataset:
    """One ordered pass over every image; the last batch is padded with copies that `valid` marks 0.

    Of several processes each gets its consecutive part of every batch; all get the same number of batches.
    """
    count = len(source)

    def sample(index: int) -> Batch:
        if index < count:
            return to_sample(index, source[index], image_size, count)
        return {**to_sample(0, source[0], image_size, count), "valid": np.float32(0.0), "index": np.int32(-1)}

    return (
        grain.MapDataset.range(-(-count // batch_size) * batch_size)
        .map(sample)
        .batch(batch_size // processes)[process::processes]
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )


def _ignore_interrupt(index: int, count: int) -> None:
    """Ctrl-C reaches every process of the terminal: workers leave it to the loop, which saves and then stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
