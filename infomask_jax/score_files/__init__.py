"""Score anyone's heat maps against boxes: two files in, scores, tables and pictures out. No model and no JAX.

`map_file` describes maps.npz and `box_tables` the tables of boxes; images are matched by their name. An image is
positive for a finding of which it has a box, negative where a table says so, and otherwise as `label` in maps.npz.
"""

import os
import tempfile
from pathlib import Path

from infomask_jax import evaluate, report
from infomask_jax.report.figures import folders
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
    """Score maps, print tables, write eval.json, table.md, table.tex, per_image.csv and, with `images`, figures/.

    hits.png and misses.png of an earlier run are removed from figures/.

    Args:
      maps, tune_on: .npz files (see `map_file`); the second, of other images, tunes the thresholds of each method.
      boxes: paths of tables with the boxes of both (see `box_tables`).
      images: folder with the image files, in any sub-folders, by their name with or without suffix.
      protocols: of evaluate.PROTOCOLS, scored, and printed too; none: all are scored and only the headline is printed.
      findings: those to score; names of the last axes of the maps, in order, where maps.npz does not give them.
      frame: side of the scoring frame in pixels.
    Returns: what eval.json holds: the dict of `evaluate.score`, `inputs`, `files` (how many images have what), `notes`.
    Raises: ValueError naming file, array or row, what was expected, what was found and what to do. Nothing is written.
    """
    _check_options(protocols, frame=frame, seed=seed, resamples=resamples)
    out = Path(out)
    _check_out(out)
    file, find = map_file.read(maps), None if images is None else galleries.finder(Path(images))
    val_file = None if tune_on is None else map_file.read(tune_on)
    ids = dict.fromkeys([*file.ids, *(val_file.ids if val_file else ())])
    table = box_tables.read(boxes, None if find is None else galleries.size_of(find), ids)
    if not table.boxed:
        raise ValueError(f"{', '.join(map(str, boxes))}: expected a box, found only negative images")
    matching.check_ids(file, val_file, table)
    file, wanted = matching.spelled(file, table), tuple(table.spellings.get(f, f) for f in map(normal, findings))
    chosen, axes = matching.findings_of(file, table, wanted, boxes)
    notes = matching.check_boxed(chosen, bool(findings), table, boxes) + matching.ambiguous(file, axes)
    if odd := matching.misspelled(ids, {**table.boxes, **table.negative}):
        what = f"{odd[0][0]!r} has a map and {odd[0][1]!r} a row in the boxes"
        notes.insert(0, f"{len(odd)} images are not matched, but would be without folder and suffix: {what}")
    data, arrays = matching.split_of(file, table, chosen, axes)
    val = val_maps = None
    if val_file:
        val_file = matching.spelled(val_file, table)
        val_axes = matching.findings_of(val_file, table, tuple(chosen), boxes)[1]
        val, val_maps = matching.split_of(val_file, table, chosen, val_axes)
        notes += matching.ambiguous(val_file, val_axes)
        lacking = [f for k, f in enumerate(chosen) if not any(k in own for _, own in val["boxes"])]
        if lacking:
            notes.append(f"no box on the images of {val_file.path.name}: thresholds are fixed for {', '.join(lacking)}")
        if shared := {*data["patient_id"]} & {*val["patient_id"]} - {""}:
            notes.append(f"{len(shared)} patients are in {val_file.path.name} too: tuned thresholds have seen them")
    pool = {} if find is None else galleries.choose(data, chosen, find, frame, images)
    result, rows = evaluate.score(
        chosen,
        data,
        arrays,
        frame=frame,
        val=val,
        val_maps=val_maps,
        dataset=", ".join(Path(path).name for path in boxes),
        split=file.path.name,
        seed=seed,
        resamples=resamples,
        protocols=tuple(protocols) or evaluate.PROTOCOLS,
    )
    result["inputs"] = {"maps": str(maps), "boxes": [str(path) for path in boxes]}
    result["inputs"] |= {"tune_on": str(tune_on)} if tune_on else {}
    result["files"] = matching.count(data, table, chosen, set(ids))
    if val is not None:
        result["files"] |= {f"tune_on_{name}": n for name, n in matching.count(val, table, chosen, None).items()}
    if find is not None:
        result["files"]["without_image_file"] = sum(not galleries.has_file(find, i) for i in file.ids)
    result["notes"] = notes
    content = {out / FILES[ending]: text for ending, text in report.render(result, rows).items()}
    content |= dict.fromkeys(galleries.old(out / "figures"))
    for finding, name in folders(pool).items():
        folder = out / "figures" / (name if len(pool) > 1 else "")
        content |= galleries.draw(result, finding, chosen.index(finding), data, arrays, pool[finding], folder)
    console, paths = report.console(), write_all(content)
    report.print_scores(result, console, protocols=bool(protocols))
    console.print("written:", *map(str, paths), sep="\n  ", soft_wrap=True, markup=False, highlight=False)
    return result


def _check_options(protocols, **numbers: int) -> None:
    if unknown := [name for name in protocols if name not in evaluate.PROTOCOLS]:
        raise ValueError(f"--protocol: expected some of {', '.join(evaluate.PROTOCOLS)}; found {', '.join(unknown)}")
    for name, value in numbers.items():
        least, most = LIMITS[name]
        if not least <= value <= most:
            raise ValueError(f"--{name}: expected {least} to {most}, found {value}")


def _check_out(out: Path) -> None:
    """Raise unless every file can be written, before any is scored."""
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
