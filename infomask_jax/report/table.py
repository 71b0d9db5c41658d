"""Rich tables of one eval/SPLIT.json: every score with its 95% interval below it, dim."""

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

COLUMNS = {  # heading: path of the score in a method's entry
    "PxAP": ("pxap",),
    "pointing": ("pointing_game",),
    "mean IoU": ("mean_iou",),
    "MaxBox AccV2*": ("max_box_acc_v2",),
    "Acc IoU>.1": ("acc_iou", "0.1"),
    "Acc IoU>.3": ("acc_iou", "0.3"),
    "Acc IoU>.5": ("acc_iou", "0.5"),
}
STYLE = {"box": box.SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left"}
SHORT = {
    "pxap": "PxAP",
    "pointing_game": "pointing",
    "mean_iou": "mean IoU",
    "max_box_acc_v2": "MaxBoxAccV2",
    "acc_iou/0.1": "IoU>.1",
    "acc_iou/0.3": "IoU>.3",
    "acc_iou/0.5": "IoU>.5",
}


def number(x: float | None, sign: bool = False) -> str:
    """Three significant places without a leading zero: .712, 1.00, with sign +.031."""
    if x is None:
        return "-"
    if abs(x) >= 0.9995:
        return f"{x:+.2f}" if sign else f"{x:.2f}"
    return (f"{x:+.3f}" if sign else f"{x:.3f}").replace("0.", ".", 1)


def cell(v: dict, style: str = "", sign: bool = False) -> Text:
    """{"value", "ci95"} -> the value over its interval."""
    text = Text(number(v["value"], sign), style=style)
    if v.get("ci95"):
        low, high = (number(x, sign) for x in v["ci95"])
        text.append(f"\n{low} {high}" if sign else f"\n{low}–{high}", style="not bold dim")
    return text


def classification_table(result: dict) -> Table:
    """A row a finding: AUROC, AUPRC, prevalence, images with a known label; then the plain classifier's, if scored."""
    table = Table(title="Classification", **STYLE)
    table.add_column("finding", no_wrap=True)
    for heading in ("AUROC", "AUPRC", "prevalence", "images"):
        table.add_column(heading, justify="right")
    rows = list(result["classification"].items())
    rows += [(f"{name}, plain classifier", row) for name, row in result.get("classification_plain", {}).items()]
    for finding, row in rows:
        counted = str(row["auroc"]["n"])
        if row["auroc"]["value"] is None:
            note = Text(row["auroc"].get("reason", "undefined"), style="dim")
            table.add_row(finding, note, Text("-"), number(row["prevalence"]), counted)
        else:
            table.add_row(finding, cell(row["auroc"]), cell(row["auprc"]), number(row["prevalence"]), counted)
    return table


def localization_table(result: dict, finding: str) -> Table:
    """Rows: methods, then image-blind controls; the best value of a column is bold, wherever it stands."""
    rows, counts = result["localization"][finding], result["counts"][finding]
    methods = sorted((m for m in rows if not m.startswith("control/")), key=_rank)
    blind = [m for m in rows if m.startswith("control/")]
    title = f"Localization of {finding}: {counts['scored_boxes']} boxes on {counts['scored_images']} images"
    table = Table(title=title, **STYLE, padding=0)
    table.caption = _caption(result, finding, methods)
    table.add_column("method", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", min_width=9)
    table.add_column("boxes/ image", justify="right", min_width=6, max_width=6)
    best = {h: max((_look(rows[m], path)["value"] or 0.0 for m in rows), default=0.0) for h, path in COLUMNS.items()}
    for group in (methods, blind):
        for method in group:
            values = {h: _look(rows[method], path) for h, path in COLUMNS.items()}
            cells = [cell(v, "bold" if v["value"] and v["value"] >= best[h] else "") for h, v in values.items()]
            name = Text(method) if group is methods else Text(method.removeprefix("control/"), style="italic cyan")
            table.add_row(name, *cells, f"{rows[method]['boxes_per_image']:.2f}")
        if group is methods:
            table.add_section()
            table.add_row(Text("image-blind", style="dim"))
    return table


def difference_table(result: dict, finding: str) -> Table | None:
    """InfoMask minus each rival, paired; green or red where the interval excludes 0. None if there is no rival."""
    differences = result.get("differences", {}).get(finding)
    if not differences:
        return None
    table = Table(title=f"Paired differences, {finding}", **STYLE, padding=0)
    table.caption = "best control: chosen for each column; green or red: the 95% interval excludes 0"
    table.add_column("", max_width=15)
    for metric in next(iter(differences.values())):
        table.add_column(SHORT.get(metric, metric), justify="right", min_width=11)
    for name, row in differences.items():
        table.add_row(name, *[cell(v, _verdict(v), sign=True) for v in row.values()])
    return table


def tables(result: dict) -> Group:
    """Everything of one eval/SPLIT.json, to be printed at 100 columns or more."""
    counts = f"{result['n_images']} images, {result['n_boxed_images']} with boxes"
    parts = [
        Text(f"{result['dataset']} / {result['split']}: {counts}", style="bold"),
        classification_table(result),
    ]
    for finding in result["localization"]:
        parts += [localization_table(result, finding), difference_table(result, finding)]
    missing = [f for f in result["classification"] if f not in result["localization"]]
    if missing:
        parts.append(Text(f"Not localized (no positive image has a box): {', '.join(missing)}", style="dim"))
    return Group(*[p for p in parts if p is not None])


def print_scores(result: dict, console: Console | None = None) -> None:
    """Print `tables` to the console."""
    (console or Console()).print(tables(result))


def _look(row: dict, path: tuple[str, ...]) -> dict:
    for name in path:
        row = row[name]
    return row


def _rank(method: str) -> tuple:
    """InfoMask's maps first, then CAM, then the rest by name."""
    return (not method.startswith("infomask"), method != "cam", method)


def _verdict(v: dict) -> str:
    if not v["ci95"] or v["ci95"][0] <= 0 <= v["ci95"][1]:
        return ""
    return "green" if v["value"] > 0 else "red"


def _caption(result: dict, finding: str, methods: list[str]) -> str:
    rows, counts = result["localization"][finding], result["counts"][finding]
    thresholds = ", ".join(f"{m} {number(rows[m]['threshold']['value'])[:3]}" for m in methods)
    sources = sorted({rows[m]["threshold"]["tuned_on"] for m in methods})
    tuned = {"val": "tuned on validation", "fixed": "fixed, not tuned", "oracle": "ORACLE: tuned on these images"}
    lines = [
        f"thresholds ({', '.join(tuned.get(s, s) for s in sources)}): {thresholds}" if methods else "",
        "* best threshold on these images (oracle). Small: 95% interval, bootstrap over patients.",
        f"mean boxes from {result['mean_boxes_from'][finding]}; frame {result['frame']} px",
    ]
    left_out = {
        "positive without a box": counts["skipped_positive_without_box"],
        "boxed but not positive": counts["skipped_boxed_not_positive"],
    }
    skipped = ", ".join(f"{n} {why}" for why, n in left_out.items() if n)
    return "\n".join([*[line for line in lines if line], *([f"not scored: {skipped}"] if skipped else [])])
