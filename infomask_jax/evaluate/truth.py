"""What one finding of one split is scored against, and on which images."""

from typing import NamedTuple

import numpy as np

from infomask_jax.evaluate.boxes import flatten, take
from infomask_jax.evaluate.frame import rasterise, resize_mask
from infomask_jax.evaluate.regions import Boxes


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
    labels = np.asarray(data["labels"])
    own = [np.asarray(b, float).reshape(-1, 4)[np.asarray(f, int) == k] for b, f in data["boxes"]]
    has = np.array([len(b) > 0 for b in own], bool)
    positive = has & (labels[:, k] == 1)
    every = flatten([b if p else b[:0] for b, p in zip(own, positive, strict=True)])
    count = np.array([len(b) for b, _ in data["boxes"]], int)
    boxed, scored = np.flatnonzero((count > 0) & ~(has & ~positive)), np.flatnonzero(positive)
    listed = np.flatnonzero(positive | (~has & (labels[:, k] == 0)))
    masks = data.get("masks")
    mask = np.zeros((len(scored), frame, frame), bool)
    for row, i in enumerate(scored):
        exact = masks[i] if masks is not None else None
        if exact is not None and len(own[i]) < count[i]:  # before the resize, in which a part alone could vanish
            exact = np.asarray(exact).astype(bool) & rasterise(own[i], np.shape(exact))
        mask[row] = rasterise(own[i], frame) if exact is None else resize_mask(exact, frame)
        if not mask[row].any():
            raise ValueError(f"image {data['image_id'][i]}: its exact mask is empty where it has a box")
    return Truth(
        boxed,
        take(every, boxed),
        count[boxed],
        scored,
        take(every, scored),
        mask,
        listed,
        take(every, listed),
        int((has & ~positive).sum()),
    )


def patients_of(data: dict) -> np.ndarray:
    """Patient of each image; the image itself where none is given. Text [N]."""
    pairs = zip(data["patient_id"], data["image_id"], strict=True)
    return np.array([f"patient {p}" if str(p) not in ("", "None", "nan") else f"image {i}" for p, i in pairs])
