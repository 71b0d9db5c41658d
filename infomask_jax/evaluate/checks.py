"""What `score` accepts. Every violation is a ValueError that names the split and the images."""

from collections import Counter

import numpy as np

LABELS, PROBABILITIES = "labels other than 1, 0, -1", "probabilities that are not in 0..1"


def check_split(findings, data: dict, split: str) -> None:
    """Raise unless the arrays of a split agree in length, range and ids."""
    ids, k = [str(i) for i in data["image_id"]], len(findings)
    n, times = len(ids), Counter(ids)
    _refuse([times[i] > 1 for i in ids], ids, split, "image ids that occur twice")
    for name in ("patient_id", "boxes", "masks", "brightness"):
        if (name in ("patient_id", "boxes") or data.get(name) is not None) and len(data[name]) != n:
            raise ValueError(f"{split}: {n} image ids but {len(data[name])} entries in {name}")
    arrays = [(LABELS, data["labels"]), (PROBABILITIES, data.get("probabilities"))]
    arrays += [(PROBABILITIES, own) for own in (data.get("probabilities_of") or {}).values()]
    for wrong, values in ((wrong, np.asarray(values, float)) for wrong, values in arrays if values is not None):
        if values.shape != (n, k):
            raise ValueError(f"{split}: expected {wrong.split()[0]} of shape {(n, k)}, found {values.shape}")
        good = np.isin(values, (-1, 0, 1)) if wrong == LABELS else (values >= 0) & (values <= 1)  # NaN is neither
        _refuse(~good.all(1), ids, split, wrong)
    masks = [] if data.get("masks") is None else data["masks"]
    bad = [mask is not None and (np.ndim(mask) != 2 or 0 in np.shape(mask)) for mask in masks]
    _refuse(bad, ids, split, "masks that are not [H, W]")
    _refuse([not _good(pair, k) for pair in data["boxes"]], ids, split, "bad boxes")


def check_maps(maps: dict, data: dict, findings, split: str) -> None:
    """Raise unless every map array is [N,h,w], [N,h,w,1] or [N,h,w,K], of finite numbers."""
    n, k = len(data["image_id"]), len(findings)
    for method, array in maps.items():
        if method.startswith(("control/", "ceiling/")):
            raise ValueError(f"{split}: the name {method!r} is kept for our controls")
        shape = np.shape(array)
        if len(shape) not in (3, 4) or shape[0] != n or 0 in shape[1:] or shape[3:] not in ((), (1,), (k,)):
            raise ValueError(f"{split}: expected {method} maps of shape ({n}, h, w) or ({n}, h, w, {k}), found {shape}")
        if not np.issubdtype(np.asarray(array).dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{split}: expected numbers in the {method} maps, found {np.asarray(array).dtype}")
        bad = [not np.isfinite(heat).all() for heat in array]
        _refuse(bad, data["image_id"], split, f"{method} maps with NaN, infinity or float16 overflow")


def _good(pair, k: int) -> bool:
    """Boxes of one image: finite, inside 0..1, of positive area, each with a finding or -1."""
    try:
        boxes, finding = np.asarray(pair[0], float).reshape(-1, 4), np.asarray(pair[1])
    except (ValueError, TypeError, IndexError):
        return False
    inside = ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > boxes[:, :2]).all()  # NaN is not
    return bool(inside and finding.shape == (len(boxes),) and np.isin(finding, np.arange(-1, k)).all())


def _refuse(bad, ids, split: str, what: str) -> None:
    if names := list(dict.fromkeys(str(ids[i]) for i in np.flatnonzero(bad))):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"{split}: {what}: {', '.join(names[:5])}{more}")
