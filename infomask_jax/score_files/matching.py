"""Files of maps and tables of boxes, matched by the names of images and findings."""

import re
from pathlib import PurePosixPath

import numpy as np

from infomask_jax.datasets import schema
from infomask_jax.datasets.schema import BadData, Problem
from infomask_jax.evaluate.checks import check_maps
from infomask_jax.score_files.box_tables import ALL, BoxTable
from infomask_jax.score_files.map_file import MapFile


def check_ids(file: MapFile, val_file: MapFile | None, table: BoxTable) -> None:
    """Raise unless images of each file have rows, and none is in both; the message names an example."""
    listed = {**table.boxes, **table.negative}
    for each in (file, val_file) if val_file else (file,):
        if listed.keys() & {*each.ids}:
            continue
        own, other, hint = each.ids[0], next(iter(listed), "nothing"), "spell image_id as the boxes do"
        if same := _misspelled(each.ids, listed):
            hint = f"without folder and suffix {same[0][0]!r} is {same[0][1]!r}: {hint}"
        where = f"{'--tune-on ' if each is val_file else ''}{each.path}"
        found = f"image_id has {own!r}, they have {other!r}; {hint}"
        raise ValueError(f"{where}: no image in common with the boxes: {found}")
    if val_file is None:
        return
    scored = {*file.ids}
    if shared := [i for i in val_file.ids if i in scored]:
        what = f"{len(shared)} of its {len(val_file.ids)} images are in {file.path} too, for example {shared[0]!r}"
        raise ValueError(f"--tune-on {val_file.path}: {what}; thresholds tuned on scored images would be an oracle")
    if val_file.maps.keys() != file.maps.keys():
        own, other = (", ".join(sorted(f.maps)) for f in (file, val_file))
        raise ValueError(f"--tune-on {val_file.path}: expected maps of {own}, as in {file.path}; found {other}")


def nearly_matched(ids, table: BoxTable) -> list[str]:
    """A note on images of the maps that only their folder or suffix keeps from a row in the boxes."""
    if not (odd := _misspelled(ids, {**table.boxes, **table.negative})):
        return []
    what = f"{odd[0][0]!r} has a map and {odd[0][1]!r} a row in the boxes"
    return [f"{len(odd)} images are not matched, but would be without folder and suffix: {what}"]


def _misspelled(ids, listed) -> list[tuple[str, str]]:
    """Of names in only one of two lists, the pairs that are one name but for folder and suffix."""

    def stem(name: str) -> str:
        return re.sub(r"\.[a-z]\w{0,4}$", "", PurePosixPath(name).name, flags=re.IGNORECASE)

    ids = dict.fromkeys(ids)
    stems = {stem(name): name for name in listed if name not in ids}
    return [(name, stems[stem(name)]) for name in ids if name not in listed and stem(name) in stems]


def findings_of(file: MapFile, table: BoxTable, wanted, tables: str) -> tuple[list[str], list[str], list[str]]:
    """The findings to score, as the tables spell them, the names of the last axes of the file's arrays, and notes.

    Args:
      wanted: the findings that were asked for; none: all. tables: names of the files of the table, for messages.
    """
    known, axes = table.findings, None
    if file.findings is not None:
        axes = [table.spellings.get(name, name) for name in file.findings]
        if len({*axes}) < len(axes):
            names = ", ".join(axes)
            raise ValueError(f"{file.path}, findings: expected each once, found two spellings among {names}")
    elif file.axes is not None:
        axes = list(wanted) or known
        if len(axes) != file.axes:
            found = f"--findings {' '.join(wanted)}" if wanted else f"{tables} with {', '.join(known) or 'no finding'}"
            wish = "store their names as `findings`, or pass --findings with all of them in order"
            raise ValueError(f"{file.path}: expected names for its {file.axes} axes of findings, found {found}; {wish}")
        if not wanted and len(axes) > 1:
            wish = f"store `findings`, or pass --findings with the {len(axes)} names in the order of the axes"
            raise ValueError(f"{file.path}: expected to be told which axis is which finding, found no names; {wish}")
    chosen = list(wanted) or axes or known
    if axes is None and len(chosen) > 1 and not wanted:
        wish = "pass --findings, or store maps as [N,h,w,K] with `findings`"
        raise ValueError(f"{file.path}: one map an image, but boxes of several findings ({', '.join(chosen)}); {wish}")
    there, where = (axes, file.path) if file.findings else (known, tables)
    if len({*chosen}) < len(chosen):
        raise ValueError(f"--findings: expected each finding once, found {', '.join(chosen)}")
    if unknown := [name for name in chosen if name not in there]:
        raise ValueError(f"--findings: expected some of {', '.join(there)}, as {where} has; found {', '.join(unknown)}")
    axes = axes or chosen
    for name in ("probability", "label"):
        array = getattr(file, name)
        if array is not None and array.shape[1] != len(axes):
            wanted = f"a column for each of {', '.join(axes)}"
            raise ValueError(f"{file.path}, {name}: expected {wanted}; found {array.shape}")
    odd = [name for name, a in file.maps.items() if a.ndim == 4 and a.shape[1] == len(axes) == a.shape[3]]
    what = f"of shape {file.maps[odd[0]].shape}: the last axis was taken as findings" if odd else ""
    return chosen, axes, [f"{file.path.name}, {', '.join(odd)}: {what}"] if odd else []


