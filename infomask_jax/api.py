"""A trained run in Python and in notebooks: films in, plain numbers and numpy arrays out.

What `predict` (the command) writes comes from the same function, `predict.predicted_films`."""

import base64
import functools
import html
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from infomask_jax import datasets, explain, familiar, parallel, pipeline, predict, report
from infomask_jax.config import ModelConfig
from infomask_jax.explain.bottleneck import feature_statistics
from infomask_jax.films import Films, find
from infomask_jax.localize import of_finding, resize_map
from infomask_jax.run import Run

Xray = Any  # a file or folder, or an array [H, W] of uint8, uint16 or other numbers, large is bright


@dataclass(frozen=True)
class Box:
    """A region that the map finds, in pixels of the film from its top left corner."""

    finding: str
    x: float
    y: float
    width: float
    height: float
    score: float  # peak of the map in the box, 0..1, times the probability
    bits: float | None  # of the rate of the film, what its cells inside the box take; None without a bottleneck


@dataclass(frozen=True, repr=False)
class Film:
    """What a run says of one film of H x W pixels. K findings; a map is on a grid [h, w] over the whole film."""

    image_id: str  # name of the file, its place in its folder, or "array I"
    size: tuple[int, int]  # H, W
    probabilities: dict[str, float]  # by finding
    boxes: list[Box]  # whatever the probability, of each finding the highest peak first
    bits: dict[str, float]  # that the film costs: "representation", "mask"; empty without a bottleneck
    grids: dict[str, np.ndarray]  # by method, as in maps.npz: float16 [h, w] shared by all findings, or [h, w, K]
    sampled: dict[str, tuple[float, float]]  # by finding, mean and standard deviation over samples; empty without
    unlike: str  # how it is unlike the films that the run was trained on; empty where it is not
    shown: np.ndarray = field(repr=False)  # uint8, the film in small, as `picture` draws on it
    panels: list[tuple] = field(repr=False)  # see `report.overlay`

    @functools.cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """By method, float32 [H, W], or [H, W, K], at the size of the film, 0..1, as pictures show it: the mask as it
        is, other maps min-maxed (`grids` has their units). Made when first asked for, and kept."""
        found = {}
        for method, grid in self.grids.items():
            shared = grid.ndim == 2
            drawn = [predict.drawn_map(method, each) for each in ([grid] if shared else np.moveaxis(grid, -1, 0))]
            large = [resize_map(each, *self.size).clip(0, 1).astype(np.float32) for each in drawn]
            found[method] = large[0] if shared else np.stack(large, axis=-1)
        return found

    def picture(self) -> bytes:
        """PNG of the film beside its map of each finding, with boxes where the finding is probable."""
        return report.overlay(self.shown, self.image_id, self.panels)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {p:.3f}" for name, p in self.probabilities.items())
        return f"<Film {self.image_id}, {self.size[0]} x {self.size[1]}: {found}; {len(self.boxes)} boxes>"

    def _repr_html_(self) -> str:
        told = [f"{name}: p = {p:.3f}" for name, p in self.probabilities.items()]
        told += [f"{name} over samples: p = {m:.3f} ± {sd:.3f}" for name, (m, sd) in self.sampled.items()]
        told += [f"{bits:.1f} bits of the {name}" for name, bits in self.bits.items()]
        told += [f"unlike the films of the training: {self.unlike}"] if self.unlike else []
        data, name = base64.b64encode(self.picture()).decode("ascii"), html.escape(self.image_id)
        image = f'<img src="data:image/png;base64,{data}" alt="{name}" style="max-width: 100%">'
        return f"<figure>{image}<figcaption>{name}. {html.escape('; '.join(told))}</figcaption></figure>"


class FilmList(list[Film]):
    """Films that a notebook shows one below the other, the first few."""

    SHOWN = 12

    def _repr_html_(self) -> str:
        more = f"<p>... and {len(self) - self.SHOWN} more films</p>" if len(self) > self.SHOWN else ""
        return "".join(film._repr_html_() for film in self[: self.SHOWN]) + more


