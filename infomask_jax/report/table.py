"""Tables of one eval/SPLIT.json, as rows and headings of text: computed here once, drawn by render.py three times."""

from functools import reduce
from operator import getitem

from infomask_jax.report.sheet import BOXES, INTERVALS, Cell, Row, Sheet, method_rows, method_sheet, number, score_cell

COLUMNS = {  # of the headline, heading: path of the score in a method's entry
    "PxAP": ("pxap",),
    "pointing": ("pointing_game",),
    "mean IoU": ("mean_iou",),
    "MaxBox AccV2": ("max_box_acc_v2",),
    "Acc IoU>.1": ("acc_iou", "0.1"),
    "Acc IoU>.3": ("acc_iou", "0.3"),
    "Acc IoU>.5": ("acc_iou", "0.5"),
}
METRIC = {  # of protocols and differences
    "pxap": "PxAP",
    "pointing_game": "pointing",
    "mean_iou": "mean IoU",
    "max_box_acc": "MaxBoxAcc",
    "max_box_acc_v2": "MaxBoxAccV2",
    **{f"acc_iou/0.{i}": f"IoU>.{i}" for i in (1, 3, 5)},
    "boxes_per_image": BOXES,
    "mean_iou_otsu": "mean IoU, Otsu",
    "mean_iou_fixed": "mean IoU, cut at .5",
    "mean_iou_tuned": "mean IoU, tuned",
    "hit_rate": "hit rate",
    "map": "mean TP/(TP+FP+FN)",
    "pooled": "pixels pooled",
    "per_image": "mean of images",
}
PROTOCOL = {
    "wang2017": "Wang 2017 (ChestX-ray8)",
    "li2018": "Li 2018",
    "wsol": "WSOL (Choe 2020)",
    "chexlocalize": "CheXlocalize (Saporta 2022)",
    "rsna": "RSNA challenge 2018",
    "pixel_auprc": "Pixel AUPRC (Arun 2021)",
}
AFP = "AFP, false boxes per true box of any finding"
MEASURE = {  # of the scores with levels: their name, and how a level is compared
    "wang2017/acc_iou": ("Acc, share of boxes hit", "IoU>"),
    "wang2017/afp_iou": (AFP, "IoU>"),
    "wang2017/acc_iobb": ("Acc, share of boxes hit", "IoBB>"),
    "wang2017/afp_iobb": (AFP, "IoBB>"),
    "li2018/acc_iou": ("share of images", "IoU≥"),
    "li2018/acc_ior": ("share of images", "IoR≥"),
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


def document(result: dict) -> tuple[str, list[Sheet], list[str]]:
    """Of one eval/SPLIT.json a title, every table in reading order, and closing lines."""
    sheets = [_classification(result)]
    for finding, entries in result["localization"].items():
        sheets.append(_headline(result, finding, entries))
        for protocol in dict.fromkeys(name for entry in entries.values() for name in entry.get("protocols", {})):
            sheets += _protocol(entries, finding, protocol)
        if differences := result.get("differences", {}).get(finding):
            sheets.append(_differences(differences, finding))
        if measured := result.get("faithfulness", {}).get(finding):
            sheets.append(_faithfulness(measured, finding))
    missing = [finding for finding in result["classification"] if finding not in result["localization"]]
    lines = [f"Not localized (no positive image has a box): {', '.join(missing)}"] if missing else []
    counts = f"{result['n_images']} images, {result['n_boxed_images']} with boxes"
    title = f"{result['dataset']} / {result['split']}: {counts}"
    return title, [*sheets, *_counts(result)], [*lines, *result.get("notes", [])]


def _classification(result: dict) -> Sheet:
    """A row a finding, then the plain classifier's, if scored."""
    metrics = {"auroc": "AUROC", "auprc": "AUPRC", "ece": "ECE", "brier": "Brier"}
    if any("auroc_within_view" in row for row in result["classification"].values()):
        metrics = {"auroc": "AUROC", "auroc_within_view": "AUROC within view"} | metrics
    entries = [(name, name, row) for name, row in result["classification"].items()]
    entries += [(n, f"{n}, plain classifier", row) for n, row in result.get("classification_plain", {}).items()]
    rows = []
    for finding, name, row in entries:
        scores = [score_cell(row.get(metric)) for metric in metrics]
        if row["auroc"]["value"] is None:
            scores[0] = Cell(row["auroc"].get("reason", "undefined"))
        counts = result["counts"][finding]
        negatives = result["n_images"] - counts["positive"] - counts["unknown"]
        prevalence = Cell(number(row["prevalence"])) if negatives else Cell("-", "no negative known")
        rows.append(Row(name, (*scores, prevalence, Cell(f"{counts['positive']} / {row['auroc']['n']}"))))
    headings = ("finding", *metrics.values(), "prevalence", "positives / images")
    notes = (f"over images with a known label; {INTERVALS}",)
    return Sheet("classification", "Classification", headings, tuple(rows), notes)


def _headline(result: dict, finding: str, entries: dict) -> Sheet:
    counts = result["counts"][finding]
    columns = {h: {m: reduce(getitem, path, entry) for m, entry in entries.items()} for h, path in COLUMNS.items()}
    columns[BOXES] = {m: {"value": entry["boxes_per_image"]} for m, entry in entries.items()}
    thresholds = {m: entry["threshold"] for m, entry in entries.items()}
    notes = [INTERVALS, f"mean boxes from {result['mean_boxes_from'][finding]}; frame {result['frame']} px"]
    reasons = {"skipped_positive_without_box": "positive without a box"}
    reasons |= {"skipped_boxed_not_positive": "boxed but not positive"}
    if skipped := ", ".join(f"{counts[name]} {why}" for name, why in reasons.items() if counts[name]):
        notes.append(f"not scored: {skipped}")
    title = f"Localization of {finding}: {counts['scored_boxes']} boxes on {counts['scored_images']} images"
    return method_sheet("headline", title, entries, columns, thresholds, notes)


def _protocol(entries: dict, finding: str, protocol: str) -> list[Sheet]:
    """A sheet for each score with levels, the first with the scores without; or one of these alone."""
    blocks = {m: entry["protocols"][protocol] for m, entry in entries.items()}
    thresholds = {m: block["threshold"] for m, block in blocks.items()}
    title, flat, levelled = f"{PROTOCOL.get(protocol, protocol)}, {finding}", {}, {}
    for metric in dict.fromkeys(name for block in blocks.values() for name in block if name != "threshold"):
        found = {m: block.get(metric) for m, block in blocks.items()}
        first = next(v for v in found.values() if v is not None)
        if isinstance(first, dict) and "value" not in first:
            name, compared = MEASURE.get(f"{protocol}/{metric}", (metric, ">"))
            levelled[f"{title}: {name}, {compared[:-1]}"] = {
                compared + level.removeprefix("0"): {m: (v or {}).get(level) for m, v in found.items()}
                for level in first
            }
        else:
            column = flat[METRIC.get(metric, metric)] = {}
            for m, v in found.items():
                column[m] = v if isinstance(v, dict) else {"value": v}
                if thresholds[m]["tuned_on"] == "oracle" and thresholds[m]["value"] and metric != "pxap":
                    column[m] = column[m] | {"tuned_on": "oracle"}
    notes, sheets = [INTERVALS], []
    if protocol == "chexlocalize":
        notes.append("cut at: of the tuned score; Otsu's threshold is each map's own, .5 is fixed")
    for name, columns in (levelled or {title: {}}).items():
        columns = columns if sheets else columns | flat
        sheets.append(method_sheet("protocol", name, entries, columns, thresholds, notes, ranked=AFP not in name))
    return sheets


def _differences(differences: dict, finding: str) -> Sheet:
    metrics, rows, controls = list(next(iter(differences.values()))), [], {}
    for name, row in differences.items():
        rows.append(Row(name, tuple(difference_cell(row[metric]) for metric in metrics)))
        controls |= {metric: v["control"].removeprefix("control/") for metric, v in row.items() if "control" in v}
    notes = ["paired 95% interval; green or red on screen: it excludes 0"]
    if best := ", ".join(f"{METRIC.get(metric, metric)} {name}" for metric, name in controls.items()):
        notes.append(f"best control, chosen for each column: {best}")
    headings = ("difference", *(METRIC.get(metric, metric) for metric in metrics))
    return Sheet("differences", f"Paired differences, {finding}", headings, tuple(rows), tuple(notes))


def difference_cell(v: dict) -> Cell:
    """{"value", "ci95"} of a difference as a cell."""
    low, high = v["ci95"] or (0, 0)
    verdict = "" if low <= 0 <= high else "green" if v["value"] > 0 else "red"
    below = f"{number(low, sign=True)} {number(high, sign=True)}" if v["ci95"] else ""
    return Cell(number(v["value"], sign=True), below, verdict=verdict)


def _faithfulness(methods: dict, finding: str) -> Sheet:
    headings = ("method", "deletion (low is good)", "insertion (high is good)")
    rows = method_rows({m: [score_cell(v["deletion"]), score_cell(v["insertion"])] for m, v in methods.items()})
    return Sheet("faithfulness", f"Faithfulness to the model, {finding}", headings, rows, (INTERVALS,))


def _counts(result: dict) -> list[Sheet]:
    """What was scored of each finding; and of files of maps, what was matched."""
    n, rows = result["n_images"], []
    for finding, c in result["counts"].items():
        values = [c["positive"], n - c["positive"] - c["unknown"], c["unknown"], c["scored_images"], c["scored_boxes"]]
        values += [c["skipped_positive_without_box"], c["skipped_boxed_not_positive"]]
        rows.append(Row(finding, tuple(Cell(str(v)) for v in values)))
    headings = ("finding", "positive", "negative", "unknown", "scored images", "scored boxes")
    headings += ("positive without box", "boxed, not positive")
    sheets = [Sheet("counts", "Images counted", headings, tuple(rows))]
    if files := result.get("files"):
        told = {f"tune_on_{name}": f"--tune-on: {text.strip()}" for name, text in FILES.items()} | FILES
        rows = [Row(told.get(name, name), (Cell(str(count)),)) for name, count in files.items()]
        sheets.append(Sheet("files", "Files matched", ("", "count"), tuple(rows)))
    return sheets
