"""What a run looks like: tables of scores (sheets of text, which render.py sets for the screen, Markdown and LaTeX, and
page.py on report.html), galleries and curves (figures.py), pictures of predicted films (overlay.py), films of the page
(film_data.py). stored.py reads written scores again."""

from infomask_jax.report.audit import audit_figure, audit_sheets
from infomask_jax.report.figures import draw, drawn_method, unit_boxes
from infomask_jax.report.film_data import film_data
from infomask_jax.report.overlay import overlay
from infomask_jax.report.page import write_page
from infomask_jax.report.render import (
    as_markdown,
    boxes_table,
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
    read_cautions,
    read_maps,
    read_probabilities,
    read_scores,
    read_thresholds,
    shown,
)
from infomask_jax.report.verdict import verdict

__all__ = [
    "as_markdown",
    "audit_figure",
    "audit_sheets",
    "boxes_table",
    "console",
    "draw",
    "drawn_method",
    "film_data",
    "overlay",
]
__all__ += [
    "HINT",
    "print_scores",
    "read_boxes",
    "read_cautions",
    "read_maps",
    "read_probabilities",
    "read_scores",
    "read_thresholds",
]
__all__ += ["render", "screen", "shown", "unit_boxes", "verdict", "write_page", "write_predictions", "write_scores"]
