"""schema.py and lookup.py: parsers of boxes, names and tables take what is right and refuse the rest."""

import csv
import os
from pathlib import PureWindowsPath

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from releases import NFC, NFD

from infomask_jax.datasets import BadData, lookup, schema
from infomask_jax.datasets.schema import Box, Problem, read_table
from infomask_jax.text import normal, printable

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBER = st.floats(-3000, 3000) | st.sampled_from([0.0, 1e-30, 1e300, float("nan"), float("inf")])


@settings(max_examples=100, deadline=None)
@given(x=NUMBER, y=NUMBER, w=NUMBER, h=NUMBER, height=st.integers(1, 3000), width=st.integers(1, 3000))
@example(x=-0.5, y=-1, w=10, h=10, height=9, width=9)
def test_any_box_is_valid_or_refused(x, y, w, h, height, width):
    try:
        box = schema.unit_box((x, y, w, h), height, width)
    except ValueError as error:
        assert "expected" in str(error) and "found" in str(error)
        inside = min(x, y) >= 0 and x + w <= width and y + h <= height
        assert not (inside and min(w, h) > 0.01)  # one of some area inside is kept
        return
    assert box.dtype == np.float32 and (box >= 0).all() and (box <= 1).all() and (box[:2] < box[2:]).all()
    truth = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
    assert (np.abs(box - truth) <= 1 / np.array([height, width] * 2) + 1e-6).all()  # cut by a pixel at most


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, min_size=4, max_size=4))
@example(["1", "2", "nan", "4"])
@example(["1", "2", "3", "-inf"])
def test_a_box_is_four_finite_numbers_and_nothing_else(cells):
    problems = []
    found = schema.parse_boxes([Box("b.csv", 2, "x, y, w, h", "a", "mass", tuple(cells))], problems)
    assert all(np.isfinite(box.xywh).all() for box in found["a"])
    assert found["a"] or "expected four numbers" in str(problems[0])


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


def test_long_lists_are_capped():
    text = schema.describe([Problem("t.csv", i, "x", "wrong") for i in range(100)])
    assert text.startswith("100 problems") and text.endswith("and 80 more") and len(text.splitlines()) == 22


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


@pytest.mark.parametrize("there", [NFC, NFD])
@pytest.mark.parametrize("asked", [NFC, NFD])
def test_a_name_finds_its_file_in_either_unicode_form(tmp_path, there, asked):
    touch(tmp_path, f"{there}/{there}.png", "plain.png")
    locate = lookup.locator(tmp_path)
    assert locate(f"{asked}/{asked}.png") == tmp_path / there / f"{there}.png"
    assert locate("plain.png") == tmp_path / "plain.png" and not locate(f"{asked}/none.png").exists()
    index = lookup.index_images(tmp_path, "stem", (".png",))
    assert lookup.find_image(NFC, index, str(tmp_path)) == tmp_path / there / f"{there}.png"


def test_two_files_that_look_the_same_are_a_clash_and_hidden_ones_are_not_looked_at(tmp_path):
    root = tmp_path / ".cache" / "films"
    touch(root, f"{NFC}.png", f"{NFD}.png", "._a.png", "__MACOSX/a.png", ".trash/a.png", "sub/b.png")
    index = lookup.index_images(root, "stem", (".png",))
    assert index.keys() == {NFC, "b"} and lookup.locator(root)("._a.png") == root / "._a.png"  # asked for by name
    for find in (lambda: lookup.locator(root)(f"{NFC}.png"), lambda: lookup.find_image(NFC, index, str(root))):
        with pytest.raises(ValueError, match="expected one file") as error:
            find()
        assert r"\xe9" in str(error.value) and r"\u0301" in str(error.value)
