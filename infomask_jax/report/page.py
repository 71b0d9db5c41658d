"""report.html: films with their maps, tables, curves and pictures of a run on one page, which needs no other file and
no network. `write_html` writes any page of our style: base.html.j2 and parts.html.j2 have what pages share."""

import base64
import hashlib
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from infomask_jax.config import Config, leaves
from infomask_jax.report.audit import audit_sheets
from infomask_jax.report.curves import curves
from infomask_jax.report.figures import NAMES
from infomask_jax.report.film_data import FILMS
from infomask_jax.report.render import fill
from infomask_jax.report.stored import AUDIT, HINT, SCORES, shown
from infomask_jax.report.table import document
from infomask_jax.system import read_json, write_all

SCRIPTS = ("page.js", "maps.js", "gallery.js")
DRAWN_LIVE = ("training.png", "hits.png", "misses.png")  # what the page shows itself, the films if it has them


def write_page(output: Path, run, data=None) -> Path:
    """Write output/report.html: every scored split, audit and picture in `output`, which is the run or its
    on-NAME-FINGERPRINT, and how `run` (run.Run) was made. Returns its path.

    data: prepared data (datasets.Prepared), which count the training films if they are the run's own."""
    parts, films, place = [], {}, output.absolute()
    own = place == run.folder.absolute() and "best_step" not in run.manifest
    name = place.name if own else f"{place.parent.name}/{place.name}"  # "best", "on-nih-..." alone tell of no run
    for path in sorted((output / "eval").glob("[!.]*.json"), key=lambda path: (path.stem != "test", path.stem)):
        part = _or_without(_part, path) or {
            **{"title": path.stem, "sheets": [], "verdict": [], "split": ""},
            "lines": [f"{path.name} is not of this version: score that split again"],
        }
        parts.append(part)
        stored = output / "films" / path.name
        if part["split"] and stored.exists() and (text := _or_without(_films, stored)):
            films[path.stem] = text
    live = DRAWN_LIVE if all(part["split"] in films for part in parts if part["split"]) else DRAWN_LIVE[:1]
    drawn = [path for path in sorted((output / "figures").rglob("[!.]*.png")) if path.name not in live]
    page = write_html(
        "page.html.j2",
        data=films,
        name=f"InfoMask: {name}",
        head=_head(run, data),
        parts=parts,
        curves_drawn=_or_without(_curves, run) or [],
        figures={p.relative_to(output).as_posix(): base64.b64encode(p.read_bytes()).decode("ascii") for p in drawn},
        changes=_changes(run.config),
        config_text=(run.folder / "config.json").read_text(),
        manifest_text=json.dumps(run.manifest, indent=1),
    )
    return write_all({output / "report.html": page})[0]


def write_html(template: str, data: dict[str, str], **values: Any) -> str:
    """A page by a template that extends base.html.j2, with our style and script, which alone its policy lets in, and
    `data`: {name: JSON} for the script."""
    style, script = (
        Markup("\n".join(files("infomask_jax.report").joinpath(name).read_text("utf-8") for name in names))
        for names in (("page.css",), SCRIPTS)
    )
    script = Markup('"use strict";\n') + script
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    policy = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    policy += "style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests)
    blocks = {name: Markup(text.replace("<", "\\u003c")) for name, text in data.items()}
    return fill(template, style=style, script=script, policy=policy, data=blocks, **values)


def _or_without(read: Callable, what: Any) -> Any:
    """`read(what)`; None, and a line that tells of it, where a file is not as it was."""
    try:
        return read(what)
    except (OSError, ValueError) as error:
        print(f"report.html goes without {error}")
        return None


def _part(path: Path) -> dict:
    """What the page says of one eval/SPLIT.json or audit_SPLIT.json."""
    with shown(path):
        audited = path.stem.startswith("audit_")
        result = read_json(path, *((AUDIT, "audit the run again") if audited else (SCORES, HINT)))
        title, sheets, lines = audit_sheets(result) if audited else document(result)
        split = "" if audited else path.stem
        return {"title": title, "sheets": sheets, "lines": lines, "verdict": result.get("verdict", []), "split": split}


def _films(path: Path) -> str:
    read_json(path, FILMS, HINT)
    return path.read_text("utf-8")


def _curves(run) -> list[dict]:
    named = {f"fold {k}": one for k, one in enumerate(run.folds)} or {NAMES.get(run.config.model.kind, "run"): run}
    named |= {"plain": run.plain} if run.plain else {}
    paths = {name: one.folder / "metrics.jsonl" for name, one in named.items()}
    return curves({name: path for name, path in paths.items() if path.exists()})


def _head(run, data) -> dict[str, str]:
    """What the run is, in a few facts."""
    config, manifest = run.config, run.manifest
    positives = {}
    if data is not None and data.fingerprint == run.fingerprint and config.folds == 1:
        positives = dict(zip(data.findings, (counts[0] for counts in data.summary["train"]["labels"]), strict=True))
    devices = {device: manifest["devices"].count(device) for device in manifest["devices"]}
    made_with = [f"jax {manifest['libraries']['jax']}", *(f"{count} x {device}" for device, count in devices.items())]
    out = {"trained on": f"{manifest['dataset']['name']}, {config.data.image_size} px"}
    out |= {"steps": run.steps, "batch size": str(config.data.batch_size)}
    if positives:
        out["training positives"] = ", ".join(f"{finding} {count:,}" for finding, count in positives.items())
    out |= {"seed": str(manifest["seed"]), "revision": str(manifest["git_revision"])[:12]}
    return out | {"made with": ", ".join(made_with)}


def _changes(config: Config) -> list[tuple[str, Any, Any]]:
    """(setting, value, default) of all that differ from the default, but for the run's places."""
    default = {name: value for name, _, value in leaves(Config(config.data_dir, config.workdir))}
    return [(name, value, default[name]) for name, _, value in leaves(config) if value != default[name]]
