"""Pictures of a run, each the bytes of a PNG: galleries of heat maps with boxes, and training curves.

Boxes are [n,4] (ymin,xmin,ymax,xmax) in 0..1 of the image, true ones green, predicted ones orange. Heat maps are
resized and min-maxed as for scoring (`localize.prepare_map`).
"""

import io
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from infomask_jax.localize import of_finding, prepare_map
from infomask_jax.system import read_json_lines

DRAWN = ("infomask", "infomask_bits", "vib_bits", "cam")  # the maps of a run that are drawn, with boxes of the first
TRUE, PREDICTED, HEAT = "#35d04a", "#ff9d1e", "inferno"
NAMES = {
    "infomask": "InfoMask",
    "infomask_bits": "InfoMask bits",
    "infomask_evidence": "InfoMask evidence",
    "vib_bits": "VIB bits",
    "vib_evidence": "VIB evidence",
    "cam": "CAM",
    "gradcam": "Grad-CAM",
}
SIGN = {1: "positive", 0: "negative"}
ROWS = 6  # of a gallery
OUTCOMES = ("hit", "miss", "found", "missed positive", "false alarm", "rejected", "unknown")
KINDS = {"hits": ("hit",), "misses": ("miss", "missed positive", "false alarm")}  # outcomes that are drawn
PANELS = {  # of training curves, heading: ({metric: (label, line style)}, log axis); rates are in bits
    "loss (nats)": ({"loss": ("loss", "-"), "nll": ("nll", "--")}, False),
    "rate (bits per image)": ({"rate_z": ("representation", "-"), "rate_m": ("mask", "--")}, True),
    "mean of the mask": ({"mask_mean": ("", "-")}, False),
    "gradient norm": ({"grad_norm": ("", "-")}, True),
}


@dataclass(frozen=True)
class Film:
    """One row of a gallery."""

    image: np.ndarray  # [S,S], any range
    maps: dict[str, np.ndarray]  # {method: [h,w]}
    true: np.ndarray  # boxes [n,4]
    predicted: np.ndarray  # boxes [n,4] of the first method
    caption: str


def draw(
    output: Path, scores: dict, examples: dict, maps: dict, detections: list[dict], image_of: Callable, curves: dict
) -> dict[Path, bytes | None]:
    """The pictures of a scored run: see `galleries`, and training.png. In output/figures; galleries of another split
    than test in a folder of its name.

    Args:
      scores, examples, image_of: as of `galleries`; examples also have `sizes` [N,2].
      maps: {method: [N,h,w,M]}; those of `DRAWN` are drawn.
      detections: COCO detections (see `localize.detections`) of the first of them.
      curves: {label: path of metrics.jsonl} of the runs to compare.
    """
    predicted = {}
    for box in detections:
        name = str(box.get("file_name", box["image_id"]))  # older runs have the name as image_id
        predicted.setdefault((box["category"], name), []).append(box["bbox"])

    def boxes_of(finding: str, i: int) -> np.ndarray:
        return unit_boxes(predicted.get((finding, str(examples["image_id"][i])), []), *examples["sizes"][i])

    own = {method: maps[method] for method in DRAWN if method in maps}
    folder = output / "figures" / ("" if scores["split"] == "test" else scores["split"])
    figures = galleries(folder, scores, examples, own, boxes_of, image_of)
    return figures | {output / "figures" / "training.png": training_curves(curves)}


def drawn_method(maps) -> str:
    """Of the maps of a run the one whose boxes are written and drawn."""
    return next(name for name in DRAWN if name in maps)


def unit_boxes(boxes: list[list[float]], height: int, width: int) -> np.ndarray:
    """COCO [x, y, w, h] in pixels -> [n, 4] (ymin, xmin, ymax, xmax) in 0..1."""
    x, y, w, h = np.reshape(boxes, (-1, 4)).T
    return np.stack([y / height, x / width, (y + h) / height, (x + w) / width], axis=-1)


