"""One table as text: its cells and rows, and the table that every score of methods shares."""

from dataclasses import dataclass

UNTRAINED, CEILING = "controls, untrained", "ceiling of the map's grid: knows the true boxes"
SOURCES = {
    "val": "val: tuned on validation",
    "fixed": "fixed: not tuned",
    "oracle": "oracle: tuned on these very images",
}
STARRED = "* best threshold on these images (oracle)"
INTERVALS = "with each score its 95% interval, bootstrap over patients"
BOXES = "boxes/ image"


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    text: str
    below: str = ""  # its interval, or where a threshold is from
    mark: str = ""  # "*": an oracle
    bold: bool = False
    verdict: str = ""  # "green" or "red": a difference whose interval excludes 0


@dataclass(frozen=True)
class Row:
    """A row: its name, a cell a heading, and the group under which it stands ("": none)."""

    name: str
    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table. `kind`: classification, headline, protocol, differences, faithfulness, counts or files."""

    kind: str
    title: str
    headings: tuple[str, ...]  # the first is that of the names
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def number(x: float | None, sign: bool = False) -> str:
    """Three significant places without a leading zero: .712, 1.00, 13.9, with sign +.031."""
    if x is None:
        return "-"
    places = 3 if abs(x) < 0.9995 else 2 if abs(x) < 9.995 else 1 if abs(x) < 99.95 else 0
    text = f"{x:+.{places}f}" if sign else f"{x:.{places}f}"
    return text.replace("0.", ".", 1) if places == 3 else text


def method_sheet(kind: str, title: str, entries: dict, columns: dict, thresholds: dict, notes, ranked=True) -> Sheet:
    """Methods, controls and ceilings by scores: columns {heading: {method: V or None}}, and where maps are cut.

    Bold: the best of methods and controls, if `ranked` (larger is better); never a ceiling.
    """
    is_map = {m: entry["threshold"]["value"] is not None for m, entry in entries.items()}
    contest = [m for m in entries if not m.startswith("ceiling/")]
    best = {
        h: max((_value(column[m]) for m in contest), default=0)
        for h, column in columns.items()
        if ranked and h != BOXES
    }
    rows = []
    for method in sorted(entries, key=rank):
        cells = []
        for h, column in columns.items():
            v = column[method] or {"value": None}
            oracle = is_map[method] and v.get("tuned_on") == "oracle"
            bold = method in contest and 0 < best.get(h, 0) <= _value(v)
            cells.append(score_cell(v, bold=bold, mark="*" if oracle else ""))
        group, name = group_of(method)
        rows.append(Row(name, (*cells, _threshold(thresholds[method], is_map[method])), group))
    sources = dict.fromkeys(thresholds[m]["tuned_on"] for m in entries if is_map[m] and thresholds[m]["value"])
    marked = any(cell.mark for row in rows for cell in row.cells)
    legend = [f"cut at: {'; '.join(SOURCES.get(s, s) for s in sources)}"] if sources else []
    lines = (*legend, *([STARRED] if marked else []), *notes)
    return Sheet(kind, title, ("method", *columns, "cut at"), tuple(rows), lines)


def score_cell(v: dict, bold: bool = False, mark: str = "", sign: bool = False, verdict: str = "") -> Cell:
    """{"value", "ci95"} as a cell."""
    below = ""
    if v.get("ci95"):
        low, high = (number(x, sign) for x in v["ci95"])
        below = f"{low} {high}" if sign else f"{low}–{high}"
    return Cell(number(v["value"], sign), below, mark if v["value"] is not None else "", bold, verdict)


def _threshold(threshold: dict, is_map: bool) -> Cell:
    value = threshold["value"]
    if isinstance(value, dict) and "tuned" in value:
        value = value["tuned"]
    if not is_map or value is None:
        return Cell("-")
    values = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    texts = [number(x) for x in values]
    if threshold.get("confidence") is not None:
        texts.append(f"p≥{number(threshold['confidence']['value'])} ({threshold['confidence']['tuned_on']})")
    return Cell(" ".join(texts), threshold["tuned_on"])


def _value(v: dict | None) -> float:
    return (v or {}).get("value") or 0.0


def rank(method: str) -> tuple:
    """InfoMask's maps first, then CAM, then the rest by name; controls and ceilings last, as they come."""
    group = ("control/", "ceiling/").index(method[:8]) + 1 if method[:8] in ("control/", "ceiling/") else 0
    return (group, not method.startswith("infomask"), method != "cam", "" if group else method)


def group_of(method: str) -> tuple[str, str]:
    """The group under which a method stands, and its name there."""
    for prefix, group in (("control/", UNTRAINED), ("ceiling/", CEILING)):
        if method.startswith(prefix):
            return group, method.removeprefix(prefix)
    return "", method
