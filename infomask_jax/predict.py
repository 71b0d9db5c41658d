"""A trained run on X-rays from files: of each the probabilities, maps and boxes, and a picture to look at."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import scipy.special

from infomask_jax import datasets, dicom_out, localize, report
from infomask_jax.datasets import schema
from infomask_jax.evaluate.scoring import FIXED_THRESHOLD
from infomask_jax.films import Films, find
from infomask_jax.inference import predicted_batches, save_maps
from infomask_jax.localize import of_finding
from infomask_jax.run import BASELINE, Run
from infomask_jax.system import lock, write_json
from infomask_jax.text import as_csv

PROBABLE = 0.5  # probability from which on boxes are drawn
TOLD = 20  # films of which each is told on the screen
SCRATCH = ".building"  # folder in OUT of what is not whole yet
FIRST = ("maps.npz", "boxes.json", "pictures", "dicom", "skipped.csv")  # what moves out of it before predictions.csv


def predict_files(folder: Path, xrays: Sequence[Path], out: Path, skip_bad: bool = False, dicom: bool = False) -> None:
    """Predict X-rays (files, and folders with their sub-folders), resized as `prepare` resizes them, with a finished
    run; write the folder `out`, whole or not at all, and print what was found:

      predictions.csv   image_id, height, width and, for each finding, probability and number of boxes
      maps.npz          image_id [N], findings [K], probability [N, K], float16 maps [N, h, w] or [N, h, w, K] by method
      boxes.json        COCO detections in pixels of the file, cut where the run was scored, else at .5; their image_id
                        counts the rows of predictions.csv from 0, their file_name is its image_id
      pictures/         each film beside its map of each finding, with boxes where the finding is probable
      dicom/            if `dicom`, heat maps and boxes of films that were DICOM, see dicom_out.py
      skipped.csv       file and reason, if bad files were left out

    ValueError: an unfinished run, no X-ray, two of one name, an `out` that holds something or lies among the X-rays, or
    files that cannot be read, all of them listed, unless `skip_bad` leaves them out.
    """
    if dicom:
        dicom_out.check()
    run, out = Run.open(folder), Path(out)
    if out.exists() and (not out.is_dir() or {*out.iterdir()} - {*_leftovers(out)}):
        raise ValueError(f"--out: expected a new or an empty folder, found something in {out}; give another one")
    params, findings, side, paths = run.params, run.findings, run.config.data.image_size, find(xrays)
    for asked in xrays:
        if Path(asked).resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(f"--out: expected a folder outside of {asked}, which is searched for X-rays; found {out}")
    cuts, ids, films = thresholds(run), list(paths), Films(list(paths.values()), stored_size(run))
    done, kept, detections, notes = 0, {}, [], {}
    with _building(out) as scratch, ThreadPoolExecutor() as pool:
        for logits, maps, _ in predicted_batches(run.config, params, films, len(findings)):
            if films.problems and not skip_bad:
                break
            good = [i for i in range(done, done + len(logits)) if i not in films.problems]
            rows, done = [i - done for i in good], done + len(logits)
            if not good:
                continue
            drawn, first = report.drawn_method(maps), sum(map(len, kept.get("probability", ())))
            found = maps | {"probability": scipy.special.expit(logits.astype(np.float64))}
            found = {name: values[rows] for name, values in found.items()}
            for name, values in found.items():
                kept.setdefault(name, []).append(values)
            names, sizes, shown = zip(*[(ids[i], films.sizes[i], films.shown.pop(i)) for i in good], strict=True)
            boxes, panels = find_boxes(found, drawn, names, sizes, findings, cuts, side, first)
            detections += boxes
            list(pool.map(partial(_draw, scratch / "pictures"), names, shown, panels))
            for name, i, panel in zip(names, good, panels, strict=True) if dicom else ():
                notes[name] = dicom_out.write(scratch / "dicom", name, films.paths[i], films.sizes[i], findings, panel)
        if films.problems and not skip_bad:  # nothing will be written: what else cannot be read?
            for _ in pool.map(lambda i: films.decode(i) is None, range(done, len(films))):
                pass
        problems = [reason for _, reason in sorted(films.problems.items())]
        if problems and (not skip_bad or len(problems) == len(films)):
            hint = "" if skip_bad else "\nMend them, or pass --skip-bad to leave them out and list them in skipped.csv."
            raise ValueError(f"{schema.describe(problems)}{hint}")
        kept_ids = [name for i, name in enumerate(ids) if i not in films.problems]
        arrays = {name: np.concatenate(kept.pop(name)) for name in list(kept)}  # there is memory for them once only
        probability = arrays["probability"]
        save_maps(scratch / "maps.npz", kept_ids, arrays | {"findings": np.array(findings)})
        write_json(scratch / "boxes.json", detections)
        _write_tables(scratch, kept_ids, films, probability, findings, detections)
    dicom_out.tell(notes)
    _tell(out, kept_ids, films, probability, findings)


def stored_size(run: Run) -> int:
    """Side of the images that the run was trained and scored on, as prepared; where neither the run nor its data tells
    it, what its model takes, and a line that says so."""
    if "stored_size" in run.manifest:
        return run.manifest["stored_size"]
    with contextlib.suppress(FileNotFoundError):
        data = datasets.of_run(run.config)
        if data.fingerprint == run.fingerprint:
            return data.size
    side, told = run.config.data.image_size, "does not tell the size of its prepared images, nor is its data here"
    print(f"{run.folder} {told}: films go straight to {side} px")
    return side


def thresholds(run: Run) -> dict[str, dict[str, float]]:
    """{finding: {method: threshold}} as the run was scored, on the test split if it was on several; tells which
    findings have none."""
    found, folder = {}, run.folder.resolve()
    if folder.name == BASELINE and (folder.parent / "config.json").exists():
        folder = folder.parent  # a plain classifier is scored with its run
    for split in ("train", "val", "test"):
        if (path := folder / "eval" / f"{split}.json").exists():
            found = report.read_thresholds(path)
    if missing := [name for name in run.findings if name not in found]:
        how = "not scored on boxes (`python -m infomask_jax evaluate` does that where there are boxes)"
        print(f"{', '.join(missing)}: {how}: its maps are cut at {FIXED_THRESHOLD}")
    return {name: {m: e["threshold"]["value"] for m, e in methods.items()} for name, methods in found.items()}


def _leftovers(out: Path) -> list[Path]:
    """What a predict that was killed has left in `out`: SCRATCH, and what had moved up before predictions.csv."""
    if not (out / SCRATCH).exists():
        return []
    return [out / SCRATCH, *([] if (out / "predictions.csv").exists() else [out / name for name in FIRST])]


@contextlib.contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A folder in `out` whose contents move up when all has gone well; otherwise they are gone, and `out`, too, if it
    is new. Takes away what a killed predict has left; BlockingIOError while another one is at work."""
    new, scratch = not out.exists(), out / SCRATCH
    try:
        with lock(scratch, "another predict is at work here; wait for it, or give another --out"):
            try:
                for path in _leftovers(out) + list(scratch.iterdir()):
                    if path != scratch and path.name != ".lock":
                        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                yield scratch
                for path in sorted(scratch.iterdir(), key=lambda path: path.name == "predictions.csv"):
                    if path.name != ".lock":
                        path.rename(out / path.name)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            scratch.rmdir()
        if new and out.exists() and not any(out.iterdir()):
            out.rmdir()