def galleries(
    folder: Path, scores: dict, examples: dict, maps: dict, boxes_of: Callable, image_of: Callable
) -> dict[Path, bytes | None]:
    """hits.png and misses.png of every localized finding, of several in a sub-folder each: evenly spaced examples,
    judged by the first method of `maps`. {path: PNG, or None where there is no example}.

    Args:
      scores, examples: what `evaluate.score` returns, and the split as it takes it. maps: {method: [N,h,w,M]}.
      boxes_of: predicted boxes [n,4] of a finding on image i by the first method.
      image_of: image i of the split, [S,S], any range; called only for the films that are drawn.
    """
    first, names, figures = next(iter(maps)), folders(scores["localization"]), {}
    for finding, sub_folder in names.items():
        k = list(scores["classification"]).index(finding)
        own = {method: of_finding(array, k) for method, array in maps.items()}
        true = [np.reshape(boxes, (-1, 4))[np.asarray(at) == k] for boxes, at in examples["boxes"]]
        labels, given = np.asarray(examples["labels"])[:, k], examples.get("probabilities") is not None
        p = np.asarray(examples["probabilities"])[:, k] if given else np.full(len(labels), np.nan)
        found = np.array(outcomes(own[first], true, p, labels, scores["frame"]))
        what = f"{scores['dataset']} / {scores['split']}, {finding}" + ("" if given else ", no probabilities given")
        for name, kinds in KINDS.items():
            films = []
            for i in map(int, choose(found, kinds, ROWS)):
                chance = f", p = {p[i]:.2f}" if given else ""
                caption = f"{str(examples['image_id'][i])[:22]}\n{SIGN[int(labels[i])]}{chance}: {found[i]}"
                heats = {method: array[i] for method, array in own.items()}
                films.append(Film(image_of(i), heats, true[i], boxes_of(finding, i), caption))
            path = folder / (sub_folder if len(names) > 1 else "") / f"{name}.png"
            title = f"{what}: {name} judged by {_name(first)} ({len(films)} of {np.isin(found, kinds).sum()})"
            figures[path] = gallery(films, title) if films else None
    return figures


def outcomes(maps, true, probabilities, labels, frame: int) -> list[str]:
    """What happened to each image, in a word or two: maps [N,h,w], their peaks looked for in a frame of that side. A
    positive without a probability (NaN) counts as confident."""
    out = []
    for heat, boxes, p, label in zip(maps, true, probabilities, labels, strict=True):
        if label != 1:
            out.append("unknown" if label == -1 else "false alarm" if p >= 0.5 else "rejected")
        elif p < 0.5:
            out.append("missed positive")
        elif not len(boxes):
            out.append("found")
        else:
            out.append("hit" if points_at(heat, boxes, (frame, frame)) else "miss")
    return out


