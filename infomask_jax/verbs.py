"""Localize chest disease from image-level labels: prepare a dataset, score a run or anyone's maps,
predict new X-rays, compare runs, audit where a run's information comes from, train it again to the last bit, export it,
redraw a report.

Training is in experiments/: each script there is one configuration and takes --help.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated

import tyro

from infomask_jax import command, datasets


def default(text: str):
    """What --help says of an option whose None stands for something else."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


@dataclass(frozen=True)
class Prepare:
    """Read a raw release, check all of it, and store it for training; `prepare DATASET --help` lists the options."""

    release: tyro.conf.OmitArgPrefixes[
        reduce(or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in datasets.OPTIONS.items()))
    ]


@dataclass(frozen=True)
class Evaluate:
    """Score a trained run on prepared data, or anyone's heat maps (--maps, --boxes): print tables, write files."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Work directory of a run, scored together with its plain classifier; or else --maps and --boxes."""
    data_dir: Annotated[Path | None, default("that of the run")] = None
    """RUN: folder given to `prepare`."""
    dataset: Annotated[str | None, default("that of the run")] = None
    """RUN: name of the prepared dataset. Its findings need the names of the run's, or --rename."""
    split: Annotated[str | None, default("test")] = None
    """RUN: split to score: train, val or test. Thresholds come from the same data's val split, never from the scored
    one."""
    rename: tuple[str, ...] = ()
    """RUN: findings that have another name in the data, as in opacity=Pneumonia."""
    faithfulness: bool = False
    """RUN: also measure deletion and insertion, 42 forward passes an image and method."""
    maps: Path | None = None
    """Heat maps, an .npz of image_id [N] and for each method an array [N,h,w] or [N,h,w,K]; optional patient_id [N],
    findings [K], probability and label (1, 0, -1 unknown) [N] or [N,K]. maps/SPLIT.npz of a run is one."""
    boxes: tuple[Path, ...] = ()
    """Tables of boxes: CSV of image, finding, x, y, w, h (pixels, top left corner; all empty: the image is
    negative for that finding, or, where the finding is empty too, for all) and image_width, image_height (or --images),
    optional patient; or NIH's BBox_List_2017.csv; or RSNA's stage_2_train_labels.csv."""
    tune_on: Path | None = None
    """Heat maps of validation images, same methods, boxes in the same tables: thresholds are tuned on them. Without it
    they are fixed."""
    findings: tuple[str, ...] = ()
    """Findings to score, by default all; they name the last axis of maps, in order, where maps.npz has no findings."""
    protocol: tuple[str, ...] = ()
    """Published protocols to score and print, of wang2017 li2018 wsol chexlocalize rsna pixel_auprc; by default all are
    scored and written, and none is printed."""
    images: Path | None = None
    """Folder with the image files: draws hits and misses."""
    frame: Annotated[int | None, default("224")] = None
    """Side of the frame in which maps are scored, pixels, 8 to 4096."""
    out: Annotated[Path | None, default("evaluation")] = None
    """Folder for eval.json, table.md, table.tex, per_image.csv and figures/."""
    seed: Annotated[int | None, default("0")] = None
    """Random seed of the bootstrap and of the random control."""
    resamples: Annotated[int | None, default("1000")] = None
    """Resamples of the patients in the bootstrap."""


RUN_ONLY = ("data_dir", "dataset", "split", "rename", "faithfulness")
MAPS_ONLY = ("tune_on", "findings", "protocol", "images", "frame", "out", "seed", "resamples")


@dataclass(frozen=True)
class OfRun:
    """What a verb of a trained run is told."""

    run: Annotated[Path, tyro.conf.Positional]
    """Work directory of the run. Its plain classifier is a run of its own, RUN/plain."""


@dataclass(frozen=True)
class OnData(OfRun):
    """What a verb is told of a run and prepared data."""

    data_dir: Annotated[Path | None, default("that of the run")] = None
    """Folder given to `prepare`."""
    dataset: Annotated[str | None, default("that of the run")] = None
    """Name of the prepared dataset."""


@dataclass(frozen=True)
class Predict(OfRun):
    """Find disease on X-rays with a trained run: probabilities, heat maps, boxes and a picture of each. For research:
    not a medical device."""

    xrays: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="X-RAY...", help_behavior_hint="(one or more)"),
    ]
    """PNG, JPEG or DICOM files, or folders of them with all sub-folders. Whole films, as in training."""
    out: Path
    """New or empty folder for predictions.csv, boxes.json (COCO, pixels of the file; a score is the peak of the map in
    the box, 0..1, times the probability), maps.npz and pictures/."""
    skip_bad: bool = False
    """Leave out files that cannot be read and list them in skipped.csv, instead of stopping."""
    samples: int = 0
    """Also draw so many samples of z and mask, with a fixed seed: mean and deviation of probability and mask."""
    dicom: bool = False
    """For viewers, also write what belongs to each DICOM film: dicom/seg/ (heat map, a segmentation) and dicom/gsps/
    (boxes, a presentation state). Needs pip install infomask-jax[dicom]."""


@dataclass(frozen=True)
class Audit(OnData):
    """Tell where the bits of a trained run with a bottleneck come from: the lesion, the lung beside it, or elsewhere (a
    shortcut). Print shares against areas, write files."""

    split: str = "test"
    """Split to audit."""
    lungs: Path | None = None
    """Folder with the lung field of every image, IMAGE_ID.png (for an id such as a.jpg: a.png), of any size, over the
    whole image, nonzero inside. Needed unless the data has stored ones (synthetic, implanted)."""
    lungs_from_image: bool = False
    """For images that show the lungs alone: lung is whatever is not black."""


