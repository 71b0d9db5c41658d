"""Real radiographs without opacities, the phantom's opacities in half of them: real anatomy with exact pixel truth.

Label and opacities come from seed and name of the background, not from its pixels. An opacity multiplies the light that
a pixel lets through: bright bone stays brighter, grain stays, nothing is clipped.
"""

import dataclasses
import hashlib
import itertools
import os
from pathlib import Path

import cv2
import numpy as np

from infomask_jax.datasets import folder, images, lookup, nih, rsna, schema
from infomask_jax.datasets.schema import BadData, Item, Problem, Release
from infomask_jax.datasets.synthetic import PhantomConfig, opacities, truth
from infomask_jax.pixels import encode, resize
from infomask_jax.text import normal

FINDINGS = ("opacity",)
CONTRAST = 0.25  # default of PhantomConfig.contrast: opacities stand out less than the phantom's, more than real ones
BLACK = 0.02  # of full scale: at most this bright is black
SMALLEST = 0.03  # of the image: a smaller lung field is none
_GRID = 128  # pixels on which the lungs of a whole radiograph are looked for


def read(options, problems: list[Problem]) -> Release:
    """Finds the backgrounds of `datasets.Synthetic`: by the tables of a release, if it has them, the images that they
    call negative, in their splits; without, every image, split by its name's hash. Of several draws of one, those after
    the first are called NAME@2, ...; too few backgrounds are added to `problems`."""
    root = options.backgrounds
    if not root.is_dir():
        raise BadData(f"--backgrounds: expected a folder of negative radiographs, found no folder {root}")
    items, tables, missing = _negatives(root, problems)
    chosen = []
    for split in schema.SPLITS:
        count = getattr(options, split)
        those = sorted((i for i in items if i.split == split), key=lambda i: _hash(i.image_id))
        if count is not None and not 0 <= count <= len(those):
            reason = f"expected 0 to {len(those)}, the negative images there are for it, found {count}"
            problems.append(Problem(str(root), None, f"--{split}", reason))
        chosen += those[:count]
        for number in range(2, options.draws + 1 if split == "train" else 2):
            chosen += [dataclasses.replace(i, image_id=f"{i.image_id}@{number}") for i in those[:count]]
    if not items and not problems:
        raise BadData(f"--backgrounds: expected negative radiographs (PNG, JPEG or DICOM), found none in {root}")
    return Release(FINDINGS, chosen, [*tables, root], missing)


def draw(item: Item, config: PhantomConfig) -> dict:
    """Decodes the background of an item and, if its coin says so, implants opacities. One that cannot be used is
    refused before the coin is thrown."""
    try:
        source = images.decode(item.path)
        lung = lung_field(source, config.size)
    except ValueError as error:
        reason = str(error) if isinstance(error, images.BadImage) else f"{item.path}: {error}"
        return {"problems": [Problem(item.file or item.image_id, item.row, "image", reason, item.image_id)]}
    words = np.frombuffer(_hash(item.image_id), "<u4").tolist()
    children = np.random.SeedSequence([config.seed, *words]).spawn(2)
    labels, lesions = (np.random.Generator(np.random.Philox(child)) for child in children)
    label = int(labels.random() < config.prevalence)
    found = opacities(lesions, lung) if label else []
    pixels = implant(resize(source, config.size), found, config.contrast)
    mask, boxes = truth(found, config.size)
    height, width = item.frame or source.shape
    drawn = {"image": pixels, "mask": mask, "lung": np.where(lung > 0.5, 255, 0).astype(np.uint8)}
    made = {"pixels": pixels, **{name: encode(those) for name, those in drawn.items()}, "labels": (label,)}
    made |= {"boxes": boxes, "box_findings": FINDINGS * len(boxes), "problems": []}
    return made | {"height": height, "width": width}


def implant(pixels: np.ndarray, found: list, contrast: float) -> np.ndarray:
    """Adds contrast * alpha * texture of every opacity in `found` to the attenuation that a film shows, uint8 or uint16
    [H, W]; no pixel becomes darker, and where all alphas are 0 none changes."""
    top = np.iinfo(pixels.dtype).max
    added = sum((alpha * np.maximum(texture, 0) for alpha, texture, *_ in found), np.zeros(pixels.shape))
    light = (1 - pixels / top) * np.exp(-contrast * added)
    return np.rint(top * (1 - light)).astype(pixels.dtype)


