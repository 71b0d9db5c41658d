"""What the scores of a run say, in a few lines: whether its map beats CAM and the controls, and why not to trust it."""

from collections.abc import Sequence

import numpy as np

from infomask_jax.report.figures import NAMES, drawn_method
from infomask_jax.report.sheet import number

OPEN, FLAT, FALLING, RISEN, WIDE, APART = 0.5, 0.05, 0.02, 0.05, 0.25, 0.1  # see the lines below that they decide
NEVER_LOOKS = ("random", "center", "whole_image", "mean_box", "mean_right_box", "mean_lung_boxes", "lung_boxes")


def verdict(
    result: dict, maps: dict[str, np.ndarray], labels, rows: Sequence[dict] = (), epochs: float | None = None
) -> list[str]:
    """Lines on an eval/SPLIT.json: first the sentence on its map, then every caution that holds.

    Args:
      maps: {method: [N, h, w, M]} that were scored. labels: [N, K] of 1, 0, -1.
      rows: of metrics.jsonl, none of several folds. epochs: how often training saw each film.
    """
    method = drawn_method(maps)
    lines = [_sentence(result["differences"], result["localization"], method)] if result["localization"] else []
    for finding, found in result["classification"].items():
        lines += _of_classifier(finding, found)
    lines += _of_masks(maps[method], np.asarray(labels)) if method == "infomask" else []
    return lines + _of_training(rows, epochs, [found["auroc"]["value"] for found in result["classification"].values()])


def _sentence(differences: dict, localization: dict, method: str) -> str:
    name = NAMES.get(method, method)
    if len(localization) == 1:
        ((finding, compared),) = differences.items()
        value = number(localization[finding][method]["pxap"]["value"])
        parts = [_against(row["pxap"], other) for other, row in _rivals(compared, method)]
        return f"{finding}: {name} has PxAP {value}: {', '.join(parts)}."
    told = []
    for other in ("cam", "best control"):
        own = [row[f"{method} - {other}"]["pxap"] for row in differences.values() if f"{method} - {other}" in row]
        if own:
            won = sum(v["ci95"][0] > 0 for v in own if v["ci95"])
            lost = sum(v["ci95"][1] < 0 for v in own if v["ci95"])
            against = "CAM" if other == "cam" else "the best control"
            told.append(f"better than {against} for {won} of {len(own)} findings, worse for {lost}")
    return f"{name} is in PxAP {'; '.join(told)}."


def _rivals(compared: dict, method: str):
    for other in ("cam", "best control"):
        if row := compared.get(f"{method} - {other}"):
            yield other, row


def _against(v: dict, other: str) -> str:
    against = "CAM"
    if other != "cam":
        control = v["control"].removeprefix("control/")
        against = f"the best control, {control}" + (", which never looks" if control in NEVER_LOOKS else "")
    if not v["ci95"]:
        return f"{number(v['value'], sign=True)} from {against} (no interval: {v['n']} films with a box are too few)"
    low, high = v["ci95"]
    surely = "better than" if low > 0 else "worse than" if high < 0 else "not surely better than"
    interval = f"[{number(low, sign=True)}, {number(high, sign=True)}]"
    return f"{surely} {against} ({number(v['value'], sign=True)} {interval})"


def _of_classifier(finding: str, found: dict) -> list[str]:
    lines, auroc = [], found["auroc"]
    if auroc["value"] is None:
        return []
    if not auroc.get("ci95"):
        return [f"{finding}: films of one patient are no evidence: no interval."]
    low, high = auroc["ci95"]
    told = f"AUROC {number(auroc['value'])} [{number(low)}, {number(high)}]"
    if high < 0.5:
        lines.append(
            f"{finding} is worse than chance, {told}: something in these films is the other way round in training."
        )
    elif low <= 0.5 and high - low > WIDE:
        lines.append(f"{finding}: these films are too few to tell it from chance, {told}.")
    elif low <= 0.5:
        lines.append(f"{finding} is at chance, {told}: its maps mean nothing.")
    within, alone = found.get("auroc_within_view"), found.get("auroc_of_view")
    if alone is not None and alone >= auroc["value"]:
        told = f"has AUROC {number(alone)}, the model {number(auroc['value'])}"
        lines.append(f"{finding}: who knows only the view of a film (AP, PA) {told}.")
    if low > 0.5 and within and within["ci95"] and within["ci95"][0] <= 0.5:
        told = f"AUROC {number(within['value'])} [{', '.join(map(number, within['ci95']))}]"
        lines.append(f"{finding}: within a view it is at chance ({told}): it goes by the view.")
    return lines


def _of_masks(maps: np.ndarray, labels: np.ndarray) -> list[str]:
    lines, share = [], float(maps.mean(dtype=np.float32))  # as they are: a copy in float32 would be gigabytes
    if share > OPEN:
        told = "it chooses little. Raise --loss.beta-m, or train longer."
        lines.append(f"The mask is open on {share:.0%} of a film: {told}")
    flat = (np.ptp(maps, axis=(1, 2)) < FLAT).all(axis=-1)[(labels == 1).any(axis=-1)]
    if flat.any():
        lines.append(f"{flat.sum()} of {len(flat)} masks of positive films are nearly constant: their boxes are noise.")
    return lines


def _of_training(rows: Sequence[dict], epochs: float | None, aurocs: list[float | None]) -> list[str]:
    lines, known = [], [value for value in aurocs if value is not None]
    before = next((row["val_auroc"] for row in reversed(rows) if "val_auroc" in row), None)
    if before is not None and known and (now := float(np.mean(known))) < before - APART:
        told = "these films are unlike those of val, or either are too few"
        lines.append(f"AUROC is {number(before)} on val and {number(now)} here: {told}.")
    if epochs is not None and epochs < 1:
        lines.append(f"Training saw {epochs:.0%} of its films, once: too few steps (--train.steps).")
    scored = [(row["step"], row["val_nll"]) for row in rows if "val_nll" in row]
    if len(scored) < 5:
        return lines
    (step, least), (_, last), before = min(scored, key=lambda one: one[1]), scored[-1], scored[-3][1]
    if last > (1 + RISEN) * least:
        told = f"Validation NLL rose from {least:.3f} at step {step} to {last:.3f}"
        lines.append(f"{told}: fewer steps may do; RUN/best is the run of that step.")
    elif last < (1 - FALLING) * before:
        lines.append(f"Validation NLL still fell at the end, from {before:.3f} to {last:.3f}: more steps may help.")
    return lines
