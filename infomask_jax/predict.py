"""A trained run on X-rays from files: of each the probabilities, maps and boxes, and a picture to look at."""

import contextlib
import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import scipy.special

from infomask_jax import checkpoint, experiment, localize, report
from infomask_jax.datasets import images, schema
from infomask_jax.datasets.images import BadImage
from infomask_jax.evaluate.scoring import FIXED_THRESHOLD
from infomask_jax.manifest import write_json

PROBABLE = 0.5  # probability from which on boxes are drawn
TOLD = 20  # films of which each is told on the screen


class Films:
    """X-ray files as a source of `pipeline.eval_batches`: decoded, and squared as `prepare` does it, when asked for.

    Once film i has been asked for, `sizes[i]` is its (height, width) and `shown[i]` uint8 [H, W] to draw on, or
    `problems[i]` says why it cannot be read.
    """

    def __init__(self, paths: Sequence[Path], size: int):
        self.paths, self.size = paths, size
        self.sizes, self.shown, self.problems = {}, {}, {}
        self._first = None

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> dict:
        if i == 0 and self._first:  # with which batches are padded
            return self._first
        try:
            film = images.decode(self.paths[i])
            self.sizes[i], self.shown[i] = film.shape, report.shrink(film)
        except BadImage as error:
            film, self.problems[i] = np.zeros((1, 1), np.uint8), str(error)
        example = {"image": images.encode(images.resize(film, self.size)), "labels": np.zeros(0)}
        if i == 0:
            self._first = example
        return example


def predict_files(run: Path, xrays: Sequence[Path], out: Path, skip_bad: bool = False) -> None:
    """Predict X-rays, resized as `prepare` resizes them, with a finished run; write the folder `out`, whole or not at
    all, and print what was found:

      predictions.csv   image_id, height, width and, for each finding, probability and number of boxes
      maps.npz          image_id [N], findings [K], probability [N, K], float16 maps [N, h, w] or [N, h, w, K] by method
      boxes.json        COCO detections in pixels of the file, cut at the threshold that the run was scored with
      pictures/         each film beside its map of each finding, with boxes where the finding is probable
      skipped.csv       file and reason, if bad files were left out

    Args:
      xrays: PNG, JPEG or DICOM files, and folders: all of them in it and its sub-folders.
      skip_bad: leave out files that cannot be read, in place of stopping.

    Raises:
      ValueError: an unfinished run, no X-ray, two of one name, something in `out`, or files that cannot be read, all of
        them listed.
    """
    run, out = Path(run), Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out: expected a new or an empty folder, found something in {out}; give another one")
    config, params = checkpoint.finished(run)
    facts = json.loads((run / "manifest.json").read_text())
    findings, cuts, side = facts["dataset"]["findings"], thresholds(run), config.data.image_size
    if "stored_size" not in facts:
        print(f"{run} was made by a version that did not note the size of prepared images: films go straight to {side}")
    paths = find(xrays)
    ids, films = list(paths), Films(list(paths.values()), facts.get("stored_size", side))
    done, kept, detections = 0, {"image_id": []}, []
    with _building(out) as scratch, ThreadPoolExecutor() as pool:
        for logits, maps in experiment.predicted_batches(config, params, films, len(findings)):
            good = [i for i in range(done, done + len(logits)) if i not in films.problems]
            rows, done = [i - done for i in good], done + len(logits)
            if films.problems and not skip_bad:
                films.shown.clear()
                continue  # nothing will be written: only what else cannot be read is still to be found
            drawn = experiment.DRAWN if experiment.DRAWN in maps else next(iter(maps))
            found = {"probability": scipy.special.expit(logits.astype(np.float64))} | maps
            found = {name: values[rows] for name, values in found.items()} | {"image_id": [ids[i] for i in good]}
            for name, values in found.items():
                kept.setdefault(name, []).extend(values)
            boxes, panels = find_boxes(found, drawn, [films.sizes[i] for i in good], findings, cuts, side)
            detections += boxes
            shown = [films.shown.pop(i) for i in good]
            list(pool.map(partial(_draw, scratch / "pictures"), found["image_id"], shown, panels))
        if films.problems and (not skip_bad or len(films.problems) == len(films)):
            hint = "" if skip_bad else "\nMend them, or pass --skip-bad to leave them out and list them in skipped.csv."
            raise ValueError(f"{schema.describe(list(films.problems.values()))}{hint}")
        _write(scratch, kept, films, findings, detections)
    _tell(out, kept, films, findings)


