"""Score anyone's heat maps against boxes: two files in, scores, tables and pictures out. No model and no JAX.

`map_file` describes maps.npz and `box_tables` the tables of boxes; images are matched by their name. An image is
positive for a finding of which it has a box, negative where a table says so, and otherwise as `label` in maps.npz.
"""

from pathlib import Path

import numpy as np

from infomask_jax import evaluate, report
from infomask_jax.datasets import schema
from infomask_jax.datasets.schema import BadData, Problem
from infomask_jax.evaluate.checks import check_maps
from infomask_jax.score_files import box_tables, galleries, map_file
from infomask_jax.score_files.box_tables import ALL, BoxTable
from infomask_jax.score_files.map_file import BadMaps, MapFile


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
    _check_options(protocols, frame, seed, resamples, out)
    file, find = map_file.read(maps), None if images is None else galleries.finder(Path(images))
    val_file = None if tune_on is None else map_file.read(tune_on)
    ids = {*file.ids, *(val_file.ids if val_file else ())}
    table = box_tables.read(boxes, None if find is None else galleries.size_of(find), ids)
    _check_ids(file, val_file, table)
    chosen, axes = _findings(file, table, tuple(findings), boxes)
    data, arrays = _split(file, table, chosen, axes)
    val = val_maps = None
    notes = []
    if val_file:
        val, val_maps = _split(val_file, table, chosen, _findings(val_file, table, tuple(chosen), boxes)[1])
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
    result["files"] = _count(data, table, chosen, ids)
    if val is not None:
        result["files"] |= {f"tune_on_{name}": n for name, n in _count(val, table, chosen, None).items()}
    if find is not None:
        result["files"]["without_image_file"] = sum(not galleries.has_file(find, i) for i in file.ids)
    result["notes"] = notes
    console = report.console()
    report.print_scores(result, console, protocols=bool(protocols))
    texts = report.render(result, rows)
    endings = {"json": "eval.json", "md": "table.md", "tex": "table.tex", "csv": "per_image.csv"}
    paths = report.write_all({Path(out) / name: texts[ending] for ending, name in endings.items()})
    for finding, chosen_images in pool.items():
        folder = Path(out) / "figures" / (galleries.folder_name(finding) if len(pool) > 1 else "")
        paths += galleries.draw(result, finding, chosen.index(finding), data, arrays, chosen_images, folder)
    console.print("written:", *map(str, paths), sep="\n  ", soft_wrap=True, markup=False, highlight=False)
    return result


def _check_options(protocols, frame: int, seed: int, resamples: int, out: Path) -> None:
    if unknown := [name for name in protocols if name not in evaluate.PROTOCOLS]:
        raise ValueError(f"--protocol: expected some of {', '.join(evaluate.PROTOCOLS)}; found {', '.join(unknown)}")
    for name, value, least in (("frame", frame, 8), ("seed", seed, 0), ("resamples", resamples, 1)):
        if value < least:
            raise ValueError(f"--{name}: expected {least} or more, found {value}")
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"--out: expected a folder, found the file {out}")


def _check_ids(file: MapFile, val_file: MapFile | None, table: BoxTable) -> None:
    """Raise unless some image has a map and a row, and no image is in both files of maps."""
    listed = {**table.boxes, **table.negative}
    if not listed.keys() & set(file.ids):
        own, other = file.ids[0], next(iter(listed), "nothing")
        stems = {Path(name).stem: name for name in listed}
        same = next(((i, stems[Path(i).stem]) for i in file.ids if Path(i).stem in stems), None)
        hint = "spell image_id as the boxes do"
        if same:
            hint = f"without folder and suffix {same[0]!r} is {same[1]!r}: {hint}"
        raise BadMaps(
            f"{file.path}: no image in common with the boxes: image_id has {own!r}, they have {other!r}; {hint}"
        )
    if val_file is None:
        return
    if shared := [i for i in val_file.ids if i in set(file.ids)]:
        what = f"{len(shared)} of its {len(val_file.ids)} images are in {file.path} too, for example {shared[0]!r}"
        raise BadMaps(f"--tune-on {val_file.path}: {what}; thresholds tuned on scored images would be an oracle")
    if set(val_file.maps) != set(file.maps):
        own, other = (", ".join(sorted(f.maps)) for f in (file, val_file))
        raise BadMaps(f"--tune-on {val_file.path}: expected maps of {own}, as in {file.path}; found {other}")


