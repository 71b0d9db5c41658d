"""One run from data to pictures: train InfoMask and the plain classifier, score both, draw figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.special

from infomask_jax import datasets, evaluate, faithfulness, localize, parallel, pipeline, pixels, report, weights
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared
from infomask_jax.inference import Predicted, joined, predict, read_examples, save_maps
from infomask_jax.localize import of_finding
from infomask_jax.presets import CAM, changed
from infomask_jax.run import BASELINE, Run, claim, each_fold, saved, several
from infomask_jax.system import NUMBER, read_json_lines, write_all, write_json
from infomask_jax.train import train


def run(config: Config) -> None:
    """Train (or resume), score the test split, draw the figures and print the tables. Of several folds, each is
    scored by a model of its own, and what they say is scored together."""
    for one in each_fold(config):
        if config.model.init and not saved(one.workdir):
            weights.find(config.model)
    data = datasets.of_run(config)
    if several(config) and (Path(config.workdir) / "config.json").exists():  # of one fold, or of other settings
        with parallel.main_first("claim"), claim(config, data):
            pass
    data.source("test")  # that there is one is known before the training
    for one in each_fold(config):
        part = datasets.of_run(one)
        train(one, part)
        if config.baseline and config.model.kind in ("infomask", "vib"):
            train(baseline_config(one), part)
    if several(config):  # of whose runs each has claimed its own folder
        with parallel.main_first("claim"), claim(config, data):
            pass
    evaluate_run(config.workdir, data, "test")


def baseline_config(config: Config) -> Config:
    """The plain mean-pooled classifier, CAM's home: same encoder, data, steps and seed, and the standard forward pass
    of one view and all cells. experiments/README.md has plain classifiers with the recipe's."""
    return changed(config, CAM | {"workdir": Path(config.workdir) / BASELINE, "baseline": False})


def evaluate_run(
    folder: Path, data: Prepared, split: str, with_faithfulness: bool = False, renamed: dict[str, str] | None = None
) -> Path:
    """Score a trained run (and its plain classifier, if it has one) on a split of prepared data.

    Writes eval/SPLIT.json (its tables as .md and .tex, scores of each image as .csv), maps/SPLIT.npz, boxes/SPLIT.json,
    predictions/SPLIT.csv, figures/ and report.html into the folder of `Run.place`, and returns it; prints the tables.
    Thresholds are tuned on the data's `val` split. ValueError if the data lacks a finding that the run predicts.

    with_faithfulness: also measure deletion and insertion (42 forward passes an image and method). renamed: findings of
    the run that the data names otherwise.
    """
    run, console = Run.open(folder), report.console()
    output, findings = run.place(data, split, renamed)
    if with_faithfulness and run.folds:
        raise ValueError(f"{folder} is a folder of runs, one a fold: measure faithfulness of one, {folder}/fold-0")
    examples, maps = predicted_examples(run, data, split, findings)
    val, val_maps = None, None
    if "val" in data.splits and split != "val":
        val, val_maps = predicted_examples(run, data, "val", findings)
    with parallel.main_alone("scored") as alone:  # every process has helped to predict; one of them writes
        if not alone:
            return output
        console.print(f"scoring {len(examples['image_id'])} images of {data.name}/{split}")
        frame, seed = run.config.data.image_size, run.config.seed
        options = {"frame": frame, "val": val, "val_maps": val_maps, "dataset": data.name, "split": split, "seed": seed}
        scores, per_image = evaluate.score(findings, examples, maps, **options)
        if "plain_probabilities" in examples:
            plain = {**examples, "probabilities": examples["plain_probabilities"]}
            scores["classification_plain"] = {
                name: evaluate.classification_scores(plain, k, seed) for k, name in enumerate(findings)
            }
        if with_faithfulness:
            source = data.source(split, pipeline.FIELDS)
            scores["faithfulness"] = faithfulness.measure(run, source, findings, examples, maps)
        scores["verdict"] = report.verdict(scores, maps, examples["labels"], *trained(run))
        written = report.write_scores(output / "eval" / split, scores, per_image)
        detections = detect(findings, examples, maps, scores)
        own = {"findings": np.array(findings), "probability": examples["probabilities"]}
        save_maps(output / "maps" / f"{split}.npz", examples["image_id"], maps | own)
        write_json(output / "boxes" / f"{split}.json", detections)
        write_all({output / "boxes" / f"{split}.csv": report.boxes_table(detections)})
        report.write_predictions(output / "predictions" / f"{split}.csv", findings, examples)
        files = {"maps": "npz", "boxes": "json", "predictions": "csv"}
        written += [output / name / f"{split}.{ending}" for name, ending in files.items()]
        written += draw(run, output, data, scores, examples, maps, detections)
        report.print_scores(scores, console)
        console.print("written:", *map(str, written), sep="\n  ", soft_wrap=True)
        console.print("In short:", *scores["verdict"], sep="\n  ", soft_wrap=True)
    return output


