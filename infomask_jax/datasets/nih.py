"""NIH ChestX-ray14: 112,120 radiographs of 30,805 patients, labels mined from reports, 984 boxes drawn by hand."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from infomask_jax.datasets import groups, schema
from infomask_jax.datasets.schema import BadData, Box, Item, Problem, Release
from infomask_jax.text import normal, printable

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding"),
)
SPELLINGS = {"Infiltrate": "Infiltration"}  # the table of boxes has its own word
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
TABLES = ("Data_Entry_2017*.csv", "BBox_List_2017*.csv", "train_val_list.txt", "test_list.txt")
FRAME = (1024, 1024)  # height, width in which the release gives its boxes
VAL_SHARE = 0.1  # of the patients of train_val_list.txt


@dataclass(frozen=True)
class Nih(schema.Options):
    """Prepares NIH ChestX-ray14 with its official lists; a tenth of the patients of train_val_list.txt is val."""

    source: Path
    """Folder with Data_Entry_2017*.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt and the images in any
    sub-folders."""
    findings: tuple[str, ...] = ()
    """Findings to keep, for example Pneumonia; none: all 15. Images of the others stay; their boxes count for Wang's
    AFP alone."""
    matched: Literal["", "view"] = ""
    """view: leave out negatives of train and val until as large a share of them is AP as of the positives (one finding
    alone; a model that knows the view then knows nothing of the label)."""
    allow_missing: bool = False
    """Go on without the images that are listed but absent, which --skip-bad does not."""


def read(options: Nih, problems: list[Problem]) -> Release:
    """Reads tables and finds images; adds to `problems`. BadData where a table cannot be used at all."""
    if unknown := [name for name in options.findings if name not in FINDINGS]:
        raise BadData(f"--findings: expected some of {', '.join(FINDINGS)}; found {', '.join(unknown)}")
    findings = tuple(name for name in FINDINGS if name in options.findings or not options.findings)
    groups.check_matched(options, findings)
    tables = [_one(options.source, name) for name in TABLES[:2]] + [options.source / name for name in TABLES[2:]]
    split_of = _read_lists(tables[2], tables[3], problems)
    rows, present = _read_entries(tables[0], split_of, problems)
    lost = [(image_id, file, row) for image_id, (_, file, row) in split_of.items() if image_id not in rows]
    found = f"expected an image of {tables[0].name}, found"
    problems += [Problem(file, row, "image", f"{found} {image_id!r}", image_id) for image_id, file, row in lost]
    boxes = schema.parse_boxes(_labelled(tables[1], present, problems), problems, FRAME[0])

    items, file = [], tables[0].name
    for image_id, (row, cells) in rows.items():
        if image_id in split_of:
            labels = tuple(int(name in present[image_id]) for name in findings)
            patient, view, split = cells["Patient ID"], cells["View Position"], split_of[image_id][0]
            drawn = tuple(boxes[image_id])
            about = groups.about(*(cells.get(name, "") for name in ("Patient Gender", "Patient Age", "Follow-up #")))
            items.append(Item(image_id, patient, split, labels, None, view, drawn, FRAME, file, row, about))
    problems += schema.patients_in_two_splits(items)  # before the validation patients leave train
    items, missing = schema.with_files(items, options, "name", "Image Index", problems)
    for i, item in enumerate(items):
        if item.split == "train":
            items[i] = replace(item, split=schema.hash_split(item.patient_id, val=VAL_SHARE, train=1 - VAL_SHARE))
    return Release(findings, groups.matched(items, options), tables, missing)


def box_rows(path: Path, problems: list[Problem]) -> Iterator[Box]:
    """The rows of BBox_List_2017.csv, whose header splits at the commas of its `Bbox [x,y,w,h]`."""
    for row, cells in schema.read_table(path, BOX_COLUMNS, problems):
        finding = SPELLINGS.get(cells["Finding Label"], cells["Finding Label"])
        xywh = tuple(cells[name] for name in BOX_COLUMNS[2:])
        box = Box(path.name, row, "Bbox [x,y,w,h]", cells["Image Index"], finding, xywh, FRAME)
        if finding not in FINDINGS:
            problems.append(box.problem(f"expected one of {', '.join(FINDINGS)}; found {finding!r}", "Finding Label"))
        elif not any(xywh):
            problems.append(box.problem("expected a box, found nothing"))
        else:
            yield box


def patient_of(image: str) -> str:
    """Of 00013118_008.png, the ninth film of patient 13118, 00013118; of names that are not NIH's, none."""
    name = re.fullmatch(r"(?:.*/)?(\d+)_\d{3}(?:\.\w+)?", image)
    return name.group(1) if name else ""


def _labelled(path: Path, present: dict[str, set[str]], problems: list[Problem]) -> Iterator[Box]:
    """The rows of the table of boxes whose image is listed with their finding."""
    for box in box_rows(path, problems):
        if box.image not in present:
            problems.append(box.problem(f"expected an image of the release, found {box.image!r}", "Image Index"))
        elif box.finding not in present[box.image]:
            found = f"found a box of {box.finding} without it"
            problems.append(box.problem(f"expected a label of {box.image}, {found}", "Finding Label"))
        else:
            yield box


def _read_entries(path: Path, split_of: dict, problems: list[Problem]) -> tuple[dict[str, tuple], dict[str, set[str]]]:
    """The table of images as {image: (row, cells)} and {image: findings}."""
    rows, present = {}, {}
    for row, cells in schema.read_table(path, COLUMNS, problems):
        image_id, names, wrong = cells["Image Index"], cells["Finding Labels"].split("|"), None
        if image_id in rows:
            wrong = ("Image Index", f"expected each image once, found {image_id!r} also in row {rows[image_id][0]}")
        elif bad := [name for name in names if name not in FINDINGS]:
            wrong = ("Finding Labels", f"expected some of {', '.join(FINDINGS)}; found {', '.join(map(repr, bad))}")
        elif "No Finding" in names and len(names) > 1:
            wrong = ("Finding Labels", f"expected No Finding alone, found {cells['Finding Labels']}")
        elif not cells["Patient ID"]:
            wrong = ("Patient ID", "expected a patient, found nothing")
        elif image_id not in split_of:
            wrong = ("Image Index", f"expected it in {' or '.join(TABLES[2:])}, found {image_id!r} in neither")
        rows.setdefault(image_id, (row, cells))
        present.setdefault(image_id, set(names))
        if wrong:
            problems.append(Problem(path.name, row, *wrong, image_id))
    return rows, present


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BadData(f"{folder}: expected one {pattern}, found {', '.join(p.name for p in found) or 'none'}")
    return found[0]


def _read_lists(train_val: Path, test: Path, problems: list[Problem]) -> dict[str, tuple[str, str, int]]:
    """The two official lists as {image: (train or test, file, row)}."""
    found = {}
    for path, split in ((train_val, "train"), (test, "test")):
        if not path.is_file():
            raise BadData(f"{path}: expected the official list of images, found no file")
        for row, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
            image_id, wrong = normal(line.strip()), ""
            if not printable(image_id):
                wrong = f"expected printable text, found {image_id!r}"
            elif image_id in found:
                wrong = f"expected each image once, found {image_id!r} also in {found[image_id][1]}"
            elif image_id:
                found[image_id] = (split, path.name, row)
            if wrong:
                problems.append(Problem(path.name, row, "image", wrong, image_id))
    return found
