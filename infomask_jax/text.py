"""Text from outside: in one Unicode form, printable, and in CSV files that a spreadsheet only shows."""

import csv
import io
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Number

FORMULA = "=+-@＝＋－＠\t\r"  # a cell that begins with one of these is run by a spreadsheet (OWASP, CSV injection)
JOINERS = "\u200c\u200d"  # of Persian and Indic words, and of emoji


def normal(text: str) -> str:
    """The text in the composed form (NFC): macOS and some archives write é as e and an accent (NFD)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def printable(text: str) -> bool:
    """Whether it shows as it is: no control characters, line breaks or changes of the direction of writing."""
    return text.isprintable() or all(map(_shows, text))


def shown(text: str) -> str:
    """The text with escapes in the place of what is not printable."""
    return text if text.isprintable() else "".join(c if _shows(c) else ascii(c)[1:-1] for c in text)


def line(error: Exception) -> str:
    """What an error says, in one line: at most 600 characters, for a damaged file may make it quote anything."""
    return shown(" ".join(str(error).split())[:600]) or type(error).__name__


def as_csv(rows: Iterable[Sequence]) -> str:
    """Rows as CSV. Text that a spreadsheet would run as a formula has an apostrophe before it, in headings, too;
    numbers are as they are, None is nothing, and what is not printable is escaped."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(map(csv_cell, row) for row in rows)
    return file.getvalue()


def csv_cell(value):
    """One cell as `as_csv` writes it."""
    if value is None or isinstance(value, Number):
        return value
    text = str(value)
    return shown("'" + text if text.startswith(tuple(FORMULA)) else text)


def _shows(character: str) -> bool:
    return character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs"
