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
BYTES = 1 << 25  # of their maps, at most
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

    def found(method: str, at: np.ndarray) -> np.ndarray:
        """Of films `at`, what happened by each finding, as positions in OUTCOMES, [n,K]."""
        columns = []
        for k in range(len(findings)):
            true, own = [boxes_of(examples, i, k) for i in at], of_finding(maps[method], k)[at]
            words = outcomes(own, true, p[at, k], labels[at, k], frame)
            columns.append([OUTCOMES.index(word) for word in words])
        return np.array(columns).T

    at, most = np.arange(n), max(1, min(MOST, BYTES // sum(array[0].nbytes for array in maps.values())))
    if n > most:
        at = thinned(found(drawn_method(maps), at), most)
    truth, judged = _truth(scores, examples, at), [found(method, at) for method in maps]
    packs = {method: _packer(array, frame) for method, array in maps.items()}
    films = []
    for row, i in enumerate(at.tolist()):
        size, (boxes, owners) = [int(side) for side in examples["sizes"][i]], examples["boxes"][i]
        numbered = zip(map(int, owners), np.reshape(boxes, (-1, 4)).astype(float).tolist(), strict=True)
        film = {"id": shown(str(examples["image_id"][i])), "size": size}
        film |= {"labels": labels[i].tolist(), "p": p[i].tolist()}
        film |= {"boxes": [[k, *corners] for k, corners in numbered if k >= 0], "truth": truth[row]}
        film |= {"outcomes": [of_method[row].tolist() for of_method in judged]}
        film |= {"jpeg": _text(thumbnail(film_of(i), *size)), "maps": [pack(i) for *_, pack in packs.values()]}
        films.append(film)
    methods = []
    for method, (grid, half, _) in packs.items():
        cuts = [_cut(scores, finding, method) for finding in findings]
        about = {"name": NAMES.get(method, method), "grid": grid, "half": half, "cuts": cuts}
        methods.append(about | ({"share": (cells / grid[0]) ** 2} if half and method.endswith("_bits") else {}))
    facts = {name: scores[name] for name in ("split", "dataset", "frame")}
    facts |= {"total": n, "findings": findings, "outcomes": OUTCOMES, "methods": methods, "films": films}
    facts["colors"] = matplotlib.colormaps[HEAT](range(256), bytes=True)[:, :3].tolist()
    return json.dumps(facts, separators=(",", ":"), allow_nan=False)


def thinned(found: np.ndarray, most: int) -> np.ndarray:
    """Positions of `most` of more films, ascending: of the outcomes [n,K] of each finding, evenly spaced ones, the rare
    first; what is then left, evenly spaced, too."""
    n, findings = found.shape
    share = max(1, most // findings)
    chosen = np.unique(np.concatenate([choose(column, range(len(OUTCOMES)), share) for column in found.T]))[:most]
    rest = np.setdiff1d(np.arange(n), chosen)
    more = rest[np.linspace(0, len(rest) - 1, most - len(chosen)).round().astype(int)]
    return np.sort(np.concatenate([chosen, more]))


def _truth(scores: dict, examples: dict, at: np.ndarray) -> list[dict[int, list[int]]]:
    """Of films `at`, by finding, the truth in pixels that IoU is scored against, as run lengths."""
    kept = {name: [examples[name][i] for i in at] for name in ("image_id", "labels", "boxes", "masks")}
    out = [{} for _ in at]
    for k, finding in enumerate(scores["classification"]):
        if finding in scores["localization"]:
            truth = finding_truth(kept, k, scores["frame"])
            for i, mask in zip(truth.scored, truth.mask, strict=True):
                out[i][k] = run_lengths(mask)
    return out


def _cut(scores: dict, finding: str, method: str) -> dict:
    """The threshold of a map, and where it is from."""
    if finding not in scores["localization"]:
        return {"value": FIXED_THRESHOLD, "from": "no box of the finding in this split"}
    cut = scores["localization"][finding][method]["threshold"]
    return {"value": cut["value"], "from": SOURCES.get(cut["tuned_on"], cut["tuned_on"])}


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


def _packer(array: np.ndarray, frame: int) -> tuple[list[int], bool, Callable]:
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
