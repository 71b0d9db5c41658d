"""The table of an ablation: every map and classifier scored on the same images, and paired with the default."""

from typing import Any, NamedTuple

import numpy as np
import scipy.special

from infomask_jax.ablation.predictions import Predicted, Split
from infomask_jax.ablation.variants import Variant
from infomask_jax.config import ModelConfig
from infomask_jax.evaluate import bootstrap, pixels, ranking, scoring
from infomask_jax.evaluate.bootstrap import Estimate, average
from infomask_jax.evaluate.truth import patients_of
from infomask_jax.localize import of_finding

RESAMPLES = 1000
MAP_SCORES, MODEL_SCORES = ("pxap", "pointing_game", "mean_iou"), ("auroc", "nll", "rate_z", "rate_m")
SHOWN = {  # of each kind of model the ends of its rows' names, and their maps
    "infomask": {"": "infomask"},
    "vib": {"/bits": "vib_bits", "/evidence": "vib_evidence"},
    "attention_mil": {"/weights": "attention", "/evidence": "cam"},
    "plain": {"": "cam"},
}
SHOWN_OF_DEFAULT = SHOWN["infomask"] | {"/bits": "infomask_bits", "/evidence": "infomask_evidence"}


class Table(NamedTuple):
    """Of one finding."""

    k: int  # the finding
    splits: list[Split]  # the scored one, and `val` if there is one
    weights: dict[str, tuple]  # resamples of the patients of the images that each kind of score is over
    rows: dict[str, dict[str, Any]]  # "method", "group", "changes"; of each seed "threshold" and "seeds", its Estimates


def tables(splits: list[Split]) -> list[Table]:
    """An empty one for every finding that has a scored image."""
    found, patients = [], patients_of(splits[0].examples)
    for k, truth in enumerate(splits[0].truths):
        known = splits[0].examples["labels"][:, k] != -1
        over = {"scored": patients[truth.scored], "known": patients[known], "all": patients}
        if len(truth.scored):
            weights = {name: bootstrap.patient_weights(those, RESAMPLES) for name, those in over.items()}
            found.append(Table(k, splits, weights, {}))
    return found