def without_box(chosen: list[str], asked: bool, table: BoxTable, tables: str) -> list[str]:
    """A note on findings without a box. ValueError if they were asked for by name, or if none has a box."""
    boxed = table.boxed
    if not (lacking := [name for name in chosen if name not in boxed]):
        return []
    if asked or lacking == chosen:
        hint = "; leave it out (names of axes: store them all as `findings`)" if asked else ""
        raise ValueError(f"{tables}: expected boxes of {', '.join(lacking)}; found only {', '.join(boxed)}{hint}")
    return [f"no box in {tables} of {', '.join(lacking)}"]


def split_of(file: MapFile, table: BoxTable, chosen, axes) -> tuple[dict, dict[str, np.ndarray]]:
    """Split and maps as `evaluate.score` takes them."""
    n, pick = len(file.ids), [axes.index(name) for name in chosen]
    labels = np.full((n, len(chosen)), -1) if file.label is None else file.label[:, pick].astype(int)
    boxes, patients, problems = [], [], []

    def told(name: str, wanted: str, found) -> None:
        problems.append(Problem(file.path.name, None, name, f"expected {wanted}, as the boxes say; found {found}"))

    for i, image in enumerate(file.ids):
        own, negative = table.boxes.get(image, []), table.negative.get(image, set())
        for k, finding in enumerate(chosen):
            says = 1 if any(finding == name for name, _ in own) else 0 if {finding, ALL} & negative else -1
            if says >= 0:
                if labels[i, k] == 1 - says:
                    told(f"label of {image}", f"{says} or -1 of {finding}", 1 - says)
                labels[i, k] = says
        at = [chosen.index(finding) if finding in chosen else -1 for finding, _ in own]
        boxes.append((np.array([box for _, box in own], np.float32).reshape(-1, 4), np.array(at, int)))
        known, given = table.patients.get(image), file.patients[i] if file.patients else ""
        if known and given and known != given:
            told(f"patient_id of {image}", repr(known), repr(given))
        patients.append(given or known or (table.patient_of(image) if table.patient_of else ""))
    if problems:
        raise BadData(schema.describe(problems))
    data = {"image_id": file.ids, "patient_id": patients, "labels": labels, "boxes": boxes}
    if file.probability is not None:
        data["probabilities"] = file.probability[:, pick]
    maps = {method: array if array.ndim == 3 else array[..., pick] for method, array in file.maps.items()}
    check_maps(maps, data, chosen, file.path.name)
    return data, maps


def count(data: dict) -> dict[str, int]:
    """Images by what is known of their findings, each in one group."""
    labels, boxed = data["labels"], np.array([np.any(at >= 0) for _, at in data["boxes"]])
    positive, negative = ~boxed & (labels == 1).any(1), ~boxed & (labels == 0).all(1)
    out = {"maps": len(labels), "with_boxes": int(boxed.sum()), "positive_without_box": int(positive.sum())}
    return out | {"negative": int(negative.sum()), "unknown": int((~boxed & ~positive & ~negative).sum())}


def count_boxes(data: dict, table: BoxTable, chosen, ids) -> dict[str, int]:
    """Boxes of the scored images, and what the tables have of images that are not among the `ids`."""
    own = {i: sum(finding in chosen for finding, _ in boxes) for i, boxes in table.boxes.items()}
    missed = [i for i, count in own.items() if count and i not in ids]
    kinds = np.concatenate([at for _, at in data["boxes"]])
    return {
        "boxes": int((kinds >= 0).sum()),
        "boxes_of_other_findings": int((kinds < 0).sum()),
        "boxed_images_without_map": len(missed),
        "boxes_without_map": sum(own[i] for i in missed),
        "negative_images_without_map": len(table.negative.keys() - table.boxes.keys() - ids.keys()),
    }
