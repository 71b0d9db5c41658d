"""Tables of one eval/SPLIT.json, as rows and headings of text: computed here once, drawn by render.py three times."""

from infomask_jax.report.sheet import (
    BOXES,
    INTERVALS,
    Cell,
    Row,
    Sheet,
    group_of,
    method_sheet,
    number,
    rank,
    score_cell,
)

COLUMNS = {  # heading: path of the score in a method's entry
    "PxAP": ("pxap",),
    "pointing": ("pointing_game",),
    "mean IoU": ("mean_iou",),
    "MaxBox AccV2": ("max_box_acc_v2",),
    "Acc IoU>.1": ("acc_iou", "0.1"),
    "Acc IoU>.3": ("acc_iou", "0.3"),
    "Acc IoU>.5": ("acc_iou", "0.5"),
}
SHORT = {
    "pxap": "PxAP",
    "pointing_game": "pointing",
    "mean_iou": "mean IoU",
    "max_box_acc_v2": "MaxBoxAccV2",
    "acc_iou/0.1": "IoU>.1",
    "acc_iou/0.3": "IoU>.3",
    "acc_iou/0.5": "IoU>.5",
}
PROTOCOL = {
    "wang2017": "Wang 2017 (ChestX-ray8)",
    "li2018": "Li 2018",
    "wsol": "WSOL (Choe 2020)",
    "chexlocalize": "CheXlocalize (Saporta 2022)",
    "rsna": "RSNA challenge 2018",
    "pixel_auprc": "Pixel AUPRC (Arun 2021)",
}
MEASURE = {  # of the scores with levels: their name, and how a level is compared
    "wang2017/acc_iou": ("Acc, share of boxes hit", "IoU>"),
    "wang2017/afp_iou": ("AFP, false boxes per true box of any finding", "IoU>"),
    "wang2017/acc_iobb": ("Acc, share of boxes hit", "IoBB>"),
    "wang2017/afp_iobb": ("AFP, false boxes per true box of any finding", "IoBB>"),
    "li2018/acc_iou": ("share of images", "IoU≥"),
    "li2018/acc_ior": ("share of images", "IoR≥"),
}
METRIC = {
    "boxes_per_image": BOXES,
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    "pxap": "PxAP",
    "mean_iou_otsu": "mean IoU, Otsu",
    "mean_iou_fixed": "mean IoU, cut at .5",
    "mean_iou_tuned": "mean IoU, tuned",
    "hit_rate": "hit rate",
    "map": "mean TP/(TP+FP+FN)",
    "pooled": "pixels pooled",
    "per_image": "mean of images",
    "pointing_game": "pointing",
}
FILES = {
    "maps": "images with a map",
    "with_boxes": "  with a box",
    "positive_without_box": "  positive, without a box",
    "negative": "  negative",
    "unknown": "  unknown",
    "boxes": "boxes on images with a map",
    "boxes_of_other_findings": "boxes of other findings on images with a map",
    "boxed_images_without_map": "images with a box, without a map",
    "boxes_without_map": "boxes on those",
    "negative_images_without_map": "negative images without a map",
    "without_image_file": "images with a map, without a file",
}


def sheets(result: dict) -> list[Sheet]:
    """Every table of one eval/SPLIT.json, in reading order."""
    out = [_classification(result)]
    for finding, entries in result["localization"].items():
        out.append(_headline(result, finding))
        out += [sheet for p in _protocols(entries) for sheet in _protocol(entries, finding, p)]
        out += _differences(result, finding)
        out += _faithfulness(result, finding)
    return [*out, *_counts(result)]


def heading(result: dict) -> str:
    """What was scored, in a line."""
    counts = f"{result['n_images']} images, {result['n_boxed_images']} with boxes"
    return f"{result['dataset']} / {result['split']}: {counts}"


def remarks(result: dict) -> list[str]:
    """Lines that belong to no table: findings without one, and notes of `score_files`."""
    missing = [f for f in result["classification"] if f not in result["localization"]]
    lines = [f"Not localized (no positive image has a box): {', '.join(missing)}"] if missing else []
    return [*lines, *result.get("notes", [])]


