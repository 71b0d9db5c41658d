"""Raw releases -> prepared data sets, and back: `prepare(options)` writes one, `load(name, data_dir)` opens it."""

import multiprocessing
import os
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from infomask_jax import command
from infomask_jax.datasets import build, folder, images, implanted, nih, rsna, schema, store
from infomask_jax.datasets.folder import Folder
from infomask_jax.datasets.folds import fingerprint as fingerprint
from infomask_jax.datasets.folds import fold
from infomask_jax.datasets.images import BadImage
from infomask_jax.datasets.nih import Nih
from infomask_jax.datasets.rsna import Rsna
from infomask_jax.datasets.schema import BadData, Item, Problem, Release
from infomask_jax.datasets.store import Prepared, load
from infomask_jax.datasets.synthetic import PhantomConfig, render
from infomask_jax.pixels import encode, resize
from infomask_jax.system import cores, lock

LARGEST = 4096  # side of a stored image, pixels
FAR = 10_000_000  # first index of val; test begins at twice that: neither changes with the number of training images


@dataclass(frozen=True)
class Synthetic(PhantomConfig, schema.Options):
    """Prepares the procedural chest phantom (finding: opacity, with boxes, pixel masks and lung fields).

    With --backgrounds its opacities are implanted into real negative radiographs instead: the data set "implanted".
    """

    backgrounds: Path | None = None
    """Folder of real radiographs WITHOUT opacities (PNG, JPEG, DICOM, any sub-folders): lungs alone, all else black, or
    whole films, whose lungs are then estimated. If it has the tables of a release (see prepare rsna, nih, folder), only
    the images that they call negative are used, in their splits; otherwise every image, each as a patient of its own.
    Each is used once, or --draws times."""
    draws: int = 1
    """Images made of each training background, each with a coin and opacities of its own."""
    contrast: float | None = None
    """Attenuation, as -log of the light let through, at the heart of an opacity; if None 0.35, with backgrounds 0.25.
    (ours)"""
    train: int | None = None
    """Training images; if None 6144, with backgrounds as many as there are. (ours)"""
    val: int | None = None
    """Validation images; if None 512, with backgrounds as many as there are. (ours)"""
    test: int | None = None
    """Test images; if None 512, with backgrounds as many as there are. (ours)"""
    workers: int = 0
    """Processes that draw, the same images whatever their number; 0: one a core."""


def of_run(config) -> Prepared:
    """The prepared data that a run of this Config is trained on, in its folds if it has any."""
    data = load(config.dataset, config.data_dir)
    return data if config.folds == 1 else fold(data, config.folds, config.fold)


OPTIONS = {"synthetic": Synthetic, "rsna": Rsna, "nih": Nih, "folder": Folder}


def prepare(options: Synthetic | Rsna | Nih | Folder) -> Prepared:
    """Prepares a data set under options.data_dir, if it is not there, and prints what is in it. BadData lists all
    problems of a release, or how what is there differs from the options."""
    name = next(name for name, kind in OPTIONS.items() if isinstance(options, kind))
    if name == "synthetic":
        name, options = _resolve(options)
    if not 1 <= options.size <= LARGEST:
        raise BadData(f"size: expected 1..{LARGEST} pixels, found {options.size}")
    root = options.data_dir.absolute() / name
    build.clear(root)
    prepared = _already(name, options)  # also where nothing can be written
    if prepared is None:
        with lock(root, "another prepare is at work here; wait for it"):
            prepared = _already(name, options) or _build(name, options)
    store.print_summary(prepared)
    return prepared


