"""RSNA Pneumonia Detection Challenge 2018, as downloaded (DICOM) or converted to PNG or JPEG of any size."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infomask_jax.datasets import images, lookup, schema
from infomask_jax.datasets.schema import BadData, Box, Item, Problem, Release

FINDINGS = ("pneumonia",)
FRAME = (1024, 1024)  # height, width in which the challenge gives its boxes
TABLES = ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv")
CLASSES = {"Lung Opacity": "opacity", "No Lung Opacity / Not Normal": "not_normal", "Normal": "normal"}


@dataclass(frozen=True)
class Rsna:
    """Prepares the RSNA Pneumonia Detection Challenge (finding: pneumonia, that is lung opacity)."""

    source: Path
    """Folder with stage_2_train_labels.csv, stage_2_detailed_class_info.csv, images in any sub-folder, and, if you have
    one, split.csv (patientId, split; optional: matched, view), which says what is taken at all. Without it patients are
    split 80/10/10 by their hash."""
    data_dir: Path = Path("data")
    """Where prepared data sets are kept."""
    size: int = 256
    """Side of the stored square images, pixels."""
    negatives: Literal["all", "normal", "not_normal"] = "all"
    """Which images without opacity to keep, in every split."""
    matched: bool = False
    """Keep only the training images with matched = 1 in split.csv."""
    allow_missing: bool = False
    """Go on without the images that are listed but absent."""
    skip_bad: bool = False
    """Leave out bad rows and images and list them in skipped.csv, instead of stopping. For images that
    are listed but absent: --allow-missing."""
    overwrite: bool = False
    """Replace what was prepared before."""


def read(options: Rsna, problems: list[Problem]) -> Release:
    """Reads the tables and finds the images; adds to `problems`. Raises BadData where a table cannot be used at all."""
    tables = [options.source / name for name in (*TABLES, "split.csv")]
    labels = schema.read_table(tables[0], ("patientId", "x", "y", "width", "height", "Target"), problems)
    classes = schema.read_table(tables[1], ("patientId", "class"), problems)
    splits = _read_splits(options, tables[2], problems)

    kinds = {}
    for row, cells in classes:
        image_id, kind = cells["patientId"], cells["class"]
        if kind not in CLASSES:
            reason = f"expected one of {', '.join(CLASSES)}; found {kind!r}"
            problems.append(Problem(tables[1].name, row, "class", reason, image_id))
        elif kinds.setdefault(image_id, CLASSES[kind]) != CLASSES[kind]:
            problems.append(Problem(tables[1].name, row, "class", f"expected one class, found also {kind!r}", image_id))

    listed, boxes, targets, seen, drawn = {}, defaultdict(list), {}, {}, []
    for row, cells in labels:
        image_id, target = cells["patientId"], cells["Target"]
        listed.setdefault(image_id, row)
        xywh = [cells[name] for name in ("x", "y", "width", "height")]
        wrong = None
        if schema.LABELS.get(target, -1) < 0:
            wrong = ("Target", f"expected 0 or 1, found {target!r}")
        elif targets.setdefault(image_id, schema.LABELS[target]) != schema.LABELS[target]:
            wrong = ("Target", f"expected one value an image, found also {target}")
        elif any(xywh) and not schema.LABELS[target]:
            wrong = ("Target", "expected 1 for an image with a box, found 0")
        elif schema.LABELS[target]:
            try:
                box = Box(0, schema.parse_box(xywh), tables[0].name, row)
                schema.check_once(seen, (image_id, box.xywh), box)
                boxes[image_id].append(box)
                drawn.append((image_id, box))
            except ValueError as error:
                wrong = ("x, y, width, height", str(error))
        if not wrong and image_id not in kinds:
            wrong = ("patientId", f"expected a class in {tables[1].name}, found none for {image_id!r}")
        elif not wrong and (kinds[image_id] == "opacity") != bool(targets[image_id]):
            wrong = ("Target", f"expected it to agree with the class in {tables[1].name}, found {target}")
        if wrong:
            problems.append(Problem(tables[0].name, row, *wrong, image_id))
    problems += schema.check_pixels(drawn, "x, y, width, height", str(FRAME[0]))

    index, root = lookup.index_images(options.source, "stem", images.SUFFIXES), str(options.source.resolve())
    items, missing = [], []
    wanted = {"opacity", "normal", "not_normal"} if options.negatives == "all" else {"opacity", options.negatives}
    for image_id, (split, view, file, row) in (_by_hash(listed, tables[0].name) if splits is None else splits).items():
        if image_id not in listed:
            reason = f"expected an image of {tables[0].name}, found {image_id!r}"
            problems.append(Problem(file, row, "patientId", reason, image_id))
            continue
        if kinds.get(image_id) not in wanted or image_id not in targets:
            continue
        try:
            path = lookup.find_image(image_id, index, root)
        except LookupError:
            missing.append(image_id)
            continue
        except ValueError as error:
            problems.append(Problem(file, row, "patientId", str(error), image_id))
            continue
        label = (targets[image_id],)
        items.append(Item(image_id, image_id, split, label, path, view, tuple(boxes[image_id]), FRAME, file, row))
    if missing and not options.allow_missing:
        table = tables[0].name if splits is None else tables[2].name
        problems.append(schema.missing_images(missing, len(missing) + len(items), table))
    return Release(FINDINGS, items, tables, len(missing))


def _by_hash(listed: dict[str, int], file: str) -> dict:
    return {i: (schema.hash_split(i, train=0.8, val=0.1, test=0.1), "", file, row) for i, row in listed.items()}


def _read_splits(options: Rsna, path: Path, problems: list[Problem]) -> dict[str, tuple[str, str, str, int]] | None:
    """split.csv as {patientId: (split, view, file, row)}, None where there is none; `matched` applied."""
    if not path.is_file():
        if options.matched:
            raise BadData(f"--matched: expected {path} with a column matched, found no file")
        return None
    splits = {}
    required = ("patientId", "split") + ("matched",) * options.matched
    for row, cells in schema.read_table(path, required, problems, ("view",)):
        image_id, split, matched = cells["patientId"], cells["split"], cells.get("matched", "")
        if split not in schema.SPLITS:
            reason = f"expected one of {', '.join(schema.SPLITS)}; found {split!r}"
            problems.append(Problem(path.name, row, "split", reason, image_id))
        elif image_id in splits:
            reason = f"expected each image once, found {image_id!r} also in row {splits[image_id][3]}"
            if splits[image_id][0] != split:
                reason = f"expected a patient in one split, found {image_id!r} also in {splits[image_id][0]}"
            problems.append(Problem(path.name, row, "patientId", reason, image_id))
        elif options.matched and schema.LABELS.get(matched, -1) < 0:
            problems.append(Problem(path.name, row, "matched", f"expected 0 or 1, found {matched!r}", image_id))
        else:
            splits[image_id] = (split, cells.get("view", ""), path.name, row)
            if options.matched and split == "train" and not schema.LABELS[matched]:
                splits[image_id] = ("", *splits[image_id][1:])
    return {image_id: value for image_id, value in splits.items() if value[0]}
