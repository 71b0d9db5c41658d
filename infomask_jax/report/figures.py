"""Pictures of a run: galleries of heat maps with boxes, and training curves.

Boxes are [n,4] (ymin,xmin,ymax,xmax) in 0..1 of the image. Green: true boxes. Orange: predicted boxes. Heat maps are
resized and min-maxed as for scoring (`localize.prepare_map`), and drawn over the image, row 0 on top.
A figure is the bytes of a PNG; `system.write_all` writes it.
"""

import io
import re
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from infomask_jax.localize import prepare_map
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


def points_at_truth(heat: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the maximum of the map, resized to (height, width), lies in a box; of tied maxima, the first."""
    height, width = size
    row, column = np.unravel_index(np.argmax(prepare_map(heat, height, width)), size)
    y, x = (row + 0.5) / height, (column + 0.5) / width
    return any(ymin <= y <= ymax and xmin <= x <= xmax for ymin, xmin, ymax, xmax in np.reshape(boxes, (-1, 4)))


def outcomes(images, heat, truth_boxes, probabilities, labels) -> list[str]:
    """What happened to each image, one word or two.

    Positive at probability >= .5: "hit" if the map peaks in a true box, "miss" if outside, "found" if there is no box.
    Positive below: "missed positive", whatever its map. Negative (or unknown): "false alarm" or "rejected".
    """
    out = []
    for image, s, boxes, p, label in zip(images, heat, truth_boxes, probabilities, labels, strict=True):
        if label != 1:
            out.append("false alarm" if p >= 0.5 else "rejected")
        elif p < 0.5:
            out.append("missed positive")
        elif not len(boxes):
            out.append("found")
        else:
            out.append("hit" if points_at_truth(s, boxes, image.shape[:2]) else "miss")
    return out


@matplotlib.rc_context({"text.parse_math": False})
def gallery(images, maps, truth_boxes, predicted_boxes, probabilities, labels, ids, title="", notes=None) -> bytes:
    """One row an image: the image with true boxes, then each method's map over it with true and predicted boxes.

    Args:
      images: [N,H,W] any range. maps: {method: [N,h,w]}. truth_boxes: [N] of [n,4].
      predicted_boxes: {method: [N] of [n,4]}, methods may be absent. probabilities, labels, ids: [N].
      notes: [N], the outcome to print in place of hit or miss.
    """
    n, methods = len(images), list(maps)
    if not n:
        raise ValueError("no images to draw")
    notes = notes or outcomes(images, maps[methods[0]], truth_boxes, probabilities, labels)
    columns = 1 + len(methods)
    fig, axes = plt.subplots(n, columns, figsize=(2.3 * columns, 2.65 * n + 0.8), squeeze=False, layout="constrained")
    for row in range(n):
        image = np.asarray(images[row], np.float32)
        height, width = image.shape[:2]
        for column, method in enumerate([None, *methods]):
            ax = axes[row, column]
            extent = (0, width, height, 0)  # box edges are continuous: pixel i covers [i,i+1)
            ax.imshow(image, cmap="gray", extent=extent)
            if method:
                heat = prepare_map(maps[method][row], height, width)
                ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.5 * heat, extent=extent)
                _draw(ax, predicted_boxes.get(method, [()] * n)[row], height, width, PREDICTED)
                if len(truth_boxes[row]):
                    inside = points_at_truth(maps[method][row], truth_boxes[row], (height, width))
                    ax.set_xlabel("peak inside" if inside else "peak outside", fontsize=8)
            _draw(ax, truth_boxes[row], height, width, TRUE)
            ax.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if row == 0 and method:
                ax.set_title(textwrap.fill(_name(method), 24), fontsize=10)
        sign = {1: "positive", 0: "negative"}.get(int(labels[row]), "unknown")
        chance = "" if np.isnan(probabilities[row]) else f", p = {probabilities[row]:.2f}"
        axes[row, 0].set_xlabel(f"{str(ids[row])[:22]}\n{sign}{chance}: {notes[row]}", fontsize=8)
    axes[0, 0].set_title("image", fontsize=10)
    fig.suptitle(textwrap.fill(title, 24 * columns), fontsize=11)
    handles = [Rectangle((0, 0), 1, 1, fill=False, ec=color, lw=1.8) for color in (TRUE, PREDICTED)]
    fig.legend(handles, ["true box", "predicted box"], loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return as_png(fig)


def galleries(
    images, maps, truth_boxes, predicted_boxes, probabilities, labels, ids, folder, title="", rows=6
) -> dict[Path, bytes | None]:
    """hits.png and misses.png in `folder`: evenly spaced examples, judged by the first method of `maps`.

    Misses are maps that peak outside every true box, missed positives and false alarms, in turn. None: no example.
    """
    first = next(iter(maps))
    notes = np.array(outcomes(images, maps[first], truth_boxes, probabilities, labels))
    kinds = [np.flatnonzero(notes == kind) for kind in ("miss", "missed positive", "false alarm")]
    shares = np.array([len(k) for k in kinds])
    while shares.sum() > rows:  # take from the largest
        shares[shares.argmax()] -= 1
    chosen = {
        "hits": _spread(np.flatnonzero(notes == "hit"), rows),
        "misses": np.concatenate([_spread(kind, share) for kind, share in zip(kinds, shares, strict=True)]),
    }
    out = {}
    for name, pick in chosen.items():
        drawn = {m: [boxes[i] for i in pick] for m, boxes in predicted_boxes.items()}
        count = f"{len(pick)} of {_total(notes, name)}"
        heading = f"{title + ': ' if title else ''}{name} judged by {_name(first)} ({count})"
        out[Path(folder) / f"{name}.png"] = None
        if not len(pick):
            continue
        out[Path(folder) / f"{name}.png"] = gallery(
            [images[i] for i in pick],
            {m: [heat[i] for i in pick] for m, heat in maps.items()},
            [truth_boxes[i] for i in pick],
            drawn,
            [probabilities[i] for i in pick],
            [labels[i] for i in pick],
            [ids[i] for i in pick],
            heading,
            [str(notes[i]) for i in pick],
        )
    return out


def read_metrics(path) -> dict[str, np.ndarray]:
    """metrics.jsonl -> {"step": [n], name: [n]}, ascending in step.

    A resumed run repeats steps (the last line of a step wins) and a killed one ends in a torn line (skipped). A value
    that is absent, null or not a number becomes NaN. ValueError naming the line that is damaged.
    """
    lines = read_json_lines(Path(path), {"step": int}, "take it from a copy of the run, or move it away")
    rows = {row["step"]: row for row in lines}
    steps = sorted(rows)
    names = dict.fromkeys(name for step in steps for name in rows[step])
    return {name: np.array([_as_float(rows[step].get(name)) for step in steps]) for name in names}


def training_curves(paths) -> bytes:
    """Loss, rates, mask mean and gradient norm over steps; one line a run.

    Args:
      paths: one metrics.jsonl, or {label: metrics.jsonl} to compare runs. rate_z and rate_m are bits there.
    """
    runs = paths if isinstance(paths, dict) else {"": paths}
    panels = [  # heading, {metric: (label, line style)}, log axis
        ("loss (nats)", {"loss": ("loss", "-"), "nll": ("nll", "--")}, False),
        ("rate (bits per image)", {"rate_z": ("representation", "-"), "rate_m": ("mask", "--")}, True),
        ("mean of the mask", {"mask_mean": ("", "-")}, False),
        ("gradient norm", {"grad_norm": ("", "-")}, True),
    ]
    fig, axes = plt.subplots(1, len(panels), figsize=(13, 3))
    colors = plt.get_cmap("tab10").colors
    for number, (run, source) in enumerate(runs.items()):
        metrics = read_metrics(source)
        for ax, (_, lines, _) in zip(axes, panels, strict=True):
            for k, (name, (label, style)) in enumerate(lines.items()):
                if name in metrics and np.isfinite(metrics[name]).any():
                    color = colors[(2 * number + k if len(runs) == 1 else number) % 10]
                    text = " ".join(part for part in (run, label) if part)
                    ax.plot(metrics["step"], metrics[name], style, color=color, lw=1.3, label=text)
    for ax, (heading, _, log) in zip(axes, panels, strict=True):
        ax.set_title(heading, fontsize=10)
        ax.set_xlabel("step", fontsize=9)
        ax.tick_params(which="both", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        values = np.concatenate([line.get_ydata() for line in ax.lines]) if ax.lines else np.zeros(0)
        if log and (values > 0).any():
            ax.set_yscale("log")
        if not ax.lines:
            ax.text(0.5, 0.5, "not logged", transform=ax.transAxes, ha="center", color="gray")
        elif any(line.get_label() and not line.get_label().startswith("_") for line in ax.lines):
            ax.legend(fontsize=8, frameon=False)
    axes[2].set_ylim(0, 1)
    fig.tight_layout()
    return as_png(fig)


def _draw(ax, boxes, height: int, width: int, color: str) -> None:
    for ymin, xmin, ymax, xmax in np.reshape(boxes, (-1, 4)):
        corner, size = (xmin * width, ymin * height), ((xmax - xmin) * width, (ymax - ymin) * height)
        ax.add_patch(Rectangle(corner, *size, fill=False, ec=color, lw=1.6))


def _name(method: str) -> str:
    return NAMES.get(method, method)[:60]


def _spread(pick: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of pick, evenly spaced."""
    return pick[np.linspace(0, len(pick) - 1, min(count, len(pick))).round().astype(int)]


def _total(notes: np.ndarray, name: str) -> int:
    return int(np.isin(notes, ["hit"] if name == "hits" else ["miss", "missed positive", "false alarm"]).sum())


def _as_float(value) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def as_png(fig) -> bytes:
    """A figure, closed, as the bytes of a PNG."""
    drawn = io.BytesIO()
    try:
        fig.savefig(drawn, dpi=110, facecolor="white", format="png")
    finally:
        plt.close(fig)
    return drawn.getvalue()


def folders(findings) -> dict[str, str]:
    """A folder's name for each finding, different ones even where letter case does not count."""
    out = {}
    for finding in findings:
        name = base = re.sub(r"[^\w-]+", "_", finding)[:60] or "_"
        taken = {other.casefold() for other in out.values()}
        number = 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}_{number}"
        out[finding] = name
    return out