def _resolve(options: Synthetic) -> tuple[str, Synthetic]:
    if options.backgrounds is None and options.draws != 1:
        raise BadData(f"--draws: expected 1 without --backgrounds, found {options.draws}")
    if not 1 <= options.draws <= 1000:
        raise BadData(f"--draws: expected 1 to 1000, found {options.draws}")
    if options.backgrounds is not None and options.shortcut:
        raise BadData(f"--shortcut: expected 0 with --backgrounds, which draws no marker; found {options.shortcut}")
    name, defaults = "synthetic", vars(PhantomConfig())
    if options.backgrounds is not None:
        name, defaults = "implanted", {"contrast": implanted.CONTRAST}
    return name, replace(options, **{k: v for k, v in defaults.items() if getattr(options, k) is None})


def _already(name: str, options) -> Prepared | None:
    """What is there and asked for; None if it is to be built."""
    if options.overwrite or not (options.data_dir / name / store.VERSION).exists():
        return None
    prepared = load(name, options.data_dir)
    if lines := store.differences(prepared, options):
        hint = "take another --data-dir, or replace it with --overwrite"
        raise BadData("\n  ".join([f"{prepared.directory}: already holds a different data set; {hint}:", *lines]))
    print(f"{name} is already prepared.")
    return prepared


def _build(name: str, options) -> Prepared:
    if not isinstance(options, Synthetic):
        if not options.source.is_dir():
            raise BadData(f"--source: expected the folder of the release, found no folder {options.source}")
        read = {"rsna": rsna.read, "nih": nih.read, "folder": folder.read}[name]
        with ThreadPoolExecutor(cores()) as pool:  # the decoders release the interpreter lock
            return build.build(name, options, read, pool, partial(_from_file, size=options.size), cores())
    read, draw = (_phantoms, _draw) if name == "synthetic" else (implanted.read, implanted.draw)
    jobs = options.workers or cores()
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with running threads can hang
    try:
        with ProcessPoolExecutor(jobs, spawn, initializer=_follow_parent) as pool:
            with command.deaf():  # Ctrl-C is the parent's to handle
                for _ in range(jobs):  # each starts one
                    pool.submit(int)
            return build.build(name, options, read, pool, partial(draw, config=options), jobs)
    except BrokenExecutor as error:
        raise OSError("a process that draws was killed (memory?); try fewer --workers") from error


def _from_file(item: Item, size: int) -> dict:
    try:
        film = images.decode(item.path)
    except BadImage as error:
        return {"problems": [Problem(item.file, item.row, "image", str(error), item.image_id)]}
    height, width = item.frame or film.shape
    problems, boxes = [], []
    for box in item.boxes:
        try:
            boxes.append(schema.unit_box(box.xywh, height, width))
        except ValueError as error:
            problems.append(box.problem(error, "box"))
    pixels = resize(film, size)
    boxes, findings = np.array(boxes, np.float32).reshape(-1, 4), [box.finding for box in item.boxes]
    made = {"pixels": pixels, "image": encode(pixels), "mask": b"", "lung": b"", "height": height, "width": width}
    return made | {"boxes": boxes, "box_findings": findings, "problems": problems}


def _phantoms(options: Synthetic, problems: list[Problem]) -> Release:
    items = []
    for split, first in (("train", 0), ("val", FAR), ("test", 2 * FAR)):
        count = getattr(options, split)
        if not 0 <= count <= FAR:
            raise BadData(f"{split}: expected 0 to {FAR} images, found {count}")
        items += [Item(f"{i:08d}", f"{i:08d}", split, ()) for i in range(first, first + count)]
    return Release(("opacity",), items, [])


def _draw(item: Item, config: PhantomConfig) -> dict:
    drawn = render(config.seed, int(item.image_id), config)
    made = {"pixels": drawn["image"], **{name: encode(drawn[name]) for name in ("image", "mask", "lung")}}
    made |= {"labels": (drawn["label"],), "boxes": drawn["boxes"], "problems": []}
    return made | {"box_findings": ["opacity"] * len(drawn["boxes"]), "height": config.size, "width": config.size}


def _follow_parent() -> None:
    """A parent that is killed cannot stop its workers: they watch it."""

    def watch():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
