"""Training curves as lines of an inline SVG: of each panel its title, ticks and paths (parts.html.j2 draws them)."""

import math
from pathlib import Path

import numpy as np

from infomask_jax.report.figures import PANELS, read_metrics

MEASURED = {  # where the training measures on validation films
    "validation AUROC": ({"val_auroc": ("", "-")}, False),
    "validation NLL (nats)": ({"val_nll": ("", "-")}, False),
}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 170, 46, 24, 150  # of a panel, and of the axes in it
COLORS = 5  # classes c0, c1, ... of page.css


def curves(paths: dict[str, Path]) -> list[dict]:
    """Panels of {label: metrics.jsonl}, a colour a run; those of which no run has a number are left out."""
    runs, panels = {run: read_metrics(path) for run, path in paths.items()}, []
    for title, (names, log) in (PANELS | MEASURED).items():
        lines = []
        for number, (run, metrics) in enumerate(runs.items()):
            for k, (name, (label, style)) in enumerate(names.items()):
                y = metrics.get(name, np.zeros(0))
                known = np.isfinite(y) & ((y > 0) | (not log))
                if known.any():
                    color = (2 * number + k if len(runs) == 1 else number) % COLORS
                    look = f"c{color}" + (" dashed" if style == "--" else "")
                    lines.append((f"{run} {label}".strip(), look, metrics["step"][known], y[known]))
        if lines:
            panels.append(_panel(title, lines, log))
    return panels


def _panel(title: str, lines: list[tuple], log: bool) -> dict:
    scale = np.log10 if log else np.asarray
    every = np.concatenate([y for *_, y in lines])
    low, high, last = every.min(), every.max(), max(x.max() for _, _, x, _ in lines)
    bottom, top = map(float, scale([low, high]))
    span = (top - bottom) or 1.0

    def path(x, y) -> str:
        across = LEFT + (WIDTH - LEFT) * x / max(last, 1)
        down = BOTTOM - (BOTTOM - TOP) * (scale(y) - bottom) / span
        return "M" + "L".join(f"{a:.1f} {d:.1f}" for a, d in zip(across, down, strict=True))

    middle = 10 ** ((bottom + top) / 2) if log else (bottom + top) / 2
    ticks = {BOTTOM: low, (BOTTOM + TOP) / 2: middle, TOP: high} if high > low else {BOTTOM: low}
    drawn = [{"name": name, "look": look, "path": path(x, y)} for name, look, x, y in lines]
    about = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "first": 0, "last": f"{math.ceil(last):,}"}
    title += ", log scale" if log else ""
    return {
        "title": title,
        "ticks": [(y, f"{v:,.0f}" if v >= 1000 else f"{v:.3g}") for y, v in ticks.items()],
        "lines": drawn,
        **about,
    }
