"""What a run looks like: tables of its scores, galleries of its maps, training curves.

table.py sheet.py  scores -> sheets: titles, headings, rows of text
render.py          sheets on the screen, in Markdown, in LaTeX
export.py          scores as files
figures.py         galleries and curves
overlay.py         the picture of one predicted film
stored.py          written scores, read again
page.py            report.html: all of a run on one page
audit.py           tables and figure of the shortcut audit
"""

from pathlib import Path

import numpy as np
from rich.console import Console

from infomask_jax.report.audit import audit_figure, audit_sheets
from infomask_jax.report.export import render, write_predictions, write_scores
from infomask_jax.report.figures import DRAWN, folders, galleries, training_curves
from infomask_jax.report.overlay import as_panel, overlay
from infomask_jax.report.page import run_page
from infomask_jax.report.render import as_markdown, print_scores, screen
from infomask_jax.report.stored import (
    HINT,
    read_boxes,
    read_maps,
    read_probabilities,
    read_scores,
    read_thresholds,
    shown,
)
from infomask_jax.system import write_all

__all__ = [
    "DRAWN",
    "HINT",
    "as_markdown",
    "as_panel",
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

MOST = 2000  # images that a gallery chooses from; of a larger split, evenly spaced ones


def console() -> Console:
    """Where tables go: the terminal, or, into a file or pipe, lines of 120 columns."""
    found = Console(markup=False)
    return found if found.is_terminal else Console(width=120, markup=False)


def drawn_method(maps) -> str:
    """Of the maps of a run or of a model the one whose boxes are written and drawn."""
    return next(name for name in DRAWN if name in maps)


def draw(output, scores, examples, maps, detections, image_of, curves) -> dict[Path, bytes | None]:
    """figures/hits.png and misses.png of every localized finding, and training.png."""
    from infomask_jax.localize import of_finding

    order, split = [name for name in DRAWN if name in maps], scores["split"]
    predicted = {}
    for box in detections:
        name = box.get("file_name", box["image_id"])  # older runs have the name as image_id
        predicted.setdefault((box["category"], name), []).append(box["bbox"])
    ids, figures, names = examples["image_id"], {}, folders(scores["localization"])
    images = [image_of(i) for i in range(len(ids))]
    for finding in scores["localization"]:
        k = list(scores["classification"]).index(finding)
        boxes = [
            unit_boxes(predicted.get((finding, i), []), *size) for i, size in zip(ids, examples["sizes"], strict=True)
        ]
        figures |= galleries(
            images,
            {name: of_finding(maps[name], k) for name in order},
            [np.reshape(b, (-1, 4))[np.asarray(f, int) == k] for b, f in examples["boxes"]],
            {order[0]: boxes},
            examples["probabilities"][:, k].tolist(),
            [int(label) for label in examples["labels"][:, k]],
            ids,
            output / "figures" / (names[finding] if len(names) > 1 else ""),
            f"{scores['dataset']} / {split}, {finding}",
        )
    return {**figures, output / "figures" / "training.png": training_curves(curves)}


def write_page(output: Path, run) -> Path:
    """Write report.html of what `output` holds, see `page.run_page`; return its path."""
    return write_all({output / "report.html": run_page(output, run)})[0]


def unit_boxes(boxes: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO [x, y, w, h] in pixels -> [n, 4] (ymin, xmin, ymax, xmax) in 0..1."""
    x, y, w, h = np.reshape(boxes, (-1, 4)).T
    return np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=-1)