def lung_field(pixels: np.ndarray, size: int) -> np.ndarray:
    """Lung of a film in 0..1, float32 [size, size], soft at its edge. ValueError if none is found.

    Where more than half of the film is black, it shows the lungs alone and they are what is not black. The lungs of
    a whole film are estimated: the dark regions inside the body. That finds most of one lung or of both and little
    else, but it is no segmentation; in hazy or cropped films (one in nine of ChestX-ray14) it finds nothing.
    """
    shown = pixels > BLACK * np.iinfo(pixels.dtype).max
    alone = shown.mean() < 0.5
    inside = resize(shown.astype(np.float32) if alone else _dark_regions(pixels), size)
    field = np.maximum(2 * inside - 1, 0)  # 0 where half of a pixel is outside, so that what is black stays black
    share = (field > 0.5).mean()
    if share < SMALLEST:
        what = "what is not black" if alone else "dark regions inside the body"
        raise ValueError(f"expected a lung field of at least {SMALLEST:.0%} of the image, found {share:.1%} ({what})")
    return field


def _dark_regions(pixels: np.ndarray) -> np.ndarray:
    """The largest area that one threshold cuts into one or two tall regions away from the edges of the film: float32
    [_GRID, _GRID] in 0..1, .5 at their edge."""
    gray = cv2.GaussianBlur(resize(pixels, _GRID).astype(np.float32), (0, 0), 1.5)
    edge, best = _GRID // 10, np.zeros(gray.shape, np.float32)
    for threshold in np.quantile(gray[edge:-edge, edge:-edge], np.arange(0.1, 0.65, 0.05)):
        dark = (gray < threshold).astype(np.uint8)
        _, parts, stats, centres = cv2.connectedComponentsWithStats(dark, connectivity=4)
        x, y, width, height, area = stats.T
        inner = (np.minimum(x, y) > 0) & (np.maximum(x + width, y + height) < _GRID)
        lungs = inner & (height > 0.25 * _GRID) & (area > 0.02 * _GRID**2)
        lungs[0] = False  # what is not dark
        keep = [k for k in np.argsort(-area) if lungs[k]][:2]
        if len(keep) == 2 and (centres[keep, 0] < _GRID / 2).sum() != 1:  # not one a side
            keep = keep[:1]
        if area[keep].sum() > best.sum():
            best = np.isin(parts, keep).astype(np.float32)
    closed = cv2.morphologyEx(best, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9)))
    return cv2.GaussianBlur(closed, (0, 0), 2)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _negatives(root: Path, problems: list[Problem]) -> tuple[list[Item], list[Path], int]:
    """The backgrounds, the tables read, and how many of the images that they list are missing."""
    if any((root / name).is_file() for name in rsna.TABLES):
        release, negative = rsna.read(rsna.Rsna(root, allow_missing=True), problems), (0,)
    elif any(path for name in nih.TABLES for path in root.glob(name)):
        options = nih.Nih(root, findings=("No Finding",), allow_missing=True)
        release, negative = nih.read(options, problems), (1,)
    elif (root / "labels.csv").is_file():
        release = folder.read(folder.Folder(root), problems)
        negative = (0,) * len(release.findings)
    else:
        return _every_image(root, problems), [], 0
    items = [dataclasses.replace(i, boxes=(), labels=()) for i in release.items if i.labels == negative]
    return items, release.tables, release.missing


def _every_image(root: Path, problems: list[Problem]) -> list[Item]:
    """Each its own patient, named by its path below `root`."""
    items, named, real = {}, {}, str(root.resolve())
    for path in sorted(itertools.chain(*lookup.index_images(root, "name").values())):
        name = path.relative_to(root).as_posix()
        try:
            image_id = lookup.safe_name(name)
            split = schema.hash_split(image_id)
            if not lookup.inside(path, real):
                raise ValueError(f"expected a file inside {root}, found a link to {os.path.realpath(path)}")
            item = items.setdefault(os.path.realpath(path), Item(image_id, image_id, split, (), path))
            if item.path != path:
                raise ValueError(f"expected each image once, found the same file as {item.image_id!r}")
            if (other := named.setdefault(image_id, name)) != name:
                raise ValueError(f"expected one file, found {lookup.one_name([other, name])}; keep one")
        except ValueError as error:
            problems.append(Problem(ascii(name), None, "image", str(error), normal(name)))
    return list(items.values())
