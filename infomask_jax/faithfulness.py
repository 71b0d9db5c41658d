"""Deletion and insertion of a run's maps, each held against the model that it is of."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
import scipy.special

from infomask_jax import pipeline
from infomask_jax.evaluate import bootstrap, controls, deletion_insertion
from infomask_jax.localize import of_finding
from infomask_jax.model import build
from infomask_jax.run import Run


def measure(run: Run, source: Sequence, findings: Sequence[str], examples: dict, maps: dict) -> dict:
    """{finding: {method: {"deletion": V, "insertion": V, "curves"}}} over the positive images, for every map of a run;
    random maps, as a control, against the run itself.

    Args:
      source: stored examples of the split. examples, maps: as `evaluate.score` takes them, maps [N, h, w, M].
    """
    out, labels, seed = {name: {} for name in findings}, examples["labels"], run.config.seed
    needed, kept = np.flatnonzero((labels == 1).any(axis=1)), []
    for batch in pipeline.eval_batches(source, run.config.data.image_size, 32):
        kept.append(batch["image"][np.isin(batch["index"], needed), ..., 0])
    images, random = np.concatenate(kept), controls.random_maps(len(labels), seed)[..., None]
    for one in filter(None, (run, run.plain)):
        of_plain = one is not run
        # CAM is of the plain classifier, which a plain run is itself.
        own = {m: array for m, array in maps.items() if run.plain is None or (m == "cam") == of_plain}
        for k, name in enumerate(findings):
            positive = np.flatnonzero(labels[:, k] == 1)
            if not len(positive):
                continue
            score, own_images = _classifier(one, k), images[np.searchsorted(needed, positive)]
            weights = bootstrap.patient_weights(np.array(examples["patient_id"])[positive], seed=seed)
            for method, array in (own if of_plain else {**own, "control/random": random}).items():
                areas, curves = deletion_insertion(score, own_images, of_finding(array, k)[positive], seed)
                found = {which: bootstrap.as_json(bootstrap.estimate(a, *weights)) for which, a in areas.items()}
                found["curves"] = {which: curve.round(6).tolist() for which, curve in curves.items()}
                out[name][method] = found
    return out


def _classifier(run: Run, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function of standardised images [n, H, W] that returns the probabilities [n] of finding k."""
    model, size = build(run.config.model, len(run.findings)), run.config.data.batch_size
    forward = jax.jit(lambda images: model.apply({"params": run.params}, images, train=False)[0][:, k])

    def probabilities(images: np.ndarray) -> np.ndarray:
        padding = np.repeat(images[-1:], -len(images) % size, axis=0)
        images = np.concatenate([images, padding])[..., None]
        logits = [jax.device_get(forward(images[i : i + size])) for i in range(0, len(images), size)]
        return scipy.special.expit(np.concatenate(logits)[: len(images) - len(padding)].astype(np.float64))

    return probabilities
