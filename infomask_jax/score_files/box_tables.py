"""Tables of boxes as people have them -> boxes and negatives by image: our own format, the NIH list, the RSNA labels.

Own format, one row a box: `image, finding, x, y, w, h` in pixels of a frame of `image_width` x `image_height` (needed
unless the image files are given), optional `patient`. A row with empty x, y, w, h says that the image is negative for
that finding; with an empty finding, for all of them. The two releases are recognised by their header and read as they
are; their boxes are in a frame of 1024 x 1024. An image has one size: that of its rows, whose aspect ratio its file
shares.
"""

import contextlib
import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from infomask_jax.datasets import lookup, nih, rsna, schema
from infomask_jax.datasets.schema import BadData, Box, Problem
from infomask_jax.text import normal, shown

OWN = ("image", "finding", "x", "y", "w", "h")
OWN_TOO = ("image_width", "image_height", "patient")
NIH = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
RSNA = ("patientId", "x", "y", "width", "height", "Target")
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


@dataclass(frozen=True)
class Row:
    """One row of any of the formats."""

    file: str
    row: int
    image: str
    finding: str
    xywh: list[str]  # texts; all empty: negative
    fields: str  # what the table calls them
    frame: list[str] | tuple[int, int]  # texts of width and height, or the release's (height, width)
    patient: str = ""


def read(paths, size_of: Callable[[str], tuple[int, int]] | None = None, wanted=None) -> BoxTable:
    """Read tables of boxes together.

    Args:
      paths: CSV files, of any of the formats.
      size_of: (height, width) of an image by its name, where a table does not say it; LookupError or ValueError.
      wanted: names of images; boxes of others are not sized with `size_of`, but by a frame of their own extent.
    Raises:
      BadData: a file that cannot be used, or every bad row: no number, outside the image, of no area, a box twice, an
        image both with and without a finding, two patients or two sizes of an image.
    """
    problems, found, seen, drawn, sized = [], BoxTable(), {}, {}, {}
    for path in paths:
        rows, patient_of = _rows(Path(path), size_of is not None, problems)
        found.patient_of = found.patient_of or patient_of
        if patient_of is _nih_patient:
            found.spellings = nih.SPELLINGS
        own, fields, scale = [], "", "the image's size"
        for row in rows:
            name = "image"
            try:
                image = lookup.safe_name(row.image)
                if row.patient and found.patients.setdefault(image, row.patient) != row.patient:
                    name = "patient"
                    raise ValueError(f"expected one patient of {image!r}, found also {found.patients[image]!r}")
                name = row.fields
                if not any(row.xywh):
                    found.negative[image].add(row.finding)
                    seen.setdefault((image, row.finding), row)
                    continue
                if row.finding == ALL:
                    name = "finding"
                    raise ValueError("expected the finding of the box, found nothing")
                xywh = schema.parse_box(row.xywh)
                schema.check_once(drawn, (image, row.finding, xywh), row)
                own.append((image, Box(0, xywh, row.file, row.row)))
                fields, scale = row.fields, str(row.frame[0]) if isinstance(row.frame, tuple) else scale
                height, width = _frame(row, xywh, image, size_of, wanted)
                if not isinstance(row.frame, tuple) and any(row.frame):
                    size, other = sized.setdefault(image, ((height, width), row))
                    if size != (height, width):
                        place = f"{size[1]} x {size[0]} in {other.file}, row {other.row}"
                        raise ValueError(f"expected one size of {image!r}, found {width} x {height}, and {place}")
                found.boxes[image].append((row.finding, schema.unit_box(xywh, height, width)))
            except ValueError as error:
                problems.append(Problem(row.file, row.row, name, str(error), row.image))
        problems += schema.check_pixels(own, fields, scale)
    for (image, finding, _), row in drawn.items():
        if other := seen.get((image, finding)) or seen.get((image, ALL)):
            reason = f"expected no box of an image that is negative, found {image!r} negative in {other.file}, row "
            problems.append(Problem(row.file, row.row, row.fields, f"{reason}{other.row}", image))
    if problems:
        raise BadData(schema.describe(problems))
    return found


