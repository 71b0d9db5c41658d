"""Stored examples -> batches on devices (grain): an endless deterministic stream to train on, padded passes to score.

Batch: image float32 [B, H, W, 1], standardised per image; labels, label_mask float32 [B, K]; valid float32 [B], 0 for
padding; index int32 [B], position in the split (-1 for padding).
"""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from infomask_jax.config import DataConfig, MachineConfig
from infomask_jax.pixels import average_blocks, decode_gray, fit, standardise

Batch = dict[str, np.ndarray]
IN_THREADS = MachineConfig()
FIELDS = ("image", "labels")  # of a stored example, all that a batch needs
READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)

ZOOM, SHIFT, CONTRAST = 0.1, 0.05, 0.2  # largest change of the side, shift as a share of it, change of the gain


class Decoded:
    """Stored examples, see datasets/schema.py, as (pixels uint8 or uint16 [H, W], labels int8 [K]); those read first
    are kept in memory, up to `gib` GiB of pixels."""

    def __init__(self, source: Sequence, gib: float = 0.0):
        self.source, self.left, self.kept = source, gib * 2**30, {}

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        if i in self.kept:
            return self.kept[i]
        example = self.source[i]
        pixels, labels = decode_gray(example["image"]), example["labels"]
        if i not in self.kept and pixels.nbytes <= self.left:  # another thread may have read it meanwhile
            self.left -= pixels.nbytes
            self.kept[i] = pixels, labels
        return pixels, labels


def augment(image: np.ndarray, size: int, draw: Sequence[float]) -> np.ndarray:
    """Random zoom and translation: stored pixels [H, W] -> [size, size], same type. No flip: the heart has a side.

    Whole blocks of pixels are averaged as in `rescale`; one affine, linear map does the rest. Edges are repeated.

    Args:
      draw: uniform in -1 .. 1, for zoom, shift down and shift right.
    """
    image = average_blocks(image, size)
    (height, width), (zoom, down, right) = image.shape, draw
    zoom, down, right = 1.0 + ZOOM * zoom, SHIFT * down, SHIFT * right
    first = 0.5 / size - 0.5  # centre of the first pixel that is made, from the middle, in images
    rows = [0.0, height / (size * zoom), height * (0.5 + (first - down) / zoom) - 0.5]
    columns = [width / (size * zoom), 0.0, width * (0.5 + (first - right) / zoom) - 0.5]
    matrix = np.array([columns, rows])  # from pixels that are made to stored ones, both at their centres
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def to_batch(examples: Decoded, index: np.ndarray, size: int, draws: np.ndarray | None = None) -> Batch:
    """Batch of the examples at `index` [B]; -1 is padding, a copy of the first.

    With `draws` [B, 4], uniform in -1 .. 1, it is augmented: see `augment`; the last one is for the contrast.
    """
    places = np.maximum(index, 0).tolist()
    once = {i: examples[i] for i in dict.fromkeys(places)}  # however much is padding
    read = [once[i] for i in places]
    images, labels = np.empty((len(index), size, size, 1), np.float32), np.array([row for _, row in read], np.float32)
    for k, (pixels, _) in enumerate(read):
        if draws is None:
            standardise(fit(pixels, size), out=images[k, ..., 0])
        else:
            *draw, contrast = draws[k].tolist()
            standardise(augment(pixels, size, draw), 1.0 + CONTRAST * contrast, out=images[k, ..., 0])
    return {
        "image": images,
        "labels": np.maximum(labels, 0.0),
        "label_mask": (labels >= 0).astype(np.float32),
        "valid": (index >= 0).astype(np.float32),
        "index": index.astype(np.int32),
    }


@lru_cache(maxsize=16)  # two epochs, where a batch ends one, of every seed that is trained side by side
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True)
class _Shuffled:
    """Endless batches of indices, int64 [size]: each epoch holds every one of `count` once, in an order of its own.
    (grain's own shuffle goes image by image: a tenth of the time of decoding a small one.)"""

    count: int
    size: int
    seed: int

    def __len__(self):
        return sys.maxsize // self.size

    def __getitem__(self, batch: int) -> np.ndarray:
        epochs, places = np.divmod(np.arange(batch * self.size, (batch + 1) * self.size), self.count)
        parts = [_order(self.count, self.seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)


class TrainBatches:
    """Endless iterator over batches. `taken`, how many it has given, is all of its state, whatever the number of loader
    processes and hosts."""

    def __init__(self, begin: Callable[[int], grain.IterDataset]):
        self.begin = begin
        self.wind(0)

    def wind(self, taken: int) -> None:
        """Go on with the batch after the first `taken`."""
        self.taken, self.iterator = taken, None

    def __iter__(self):
        return self

    def __next__(self) -> Any:
        self.iterator = self.iterator or iter(self.begin(self.taken))
        batch = next(self.iterator)
        self.taken += 1
        return batch


def train_batches(
    source: Sequence | Decoded,
    config: DataConfig,
    seed: int,
    machine: MachineConfig = IN_THREADS,
    to_devices: Callable[[Batch], Any] | None = None,
    process: int = 0,
    processes: int = 1,
) -> TrainBatches:
    """Endless stream of augmented batches: a pure function of (source, config, seed), whatever the worker count. Every
    image is drawn once before any is drawn again. Batches have gone through `to_devices`, two of them ahead of the
    step. Of several processes each gets its consecutive part of a batch. Streams of one `Decoded` share what it keeps.
    """
    if len(source) < 1:
        raise ValueError("the training split is empty: nothing to train on")
    size, part = config.image_size, config.batch_size // processes
    mine = slice(process * part, (process + 1) * part)
    examples = source if isinstance(source, Decoded) else Decoded(source, machine.cache_gib / max(machine.workers, 1))

    def augmented(index: np.ndarray, rng: np.random.Generator) -> Batch:
        draws = rng.uniform(-1.0, 1.0, (len(index), 4))  # of the whole batch, however it is shared
        return to_batch(examples, index[mine], size, draws[mine])

    def begin(taken: int) -> grain.IterDataset:
        dataset = grain.MapDataset.source(_Shuffled(len(source), config.batch_size, seed))
        dataset = dataset.random_map(augmented, seed=seed)[taken:].to_iter_dataset(READING)
        if machine.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain asks absl for its flags; ours is not an absl program
            options = grain.MultiprocessingOptions(num_workers=machine.workers, per_worker_buffer_size=2)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_ignore_interrupt)
        if to_devices is not None:
            dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2).map(to_devices)
            dataset = ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=2)
        return dataset

    return TrainBatches(begin)


def eval_batches(source, image_size: int, batch_size: int, process: int = 0, processes: int = 1) -> grain.IterDataset:
    """One ordered pass over every image; the last batch is padded with copies that `valid` marks 0. Of several
    processes each gets its consecutive part of every batch."""
    count, examples = len(source), Decoded(source)

    def fitted(index: np.ndarray) -> Batch:
        return to_batch(examples, np.where(index < count, index, -1), image_size)

    places = grain.MapDataset.range(-(-count // batch_size) * batch_size).batch(batch_size // processes)
    return places[process::processes].map(fitted).to_iter_dataset(READING)


def _ignore_interrupt(index: int, count: int) -> None:
    """Ctrl-C reaches every process of the terminal: workers leave it to the loop, which saves and then stops them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
