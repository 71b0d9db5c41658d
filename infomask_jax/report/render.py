"""The sheets of table.py on the screen (rich), in Markdown and in LaTeX (booktabs)."""

import re
from itertools import groupby

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from infomask_jax.report.sheet import BOXES, Cell, Sheet
from infomask_jax.report.table import heading, remarks, sheets

STYLE = {"box": box.SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left", "show_edge": False}
DENSE = 6  # columns from which a table on the screen is set without padding
LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": "$<$", ">": "$>$", "≥": r"$\geq$", "–": "--", "|": r"\textbar{}", '"': "''"},
    "`": r"\`{}",
    **{"[": "{[}", "*": "{*}", "\0": "{}"},  # after the \\ of a row, both would be read as its argument
}


def tables(result: dict, protocols: bool = False) -> Group:
    """Everything of one eval/SPLIT.json for 100 columns or more; the published protocols' tables only if asked for."""
    shown = [sheet for sheet in sheets(result) if protocols or sheet.kind != "protocol"]
    return screen(heading(result), shown, remarks(result))


def screen(title: str, shown: list[Sheet], lines: list[str]) -> Group:
    """A title, sheets and closing lines, for a terminal."""
    parts = [Text(title, style="bold"), Text(), *map(_screen, shown)]
    return Group(*parts, *[Text(line, style="bold") for line in lines])


def print_scores(result: dict, console: Console | None = None, protocols: bool = False) -> None:
    """Print `tables` to the console."""
    (console or Console()).print(tables(result, protocols))


def markdown(result: dict) -> str:
    """Every sheet as a Markdown table."""
    return as_markdown(heading(result), sheets(result), remarks(result))


def as_markdown(title: str, shown: list[Sheet], closing: list[str]) -> str:
    """A title, sheets and closing lines, as Markdown."""
    parts = [f"# {_plain(title)}"]
    for sheet in shown:
        lines = [f"## {_plain(sheet.title)}", "", _bar(map(_plain, sheet.headings))]
        lines.append(_bar(["---", *["---:"] * (len(sheet.headings) - 1)]))
        for group, rows in groupby(sheet.rows, key=lambda row: row.group):
            if group:
                lines.append(_bar([f"*{_plain(group)}*", *[""] * (len(sheet.headings) - 1)]))
            lines += [_bar([_plain(row.name), *map(_markdown_cell, row.cells)]) for row in rows]
        parts.append("\n".join([*lines, *(f"\n{_plain(note)}" for note in sheet.notes)]))
    return "\n\n".join([*parts, *map(_plain, closing)]) + "\n"


def latex(result: dict) -> str:
    """Every sheet as a `table` with booktabs rules, an interval below its score."""
    parts = [f"% {_comment(heading(result))}\n% needs \\usepackage{{booktabs}}"]
    for sheet in sheets(result):
        columns = len(sheet.headings)
        lines = [
            r"\begin{table}[htbp]",
            r"\centering\small\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(sheet.title)}}}",
        ]
        lines += [
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            _ampersands(map(escape, sheet.headings)),
        ]
        for group, rows in groupby(sheet.rows, key=lambda row: row.group):
            lines.append(r"\midrule")
            if group:
                lines.append(rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(group)}}}}} \\")
            for row in rows:
                lines.append(_ampersands([escape(row.name), *map(_latex_cell, row.cells)]))
                if any(cell.below for cell in row.cells):
                    below = [rf"{{\scriptsize {escape(c.below)}}}" if c.below else "" for c in row.cells]
                    lines.append(_ampersands(["", *below]))
        lines += [r"\bottomrule", r"\end{tabular}"]
        lines += [rf"\par\smallskip{{\footnotesize {escape('; '.join(sheet.notes))}}}"] if sheet.notes else []
        parts.append("\n".join([*lines, r"\end{table}"]))
    return "\n\n".join([*parts, *(f"% {_comment(line)}" for line in remarks(result))]) + "\n"


def escape(text: str) -> str:
    """Text -> LaTeX that prints it."""
    apart = re.sub("-(?=-)", "-\0", text)  # or they print as a dash
    return "".join(LATEX.get(character, character) for character in apart)


def _screen(sheet: Sheet) -> Table:
    dense = len(sheet.headings) > DENSE
    table = Table(title=Text(sheet.title, style="italic"), **STYLE, **({"padding": 0} if dense else {}))
    table.caption = Text("\n".join([*sheet.notes, ""]), style="dim italic")
    # Dense tables of scores fit 100 columns; their methods' names fold before any number does.
    fixed = {"headline": 9, "protocol": 9, "differences": 11}.get(sheet.kind) if dense else None
    name = min(20, max((len(row.name) for row in sheet.rows), default=0)) if sheet.kind != "differences" else 15
    table.add_column(
        Text(sheet.headings[0]), overflow="fold", **({"min_width": name, "max_width": 20} if fixed else {})
    )
    for name in sheet.headings[1:]:
        width = 6 if name in (BOXES, "cut at") and dense else fixed
        table.add_column(Text(name), justify="right", max_width=width)
    for group, rows in groupby(sheet.rows, key=lambda row: row.group):
        if group:
            table.add_section()
            table.add_row(Text(group, style="dim"))
        for row in rows:
            name = Text(row.name, style="italic cyan" if group else "")
            table.add_row(name, *[_screen_cell(cell) for cell in row.cells])
    return table


def _screen_cell(cell: Cell) -> Text:
    text = Text(cell.text + cell.mark, style=cell.verdict or ("bold" if cell.bold else ""))
    return text.append(f"\n{cell.below}", style="not bold dim") if cell.below else text


def _markdown_cell(cell: Cell) -> str:
    text = f"**{_plain(cell.text)}**" if cell.bold else _plain(cell.text)
    return text + _plain(cell.mark) + (f" ({_plain(cell.below)})" if cell.below else "")


def _latex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
    return text + ("$^*$" if cell.mark else "")


def _bar(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells) -> str:
    return " & ".join(cells) + r" \\"


def _plain(text: str) -> str:
    """Text -> Markdown that prints it."""
    return re.sub(r"([\\`*_\[\]<>|~#&$])", r"\\\1", text)


def _comment(text: str) -> str:
    return " ".join(text.split())
