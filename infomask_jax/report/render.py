"""Sheets on the screen (rich), in Markdown and in LaTeX (booktabs); scores as files."""

import json
import re
from itertools import groupby
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from infomask_jax.report.sheet import BOXES, Cell, Sheet
from infomask_jax.report.table import document
from infomask_jax.system import write_all
from infomask_jax.text import as_csv

STYLE = {"box": box.SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left", "show_edge": False}
DENSE = 6  # columns from which a table on the screen is set without padding
LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "≥": r"$\geq$", "–": "--", "|": r"\textbar{}", '"': "''", "`": r"\`{}"},
    **{"[": "{[}", "*": "{*}", "\0": "{}"},  # after the \\ of a row, both would be read as its argument
}


def console() -> Console:
    """Where tables go: the terminal, or, into a file or pipe, lines of 120 columns."""
    found = Console(markup=False)
    return found if found.is_terminal else Console(width=120, markup=False)


def print_scores(result: dict, console: Console, protocols: bool = False) -> None:
    """Print an eval/SPLIT.json; the published protocols' tables only if asked for."""
    title, sheets, lines = document(result)
    console.print(screen(title, [sheet for sheet in sheets if protocols or sheet.kind != "protocol"], lines))


def write_scores(stem: Path, scores: dict, rows: list[dict]) -> list[Path]:
    """Write STEM.json, STEM.md, STEM.tex and STEM.csv of what `evaluate.score` returns; return their paths."""
    return write_all({stem.with_name(f"{stem.name}.{ending}"): text for ending, text in render(scores, rows).items()})


def render(scores: dict, rows: list[dict]) -> dict[str, str]:
    """Scores and the scores of each image as the text of every file: {"json", "md", "tex", "csv"}.

    The CSV has a column for every key of any row; whole numbers are without a point, None is nothing.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    whole = [[int(v) if isinstance(v, float) and v.is_integer() else v for v in line] for line in cells]
    return {
        "json": json.dumps(scores, indent=1, allow_nan=False) + "\n",
        "md": as_markdown(*document(scores)),
        "tex": as_latex(*document(scores)),
        "csv": as_csv([columns, *whole]),
    }


def write_predictions(path: Path, findings: list[str], examples: dict) -> None:
    """predictions/SPLIT.csv: image_id, patient_id and, for each finding, the label (empty: unknown) and probability."""
    rows = [["image_id", "patient_id", *(f"{name} {what}" for name in findings for what in ("label", "probability"))]]
    columns = (examples[name] for name in ("image_id", "patient_id", "labels", "probabilities"))
    for image_id, patient_id, labels, probabilities in zip(*columns, strict=True):
        cells = zip(("" if label < 0 else int(label) for label in labels), probabilities, strict=True)
        rows.append([image_id, patient_id, *(cell for label, p in cells for cell in (label, f"{p:.6g}"))])
    write_all({path: as_csv(rows)})


def screen(title: str, sheets: list[Sheet], lines: list[str]) -> Group:
    """A title, sheets and closing lines, for a terminal of 100 columns or more."""
    parts = [Text(title, style="bold"), Text(), *map(_table, sheets)]
    return Group(*parts, *[Text(line, style="bold") for line in lines])


def _table(sheet: Sheet) -> Table:
    dense = len(sheet.headings) > DENSE
    table = Table(title=Text(sheet.title, style="italic"), **STYLE, **({"padding": 0} if dense else {}))
    table.caption = Text("\n".join([*sheet.notes, ""]), style="dim italic")
    # Dense tables of scores fit 100 columns; their methods' names fold before any number does.
    fixed = {"headline": 9, "protocol": 9, "differences": 11}.get(sheet.kind) if dense else None
    longest = 15 if sheet.kind == "differences" else max((len(row.name) for row in sheet.rows), default=0)
    limits = {"min_width": min(20, longest), "max_width": 20} if fixed else {}
    table.add_column(Text(sheet.headings[0]), overflow="fold", **limits)
    for name in sheet.headings[1:]:
        width = 6 if name in (BOXES, "cut at") and dense else fixed
        table.add_column(Text(name), justify="right", max_width=width)
    for group, rows in groupby(sheet.rows, key=lambda row: row.group):
        if group:
            table.add_section()
            table.add_row(Text(group, style="dim"))
        for row in rows:
            cells = []
            for cell in row.cells:
                text = Text(cell.text + cell.mark, style=cell.verdict or ("bold" if cell.bold else ""))
                cells.append(text.append(f"\n{cell.below}" if cell.below else "", style="not bold dim"))
            table.add_row(Text(row.name, style="italic cyan" if group else ""), *cells)
    return table


def as_markdown(title: str, sheets: list[Sheet], lines: list[str]) -> str:
    """A title, sheets and closing lines, as Markdown."""
    parts = [f"# {_plain(title)}"]
    for sheet in sheets:
        empty = [""] * (len(sheet.headings) - 1)
        table = [map(_plain, sheet.headings), ["---", *("---:" for _ in empty)]]
        for group, rows in groupby(sheet.rows, key=lambda row: row.group):
            table += [[f"*{_plain(group)}*", *empty]] if group else []
            table += [[_plain(row.name), *map(_markdown_cell, row.cells)] for row in rows]
        bars = [f"| {' | '.join(cells)} |" for cells in table]
        parts.append("\n".join([f"## {_plain(sheet.title)}", "", *bars, *(f"\n{_plain(note)}" for note in sheet.notes)]))
    return "\n\n".join([*parts, *map(_plain, lines)]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.bold else _plain(cell.text)
    return text + _plain(cell.mark) + (f" ({_plain(cell.below)})" if cell.below else "")


def _plain(text: str) -> str:
    """Text -> Markdown that prints it."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)


def as_latex(title: str, sheets: list[Sheet], lines: list[str]) -> str:
    """Every sheet as a `table` with booktabs rules, an interval below its score; title and closing lines in comments."""
    parts = [f"{_comment(title)}\n% needs \\usepackage{{booktabs}}"]
    for sheet in sheets:
        columns = len(sheet.headings)
        table = [
            r"\begin{table}[htbp]",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(sheet.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            _ampersands(map(escape, sheet.headings)),
        ]
        for group, rows in groupby(sheet.rows, key=lambda row: row.group):
            table.append(r"\midrule")
            if group:
                table.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(group)}}}}} \\")
            for row in rows:
                table.append(_ampersands([escape(row.name), *map(_latex_cell, row.cells)]))
                if any(cell.below for cell in row.cells):
                    below = [rf"{{\scriptsize {escape(c.below)}}}" if c.below else "" for c in row.cells]
                    table.append(_ampersands(["", *below]))
        table += [r"\bottomrule", r"\end{tabular}"]
        table += [rf"\par\smallskip{{\footnotesize {escape('; '.join(sheet.notes))}}}"] if sheet.notes else []
        parts.append("\n".join([*table, r"\end{table}"]))
    return "\n\n".join([*parts, *map(_comment, lines)]) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
    return text + ("$^*$" if cell.mark else "")


def _ampersands(cells) -> str:
    return " & ".join(cells) + r" \\"


def _comment(text: str) -> str:
    return f"% {' '.join(text.split())}"


def escape(text: str) -> str:
    """Text -> LaTeX that prints it."""
    apart = re.sub("-(?=-)", "-\0", text)  # or they print as a dash
    return "".join(LATEX.get(character, character) for character in apart)
