"""One run from data to pictures: train InfoMask and the plain classifier, score both, draw figures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import scipy.special
from rich.progress import track

from infomask_jax import checkpoint, datasets, evaluate, localize, manifest, parallel, pipeline, report, weights
from infomask_jax.config import Config
from infomask_jax.cross_validation import each_fold, joined, several
from infomask_jax.datasets import Prepared
from infomask_jax.evaluate import bootstrap, controls
from infomask_jax.export import make_predict
from infomask_jax.manifest import write_json
from infomask_jax.model import build
from infomask_jax.presets import CAM, changed
from infomask_jax.report import stored
from infomask_jax.system import write_all
from infomask_jax.train import train

BASELINE = "plain"  # sub-folder of a run that holds its plain classifier


def run(config: Config) -> None:
    """Train (or resume), score the test split, draw the figures and print the tables. Of several folds, each is
    scored by a model of its own, and what they say is scored together."""
    for one in each_fold(config):
        if config.model.init and not manifest.saved(one.workdir):
            weights.find(config.model)
    data = datasets.of_run(config)
    if several(config) and (Path(config.workdir) / "config.json").exists():  # of one fold, or of other settings
        with parallel.main_first("claim"), manifest.claim(config, data):
            pass
    data.source("test")  # that there is one is known before the training
    for one in each_fold(config):
        part = datasets.of_run(one)
        train(one, part)
        if config.baseline and config.model.kind in ("infomask", "vib"):
            train(baseline_config(one), part)
    if several(config):  # of whose runs each has claimed its own folder
        with parallel.main_first("claim"), manifest.claim(config, data):
            pass
    evaluate_run(config.workdir, data, "test")


def baseline_config(config: Config) -> Config:
    """The plain mean-pooled classifier, CAM's home: same encoder, data, steps and seed, and the standard forward pass.

    Standard: one view, all cells. The encoder's small field harms CAM; experiments/README.md has plain classifiers with
    the recipe's views and cells.
    """
    return changed(config, CAM | {"workdir": Path(config.workdir) / BASELINE, "baseline": False})


def evaluate_run(
    workdir: Path, data: Prepared, split: str, faithfulness: bool = False, renamed: dict[str, str] | None = None
) -> Path:
    """Score a trained run (and its plain classifier, if it has one) on a split of prepared data.

    Writes eval/SPLIT.json (its tables as .md and .tex, scores of each image as .csv), maps/SPLIT.npz, boxes/SPLIT.json,
    figures/ and report.html into the run, or into its sub-folder on-NAME-FINGERPRINT if the data is not what the run
    was trained on; prints the tables; returns that folder. Thresholds are tuned on the data's `val` split. ValueError
    if the data lacks a finding that the run predicts.

    Args:
      faithfulness: also measure deletion and insertion (42 forward passes an image and method).
      renamed: findings of the run that the data names otherwise.
    """
    workdir = Path(workdir)
    output, findings = place(workdir, data, split, renamed)
    if faithfulness and several(Config.load(workdir)):
        raise ValueError(f"{workdir} is a folder of runs, one a fold: measure faithfulness of one, {workdir}/fold-0")
    examples, maps = predict_split(workdir, data, split, findings)
    val, val_maps = None, None
    if "val" in data.splits and split != "val":
        val, val_maps = predict_split(workdir, data, "val", findings)
    config, console = Config.load(workdir), report.console()
    with parallel.main_alone("scored") as alone:  # every process has helped to predict; one of them writes
        if not alone:
            return output
        console.print(f"scoring {len(examples['image_id'])} images of {data.name}/{split}")
        frame = config.data.image_size
        options = {"frame": frame, "val": val, "val_maps": val_maps, "dataset": data.name, "split": split}
        scores, per_image = evaluate.score(findings, examples, maps, **options, seed=config.seed)
        if "plain_probabilities" in examples:
            plain = {**examples, "probabilities": examples["plain_probabilities"]}
            scores["classification_plain"] = {
                name: evaluate.classification_scores(plain, k, config.seed) for k, name in enumerate(findings)
            }
        if faithfulness:
            scores["faithfulness"] = deletion_and_insertion(workdir, data, split, findings, examples, maps, config.seed)
        written = report.write_scores(output / "eval" / split, scores, per_image)
        save_maps(output / "maps" / f"{split}.npz", examples["image_id"], maps)
        detections = detect(findings, examples, maps, scores, frame)
        write_json(output / "boxes" / f"{split}.json", detections)
        report.write_predictions(output / "predictions" / f"{split}.csv", findings, examples)
        drawn = draw(output, workdir, data, scores, examples, maps, detections)
        figures = [*drawn, report.write_page(output, workdir)]
        report.print_scores(scores, console)
        files = {"maps": "npz", "boxes": "json", "predictions": "csv"}
        paths = [*written, *[output / folder / f"{split}.{ending}" for folder, ending in files.items()], *figures]
        console.print("written:", *map(str, paths), sep="\n  ", soft_wrap=True)
    return output


def redraw(workdir: Path, split: str) -> list[Path]:
    """Print the tables of a scored run, redraw its figures and page. FileNotFoundError if the split was not scored."""
    workdir = Path(workdir)
    data = datasets.of_run(Config.load(workdir))
    path = workdir / "eval" / f"{split}.json"
    scores = stored.read_scores(path)
    with stored.shown(path):
        report.print_scores(scores, report.console())
    findings = list(scores["classification"])
    if unknown := [name for name in findings if name not in data.findings]:
        known = ", ".join(data.findings)
        raise ValueError(f"{path}: classification: expected some of {known}, found {', '.join(unknown)}; {stored.HINT}")
    probabilities = stored.read_probabilities(workdir / "predictions" / f"{split}.csv", findings)
    ids, maps = stored.read_maps(workdir / "maps" / f"{split}.npz")
    detections = stored.read_boxes(workdir / "boxes" / f"{split}.json")
    examples = read_examples(data, split, findings) | {"probabilities": probabilities}
    if ids != [*map(str, examples["image_id"])] or len(ids) != len(probabilities):
        what = f"{workdir / 'maps'} or predictions/{split}.csv is of other images than {data.directory}"
        raise ValueError(f"{what}: {stored.HINT}")
    paths = [*draw(workdir, workdir, data, scores, examples, maps, detections), report.write_page(workdir, workdir)]
    print("written:", *paths, sep="\n  ")
    return paths


def draw(output: Path, workdir: Path, data: Prepared, scores: dict, examples: dict, maps: dict, detections) -> list:
    """Write the figures of a scored split into `output`; return their paths."""
    source, size = data.source(scores["split"], pipeline.FIELDS), Config.load(workdir).data.image_size
    curves = {"InfoMask": workdir / "metrics.jsonl", "plain": workdir / BASELINE / "metrics.jsonl"}
    curves = {name: path for name, path in curves.items() if path.exists()}
    maps = {name: localize.four_axes(array) for name, array in maps.items()}

    def image_of(i: int) -> np.ndarray:
        return pipeline.fit(pipeline.decode_gray(source[i]["image"]), size)

    return write_all(report.draw(output, scores, examples, maps, detections, image_of, curves))


def place(workdir: Path, data: Prepared, split: str, renamed: dict[str, str] | None = None) -> tuple[Path, list[str]]:
    """Where results of a run on prepared data go, the run or its on-NAME-FINGERPRINT, and the run's findings, as the
    data names them.

    ValueError if the data has no such split or lacks a finding that the run predicts, or the run has none that is
    renamed.
    """
    dataset = manifest.read(workdir)["dataset"]
    own = dataset["fingerprint"] == data.fingerprint
    if split not in data.splits:
        raise ValueError(f"{data.name} has no split {split!r}; it has {', '.join(data.splits)}")
    renamed = renamed or {}
    if unknown := sorted(renamed.keys() - {*dataset["findings"]}):
        raise ValueError(f"--rename: {workdir} finds {', '.join(dataset['findings'])}; found {', '.join(unknown)}")
    findings = [renamed.get(name, name) for name in dataset["findings"]]
    if len(set(findings)) < len(findings):
        raise ValueError(f"--rename: expected another name for each finding, found {', '.join(findings)}")
    if missing := [name for name in findings if name not in data.findings]:
        raise ValueError(
            f"{workdir} was trained to find {', '.join(missing)}; {data.name} in {data.directory} is labelled with "
            f"{', '.join(data.findings)}; --rename RUN'S=DATA'S says which is which"
        )
    return workdir if own else workdir / data.beside, findings


def predict_split(workdir: Path, data: Prepared, split: str, findings: list[str]) -> tuple[dict, dict[str, np.ndarray]]:
    """What `evaluate.score` takes, of one split: examples as arrays, and the maps of the run's models.

    Maps are float16 [N, h, w] where all findings share them, else [N, h, w, K].
    """
    config = Config.load(workdir)
    if several(config):
        runs = [one.workdir for one in each_fold(changed(config, {"workdir": workdir}))]
        if manifest.read(workdir)["dataset"]["fingerprint"] != data.fingerprint:
            raise ValueError(f"{workdir} is a folder of {config.folds} runs: on other data score one, {runs[0]}")
        if len({(run / BASELINE).exists() for run in runs}) > 1:
            raise ValueError(f"{workdir}: only some folds have a {BASELINE} classifier: run the training command again")
        folds = [datasets.fold(data.whole, config.folds, k) for k in range(config.folds)]
        parts = [predict_split(run, part, split, findings) for run, part in zip(runs, folds, strict=True)]
        return joined([examples for examples, _ in parts]), joined([maps for _, maps in parts])
    examples, maps = read_examples(data, split, findings), {}
    for folder in (workdir, workdir / BASELINE):
        if (folder / "config.json").exists():
            config, params = checkpoint.finished(folder)
            logits, found = predict(config, params, data.source(split, pipeline.FIELDS), len(findings))
            maps |= {method: m[..., 0] if m.shape[-1] == 1 else m for method, m in found.items()}
            probabilities = "probabilities" if folder == workdir else "plain_probabilities"
            examples[probabilities] = scipy.special.expit(logits.astype(np.float64))
            examples.setdefault("probabilities_of", {}).update(dict.fromkeys(found, examples[probabilities]))
    return examples, maps


def predict(
    config: Config, params, source, findings: int, function: Callable | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [N, K] float32 and heat maps {method: [N, h, w, 1 or K]} float16 of every image, in the source's order; h
    and w are the grid's times config.map_shifts. function(params, images): by default that of `make_predict`."""
    logits, maps = [], {}
    for batch_logits, batch_maps in predicted_batches(config, params, source, findings, function):
        logits.append(batch_logits)
        for method, values in batch_maps.items():
            maps.setdefault(method, []).append(values)
    return np.concatenate(logits), {method: np.concatenate(values) for method, values in maps.items()}