def trained(run: Run) -> tuple[list[dict], float | None]:
    """Rows of a run's metrics.jsonl, and how often it saw each training film; nothing of several folds, or where
    neither is known."""
    path, films = run.folder / "metrics.jsonl", run.manifest.get("training_films")
    seen = run.config.train.steps * run.config.data.batch_size
    shape = {"step": int, "val_nll?": NUMBER, "val_auroc?": NUMBER}
    rows = read_json_lines(path, shape, report.HINT) if path.exists() else []
    return rows, seen / films if films and not run.folds else None


def predicted_examples(run: Run, data: Prepared, split: str, findings: Sequence[str]) -> tuple[dict, dict]:
    """What `evaluate.score` takes, of one split: examples as arrays, and the maps [N, h, w, M] of the run's models."""
    examples, maps = read_examples(data, split, findings), {}
    examples["probabilities_of"] = {}
    for name, found in predictions(run, data, split).items():
        probabilities = scipy.special.expit(found.logits.astype(np.float64))
        examples["plain_probabilities" if name == BASELINE else "probabilities"] = probabilities
        examples["probabilities_of"] |= dict.fromkeys(found.maps, probabilities)
        maps |= found.maps
    return examples, maps


def predictions(run: Run, data: Prepared, split: str) -> dict[str, Predicted]:
    """Of a run, by "", and of its plain classifier, by `BASELINE`; of folds each image by the run that has not seen
    its patient."""
    if run.folds:
        if run.fingerprint != data.fingerprint:
            first = run.folds[0].folder
            raise ValueError(f"{run.folder} is a folder of {len(run.folds)} runs: on other data score one, {first}")
        count = len(run.folds)
        parts = [predictions(one, datasets.fold(data.whole, count, k), split) for k, one in enumerate(run.folds)]
        if len({len(part) for part in parts}) > 1:
            told = f"only some folds have a {BASELINE} classifier: run the training command again"
            raise ValueError(f"{run.folder}: {told}")
        return {name: joined([part[name] for part in parts]) for name in parts[0]}
    source = data.source(split, pipeline.FIELDS)
    models = {name: one for name, one in (("", run), (BASELINE, run.plain)) if one}
    return {name: predict(one.config, one.params, source, len(run.findings)) for name, one in models.items()}


def detect(findings: Sequence[str], examples: dict, maps: dict, scores: dict) -> list[dict]:
    """boxes/SPLIT.json: COCO detections of the run's own map, at the scored threshold; images are numbered from 0 in
    the order of maps/SPLIT.npz."""
    method, frame, found = report.drawn_method(maps), (scores["frame"],) * 2, []
    for k, finding in enumerate(findings):
        if finding in scores["localization"]:
            threshold = scores["localization"][finding][method]["threshold"]["value"]
            where = examples["image_id"], of_finding(maps[method], k), examples["sizes"]
            probabilities = examples["probabilities"][:, k]
            found += localize.detections(*where, threshold, frame, k, finding, probabilities)
    return found


def draw(run: Run, output: Path, data: Prepared, scores: dict, examples: dict, maps: dict, detections) -> list[Path]:
    """Write figures/, films/SPLIT.json and report.html of a scored split into `output`; return the paths. Arguments as
    `report.draw`."""
    curves = {"InfoMask": run.folder / "metrics.jsonl", "plain": run.folder / BASELINE / "metrics.jsonl"}
    curves = {name: path for name, path in curves.items() if path.exists()}
    source, size = data.source(scores["split"], ("image",)), run.config.data.image_size

    def film_of(i: int) -> np.ndarray:
        return pixels.decode_gray(source[i]["image"])

    drawn = report.draw(output, scores, examples, maps, detections, lambda i: pixels.fit(film_of(i), size), curves)
    films = report.film_data(scores, examples, maps, film_of, size // run.config.model.stride)
    drawn[output / "films" / f"{scores['split']}.json"] = films
    return [*write_all(drawn), report.write_page(output, run, data)]


def redraw(folder: Path, split: str) -> list[Path]:
    """Print the tables of a scored run, redraw its figures and page. FileNotFoundError if the split was not scored."""
    run, path = Run.open(folder), Path(folder) / "eval" / f"{split}.json"
    data, scores = datasets.of_run(run.config), report.read_scores(path)
    with report.shown(path):
        report.print_scores(scores, report.console())
    findings, known = list(scores["classification"]), ", ".join(data.findings)
    if unknown := {*findings, *scores["localization"]} - {*data.findings}:
        what = f"expected some of {known}, found {', '.join(sorted(unknown))}"
        raise ValueError(f"{path}: localization: {what}; {report.HINT}")
    detections = report.read_boxes(run.folder / "boxes" / f"{split}.json")
    ids, maps = report.read_maps(run.folder / "maps" / f"{split}.npz")
    probabilities = report.read_probabilities(run.folder / "predictions" / f"{split}.csv", findings, ids)
    examples = read_examples(data, split, findings, brightness=False) | {"probabilities": probabilities}
    if ids != examples["image_id"]:
        what = f"{run.folder / 'maps' / f'{split}.npz'} is of other images than {data.directory}"
        raise ValueError(f"{what}: {report.HINT}")
    paths = draw(run, run.folder, data, scores, examples, maps, detections)
    print("written:", *paths, sep="\n  ")
    return paths
