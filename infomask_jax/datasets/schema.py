"""From rows of text to an example. Readers of a release (rsna.py, nih.py, folder.py) turn its tables into `Item`s and
collect every `Problem` on the way. An example: `image` PNG bytes; `mask` (exact lesions) and `lung` (its field), PNG
bytes, nonzero inside, or b""; `labels` [K] of 1, 0, -1; `boxes` [N, 4] (ymin, xmin, ymax, xmax) in 0..1; `box_labels`
[N], -1 for a finding that is not kept; texts `image_id`, `patient_id`, `view`; `height`, `width` of the source, pixels.
"""

import csv
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infomask_jax.datasets import lookup
from infomask_jax.text import normal, printable, shown

SPLITS = ("train", "val", "test")
LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": -1}  # as written in tables -> present, absent, unknown
DTYPES = {"labels": np.int8, "boxes": np.float32, "box_labels": np.int32, "height": np.int32, "width": np.int32}


class BadData(ValueError):
    """A release that cannot be prepared as it is."""


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
    """A row of a table of boxes: top left corner and extent in pixels of the source frame."""

    file: str
    row: int
    field: str  # what the table calls x, y, width, height
    image: str
    finding: str
    cells: tuple[str, ...]  # texts of x, y, width, height; all empty: the image is without the finding
    frame: tuple[int, int] | tuple[str, str] = ("", "")  # height, width; of a table of our own texts
    patient: str = ""
    xywh: tuple[float, ...] = ()  # cells as numbers, see `parse_boxes`

    def problem(self, reason, field: str = "") -> Problem:
        return Problem(self.file, self.row, field or self.field, str(reason), self.image)


@dataclass(frozen=True)
class Item:
    """What the tables of a release say of one image."""

    image_id: str
    patient_id: str
    split: str
    labels: tuple[int, ...]  # [K], 1 present, 0 absent, -1 unknown
    path: Path | None = None
    view: str = ""
    boxes: tuple[Box, ...] = ()  # those of findings that are not kept, too: Wang's AFP counts them
    frame: tuple[int, int] | None = None  # height, width in which the boxes are given; None: those of the file
    file: str = ""  # where the image is listed
    row: int | None = None
    about: dict[str, str] = field(default_factory=dict)  # groups of the patient, see groups.py


@dataclass(frozen=True)
class Release:
    """A release as read."""

    findings: tuple[str, ...]
    items: list[Item]
    tables: list[Path]  # read, or looked for; and folders whose images are all that it has
    missing: int = 0  # images allowed to be absent
    notes: tuple[str, ...] = ()  # what else to tell, a line each


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `prepare` is asked for, of any release."""

    data_dir: Path = Path("data")
    """Where prepared data sets are kept."""
    size: int = 256
    """Side of the stored square images, pixels."""
    skip_bad: bool = False
    """Leave out bad rows and images and list them in skipped.csv, instead of stopping."""
    overwrite: bool = False
    """Replace what was prepared before."""


def describe(problems: Sequence[Problem], limit: int = 20) -> str:
    """All counted, the first `limit` listed."""
    lines = [f"{len(problems)} problem{'s' * (len(problems) != 1)}:", *(f"  {shown(str(p))}" for p in problems[:limit])]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(lines)


def read_table(
    path: Path, required: Sequence[str], problems: list[Problem], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Reads a UTF-8 CSV: (line number, {column: stripped text, NFC}) a row. Rows that are ragged, or not printable in a
    required or optional column, are added to `problems`, as those of the image that their cell under `required[0]`
    names. BadData where the file or its header cannot be used."""
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


