"""Where the mass of a map lies: in the lesion, in the lung beside it, or elsewhere, against the area of each.

The value of a cell is spread evenly over its area, and regions are exact: an image is cut at every edge of its cells,
of the pixels of its masks and of its boxes, so that each piece lies in one cell and one region."""

from collections.abc import Callable

import numpy as np

from infomask_jax.evaluate import bootstrap, ranking
from infomask_jax.evaluate.checks import check_maps
from infomask_jax.evaluate.truth import boxes_of, patients_of
from infomask_jax.localize import of_finding

REGIONS = ("lesion", "lung", "elsewhere")
CONVENTIONS = {
    "shares": "sum over images of what lies in a region / sum over images of all of it",
    "lesion": "exact mask, else union of the finding's boxes; negative images have none",
    "lung": "the lung field without the lesion",
    "area": "mean over images of the share of the image that the region takes",
    "over_area": "share / area: 1 where the map does not prefer the region",
    "total": "mean over images of the sum over cells: bits per image, or open cells",
    "auroc_of_openness": "AUROC of the sum of the mask over cells; high is expected of a mask that opens for disease",
    "auroc_of_shuffled_mask": "AUROC of the classifier behind masks whose cells are shuffled in each image, same z: "
    "above .5 as far as the number of open cells, or evidence in every cell, carries the label",
}


def region_areas(grid: tuple[int, int], lung: np.ndarray, mask=None, boxes=None) -> np.ndarray:
    """The share of each cell's area that each of REGIONS takes, [3,h,w]; adds up to 1 in every cell.

    The lesion is what `mask` and `boxes` have in common, or the one that is given. It comes before the lung.

    Args:
      grid: (h, w). lung, mask: bool [H,W], each of any size, over the whole image. boxes: [n,4] in 0..1.
    """
    edges = np.reshape([] if boxes is None else boxes, (-1, 4)).astype(float)
    sizes = [grid, lung.shape, *([] if mask is None else [mask.shape])]
    cuts = [
        np.unique(np.concatenate([*(np.arange(s[axis] + 1) / s[axis] for s in sizes), *edges[:, axis::2].T]))
        for axis in (0, 1)
    ]
    y, x = middles = [(cut[1:] + cut[:-1]) / 2 for cut in cuts]  # of the pieces, along each axis

    def pieces(region):  # [H,W] -> its value on each piece
        return region[np.ix_(*((m * n).astype(int) for m, n in zip(middles, region.shape, strict=True)))]

    inside = pieces(np.asarray(lung, bool))
    lesion = np.full(inside.shape, mask is not None or boxes is not None)
    if mask is not None:
        lesion &= pieces(np.asarray(mask, bool))
    if boxes is not None:
        own = [((ymin < y) & (y < ymax))[:, None] & (xmin < x) & (x < xmax) for ymin, xmin, ymax, xmax in edges]
        lesion &= np.any([np.zeros_like(lesion), *own], axis=0)
    rows, columns = (
        (np.arange(n)[:, None] == (m * n).astype(int)) * np.diff(cut) * n
        for m, cut, n in zip(middles, cuts, grid, strict=True)
    )
    return np.stack([rows @ region @ columns.T for region in (lesion, inside & ~lesion, ~inside & ~lesion)])