def shown(v: Variant, model: ModelConfig, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps of a run that are rows of the table, by row, see SHOWN.

    `probability` is evidence through a sigmoid, as a mask is: a mask that beats the evidence but not this wins by its
    range alone. Evidence whose mean is pooled, weighed or not, is no logit of a cell and has no such row.
    """
    if v.method:
        return {v.name: maps[v.method]}
    names = SHOWN_OF_DEFAULT if v.name == "default" else SHOWN[model.kind]
    rows = {v.name + end: maps[method] for end, method in names.items()}
    if model.kind in ("vib", "plain") and model.pooling != "mean":
        evidence = maps["vib_evidence" if model.kind == "vib" else "cam"]
        rows[f"{v.name}/probability"] = scipy.special.expit(np.asarray(evidence, np.float32))
    return rows


def add_run(table: Table, v: Variant, maps: list[dict], of_run: Predicted) -> None:
    """Score one run and add its rows. maps: what is `shown` of each split; of_run: of the scored one."""
    if v.method:
        model = {name: table.rows["cam"]["seeds"][-1][name] for name in MODEL_SCORES}
    else:
        model = model_scores(table, of_run)
    for name in maps[0]:
        pair = [scoring.Prediction(of_finding(m[name], table.k)) for m in maps]
        _add(table, name, v.group, v.changes, (*pair, None)[:2], model)


def add_controls(table: Table) -> None:
    """Add the controls, which no seed changes."""
    own, truth = table.splits[0].examples, table.splits[0].truths[table.k]
    tuned = [(val.examples, val.truths[table.k]) for val in table.splits[1:] if len(val.truths[table.k].scored)]
    for name, pair in scoring.predictions({}, {}, own, table.k, truth, *(tuned or [(None, None)])[0], 0):
        _add(table, name, "controls", {}, pair, {})


def _add(table: Table, name: str, group: str, changes: dict, pair: tuple, model: dict[str, Estimate]) -> None:
    """Add MAP_SCORES of a prediction, and `model`, those of its classifier. The threshold is the best on `val`, .5
    where nothing can be tuned there, None of boxes. pair: the predictions of both splits, the second may be None."""
    threshold = None if pair[0].maps is None else scoring.FIXED_THRESHOLD
    truths = [split.truths[table.k] for split in table.splits]
    frame, names = truths[0].mask.shape[1], [split.examples["image_id"] for split in table.splits]
    if pair[1] is not None and len(truths[1].scored):
        prepared = pair[1].prepared(truths[1].scored, frame, names[1])
        threshold = pixels.tune_threshold(pixels.iou_curve(prepared, truths[1].mask))
    prepared, mask = pair[0].prepared(truths[0].scored, frame, names[0]), truths[0].mask
    scores = {
        "pxap": pixels.pxap(prepared, mask),
        "pointing_game": average(pixels.pointing_game(prepared, mask)),
        "mean_iou": average(pixels.region_overlap(prepared, mask, threshold or 0.5)[0]),  # boxes, drawn: 0 and 1
    }
    new = {"method": name, "group": group, "changes": changes, "threshold": [], "seeds": []}
    row = table.rows.setdefault(name, new)
    row["threshold"].append(threshold)
    row["seeds"].append({n: bootstrap.estimate(s, *table.weights["scored"]) for n, s in scores.items()} | model)


def model_scores(table: Table, predicted: Predicted) -> dict[str, Estimate]:
    """MODEL_SCORES of a run: AUROC, NLL (nats an image with a known label), rates (bits an image)."""
    labels, weights = table.splits[0].examples["labels"][:, table.k], table.weights
    known = labels != -1
    y, logits = labels[known] == 1, np.asarray(predicted.logits, float)[known, table.k]
    out = {"nll": bootstrap.estimate(average(np.logaddexp(0, np.where(y, -logits, logits))), *weights["known"])}
    out["auroc"] = ranking.areas(y, logits, *weights["known"])[0]
    for name, rates in zip(("rate_z", "rate_m"), np.asarray(predicted.rates, float).T, strict=True):
        out[name] = bootstrap.estimate(average(rates), *weights["all"])
    return out


def as_row(row: dict, default: dict, seeds: int) -> dict:
    """A row of the JSON: mean, sd, value of each seed, and the paired difference default - row with its interval."""
    out = {key: row[key] for key in ("method", "group", "changes", "threshold")} | {"scores": {}, "default_minus": {}}
    for metric in (*MAP_SCORES, *MODEL_SCORES):
        own = [seed[metric] for seed in row["seeds"] if metric in seed]
        if not own or not np.isfinite(values := np.array([e.value for e in own])).all():
            continue
        out["scores"][metric] = {
            "mean": round(float(values.mean()), 6),
            "sd": round(float(values.std(ddof=1)), 6) if len(values) > 1 else None,
            "by_seed": [round(float(value), 6) for value in values],
        }
        if row is not default:
            own = own * seeds if len(own) == 1 else own  # a control, which no seed changes, stands for every seed
            pairs = [bootstrap.difference(a[metric], b) for a, b in zip(default["seeds"], own, strict=True)]
            out["default_minus"][metric] = bootstrap.as_json(over_seeds(pairs))
    return out


def over_seeds(estimates: list[Estimate]) -> Estimate:
    """The mean over seeds of estimates on the same resamples of patients; its resamples draw seeds too, with
    replacement (hierarchical bootstrap)."""
    count, resamples = len(estimates), len(estimates[0].samples)
    mean, n = float(np.mean([e.value for e in estimates])), estimates[0].n
    if count == 2:
        return Estimate(mean, np.full(resamples, np.nan), n, "2 seeds: no interval")
    draws = np.random.default_rng([0, 1]).multinomial(count, np.full(count, 1 / count), size=resamples)
    samples = np.einsum("rs,sr->r", draws, np.stack([e.samples for e in estimates])) / count
    return Estimate(mean, samples, n)
