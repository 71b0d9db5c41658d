"""maps.npz: anyone's heat maps, read and checked. Every name but the five is a method.

image_id     [N] text, required, spelled as in the table of boxes ('./a.png' is 'a.png')
METHOD       [N,h,w] numbers, the maps of a method, of any size and range, the same for all findings; or [N,h,w,K]
patient_id   [N] text: bootstrap intervals resample patients; without it (and none in the boxes), images
findings     [K] text: names of the last axes
probability  [N] or [N,K] in 0..1, of the classifier: classification scores, and RSNA's score is gated by it
label        [N] or [N,K], 1 present, 0 absent, -1 unknown: of images without boxes
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infomask_jax import npz
from infomask_jax.datasets import lookup
from infomask_jax.text import normal, printable

RESERVED = ("image_id", "patient_id", "findings", "probability", "label")
OTHERS = f"; other arrays have one of the names {', '.join(RESERVED)}"
VALUES = {  # in words, and as a test
    "probability": ("0 to 1; apply a sigmoid to logits", lambda p: (p >= 0) & (p <= 1)),
    "label": ("1 present, 0 absent, -1 unknown", lambda y: np.isin(y, (-1, 0, 1))),
}


@dataclass(frozen=True)
class MapFile:
    """What a file of maps holds, N images."""

    path: Path
    ids: list[str]
    maps: dict[str, np.ndarray]  # [N,h,w] or [N,h,w,K], finite or not
    axes: int | None  # K, where any array has one
    findings: list[str] | None  # [K]
    patients: list[str] | None
    probability: np.ndarray | None  # [N,K], or [N,1] of one finding
    label: np.ndarray | None  # likewise, int


def read(path: Path) -> MapFile:
    """Read a file of maps. ValueError, naming file and array, for whatever is not as the head of this module says."""
    arrays = npz.read(path := Path(path))
    methods = [name for name in arrays if name not in RESERVED]
    if "image_id" not in arrays or not methods:
        missing = "an array image_id" if "image_id" not in arrays else "an array of maps beside the reserved names"
        found = ", ".join(arrays) or "no array"
        raise ValueError(f"{path}: expected {missing}, found {found}; name them: {npz.HOW}")
    ids = _text(arrays["image_id"], f"{path}, image_id")
    try:
        ids = [lookup.safe_name(name.strip()) for name in ids]  # as box_tables does
    except ValueError as error:
        raise ValueError(f"{path}, image_id: {error}; spell it as in the boxes") from error
    n = len(ids)
    if not n:
        raise ValueError(f"{path}, image_id: expected images, found none")
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{path}, image_id: expected each image once, found {_some(twice)} more than once")
    patients = _text(arrays["patient_id"], f"{path}, patient_id", n) if "patient_id" in arrays else None
    findings = _text(arrays["findings"], f"{path}, findings") if "findings" in arrays else None
    if findings is not None and (len({*findings}) < len(findings) or not findings or "" in findings):
        raise ValueError(f"{path}, findings: expected names, each once; found {_some(findings)}")
    k = len(findings) if findings else None
    maps = {name: _maps(arrays[name], name, f"{path}, {name}", n, k) for name in methods}
    values = {name: _values(arrays[name], name, f"{path}, {name}", ids) for name in VALUES if name in arrays}
    axes = {name: a.shape[3] for name, a in maps.items() if a.ndim == 4}
    axes |= {name: arrays[name].shape[1] for name in values if arrays[name].ndim == 2}
    if len({*axes.values(), *([k] if k else [])}) > 1:
        found = ", ".join(f"{name} of {count}" for name, count in axes.items())
        wanted = f"{k}, as findings has" if k else "the same number"
        raise ValueError(f"{path}: expected a last axis of {wanted}; found {found}")
    given = values.get("probability"), values.get("label")
    return MapFile(path, ids, maps, next(iter(axes.values()), k), findings, patients, *given)


def _text(array: np.ndarray, where: str, n: int | None = None) -> list[str]:
    wanted = f"[{'N' if n is None else n}] text"
    if array.dtype.kind != "U":
        kind = "bytes" if array.dtype.kind == "S" else str(array.dtype)
        hint = f"write {where.split(', ')[-1]}=numpy.array(names, dtype=str), spelled as in the boxes"
        raise ValueError(f"{where}: expected {wanted}, found {kind}; {hint}")
    if array.ndim != 1 or n not in (None, len(array)):
        raise ValueError(f"{where}: expected {wanted}, found shape {array.shape}; one entry an image")
    texts = [normal(str(text)) for text in array]
    if odd := [text for text in texts if not printable(text)]:
        raise ValueError(f"{where}: expected printable text, found {odd[0]!r}")
    return texts


def _maps(array: np.ndarray, name: str, where: str, n: int, k: int | None) -> np.ndarray:
    """[N,h,w] or [N,h,w,K] of numbers, K = k if given; the usual other shapes are explained."""
    shape = array.shape
    if name.startswith(("control/", "ceiling/")):
        hint = "this beginning is kept for our own controls; rename the array"
        raise ValueError(f"{where}: expected another name, {hint}")
    if not _numeric(array):
        hint = "write maps.detach().float().cpu().numpy()" + " (bfloat16 is not kept)" * (array.dtype.kind == "V")
        kinds = "float or integer numbers of at most 64 bits"
        raise ValueError(f"{where}: expected maps of {kinds}, found {array.dtype}; {hint}{OTHERS}")
    hint = ""
    if array.ndim == 4 and shape[1] == 1:
        hint = f"squeeze axis 1: {name}[:, 0]"
    elif array.ndim == 4 and k and shape[1] == k != shape[3]:
        hint = f"findings come last: {name}.transpose(0, 2, 3, 1)"
    elif array.ndim == 2 and n == 1:
        hint = f"one image is {name}[None]"
    elif array.ndim not in (3, 4) or shape[0] != n or 0 in shape or (k and shape[3:] not in ((), (k,))):
        hint = f"one map for each of the {n} names in image_id{OTHERS if array.ndim not in (3, 4) else ''}"
    if hint:
        wanted = f"shape ({n}, h, w), or ({n}, h, w, {k or 'K'}) with a last axis of findings"
        raise ValueError(f"{where}: expected {wanted}; found {shape}; {hint}")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _values(array: np.ndarray, name: str, where: str, ids: list[str]) -> np.ndarray:
    """[N] or [N,K] of numbers -> [N,K] float, each as VALUES allows it."""
    n, (wanted, good) = len(ids), VALUES[name]
    if array.ndim not in (1, 2) or array.shape[0] != n or 0 in array.shape or not _numeric(array):
        raise ValueError(f"{where}: expected numbers of shape ({n},) or ({n}, K), found {array.dtype} {array.shape}")
    array = array.reshape(n, -1).astype(float)
    if len(bad := np.argwhere(~good(array))):
        row, column = bad[0]
        found = f"{array[row, column]:g} of {ids[row]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "")
        raise ValueError(f"{where}: expected {wanted}; found {found}")
    return array


def _numeric(array: np.ndarray) -> bool:
    """Whether it holds real numbers that float64 holds, too."""
    return array.dtype.kind in "fiub" and array.dtype.itemsize <= 8


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
