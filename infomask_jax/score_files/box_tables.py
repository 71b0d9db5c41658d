"""Tables of boxes as people have them -> boxes and negatives by image: our own format, the NIH list, the RSNA labels.

Own format, one row a box: `image, finding, x, y, w, h` in pixels of a frame of `image_width` x `image_height` (needed
unless the image files are given), optional `patient`. A row with empty x, y, w, h says that the image is negative for
that finding; with an empty finding, for all of them. The two releases are recognised by their header and read as they
are; their boxes are in a frame of 1024 x 1024. An image has one size: that of its rows, whose aspect ratio its file
shares.
"""

import contextlib
import csv
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from infomask_jax.datasets import lookup, nih, rsna, schema
from infomask_jax.datasets.folder import BOX_COLUMNS
from infomask_jax.datasets.schema import BadData, Box, Problem
from infomask_jax.text import normal, shown

FRAME_COLUMNS = ("image_width", "image_height")
ALL = ""  # an image negative for it is negative for every finding


@dataclass
class BoxTable:
    """What the tables say of their images."""

    boxes: dict[str, list[tuple[str, np.ndarray]]] = field(default_factory=lambda: defaultdict(list))
    """{image: [(finding, float32 (ymin, xmin, ymax, xmax) in 0..1)]}"""
    negative: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """{image: findings that it does not have}, ALL for every finding"""
    patients: dict[str, str] = field(default_factory=dict)
    """{image: patient}, where a table says it"""
    patient_of: Callable[[str], str] | None = None
    """Patient by the name of an image, where the release names its files so"""
    spellings: dict[str, str] = field(default_factory=dict)
    """{finding in another spelling of the release: as here}"""

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
    """Read tables of boxes together.

    Args:
      paths: CSV files, of any of the formats.
      size_of: (height, width) of an image by its name, where a table does not say it; LookupError or ValueError.
      wanted: names of images; boxes of others are not sized with `size_of`, but by a frame of their own extent.
    Raises:
      BadData: a file that cannot be used, or every bad row: no number, outside the image, of no area, a box twice, an
        image both with and without a finding, two patients or two sizes of an image.
    """
    problems, found, seen, without, sized = [], BoxTable(), {}, {}, {}
    for path in map(Path, paths):
        header, scale, frames, positive = _header(path), "the image's size", {}, []
        if nih.BOX_COLUMNS[0] in header:
            rows, scale = ((row, nih.FRAME, "") for row in nih.box_rows(path, problems)), nih.FRAME[0]
            found.patient_of, found.spellings = found.patient_of or nih.patient_of, nih.SPELLINGS
        elif rsna.COLUMNS[0] in header:
            rows, scale = ((row, rsna.FRAME, "") for row in rsna.box_rows(path, problems)), rsna.FRAME[0]
            found.patient_of = found.patient_of or str  # a patient is an image there
        else:
            rows = _own_rows(path, header, size_of is not None, problems)
        for row, frame, patient in rows:
            frames[row.row], name = frame, "image"
            try:
                row = replace(row, image=lookup.safe_name(row.image))
                name = "patient"
                if patient and found.patients.setdefault(row.image, patient) != patient:
                    known = found.patients[row.image]
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
                height, width = _frame(box, frames[box.row], sized, size_of, wanted)
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


def _frame(box: Box, told: list[str] | tuple[int, int], sized: dict, size_of, wanted) -> tuple[int, int]:
    """Height and width of the frame that a box is given in. ValueError if nobody knows it, or if they do not agree.

    Args:
      told: a release's height and width, or the texts of width and height in a row.
      sized: {image: (height, width) and the box that says so}, to which this one is added.
    """
    if isinstance(told, tuple):
        return told
    image = box.image
    if not any(told):
        if size_of is None:
            raise ValueError("expected image_width and image_height, found nothing; fill them in, or give --images DIR")
        if wanted is not None and image not in wanted:
            x, y, w, h = box.xywh
            return max(1, math.ceil(y + h)), max(1, math.ceil(x + w))
        try:
            return size_of(image)
        except LookupError as error:
            reason = f"expected a file of {image!r} in --images, found none; fill in image_width, too"
            raise ValueError(reason) from error
    try:
        width, height = map(float, told)
    except ValueError:
        width = height = 0.0
    if not all(1 <= side <= 1_000_000 and side.is_integer() for side in (width, height)):
        wish = "expected image_width and image_height in pixels"
        raise ValueError(f"{wish}, found {', '.join(told)!r}; whole numbers to 1000000")
    if size_of is not None and (wanted is None or image in wanted):
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


def _own_rows(
    path: Path, header: list[str], sized: bool, problems: list[Problem]
) -> Iterator[tuple[Box, list[str], str]]:
    """The rows of a table in our own format, with the texts of width and height, and the patient."""
    if BOX_COLUMNS[0] not in header:
        own, releases = (
            ", ".join((*BOX_COLUMNS, *FRAME_COLUMNS)),
            f"NIH's BBox_List_2017.csv or of RSNA's {rsna.TABLES[0]}",
        )
        reason = f"expected the columns {own}, or the header of {releases}; found {shown(', '.join(header)) or 'none'}"
        raise BadData(f"{path}, row 1: {reason}")
    if {*BOX_COLUMNS} <= {*header} and not sized and not {*FRAME_COLUMNS} <= {*header}:
        wish = f"{', '.join(FRAME_COLUMNS)} in pixels, or the image files, with --images DIR"
        raise BadData(f"{path}, row 1: expected also the columns {wish}")
    for number, cells in schema.read_table(path, BOX_COLUMNS, problems, (*FRAME_COLUMNS, "patient")):
        image, finding, *xywh = (cells[name] for name in BOX_COLUMNS)
        row = Box(path.name, number, "x, y, w, h", image, finding, tuple(xywh))
        yield row, [cells.get(name, "") for name in FRAME_COLUMNS], cells.get("patient", "")
