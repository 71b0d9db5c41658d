"""The example: its names, shapes and types, and how rows of text become one.

Readers of a release (rsna.py, nih.py, folder.py) turn its tables into `Item`s and collect every `Problem` on the way,
so that all of them are reported at once.
"""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infomask_jax.text import normal, printable, shown

SPLITS = ("train", "val", "test")
LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": -1}  # as written in tables -> present, absent, unknown
DTYPES = {"labels": np.int8, "boxes": np.float32, "box_labels": np.int32, "height": np.int32, "width": np.int32}


class BadData(ValueError):
    """A release that cannot be prepared as it is; the message lists every problem found."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong: in which file, row (1 is the header; None: the file itself) and field."""

    file: str
    row: int | None
    field: str
    reason: str  # expected and found
    image_id: str | None = None  # the image that cannot be used because of it; without row and image, none is to blame

    def __str__(self):
        return f"{self.file}{'' if self.row is None else f', row {self.row}'}, {self.field}: {self.reason}"


@dataclass(frozen=True)
class Box:
    """A box as the release gives it: top left corner and extent in pixels of the source frame."""

    finding: int
    xywh: tuple[float, float, float, float]
    file: str
    row: int


@dataclass(frozen=True)
class Item:
    """What the tables of a release say of one image."""

    image_id: str
    patient_id: str
    split: str
    labels: tuple[int, ...]  # [K], 1 present, 0 absent, -1 unknown
    path: Path | None = None
    view: str = ""
    boxes: tuple[Box, ...] = ()
    frame: tuple[int, int] | None = None  # height, width in which the boxes are given; None: those of the file
    file: str = ""  # where the image is listed
    row: int | None = None


@dataclass(frozen=True)
class Release:
    """A release as read: `tables` are the files it was read from, or would be if they were there, and folders whose
    images are all that it has; `missing` counts images allowed to be absent."""

    findings: tuple[str, ...]
    items: list[Item]
    tables: list[Path]
    missing: int = 0


def check(example: dict, findings: Sequence[str]) -> None:
    """Checks one stored example against the contract; raises ValueError naming the image and every field that differs.

    `image` PNG bytes; `mask` (exact lesions) and `lung` (its field), nonzero inside, PNG bytes or b""; `labels` int8
    [K] of 1, 0, -1; `boxes` float32 [N, 4] (ymin, xmin, ymax, xmax) in 0..1; `box_labels` int32 [N]; `image_id`,
    `patient_id`, `view` str; `height`, `width` int.
    """
    wrong = []
    names = {"image", "mask", "lung", "image_id", "patient_id", "view", *DTYPES}
    if example.keys() != names:
        raise ValueError(f"{example.get('image_id')}: expected fields {sorted(names)}, found {sorted(example)}")
    value = {name: np.asarray(example[name]) for name in DTYPES}
    shapes = {"labels": (len(findings),), "boxes": (len(value["boxes"]) if value["boxes"].ndim else 0, 4)}
    shapes["box_labels"] = shapes["boxes"][:1]
    for name in ("labels", "boxes", "box_labels"):
        if value[name].dtype != DTYPES[name] or value[name].shape != shapes[name]:
            found = f"{value[name].dtype} {value[name].shape}"
            wrong.append(f"{name}: expected {np.dtype(DTYPES[name])} {shapes[name]}, found {found}")
    for name in ("image", "mask", "lung"):
        data = example[name]
        if not (isinstance(data, bytes) and (data.startswith(b"\x89PNG") or (name != "image" and not data))):
            wrong.append(f"{name}: expected PNG bytes, found {data[:8]!r}")
    for name in ("image_id", "patient_id", "view"):
        if not isinstance(example[name], str) or (not example[name] and name != "view"):
            wrong.append(f"{name}: expected text, found {example[name]!r}")
    for name in ("height", "width"):
        if value[name].shape or not 0 < value[name] <= 1_000_000:
            wrong.append(f"{name}: expected 1 or more pixels, found {example[name]}")
    if not wrong:
        boxes, kinds = value["boxes"], value["box_labels"]
        if not np.isin(value["labels"], (-1, 0, 1)).all():
            wrong.append(f"labels: expected 1, 0 or -1, found {value['labels']}")
        if not ((boxes >= 0) & (boxes <= 1)).all() or not (boxes[:, :2] < boxes[:, 2:]).all():
            wrong.append(f"boxes: expected 0 <= ymin < ymax <= 1 and the same of x, found {boxes.tolist()}")
        if not ((kinds >= -1) & (kinds < len(findings))).all():
            wrong.append(f"box_labels: expected -1..{len(findings) - 1}, found {kinds}")
    if wrong:
        raise ValueError(f"{example['image_id']}: " + "; ".join(wrong))


