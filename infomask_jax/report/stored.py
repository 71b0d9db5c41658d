"""Scores as they were written, read again: ValueError names the file and the field that is not as it was."""

import contextlib
import csv
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType

import numpy as np

from infomask_jax import npz
from infomask_jax.report.figures import DRAWN
from infomask_jax.system import NUMBER, read_json
from infomask_jax.text import csv_cell

HINT = "evaluate the run again"
VALUE = {"value": NUMBER | None, "ci95?": (NoneType, [NUMBER, NUMBER])}
LEVELS = {str: VALUE}
CUTS = (NUMBER | None, [NUMBER], {"tuned?": NUMBER | None, str: NUMBER | str | None})
THRESHOLD = {"value": CUTS, "tuned_on": str, "confidence?": (NoneType, VALUE)}
METHOD = {
    **{"pxap": VALUE, "pointing_game": VALUE, "mean_iou": VALUE, "max_box_acc_v2": VALUE, "boxes_per_image": NUMBER},
    **{"acc_iou": {"0.1": VALUE, "0.3": VALUE, "0.5": VALUE}, "threshold": THRESHOLD},
    "protocols?": {str: {"threshold": THRESHOLD, str: (NUMBER | None, LEVELS, VALUE)}},
}
CLASSIFICATION = {
    str: {"auroc": VALUE | {"n": int}, "auprc?": VALUE, "ece?": VALUE, "brier?": VALUE, "prevalence": NUMBER | None}
}
COUNTS = ("positive", "unknown", "scored_images", "scored_boxes")
COUNTS += ("skipped_positive_without_box", "skipped_boxed_not_positive")
SCORES = {
    **{
        "dataset": str,
        "split": str,
        "n_images": int,
        "n_boxed_images": int,
        "frame": int,
        "mean_boxes_from": {str: str},
    },
    **{"classification": CLASSIFICATION, "classification_plain?": CLASSIFICATION},
    **{"localization": {str: {str: METHOD}}, "counts": {str: dict.fromkeys(COUNTS, int)}},
    **{"differences?": {str: {str: LEVELS}}, "notes?": [str], "files?": {str: int}},
    "faithfulness?": {str: {str: {"deletion": VALUE, "insertion": VALUE}}},
}
SHARES = {"total": VALUE, "shares": LEVELS, "over_area": LEVELS}
GROUP = {"images": int, "area": LEVELS, str: SHARES}
AUDIT = {
    **{"dataset": str, "split": str, "n_images": int, "n_images_without_lung": int, "lung_from": str},
    "findings": {
        str: {
            "counts": {"positive_without_lesion": int, "unknown": int},
            **{"positive?": GROUP, "positive_without_lesion?": GROUP, "negative?": GROUP, str: VALUE},
        }
    },
}
BOXES = [{"image_id": int | str, "file_name?": str, "category": str, "bbox": [NUMBER] * 4}]
CUT = {"threshold": {"value": NUMBER | None}}


def read_scores(path: Path) -> dict:
    """eval/SPLIT.json. FileNotFoundError if the split was not scored."""
    return read_json(scored(path), SCORES, HINT)


def read_audit(path: Path) -> dict:
    """eval/audit_SPLIT.json."""
    return read_json(path, AUDIT, "audit the run again")


def read_boxes(path: Path) -> list[dict]:
    """boxes/SPLIT.json."""
    return read_json(scored(path), BOXES, HINT)


def read_probabilities(path: Path, findings: Iterable[str]) -> dict[str, np.ndarray]:
    """predictions/SPLIT.csv: {finding: [N]}."""
    with scored(path).open(newline="", encoding="utf-8") as file, shown(path):
        rows = list(csv.DictReader(file))
        columns = {name: csv_cell(f"{name} probability") for name in findings}
        return {name: np.array([float(row[column]) for row in rows]) for name, column in columns.items()}


def read_maps(path: Path) -> dict[str, np.ndarray]:
    """maps/SPLIT.npz: image_id [N] and arrays by method, of which one at least is drawn."""
    with shown(path):
        maps = npz.read(scored(path))
        if "image_id" not in maps or not maps.keys() & {*DRAWN}:
            raise KeyError(f"image_id and a map, found {', '.join(maps)}")
        return maps


def read_thresholds(path: Path) -> dict[str, dict]:
    """Of eval/SPLIT.json, {finding: {method: {"threshold": {"value"}}}}; the value of boxes and ceilings is None."""
    own = {f"{method}?": {"threshold": {"value": NUMBER}} for method in DRAWN}
    return read_json(path, {"localization": {str: {**own, str: CUT}}}, HINT)["localization"]


@contextlib.contextmanager
def shown(path: Path) -> Iterator[None]:
    """Around the use of a file's contents: what is damaged, or does not fit the rest, is an error that names it."""
    kinds = (KeyError, TypeError, IndexError, AttributeError, StopIteration, ValueError)
    try:
        yield
    except (*kinds, csv.Error, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        if str(error).startswith(str(path.parent)):  # it is named already
            raise
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}); {HINT}") from error


def scored(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: score this split first, with python -m infomask_jax evaluate")
    return path
