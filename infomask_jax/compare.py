"""Scored runs side by side: the same scores on the same images, their paired differences, settings and curves."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infomask_jax import datasets, report
from infomask_jax.config import FREE, leaves
from infomask_jax.evaluate import bootstrap, localization, ranking
from infomask_jax.evaluate.bootstrap import Estimate
from infomask_jax.evaluate.localization import Prediction, Thresholds
from infomask_jax.evaluate.truth import finding_truth, patients_of
from infomask_jax.inference import read_examples
from infomask_jax.localize import of_finding
from infomask_jax.report import comparison
from infomask_jax.run import Run
from infomask_jax.system import write_all

METRICS = ("pxap", "pointing_game", "mean_iou", "max_box_acc_v2", "acc_iou/0.1", "acc_iou/0.3", "acc_iou/0.5", "auroc")
WITHOUT_EFFECT = {*FREE} - {"map_shifts"}  # settings, or groups of them
RESAMPLES = 1000


class Scored(NamedTuple):
    """What is stored of a run's scored split."""

    scores: dict  # eval/SPLIT.json
    place: dict[str, int]  # of each image in what follows
    method: str  # of its drawn map
    maps: np.ndarray  # [N, h, w, M]
    probabilities: np.ndarray  # [N, K], findings in the order of the scores


def compare(folders: Sequence[Path], out: Path, split: str = "test") -> dict | None:
    """Compare scored runs, or show the table of an ablation, which is one folder: print tables, write compare.json and
    compare.md (of runs) and compare.html into `out`. Returns what the JSON holds.

    Runs are compared on the images of `split` that all of them have scored, each by its drawn map cut where it was
    scored; so its scores are those of its own eval/SPLIT.json where the images are the same. ValueError for fewer than
    two runs, or runs without an image or a finding in common; FileNotFoundError for what is not scored.
    """
    folders = [Path(folder) for folder in folders]
    tables = [folder / "ablations.json" for folder in folders if (folder / "ablations.json").exists()]
    if tables and len(folders) > 1:
        raise ValueError(
            f"{tables[0].parent} is the folder of an ablation, which is shown alone: give it without others"
        )
    if tables:
        files = {out / "compare.html": comparison.ablation_page(tables[0])}
        print("written:", *write_all(files), sep="\n  ")
        return None
    if len(folders) < 2:
        raise ValueError(f"expected two or more runs, or the folder of an ablation, found {len(folders)}")
    runs = dict(zip(_names(folders), map(Run.open, folders), strict=True))
    result = {"split": split} | _measured(runs, split)
    result["settings"] = _settings(runs)
    title, sheets, lines = comparison.document(result)
    report.console().print(report.screen(title, sheets, lines))
    files = {
        out / "compare.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        out / "compare.md": report.as_markdown(title, sheets, lines),
        out / "compare.html": comparison.page(
            result, {name: run.folder / "metrics.jsonl" for name, run in runs.items()}
        ),
    }
    print("written:", *write_all(files), sep="\n  ")
    return result


def _names(folders: list[Path]) -> list[str]:
    """The last part of each path, and as many before it as tell them apart. ValueError for one given twice."""
    paths = [folder.absolute() for folder in folders]
    if twice := [str(folder) for folder, path in zip(folders, paths, strict=True) if paths.count(path) > 1]:
        raise ValueError(f"expected each run once, found {twice[0]} twice")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if max(Counter(names).values()) == 1:
            break
    return names


def _scored(run: Run, split: str) -> Scored:
    scores = report.read_scores(run.folder / "eval" / f"{split}.json")
    ids, maps = report.read_maps(run.folder / "maps" / f"{split}.npz")
    findings, method = [*scores["classification"]], report.drawn_method(maps)
    p = report.read_probabilities(run.folder / "predictions" / f"{split}.csv", findings, ids)
    return Scored(scores, {image: i for i, image in enumerate(ids)}, method, maps[method], p)


def _measured(runs: dict[str, Run], split: str) -> dict:
    """{"dataset", "images": n, "findings": {finding: {"images": n, "runs": {run: {metric: V}}, "differences": {run:
    {metric: V of the run minus the first}}}}}."""
    data = datasets.of_run(next(iter(runs.values())).config)
    known = {name: _scored(run, split) for name, run in runs.items()}
    findings = [f for f in data.findings if all(f in one.scores["localization"] for one in known.values())]
    if not findings:
        found = "; ".join(f"{name}: {', '.join(one.scores['localization']) or 'none'}" for name, one in known.items())
        raise ValueError(f"expected runs that localize a finding in common, found {found}")
    examples = read_examples(data, split, findings, brightness=False)
    kept = [i for i, image in enumerate(examples["image_id"]) if all(image in one.place for one in known.values())]
    if not kept:
        raise ValueError(f"expected runs that have scored an image of {data.name}/{split} in common, found none")
    examples = {key: [values[i] for i in kept] for key, values in examples.items()}
    patients, out = patients_of(examples), {}
    for k, finding in enumerate(findings):
        found = {name: _estimates(one, examples, patients, k, finding) for name, one in known.items()}
        if not all(found.values()):
            raise ValueError(f"expected images with boxes of {finding} that all runs have scored, found none")
        first = next(iter(found.values()))
        out[finding] = {
            "images": first["pxap"].n,
            "runs": {n: {m: bootstrap.as_json(own[m]) for m in METRICS} for n, own in found.items()},
            "differences": {
                name: {m: bootstrap.as_json(bootstrap.difference(own[m], first[m])) for m in METRICS}
                for name, own in [*found.items()][1:]
            },
        }
    return {"dataset": data.name, "images": len(kept), "findings": out}


def _estimates(one: Scored, examples: dict, patients: np.ndarray, k: int, finding: str) -> dict[str, Estimate]:
    """METRICS of a run for finding k of the examples; none where no image has a box of it."""
    truth, labels = finding_truth(examples, k, one.scores["frame"]), np.array(examples["labels"])[:, k]
    if not len(truth.scored):
        return {}
    order, column = [one.place[image] for image in examples["image_id"]], [*one.scores["classification"]].index(finding)
    over = {over: patients[getattr(truth, over)] for over in ("scored", "boxed", "listed")}
    weights = {over: bootstrap.patient_weights(those, RESAMPLES) for over, those in over.items()}
    cut = Thresholds(region=one.scores["localization"][finding][one.method]["threshold"]["value"])
    heat = Prediction(of_finding(one.maps, column)[order])
    scores, _ = localization.measure(heat, truth, examples["image_id"], cut, chosen=())
    known = labels != -1
    areas = ranking.areas(
        (labels[known] == 1).astype(int),
        one.probabilities[order, column][known],
        *bootstrap.patient_weights(patients[known], RESAMPLES),
    )
    return localization.estimates(scores, weights) | {"auroc": areas[0]}


def _settings(runs: dict[str, Run]) -> dict[str, dict]:
    """{setting: {run: value}} of those that are not the same in all runs."""
    values = {name: {setting: value for setting, _, value in leaves(run.config)} for name, run in runs.items()}
    steps = {name: run.steps for name, run in runs.items()}
    found = {"trained for": steps} if any("best_step" in run.manifest for run in runs.values()) else {}
    for setting in next(iter(values.values())):
        own = {name: those[setting] for name, those in values.items()}
        if setting.split(".")[0] not in WITHOUT_EFFECT and len({*own.values()}) > 1:
            found[setting] = own
    return found
