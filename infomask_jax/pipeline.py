"""Stored examples -> batches on devices (grain): an endless deterministic stream to train on, padded passes to score.

Batch: image float32 [B, H, W, 1], standardised per image; labels, label_mask float32 [B, K]; valid float32 [B], 0 for
padding; index int32 [B], position in the split (-1 for padding).
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from infomask_jax.config import DataConfig, MachineConfig
from infomask_jax.pixels import blocks, decode_gray, fit, rescale, standardise

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


def augment(images: Sequence[np.ndarray], size: int, draws: np.ndarray) -> Iterator[np.ndarray]:
    """Random zoom and translation: stored pixels [H, W] -> [size, size], same type. No flip: the heart has a side.

    What is seen is a window of the stored image, to the nearest pixel, its sides to the nearest multiple of the blocks
    that are averaged (where the whole image is no such multiple, it is seen a pixel wider or narrower); beyond the
    edges they are repeated.

    Args:
      images: B of them.
      draws: [B, 3], uniform in -1 .. 1, for zoom, shift down and shift right. Windows of all images are computed at
        once: it is Python that reading threads wait for.
    """
    shapes = np.array([image.shape for image in images])
    lengths = shapes / (1.0 + ZOOM * draws[:, :1])
    block = blocks(lengths, size)  # whole ones are averaged ten times as fast as broken ones
    sides = block * np.maximum(np.rint(lengths / block).astype(int), 1)
    starts = np.rint((shapes - sides) / 2 - SHIFT * lengths * draws[:, 1:]).astype(int)
    lows, highs = np.clip(starts, 0, shapes - 1), np.clip(starts + sides, 1, shapes)
    beyond = sides - (highs - lows)
    before = np.clip(lows - starts, 0, beyond)
    pads = np.stack([before, beyond - before], axis=2).reshape(-1, 4)
    windows = zip(images, lows.tolist(), highs.tolist(), pads.tolist(), strict=True)
    for image, (top, left), (bottom, right), pad in windows:
        image = image[top:bottom, left:right]
        if any(pad):
            image = cv2.copyMakeBorder(image, *pad, cv2.BORDER_REPLICATE)
        yield rescale(image, size)


def to_batch(examples: Decoded, index: np.ndarray, size: int, draws: np.ndarray | None = None) -> Batch:
    """Batch of the examples at `index` [B]; -1 is padding, a copy of the first.

    With `draws` [B, 4], uniform in -1 .. 1, it is augmented: see `augment`; the last one is for the contrast.
    """
    places = np.maximum(index, 0).tolist()
    once = {i: examples[i] for i in dict.fromkeys(places)}  # however much is padding
    read = [once[i] for i in places]
    images, labels = np.empty((len(index), size, size, 1), np.float32), np.array([row for _, row in read], np.float32)
    if draws is None:
        shown, gains = (fit(pixels, size) for pixels, _ in read), np.ones(len(index))
    else:
        shown, gains = augment([pixels for pixels, _ in read], size, draws[:, :3]), 1.0 + CONTRAST * draws[:, 3]
    for image, gain, out in zip(shown, gains.tolist(), images, strict=True):
        standardise(image, gain, out=out[..., 0])
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
