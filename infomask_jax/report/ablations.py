"""Table and figures of an ablation: rows as `infomask_jax.ablation.run` returns them."""

import shlex

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from infomask_jax.localize import prepare_map
from infomask_jax.report.figures import HEAT, TRUE, as_png
from infomask_jax.report.render import fill

COLUMNS = {
    "pxap": "PxAP",
    "pointing_game": "pointing",
    "mean_iou": "mean IoU",
    "auroc": "AUROC",
    "nll": "NLL (nats)",
    "rate_z": "z (bits)",
    "rate_m": "mask (bits)",
}


def markdown(result: dict) -> str:
    """The text of ablations.md."""
    return fill("ablations.md.j2", **result, columns=COLUMNS)


def command_line(script: str, arguments: dict) -> str:
    """A command as it can be pasted: {"--seeds": (0, 1)} -> "python SCRIPT --seeds 0 1"; None and False are not."""
    words = ["python", script]
    for flag, value in arguments.items():
        if value is True:
            words.append(flag)
        elif value not in (None, False, ()):
            words += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


@matplotlib.rc_context({"text.parse_math": False})
def forest(rows: list[dict], title: str) -> bytes:
    """PNG: of every row the paired difference of PxAP, default minus row, with its interval, if it has one; a dot a
    seed."""
    default = next(row for row in rows if row["method"] == "default")["scores"]["pxap"]["by_seed"]
    rows = [row for row in rows if "pxap" in row["default_minus"]]
    fig, ax = plt.subplots(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    palette, groups = plt.get_cmap("tab20").colors, dict.fromkeys(row["group"] for row in rows)
    colors = dict(zip(groups, palette[::2] + palette[1::2], strict=False))
    ax.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
    for y, (row, tick) in enumerate(zip(rows, ax.get_yticklabels(), strict=True)):
        found, own, color = row["default_minus"]["pxap"], row["scores"]["pxap"]["by_seed"], colors[row["group"]]
        each = np.array(default) - np.array(own if len(own) > 1 else own * len(default))
        if found["ci95"]:
            ax.plot(found["ci95"], [y, y], color=color, lw=2, solid_capstyle="butt")
        ax.plot(each, [y] * len(each), "o", color=color, ms=3, alpha=0.5, mew=0)
        ax.plot(found["value"], y, "D", color=color, ms=5, mec="black", mew=0.5)
        tick.set_color(color)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    told = "PxAP of the default minus PxAP of the row, 95% interval; right of 0: the default is better"
    ax.set_xlabel(told, fontsize=9)
    ax.set_title(f"{title}: diamonds are means over seeds, dots single seeds", fontsize=10)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return as_png(fig)


def rate_distortion(rows: list[dict], image: np.ndarray, truth: np.ndarray, strip: dict[str, np.ndarray]) -> bytes:
    """PNG: NLL and AUROC against the bits of an image over beta, a point a seed; below, one image [S, S] with its truth
    [S, S] and its masks, `strip` {variant: [h, w]}."""
    names = sorted(strip, key=factor)
    scores = {row["method"]: row["scores"] for row in rows}
    fig = plt.figure(figsize=(max(8, 1.9 * (len(names) + 1)), 6.4), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.5, 1])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(names)))
    bits = [np.add(*(scores[name][rate]["by_seed"] for rate in ("rate_z", "rate_m"))) for name in names]
    for ax, metric in zip(top.subplots(1, 2), ("nll", "auroc"), strict=True):
        found = [scores[name].get(metric) for name in names]  # no AUROC of one class
        for name, x, y, color in zip(names, bits, found, colors, strict=True):
            values = y["by_seed"] if y else np.full(len(x), np.nan)
            ax.plot(x, values, "o", color=color, ms=5, label=_beta(name))
        means = [y["mean"] if y else np.nan for y in found]
        ax.plot([x.mean() for x in bits], means, color="gray", lw=0.8, zorder=0)
        if 0 < 5 * np.min(np.concatenate(bits)) < np.max(np.concatenate(bits)):
            ax.set_xscale("log")
        ax.set_xlabel("rate, bits per image: representation + mask", fontsize=9)
        ax.set_ylabel({"nll": "NLL, nats per image", "auroc": "AUROC"}[metric], fontsize=9)
        ax.grid(alpha=0.2, which="both")
        ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)
    for ax, name in zip(bottom.subplots(1, len(names) + 1), [None, *names], strict=True):
        ax.imshow(image, cmap="gray")
        if name:
            heat = prepare_map(strip[name], *image.shape)
            ax.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.15 + 0.5 * heat)
        ax.contour(truth, [0.5], colors=TRUE, linewidths=1)
        ax.set(xticks=[], yticks=[])
        ax.set_title(_beta(name) if name else "image", fontsize=9)
    bottom.supxlabel("one positive image, first seed: mask (min-maxed), true opacity in green", fontsize=9)
    return as_png(fig)


def factor(name: str) -> float:
    """What a variant multiplies both betas with: 4 of "beta_x4", 1 of any other."""
    return float(name.removeprefix("beta_x")) if name.startswith("beta_x") else 1.0


def _beta(name: str) -> str:
    return f"beta x {factor(name):g}"
