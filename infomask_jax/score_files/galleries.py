"""Galleries of anyone's maps: the files of images by their names, which of them to draw, and the drawing."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from infomask_jax.datasets import images, lookup
from infomask_jax.localize import boxes_from_map
from infomask_jax.pixels import resize
from infomask_jax.report.figures import galleries
from infomask_jax.report.sheet import rank

POOL = 400  # images that a gallery chooses from; of more, evenly spaced ones


def finder(folder: Path) -> Callable[[str], Path]:
    """The file of an image by its name: path below the folder, name or stem in any sub-folder. LookupError if none,
    ValueError if several."""
    if not folder.is_dir():
        raise ValueError(f"--images: expected a folder, found none at {folder}")
    root, locate = str(folder.resolve()), lookup.locator(folder)
    indices = [lookup.index_images(folder, key, images.SUFFIXES) for key in ("name", "stem")]

    @cache
    def find(image: str) -> Path:
        direct = locate(lookup.safe_name(image))
        if os.path.isfile(direct) and lookup.inside(direct, root):
            return direct
        return lookup.find_image(image, next((i for i in indices if image in i), {}), root)

    return find


def size_of(find: Callable[[str], Path]) -> Callable[[str], tuple[int, int]]:
    """(height, width) of an image's file by the image's name."""
    return cache(lambda image: images.decode(find(image)).shape)


def has_file(find: Callable[[str], Path], image: str) -> bool:
    """Whether an image has a file."""
    try:
        return bool(find(image))
    except LookupError:
        return False


def choose(data: dict, chosen, find, frame: int, folder: Path) -> dict[str, tuple[np.ndarray, list]]:
    """For each finding, images that its galleries choose from: positions, and gray [frame,frame] arrays.

    Scored positives, and negatives where there are probabilities to reject them. ValueError if no file is there at all.
    """
    there = np.array([has_file(find, i) for i in data["image_id"]])
    if not there.any():
        raise ValueError(f"--images {folder}: expected files of the images, found none of {data['image_id'][0]!r}")
    out, cut = {}, cache(lambda i: resize(images.decode(find(data["image_id"][i])), frame))
    for k, finding in enumerate(chosen):
        positive = np.array([k in at for _, at in data["boxes"]])
        if not positive.any():
            continue
        negative = ~positive & (data["labels"][:, k] == 0) & ("probabilities" in data)
        few, many = sorted((np.flatnonzero(positive & there), np.flatnonzero(negative & there)), key=len)
        few = spread(few, POOL // 2)  # each its half, so that the rarer kind is not lost among the other
        index = np.sort(np.r_[few, spread(many, POOL - len(few))])
        out[finding] = index, [cut(int(i)) for i in index]
    return out


def spread(index: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the positions, evenly spread."""
    return index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))]


def draw(
    result: dict, finding: str, k: int, data: dict, maps: dict, chosen: tuple, folder: Path
) -> dict[Path, bytes | None]:
    """hits.png and misses.png of a finding, by the tables' first method; its boxes are drawn at the scored threshold.

    Args:
      result, data, maps: of `evaluate.score`; `finding` is number k. chosen: of `choose`.
    Returns: as `report.figures.galleries`.
    """
    index, pixels = chosen
    methods = sorted(maps, key=rank)
    frame, first = (result["frame"],) * 2, methods[0]
    own = {m: (maps[m] if maps[m].ndim == 3 else maps[m][..., k])[index] for m in methods}
    threshold = result["localization"][finding][first]["threshold"]["value"]
    given = "probabilities" in data
    return galleries(
        pixels,
        own,
        [data["boxes"][i][0][data["boxes"][i][1] == k] for i in index],
        {first: [boxes_from_map(heat, threshold, frame)[0] for heat in own[first]]},
        data["probabilities"][index, k] if given else np.full(len(index), np.nan),
        data["labels"][index, k],
        [data["image_id"][i] for i in index],
        folder,
        f"{result['split']}, {finding}, {len(index)} images" + ("" if given else ", no probabilities given"),
    )


def old(folder: Path) -> list[Path]:
    """The galleries that are in a folder of figures already."""
    return sorted(path for name in ("hits.png", "misses.png") for at in ("", "*/") for path in folder.glob(at + name))
