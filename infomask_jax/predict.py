"""A trained run on X-rays: of each the probabilities, maps and boxes; written to files with a picture to look at."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special

from infomask_jax import datasets, dicom_out, familiar, localize, report
from infomask_jax.datasets import schema
from infomask_jax.datasets.lookup import SUFFIXES
from infomask_jax.evaluate.scoring import FIXED_THRESHOLD
from infomask_jax.films import Films, find
from infomask_jax.inference import predicted_batches, save_maps
from infomask_jax.localize import of_finding
from infomask_jax.run import BASELINE, Run
from infomask_jax.system import lock, write_all, write_json
from infomask_jax.text import as_csv

PROBABLE = 0.5  # probability from which on boxes are drawn
AS_IS = ("infomask", "infomask_mean", "infomask_sd")  # maps in 0..1, drawn as they are; others are min-maxed
TOLD = 20  # films of which each is told on the screen
SCRATCH = ".building"  # folder in OUT of what is not whole yet
# What moves out of it before predictions.csv.
FIRST = ("maps.npz", "boxes.json", "boxes.csv", "pictures", "dicom", "skipped.csv")


class Batch(NamedTuple):
    """What a run says of some films."""

    films: list[int]  # their places among all that were given, [B]
    found: dict[str, np.ndarray]  # probability [B, K] float64, and float16 maps by method, [B, h, w, 1 or K]
    rates: np.ndarray  # [B, 2] bits of representation and mask
    spread: np.ndarray | None  # [B, K, 2], see `inference.sampled`
    boxes: list[dict]  # COCO detections, image_id counts the films that could be read
    panels: list[list]  # of each film, what `report.overlay` draws


def predicted_films(
    run: Run, films: Films, ids: Sequence[str], samples: int = 0, skip_bad: bool = False, progress: bool = True
) -> Iterator[Batch]:
    """The one way from films to what is told of them, a batch at a time: of the command and of api.py.

    ValueError, listing all films that cannot be read, at the first of them, or, with `skip_bad`, which leaves them out,
    where there are no others."""
    cuts, side, findings, first, done = thresholds(run), run.config.data.image_size, run.findings, 0, 0
    batches = predicted_batches(run.config, run.params, films, len(findings), None, samples, progress)
    for logits, maps, rates, spread in batches:
        if films.problems and not skip_bad:
            break
        good = [i for i in range(done, done + len(logits)) if i not in films.problems]
        rows, done = [i - done for i in good], done + len(logits)
        if not good:
            continue
        found = maps | {"probability": scipy.special.expit(logits.astype(np.float64))}
        found = {name: values[rows] for name, values in found.items()}
        names, sizes = [ids[i] for i in good], [films.sizes[i] for i in good]
        boxes, panels = find_boxes(found, report.drawn_method(maps), names, sizes, findings, cuts, side, first)
        first += len(good)
        yield Batch(good, found, rates[rows], None if spread is None else spread[rows], boxes, panels)
    if films.problems and not skip_bad:  # nothing will be told: what else cannot be read?
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(lambda i: films.decode(i) is None, range(done, len(films))):
                pass
    if films.problems and (not skip_bad or not first):
        raise ValueError(schema.describe([reason for _, reason in sorted(films.problems.items())]))


def predict_files(
    folder: Path, xrays: Sequence[Path], out: Path, skip_bad: bool = False, samples: int = 0, dicom: bool = False
) -> None:
    """Predict X-rays (files, and folders with their sub-folders), resized as `prepare` resizes them, with a finished
    run; write the folder `out`, whole or not at all, and print what was found:

      predictions.csv   image_id, height, width and, for each finding, probability and number of boxes
      maps.npz          image_id [N], findings [K], probability [N, K], float16 maps [N, h, w] or [N, h, w, K] by method
      boxes.json        COCO detections in pixels of the file, cut where the run was scored, else at .5; their image_id
                        counts the rows of predictions.csv from 0, their file_name is its image_id, their score the
                        peak of the map in the box (0..1, stretched over each film) times the probability
      boxes.csv         the same as a table
      pictures/         each film beside its map of each finding, with boxes where the finding is probable
      dicom/            if `dicom`, heat maps and boxes of films that were DICOM, see dicom_out.py
      skipped.csv       file and reason, if bad files were left out

    samples: draw so many of z and mask, see `inference.sampled`: mean and standard deviation of the probability in
    predictions.csv, of the mask in maps.npz. ValueError: an unfinished run, no X-ray, two of one name, an `out` that
    holds something or lies among the X-rays, or files that cannot be read, all of them listed, unless `skip_bad` leaves
    them out.
    """
    if dicom:
        dicom_out.check()
    run, out = Run.open(folder), Path(out)
    if out.exists() and (not out.is_dir() or {*out.iterdir()} - {*_leftovers(out)}):
        raise ValueError(f"--out: expected a new or an empty folder, found something in {out}; give another one")
    _, findings, paths = run.params, run.findings, find(xrays)  # what is wrong with the run is told first
    for asked in xrays:
        if Path(asked).resolve() in (out.resolve(), *out.resolve().parents):
            raise ValueError(f"--out: expected a folder outside of {asked}, which is searched for X-rays; found {out}")
    ids, films = list(paths), Films(list(paths.values()), stored_size(run))
    print(f"{run.folder}: {run.about}")
    kept, spreads, detections, notes, pictures = {}, [], [], {}, picture_names(ids)
    with _building(out) as scratch, ThreadPoolExecutor() as pool:
        try:
            for batch in predicted_films(run, films, ids, samples, skip_bad):
                for name, values in batch.found.items():
                    kept.setdefault(name, []).append(values)
                spreads += [] if batch.spread is None else [batch.spread]
                detections += batch.boxes
                drawn = [[those[i] for i in batch.films] for those in (pictures, ids)]
                shown = [films.shown.pop(i) for i in batch.films]
                list(pool.map(partial(_draw, scratch / "pictures"), *drawn, shown, batch.panels))
                for i, panel in zip(batch.films, batch.panels, strict=True) if dicom else ():
                    to = scratch / "dicom", ids[i], films.paths[i], films.sizes[i]
                    notes[ids[i]] = dicom_out.write(*to, findings, panel)
        except ValueError as error:
            if films.problems and not skip_bad:
                hint = "Mend them, or pass --skip-bad to leave them out and list them in skipped.csv."
                raise ValueError(f"{error}\n{hint}") from error
            raise
        kept_ids = [name for i, name in enumerate(ids) if i not in films.problems]
        arrays = {name: np.concatenate(kept.pop(name)) for name in list(kept)}  # there is memory for them once only
        probability, spread = arrays["probability"], np.concatenate(spreads) if spreads else None
        save_maps(scratch / "maps.npz", kept_ids, arrays | {"findings": np.array(findings)})
        write_json(scratch / "boxes.json", detections)
        write_all({scratch / "boxes.csv": report.boxes_table(detections)})
        _write_tables(scratch, kept_ids, films, probability, spread, findings, detections)
    dicom_out.tell(notes)
    _tell(run, out, kept_ids, films, probability)


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


def picture_names(ids: Sequence[str]) -> list[str]:
    """Of each picture, all different: a.png of a.jpg, or, where another film would have it, too, a.jpg.png."""
    short = [name[: -len(Path(name).suffix)] if name.lower().endswith(SUFFIXES) else name for name in ids]
    count, taken = Counter(short), {*ids}
    return [f"{s if count[s] == 1 and (s == i or s not in taken) else i}.png" for s, i in zip(short, ids, strict=True)]


def unlike_films(run: Run, films: Films) -> dict[int, str]:
    """How films, by their places, are unlike those that the run was trained on; of a run of before, none."""
    if not (facts := run.manifest.get("films")):
        return {}
    told = {i: familiar.unlike(facts, each, films.sizes[i]) for i, each in sorted(films.thumbnails.items())}
    return {i: how for i, how in told.items() if how}


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
            caption = f"{name}: p = {p[j]:.3f}"
            panels[j].append((caption, drawn_map(drawn, heat[j]), report.unit_boxes(own, *size)))
        detections += boxes
    return detections, panels


def drawn_map(method: str, heat: np.ndarray) -> np.ndarray:
    """A map [h, w] as it is drawn, in 0..1."""
    return heat if method in AS_IS else localize.normalise(heat)


def _draw(folder: Path, picture: str, image_id: str, film: np.ndarray, panels: list) -> None:
    path = folder / picture
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(report.overlay(film, image_id, panels))


def _write_tables(
    folder: Path,
    ids: list[str],
    films: Films,
    probability: np.ndarray,
    spread: np.ndarray | None,
    findings: list[str],
    detections: list[dict],
) -> None:
    """predictions.csv and, if files were left out, skipped.csv."""
    boxes = Counter((box["file_name"], box["category"]) for box in detections)
    sizes = [films.sizes[i] for i in range(len(films)) if i not in films.problems]
    drawn = [] if spread is None else ["probability mean", "probability sd"]
    rows = [["image_id", "height", "width", *(f"{n} {what}" for n in findings for what in ("probability", "boxes"))]]
    rows[0] += [f"{name} {what}" for name in findings for what in drawn]
    for i, (image_id, size, probabilities) in enumerate(zip(ids, sizes, probability, strict=True)):
        pairs = [(f"{p:.6g}", boxes[image_id, name]) for name, p in zip(findings, probabilities, strict=True)]
        of_samples = [] if spread is None else [f"{value:.6g}" for value in spread[i].ravel()]
        rows.append([image_id, *size, *(cell for pair in pairs for cell in pair), *of_samples])
    (folder / "predictions.csv").write_text(as_csv(rows), encoding="utf-8")
    if films.problems:
        skipped = [(films.paths[i], reason) for i, reason in sorted(films.problems.items())]
        (folder / "skipped.csv").write_text(as_csv([("file", "reason"), *skipped]), encoding="utf-8")


def _tell(run: Run, out: Path, ids: list[str], films: Films, probability: np.ndarray) -> None:
    for image_id, probabilities in zip(ids[:TOLD], probability, strict=False):
        parts = [f"{name} {p:.3f}" for name, p in zip(run.findings, probabilities, strict=True)]
        print(f"  {image_id}: {', '.join(parts)}")
    if len(ids) > TOLD:
        print(f"  ... and {len(ids) - TOLD} more")
    for name, count in zip(run.findings, (probability >= PROBABLE).sum(axis=0), strict=True):
        print(f"{name}: probable (p >= {PROBABLE}) on {count} of {len(ids)} X-rays")
    if films.problems:
        print(f"left out: {len(films.problems)} files, see {out / 'skipped.csv'}")
    if "films" not in run.manifest:
        print("it is of an older version, which kept no picture of its films: films unlike them are not noticed")
    for caution in report.read_cautions(run.folder / "eval" / "test.json"):
        print(f"when it was scored: {caution}")
    if unlike := unlike_films(run, films):
        i, how = next(iter(unlike.items()))
        print(f"warning: {tell_unlike(len(unlike), len(ids))}, such as {films.paths[i]} ({how})")
    print(f"written: {out}")


def tell_unlike(count: int, among: int) -> str:
    expected = f"{100 - familiar.PERCENT} in 100 of its own"
    return f"unlike those that the run was trained on: {count} of {among} X-rays ({expected} would be)"
