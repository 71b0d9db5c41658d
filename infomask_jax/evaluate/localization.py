"""Every localization score of one prediction for one finding, and the conventions in words."""

from typing import NamedTuple

import numpy as np

from infomask_jax.evaluate import bootstrap, controls, pixels, protocols
from infomask_jax.evaluate.bootstrap import Estimate, PerImage, average
from infomask_jax.evaluate.boxes import flatten, take
from infomask_jax.evaluate.truth import Truth, rasterise
from infomask_jax.localize import Boxes, prepare_maps, region_boxes

PROTOCOLS = ("wang2017", "li2018", "wsol", "chexlocalize", "rsna", "pixel_auprc")
OVER = {"afp": "boxed", "wang2017": "boxed", "rsna": "listed"}  # images of Truth that scores are over; else "scored"
# Where no validation image has a box of the finding (NIH: every box is in the test list):
FIXED_THRESHOLD = 0.5  # of maps
FIXED_CONFIDENCE = 0.5  # the probability from which boxes are predicted (RSNA)

CONVENTIONS = {
    "frame": "maps are resized to frame x frame pixels (enlarged bilinearly with half-pixel centres, shrunk by "
    "averaging over areas), then min-maxed per image; constant maps become 0",
    "truth": "exact pixel mask where the dataset has one, else pixels whose centre lies in a box; box scores use boxes",
    "images": "a finding is scored on images labelled positive for it that have a box of it",
    "pxap": "average precision over pooled pixels, exact; only its interval is binned",
    "pointing_game": "the maximum lies in the truth, no tolerance; ties score the share of tied maxima inside",
    "mean_iou": "region s >= threshold against the truth, mean over images; an empty region counts 0",
    "max_box_acc_v2": "boxes of all 8-connected regions s > tau, tau .000 .001 ... .999; hit if the best IoU >= .3 .5 "
    ".7; best tau on the scored images (oracle)",
    "acc_iou": "true boxes hit (IoU > T) by a box of a region s >= threshold / true boxes; acc_iobb likewise with IoBB",
    "afp": "predicted boxes with no IoU > T on all boxed images of the split / those images",
    "boxes_per_image": "on the scored images",
    "boxes": "continuous edges, no +1 pixel",
    "ci95": "percentile bootstrap over patients; no threshold is tuned again in a resample; those of max_box_acc and "
    "max_box_acc_v2 are moved down by what choosing tau on the scored images gains, the values are not",
    "n": "images; acc_iou and acc_iobb: true boxes; afp: boxed images of the split; wang2017/afp: their boxes",
    "control/random": f"uniform noise on {controls.GRID} x {controls.GRID} cells",
    "control/brightness": f"the image averaged over {controls.GRID} x {controls.GRID} cells: no other control sees it",
    "control/lung_boxes": "x .12-.45 and .55-.88, y .20-.80",
    "ceiling": "the truth on a method's grid, not a control: boxes with their edges moved to the nearest line; exact "
    "pixel masks averaged over the cells",
}


class Thresholds(NamedTuple):
    """Where a prediction is cut."""

    region: float = FIXED_THRESHOLD  # of the map
    tuned_on: str = "fixed"  # or "val"
    chexlocalize: float | None = None  # the best of .2 ... .8 on validation
    confidence: float | None = None  # RSNA: the probability below which no box is predicted; None: all are
    confidence_tuned_on: str = "fixed"


class Prediction(NamedTuple):
    """Heat maps [N,h,w], or a list with boxes [n_i,4] of each image, or both: then box scores are of the boxes."""

    maps: np.ndarray | None
    boxes: list[np.ndarray] | None = None

    def prepared(self, images: np.ndarray, frame: int, names) -> np.ndarray:
        """Maps of some images in the scoring frame, float32 [n,S,S]; boxes alone are drawn. `names`: of all images."""
        if self.maps is None:
            return np.array([rasterise(self.boxes[i], frame) for i in images], np.float32).reshape(-1, frame, frame)
        return prepare_maps(self.maps[images], frame, [names[i] for i in images])

    def regions(self, images: np.ndarray, threshold: float, frame: int, names) -> tuple[Boxes, np.ndarray]:
        """Predicted boxes of some images, and their scores."""
        if self.boxes is not None:
            boxes = flatten([self.boxes[i] for i in images])
            return boxes, np.ones(len(boxes.boxes), np.float32)
        if self.maps.strides[0] == 0 and len(images):  # one map for every image
            one, peak = region_boxes(self.maps[:1], threshold, frame=frame)
            each = np.repeat(np.arange(len(images)), len(peak))
            return Boxes(np.tile(one.boxes, (len(images), 1)), each), np.tile(peak, len(images))
        return region_boxes(self.maps, threshold, images, frame=frame, names=names)


