"""What a run looks like: tables of its scores, galleries of its maps, training curves.

table.py sheet.py  scores -> sheets: titles, headings, rows of text
render.py          sheets on the screen, in Markdown, in LaTeX
export.py          scores as files
figures.py         galleries and curves
overlay.py         the picture of one predicted film
page.py            report.html: all of a run on one page
audit.py           tables and figure of the shortcut audit
"""

import csv
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from infomask_jax import datasets, npz
from infomask_jax.config import Config
from infomask_jax.report.audit import audit_figure, audit_sheets
from infomask_jax.report.export import render, write_predictions, write_scores
from infomask_jax.report.figures import DRAWN, folders, galleries, training_curves
from infomask_jax.report.overlay import as_panel, overlay
from infomask_jax.report.page import run_page
from infomask_jax.report.render import as_markdown, print_scores, screen
from infomask_jax.system import write_all
from infomask_jax.text import csv_cell

__all__ = [
    "DRAWN",
    "MOST",
    "as_markdown",
    "as_panel",
    "audit_figure",
    "audit_sheets",
    "console",
    "draw",
    "overlay",
    "print_scores",
    "render",
    "report",
    "screen",
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


def report(workdir: Path, split: str) -> list[Path]:
    """Print the tables of a scored run, redraw its figures and page. FileNotFoundError if the split was not scored."""
    workdir = Path(workdir)
    config = Config.load(workdir)
    data = datasets.load(config.dataset, config.data_dir)
    print_scores(json.loads(_scored(workdir / "eval" / f"{split}.json").read_text()), console())
    paths = [*draw(workdir, workdir, data, split), write_page(workdir, workdir)]
    print("written:", *paths, sep="\n  ")
    return paths


def draw(output: Path, workdir: Path, data: datasets.Prepared, split: str) -> list[Path]:
    """Draw figures/hits.png and misses.png of every localized finding, and training.png; return the paths.

    Args:
      output: folder with the scored split: eval/, maps/, boxes/ and predictions/.
      workdir: the run, for its metrics and its model's input size.
      data: what was scored.
    """
    from infomask_jax import pipeline  # brings JAX, which tables do without

    scores = json.loads(_scored(output / "eval" / f"{split}.json").read_text())
    detections = json.loads(_scored(output / "boxes" / f"{split}.json").read_text())
    with _scored(output / "predictions" / f"{split}.csv").open(newline="", encoding="utf-8") as file:
        predictions = list(csv.DictReader(file))
    maps = npz.read(_scored(output / "maps" / f"{split}.npz"))
    scored_ids = maps.pop("image_id")
    order = [name for name in DRAWN if name in maps]
    predicted = {}
    for box in detections:
        predicted.setdefault((box["category"], box["image_id"]), []).append(box["bbox"])

    chosen = np.unique(np.linspace(0, len(predictions) - 1, min(MOST, len(predictions))).astype(int))
    source, size = data.source(split), Config.load(workdir).data.image_size
    examples = [source[int(i)] for i in chosen]
    images = [pipeline.fit(pipeline.decode_gray(example["image"]), size) for example in examples]
    ids = [example["image_id"] for example in examples]
    if len(scored_ids) != len(source) or ids != [str(name) for name in scored_ids[chosen]]:
        raise ValueError(f"{output / 'maps'} is of other images than {data.directory}: evaluate the run again")
    figures, names = {}, folders(scores["localization"])
    for finding in scores["localization"]:
        k = list(scores["classification"]).index(finding)  # the run's order, in which maps are stored
        own = data.findings.index(finding)  # the data's order
        boxes = [unit_boxes(predicted.get((finding, e["image_id"]), []), e["height"], e["width"]) for e in examples]
        figures |= galleries(
            images,
            {name: maps[name][chosen] if maps[name].ndim == 3 else maps[name][chosen, ..., k] for name in order},
            [e["boxes"][e["box_labels"] == own] for e in examples],
            {order[0]: boxes},
            [float(predictions[i][csv_cell(f"{finding} probability")]) for i in chosen],
            [int(e["labels"][own]) for e in examples],
            ids,
            output / "figures" / (names[finding] if len(names) > 1 else ""),
            f"{scores['dataset']} / {split}, {finding}" + (f", {MOST} images" if len(predictions) > MOST else ""),
        )
    curves = {"InfoMask": workdir / "metrics.jsonl", "plain": workdir / "plain" / "metrics.jsonl"}
    curves = {name: path for name, path in curves.items() if path.exists()}
    return write_all({**figures, output / "figures" / "training.png": training_curves(curves)})


def write_page(output: Path, workdir: Path) -> Path:
    """Write report.html of what `output` holds, see `page.run_page`; return its path."""
    return write_all({output / "report.html": run_page(output, Path(workdir))})[0]


def unit_boxes(boxes: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO [x, y, w, h] in pixels -> [n, 4] (ymin, xmin, ymax, xmax) in 0..1."""
    x, y, w, h = np.reshape(boxes, (-1, 4)).T
    return np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=-1)


def _scored(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: score this split first, with python -m infomask_jax evaluate")
    return path
