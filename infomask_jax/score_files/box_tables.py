"""Tables of boxes as people have them -> boxes and negatives by image: our own format, the NIH list, the RSNA labels.

Own format, one row a box: `image, finding, x, y, w, h` in pixels of `image_width` x `image_height` (needed unless the
image files are given), optional `patient`. A row without x, y, w, h says that the image is negative for that finding;
with an empty finding, for all. The releases are recognised by their header; their boxes are in 1024 x 1024.
"""

import contextlib
import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infomask_jax.datasets import folder, lookup, nih, rsna, schema
from infomask_jax.datasets.schema import BadData, Box
from infomask_jax.text import normal, shown

ALL = ""  # an image negative for it is negative for every finding


@dataclass
class BoxTable:
    """What the tables say of their images."""

    # {image: [(finding, float32 (ymin, xmin, ymax, xmax) in 0..1)]}
    boxes: dict[str, list[tuple[str, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    # {image: findings that it does not have}, ALL for every finding
    negative: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    patients: dict[str, str] = field(default_factory=dict)  # {image: patient}, where a table says it
    patient_of: Callable[[str], str] | None = None  # patient by the name of an image, where the release names files so
    spellings: dict[str, str] = field(default_factory=dict)  # {finding in another spelling of the release: as here}

    @property
    def boxed(self) -> list[str]:
        """Every finding with a box, in order of appearance."""
        return list(dict.fromkeys(finding for own in self.boxes.values() for finding, _ in own))

    @property
    def findings(self) -> list[str]:
        """Every finding named, in order of appearance, those with boxes first."""
        negative = [finding for own in self.negative.values() for finding in sorted(own) if finding != ALL]
        return list(dict.fromkeys([*self.boxed, *negative]))


def read(
    paths, size_of: Callable[[str], tuple[int, int]] | None = None, wanted: Container[str] | None = None
) -> BoxTable:
    """Read tables of boxes, of any of the formats, together. BadData for a file that cannot be used, or all bad rows.

    Args:
      size_of: (height, width) of an image by its name, where a table does not say it; LookupError or ValueError.
      wanted: names of images; boxes of others are not sized with `size_of`, but by a frame of their own extent.
    """
    problems, found, seen, without, sized = [], BoxTable(), {}, {}, {}
    for path in map(Path, paths):
        header, scale, positive = _header(path), "the image's size", []
        if nih.BOX_COLUMNS[0] in header:
            rows, scale = nih.box_rows(path, problems), nih.FRAME[0]
            found.patient_of, found.spellings = found.patient_of or nih.patient_of, nih.SPELLINGS
        elif rsna.COLUMNS[0] in header:
            rows, scale = rsna.box_rows(path, problems), rsna.FRAME[0]
            found.patient_of = found.patient_of or str  # a patient is an image there
        else:
            _check_own(path, header, size_of is not None)
            rows = folder.box_rows(path, problems, (*folder.FRAME_COLUMNS, "patient"))
        for row in rows:
            name = "image"
            try:
                row = replace(row, image=lookup.safe_name(row.image))
                name = "patient"
                known = found.patients.setdefault(row.image, row.patient) if row.patient else ""
                if known != row.patient:
                    raise ValueError(f"expected one patient of {row.image!r}, found also {known!r}")
                name = "finding"
                if any(row.cells) and row.finding == ALL:
                    raise ValueError("expected the finding of the box, found nothing")
            except ValueError as error:
                problems.append(row.problem(error, name))
                continue
            if any(row.cells):
                positive.append(row)
            else:
                found.negative[row.image].add(row.finding)
                without.setdefault((row.image, row.finding), row)
        for box in itertools.chain(*schema.parse_boxes(positive, problems, scale, seen).values()):
            try:
                height, width = _frame(box, sized, size_of, wanted)
                found.boxes[box.image].append((box.finding, schema.unit_box(box.xywh, height, width)))
            except ValueError as error:
                problems.append(box.problem(error))
    for box in seen.values():
        if other := without.get((box.image, box.finding)) or without.get((box.image, ALL)):
            place = f"{box.image!r} negative in {other.file}, row {other.row}"
            problems.append(box.problem(f"expected no box of an image that is negative, found {place}"))
    if problems:
        raise BadData(schema.describe(problems))
    return found


def _frame(box: Box, sized: dict, size_of, wanted) -> tuple[int, int]:
    """Height and width of the frame that a box is given in, if it is known and agrees with `sized`, {image: (height,
    width) and the box that says so}, to which it is added."""
    if box.frame in (nih.FRAME, rsna.FRAME):
        return box.frame
    image, named = box.image, size_of is not None and (wanted is None or box.image in wanted)
    if not any(box.frame):
        if size_of is None:
            raise ValueError("expected image_width and image_height, found nothing; fill them in, or give --images DIR")
        if not named:
            x, y, w, h = box.xywh
            return max(1, math.ceil(y + h)), max(1, math.ceil(x + w))
        try:
            return size_of(image)
        except LookupError as error:
            wish = f"a file of {image!r} in --images, found none; fill in image_width, too"
            raise ValueError(f"expected {wish}") from error
    try:
        height, width = map(float, box.frame)
    except ValueError:
        height = width = 0.0
    if not all(1 <= side <= 1_000_000 and side.is_integer() for side in (height, width)):
        found = repr(", ".join(box.frame[::-1]))
        raise ValueError(f"expected image_width and image_height in pixels, found {found}; whole numbers to 1000000")
    if named:
        with contextlib.suppress(LookupError):
            rows, columns = size_of(image)
            if abs(columns * height - rows * width) > 0.01 * rows * width:
                shapes = f"{columns} x {rows}, found {width:g} x {height:g}"
                raise ValueError(f"expected image_width x image_height in the aspect ratio of its file, {shapes}")
    size, other = sized.setdefault(image, ((int(height), int(width)), box))
    if size != (height, width):
        place = f"{size[1]} x {size[0]} in {other.file}, row {other.row}"
        raise ValueError(f"expected one size of {image!r}, found {width:g} x {height:g}, and {place}")
    return size


def _header(path: Path) -> list[str]:
    if not path.is_file():
        raise BadData(f"--boxes: expected a table of boxes, found no file {path}")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [normal(cell.strip())[:40] for cell in next(csv.reader([file.readline(10_000)]), [])]


def _check_own(path: Path, header: list[str], sized: bool) -> None:
    """Raises BadData, where our own columns are missing."""
    own, frame = folder.BOX_COLUMNS, folder.FRAME_COLUMNS[::-1]
    if own[0] not in header:
        releases = f"NIH's BBox_List_2017.csv or of RSNA's {rsna.TABLES[0]}"
        wish = f"the columns {', '.join((*own, *frame))}, or the header of {releases}"
        raise BadData(f"{path}, row 1: expected {wish}; found {shown(', '.join(header)) or 'none'}")
    if {*own} <= {*header} and not sized and not {*frame} <= {*header}:
        wish = f"{', '.join(frame)} in pixels, or the image files, with --images DIR"
        raise BadData(f"{path}, row 1: expected also the columns {wish}")