@dataclass(frozen=True)
class Reproduce(OnData):
    """Train a finished run again from its config and manifest, in a temporary folder, and name the first step whose
    loss differs. Exit status 0: the same bit for bit; 2: not. What several processes have trained is started on as
    many, with --hosts as it was."""

    hosts: str = ""
    """HOST:PORT,PROCESSES,THIS of processes started by hand; auto: the scheduler's."""


@dataclass(frozen=True)
class Export(OfRun):
    """Write a trained run as one StableHLO file: images [b, S, S, 1] of any number b -> logits and maps, for CPU, CUDA
    and TPU. Read it with jax.export.deserialize. Images: whole films resized to squares of S = data.image_size pixels,
    float32, of each its mean taken off and divided by its standard deviation."""

    out: Annotated[Path | None, default("RUN/model.stablehlo")] = None
    """File to write."""


@dataclass(frozen=True)
class Compare:
    """Lay scored runs side by side: the same scores on the same images with paired intervals, the settings that
    differ, the curves together; as tables, and as a page, compare.html. Of an ablation's folder its table as such a
    page."""

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="(two or more)")
    ]
    """Work directories of scored runs, compared with the first; or one folder of an ablation."""
    split: str = "test"
    """Split that all of them have scored."""
    out: Path = Path("comparison")
    """Folder for compare.json, compare.md and compare.html."""


@dataclass(frozen=True)
class Report(OfRun):
    """Print the tables of a scored run again, redraw its figures and its page, report.html."""

    split: str = "test"
    """Scored split."""


def evaluate(options: Evaluate) -> None:
    """Score a run or files of maps, whichever is asked for. ValueError where it is both, neither or a mixture."""
    given = {name for name, value in vars(options).items() if value is not None and value is not False and value != ()}
    if "run" in given and given & {"maps", "boxes"}:
        raise ValueError("expected a RUN or --maps with --boxes, found both; score them one after the other")
    if "run" not in given and not {"maps", "boxes"} <= given:
        found = " and ".join(f"--{name}" for name in ("maps", "boxes") if name in given) or "none of them"
        raise ValueError(f"expected a RUN, or --maps with --boxes; found {found}")
    if unused := [name for name in (MAPS_ONLY if "run" in given else RUN_ONLY) if name in given]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise ValueError(f"{names}: only for {'--maps' if 'run' in given else 'a RUN'}; leave it out")
    if "run" not in given:
        from infomask_jax.score_files import score_files

        named = {"protocols" if n == "protocol" else n: getattr(options, n) for n in MAPS_ONLY if n in given}
        score_files(options.maps, options.boxes, **named)
        return
    from infomask_jax import experiment  # JAX loads only where it is needed

    if wrong := [pair for pair in options.rename if "" in pair.partition("=")]:
        raise ValueError(f"--rename: expected RUN'S=DATA'S, as in opacity=Pneumonia, found {wrong[0]!r}")
    renamed = dict(pair.split("=", 1) for pair in options.rename)
    experiment.evaluate_run(options.run, open_data(options), options.split or "test", options.faithfulness, renamed)


def open_data(options: Evaluate | OnData) -> datasets.Prepared:
    """The prepared data that is asked for, by default what the run was trained on; of that a run of folds has its own
    fold, wherever it lies."""
    from infomask_jax.run import Run

    run = Run.open(options.run)
    config = run.config
    data = datasets.load(options.dataset or config.dataset, options.data_dir or config.data_dir)
    own = config.folds > 1 and run.fingerprint == datasets.fingerprint(data, config.folds, config.fold)
    return datasets.fold(data, config.folds, config.fold) if own else data


def main(called: str) -> None:
    kinds = (Prepare, Evaluate, Predict, Compare, Audit, Reproduce, Export, Report)
    verbs = reduce(or_, (Annotated[v, tyro.conf.subcommand(v.__name__.lower())] for v in kinds))
    config = (tyro.conf.OmitSubcommandPrefixes,)
    verb = command.parse(verbs, prog=called, description=__doc__, config=config)
    if isinstance(verb, Reproduce):
        from infomask_jax import parallel

        parallel.start(verb.hosts)
    elif isinstance(verb, (Predict, Audit, Export)) or (isinstance(verb, Evaluate) and verb.run):
        from infomask_jax import parallel

        parallel.set_up()
    if isinstance(verb, Prepare):
        datasets.prepare(verb.release)
    elif isinstance(verb, Evaluate):
        try:
            evaluate(verb)
        except MemoryError as error:
            raise MemoryError("score fewer images or methods at a time, in a smaller --frame") from error
    elif isinstance(verb, Predict):
        from infomask_jax.predict import predict_files

        predict_files(verb.run, verb.xrays, verb.out, verb.skip_bad, verb.samples, verb.dicom)
    elif isinstance(verb, Compare):
        from infomask_jax.compare import compare

        compare(verb.runs, verb.out, verb.split)
    elif isinstance(verb, Audit):
        from infomask_jax.audit import audit_run

        audit_run(verb.run, open_data(verb), verb.split, verb.lungs, verb.lungs_from_image)
    elif isinstance(verb, Reproduce):
        from infomask_jax.reproduce import reproduce

        raise SystemExit(0 if reproduce(verb.run, open_data(verb)) else 2)
    elif isinstance(verb, Export):
        from infomask_jax.export import export_run

        print(f"written: {export_run(verb.run, verb.out)}")
    else:
        from infomask_jax import experiment

        experiment.redraw(verb.run, verb.split)