def points_at(heat: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the maximum of the map, resized to (height, width), lies in a box; of tied maxima, the first."""
    y, x = (np.array(np.unravel_index(np.argmax(prepare_map(heat, *size)), size)) + 0.5) / size
    return any(ymin <= y <= ymax and xmin <= x <= xmax for ymin, xmin, ymax, xmax in boxes)


def choose(found: np.ndarray, kinds: Iterable, most: int) -> np.ndarray:
    """Positions of at most `most` outcomes of these kinds, each evenly spaced; the rarer kinds first have their
    share."""
    places = [np.flatnonzero(found == kind) for kind in kinds]
    shares = np.array([min(len(those), most) for those in places])
    while shares.sum() > most:  # take from the largest
        shares[shares.argmax()] -= 1
    evenly = [np.linspace(0, len(those) - 1, n).round().astype(int) for those, n in zip(places, shares, strict=True)]
    return np.concatenate([those[at] for those, at in zip(places, evenly, strict=True)])


@matplotlib.rc_context({"text.parse_math": False})
def gallery(films: list[Film], title: str) -> bytes:
    """One row a film: the image with true boxes, then each method's map over it with true and predicted boxes."""
    methods = list(films[0].maps)
    n, columns = len(films), 1 + len(methods)
    fig, axes = plt.subplots(n, columns, figsize=(2.3 * columns, 2.65 * n + 0.8), squeeze=False, layout="constrained")
    for film, row in zip(films, axes, strict=True):
        height, width = film.image.shape
        extent = (0, width, height, 0)  # box edges are continuous: pixel i covers [i,i+1)
        for ax, method in zip(row, [None, *methods], strict=True):
            ax.imshow(film.image, cmap="gray", extent=extent)
            if method:
                heat = prepare_map(film.maps[method], height, width)
                ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.5 * heat, extent=extent)
                _outline(ax, film.predicted if method == methods[0] else [], height, width, PREDICTED)
                if len(film.true):
                    inside = points_at(film.maps[method], film.true, (height, width))
                    ax.set_xlabel("peak inside" if inside else "peak outside", fontsize=8)
            _outline(ax, film.true, height, width, TRUE)
            ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        row[0].set_xlabel(film.caption, fontsize=8)
    for ax, heading in zip(axes[0], ["image", *map(_name, methods)], strict=True):
        ax.set_title(textwrap.fill(heading, 24), fontsize=10)
    fig.suptitle(textwrap.fill(title, 24 * columns), fontsize=11)
    handles = [Rectangle((0, 0), 1, 1, fill=False, ec=color, lw=1.8) for color in (TRUE, PREDICTED)]
    fig.legend(handles, ["true box", "predicted box"], loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return as_png(fig)


def _outline(ax, boxes, height: int, width: int, color: str) -> None:
    for ymin, xmin, ymax, xmax in np.reshape(boxes, (-1, 4)) * (height, width, height, width):
        ax.add_patch(Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, ec=color, lw=1.6))


def _name(method: str) -> str:
    return NAMES.get(method, method)[:60]


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """metrics.jsonl -> {"step": [n], name: [n]}, ascending in step; of a step that a resumed run repeats, the last.
    A value that is absent, null or not a number becomes NaN. ValueError naming the line that is damaged."""
    lines = read_json_lines(path, {"step": int}, "take it from a copy of the run, or move it away")
    rows = dict(sorted({line["step"]: line for line in lines}.items()))
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    return {n: np.array([v if isinstance(v, int | float) else np.nan for v in c], float) for n, c in columns.items()}


def training_curves(paths: dict[str, Path]) -> bytes:
    """Loss, rates, mask mean and gradient norm over steps, of {label: metrics.jsonl}; a colour a run."""
    runs = {run: read_metrics(path) for run, path in paths.items()}
    fig, axes = plt.subplots(1, len(PANELS), figsize=(13, 3))
    for ax, (heading, (lines, log)) in zip(axes, PANELS.items(), strict=True):
        for number, (run, metrics) in enumerate(runs.items()):
            for k, (name, (label, style)) in enumerate(lines.items()):
                if name in metrics and np.isfinite(metrics[name]).any():
                    color = f"C{(2 * number + k if len(runs) == 1 else number) % 10}"
                    ax.plot(metrics["step"], metrics[name], style, color=color, lw=1.3, label=f"{run} {label}".strip())
        ax.set_title(heading, fontsize=10)
        ax.set_xlabel("step", fontsize=9)
        ax.tick_params(which="both", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        if log and any((line.get_ydata() > 0).any() for line in ax.lines):
            ax.set_yscale("log")
        if ax.lines:
            ax.legend(fontsize=8, frameon=False)
        else:
            ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="gray")
    axes[2].set_ylim(0, 1)
    fig.tight_layout()
    return as_png(fig)


def as_png(fig) -> bytes:
    """A figure, closed, as the bytes of a PNG."""
    drawn = io.BytesIO()
    fig.savefig(drawn, dpi=110, facecolor="white", format="png")
    plt.close(fig)
    return drawn.getvalue()


def folders(findings) -> dict[str, str]:
    """A folder's name for each finding, different ones even where letter case does not count."""
    out = {}
    for finding in findings:
        base, taken = re.sub(r"[^\w-]+", "_", finding)[:60] or "_", {name.casefold() for name in out.values()}
        names = chain([base], (f"{base}_{number}" for number in count(2)))
        out[finding] = next(name for name in names if name.casefold() not in taken)
    return out
