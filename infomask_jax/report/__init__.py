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

from infomask_jax import datasets
from infomask_jax.config import Config
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
    "MOST",
    "as_markdown",
    "as_panel",
    "audit_figure",
    "audit_sheets",
    "console",
    "draw",
    "overlay",
    "print_scores",
    "read_thresholds",
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
    data = datasets.of_run(config)
    path = workdir / "eval" / f"{split}.json"
    scores = read_scores(path)
    with shown(path):
        print_scores(scores, console())
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

    path = output / "eval" / f"{split}.json"
    scores, known = read_scores(path), ", ".join(data.findings)
    if unknown := scores["localization"].keys() - (scores["classification"].keys() & {*data.findings}):
        raise ValueError(f"{path}: localization: expected some of {known}, found {', '.join(unknown)}; {HINT}")
    detections = read_boxes(output / "boxes" / f"{split}.json")
    probabilities = read_probabilities(output / "predictions" / f"{split}.csv", scores["localization"])
    maps = read_maps(output / "maps" / f"{split}.npz")
    scored_ids = maps.pop("image_id")
    order = [name for name in DRAWN if name in maps]
    predicted = {}
    for box in detections:
        name = box.get("file_name", box["image_id"])  # older runs have the name as image_id
        predicted.setdefault((box["category"], name), []).append(box["bbox"])

    source, size = data.source(split), Config.load(workdir).data.image_size
    count, shapes = len(source), {array.shape for array in (scored_ids, *probabilities.values())}
    chosen = np.unique(np.linspace(0, count - 1, min(MOST, count)).astype(int))
    examples = [source[int(i)] for i in chosen]
    images = [pipeline.fit(pipeline.decode_gray(example["image"]), size) for example in examples]
    ids = [example["image_id"] for example in examples]
    if shapes != {(count,)} or ids != [str(name) for name in scored_ids[chosen]]:
        raise ValueError(
            f"{output / 'maps'} or predictions/{split}.csv is of other images than {data.directory}: {HINT}"
        )
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
            probabilities[finding][chosen].tolist(),
            [int(e["labels"][own]) for e in examples],
            ids,
            output / "figures" / (names[finding] if len(names) > 1 else ""),
            f"{scores['dataset']} / {split}, {finding}" + (f", {MOST} images" if count > MOST else ""),
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
