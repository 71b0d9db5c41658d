"""One table as text: its cells and rows, and the table that every score of methods shares."""

from dataclasses import dataclass

GROUPS = {"control/": "controls, untrained", "ceiling/": "ceiling of the map's grid: knows the true boxes"}
SOURCES = {"val": "tuned on validation", "fixed": "not tuned", "oracle": "tuned on these very images"}
STARRED = "* best threshold on these images (oracle)"
INTERVALS = "below a score its 95% interval, bootstrap over patients; none where there are too few"
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
    """A row: its name, a cell for each other heading, and the group under which it stands."""

    name: str
    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Sheet:
    """One table. `kind`: classification, headline, protocol, differences, faithfulness, counts, files or audit."""

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


def score_cell(v: dict | None, bold: bool = False, mark: str = "") -> Cell:
    """{"value", "ci95"} as a cell."""
    v = v or {"value": None}  # undefined
    below = "–".join(map(number, v.get("ci95") or ()))
    return Cell(number(v["value"]), below, mark if v["value"] is not None else "", bold)


def method_sheet(kind: str, title: str, entries: dict, columns: dict, thresholds: dict, notes, ranked=True) -> Sheet:
    """Methods, controls and ceilings by scores: columns {heading: {method: V or None}}, and where maps are cut. Bold:
    the best but for ceilings, if `ranked` (larger is better)."""
    maps = [m for m, entry in entries.items() if entry["threshold"]["value"] is not None]
    contest = [m for m in entries if not m.startswith("ceiling/")]
    best = {h: max((_value(v[m]) for m in contest), default=0) for h, v in columns.items() if ranked and h != BOXES}
    cells = {method: [] for method in entries}
    for method, own in cells.items():
        for heading, column in columns.items():
            v = column[method]
            starred = method in maps and (v or {}).get("tuned_on") == "oracle"
            bold = method in contest and 0 < best.get(heading, 0) <= _value(v)
            own.append(score_cell(v, bold, "*" if starred else ""))
        own.append(_cut(thresholds[method]) if method in maps else Cell("-"))
    sources = dict.fromkeys(thresholds[m]["tuned_on"] for m in maps if thresholds[m]["value"])
    legend = [f"cut at: {'; '.join(f'{s}: {SOURCES[s]}' if s in SOURCES else s for s in sources)}"] if sources else []
    legend += [STARRED] if any(cell.mark for own in cells.values() for cell in own) else []
    return Sheet(kind, title, ("method", *columns, "cut at"), method_rows(cells), (*legend, *notes))


def method_rows(cells: dict[str, list[Cell]]) -> tuple[Row, ...]:
    """Rows of methods in the order of all tables, each under the heading of its group."""
    names = {method: method[8:] if method[:8] in GROUPS else method for method in sorted(cells, key=rank)}
    return tuple(Row(name, tuple(cells[m]), GROUPS.get(m[:8], "")) for m, name in names.items())


def rank(method: str) -> tuple:
    """InfoMask's maps first, then CAM, then the rest by name; controls and ceilings last, as they come."""
    group = [*GROUPS].index(method[:8]) + 1 if method[:8] in GROUPS else 0
    return (group, not method.startswith("infomask"), method != "cam", "" if group else method)


def _cut(threshold: dict) -> Cell:
    """The threshold of a map, or its thresholds, and where they are from."""
    value = threshold["value"]
    if isinstance(value, dict):
        value = value["tuned"] if "tuned" in value else list(value.values())
    if value is None:
        return Cell("-")
    texts = [number(x) for x in (value if isinstance(value, list) else [value])]
    if confidence := threshold.get("confidence"):
        texts.append(f"p≥{number(confidence['value'])} ({confidence['tuned_on']})")
    return Cell(" ".join(texts), threshold["tuned_on"])


def _value(v: dict | None) -> float:
    return (v or {}).get("value") or 0.0
