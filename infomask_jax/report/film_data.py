"""The films of a scored split with all maps of a run, as report.html shows them: films/SPLIT.json.

The page prepares maps, cuts them and measures IoU itself (maps.js), as `localize` and `evaluate` do.
"""

import base64
import json
from collections.abc import Callable

import cv2
import matplotlib
import numpy as np

from infomask_jax.evaluate.localization import FIXED_THRESHOLD
from infomask_jax.evaluate.truth import boxes_of, finding_truth
from infomask_jax.localize import of_finding, prepare_map
from infomask_jax.report.figures import HEAT, NAMES, OUTCOMES, choose, drawn_method, outcomes
from infomask_jax.report.sheet import SOURCES
from infomask_jax.text import shown

MOST = 500  # films on a page
BYTES = 1 << 26  # of their maps, at most
SIDE = 224  # longer side of a film, pixels
FILMS = {"split": str, "total": int, "films": [{"id": str}]}  # shape of the file, for `read_json`


def film_data(scores: dict, examples: dict, maps: dict, film_of: Callable, cells: int) -> str:
    """JSON of at most MOST films, evenly spaced over the outcomes of each finding.

    Args:
      scores, examples, maps: as `report.draw` takes them, `examples` with `masks`.
      film_of: stored film i of the split, uint8 or uint16 [S,S].
      cells: on a side of the model's grid. Maps of bits on a finer one repeat them, so there a cell counts less.
    """
    findings, frame, n = list(scores["classification"]), scores["frame"], len(examples["image_id"])
    p = np.array([[float(f"{v:.6g}") for v in row] for row in examples["probabilities"]])  # as in predictions/SPLIT.csv
    labels = np.asarray(examples["labels"])

    def found(method: str, at) -> list[list[int]]:
        """Of films `at`, by finding, what happened, a position in OUTCOMES."""
        out = []
        for k in range(len(findings)):
            true = [boxes_of(examples, i, k) for i in at]
            out.append(outcomes(of_finding(maps[method], k)[at], true, p[at, k], labels[at, k], frame))
        return [[OUTCOMES.index(one) for one in of_film] for of_film in zip(*out, strict=True)]

    size = sum(array[0].nbytes for array in maps.values())
    most = max(1, min(MOST, BYTES // size))
    at = np.arange(n)
    if n > most:
        own, share = np.array(found(drawn_method(maps), at)), max(1, most // len(findings))
        chosen = np.unique(np.concatenate([choose(column, range(len(OUTCOMES)), share) for column in own.T]))[:most]
        rest = np.setdiff1d(at, chosen)
        more = rest[np.linspace(0, len(rest) - 1, most - len(chosen)).round().astype(int)]
        at = np.sort(np.concatenate([chosen, more]))
    kept = {name: [examples[name][i] for i in at] for name in ("image_id", "labels", "boxes", "masks")}
    runs = [{} for _ in at]
    for k, finding in enumerate(findings):
        if finding in scores["localization"]:
            truth = finding_truth(kept, k, frame)
            for i, mask in zip(truth.scored, truth.mask, strict=True):
                runs[i][k] = run_lengths(mask)
    judged = zip(*(found(method, at) for method in maps), strict=True)
    packed = {method: _pack(array, frame) for method, array in maps.items()}
    shown_films = []
    for i, truth, outcome in zip(at.tolist(), runs, judged, strict=True):
        boxes, own = examples["boxes"][i]
        numbered = zip(own, np.reshape(boxes, (-1, 4)).astype(float).tolist(), strict=True)
        film = {"id": shown(str(examples["image_id"][i])), "size": [int(v) for v in examples["sizes"][i]]}
        film |= {"labels": labels[i].tolist(), "p": p[i].tolist(), "outcomes": outcome, "truth": truth}
        film |= {"boxes": [[int(k), *corners] for k, corners in numbered if k >= 0]}
        film |= {"jpeg": _text(thumbnail(film_of(i), *examples["sizes"][i]))}
        shown_films.append(film | {"maps": [pack(i) for _, _, pack in packed.values()]})
    methods = []
    for method, (grid, half, _) in packed.items():
        cuts = [scores["localization"].get(finding, {}).get(method, {}).get("threshold") for finding in findings]
        cuts = [cut or {"value": FIXED_THRESHOLD, "tuned_on": "no box of the finding in the split"} for cut in cuts]
        told = [{"value": cut["value"], "from": SOURCES.get(cut["tuned_on"], cut["tuned_on"])} for cut in cuts]
        about = {"name": NAMES.get(method, method), "grid": grid, "half": half, "cuts": told}
        if half and method.endswith("_bits"):
            about["share"] = (cells / grid[0]) ** 2
        methods.append(about)
    facts = {name: scores[name] for name in ("split", "dataset", "frame")}
    facts |= {"total": n, "findings": findings, "outcomes": OUTCOMES, "methods": methods, "films": shown_films}
    facts["colors"] = [list(map(int, rgb)) for rgb in matplotlib.colormaps[HEAT](range(256), bytes=True)[:, :3]]
    return json.dumps(facts, separators=(",", ":"), allow_nan=False)


def run_lengths(mask: np.ndarray) -> list[int]:
    """bool [S,S] -> how many pixels, row by row, are false, then true, then false, ..."""
    edges = np.flatnonzero(np.diff(mask.ravel(), prepend=False))
    return np.diff([0, *edges, mask.size]).tolist()


def thumbnail(film: np.ndarray, height: int, width: int) -> bytes:
    """JPEG of a film [S,S] in the proportions of its source, from black to white, SIDE pixels or fewer."""
    scale = min(SIDE, max(film.shape)) / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(film, size, interpolation=cv2.INTER_AREA)
    small = cv2.normalize(small, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _pack(array: np.ndarray, frame: int) -> tuple[list[int], bool, Callable]:
    """Of maps [N,h,w,M] the grid, whether in float16, and a function of the film: the text of each of M maps. Maps that
    the page cannot take as they are, larger than the frame or of another type, go as prepared ones."""
    half = array.dtype == np.float16 and max(array.shape[1:3]) <= frame

    def pack(i: int) -> list[str]:
        each = [array[i, ..., k] for k in range(array.shape[-1])]
        return [
            _text((heat if half else prepare_map(heat, frame, frame)).astype("<f2" if half else "<f4")) for heat in each
        ]

    return list(array.shape[1:3]) if half else [frame, frame], half, pack


def _text(data: bytes | np.ndarray) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.tobytes()).decode("ascii")