def find(xrays: Sequence[Path]) -> dict[str, Path]:
    """{image_id: file}: of a file its name, of those in a folder their place in it. ValueError where there is none, or
    two different files have one name. Prints how many files of other kinds folders hold."""
    if not xrays:
        raise ValueError("expected X-rays or folders of them after the RUN, found none")
    found, clashes = {}, []
    for given in map(Path, xrays):
        files = [given]
        if given.is_dir():
            index = schema.index_images(given, "name", images.SUFFIXES)
            files = sorted(path for those in index.values() for path in those)
            others = sum(len(names) for _, _, names in os.walk(given)) - len(files)
            if others:
                kinds = ", ".join(images.SUFFIXES)
                print(f"{given}: {others} files left out whose names do not end in {kinds}; name X-rays among them")
            if not files:
                raise ValueError(f"{given}: expected X-rays ({', '.join(images.SUFFIXES)}), found none in this folder")
        for path in files:
            image_id = path.relative_to(given).as_posix() if given.is_dir() else path.name
            if os.path.realpath(found.setdefault(image_id, path)) != os.path.realpath(path):
                clashes.append(f"{found[image_id]} and {path} are both {image_id}")
    if clashes:
        lines = "\n  ".join(clashes[:TOLD])
        raise ValueError(f"expected names that differ; give the folder above them, or rename:\n  {lines}")
    return found


def thresholds(run: Path) -> dict[str, dict[str, float]]:
    """{finding: {method: threshold}} as the run was scored, on the test split if it was on several; {} if on none."""
    for split in ("test", "val", "train"):
        if (path := run / "eval" / f"{split}.json").exists():
            rows = json.loads(path.read_text())["localization"]
            return {name: {m: e["threshold"]["value"] for m, e in methods.items()} for name, methods in rows.items()}
    print(f"{run} was not scored: boxes are cut at {FIXED_THRESHOLD}; `python -m infomask_jax evaluate` tunes that")
    return {}


@contextlib.contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all has gone well, and is gone otherwise."""
    scratch = out.with_name(f".{out.name}.building")
    shutil.rmtree(scratch, ignore_errors=True)  # of an earlier call that was killed
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_boxes(found: dict, drawn: str, sizes: list, findings: list[str], cuts: dict, side: int) -> tuple[list, list]:
    """COCO detections of a batch, and of each image what `report.overlay` draws of each finding."""
    detections, panels = [], [[] for _ in sizes]
    for k, name in enumerate(findings):
        heat, p = found[drawn][..., min(k, found[drawn].shape[-1] - 1)], found["probability"][:, k]
        cut, ids = cuts.get(name, {}).get(drawn, FIXED_THRESHOLD), found["image_id"]
        boxes = localize.detections(ids, heat, sizes, cut, (side, side), k, name, p)
        for j, size in enumerate(sizes):
            own = [box["bbox"] for box in boxes if box["image_id"] == ids[j] and p[j] >= PROBABLE]
            shown = heat[j] if drawn == experiment.DRAWN else localize.normalise(heat[j])
            panels[j].append((f"{name}: p = {p[j]:.3f}", shown, report.unit_boxes(own, *size)))
        detections += boxes
    return detections, panels


def _draw(folder: Path, image_id: str, film: np.ndarray, panels: list) -> None:
    path = folder / (image_id if image_id.endswith(".png") else f"{image_id}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(report.overlay(film, image_id, panels))


def _write(folder: Path, kept: dict, films: Films, findings: list[str], detections: list[dict]) -> None:
    """Everything but the pictures."""
    maps = {name: np.array(values) for name, values in kept.items() if name != "image_id"}
    maps = {name: a[..., 0] if a.ndim == 4 and a.shape[-1] == 1 else a for name, a in maps.items()}
    experiment.save_maps(folder / "maps.npz", kept["image_id"], maps | {"findings": np.array(findings)})
    write_json(folder / "boxes.json", detections)
    boxes = Counter((box["image_id"], box["category"]) for box in detections)
    sizes = [films.sizes[i] for i in range(len(films)) if i not in films.problems]
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{name} {what}" for name in findings for what in ("probability", "boxes")]
        writer.writerow(["image_id", "height", "width", *columns])
        for image_id, size, probabilities in zip(kept["image_id"], sizes, kept["probability"], strict=True):
            cells = [(f"{p:.6g}", boxes[image_id, name]) for name, p in zip(findings, probabilities, strict=True)]
            writer.writerow([image_id, *size, *(cell for pair in cells for cell in pair)])
    if films.problems:
        with (folder / "skipped.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "reason"])
            writer.writerows((films.paths[i], reason) for i, reason in sorted(films.problems.items()))


def _tell(out: Path, kept: dict, films: Films, findings: list[str]) -> None:
    """What was found, on the screen."""
    count = len(kept["image_id"])
    for image_id, probabilities in zip(kept["image_id"][:TOLD], kept["probability"], strict=False):
        parts = [f"{name} {p:.3f}" for name, p in zip(findings, probabilities, strict=True)]
        print(f"  {image_id}: {', '.join(parts)}")
    if count > TOLD:
        print(f"  ... and {count - TOLD} more")
    for k, name in enumerate(findings):
        probable = sum(p[k] >= PROBABLE for p in kept["probability"])
        print(f"{name}: probable (p >= {PROBABLE}) on {probable} of {count} X-rays")
    if films.problems:
        print(f"left out: {len(films.problems)} files, see {out / 'skipped.csv'}")
    print(f"written: {out}")
