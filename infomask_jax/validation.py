"""The validation split during a training, on image labels alone: AUROC, NLL, the best step so far, a picture."""

import time
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.special import expit

from infomask_jax import checkpoint, parallel, pipeline, pixels
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.datasets.folds import Picked
from infomask_jax.evaluate.ranking import areas
from infomask_jax.inference import forward, predicted_batches
from infomask_jax.localize import normalise, of_finding
from infomask_jax.pipeline import TrainBatches
from infomask_jax.run import BEST, Run
from infomask_jax.system import write_json

PICTURED, FILMS = 4, 2000  # films that are pictured; that are scored at most


class Validation:
    """Scores the val split, of a larger one FILMS evenly spaced films, `machine.validations` times in a run; does
    nothing where there is none."""

    def __init__(self, config: Config, data: Prepared):
        self.config, self.findings, times = config, len(data.findings), config.machine.validations
        count = data.splits.get("val", 0) if times else 0
        places = np.linspace(0, count - 1, min(count, FILMS)).round().astype(int)

        def chosen(fields):
            return Picked([data.source("val", fields)], np.stack([0 * places, places], axis=1)) if count else ()

        self.source, labels = chosen(pipeline.FIELDS), chosen(("labels",))
        self.every = -(-config.train.steps // times) if len(self.source) else 0
        self.labels = np.array([labels[i]["labels"] for i in range(len(labels))])
        self.pictured = [*np.flatnonzero((self.labels == 1).any(axis=-1))[:PICTURED]] if self.every else []
        self.pass_of = forward(config.model, self.findings, 1)

    def due(self, step: int) -> bool:
        return bool(self.every) and (step % self.every == 0 or step == self.config.train.steps)

    def seconds_per_film(self, params: Any) -> float:
        """Of one pass, once it is compiled; NaN where there is nothing to measure it on."""
        batches, size = self._batches(params), self.config.data.batch_size
        if next(batches, None) is None:
            return np.nan
        started = time.perf_counter()
        films = sum(len(found.logits) for found in islice(batches, 2))
        return (time.perf_counter() - started) / films if films > size // 2 else np.nan

    def scores(self, params: Any) -> dict[str, float]:
        """{"val_auroc": mean over the findings that have both labels, "val_nll": nats an image, summed over findings,
        unweighted}; none of parameters that are not finite. Every process of several has to take part."""
        logits, self.maps, done = [], [], 0
        for found in self._batches(params):
            own = [i - done for i in self.pictured if done <= i < done + len(found.logits)]
            self.maps += [{method: maps[[j]] for method, maps in found.maps.items()} for j in own]  # no others are kept
            logits.append(found.logits)
            done += len(found.logits)
        self.logits = logits = np.concatenate(logits).astype(np.float64)
        if not np.isfinite(logits).all():
            return {}
        known, positive = self.labels >= 0, self.labels > 0
        nll = np.where(known, np.logaddexp(0, np.where(positive, -logits, logits)), 0).sum(axis=1).mean()
        once, own = np.ones((1, 1)), np.zeros(len(logits), int)
        each = []
        for k in range(self.findings):
            seen = known[:, k]
            each.append(areas(positive[seen, k].astype(int), expit(logits[seen, k]), once, own[seen])[0].value)
        found = {"val_auroc": float(np.nanmean(each))} if np.isfinite(each).any() else {}
        return found | {"val_nll": float(nll)}

    def picture(self) -> np.ndarray | None:
        """The first positive films, each beside the map of its first finding, as `scores` has found them: uint8
        [H, W, 3]; None without a positive film."""
        from infomask_jax.report import drawn_method, overlay  # draws with matplotlib, which not every run needs

        rows = []
        for i, maps in zip(self.pictured, self.maps, strict=True):
            film, k = pixels.decode_gray(self.source[i]["image"]), int(np.argmax(self.labels[i] == 1))
            method, p = drawn_method(maps), expit(self.logits[i, k])
            heat = of_finding(maps[method], k)[0].astype(np.float32)
            heat = heat if method == "infomask" else normalise(heat)
            png = overlay(pixels.as_panel(film)[::2, ::2], "", [(f"p = {p:.2f}", heat, [])])
            rows.append(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
        return np.concatenate(rows) if rows else None

    def _batches(self, params: Any):
        return predicted_batches(self.config, params, self.source, self.findings, self.pass_of, progress=False)


class Best:
    """RUN/best: the state of the step with the least `val_nll`, with config.json and manifest.json: a run of its own,
    which every command takes."""

    def __init__(self, workdir: Path, checkpoints: Any, rows: list[dict], step: int):
        """checkpoints: the run's own, whose writing this one waits for: of several processes, two managers that write
        at once take each other's barriers. rows: of metrics.jsonl up to `step`, from which the run goes on; what was
        kept of later steps goes."""
        self.workdir, self.others, self.checkpoints, self.least = workdir, checkpoints, None, np.inf
        if (workdir / BEST).exists():
            self.checkpoints = checkpoint.manager(workdir / BEST)
            for later in [kept for kept in self.checkpoints.all_steps() if kept > step]:
                self.checkpoints.delete(later)
            kept = self.checkpoints.latest_step()  # a better one of the log may be gone with the later ones
            self.least = next((row["val_nll"] for row in rows if row["step"] == kept and "val_nll" in row), np.inf)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.checkpoints:
            self.checkpoints.close()

    def keep(self, step: int, scores: dict[str, float], state: Any, batches: TrainBatches) -> None:
        """Save the state if it is the best one. Every process of several has to take part."""
        if not scores.get("val_nll", np.inf) < self.least:
            return
        self.least, self.checkpoints = scores["val_nll"], self.checkpoints or checkpoint.manager(self.workdir / BEST)
        checkpoint.wait(self.others)
        checkpoint.save(self.checkpoints, step, state, batches)
        checkpoint.wait(self.checkpoints)
        if parallel.is_main():
            run = Run.open(self.workdir)
            write_json(self.workdir / BEST / "manifest.json", run.manifest | {"best_step": step})
            write_json(self.workdir / BEST / "config.json", run.config.to_dict())