def _frame(row: Row, xywh, image: str, size_of, wanted) -> tuple[int, int]:
    """Height and width of the frame that a box is given in. ValueError if nobody knows it."""
    if isinstance(row.frame, tuple):
        return row.frame
    if any(row.frame):
        try:
            width, height = map(float, row.frame)
        except ValueError:
            width = height = 0.0
        if not all(1 <= side <= 1_000_000 and side.is_integer() for side in (width, height)):
            wish = "expected image_width and image_height in pixels"
            raise ValueError(f"{wish}, found {', '.join(row.frame)!r}; whole numbers to 1000000")
        if size_of is not None and (wanted is None or image in wanted):
            with contextlib.suppress(LookupError):
                rows, columns = size_of(image)
                if abs(columns * height - rows * width) > 0.01 * rows * width:
                    shapes = f"{columns} x {rows}, found {width:g} x {height:g}"
                    raise ValueError(f"expected image_width x image_height in the aspect ratio of its file, {shapes}")
        return int(height), int(width)
    if size_of is None:
        raise ValueError("expected image_width and image_height, found nothing; fill them in, or give --images DIR")
    if wanted is not None and image not in wanted:
        x, y, w, h = xywh
        return max(1, int(np.ceil(y + h))), max(1, int(np.ceil(x + w)))
    try:
        return size_of(image)
    except LookupError as error:
        raise ValueError(f"expected a file of {image!r} in --images, found none; fill in image_width, too") from error


def _rows(path: Path, sized: bool, problems: list[Problem]) -> tuple[Iterator[Row], Callable[[str], str] | None]:
    """The rows of a table in whichever format it is, and how that release names patients."""
    header = _header(path)
    if NIH[0] in header:
        return _nih(path, problems), _nih_patient
    if RSNA[0] in header:
        return _rsna(path, problems), str  # a patient is an image there
    if OWN[0] in header:
        if set(OWN) <= set(header) and not sized and not {"image_width", "image_height"} <= set(header):
            wish = "or the image files, with --images DIR"
            raise BadData(f"{path}, row 1: expected also the columns image_width, image_height in pixels, {wish}")
        return _own(path, problems), None
    raise BadData(
        f"{path}, row 1: expected the columns {', '.join(OWN)}, image_width, image_height, or the header of NIH's "
        f"BBox_List_2017.csv or of RSNA's stage_2_train_labels.csv; found {shown(', '.join(header)) or 'none'}"
    )


def _header(path: Path) -> list[str]:
    if not path.is_file():
        raise BadData(f"--boxes: expected a table of boxes, found no file {path}")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        return [normal(cell.strip())[:40] for cell in next(csv.reader([file.readline(10_000)]), [])]


def _own(path: Path, problems: list[Problem]) -> Iterator[Row]:
    for number, cells in schema.read_table(path, OWN, problems, OWN_TOO):
        xywh, size = ([cells.get(name, "") for name in names] for names in (OWN[2:], ("image_width", "image_height")))
        patient = cells.get("patient", "")
        yield Row(path.name, number, cells["image"], cells["finding"], xywh, "x, y, w, h", size, patient)


def _nih(path: Path, problems: list[Problem]) -> Iterator[Row]:
    for number, cells in schema.read_table(path, NIH, problems):
        image, finding = cells[NIH[0]], nih.SPELLINGS.get(cells[NIH[1]], cells[NIH[1]])
        xywh = [cells[name] for name in NIH[2:]]
        if finding not in nih.FINDINGS:
            reason = f"expected one of {', '.join(nih.FINDINGS)}; found {finding!r}"
            problems.append(Problem(path.name, number, NIH[1], reason, image))
        elif not any(xywh):
            problems.append(Problem(path.name, number, "Bbox [x,y,w,h]", "expected a box, found nothing", image))
        else:
            yield Row(path.name, number, image, finding, xywh, "Bbox [x,y,w,h]", nih.FRAME)


def _nih_patient(image: str) -> str:
    """Of 00013118_008.png, the ninth film of patient 13118; none of names that are not NIH's."""
    name = re.fullmatch(r"(?:.*/)?(\d+)_\d{3}(?:\.\w+)?", image)
    return name.group(1) if name else ""


def _rsna(path: Path, problems: list[Problem]) -> Iterator[Row]:
    for number, cells in schema.read_table(path, RSNA, problems):
        image, target, xywh = cells["patientId"], cells["Target"], [cells[name] for name in RSNA[1:5]]
        positive = schema.LABELS.get(target, -1)
        if positive < 0:
            problems.append(Problem(path.name, number, "Target", f"expected 0 or 1, found {target!r}", image))
        elif positive != any(xywh):
            reason = f"expected a box with Target 1 and none with 0, found {', '.join(xywh)!r} with {target}"
            problems.append(Problem(path.name, number, "Target", reason, image))
        else:
            yield Row(path.name, number, image, rsna.FINDINGS[0], xywh, "x, y, width, height", rsna.FRAME)
