"""NIH ChestX-ray14: 112,120 radiographs of 30,805 patients, labels mined from reports, 984 boxes drawn by hand."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infomask_jax.datasets import images, lookup, schema
from infomask_jax.datasets.schema import BadData, Box, Item, Problem, Release
from infomask_jax.text import normal, printable

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia", "No Finding"),
)
SPELLINGS = {"Infiltrate": "Infiltration"}  # the table of boxes has its own word
TABLES = ("Data_Entry_2017*.csv", "BBox_List_2017*.csv", "train_val_list.txt", "test_list.txt")
FRAME = (1024, 1024)  # height, width in which the release gives its boxes
VAL_SHARE = 0.1  # of the patients of train_val_list.txt


@dataclass(frozen=True)
class Nih:
    """Prepares NIH ChestX-ray14 with its official lists; a tenth of the patients of train_val_list.txt is val."""

    source: Path
    """Folder with Data_Entry_2017*.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt and the images in any
    sub-folders."""
    data_dir: Path = Path("data")
    """Where prepared data sets are kept."""
    size: int = 256
    """Side of the stored square images, pixels."""
    findings: tuple[str, ...] = ()
    """Findings to keep, for example Pneumonia; none: all 15. Images of the others stay; their boxes count for Wang's
    AFP alone."""
    matched: Literal["", "view"] = ""
    """view: leave out negatives of train and val until as large a share of them is AP as of the positives (one finding
    alone; a model that knows the view then knows nothing of the label)."""
    allow_missing: bool = False
    """Go on without the images that are listed but absent."""
    skip_bad: bool = False
    """Leave out bad rows and images and list them in skipped.csv, instead of stopping. For images that
    are listed but absent: --allow-missing."""
    overwrite: bool = False
    """Replace what was prepared before."""


def read(options: Nih, problems: list[Problem]) -> Release:
    """Reads the tables and finds the images; adds to `problems`. Raises BadData where a table cannot be used at all."""
    unknown = [name for name in options.findings if name not in FINDINGS]
    if unknown:
        raise BadData(f"--findings: expected some of {', '.join(FINDINGS)}; found {', '.join(unknown)}")
    if options.matched and len(options.findings) != 1:
        raise BadData(f"--matched view: expected one of --findings, found {len(options.findings) or 'none'}")
    findings = tuple(name for name in FINDINGS if name in options.findings or not options.findings)
    tables = [_one(options.source, name) for name in TABLES[:2]] + [options.source / name for name in TABLES[2:]]
    entries = schema.read_table(tables[0], ("Image Index", "Finding Labels", "Patient ID", "View Position"), problems)
    split_of = _read_lists(tables[2], tables[3], problems)

    rows, present = {}, {}
    for row, cells in entries:
        image_id, names = cells["Image Index"], cells["Finding Labels"].split("|")
        wrong = None
        if image_id in rows:
            wrong = ("Image Index", f"expected each image once, found {image_id!r} also in row {rows[image_id][0]}")
        elif bad := [name for name in names if name not in FINDINGS]:
            wrong = ("Finding Labels", f"expected some of {', '.join(FINDINGS)}; found {', '.join(map(repr, bad))}")
        elif "No Finding" in names and len(names) > 1:
            wrong = ("Finding Labels", f"expected No Finding alone, found {cells['Finding Labels']}")
        elif not cells["Patient ID"]:
            wrong = ("Patient ID", "expected a patient, found nothing")
        elif image_id not in split_of:
            wrong = (
                "Image Index",
                f"expected it in {tables[2].name} or {tables[3].name}, found {image_id!r} in neither",
            )
        rows.setdefault(image_id, (row, cells))
        present.setdefault(image_id, set(names))
        if wrong:
            problems.append(Problem(tables[0].name, row, *wrong, image_id))
    for image_id, (_, file, row) in split_of.items():
        if image_id not in rows:
            reason = f"expected an image of {tables[0].name}, found {image_id!r}"
            problems.append(Problem(file, row, "image", reason, image_id))

    boxes = _read_boxes(tables[1], present, findings, problems)
    index, root = lookup.index_images(options.source, "name", images.SUFFIXES), str(options.source.resolve())
    items, missing = [], []
    for image_id, (row, cells) in rows.items():
        if image_id not in split_of:
            continue
        try:
            path = lookup.find_image(image_id, index, root)
        except LookupError:
            missing.append(image_id)
            path = None
        except ValueError as error:
            problems.append(Problem(tables[0].name, row, "Image Index", str(error), image_id))
            continue
        labels = tuple(int(name in present[image_id]) for name in findings)
        patient, view, drawn = cells["Patient ID"], cells["View Position"], tuple(boxes[image_id])
        split = split_of[image_id][0]
        items.append(Item(image_id, patient, split, labels, path, view, drawn, FRAME, tables[0].name, row))
    problems += schema.patients_in_two_splits(items)  # before the validation patients leave train
    if missing and not options.allow_missing:
        problems.append(schema.missing_images(missing, len(items), tables[0].name))
    items = [_with_val(item) for item in items if item.path]
    if options.matched:
        items = [item for split in schema.SPLITS for item in _matched([i for i in items if i.split == split], split)]
    return Release(findings, items, tables, len(missing))


def _matched(items: list[Item], split: str) -> list[Item]:
    """The items of a split, of the negatives as many as leave both labels the same shares of views; test whole."""
    positives, negatives = defaultdict(list), defaultdict(list)
    for item in sorted(items, key=lambda i: hashlib.sha256(i.image_id.encode()).digest()):
        (positives if item.labels[0] else negatives)[item.view].append(item)
    if split == "test" or not positives:
        return items
    if split == "train" and (without := [view for view in positives if not negatives[view]]):
        raise BadData(
            f"--matched view: expected negatives of train in view {without[0]!r} of its positives, found none"
        )
    each = min(len(negatives[view]) / len(those) for view, those in positives.items())  # negatives to a positive
    kept = {item.image_id for view, those in positives.items() for item in negatives[view][: round(each * len(those))]}
    return [item for item in items if item.labels[0] or item.image_id in kept]


def _with_val(item: Item) -> Item:
    if item.split == "test":
        return item
    split = schema.hash_split(item.patient_id, val=VAL_SHARE, train=1 - VAL_SHARE)
    return Item(**{**vars(item), "split": split})


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
            image_id = normal(line.strip())
            if not printable(image_id):
                reason = f"expected printable text, found {image_id!r}"
                problems.append(Problem(path.name, row, "image", reason, image_id))
            elif image_id in found:
                reason = f"expected each image once, found {image_id!r} also in {found[image_id][1]}"
                problems.append(Problem(path.name, row, "image", reason, image_id))
            elif image_id:
                found[image_id] = (split, path.name, row)
    return found


def _read_boxes(
    path: Path, present: dict[str, set[str]], findings: tuple[str, ...], problems: list[Problem]
) -> dict[str, list[Box]]:
    """Boxes by image, -1 for those of findings that are not kept (Wang's AFP counts them). The file's header splits
    at the commas of its `Bbox [x,y,w,h]`."""
    boxes, seen, drawn = defaultdict(list), {}, []
    for row, cells in schema.read_table(path, ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"), problems):
        image_id, name = cells["Image Index"], SPELLINGS.get(cells["Finding Label"], cells["Finding Label"])
        wrong = None
        if image_id not in present:
            wrong = ("Image Index", f"expected an image of the release, found {image_id!r}")
        elif name not in FINDINGS:
            wrong = ("Finding Label", f"expected one of {', '.join(FINDINGS)}; found {name!r}")
        elif name not in present[image_id]:
            wrong = ("Finding Label", f"expected a label of {image_id}, found a box of {name} without it")
        else:
            try:
                xywh = schema.parse_box([cells[c] for c in ("Bbox [x", "y", "w", "h]")])
                box = Box(findings.index(name) if name in findings else -1, xywh, path.name, row)
                schema.check_once(seen, (image_id, name, xywh), box)
                boxes[image_id].append(box)
                drawn.append((image_id, box))
            except ValueError as error:
                wrong = ("Bbox [x,y,w,h]", str(error))
        if wrong:
            problems.append(Problem(path.name, row, *wrong, image_id))
    problems += schema.check_pixels(drawn, "Bbox [x,y,w,h]", str(FRAME[0]))
    return boxes
