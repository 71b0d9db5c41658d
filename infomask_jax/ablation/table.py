"""The table of an ablation: every map and classifier scored on the same images, and paired with the default."""

import numpy as np
import scipy.special

from infomask_jax.ablation.predictions import Predicted, Split
from infomask_jax.ablation.variants import Variant
from infomask_jax.evaluate import bootstrap, pixels, ranking, scoring
from infomask_jax.evaluate.bootstrap import Estimate, average
from infomask_jax.evaluate.truth import patients_of
from infomask_jax.localize import of_finding

RESAMPLES = 1000
MAP_SCORES, MODEL_SCORES = ("pxap", "pointing_game", "mean_iou"), ("auroc", "nll", "rate_z", "rate_m")


def shown(v: Variant, pooling: str, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps of a run that are rows of the table, by row: the mask, of the default its bits and evidence, too; the
    evidence of the others, with the bits of a bottleneck and the weights of attention pooling.

    `probability` is that evidence through a sigmoid, as a mask is: it saturates where a cell is sure, so that each
    image's min-max (prepare_maps) changes little. A mask that beats the evidence but not this wins by its range alone.
    Evidence whose mean is pooled, weighed or not, is no logit of a cell and has no such row.
    """
    name = v.name
    if v.method:
        return {name: maps[v.method]}
    if "infomask" in maps:
        both = {"default/bits": maps["infomask_bits"], "default/evidence": maps["infomask_evidence"]}
        return {name: maps["infomask"]} | (both if name == "default" else {})
    if "attention" in maps:
        return {f"{name}/weights": maps["attention"], f"{name}/evidence": maps["cam"]}
    if "vib_bits" in maps:
        evidence = maps["vib_evidence"]
        rows = {f"{name}/bits": maps["vib_bits"], f"{name}/evidence": evidence}
    else:
        evidence = maps["cam"]
        rows = {name: evidence}
    if pooling != "mean":
        rows[f"{name}/probability"] = scipy.special.expit(np.asarray(evidence, np.float32))
    return rows


def resampled_patients(split: Split, k: int) -> dict[str, tuple]:
    """Resamples of the patients of the images that each kind of score of finding k is over; the same for every row."""
    patients, known = patients_of(split.examples), split.examples["labels"][:, k] != -1
    over = {"scored": patients[split.truths[k].scored], "known": patients[known], "all": patients}
    return {name: bootstrap.patient_weights(those, RESAMPLES) for name, those in over.items()}


def add_run(table: dict, v: Variant, maps: list[dict], of_run: Predicted, splits: list[Split], k: int, weights) -> None:
    """Score one run and add its rows to the table of finding k, {row: {"method", "group", "changes", "threshold": [of
    each seed], "seeds": [{metric: Estimate} of each seed]}}.

    Args:
      maps: what is `shown` of each split. of_run: its logits and rates on the scored split.
      weights: see `resampled_patients`.
    """
    if v.method:
        model = {name: table["cam"]["seeds"][-1][name] for name in MODEL_SCORES}
    else:
        model = model_scores(of_run, splits[0].examples["labels"][:, k], k, weights)
    for name in maps[0]:
        pair = [scoring.Prediction(of_finding(m[name], k)) for m in maps]
        _add(table, name, v.group, v.changes, (*pair, None)[:2], model, splits, k, weights)


def add_controls(table: dict, splits: list[Split], k: int, weights: dict) -> None:
    """Add the controls of finding k, which no seed changes."""
    tuned = len(splits) > 1 and len(splits[1].truths[k].scored) > 0
    reference = (splits[1].examples, splits[1].truths[k]) if tuned else (None, None)
    for name, pair in scoring.predictions({}, {}, splits[0].examples, k, splits[0].truths[k], *reference, 0):
        _add(table, name, "controls", {}, pair, {}, splits, k, weights)


def _add(table, name, group, changes, pair, model, splits, k, weights) -> None:
    found, threshold = map_scores(pair, splits, k, weights["scored"])
    row = {"method": name, "group": group, "changes": changes, "threshold": [], "seeds": []}
    row = table.setdefault(name, row)
    row["threshold"].append(threshold)
    row["seeds"].append(found | model)


def map_scores(pair, splits: list[Split], k: int, weights) -> tuple[dict[str, Estimate], float | None]:
    """MAP_SCORES of a prediction of finding k on the scored split, and its threshold.

    The threshold is the best on validation, .5 where nothing can be tuned there, None of boxes. `pair`: the predictions
    of both splits, the second None without `val` and of boxes.
    """
    truth, threshold = splits[0].truths[k], None if pair[0].maps is None else scoring.FIXED_THRESHOLD
    frame = truth.mask.shape[1]
    if pair[1] is not None and len(splits[1].truths[k].scored):
        val = splits[1].truths[k]
        prepared = pair[1].prepared(val.scored, frame, splits[1].examples["image_id"])
        threshold = pixels.tune_threshold(pixels.iou_curve(prepared, val.mask))
    prepared = pair[0].prepared(truth.scored, frame, splits[0].examples["image_id"])
    scores = {
        "pxap": pixels.pxap(prepared, truth.mask),
        "pointing_game": average(pixels.pointing_game(prepared, truth.mask)),
        "mean_iou": average(pixels.region_overlap(prepared, truth.mask, threshold or 0.5)[0]),  # boxes, drawn: 0 and 1
    }
    return {name: bootstrap.estimate(s, *weights) for name, s in scores.items()}, threshold


def model_scores(predicted: Predicted, labels: np.ndarray, k: int, weights: dict) -> dict[str, Estimate]:
    """MODEL_SCORES of finding k from what a run predicts and labels [N]: AUROC, NLL (nats an image with a known label),
    rates (bits an image)."""
    known = labels != -1
    y, logits = labels[known] == 1, np.asarray(predicted.logits, float)[known, k]
    out = {"nll": bootstrap.estimate(average(np.logaddexp(0, np.where(y, -logits, logits))), *weights["known"])}
    out["auroc"] = Estimate(np.nan, np.full(RESAMPLES, np.nan), len(y), "one class only")
    if 0 < y.sum() < len(y):
        samples = ranking.resampled_classification(y, logits, *weights["known"])[0]
        out["auroc"] = Estimate(ranking.classification(y, logits)[0], samples, len(y))
    for name, rates in zip(("rate_z", "rate_m"), np.asarray(predicted.rates, float).T, strict=True):
        out[name] = bootstrap.estimate(average(rates), *weights["all"])
    return out


def as_row(row: dict, default: dict, seeds: int) -> dict:
    """A row of the JSON: mean, sd and value of each seed, and the paired difference default - row with its interval."""
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
    """The mean over seeds of estimates on the same resamples of patients.

    Its resamples draw seeds too, with replacement (hierarchical bootstrap); of one seed they are the patients' alone.
    """
    count, resamples = len(estimates), len(estimates[0].samples)
    draws = np.random.default_rng([0, 1]).multinomial(count, np.full(count, 1 / count), size=resamples)
    samples = np.einsum("rs,sr->r", draws, np.stack([e.samples for e in estimates])) / count
    return Estimate(float(np.mean([e.value for e in estimates])), samples, estimates[0].n)
