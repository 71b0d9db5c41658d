"""What the films look like that a run is trained on, as its manifest keeps it, and which films are unlike them.

A film is told by its thumbnail of 8 x 8 cells, standardised: no brightness or contrast, only where it is bright."""

import numpy as np

from infomask_jax.datasets import Prepared
from infomask_jax.pixels import decode_gray, resize, standardise
from infomask_jax.system import NUMBER

SIDE, SAMPLE = 8, 1000  # cells on a side of a thumbnail; training films that are looked at
PERCENT = 99  # of the training films are less far from their mean than `limit`
FLOOR = 0.05  # added to the deviation of a cell, which may be 0
STRETCH = 1.25  # by which a film may be wider or narrower than the training films
CELLS = [NUMBER] * SIDE**2
FACTS = {"mean": CELLS, "deviation": CELLS, "limit": NUMBER, "aspect": [NUMBER, NUMBER]}  # see `facts`


def thumbnail(film: np.ndarray) -> np.ndarray:
    """uint8 or uint16 [H, W] -> float32 [64]."""
    return standardise(resize(film, SIDE).astype(np.float32)).ravel()


def facts(data: Prepared) -> dict:
    """Of up to `SAMPLE` training films, evenly spaced: mean and deviation [64] of the thumbnails of every second, the
    `distance` from them that 1 in 100 of the others exceeds, and the least and largest width / height, 1 in 100 left
    out on either side."""
    source = data.source("train", ("image", "height", "width"))
    examples = [source[int(i)] for i in np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int))]
    thumbnails = np.stack([thumbnail(decode_gray(example["image"])) for example in examples])
    half, others = thumbnails[::2], thumbnails[len(thumbnails) > 1 :: 2]
    found = {"mean": half.mean(axis=0), "deviation": half.std(axis=0)}
    found = {name: [round(float(value), 3) for value in values] for name, values in found.items()}
    limit = np.percentile([distance(found, one) for one in others], PERCENT)
    aspect = np.percentile([example["width"] / example["height"] for example in examples], (100 - PERCENT, PERCENT))
    return found | {"limit": round(float(limit), 3), "aspect": [round(float(ratio), 3) for ratio in aspect]}


def distance(facts: dict, thumbnail: np.ndarray) -> float:
    """Mean square of how many deviations the cells are off the mean of the training films."""
    return float(np.mean(((thumbnail - facts["mean"]) / (np.asarray(facts["deviation"]) + FLOOR)) ** 2))


def unlike(facts: dict, thumbnail: np.ndarray, size: tuple[int, int]) -> str:
    """How a film of (height, width) is unlike the training films, in words; empty where it is not."""
    (least, most), ratio = facts["aspect"], size[1] / size[0]
    if not least / STRETCH <= ratio <= most * STRETCH:
        return f"width / height {ratio:.2f}, of theirs {least:.2f} to {most:.2f}"
    far, limit = distance(facts, thumbnail), facts["limit"]
    return f"{far:.1f} from their mean picture, {PERCENT} % of them within {limit:.1f}" if far > limit else ""
