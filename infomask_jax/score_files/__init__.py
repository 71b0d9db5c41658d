"""Score anyone's heat maps (`map_file`) against tables of boxes (`box_tables`), without model or JAX. Images are
matched by their name. One is positive for a finding of which it has a box, negative where a table says so, and
otherwise as `label` in maps.npz."""

import os
import tempfile
from functools import cache
from pathlib import Path

from infomask_jax import evaluate, report
from infomask_jax.datasets.images import decode
from infomask_jax.score_files import box_tables, galleries, map_file, matching
from infomask_jax.system import write_all
from infomask_jax.text import normal

FILES = {"json": "eval.json", "md": "table.md", "tex": "table.tex", "csv": "per_image.csv"}
LIMITS = {"frame": (8, 4096), "resamples": (1, 100_000), "seed": (0, 2**32 - 1)}


def score_files(
    maps: Path,
    boxes,
    *,
    images: Path | None = None,
    protocols=(),
    findings=(),
    tune_on: Path | None = None,
    frame: int = 224,
    out: Path = Path("evaluation"),
    seed: int = 0,
    resamples: int = 1000,
) -> dict:
    """Score maps, print tables, write eval.json, table.md, table.tex, per_image.csv and, with `images`, figures/, whose
    hits.png and misses.png of an earlier run go.

    Args: as the options of the verb `evaluate` (verbs.py); `frame` is the side of the scoring frame in pixels.
    Returns: what eval.json holds: the dict of `evaluate.score`, `inputs`, `files` (how many images have what), `notes`.
    Raises: ValueError naming file, array or row, what was expected, what was found and what to do. Nothing is written.
    """
    out = Path(out)
    _check(out, protocols, frame=frame, seed=seed, resamples=resamples)
    file, val_file = map_file.read(maps), map_file.read(tune_on) if tune_on else None
    ids, tables = dict.fromkeys([*file.ids, *(val_file.ids if val_file else ())]), ", ".join(map(str, boxes))
    find = galleries.finder(Path(images)) if images else None
    table = box_tables.read(boxes, cache(lambda image: decode(find(image)).shape) if find else None, ids)
    if not table.boxed:
        raise ValueError(f"{tables}: expected a box, found only negative images")
    matching.check_ids(file, val_file, table)
    wanted = [table.spellings.get(name, name) for name in map(normal, findings)]
    chosen, axes, notes = matching.findings_of(file, table, wanted, tables)
    notes = matching.nearly_matched(ids, table) + matching.without_box(chosen, bool(findings), table, tables) + notes
    data, arrays = matching.split_of(file, table, chosen, axes)
    val = val_maps = None
    if val_file:
        _, val_axes, more = matching.findings_of(val_file, table, chosen, tables)
        val, val_maps = matching.split_of(val_file, table, chosen, val_axes)
        notes += more
        if lacking := [f for k, f in enumerate(chosen) if not any(k in own for _, own in val["boxes"])]:
            notes.append(f"no box on the images of {val_file.path.name}: thresholds are fixed for {', '.join(lacking)}")
        if shared := {*data["patient_id"]} & {*val["patient_id"]} - {""}:
            notes.append(f"{len(shared)} patients are in {val_file.path.name} too: tuned thresholds have seen them")
    missing = galleries.without_file(find, file.ids, images) if find else set()
    names = {"dataset": ", ".join(Path(path).name for path in boxes), "split": file.path.name}
    options = {"frame": frame, "val": val, "val_maps": val_maps, "seed": seed, "resamples": resamples, **names}
    result, rows = evaluate.score(chosen, data, arrays, protocols=tuple(protocols) or evaluate.PROTOCOLS, **options)
    result["inputs"] = {"maps": str(maps), "boxes": [str(path) for path in boxes]}
    result["inputs"] |= {"tune_on": str(tune_on)} if tune_on else {}
    result["files"] = matching.count(data) | matching.count_boxes(data, table, chosen, ids)
    if val:
        result["files"] |= {f"tune_on_{name}": n for name, n in matching.count(val).items()}
    if find:
        result["files"]["without_image_file"] = len(missing)
    result["notes"] = notes
    content = {out / FILES[ending]: text for ending, text in report.render(result, rows).items()}
    content |= dict.fromkeys(galleries.old(out / "figures"))
    if find:
        content |= galleries.draw(out / "figures", result, data, arrays, find, missing)
    console, paths = report.console(), write_all(content)
    report.print_scores(result, console, protocols=bool(protocols))
    console.print("written:", *map(str, paths), sep="\n  ", soft_wrap=True, markup=False, highlight=False)
    return result


def _check(out: Path, protocols, **numbers: int) -> None:
    """Raise unless the options are good and every file can be written, before any map is scored."""
    if unknown := [name for name in protocols if name not in evaluate.PROTOCOLS]:
        raise ValueError(f"--protocol: expected some of {', '.join(evaluate.PROTOCOLS)}; found {', '.join(unknown)}")
    for name, value in numbers.items():
        least, most = LIMITS[name]
        if not least <= value <= most:
            raise ValueError(f"--{name}: expected {least} to {most}, found {value}")
    for folder in (out, out / "figures"):
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise ValueError(f"--out: expected a folder, found the file {there}")
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            found = f"{there}: {error.strerror}"
            raise ValueError(f"--out: expected a folder that can be written to, found {found}") from error
    for path in (*(out / name for name in FILES.values()), *galleries.old(out / "figures")):
        if path.is_dir():
            raise ValueError(f"--out: expected to write {path}, found a folder of that name; rename it")
