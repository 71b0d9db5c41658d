"""schema.py: the parsers of boxes, names and tables take what is right and refuse the rest; the example is checked."""

import csv
import os
from pathlib import PureWindowsPath

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infomask_jax.datasets import BadData, lookup, schema
from infomask_jax.datasets.schema import Problem, read_table
from infomask_jax.pixels import encode
from infomask_jax.text import normal, printable

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.floats(-3000, 3000) | st.sampled_from([0.0, 1e-30, 1e300, float("nan"), float("inf")])


@settings(max_examples=100, deadline=None)
@given(x=NUMBER, y=NUMBER, w=NUMBER, h=NUMBER, height=st.integers(1, 3000), width=st.integers(1, 3000))
@example(x=-0.5, y=-1, w=10, h=10, height=9, width=9)
def test_any_box_is_valid_or_refused(x, y, w, h, height, width):
    try:
        box = schema.unit_box(schema.parse_box([repr(v) for v in (x, y, w, h)]), height, width)
    except ValueError as error:
        assert "expected" in str(error) and "found" in str(error)
        inside = min(x, y) >= 0 and x + w <= width and y + h <= height
        assert not (inside and min(w, h) > 0.01)  # one of some area inside is kept
        return
    assert box.dtype == np.float32 and (box >= 0).all() and (box <= 1).all() and (box[:2] < box[2:]).all()
    truth = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
    assert (np.abs(box - truth) <= 1 / np.array([height, width] * 2) + 1e-6).all()  # cut by a pixel at most


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=4))
@example(["1", "2", "nan", "4"])
@example(["1", "2", "3", "-inf"])
def test_parse_box_takes_four_finite_numbers_and_nothing_else(cells):
    try:
        box = schema.parse_box(cells)
    except ValueError as error:
        assert "expected four numbers" in str(error)
    else:
        assert len(box) == 4 and np.isfinite(box).all()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.png", "C:", "\\", "~"]) | TEXT, max_size=5).map("/".join))
@example("a/../../b.png")
@example("/etc/passwd")
@example("./C:")
@example("..\\a.png")
def test_safe_name_stays_inside(name):
    root = "/data/images"
    try:
        safe = lookup.safe_name(name)
    except ValueError as error:
        assert "expected the name of an image" in str(error)
        return
    assert os.path.normpath(os.path.join(root, safe)).startswith(root + "/")
    assert not PureWindowsPath(safe).drive
    assert lookup.safe_name(safe) == safe and "\\" not in safe and "\n" not in safe


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("csv") / "t.csv"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=2, max_size=3), min_size=1, max_size=6), st.booleans())
def test_any_csv_text_returns_its_cells(path, rows, bom):
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        csv.writer(file).writerows([("id", "b"), *rows])
    problems = []
    try:
        found = read_table(path, ("id", "b"), problems)
    except BadData:
        assert not any(cell.strip() for row in rows for cell in row) or "\0" in path.read_text("utf-8")
        return
    whole = [row for row in ([normal(cell.strip()) for cell in row] for row in rows) if any(row)]
    bad = [row for row in whole if (len(row) == 3 and row[2]) or not all(map(printable, row))]
    assert [list(cells.values()) for _, cells in found] == [row[:2] for row in whole if row not in bad]
    assert [problem.image_id for problem in problems] == [row[0] for row in bad]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_as_csv_are_read_or_refused(path, data):
    path.write_bytes(b"id,b\n" + data)
    try:
        for row, cells in read_table(path, ("id", "b"), []):
            assert row > 1 and cells.keys() == {"id", "b"}
    except BadData as error:
        assert "expected" in str(error)


def test_a_table_without_rows_is_refused_whatever_came_before(path):
    path.write_text("image,finding\n\n")
    with pytest.raises(BadData, match="found only the header"):
        read_table(path, ("image",), [Problem("b.csv", 2, "row", "expected 3 cells, found 2")])


def test_check_names_every_field_that_differs():
    good = {"image": encode(np.zeros((4, 4), np.uint8)), "mask": b"", "lung": b"", "image_id": "a", "patient_id": "p"}
    good |= {"view": "", "height": 4, "width": 4, "labels": np.array([1, -1], np.int8)}
    good |= {"boxes": np.array([[0, 0, 1, 0.5]], np.float32), "box_labels": np.array([1], np.int32)}
    schema.check(good, ("x", "y"))
    bad = {"image": b"", "mask": b"no", "lung": b"no", "image_id": "", "patient_id": b"p", "height": 0}
    bad |= {"labels": np.array([1, 2], np.int8), "boxes": np.array([[0, 0.5, 1, 0.5]], np.float32)}
    for name, value in {**bad, "box_labels": np.array([2], np.int32)}.items():
        with pytest.raises(ValueError, match=name):
            schema.check(good | {name: value}, ("x", "y"))
    with pytest.raises(ValueError, match=r"(?s)labels: .*boxes: "):
        schema.check(good | {"labels": np.zeros(2), "boxes": np.zeros(4, np.float32)}, ("x", "y"))
    with pytest.raises(ValueError, match="expected fields"):
        schema.check({**good, "extra": 1}, ("x", "y"))


def test_long_lists_are_capped():
    text = schema.describe([schema.Problem("t.csv", i, "x", "wrong") for i in range(100)])
    assert text.startswith("100 problems") and text.endswith("and 80 more") and len(text.splitlines()) == 22
