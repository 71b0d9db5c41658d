"""Scores as files: JSON, Markdown, LaTeX, and the scores of each image as CSV. All files are written, or none."""

import json
from pathlib import Path

from infomask_jax.report.render import latex, markdown
from infomask_jax.system import write_all
from infomask_jax.text import as_csv


def write_scores(stem: Path, scores: dict, rows: list[dict]) -> list[Path]:
    """Write STEM.json, STEM.md, STEM.tex and STEM.csv of what `evaluate.score` returns; return their paths."""
    stem = Path(stem)
    return write_all({stem.with_name(f"{stem.name}.{ending}"): text for ending, text in render(scores, rows).items()})


def render(scores: dict, rows: list[dict]) -> dict[str, str]:
    """The text of every file: {"json", "md", "tex", "csv"}."""
    return {
        "json": json.dumps(scores, indent=1, allow_nan=False) + "\n",
        "md": markdown(scores),
        "tex": latex(scores),
        "csv": per_image(rows),
    }


def per_image(rows: list[dict]) -> str:
    """CSV of flat dicts, a column for every key of any: whole numbers without a point, None as nothing."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return as_csv([columns, *([_plain(row.get(name)) for name in columns] for row in rows)])


def write_predictions(path: Path, findings: list[str], examples: dict) -> None:
    """predictions/SPLIT.csv: image_id, patient_id and, for each finding, the label (empty: unknown) and probability."""
    columns = [f"{name} {what}" for name in findings for what in ("label", "probability")]
    rows = [["image_id", "patient_id", *columns]]
    for i, image_id in enumerate(examples["image_id"]):
        cells = [
            cell
            for label, p in zip(examples["labels"][i], examples["probabilities"][i], strict=True)
            for cell in ("" if label < 0 else int(label), f"{p:.6g}")
        ]
        rows.append([image_id, examples["patient_id"][i], *cells])
    write_all({path: as_csv(rows)})


def _plain(value):
    return int(value) if isinstance(value, float) and value.is_integer() else value