def tune(fixed: Thresholds, prediction: Prediction, truth: Truth, names, probabilities) -> Thresholds:
    """The thresholds that are best on a (validation) split with boxes of the finding; a confidence that is None in
    `fixed` stays so. `names`, `probabilities` as in `measure`."""
    frame = truth.mask.shape[1]
    curve = pixels.iou_curve(prediction.prepared(truth.scored, frame, names), truth.mask)
    among_few = pixels.tune_threshold(curve, protocols.CHEXLOCALIZE_THRESHOLDS)
    found = fixed._replace(region=pixels.tune_threshold(curve), tuned_on="val", chexlocalize=among_few)
    if fixed.confidence is None or probabilities is None:
        return found
    boxes, peaks = prediction.regions(truth.listed, found.region, frame, names)
    confidence = protocols.tune_confidence(boxes, peaks, truth.listed_boxes, probabilities[truth.listed])
    return found._replace(confidence=confidence, confidence_tuned_on="val")


def measure(
    prediction: Prediction, truth: Truth, names, cut: Thresholds, probabilities=None, chosen=PROTOCOLS
) -> tuple[dict[str, PerImage], dict[str, float]]:
    """Every score of a prediction: the headline as "metric" and "metric/level", then "protocol/metric/level"; and
    WSOL's best thresholds, see `protocols.wsol`.

    Args:
      names: of all images. probabilities: [N] of the classifier, what cut.confidence is compared with.
    """
    frame, rows = truth.mask.shape[1], np.searchsorted(truth.boxed, truth.scored)
    prepared, mask, n, m = prediction.prepared(truth.boxed, frame, names), truth.mask, len(rows), len(truth.boxed)
    own = prepared if n == m else prepared[rows]
    drawn = None if prediction.boxes is None else flatten([prediction.boxes[i] for i in truth.boxed])
    every = region_boxes(prepared, cut.region)[0] if drawn is None else drawn
    boxes = take(every, rows)

    def rsna() -> dict[str, PerImage]:
        images, confident = truth.listed, np.ones(len(truth.listed), bool)
        if cut.confidence is not None:
            confident = probabilities[images] >= cut.confidence
        found, peaks = prediction.regions(images[confident], cut.region, frame, names)
        found = Boxes(found.boxes, np.flatnonzero(confident)[found.image])
        return protocols.rsna(found, peaks, truth.listed_boxes, len(images))

    pixel_auprc = protocols.pixel_auprc(own, mask)
    wsol, taus = protocols.wsol(own, truth.boxes, None if drawn is None else boxes)
    wrong = protocols.false_positives(every, truth.boxed_boxes, np.ones(m))
    out = {
        "pxap": pixel_auprc["pooled"],
        "pointing_game": pixel_auprc["pointing_game"],
        "mean_iou": average(pixels.region_overlap(own, mask, cut.region)[0]),
        "max_box_acc_v2": wsol["max_box_acc_v2"],
        **protocols.accuracy(boxes, truth.boxes, n),
        "boxes_per_image": average(np.bincount(boxes.image, minlength=n)),
        **{f"afp/{t:g}": wrong[f"afp_iou/{t:g}"] for t in protocols.IOU_LEVELS},
    }
    blocks = {
        "wang2017": lambda: protocols.wang2017(prepared, truth.boxed_boxes, truth.boxes_of_all, drawn),
        "li2018": lambda: protocols.li2018(own, mask, cut.region),
        "wsol": lambda: {**wsol, "pxap": pixel_auprc["pooled"]},
        "chexlocalize": lambda: protocols.chexlocalize(own, mask, cut.chexlocalize),
        "rsna": rsna,
        "pixel_auprc": lambda: pixel_auprc,
    }
    for protocol in chosen:
        out |= {f"{protocol}/{name}": score for name, score in blocks[protocol]().items()}
    return out, taus


def estimates(scores: dict[str, PerImage], weights: dict[str, tuple]) -> dict[str, Estimate]:
    """Every score with its resamples; one that has several names is resampled once. `weights`:
    `bootstrap.patient_weights` of each kind of images that scores are over."""
    known = {}
    for name, score in scores.items():
        if id(score) not in known:
            known[id(score)] = bootstrap.estimate(score, *weights[OVER.get(name.split("/")[0], "scored")])
    return {name: known[id(score)] for name, score in scores.items()}