@dataclass(frozen=True)
class TrainedRun(Run):
    """A finished run, `infomask_jax.open(folder)`. Not a medical device."""

    def predict(self, x: Xray | Sequence[Xray], samples: int = 0) -> Any:
        """A `Film` of a file or array, a `FilmList` of a folder or a list, in its order.

        x: PNG, JPEG or DICOM, a folder of them with all sub-folders, an array [H, W] (uint8, uint16, or others, which
        are stretched), or a list of such. Whole films, as in training. samples: also draw so many of z and mask, see
        `inference.sampled`. Warns of films unlike those of the training. ValueError, listing all, for what cannot be
        read.
        """
        names, films, one = _read(self, x)
        found = []
        for batch in predict.predicted_films(self, films, names, samples, progress=False):
            found += [_film(self, names[i], films, i, j, batch, len(found) + j) for j, i in enumerate(batch.films)]
        if unlike := [film for film in found if film.unlike]:
            told, first = predict.tell_unlike(len(unlike), len(found)), unlike[0]
            warnings.warn(f"{told}, such as {first.image_id} ({first.unlike})", stacklevel=2)
        return found[0] if one else FilmList(found)

    def explain(self, x: Xray | Sequence[Xray], method: str, finding: str | None = None, **options: Any) -> Any:
        """A heat map of another method on the same parameters, float32 [H, W] at the size of the film, in the units of
        the method; a list of them of a folder or a list.

        method: one of `explain.METHODS`. finding: its name; may be left out where the run has one. options: those of
        the method's function. `iba` reads the training films first. One pass of the film as it is: no shifts are
        averaged. ValueError for names that are unknown and what cannot be read.
        """
        if method not in explain.METHODS:
            raise ValueError(f"method: expected one of {', '.join(explain.METHODS)}; found {method!r}")
        if finding not in (self.findings if len(self.findings) > 1 else [*self.findings, None]):
            raise ValueError(f"finding: expected one of {', '.join(self.findings)}; found {finding!r}")
        k, size = self.findings.index(finding) if finding else 0, self.config.data.image_size
        _, films, one = _read(self, x)
        maps_of = _attribution(method, self.config.model, len(self.findings), tuple(sorted(options.items())))
        variables, found = self._variables if method == "iba" else {"params": self.params}, []
        for i in range(len(films)):
            image = pipeline.to_batch(pipeline.Decoded(films), np.array([i]), size)["image"]
            if not films.problems:
                heat = np.asarray(maps_of(variables, image, k))[0]
                found.append(resize_map(heat, *films.sizes[i]).astype(np.float32))
        if films.problems:
            raise ValueError("\n".join(films.problems.values()))
        return found[0] if one else found

    @functools.cached_property
    def _variables(self) -> dict[str, Any]:
        """Parameters, and the statistics of features of the training films that `iba` takes."""
        variables, source = {"params": self.params}, datasets.of_run(self.config).source("train", pipeline.FIELDS)
        batches = pipeline.eval_batches(source, self.config.data.image_size, self.config.data.batch_size)
        images = (batch["image"][batch["valid"] > 0] for batch in batches)
        statistics = feature_statistics(self.config.model, len(self.findings), variables, images)
        return variables | {"feature_statistics": statistics}

    def _repr_html_(self) -> str:
        model, weights = self.config.model, self.manifest.get("weights", {}).get("file", "from scratch")
        how = f"{model.kind}, encoder {model.encoder} ({weights}), seed {self.manifest['seed']}"
        lines = [str(self.folder), self.about, how, "For research: not a medical device."]
        return "<br>".join(map(html.escape, lines))


def _read(run: Run, x: Xray | Sequence[Xray]) -> tuple[list[str], Films, bool]:
    """Names of films, the films, and whether `x` is one."""
    parallel.set_up()
    path = isinstance(x, (str, os.PathLike))
    array = not path and not isinstance(x, Sequence)  # or what numpy makes one of, as a picture of PIL
    names, given = [], []
    for each in [x] if array or path else list(x):
        if isinstance(each, (str, os.PathLike)):
            found = find([Path(each).expanduser()])
            names, given = [*names, *found], [*given, *found.values()]
        else:
            names, given = [*names, f"array {len(names)}"], [*given, np.asarray(each)]
    if not given:
        raise ValueError("expected a file, a folder, an array [H, W] or a list of them, found an empty list")
    one = array or (path and not os.path.isdir(os.path.expanduser(x)))
    return names, Films(given, predict.stored_size(run)), one


def _film(run: Run, name: str, films: Films, i: int, j: int, batch: predict.Batch, number: int) -> Film:
    """Film i, the j-th of a batch and the `number`-th of all."""
    p, costs = batch.found["probability"][j].tolist(), batch.found.get("infomask_bits", batch.found.get("vib_bits"))
    maps = {method: values[j] for method, values in batch.found.items() if method != "probability"}
    boxes, rates, sampled, facts = [], {}, {}, run.manifest.get("films")
    for box in batch.boxes:
        if box["image_id"] == number:
            inside = None
            if costs is not None:
                bits = of_finding(costs[j : j + 1], box["category_id"])[0]
                inside = bits_inside(bits, box["bbox"], films.sizes[i], run.config.map_shifts)
            boxes.append(Box(box["category"], *box["bbox"], box["score"], inside))
    if costs is not None:
        rates = dict(zip(("representation", "mask"), batch.rates[j].tolist(), strict=True))
    if batch.spread is not None:
        sampled = dict(zip(run.findings, map(tuple, batch.spread[j].tolist()), strict=True))
    return Film(
        image_id=name,
        size=films.sizes[i],
        probabilities=dict(zip(run.findings, p, strict=True)),
        boxes=boxes,
        bits=rates,
        grids={method: grid[..., 0] if grid.shape[-1] == 1 else grid for method, grid in maps.items()},
        sampled=sampled,
        unlike=familiar.unlike(facts, films.thumbnails[i], films.sizes[i]) if facts else "",
        shown=films.shown.pop(i),
        panels=batch.panels[j],
    )


@functools.cache
def _attribution(method: str, model: ModelConfig, findings: int, options: tuple) -> Callable:
    return explain.attribution(method, model, findings, **dict(options))


def bits_inside(bits: np.ndarray, bbox: Sequence[float], size: tuple[int, int], shifts: int) -> float:
    """Bits of the cells inside a box.

    Args:
      bits: of each cell, [h, w], a mean over shifts x shifts shifts on a grid so much finer. bbox: [x, y, width,
        height], pixels of a film of `size` (H, W).
    """
    x, y, width, height = bbox
    shares = []  # of each row, of each column, what lies inside
    for cells, side, first, length in zip(bits.shape, size, (y, x), (height, width), strict=True):
        edges = np.clip(np.arange(cells + 1) / cells * side, first, first + length)
        shares.append(np.diff(edges) * cells / side)
    return float(shares[0] @ bits.astype(np.float64) @ shares[1]) / shifts**2
