"""Galleries of anyone's maps: the files of images by their names, and the drawing."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from infomask_jax.datasets import images, lookup
from infomask_jax.localize import four_axes, of_finding, region_boxes
from infomask_jax.pixels import resize
from infomask_jax.report import figures
from infomask_jax.report.sheet import rank


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


def without_file(find: Callable[[str], Path], ids: list[str], folder: Path) -> set[str]:
    """The images that have no file. ValueError if none has one."""
    missing = set()
    for image in ids:
        try:
            find(image)
        except LookupError:
            missing.add(image)
    if len(missing) == len(ids):
        raise ValueError(f"--images {folder}: expected files of the images, found none of {ids[0]!r}")
    return missing


def draw(
    folder: Path, result: dict, data: dict, maps: dict[str, np.ndarray], find: Callable[[str], Path], missing: set[str]
) -> dict[Path, bytes | None]:
    """hits.png and misses.png of every finding (see `report.figures.galleries`), by the tables' first method, with its
    boxes at the scored threshold.

    Args:
      result, data, maps: of `evaluate.score`. missing: images without a file, which are not drawn.
    """
    methods, size = sorted(maps, key=rank), result["frame"]
    own = {method: four_axes(maps[method]) for method in methods}

    def boxes_of(finding: str, i: int) -> np.ndarray:
        heat = of_finding(own[methods[0]], list(result["classification"]).index(finding))[i]
        threshold = result["localization"][finding][methods[0]]["threshold"]["value"]
        return region_boxes(heat[None], threshold, frame=size)[0].boxes

    def image_of(i: int) -> np.ndarray:
        return resize(images.decode(find(data["image_id"][i])), size)

    here = np.array([image not in missing for image in data["image_id"]])
    shown = {**data, "labels": np.where(here[:, None], data["labels"], -1)}  # of what is unknown nothing is drawn
    return figures.galleries(folder, result, shown, own, boxes_of, image_of)


def old(folder: Path) -> list[Path]:
    """The galleries that are in a folder of figures already."""
    return sorted(path for name in ("hits.png", "misses.png") for at in ("", "*/") for path in folder.glob(at + name))