def audit(
    findings, data, maps, lung_of: Callable, *, scores=None, dataset="", split="test", seed=0, resamples=1000
) -> tuple[dict, dict]:
    """Shares of every map in every region, on positive and on negative images.

    Args:
      findings, data: as in `scoring.score`. Where an image has boxes of several findings, its mask is cut to each's.
      maps: {method: [N,h,w,M]}, all on one grid, not negative, not shifted.
      lung_of: position in the split -> bool [H,W] of any size; called once an image, in order.
      scores: {name: [N,K]}, predictions whose AUROC is reported beside.

    Returns:
      What audit_SPLIT.json holds, whose groups are "positive", "positive_without_lesion" (no box, no mask: lesion and
      lung cannot be told apart) and "negative". Then {finding: {group: {"lung" or method: mean [h,w]}}}.
    """
    check_maps(maps, data, findings, split)
    labels, patients = np.asarray(data["labels"]), patients_of(data)
    maps = {name: m.astype(float) for name, m in maps.items()}
    (grid,) = {m.shape[1:3] for m in maps.values()}
    n, K = labels.shape
    area, inside = np.zeros((n, K, 3)), {name: np.zeros((n, K, 3)) for name in maps}
    lungs = np.zeros((n, *grid), np.float32)
    for i in range(n):
        lung = np.asarray(lung_of(i), bool)
        without = region_areas(grid, lung)
        lungs[i] = without[1]
        for k in range(K):
            areas = region_areas(grid, lung, *_lesion(data, i, k)) if labels[i, k] == 1 else without
            area[i, k] = areas.mean(axis=(1, 2))
            for name, m in maps.items():
                inside[name][i, k] = (areas * of_finding(m[i : i + 1], k)).sum(axis=(1, 2))
    out = {
        "dataset": dataset,
        "split": split,
        "n_images": n,
        "n_patients": len(set(patients)),
        "n_images_without_lung": int((lungs.max(axis=(1, 2)) == 0).sum()),
        "findings": {},
        "bootstrap": {"resamples": resamples, "seed": seed, "unit": "patient"},
        "conventions": CONVENTIONS,
    }
    means = {}
    for k, finding in enumerate(findings):
        y, known = labels[:, k], area[:, k, 0] > 0
        groups = {"positive": (y == 1) & known, "positive_without_lesion": (y == 1) & ~known, "negative": y == 0}
        counts = {name: int(members.sum()) for name, members in (groups | {"unknown": y == -1}).items()}
        found, means[finding] = {"counts": counts}, {}
        for group, members in groups.items():
            if members.any():
                weights = bootstrap.patient_weights(patients[members], resamples, seed)
                own = {name: parts[members, k] for name, parts in inside.items()}
                found[group] = _shares(own, area[members, k], REGIONS[group != "positive" :], weights)
                of_maps = {name: of_finding(m, k)[members].mean(axis=0) for name, m in maps.items()}
                means[finding][group] = {"lung": lungs[members].mean(axis=0), **of_maps}
        known = y != -1
        weights = bootstrap.patient_weights(patients[known], resamples, seed)
        for name, values in (scores or {}).items():
            auroc, _ = ranking.areas(y[known] == 1, np.asarray(values, float)[known, k], *weights)
            found[name] = bootstrap.as_json(auroc)
        out["findings"][finding] = found
    return out, means


def _lesion(data: dict, i: int, k: int) -> tuple:
    """(mask or None, boxes or None) of finding k on image i, as `region_areas` takes them."""
    own, mask = boxes_of(data, i, k), data["masks"][i] if data.get("masks") is not None else None
    return mask, None if mask is not None and len(own) == len(data["boxes"][i][0]) else own


def _shares(inside: dict, area: np.ndarray, regions: tuple, weights: tuple) -> dict:
    """The entry of one group of n images: `inside` {method: [n,3]} and `area` [n,3], by REGIONS."""
    areas = {r: bootstrap.estimate(bootstrap.average(area[:, REGIONS.index(r)]), *weights) for r in regions}
    out = {"images": len(area), "area": {r: bootstrap.as_json(a) for r, a in areas.items()}}
    for method, parts in inside.items():
        total = parts.sum(axis=1)
        mean = bootstrap.as_json(bootstrap.estimate(bootstrap.average(total), *weights))
        out[method] = {"total": mean, "shares": {}, "over_area": {}}
        for r in regions:
            score = bootstrap.PerImage(parts[:, REGIONS.index(r)], total)
            share = bootstrap.estimate(score, *weights, "the map is zero everywhere")._replace(n=len(area))
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = np.divide(share.value, areas[r].value), share.samples / areas[r].samples
            over = bootstrap.Estimate(*ratio, len(area), share.reason or "no area")
            out[method]["shares"][r], out[method]["over_area"][r] = bootstrap.as_json(share), bootstrap.as_json(over)
    return out
