"""Runs side by side, and an ablation, as tables and as a page of the same style as a run's."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from infomask_jax.report.ablations import COLUMNS
from infomask_jax.report.curves import curves
from infomask_jax.report.page import write_html
from infomask_jax.report.sheet import INTERVALS, Cell, Row, Sheet, number, score_cell
from infomask_jax.report.table import METRIC, difference_cell
from infomask_jax.system import NUMBER, read_json

NAMES = METRIC | {"auroc": "AUROC"} | {"nll": "NLL (nats)", "rate_z": "z (bits)", "rate_m": "mask (bits)"}
SCORE = {"mean": NUMBER, "sd": NUMBER | None, "by_seed": [NUMBER]}
ROW = {"method": str, "group": str, "changes": {}, "scores": {str: SCORE}, "default_minus": {}}
ABLATION = {"command": str, "dataset": str, "split": str, "seeds": [int], "findings": {str: {"rows": [ROW]}}}


def document(result: dict) -> tuple[str, list[Sheet], list[str]]:
    """Of what `compare.compare` returns: title, tables, closing lines."""
    sheets, runs = [], []
    for finding, found in result["findings"].items():
        runs, metrics = [*found["runs"]], [*next(iter(found["runs"].values()))]
        headings = tuple(NAMES[metric] for metric in metrics)
        title = f"{finding}: {found['images']} images with boxes"
        sheets.append(_table("headline", title, ("run", *headings), found["runs"], score_cell, (INTERVALS,)))
        title, notes = f"{finding}: minus {runs[0]}", ("paired 95% interval; green or red: it excludes 0",)
        sheets.append(_table("differences", title, ("run", *headings), found["differences"], difference_cell, notes))
    rows = tuple(Row(name, tuple(Cell(str(v)) for v in own.values())) for name, own in result["settings"].items())
    if rows:
        sheets.append(Sheet("counts", "Settings that differ", ("setting", *runs), rows))
    lines = [] if rows else ["All settings are the same."]
    title = (
        f"{len(runs)} runs on the {result['images']} images of {result['dataset']}/{result['split']} that all scored"
    )
    return title, sheets, lines


def _table(kind: str, title: str, headings: tuple, rows: Mapping[str, dict], cell, notes: tuple) -> Sheet:
    return Sheet(
        kind, title, headings, tuple(Row(n, tuple(cell(v) for v in own.values())) for n, own in rows.items()), notes
    )


def page(result: dict, logs: dict[str, Path]) -> str:
    """compare.html. logs: {run: metrics.jsonl}, of which those that exist are drawn."""
    title, sheets, lines = document(result)
    return _html("Comparison", title, sheets, lines, logs, {})


def ablation_page(path: Path) -> str:
    """compare.html of an ablations.json, with the curves of all its runs and the pictures beside it."""
    result = read_json(path, ABLATION, "run the ablation again")
    sheets, seeds = [], result["seeds"]
    for finding, found in result["findings"].items():
        metrics = [m for m in COLUMNS if any(m in row["scores"] for row in found["rows"])]
        headings = ("method", *(NAMES.get(m, m) for m in metrics))
        rows = tuple(_row(row, "scores", metrics, _mean) for row in found["rows"])
        sheets.append(Sheet("headline", f"{finding}: mean ± standard deviation over seeds", headings, rows))
        rows = tuple(_row(row, "default_minus", metrics, _minus) for row in found["rows"] if row["default_minus"])
        sheets.append(Sheet("differences", f"{finding}: default minus row, paired", headings, rows, (INTERVALS,)))
        rows = tuple(Row(r["method"], (Cell(_told(r["changes"])),), r["group"]) for r in found["rows"] if r["changes"])
        sheets.append(Sheet("counts", f"{finding}: what the rows change", ("method", "changes"), rows))
    logs = {
        log.parent.relative_to(path.parent).as_posix(): log for log in sorted(path.parent.glob("*/seed*/metrics.jsonl"))
    }
    drawn = {
        p.name: base64.b64encode(p.read_bytes()).decode() for p in sorted((path.parent / "figures").glob("[!.]*.png"))
    }
    title = f"{result['dataset']}/{result['split']}, seeds {', '.join(map(str, seeds))}"
    return _html("Ablation", title, sheets, [result["command"]], logs, drawn)


def _row(row: dict, part: str, metrics: list[str], cell: Callable[[str, dict], Cell]) -> Row:
    return Row(
        row["method"], tuple(cell(m, row[part][m]) if m in row[part] else Cell("-") for m in metrics), row["group"]
    )


def _mean(metric: str, score: dict) -> Cell:
    return Cell(number(score["mean"]), f"± {number(score['sd'])}" if score["sd"] is not None else "")


def _minus(metric: str, v: dict) -> Cell:
    cell = difference_cell(v)
    if metric == "nll":  # low is good
        return replace(cell, verdict={"green": "red", "red": "green"}.get(cell.verdict, ""))
    if metric in ("rate_z", "rate_m"):
        return replace(cell, verdict="")
    return cell if v["ci95"] or v["value"] is None else replace(cell, below=v.get("reason", ""))


def _told(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items())


def _html(name: str, title: str, sheets, lines: list[str], logs: dict[str, Path], figures: dict[str, str]) -> str:
    drawn = curves({run: log for run, log in logs.items() if log.exists()})
    return write_html(
        "compare.html.j2", {}, name=name, title=title, sheets=sheets, lines=lines, drawn=drawn, figures=figures
    )