def _findings(file: MapFile, table: BoxTable, wanted: tuple[str, ...], boxes) -> tuple[list[str], list[str]]:
    """The findings to score, and the names of the last axes of the file's arrays."""
    tables, known = ", ".join(map(str, boxes)), table.findings
    axes = file.findings
    if axes is None and file.axes is not None:
        axes = list(wanted) or known
        if len(axes) != file.axes:
            found = f"--findings {' '.join(wanted)}" if wanted else f"{tables} with {', '.join(known) or 'no finding'}"
            wish = "store their names as `findings`, or pass --findings with all of them in order"
            raise BadMaps(f"{file.path}: expected names for its {file.axes} axes of findings, found {found}; {wish}")
        if not wanted and len(axes) > 1:
            wish = f"store `findings`, or pass --findings with the {len(axes)} names in the order of the axes"
            raise BadMaps(f"{file.path}: expected to be told which axis is which finding, found no names; {wish}")
    chosen = list(wanted) or axes or known
    if axes is None:
        if len(chosen) > 1 and not wanted:
            wish = "pass --findings, or store maps as [N,h,w,K] with `findings`"
            raise BadMaps(f"{file.path}: one map an image, but boxes of several findings ({', '.join(chosen)}); {wish}")
        axes = chosen
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--findings: expected each finding once, found {', '.join(chosen)}")
    if unknown := [name for name in chosen if name not in (file.findings or known)]:
        where = file.path if file.findings else tables
        some = ", ".join(file.findings or known)
        raise ValueError(f"--findings: expected some of {some}, as {where} has; found {', '.join(unknown)}")
    if not set(chosen) & set(known):
        raise ValueError(f"{tables}: expected boxes of {', '.join(chosen)}; found only {', '.join(known) or 'none'}")
    for name in ("probability", "label"):
        array = getattr(file, name)
        if array is not None and array.shape[1] != len(axes):
            raise BadMaps(f"{file.path}, {name}: expected a column for each of {', '.join(axes)}; found {array.shape}")
    return chosen, axes


def _split(file: MapFile, table: BoxTable, chosen, axes) -> tuple[dict, dict[str, np.ndarray]]:
    """Split and maps as `evaluate.score` takes them."""
    n, pick = len(file.ids), [axes.index(name) for name in chosen]
    labels = np.full((n, len(chosen)), -1) if file.label is None else file.label[:, pick].astype(int)
    boxes, problems = [], []
    for i, image in enumerate(file.ids):
        own = table.boxes.get(image, [])
        boxed, negative = {finding for finding, _ in own}, table.negative.get(image, set())
        for k, finding in enumerate(chosen):
            says = 1 if finding in boxed else 0 if {finding, ALL} & negative else -1
            if says >= 0:
                if labels[i, k] == 1 - says:
                    reason = f"expected {says} or -1 of {finding}, as the boxes say; found {1 - says}"
                    problems.append(Problem(file.path.name, None, f"label of {image}", reason))
                labels[i, k] = says
        at = [chosen.index(finding) if finding in chosen else -1 for finding, _ in own]
        boxes.append((np.array([box for _, box in own], np.float32).reshape(-1, 4), np.array(at, int)))
    if problems:
        raise BadData(schema.describe(problems))
    patient_of = table.patient_of or (lambda image: "")
    patients = file.patients or [table.patients.get(i) or patient_of(i) for i in file.ids]
    data = {"image_id": file.ids, "patient_id": patients, "labels": labels, "boxes": boxes}
    if file.probability is not None:
        data["probabilities"] = file.probability[:, pick]
    maps = {}
    for method, array in file.maps.items():
        if array.ndim == 4 and len(chosen) == 1:
            array = array[..., pick[0]]
        elif array.ndim == 4:
            array = array[..., pick]
        maps[method] = array
    check_maps(maps, data, chosen, file.path.name)
    return data, maps


def _count(data: dict, table: BoxTable, chosen, ids: set[str] | None) -> dict[str, int]:
    """Images by what is known of the chosen findings (each in one group), and, with `ids`, boxes that have no map."""
    labels, boxed = data["labels"], np.array([np.any(at >= 0) for _, at in data["boxes"]])
    positive = ~boxed & (labels == 1).any(1)
    negative = ~boxed & (labels == 0).all(1)
    out = {"maps": len(labels), "with_boxes": int(boxed.sum()), "positive_without_box": int(positive.sum())}
    out |= {"negative": int(negative.sum()), "unknown": int((~boxed & ~positive & ~negative).sum())}
    if ids is not None:
        own = {i: sum(finding in chosen for finding, _ in boxes) for i, boxes in table.boxes.items()}
        missed = [i for i, count in own.items() if count and i not in ids]
        out["boxes"] = int(sum((at >= 0).sum() for _, at in data["boxes"]))
        out["boxes_of_other_findings"] = int(sum(len(at) for _, at in data["boxes"])) - out["boxes"]
        out["boxed_images_without_map"] = len(missed)
        out["boxes_without_map"] = sum(own[i] for i in missed)
        out["negative_images_without_map"] = len(table.negative.keys() - table.boxes.keys() - ids)
    return out