def _classification(result: dict) -> Sheet:
    """A row a finding, then the plain classifier's, if scored."""
    metrics = {"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "brier": "Brier"}
    entries = [(name, name, row) for name, row in result["classification"].items()]
    entries += [(n, f"{n}, plain classifier", row) for n, row in result.get("classification_plain", {}).items()]
    rows = []
    for finding, name, row in entries:
        scores = [score_cell(row[m]) if m in row else Cell("-") for m in metrics]
        if row["auroc"]["value"] is None:
            scores[0] = Cell(row["auroc"].get("reason", "undefined"))
        counts = result["counts"][finding]
        negatives = result["n_images"] - counts["positive"] - counts["unknown"]
        prevalence = Cell(number(row["prevalence"])) if negatives else Cell("-", "no negative known")
        rows.append(Row(name, (*scores, prevalence, Cell(str(row["auroc"]["n"])))))
    headings = ("finding", *metrics.values(), "prevalence", "images")
    notes = (f"over images with a known label; {INTERVALS}",)
    return Sheet("classification", "Classification", headings, tuple(rows), notes)


def _headline(result: dict, finding: str) -> Sheet:
    entries, counts = result["localization"][finding], result["counts"][finding]
    scores = {h: {m: _look(entries[m], path) for m in entries} for h, path in COLUMNS.items()}
    scores[BOXES] = {m: {"value": entry["boxes_per_image"]} for m, entry in entries.items()}
    notes = [INTERVALS, f"mean boxes from {result['mean_boxes_from'][finding]}; frame {result['frame']} px"]
    left_out = {
        "positive without a box": counts["skipped_positive_without_box"],
        "boxed but not positive": counts["skipped_boxed_not_positive"],
    }
    if skipped := ", ".join(f"{n} {why}" for why, n in left_out.items() if n):
        notes.append(f"not scored: {skipped}")
    title = f"Localization of {finding}: {counts['scored_boxes']} boxes on {counts['scored_images']} images"
    return method_sheet("headline", title, entries, scores, {m: e["threshold"] for m, e in entries.items()}, notes)


def _protocols(entries: dict) -> list[str]:
    return list(dict.fromkeys(name for entry in entries.values() for name in entry.get("protocols", {})))


def _protocol(entries: dict, finding: str, protocol: str) -> list[Sheet]:
    """A sheet for each score with levels, the scores without beside the first; or one of these alone."""
    blocks = {m: entry["protocols"][protocol] for m, entry in entries.items()}
    thresholds = {m: block["threshold"] for m, block in blocks.items()}
    metrics = list(dict.fromkeys(name for block in blocks.values() for name in block if name != "threshold"))
    title, flat, levelled = f"{PROTOCOL.get(protocol, protocol)}, {finding}", {}, {}
    for metric in metrics:
        found = {m: block.get(metric) for m, block in blocks.items()}
        first = next(v for v in found.values() if v is not None)
        if isinstance(first, dict) and "value" not in first:
            name, compared = MEASURE.get(f"{protocol}/{metric}", (metric, ">"))
            columns = {
                f"{compared}{t.removeprefix('0')}": {m: (v or {}).get(t) for m, v in found.items()} for t in first
            }
            levelled[f"{title}: {name}, {compared[:-1]}"] = columns, not metric.startswith("afp")
        else:
            oracle = {
                m: t["tuned_on"] == "oracle" and bool(t["value"]) and metric != "pxap" for m, t in thresholds.items()
            }
            flat[METRIC.get(metric, metric)] = {
                m: {**(v if isinstance(v, dict) else {"value": v}), **({"tuned_on": "oracle"} if oracle[m] else {})}
                for m, v in found.items()
            }
    if not levelled:
        levelled = {title: ({}, True)}
    notes = [INTERVALS]
    if protocol == "chexlocalize":
        notes.append("cut at: of the tuned score; Otsu's threshold is each map's own, .5 is fixed")
    out = []
    for i, (name, (columns, ranked)) in enumerate(levelled.items()):
        out.append(
            method_sheet("protocol", name, entries, columns | (flat if i == 0 else {}), thresholds, notes, ranked)
        )
    return out


def _differences(result: dict, finding: str) -> list[Sheet]:
    """Every method minus CAM and minus the best control, paired; nothing where there is no rival."""
    differences = result.get("differences", {}).get(finding)
    if not differences:
        return []
    metrics = list(next(iter(differences.values())))
    rows = tuple(
        Row(name, tuple(score_cell(row[m], sign=True, verdict=_verdict(row[m])) for m in metrics))
        for name, row in differences.items()
    )
    controls = {m: v["control"] for row in differences.values() for m, v in row.items() if "control" in v}
    best = ", ".join(f"{SHORT.get(m, m)} {name.removeprefix('control/')}" for m, name in controls.items())
    notes = ["paired 95% interval; green or red on screen: it excludes 0"]
    notes += [f"best control, chosen for each column: {best}"] if best else []
    headings = ("difference", *(SHORT.get(m, m) for m in metrics))
    return [Sheet("differences", f"Paired differences, {finding}", headings, rows, tuple(notes))]


def _faithfulness(result: dict, finding: str) -> list[Sheet]:
    """Deletion and insertion of a run's maps, where they were measured."""
    methods = result.get("faithfulness", {}).get(finding)
    if not methods:
        return []
    metrics = {"deletion": "deletion (low is good)", "insertion": "insertion (high is good)"}
    rows = []
    for method in sorted(methods, key=rank):
        group, name = group_of(method)
        rows.append(Row(name, tuple(score_cell(methods[method][m]) for m in metrics), group))
    title = f"Faithfulness to the model, {finding}"
    return [Sheet("faithfulness", title, ("method", *metrics.values()), tuple(rows), (INTERVALS,))]


def _counts(result: dict) -> list[Sheet]:
    """What was scored and what not, of each finding; and of files of maps, what was matched."""
    n, rows = result["n_images"], []
    for finding, c in result["counts"].items():
        values = [c["positive"], n - c["positive"] - c["unknown"], c["unknown"], c["scored_images"], c["scored_boxes"]]
        values += [c["skipped_positive_without_box"], c["skipped_boxed_not_positive"]]
        rows.append(Row(finding, tuple(Cell(str(v)) for v in values)))
    headings = ("finding", "positive", "negative", "unknown", "scored images", "scored boxes")
    headings += ("positive without box", "boxed, not positive")
    out = [Sheet("counts", "Images counted", headings, tuple(rows))]
    if files := result.get("files"):
        rows = [Row(_file_name(name), (Cell(str(count)),)) for name, count in files.items()]
        out.append(Sheet("files", "Files matched", ("", "count"), tuple(rows)))
    return out


def _file_name(name: str) -> str:
    prefix = "tune_on_"
    if name.startswith(prefix):
        return f"--tune-on: {FILES.get(name.removeprefix(prefix), name).strip()}"
    return FILES.get(name, name)


def _look(row: dict, path: tuple[str, ...]) -> dict:
    for name in path:
        row = row[name]
    return row


def _verdict(v: dict) -> str:
    if not v["ci95"] or v["ci95"][0] <= 0 <= v["ci95"][1]:
        return ""
    return "green" if v["value"] > 0 else "red"
