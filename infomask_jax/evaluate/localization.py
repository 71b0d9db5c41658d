"""The localization protocol of one finding: what is true, and every score of one method's maps."""

import numpy as np

from infomask_jax.evaluate import bootstrap, controls
from infomask_jax.evaluate import boxes as box_scores
from infomask_jax.evaluate import pixels as pixel_scores
from infomask_jax.evaluate.boxes import Boxes, flatten, region_boxes, take
from infomask_jax.evaluate.frame import rasterise, resize_mask

IOU_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IOBB_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)

CONVENTIONS = {
    "frame": "maps are resized bilinearly (half-pixel centres) to frame x frame pixels, then min-maxed per image; "
    "constant maps become 0",
    "truth": "exact pixel mask where the dataset has one, else pixels whose centre lies in a box; box scores use boxes",
    "images": "a finding is scored on images labelled positive for it that have a box of it",
    "pxap": "average precision over pooled pixels, exact; only its interval is binned",
    "pointing_game": "the maximum lies in the truth, no tolerance; ties score the share of tied maxima inside",
    "mean_iou": "region s >= threshold against the truth, mean over images; an empty region counts 0",
    "max_box_acc_v2": "boxes of all 8-connected regions s > tau, tau .00 ... .99; hit if the best IoU >= .3 .5 .7; "
    "best tau on the scored images (oracle)",
    "acc_iou": "true boxes hit (IoU > T) by a box of a region s >= threshold / true boxes; acc_iobb likewise with IoBB",
    "afp": "predicted boxes with no IoU > T on all boxed images of the split / those images",
    "boxes_per_image": "on the scored images",
    "boxes": "continuous edges, no +1 pixel",
    "ci95": "percentile bootstrap over patients; the threshold is not tuned again in a resample",
    "n": "images; acc_iou and acc_iobb: true boxes; afp: boxed images of the split",
    "control/random": f"uniform noise on {controls.NOISE_GRID} x {controls.NOISE_GRID} cells",
    "control/lung_boxes": "x .12-.45 and .55-.88, y .20-.80",
}


def boxed_images(data) -> np.ndarray:
    """Positions of the images that have a box of any finding."""
    return np.flatnonzero([len(boxes) > 0 for boxes, _ in data["boxes"]])


def patients_of(data) -> list[str]:
    """Patient of each image; the image itself where none is given."""
    pairs = zip(data["patient_id"], data["image_id"], strict=True)
    return [f"patient {p}" if str(p) not in ("", "None") else f"image {i}" for p, i in pairs]


def finding_truth(data, k, boxed, frame, seed=0, resamples=0) -> dict:
    """What finding k is scored against. `scored` [n] are positions within `boxed`: positive images with a box of k."""
    positive = np.asarray(data["labels"])[boxed, k] == 1
    own = [np.asarray(b, float).reshape(-1, 4)[np.asarray(f) == k] for b, f in (data["boxes"][i] for i in boxed)]
    has = np.array([len(b) > 0 for b in own], bool)
    scored = np.flatnonzero(positive & has)
    masks, several = data.get("masks"), np.asarray(data["labels"]).shape[1] > 1
    mask = np.zeros((len(scored), frame, frame), bool)
    for row, position in enumerate(scored):
        exact = masks[boxed[position]] if masks is not None else None
        mask[row] = rasterise(own[position], frame) if exact is None else resize_mask(exact, frame)
        if exact is not None and several:
            mask[row] &= rasterise(own[position], frame)
        if not mask[row].any():
            raise ValueError(f"image {data['image_id'][boxed[position]]}: its exact mask is empty where it has a box")
    patients = np.array(patients_of(data))[boxed]
    every = flatten(own)
    return {
        "scored": scored,
        "mask": mask,
        "every_box": every,  # on all boxed images
        "boxes": take(every, scored),  # on the scored ones
        "weights": bootstrap.patient_weights(patients[scored], resamples, seed),
        "every_weights": bootstrap.patient_weights(patients, resamples, seed),
        "boxed_not_positive": int((has & ~positive).sum()),
    }


def localization_estimates(truth: dict, maps: np.ndarray, threshold: float, predicted: Boxes | None = None) -> dict:
    """Every localization score as {"metric" or "metric/level": Estimate}.

    Args:
      maps: prepared, of all boxed images. predicted: their boxes, if they are not the regions of the maps.
    """
    scored, true, n = truth["scored"], truth["boxes"], len(truth["scored"])
    own, mask = maps[scored], truth["mask"]
    every = region_boxes(maps >= np.float32(threshold)) if predicted is None else predicted
    boxes = take(every, scored)
    curve = box_scores.best_iou_curve(own, true) if predicted is None else box_scores.best_iou(boxes, true, n)[:, None]
    weights = truth["weights"]
    out = {
        "pxap": pixel_scores.pxap_estimate(own, mask, *weights),
        "pointing_game": bootstrap.mean(pixel_scores.pointing_game(own, mask), *weights),
        "mean_iou": bootstrap.mean(pixel_scores.region_iou(own, mask, threshold), *weights),
        "max_box_acc_v2": box_scores.max_box_acc_v2(curve, *weights),
    }
    true_count = np.bincount(true.image, minlength=n)
    for measure, levels in (("iou", IOU_LEVELS), ("iobb", IOBB_LEVELS)):
        found = box_scores.found_per_image(boxes, true, levels, n, measure)
        for level, hits in zip(levels, found.T, strict=True):
            out[f"acc_{measure}/{level:g}"] = bootstrap.ratio(hits, true_count, *weights)
    wrong = box_scores.false_per_image(every, truth["every_box"], IOU_LEVELS, len(maps))
    for level, count in zip(IOU_LEVELS, wrong.T, strict=True):
        out[f"afp/{level:g}"] = bootstrap.mean(count, *truth["every_weights"])
    out["boxes_per_image"] = bootstrap.mean(np.bincount(boxes.image, minlength=n), *weights)
    return out
