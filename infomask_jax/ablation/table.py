"""The table of an ablation: every map and classifier scored on the same images, and paired with the default."""

import numpy as np
import scipy.special

from infomask_jax.ablation.predictions import Split
from infomask_jax.ablation.variants import Variant
from infomask_jax.config import Config
from infomask_jax.evaluate import bootstrap, pixels, ranking, scoring
from infomask_jax.evaluate.bootstrap import Estimate, average
from infomask_jax.evaluate.truth import patients_of

RESAMPLES = 1000
MAP_SCORES, MODEL_SCORES = ("pxap", "pointing_game", "mean_iou"), ("auroc", "nll", "rate_z", "rate_m")


def shown(v: Variant, config: Config, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The maps of a run that are rows of the table, by row: the mask, of the default its bits and evidence, too; the
    evidence of the others, with the bits of a bottleneck and the weights of attention pooling.

    `probability` is that evidence through a sigmoid, as a mask is: it saturates where a cell is sure, so that each
    image's min-max (prepare_maps) changes little. A mask that beats the evidence but not this wins by its range alone.
    Evidence whose mean is pooled, weighed or not, is no logit of a cell and has no such row.
    """
    if v.method:
        return {v.name: maps[v.method]}
    if config.model.kind == "infomask":
        rows = {v.name: maps["infomask"]}
        both = {"default/bits": maps["infomask_bits"], "default/evidence": maps["infomask_evidence"]}
        return rows | both if v.name == "default" else rows
    evidence = maps["vib_evidence" if config.model.kind == "vib" else "cam"]
    if config.model.kind == "vib":
        rows = {f"{v.name}/bits": maps["vib_bits"], f"{v.name}/evidence": evidence}
    elif "attention" in maps:
        rows = {f"{v.name}/weights": maps["attention"], f"{v.name}/evidence": evidence}
    else:
        rows = {v.name: evidence}
    if config.model.pooling != "mean" and "attention" not in maps:
        rows[f"{v.name}/probability"] = scipy.special.expit(np.asarray(evidence, np.float32))
    return rows


def of_finding(maps: np.ndarray, k: int) -> np.ndarray:
    """Maps of finding k [N, h, w], of [N, h, w, K] or, shared by all, [N, h, w]."""
    return maps if maps.ndim == 3 else maps[..., k]


def resampled_patients(split: Split, k: int) -> dict[str, tuple]:
    """Resamples of the patients of the images that each kind of score of finding k is over; the same for every row."""
    patients, known = patients_of(split.examples), split.examples["labels"][:, k] != -1
    over = {"scored": patients[split.truths[k].scored], "known": patients[known], "all": patients}
    return {name: bootstrap.patient_weights(those, RESAMPLES) for name, those in over.items()}


def add_rows(table: dict, v: Variant, config: Config, predicted: list, splits: list[Split], k: int, weights) -> None:
    """Score the maps of one run (`predicted`: of each split) and add them to the table of finding k.

    A row: {"method", "group", "changes", "threshold": [of each seed], "seeds": [{metric: Estimate} of each seed]}.
    """
    if v.method:
        model = {name: table["cam"]["seeds"][-1][name] for name in MODEL_SCORES}
    else:
        model = model_scores(predicted[0][1], splits[0].examples["labels"][:, k], k, weights)
    maps = [shown(v, config, arrays) for arrays, _ in predicted]
    for name in maps[0]:
        pair = [scoring.Prediction(of_finding(m[name], k)) for m in maps]
        _add(table, name, v.group, v.changes, (*pair, None)[:2], model, splits, k, weights)


def merge(table: dict, rows: dict) -> None:
    """Add the rows of one run, as `add_rows` makes them, to the table of a finding."""
    for name, row in rows.items():
        own = table.setdefault(name, row | {"threshold": [], "seeds": []})
        own["threshold"] += row["threshold"]
        own["seeds"] += row["seeds"]


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
    truth = splits[0].truths[k]
    threshold = None if pair[0].maps is None else scoring.FIXED_THRESHOLD
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


def model_scores(numbers: dict, labels: np.ndarray, k: int, weights: dict) -> dict[str, Estimate]:
    """MODEL_SCORES of finding k from the `numbers` of a run and labels [N]: AUROC, NLL (nats an image with a known
    label), rates (bits an image)."""
    known = labels != -1
    y, logits = labels[known] == 1, np.array(numbers["logits"])[known, k]
    out = {"nll": bootstrap.estimate(average(np.logaddexp(0, np.where(y, -logits, logits))), *weights["known"])}
    out["auroc"] = ranking.areas(y, logits, *weights["known"])[0]
    for name, rates in zip(("rate_z", "rate_m"), np.array(numbers["rates"], float).T, strict=True):
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
            pairs = [
                bootstrap.difference(a[metric], b) for a, b in zip(default["seeds"], _for_each(own, seeds), strict=True)
            ]
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


def _for_each(own: list[Estimate], seeds: int) -> list[Estimate]:
    """What does not depend on the seed, a control, stands for every seed."""
    return own * seeds if len(own) == 1 else own
