"""report.html: the tables and pictures of a run on one page, which needs no other file and no network."""

import base64
import json
from pathlib import Path

from infomask_jax.report.audit import audit_sheets
from infomask_jax.report.render import fill
from infomask_jax.report.stored import AUDIT, HINT, SCORES, shown
from infomask_jax.report.table import document
from infomask_jax.system import read_json, write_all


def write_page(output: Path, run) -> Path:
    """Write output/report.html: every scored split, audit and figure in `output`, which is the run or its
    on-NAME-FINGERPRINT, and how `run` (run.Run) was made. Returns its path."""
    parts = []
    for path in sorted((output / "eval").glob("[!.]*.json"), key=lambda path: (path.stem != "test", path.stem)):
        try:
            with shown(path):
                audited = path.stem.startswith("audit_")
                result = read_json(path, *((AUDIT, "audit the run again") if audited else (SCORES, HINT)))
                title, sheets, lines = audit_sheets(result) if audited else document(result)
        except ValueError as error:  # of another version
            title, sheets, lines = path.stem, [], [f"{path.name} is not of this version: score that split again"]
            print(f"report.html goes without {error}")
        parts.append({"title": title, "sheets": sheets, "lines": lines})
    drawn = sorted((output / "figures").rglob("[!.]*.png"))
    page = fill(
        "page.html.j2",
        name=f"InfoMask: {output.absolute().name}",
        parts=parts,
        figures={p.relative_to(output).as_posix(): base64.b64encode(p.read_bytes()).decode("ascii") for p in drawn},
        manifest=run.manifest,
        config_text=(run.folder / "config.json").read_text(),
        manifest_text=json.dumps(run.manifest, indent=1),
    )
    return write_all({output / "report.html": page})[0]