def predicted_batches(
    config: Config, params, source, findings: int, function: Callable | None = None
) -> Iterator[tuple[np.ndarray, dict]]:
    """What `predict` returns, a batch of images at a time."""
    devices = jax.device_count()
    batch_size = -(-config.data.batch_size // devices) * devices  # padding takes up what does not divide
    replicated, split = parallel.shardings(batch_size)
    forward = jax.jit(function or make_predict(config, findings))
    params = parallel.place(params, replicated)
    batches = -(-len(source) // batch_size)
    name = "plain classifier" if config.model.kind == "plain" else config.model.kind
    stream = pipeline.eval_batches(source, config.data.image_size, batch_size, *parallel.part())
    done = 0
    for batch in track(stream, f"maps of {name}", total=batches, disable=not parallel.is_main()):
        placed = parallel.to_devices({key: batch[key] for key in ("image", "index")}, split)
        index, (logits, maps) = parallel.fetch((placed["index"], forward(params, placed["image"])))
        limit = np.finfo(np.float16).max  # a map beyond it stays finite and keeps its order up to there
        keep = index >= 0
        if not np.array_equal(index[keep], np.arange(done, done + keep.sum())):
            raise RuntimeError(f"images came back from the devices out of order: {index.tolist()} from {done} on")
        done += keep.sum()
        yield logits[keep], {name: np.clip(m[keep], -limit, limit).astype(np.float16) for name, m in maps.items()}


def deletion_and_insertion(workdir, data, split, findings, examples, maps, seed) -> dict:
    """{finding: {method: {"deletion": V, "insertion": V, "curves"}}} over the positive images, for every map of a run.

    A map is held against the model that it is of; random maps, as a control, against InfoMask.
    """
    out, size, labels = {name: {} for name in findings}, Config.load(workdir).data.image_size, examples["labels"]
    needed, kept = np.flatnonzero((labels == 1).any(axis=1)), []
    for batch in pipeline.eval_batches(data.source(split, pipeline.FIELDS), size, 32):
        kept.append(batch["image"][np.isin(batch["index"], needed), ..., 0])
    images, random = np.concatenate(kept), controls.random_maps(len(labels), seed)
    folders = [folder for folder in (workdir, workdir / BASELINE) if (folder / "config.json").exists()]
    for folder in folders:
        config, params = Config.load(folder), checkpoint.load_params(folder)[0]
        # CAM is of the plain classifier, which a plain run is itself.
        own = {m: array for m, array in maps.items() if folder == (folders[-1] if m == "cam" else workdir)}
        for k, name in enumerate(findings):
            positive = np.flatnonzero(labels[:, k] == 1)
            if not len(positive):
                continue
            score = classifier(config, params, len(findings), k)
            weights = bootstrap.patient_weights(np.array(examples["patient_id"])[positive], seed=seed)
            for method, array in (own if folder != workdir else {**own, "control/random": random}).items():
                heat = array[positive] if array.ndim == 3 else array[positive, ..., k]
                own_images = images[np.searchsorted(needed, positive)]
                areas, curves = evaluate.deletion_insertion(score, own_images, heat, seed)
                found = {which: bootstrap.as_json(bootstrap.estimate(a, *weights)) for which, a in areas.items()}
                found["curves"] = {which: curve.round(6).tolist() for which, curve in curves.items()}
                out[name][method] = found
    return out


def classifier(config: Config, params, findings: int, k: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function of standardised images [n, H, W] that returns the probabilities [n] of finding k."""
    model, size = build(config.model, findings), config.data.batch_size
    forward = jax.jit(lambda images: model.apply({"params": params}, images, train=False)[0][:, k])

    def probabilities(images: np.ndarray) -> np.ndarray:
        padding = np.repeat(images[-1:], -len(images) % size, axis=0)
        images = np.concatenate([images, padding])[..., None]
        logits = [jax.device_get(forward(images[i : i + size])) for i in range(0, len(images), size)]
        return scipy.special.expit(np.concatenate(logits)[: len(images) - len(padding)].astype(np.float64))

    return probabilities


def read_examples(data: Prepared, split: str, findings: list[str]) -> dict:
    """Ids, labels, boxes, exact masks, source frames and brightness of a split, only of `findings`, in that order."""
    source, order = data.source(split), [data.findings.index(name) for name in findings]
    new_index = {old: new for new, old in enumerate(order)}
    examples = {key: [] for key in ("image_id", "patient_id", "labels", "boxes", "masks", "sizes", "brightness")}
    for i in range(len(source)):
        example = source[i]
        for key in ("image_id", "patient_id"):
            examples[key].append(example[key])
        examples["labels"].append(np.asarray(example["labels"])[order])
        examples["boxes"].append((example["boxes"], [new_index.get(int(k), -1) for k in example["box_labels"]]))
        examples["masks"].append(pipeline.decode_gray(example["mask"]) > 0 if example["mask"] else None)
        examples["sizes"].append((example["height"], example["width"]))
        examples["brightness"].append(controls.brightness(pipeline.decode_gray(example["image"])))
    return {**examples, **{key: np.stack(examples[key]) for key in ("labels", "brightness")}}


def save_maps(path: Path, image_ids: list[str], maps: dict[str, np.ndarray]) -> None:
    """maps/SPLIT.npz: image_id [N] and a float16 array per method, [N, h, w], or [N, h, w, K] for several findings; and
    what else goes by name into a file that `evaluate --maps` reads."""

    def write(file):  # straight to the disk: in memory they are there already
        np.savez_compressed(file, image_id=np.array(image_ids), **maps)

    write_all({path: write})


def drawn_method(maps: dict[str, np.ndarray]) -> str:
    """Of the maps of a run or of a model the one whose boxes are written and drawn."""
    return next(name for name in report.DRAWN if name in maps)


def detect(findings: list[str], examples: dict, maps: dict, scores: dict, frame: int) -> list[dict]:
    """boxes/SPLIT.json: COCO detections of the run's own map on every image, at the threshold that was scored.

    Images are numbered from 0 in the order of maps/SPLIT.npz.
    """
    method, found = drawn_method(maps), []
    for k, finding in enumerate(findings):
        if finding in scores["localization"]:
            threshold = scores["localization"][finding][method]["threshold"]["value"]
            probabilities = examples["probabilities"][:, k]
            own = maps[method] if maps[method].ndim == 3 else maps[method][..., k]
            where = examples["image_id"], own, examples["sizes"]
            found += localize.detections(*where, threshold, (frame, frame), k, finding, probabilities)
    return found