def describe(problems: Sequence[Problem], limit: int = 20) -> str:
    """All problems counted, the first `limit` listed."""
    lines = [f"{len(problems)} problem{'s' * (len(problems) != 1)}:", *(f"  {shown(str(p))}" for p in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def read_table(
    path: Path, required: Sequence[str], problems: list[Problem], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV with a header, UTF-8 with or without byte order mark.

    Returns:
      (line number, {column: stripped text, NFC}) a row. Rows that are ragged or not printable in a required or optional
      column are left out and added to `problems`, as those of the image that their cell under `required[0]` names.

    Raises:
      BadData: no such file, not UTF-8 CSV, no rows, a required column missing, two columns of one name or one that is
        not printable.
    """
    if not path.is_file():
        raise BadData(f"{path}: expected a table with columns {', '.join(required)}, found no file")
    rows, before = [], len(problems)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [normal(cell.strip()) for cell in next(reader, [])]
            while header and not header[-1]:
                header.pop()  # some releases end their header with commas
            missing = [name for name in required if name not in header]
            if missing or len(set(header)) < len(header) or "" in header:
                wanted = f"columns with names of their own, among them {', '.join(required)}"
                raise BadData(f"{path}, row 1: expected {wanted}; found {shown(', '.join(header)) or 'none'}")
            if odd := [name for name in header if not printable(name)]:
                raise BadData(f"{path}, row 1: expected printable names of columns, found {odd[0]!r}; rename it")
            used = [name for name in header if name in (*required, *optional)]
            for cells in reader:
                cells = [normal(cell.strip()) for cell in cells]
                if not any(cells):
                    continue
                while len(cells) > len(header) and not cells[-1]:
                    cells.pop()
                image_id, wrong = (cells + [None] * len(header))[header.index(required[0])], None
                named = dict(zip(header, cells, strict=False))
                if len(cells) != len(header):
                    wrong = ("row", f"expected {len(header)} cells, found {len(cells)}")
                elif odd := [name for name in used if not printable(named[name])]:
                    wrong = (odd[0], f"expected printable text, found {named[odd[0]]!r}")
                if wrong:
                    problems.append(Problem(path.name, reader.line_num, *wrong, image_id))
                else:
                    rows.append((reader.line_num, named))
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadData(f"{path}: expected comma-separated UTF-8 text, found {error}; save it again as UTF-8") from error
    if not rows and len(problems) == before:
        raise BadData(f"{path}: expected rows, found only the header")
    return rows


def parse_box(cells: Sequence[str]) -> tuple[float, float, float, float]:
    """Texts of x, y, width, height -> finite numbers; raises ValueError saying what was found instead."""
    try:
        box = tuple(float(cell) for cell in cells)
    except ValueError:
        box = ()
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise ValueError(f"expected four numbers, found {', '.join(cells)!r}")
    return box


def check_once(seen: dict, key: tuple, place) -> None:
    """Keeps where a box was first listed, something with a `file` and a `row`; ValueError if it is listed again.

    Args:
      key: its image, finding and xywh.
    """
    if key in seen:
        raise ValueError(f"expected each box once, found it also in {seen[key].file}, row {seen[key].row}")
    seen[key] = place


def check_pixels(boxes: Sequence[tuple[str, Box]], field: str, scale: str = "the image's size") -> list[Problem]:
    """Boxes of a table, each with its image, that are smaller than a pixel: they are given in 0..1.

    One problem for the table where no box is larger, else one for each.
    """
    small = [(i, box) for i, box in boxes if max(box.xywh[2:]) <= 1 and 0 < min(box.xywh[2:]) < 1]
    if small and all(max(box.xywh[2:]) <= 1 for _, box in boxes):
        largest = max(side for _, box in boxes for side in box.xywh[2:])
        reason = f"expected pixels, found no box larger than {largest:g}; multiply them by {scale}"
        return [Problem(small[0][1].file, None, field, reason)]
    reason = "expected pixels, found a box of {:g} x {:g}; multiply it by " + scale
    return [Problem(box.file, box.row, field, reason.format(*box.xywh[2:]), i) for i, box in small]


def unit_box(xywh: Sequence[float], height: int, width: int) -> np.ndarray:
    """Pixels -> float32 (ymin, xmin, ymax, xmax) in 0..1. Up to one pixel outside the frame is rounding: it is cut off.

    Raises:
      ValueError: of no area, or further outside.
    """
    x, y, w, h = xywh
    if not (x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise ValueError(f"expected a box inside {width} x {height}, found x {x:g}, y {y:g}, width {w:g}, height {h:g}")
    corners = np.array([y / height, x / width, (y + h) / height, (x + w) / width]).clip(0, 1).astype(np.float32)
    if not (w > 0 and h > 0 and corners[0] < corners[2] and corners[1] < corners[3]):
        raise ValueError(f"expected a box of some area, found x {x:g}, y {y:g}, width {w:g}, height {h:g}")
    return corners


def missing_images(missing: Sequence[str], total: int, table: str) -> Problem:
    """One problem for all of them: most often a wrong folder or an archive that was not unpacked."""
    found = f"{len(missing)} are missing, for example {', '.join(missing[:5])}"
    hint = "check --source, or pass --allow-missing to go on with the others"
    return Problem(table, None, "image", f"expected the {total} images listed, found that {found}; {hint}")


def hash_split(patient_id: str, **shares: float) -> str:
    """A split by the hash of the patient, the same on every machine; `shares` add up to 1."""
    at = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") / 2**64
    for split, share in shares.items():
        if at < share:
            return split
        at -= share
    return split


def patients_in_two_splits(items: Sequence[Item]) -> list[Problem]:
    """One problem for every image of a patient who is in more than one split."""
    splits = defaultdict(set)
    for item in items:
        splits[item.patient_id].add(item.split)
    return [
        Problem(i.file, i.row, "split", f"expected patient {i.patient_id} in one split, found {found}", i.image_id)
        for i in items
        if len(splits[i.patient_id]) > 1
        for found in [", ".join(sorted(splits[i.patient_id]))]
    ]
