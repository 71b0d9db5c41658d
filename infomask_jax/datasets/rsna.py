"""RSNA Pneumonia Detection Challenge 2018, as downloaded (DICOM) or converted to PNG or JPEG of any size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infomask_jax.datasets import groups, schema
from infomask_jax.datasets.schema import BadData, Box, Item, Problem, Release

FINDINGS = ("pneumonia",)
FRAME = (1024, 1024)  # height, width in which the challenge gives its boxes
TABLES = ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv")
COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
CLASSES = {"Lung Opacity": "opacity", "No Lung Opacity / Not Normal": "not_normal", "Normal": "normal"}


@dataclass(frozen=True)
class Rsna(schema.Options):
    """Prepares the RSNA Pneumonia Detection Challenge (finding: pneumonia, that is lung opacity)."""

    source: Path
    """Folder with stage_2_train_labels.csv, stage_2_detailed_class_info.csv, images in any sub-folder, and, if you have
    one, split.csv (patientId, split; optional: matched, view, sex, age), which says what is taken at all. Without it
    patients are split 80/10/10 by their hash."""
    negatives: Literal["all", "normal", "not_normal"] = "all"
    """Which images without opacity to keep, in every split."""
    matched: bool = False
    """Keep only the training images with matched = 1 in split.csv."""
    allow_missing: bool = False
    """Go on without the images that are listed but absent, which --skip-bad does not."""


def read(options: Rsna, problems: list[Problem]) -> Release:
    """Reads tables and finds images; adds to `problems`. BadData where a table cannot be used at all."""
    tables = [options.source / name for name in (*TABLES, "split.csv")]
    rows = list(box_rows(tables[0], problems))
    listed = {image_id: row for row, image_id in reversed([(box.row, box.image) for box in rows])}
    kinds, targets = _read_classes(tables[1], problems), {}
    splits = _read_splits(options, tables[2], listed, problems)
    boxes = schema.parse_boxes(_agreeing(rows, kinds, targets, problems), problems, FRAME[0])

    items, blamed = [], {problem.image_id for problem in problems}
    wanted = {"opacity", "normal", "not_normal"} if options.negatives == "all" else {"opacity", options.negatives}
    for image_id, (split, view, about, file, row) in splits.items():
        if image_id not in listed and image_id not in blamed:
            reason = f"expected an image of {tables[0].name}, found {image_id!r}"
            problems.append(Problem(file, row, "patientId", reason, image_id))
        if kinds.get(image_id) in wanted and image_id in targets:
            label, drawn = (int(targets[image_id]),), tuple(boxes[image_id])
            items.append(Item(image_id, image_id, split, label, None, view, drawn, FRAME, file, row, about))
    items, missing = schema.with_files(items, options, "stem", "patientId", problems)
    return Release(FINDINGS, items, tables, missing)


def box_rows(path: Path, problems: list[Problem]) -> Iterator[Box]:
    """The rows of stage_2_train_labels.csv, those of Target 0 without a box."""
    for row, cells in schema.read_table(path, COLUMNS, problems):
        target, xywh = cells["Target"], tuple(cells[name] for name in COLUMNS[1:5])
        box = Box(path.name, row, "x, y, width, height", cells["patientId"], FINDINGS[0], xywh, FRAME)
        if schema.LABELS.get(target, -1) < 0:
            problems.append(box.problem(f"expected 0 or 1, found {target!r}", "Target"))
        elif schema.LABELS[target] != any(xywh):
            reason = f"expected a box with Target 1 and none with 0, found {', '.join(xywh)!r} with {target}"
            problems.append(box.problem(reason, "Target"))
        else:
            yield box


def _agreeing(rows: list[Box], kinds: dict[str, str], targets: dict, problems: list[Problem]) -> Iterator[Box]:
    """The boxes of images whose rows agree with each other and with their class; fills `targets` {image: bool}."""
    for box in rows:
        target, kind = any(box.cells), kinds.get(box.image)
        if targets.setdefault(box.image, target) != target:
            problems.append(box.problem(f"expected one value an image, found also {target:d}", "Target"))
        elif kind is None:
            problems.append(box.problem(f"expected a class in {TABLES[1]}, found none for {box.image!r}", "patientId"))
        elif (kind == "opacity") != target:
            reason = f"expected it to agree with the class in {TABLES[1]}, found {target:d}"
            problems.append(box.problem(reason, "Target"))
        elif target:
            yield box


def _read_classes(path: Path, problems: list[Problem]) -> dict[str, str]:
    """The classes as {patientId: one of the values of CLASSES}."""
    kinds = {}
    for row, cells in schema.read_table(path, ("patientId", "class"), problems):
        image_id, kind = cells["patientId"], cells["class"]
        if kind not in CLASSES:
            reason = f"expected one of {', '.join(CLASSES)}; found {kind!r}"
        elif kinds.setdefault(image_id, CLASSES[kind]) != CLASSES[kind]:
            reason = f"expected one class, found also {kind!r}"
        else:
            continue
        problems.append(Problem(path.name, row, "class", reason, image_id))
    return kinds


def _read_splits(options: Rsna, path: Path, listed: dict[str, int], problems: list[Problem]) -> dict[str, tuple]:
    """split.csv as {patientId: (split, view, groups, file, row)}, `matched` applied; by hash where there is none."""
    if not path.is_file():
        if options.matched:
            raise BadData(f"--matched: expected {path} with a column matched, found no file")
        return {image_id: (schema.hash_split(image_id), "", {}, TABLES[0], row) for image_id, row in listed.items()}
    splits = {}
    required = ("patientId", "split") + ("matched",) * options.matched
    for row, cells in schema.read_table(path, required, problems, ("view",)):
        image_id, split, matched = cells["patientId"], cells["split"], cells.get("matched", "")
        if split not in schema.SPLITS:
            wrong = ("split", f"expected one of {', '.join(schema.SPLITS)}; found {split!r}")
        elif image_id in splits and splits[image_id][0] != split:
            found = f"found {image_id!r} also in {splits[image_id][0]}"
            wrong = ("patientId", f"expected a patient in one split, {found}")
        elif image_id in splits:
            wrong = ("patientId", f"expected each image once, found {image_id!r} also in row {splits[image_id][4]}")
        elif options.matched and schema.LABELS.get(matched, -1) < 0:
            wrong = ("matched", f"expected 0 or 1, found {matched!r}")
        else:
            left_out = options.matched and split == "train" and not schema.LABELS[matched]
            about = groups.about(cells.get("sex", ""), cells.get("age", ""))
            splits[image_id] = ("" if left_out else split, cells.get("view", ""), about, path.name, row)
            continue
        problems.append(Problem(path.name, row, *wrong, image_id))
    return {image_id: value for image_id, value in splits.items() if value[0]}
