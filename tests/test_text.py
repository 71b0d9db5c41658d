"""text.py: one Unicode form, what may be printed, and CSV that no spreadsheet runs."""

import csv
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infomask_jax.text import FORMULA, as_csv, normal, printable, shown

ODD = ["a\x1b[31m", "a\x9b1m", "a\nb", "a\u2028b", "a\u202eb", "a\u2066b", "\ufeffa", "a\x7f", "a\0", "a\ud800"]


@pytest.mark.parametrize("text", ODD)
def test_what_a_terminal_would_obey_is_not_printable(text):
    assert not printable(text) and printable(shown(text)) and shown(text) != text


@pytest.mark.parametrize("text", ["ré", "re\u0301", "胸部\u3000正面", "a\xa0b", "می\u200cخواهم", "", "a b"])
def test_what_people_write_is_printable(text):
    assert printable(text) and shown(text) == text
    assert normal(unicodedata.normalize("NFD", text)) == normal(text)


@given(
    st.lists(st.text(st.characters(codec="utf-8")) | st.sampled_from(["=1+1", "-a", "+a", "@a", "\t=1", "\r=1", "＝1"]))
)
def test_no_text_of_a_csv_is_a_formula_or_lost(texts):
    cells = next(csv.reader(as_csv([[*texts, "end"]]).splitlines(), strict=True))
    assert not any(cell.startswith(tuple(FORMULA)) for cell in cells)
    plain = [cell[1:] if text[:1] in tuple(FORMULA) else cell for text, cell in zip(texts, cells, strict=False)]
    assert plain == [shown(text) for text in texts]


def test_numbers_of_a_csv_are_as_they_are():
    assert as_csv([["-x", -1, -0.5, np.float32(-2), np.int64(-3), None]]) == "'-x,-1,-0.5,-2.0,-3,\n"
