"""Scores as they were written, read again: ValueError names the file and the field that is not as it was."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import numpy as np

from infomask_jax import npz
from infomask_jax.localize import four_axes
from infomask_jax.report.figures import DRAWN
from infomask_jax.system import NUMBER, read_json
from infomask_jax.text import csv_cell

HINT = "evaluate the run again"
VALUE = {"value": NUMBER | None, "ci95?": (NoneType, [NUMBER, NUMBER])}
LEVELS = {str: VALUE}
CUTS = (NUMBER | None, [NUMBER], {"tuned?": NUMBER | None, str: NUMBER | str | None})
THRESHOLD = {"value": CUTS, "tuned_on": str, "confidence?": (NoneType, VALUE)}
SCORE = (NUMBER | None, LEVELS, VALUE)
METHOD = {"threshold": THRESHOLD, "protocols?": {str: {"threshold": THRESHOLD, str: SCORE}}, str: SCORE}
CLASSIFIER = {"auroc": VALUE | {"n": int}, "auprc?": VALUE, "ece?": VALUE, "brier?": VALUE, "prevalence": NUMBER | None}
CLASSIFIER |= {"auroc_within_view?": VALUE, "auroc_of_view?": NUMBER}
SCORES = {"dataset": str, "split": str, "n_images": int, "n_boxed_images": int, "frame": int}  # else: a KeyError
SCORES |= {"classification": {str: CLASSIFIER}, "classification_plain?": {str: CLASSIFIER}}
SCORES |= {"counts": {str: {"positive": int, "unknown": int}}, "localization": {str: {str: METHOD}}}
SCORES |= {"mean_boxes_from": {str: str}, "notes?": [str], "files?": {str: int}, "differences?": {str: {str: LEVELS}}}
SCORES |= {"faithfulness?": {str: {str: {"deletion": VALUE, "insertion": VALUE}}}, "verdict?": [str]}
GROUPS = ("positive?", "positive_without_lesion?", "negative?")
GROUP = {"images": int, "area": LEVELS, str: {"total": VALUE, "shares": LEVELS, "over_area": LEVELS}}
AUDIT = {"dataset": str, "split": str, "n_images": int, "n_images_without_lung": int, "lung_from": str}
AUDIT |= {"findings": {str: {"counts": {str: int}, **dict.fromkeys(GROUPS, GROUP), str: VALUE}}}
BOXES = [{"image_id": int | str, "file_name?": str, "category": str, "bbox": [NUMBER] * 4}]


def read_scores(path: Path) -> dict:
    """eval/SPLIT.json. FileNotFoundError if the split was not scored."""
    return read_json(scored(path), SCORES, HINT)


def read_thresholds(path: Path) -> dict[str, dict]:
    """Of eval/SPLIT.json, {finding: {method: {"threshold": {"value"}}}}; the value of boxes and ceilings is None."""
    drawn = {f"{method}?": {"threshold": {"value": NUMBER}} for method in DRAWN}
    shape = {"localization": {str: {**drawn, str: {"threshold": {"value": NUMBER | None}}}}}
    return read_json(path, shape, HINT)["localization"]


def read_cautions(path: Path) -> list[str]:
    """What an eval/SPLIT.json, if there is one, says against its run: all but the first line of its verdict."""
    return read_json(path, {"verdict?": [str]}, HINT).get("verdict", [])[1:] if path.exists() else []


def read_boxes(path: Path) -> list[dict]:
    """boxes/SPLIT.json."""
    return read_json(scored(path), BOXES, HINT)


def read_probabilities(path: Path, findings: list[str], ids: list[str]) -> np.ndarray:
    """predictions/SPLIT.csv: [N, K] of the findings in their order. ValueError if its rows are not of the images
    `ids`, in this order."""
    with scored(path).open(newline="", encoding="utf-8") as file, shown(path):
        columns, rows = [csv_cell(f"{name} probability") for name in findings], [*csv.DictReader(file)]
        if [row["image_id"] for row in rows] != [csv_cell(image) for image in ids]:
            raise ValueError(f"expected a row for each image of maps/{path.stem}.npz, in its order")
        return np.array([[float(row[column]) for column in columns] for row in rows])


def read_maps(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """maps/SPLIT.npz: image_id [N], and by method maps [N, h, w, M], of which one at least is drawn."""
    maps = npz.read(scored(path))
    if "image_id" not in maps or not maps.keys() & {*DRAWN}:
        raise ValueError(f"{path}: expected image_id and one of {', '.join(DRAWN)}, found {', '.join(maps)}; {HINT}")
    with shown(path):
        ids = list(map(str, maps.pop("image_id")))
        return ids, {name: four_axes(array) for name, array in maps.items() if name not in ("findings", "probability")}


@contextlib.contextmanager
def shown(path: Path) -> Iterator[None]:
    """Around the use of a file's contents: what is damaged, or does not fit the rest, is an error that names it."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration, ValueError, csv.Error) as error:
        if str(error).startswith(str(path.parent)):  # it is named already
            raise
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {HINT}") from error


def scored(path: Path) -> Path:
    """The path. FileNotFoundError if nothing is there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: score this split first, with python -m infomask_jax evaluate")
    return path
