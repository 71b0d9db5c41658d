"""Anyone's own data: a folder of images, a table of labels and, if there is one, a table of boxes."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from infomask_jax.datasets import groups, lookup, schema
from infomask_jax.datasets.schema import BadData, Box, Item, Problem, Release
from infomask_jax.text import normal

BOX_COLUMNS = ("image", "finding", "x", "y", "w", "h")
FRAME_COLUMNS = ("image_height", "image_width")  # what the boxes of a table to score with are given in
OTHER_COLUMNS = ("image", "patient", "split", "view", "sex", "age")  # every further column of labels.csv is a finding


@dataclass(frozen=True)
class Folder(schema.Options):
    """Prepares your own images (PNG, JPEG or DICOM)."""

    source: Path
    """Folder with labels.csv: image (its name below the folder of images), one column a finding with 0, 1 or empty, and
    optional patient, split (train, val or test), view, sex and age (years); optional boxes.csv: image, finding, x, y,
    w, h in pixels of the image. Without split, patients (without patient, images) are split 80/10/10 by their hash."""
    images: str = ""
    """Folder of images below the source; "images" where there is such a folder, otherwise the source itself."""
    findings: tuple[str, ...] = ()
    """Findings to keep, the only columns then read as such; none: every other column. Images of the others stay, and
    their boxes count for Wang's AFP alone."""
    matched: Literal["", "view"] = ""
    """view: leave out negatives of train and val until each view has as large a share of them as of the positives (one
    finding alone; a model that knows the view then knows nothing of the label)."""


def read(options: Folder, problems: list[Problem]) -> Release:
    """Reads tables and finds images; adds to `problems`. BadData where a table cannot be used at all."""
    tables = [options.source / "labels.csv", options.source / "boxes.csv"]
    rows = schema.read_table(tables[0], ("image",), problems, OTHER_COLUMNS)
    columns = tuple(name for name in (rows[0][1] if rows else ()) if name not in OTHER_COLUMNS)
    if rows and not columns:
        raise BadData(f"{tables[0]}, row 1: expected a column for each finding, found only {', '.join(rows[0][1])}")
    asked = tuple(map(normal, options.findings))
    if unknown := [name for name in asked if name not in columns]:
        raise BadData(f"--findings: expected some of {', '.join(columns)}; found {', '.join(unknown)}")
    findings = tuple(name for name in columns if name in asked or not asked)
    groups.check_matched(options, findings)
    labelled = [name for name in findings if not _other(name, rows, tables[0].name, problems)]
    folder = options.source / (options.images or ("images" if (options.source / "images").is_dir() else ""))
    root, locate = str(folder.resolve()), lookup.locator(folder)

    items, seen, files, values = [], {}, {}, {}
    for row, cells in rows:
        image_id, path, wrong = cells["image"], None, []
        try:
            image_id = lookup.safe_name(image_id)
            path = locate(image_id)
            if image_id in seen:
                raise ValueError(f"expected each image once, found {image_id!r} also in row {seen[image_id]}")
            if not os.path.isfile(path):  # which a name of over 255 bytes does not stop
                raise ValueError(f"expected a file in {folder}, found no {image_id!r}")
            if not lookup.inside(path, root):
                raise ValueError(f"expected a file inside {folder}, found a link to {os.path.realpath(path)}")
            if (other := files.setdefault(os.path.realpath(path), image_id)) != image_id:
                raise ValueError(f"expected each image once, found {image_id!r} to be the same file as {other!r}")
        except ValueError as error:
            wrong.append(("image", str(error)))
        seen.setdefault(image_id, row)
        values.setdefault(image_id, {name: schema.LABELS.get(cells[name], -1) for name in columns})
        odd = [name for name in labelled if cells[name] not in schema.LABELS]
        wrong += [(name, f"expected 0, 1 or nothing, found {cells[name]!r}") for name in odd]
        patient = cells.get("patient") or image_id
        split = cells.get("split", schema.hash_split(patient))
        if split not in schema.SPLITS:
            wrong.append(("split", f"expected one of {', '.join(schema.SPLITS)}; found {split!r}"))
        problems += [Problem(tables[0].name, row, *w, image_id) for w in wrong]
        if not wrong:
            labels, view = tuple(values[image_id][name] for name in findings), cells.get("view", "")
            about = groups.about(cells.get("sex", ""), cells.get("age", ""))
            items.append(Item(image_id, patient, split, labels, path, view, (), None, tables[0].name, row, about))
    problems += schema.patients_in_two_splits(items)
    if tables[1].is_file():
        boxes = schema.parse_boxes(_labelled(tables[1], values, problems), problems)
        items = [replace(item, boxes=tuple(boxes[item.image_id])) for item in items]
    return Release(findings, groups.matched(items, options), [*tables, folder], notes=_unlisted(folder, files))


def _unlisted(folder: Path, files: dict[str, str]) -> tuple[str, ...]:
    """A line of the images in a folder that have no row; `files` has the paths of those that have one."""
    paths = [path for those in lookup.index_images(folder, "name").values() for path in those]
    if not (left := sorted(str(path) for path in paths if os.path.realpath(path) not in files)):
        return ()
    return (f"{len(left)} images in {folder} have no row in labels.csv and are left out, for example {left[0]}",)


def box_rows(path: Path, problems: list[Problem], optional: Sequence[str] = ()) -> Iterator[Box]:
    """The rows of a table in our own format."""
    for row, cells in schema.read_table(path, BOX_COLUMNS, problems, optional):
        image, finding, *xywh = (cells[name] for name in BOX_COLUMNS)
        frame, patient = tuple(cells.get(name, "") for name in FRAME_COLUMNS), cells.get("patient", "")
        yield Box(path.name, row, "x, y, w, h", image, finding, tuple(xywh), frame, patient)


def _other(name: str, rows: list, file: str, problems: list[Problem]) -> bool:
    """Whether most cells of a column are no labels: one problem for all of them."""
    odd = [(row, cells[name]) for row, cells in rows if cells[name] not in schema.LABELS]
    if len(odd) < 2 or 2 * len(odd) < sum(cells[name] != "" for _, cells in rows):
        return False
    found = f"{odd[0][1]!r} in row {odd[0][0]} and so on, {len(odd)} of {len(rows)}"
    hint = f"Every column but {', '.join(OTHER_COLUMNS)} is taken as a finding: name the findings with --findings"
    reason = f"expected 0, 1 or nothing in its rows, found {found}. {hint}, or remove the column"
    problems.append(Problem(file, None, name, reason))
    return True


def _labelled(path: Path, values: dict[str, dict[str, int]], problems: list[Problem]) -> Iterator[Box]:
    """The rows whose image is listed with their finding."""
    for box in box_rows(path, problems):
        field = "image"
        try:
            box = replace(box, image=lookup.safe_name(box.image))
            if box.image not in values:
                raise ValueError(f"expected an image of labels.csv, found {box.image!r}")
            field = "finding"
            if box.finding not in values[box.image]:
                raise ValueError(f"expected one of {', '.join(values[box.image])}; found {box.finding!r}")
            if values[box.image][box.finding] != 1:
                raise ValueError(f"expected label 1 for a finding with a box, found it is not for {box.finding}")
            yield box
        except ValueError as error:
            problems.append(box.problem(error, field))
