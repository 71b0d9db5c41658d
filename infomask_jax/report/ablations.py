"""Table and figures of an ablation: rows as `infomask_jax.ablation.run` returns them."""

import shlex

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from infomask_jax.localize import prepare_map
from infomask_jax.report.figures import HEAT, TRUE, as_png
from infomask_jax.report.sheet import number

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
    """ablations.md: the command; for each finding the scores, the paired differences, PxAP and mean IoU of every seed,
    and what every row changes."""
    seeds, lines = result["seeds"], ["# Ablations", "", f"    {result['command']}", ""]
    unit = "seeds and patients" if len(seeds) > 1 else "patients"
    scored, trained_on = result["fingerprint"], result["trained_on"]
    other = "" if scored == trained_on else f" of other data ({scored[:8]}) than the training's ({trained_on[:8]})"
    lines += [
        f"{result['dataset']}/{result['split']}{other}, seeds {', '.join(map(str, seeds))}: mean ± standard deviation "
        "over seeds. Thresholds of mean IoU are tuned on its validation split, else .5. Rates are bits an image; a "
        "plain classifier has none: nothing bounds it. Rows NAME/MAP are maps of one classifier; `probability` is the "
        "evidence through a sigmoid. Attributions explain the runs of `cam`. Controls need no seed.",
        "",
    ]
    for finding, found in result["findings"].items():
        rows = found["rows"]
        lines += [f"## {finding}", "", *_table("method", rows, _score), ""]
        lines += [
            f"Default minus row, paired, with 95% interval: bootstrap over {unit}. Bold: it "
            "excludes 0. Low is good of NLL, so there the default is better where the difference is negative.",
            "",
        ]
        lines += [*_table("default minus", [row for row in rows if row["default_minus"]], _difference), ""]
        if len(seeds) > 1:
            lines += ["| seeds one by one | PxAP | mean IoU |", "|---|---|---|"]
            lines += [f"| {row['method']} | {_by_seed(row, 'pxap')} | {_by_seed(row, 'mean_iou')} |" for row in rows]
            lines.append("")
        lines += ["| method | changes |", "|---|---|"]
        lines += [f"| {row['method']} | {_changes(row['changes'])} |" for row in rows if row["changes"]]
        lines.append("")
    lines += [f"Skipped: {name}: {reason}." for name, reason in result["skipped"].items()]
    return "\n".join(lines).rstrip() + "\n"


def command_line(script: str, arguments: dict) -> str:
    """A command as it can be pasted: {"--seeds": (0, 1)} -> "python SCRIPT --seeds 0 1"; None and False are not."""
    words = ["python", script]
    for flag, value in arguments.items():
        if value is True:
            words.append(flag)
        elif value not in (None, False, ()):
            words += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def _table(head: str, rows: list[dict], cell) -> list[str]:
    lines = ["| " + " | ".join([head, *COLUMNS.values()]) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    return lines + ["| " + " | ".join([row["method"], *(cell(row, m) for m in COLUMNS)]) + " |" for row in rows]


def _score(row: dict, metric: str) -> str:
    if metric not in row["scores"]:
        return "-"
    score = row["scores"][metric]
    return number(score["mean"]) + (f" ± {number(score['sd'])}" if score["sd"] is not None else "")


def _difference(row: dict, metric: str) -> str:
    found = row["default_minus"].get(metric)
    if not found or found["value"] is None or not found["ci95"]:
        return "-"
    low, high = found["ci95"]
    text = f"{number(found['value'], sign=True)} [{number(low, sign=True)}, {number(high, sign=True)}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def _by_seed(row: dict, metric: str) -> str:
    return " ".join(map(number, row["scores"][metric]["by_seed"])) if metric in row["scores"] else "-"


def _changes(changes: dict) -> str:
    return ", ".join(f"`{name}` {value}" for name, value in changes.items())


@matplotlib.rc_context({"text.parse_math": False})
def forest(rows: list[dict], title: str) -> bytes:
    """PNG: of every row the paired difference of PxAP, default minus row, with its interval, by group; a dot a seed."""
    default = next(row for row in rows if row["method"] == "default")["scores"]["pxap"]["by_seed"]
    rows = [row for row in rows if row["default_minus"].get("pxap", {}).get("ci95")]
    fig, ax = plt.subplots(figsize=(8, 1.4 + 0.24 * len(rows)), layout="constrained")
    colors = dict.fromkeys(row["group"] for row in rows)
    colors = dict(zip(colors, plt.get_cmap("tab20").colors[::2] + plt.get_cmap("tab20").colors[1::2], strict=False))
    for y, row in enumerate(rows):
        found, color = row["default_minus"]["pxap"], colors[row["group"]]
        own = row["scores"]["pxap"]["by_seed"]
        each = np.array(default) - np.array(own if len(own) > 1 else own * len(default))
        ax.plot(found["ci95"], [y, y], color=color, lw=2, solid_capstyle="butt")
        ax.plot(each, [y] * len(each), "o", color=color, ms=3, alpha=0.5, mew=0)
        ax.plot(found["value"], y, "D", color=color, ms=5, mec="black", mew=0.5)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(rows)), [row["method"] for row in rows], fontsize=8)
    for tick, row in zip(ax.get_yticklabels(), rows, strict=True):
        tick.set_color(colors[row["group"]])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel(
        "PxAP of the default minus PxAP of the row, 95% interval; right of 0: the default is better", fontsize=9
    )
    ax.set_title(f"{title}: diamonds are means over seeds, dots single seeds", fontsize=10)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    return as_png(fig)


def rate_distortion(rows: list[dict], image: np.ndarray, truth: np.ndarray, strip: dict[str, np.ndarray]) -> bytes:
    """PNG: NLL and AUROC against the bits of an image over beta, a point a seed; below, masks of one image.

    Args:
      image, truth: [S, S]. strip: {variant: mask [h, w]}.
    """
    strip = {name: strip[name] for name in sorted(strip, key=factor)}
    rows = {row["method"]: row["scores"] for row in rows}
    fig = plt.figure(figsize=(max(8, 1.9 * (len(strip) + 1)), 6.4), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.5, 1])
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(strip)))
    bits = {name: np.add(*(rows[name][rate]["by_seed"] for rate in ("rate_z", "rate_m"))) for name in strip}
    every = np.concatenate(list(bits.values()))
    for ax, metric in zip(top.subplots(1, 2), ("nll", "auroc"), strict=True):
        means = []
        for name, color in zip(strip, colors, strict=True):
            none = {"by_seed": np.full(len(bits[name]), np.nan), "mean": np.nan}  # AUROC, of one class
            own = rows[name].get(metric, none)
            ax.plot(bits[name], own["by_seed"], "o", color=color, ms=5, label=_beta(name))
            means.append((bits[name].mean(), own["mean"]))
        ax.plot(*np.reshape(means, (-1, 2)).T, color="gray", lw=0.8, zorder=0)
        if 0 < 5 * every.min() < every.max():
            ax.set_xscale("log")
        ax.set_xlabel("rate, bits per image: representation + mask", fontsize=9)
        ax.set_ylabel({"nll": "NLL, nats per image", "auroc": "AUROC"}[metric], fontsize=9)
        ax.grid(alpha=0.2, which="both")
        ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)
    axes = bottom.subplots(1, len(strip) + 1)
    for ax, name in zip(axes, [None, *strip], strict=True):
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
