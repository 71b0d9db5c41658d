"""What `score` accepts. Every violation is a ValueError that names the split and the images."""

from collections import Counter

import numpy as np


def check_split(findings, data: dict, split: str) -> None:
    """Raise unless the arrays of a split agree in length, range and ids."""
    ids = [str(i) for i in data["image_id"]]
    n, k = len(ids), len(findings)
    if len(set(findings)) != k:
        raise ValueError(f"duplicate findings in {list(findings)}")
    _refuse([i for i, count in Counter(ids).items() if count > 1], split, "image ids that occur twice")
    for name in ("patient_id", "boxes", "masks", "brightness"):
        if (name in ("patient_id", "boxes") or data.get(name) is not None) and len(data[name]) != n:
            raise ValueError(f"{split}: {n} image ids but {len(data[name])} entries in {name}")
    labels = np.asarray(data["labels"])
    if labels.shape != (n, k):
        raise ValueError(f"{split}: expected labels of shape {(n, k)}, found {labels.shape}")
    _refuse_where(~np.isin(labels, (-1, 0, 1)).all(1), ids, split, "labels other than 1, 0, -1")
    given = {"probabilities": data.get("probabilities"), **(data.get("probabilities_of") or {})}
    for p in (np.asarray(values, float) for values in given.values() if values is not None):
        if p.shape != (n, k):
            raise ValueError(f"{split}: expected probabilities of shape {(n, k)}, found {p.shape}")
        _refuse_where(~((p >= 0) & (p <= 1)).all(1), ids, split, "probabilities that are not in 0..1")  # NaN too
    if data.get("masks") is not None:
        bad = [mask is not None and (np.ndim(mask) != 2 or 0 in np.shape(mask)) for mask in data["masks"]]
        _refuse_where(bad, ids, split, "masks that are not [H, W]")
    if data.get("brightness") is not None and len({np.shape(b) for b in data["brightness"]} | {(1, 1)}) > 2:
        raise ValueError(f"{split}: expected brightness of one shape [h, w] for all images")
    _refuse_where([not _good(pair, k) for pair in data["boxes"]], ids, split, "bad boxes")


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
        _refuse_where(bad, data["image_id"], split, f"{method} maps with NaN, infinity or float16 overflow")


def _good(pair, k: int) -> bool:
    """Boxes of one image: finite, inside 0..1, of positive area, each with a finding or -1."""
    try:
        boxes, finding = np.asarray(pair[0], float).reshape(-1, 4), np.asarray(pair[1])
    except (ValueError, TypeError, IndexError):
        return False
    inside = ((boxes >= 0) & (boxes <= 1)).all() and (boxes[:, 2:] > boxes[:, :2]).all()  # NaN is not
    return bool(inside and finding.shape == (len(boxes),) and np.isin(finding, np.arange(-1, k)).all())


def _refuse_where(bad, ids, split: str, what: str) -> None:
    _refuse([ids[i] for i in np.flatnonzero(bad)], split, what)


def _refuse(names: list[str], split: str, what: str) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"{split}: {what}: {', '.join(map(str, names[:5]))}{more}")
