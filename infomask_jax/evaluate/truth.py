"""What one finding of one split is scored against, and on which images.

A frame pixel is true if its centre lies inside a box, or on a true pixel of the exact mask where the dataset has one.
"""

from typing import NamedTuple

import numpy as np

from infomask_jax.evaluate.boxes import flatten, take
from infomask_jax.localize import Boxes


class Truth(NamedTuple):
    """Truth of one finding. Positions are those of the split's images; boxes are numbered within the images beside."""

    boxed: np.ndarray  # [m], images with a box of any finding, but those of `not_positive`
    boxed_boxes: Boxes  # of this finding, on those of `boxed` that are positive for it
    boxes_of_all: np.ndarray  # [m], how many boxes of any finding each has
    scored: np.ndarray  # [n], of `boxed` those positive for the finding that have a box of it
    boxes: Boxes  # on `scored`
    mask: np.ndarray  # bool [n,S,S], the truth in pixels of `scored`
    listed: np.ndarray  # [q], `scored`, and images negative for the finding without a box of it: what RSNA scores
    listed_boxes: Boxes  # on `listed`
    not_positive: int  # images with a box of the finding that are not labelled positive for it


def finding_truth(data: dict, k: int, frame: int) -> Truth:
    """The truth of finding k of a split (see `scoring.score`). ValueError if an exact mask is empty where a box is."""
    labels, masks = np.asarray(data["labels"])[:, k], data.get("masks")
    own = [boxes_of(data, i, k) for i in range(len(labels))]
    has, count = (np.array([len(b) for b in boxes], int) for boxes in (own, [b for b, _ in data["boxes"]]))
    positive, odd = (has > 0) & (labels == 1), (has > 0) & (labels != 1)
    every = flatten([b if p else b[:0] for b, p in zip(own, positive, strict=True)])
    boxed, scored = np.flatnonzero((count > 0) & ~odd), np.flatnonzero(positive)
    listed = np.flatnonzero(positive | ((has == 0) & (labels == 0)))
    mask = np.zeros((len(scored), frame, frame), bool)
    for row, i in enumerate(scored):
        exact = masks[i] if masks is not None else None
        if exact is not None and has[i] < count[i]:  # before the resize, in which a part alone could vanish
            exact = np.asarray(exact).astype(bool) & rasterise(own[i], np.shape(exact))
        mask[row] = rasterise(own[i], frame) if exact is None else resize_mask(exact, frame)
        if not mask[row].any():
            raise ValueError(f"image {data['image_id'][i]}: its exact mask is empty where it has a box")
    boxes = {"boxed_boxes": take(every, boxed), "boxes": take(every, scored), "listed_boxes": take(every, listed)}
    counts = {"boxes_of_all": count[boxed], "not_positive": int(odd.sum())}
    return Truth(boxed=boxed, scored=scored, mask=mask, listed=listed, **boxes, **counts)


def boxes_of(data: dict, i: int, k: int) -> np.ndarray:
    """Boxes of finding k on image i of a split, float [n,4]."""
    boxes, findings = data["boxes"][i]
    return np.asarray(boxes, float).reshape(-1, 4)[np.asarray(findings, int) == k]


def patients_of(data: dict) -> np.ndarray:
    """Patient of each image; the image itself where none is given. Text [N]."""
    pairs = zip(data["patient_id"], data["image_id"], strict=True)
    return np.array([f"patient {p}" if str(p) not in ("", "None", "nan") else f"image {i}" for p, i in pairs])


def rasterise(boxes: np.ndarray, frame: int | tuple[int, int]) -> np.ndarray:
    """Union of boxes [n,4] -> bool in a frame (its side, or height and width): pixels whose centre lies inside, edges
    half open. A box so small that it holds no pixel centre keeps the one pixel that holds its own centre."""
    shape = np.broadcast_to(frame, 2)
    mask, size = np.zeros(shape, bool), np.tile(shape, 2)
    for box in np.asarray(boxes, float).reshape(-1, 4):
        # Centre (i+.5)/S >= edge  <=>  i >= edge*S - .5; rounding absorbs the error of float32 edges.
        edges = np.ceil(np.round(box * size - 0.5, 4)).astype(int).clip(0, size)
        low, high = edges[:2], edges[2:]
        centre = np.minimum(((box[:2] + box[2:]) / 2 * shape).astype(int), shape - 1)
        empty = low == high
        (top, left), (bottom, right) = np.where(empty, centre, low), np.where(empty, centre + 1, high)
        mask[top:bottom, left:right] = True
    return mask


def resize_mask(mask: np.ndarray, frame: int) -> np.ndarray:
    """Exact mask [H,W] -> bool [S,S]: the source pixel under each frame pixel's centre; of a mask that would vanish,
    every frame pixel that it touches."""
    mask = np.asarray(mask) > 0
    rows, cols = (np.floor((np.arange(frame) + 0.5) * size / frame).astype(int) for size in mask.shape)
    out = mask[rows][:, cols]
    if not out.any():
        y, x = np.nonzero(mask)
        out[y * frame // mask.shape[0], x * frame // mask.shape[1]] = True
    return out
