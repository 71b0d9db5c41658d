"""Sheets on the screen (rich), and documents by Jinja's templates beside this file: Markdown, LaTeX, HTML."""

import json
import re
from functools import partial
from itertools import groupby
from pathlib import Path

import jinja2
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from infomask_jax.report.sheet import BOXES, Sheet, number
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


def as_markdown(title: str, sheets: list[Sheet], lines: list[str]) -> str:
    return fill("table.md.j2", title=title, sheets=sheets, lines=lines)


def print_scores(result: dict, console: Console, protocols: bool = False) -> None:
    """Print an eval/SPLIT.json, the published protocols' tables only if asked for."""
    title, sheets, lines = document(result)
    console.print(screen(title, [sheet for sheet in sheets if protocols or sheet.kind != "protocol"], lines))


def write_scores(stem: Path, scores: dict, rows: list[dict]) -> list[Path]:
    """Write STEM.json, STEM.md, STEM.tex and STEM.csv of what `evaluate.score` returns; return their paths."""
    return write_all({stem.with_name(f"{stem.name}.{ending}"): text for ending, text in render(scores, rows).items()})


def render(scores: dict, rows: list[dict]) -> dict[str, str]:
    """Scores and the scores of each image as the text of every file: {"json", "md", "tex", "csv"}; in the CSV whole
    numbers are without a point."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    whole = [[int(v) if isinstance(v, float) and v.is_integer() else v for v in line] for line in cells]
    title, sheets, lines = document(scores)
    return {
        "json": json.dumps(scores, indent=1, allow_nan=False) + "\n",
        "md": as_markdown(title, sheets, lines),
        "tex": fill("table.tex.j2", title=title, sheets=sheets, lines=lines),
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


def boxes_table(detections: list[dict]) -> str:
    """COCO detections, see `localize.detections`, as CSV, pixels as there."""
    rows = [(box["file_name"], box["category"], *box["bbox"], box["score"]) for box in detections]
    return as_csv([("image", "finding", "x", "y", "w", "h", "score"), *rows])


def screen(title: str, sheets: list[Sheet], lines: list[str]) -> Group:
    """A title, sheets and closing lines, for a terminal of 100 columns or more."""
    return Group(Text(title, style="bold"), Text(), *map(_table, sheets), *[Text(line, style="bold") for line in lines])


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


def fill(template: str, **values) -> str:
    """A template of this folder with values filled in; what is not there is an error."""
    html, loader = template.endswith("html.j2"), jinja2.PackageLoader("infomask_jax.report", ".")
    options = {"autoescape": html, "trim_blocks": True, "keep_trailing_newline": not html}
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options)
    markdown = partial(re.sub, r"([\\`*_\[\]<>|~#&$])", r"\\\1")
    environment.filters |= {"md": markdown, "tex": escape, "number": number}
    return environment.get_template(template).render(values)


def escape(text: str) -> str:
    """Text -> LaTeX that prints it."""
    apart = re.sub("-(?=-)", "-\0", text)  # or they print as a dash
    return "".join(LATEX.get(character, character) for character in apart)