def find_boxes(
    found: dict, drawn: str, ids: Sequence, sizes: Sequence, findings: Sequence, cuts: dict, side: int, first: int = 0
) -> tuple[list[dict], list[list]]:
    """COCO detections of a batch, and of each image what `report.overlay` draws of each finding.

    Args:
      found: probability [B, K] and, under the name `drawn`, maps [B, h, w, 1 or K]. ids, sizes: of the B files.
      cuts: see `thresholds`. side: of the square in which maps are cut, pixels. first: number of the first image.
    """
    detections, panels = [], [[] for _ in ids]
    for k, name in enumerate(findings):
        heat, p = of_finding(found[drawn], k), found["probability"][:, k]
        cut = cuts.get(name, {}).get(drawn, FIXED_THRESHOLD)
        boxes = localize.detections(ids, heat, sizes, cut, (side, side), k, name, p, first)
        for j, size in enumerate(sizes):
            own = [box["bbox"] for box in boxes if box["image_id"] == first + j and p[j] >= PROBABLE]
            shown = heat[j] if drawn == "infomask" else localize.normalise(heat[j])
            panels[j].append((f"{name}: p = {p[j]:.3f}", shown, report.unit_boxes(own, *size)))
        detections += boxes
    return detections, panels


def _draw(folder: Path, image_id: str, film: np.ndarray, panels: list) -> None:
    path = folder / f"{image_id}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(report.overlay(film, image_id, panels))


def _write_tables(
    folder: Path, ids: list[str], films: Films, probability: np.ndarray, findings: list[str], detections: list[dict]
) -> None:
    """predictions.csv and, if files were left out, skipped.csv."""
    boxes = Counter((box["file_name"], box["category"]) for box in detections)
    sizes = [films.sizes[i] for i in range(len(films)) if i not in films.problems]
    columns = [f"{name} {what}" for name in findings for what in ("probability", "boxes")]
    rows = [["image_id", "height", "width", *columns]]
    for image_id, size, probabilities in zip(ids, sizes, probability, strict=True):
        cells = [(f"{p:.6g}", boxes[image_id, name]) for name, p in zip(findings, probabilities, strict=True)]
        rows.append([image_id, *size, *(cell for pair in cells for cell in pair)])
    (folder / "predictions.csv").write_text(as_csv(rows), encoding="utf-8")
    if films.problems:
        skipped = [(films.paths[i], reason) for i, reason in sorted(films.problems.items())]
        (folder / "skipped.csv").write_text(as_csv([("file", "reason"), *skipped]), encoding="utf-8")


def _tell(out: Path, ids: list[str], films: Films, probability: np.ndarray, findings: list[str]) -> None:
    for image_id, probabilities in zip(ids[:TOLD], probability, strict=False):
        parts = [f"{name} {p:.3f}" for name, p in zip(findings, probabilities, strict=True)]
        print(f"  {image_id}: {', '.join(parts)}")
    if len(ids) > TOLD:
        print(f"  ... and {len(ids) - TOLD} more")
    for name, count in zip(findings, (probability >= PROBABLE).sum(axis=0), strict=True):
        print(f"{name}: probable (p >= {PROBABLE}) on {count} of {len(ids)} X-rays")
    if films.problems:
        print(f"left out: {len(films.problems)} files, see {out / 'skipped.csv'}")
    print(f"written: {out}")