def parse_boxes(
    boxes: Iterable[Box], problems: list[Problem], scale: object = "the image's size", seen: dict | None = None
) -> dict[str, list[Box]]:
    """{image: its boxes of one table, with their numbers}; those that are no finite numbers, or listed twice, are added
    to `problems`, and so are boxes smaller than a pixel, which are given in 0..1: one problem where the table has no
    larger one.

    Args:
      scale: what boxes in 0..1 would have to be multiplied by.
      seen: the boxes of tables read before, to which those of this one are added.
    """
    found, seen = [], {} if seen is None else seen
    for box in boxes:
        try:
            xywh = tuple(map(float, box.cells))
        except ValueError:
            xywh = (math.nan,)
        if not all(map(math.isfinite, xywh)):
            problems.append(box.problem(f"expected four numbers, found {', '.join(box.cells)!r}"))
            continue
        box = replace(box, xywh=xywh)
        first = seen.setdefault((box.image, box.finding, xywh), box)
        if first is not box:
            problems.append(box.problem(f"expected each box once, found it also in {first.file}, row {first.row}"))
        else:
            found.append(box)
    small = [box for box in found if max(box.xywh[2:]) <= 1 and 0 < min(box.xywh[2:]) < 1]
    largest = max((side for box in found for side in box.xywh[2:]), default=0)
    if small and largest <= 1:
        reason = f"expected pixels, found no box larger than {largest:g}; multiply them by {scale}"
        problems.append(Problem(small[0].file, None, small[0].field, reason))
    else:
        reason = "expected pixels, found a box of {2:g} x {3:g}; multiply it by {scale}"
        problems += [box.problem(reason.format(*box.xywh, scale=scale)) for box in small]
    by_image = defaultdict(list)
    for box in found:
        by_image[box.image].append(box)
    return by_image


def unit_box(xywh: Sequence[float], height: int, width: int) -> np.ndarray:
    """Pixels -> float32 (ymin, xmin, ymax, xmax) in 0..1. Up to one pixel outside the frame is rounding: it is cut off.
    ValueError where it has no area or is further outside."""
    x, y, w, h = xywh
    if not (x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise ValueError(f"expected a box inside {width} x {height}, found x {x:g}, y {y:g}, width {w:g}, height {h:g}")
    corners = np.array([y / height, x / width, (y + h) / height, (x + w) / width]).clip(0, 1).astype(np.float32)
    if not (w > 0 and h > 0 and corners[0] < corners[2] and corners[1] < corners[3]):
        raise ValueError(f"expected a box of some area, found x {x:g}, y {y:g}, width {w:g}, height {h:g}")
    return corners


def with_files(items: list[Item], options, key: str, field: str, problems: list[Problem]) -> tuple[list[Item], int]:
    """The items whose one file is below `options.source`, by its "name" or "stem", and how many have none."""
    index, root = lookup.index_images(options.source, key), str(options.source.resolve())
    found, missing = [], []
    for item in items:
        try:
            found.append(replace(item, path=lookup.find_image(item.image_id, index, root)))
        except LookupError:
            missing.append(item.image_id)
        except ValueError as error:
            problems.append(Problem(item.file, item.row, field, str(error), item.image_id))
    if missing and not options.allow_missing:  # one problem for all: most often an archive that was not unpacked
        lost = f"{len(missing)} are missing, for example {', '.join(missing[:5])}"
        reason = f"expected the {len(missing) + len(found)} images listed, found that {lost}"
        hint = "check --source, or pass --allow-missing to go on with the others"
        problems.append(Problem(items[-1].file, None, "image", f"{reason}; {hint}"))
    return found, len(missing)


def hash_split(patient_id: str, **shares: float) -> str:
    """A split by the hash of the patient, the same on every machine; 80/10/10 without shares."""
    at = int.from_bytes(hashlib.sha256(patient_id.encode()).digest()[:8], "big") / 2**64
    for split, share in (shares or {"train": 0.8, "val": 0.1, "test": 0.1}).items():
        if at < share:
            return split
        at -= share
    return split


def patients_in_two_splits(items: Sequence[Item]) -> list[Problem]:
    """One problem for every image of a patient who is in more than one split."""
    splits, problems = defaultdict(set), []
    for item in items:
        splits[item.patient_id].add(item.split)
    for item in items:
        if len(found := sorted(splits[item.patient_id])) > 1:
            reason = f"expected patient {item.patient_id} in one split, found {', '.join(found)}"
            problems.append(Problem(item.file, item.row, "split", reason, item.image_id))
    return problems
