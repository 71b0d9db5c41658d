"""The shortcut audit as tables and as a figure."""

import matplotlib.pyplot as plt
import numpy as np

from infomask_jax.evaluate.shares import REGIONS
from infomask_jax.localize import resize_map
from infomask_jax.report.figures import HEAT, NAMES, TRUE, as_png
from infomask_jax.report.sheet import INTERVALS, Row, Sheet, score_cell

GROUPS = {
    "positive": "positive images",
    "positive_without_lesion": "positive images without box or mask: lesion and lung are one",
    "negative": "negative images",
}
COLORS = {"area": "#b0b0b0", "infomask_bits": "#e4572e", "vib_bits": "#e4572e", "infomask": "#2e86ab"}
SCORES = {"auroc": "AUROC", "auroc_of_openness": "of the mask's mean alone"}
SCORES |= {"auroc_of_shuffled_mask": "with each mask shuffled"}
LEFT_OUT = {"positive_without_lesion": "positive without box or mask", "unknown": "of unknown label"}
LEAST = 0.05  # share of a film that is no lung, below which an audit says nothing
SIDE = 256  # pixels of a drawn mean map


def audit_sheets(result: dict) -> tuple[str, list[Sheet], list[str]]:
    """Title, tables and closing lines of what `shares.audit` returned."""
    sheets = []
    for finding, found in result["findings"].items():
        rows = []
        for group in [name for name in GROUPS if name in found]:
            own, heading = found[group], f"{GROUPS[group]} ({found[group]['images']})"
            for method in [name for name in own if name != "images"]:
                entry = own[method] if method != "area" else {"total": {}, "shares": own["area"], "over_area": {}}
                values = [entry["total"], *(entry[each].get(r) for each in ("shares", "over_area") for r in REGIONS)]
                rows.append(Row(NAMES.get(method, method), tuple(map(score_cell, values)), heading))
        told = "total: bits (mask: open cells) per image; lung: without the lesion; / area: 1 is no preference"
        notes = [INTERVALS, told]
        counts = {text: found["counts"][name] for name, text in LEFT_OUT.items()}
        if left_out := ", ".join(f"{count} {text}" for text, count in counts.items() if count):
            notes.append(f"not in the shares of lesions: {left_out}")
        headings = ("", "total", *REGIONS, *(f"{region} / area" for region in REGIONS))
        sheets.append(Sheet("audit", f"Where the bits of {finding} are", headings, tuple(rows), tuple(notes)))
    names = [name for name in SCORES if any(name in found for found in result["findings"].values())]
    rows = [Row(finding, tuple(score_cell(found[s]) for s in names)) for finding, found in result["findings"].items()]
    notes = (
        INTERVALS,
        "the mean alone: high is expected of a mask that opens only for disease",
        "shuffled: the same representation behind a mask of the same values in other cells",
    )
    headings = ("finding", *(SCORES[name] for name in names))
    sheets.append(Sheet("audit", "What the pattern of the mask tells", headings, tuple(rows), notes))
    lines = [f"lung: {result['lung_from']}"]
    groups = [found[name] for found in result["findings"].values() for name in GROUPS if name in found]
    elsewhere = max((group["area"]["elsewhere"]["value"] for group in groups), default=1)
    if elsewhere < LEAST:
        told = "that bits lie in the lungs says nothing; --lungs DIR takes lung fields of your own"
        lines.append(f"the lungs are {1 - elsewhere:.0%} of the films or more: {told}")
    if result["n_images_without_lung"]:
        lines.append(f"images without a pixel of lung: {result['n_images_without_lung']}")
    return f"Audit of {result['dataset']} / {result['split']}: {result['n_images']} images", sheets, lines


@plt.rc_context({"text.parse_math": False})
def audit_figure(result: dict, means: dict) -> bytes:
    """PNG of what `shares.audit` returned, a row a finding: of positive and of negative images, bars of shares against
    area, and the mean map of bits."""
    findings = result["findings"]
    fig, axes = plt.subplots(len(findings), 4, figsize=(14, 3.4 * len(findings)), squeeze=False, layout="constrained")
    for row, (finding, found) in zip(axes, findings.items(), strict=True):
        for column, group in enumerate(("positive", "negative")):
            bars, picture = row[column], row[2 + column]
            n, left_out = found["counts"][group], found["counts"].get(f"{group}_without_lesion", 0)
            title = f"{finding}: {n} {group}" + (f" ({left_out} more without box or mask)" if left_out else "")
            bars.set_title(title, fontsize=10)
            picture.set_title(f"{title}, mean bits per cell", fontsize=10)
            picture.set(xticks=[], yticks=[])
            if n:
                _bars(bars, found[group])
                _mean(picture, means[finding][group])
            else:
                bars.text(0.5, 0.5, "no image", transform=bars.transAxes, ha="center", color="gray")
    fig.suptitle(f"Audit of {result['dataset']} / {result['split']}; green: edge of the mean lung", fontsize=11)
    return as_png(fig)


def _bars(ax, own: dict) -> None:
    """Shares of each method beside that of the area, with their intervals."""
    regions = list(own["area"])
    series = {"area": own["area"], **{m: own[m]["shares"] for m in own if m not in ("images", "area")}}
    for number, (name, values) in enumerate(series.items()):
        at = np.arange(len(regions)) + 0.27 * (number - (len(series) - 1) / 2)
        height = np.array([values[r]["value"] or 0 for r in regions])
        low, high = np.transpose([values[r]["ci95"] or (0, 0) for r in regions])
        label = {"area": "area", "infomask": "mask"}.get(name, "bits")
        errors = np.maximum([height - low, high - height], 0)
        ax.bar(at, height, 0.25, color=COLORS[name], label=label, yerr=errors, ecolor="#444444", capsize=2)
    ax.set_xticks(range(len(regions)), regions)
    ax.set_ylim(0, 1)
    ax.set_ylabel("share", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=8, frameon=False)


def _mean(ax, means: dict) -> None:
    """The mean map of bits, enlarged, on a scale of its own from 0, with the edge of the mean lung."""
    bits = next(m for name, m in means.items() if name.endswith("_bits"))
    drawn = ax.imshow(resize_map(bits, SIDE, SIDE), cmap=HEAT, vmin=0)
    lung = resize_map(means["lung"], SIDE, SIDE)
    if lung.min() < 0.5 < lung.max():
        ax.contour(lung, [0.5], colors=TRUE, linewidths=0.8)
    ax.figure.colorbar(drawn, ax=ax, shrink=0.85)
