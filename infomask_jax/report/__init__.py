"""What a run looks like: tables of its scores, galleries of its maps, training curves.

table.py sheet.py  scores -> sheets: titles, headings, rows of text
render.py          sheets on the screen, in Markdown, in LaTeX; scores as files
figures.py         galleries and curves
overlay.py         the picture of one predicted film
stored.py          written scores, read again
page.py            report.html: all of a run on one page
audit.py           tables and figure of the shortcut audit
ablations.py       table and figures of an ablation
"""

from infomask_jax.report.audit import audit_figure, audit_sheets
from infomask_jax.report.figures import DRAWN, draw, drawn_method, unit_boxes
from infomask_jax.report.overlay import overlay
from infomask_jax.report.page import write_page
from infomask_jax.report.render import (
    as_markdown,
    console,
    print_scores,
    render,
    screen,
    write_predictions,
    write_scores,
)
from infomask_jax.report.stored import (
    HINT,
    read_boxes,
    read_maps,
    read_probabilities,
    read_scores,
    read_thresholds,
    shown,
)

__all__ = [
    "DRAWN",
    "HINT",
    "as_markdown",
    "audit_figure",
    "audit_sheets",
    "console",
    "draw",
    "drawn_method",
    "overlay",
    "print_scores",
    "read_boxes",
    "read_maps",
    "read_probabilities",
    "read_scores",
    "read_thresholds",
    "render",
    "screen",
    "shown",
    "unit_boxes",
    "write_page",
    "write_predictions",
    "write_scores",
]
