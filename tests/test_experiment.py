"""The whole way, as a user walks it: prepare, train, evaluate here and elsewhere, report; every contracted file."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import change

from infomask_jax import command, datasets, experiment, predict, report
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig, leaves
from infomask_jax.datasets import Synthetic
from infomask_jax.evaluate import PROTOCOLS, controls
from infomask_jax.localize import region_boxes
from infomask_jax.monitor import MetricsLog
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.reproduce import losses
from infomask_jax.train import train

ROOT = Path(__file__).parent.parent
METRICS = {"pxap", "pointing_game", "mean_iou", "max_box_acc_v2", "acc_iou", "acc_iobb", "afp", "boxes_per_image"}


def config(folder: Path) -> Config:
    return Config(
        data_dir=folder / "data",
        workdir=folder / "run",
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=8, stride=4, latent_channels=4),
        loss=LossConfig(delay=0.2),
        train=OptimizerConfig(steps=6),
        machine=MachineConfig(log_every=2),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    datasets.prepare(Synthetic(data_dir=folder / "data", size=32, train=24, val=16, test=20, workers=1))
    experiment.run(config(folder))
    return folder / "run"


def read(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def test_work_directory_holds_the_contract(run):
    for name in ("config.json", "manifest.json", "metrics.jsonl", "checkpoints"):
        assert (run / name).exists()
    scores = read(run / "eval" / "test.json")
    assert (scores["dataset"], scores["split"], scores["n_images"]) == ("synthetic", "test", 20)
    classification = {"auroc", "auprc", "ece", "brier", "reliability", "prevalence"}
    assert classification == set(scores["classification"]["opacity"])
    assert classification == set(scores["classification_plain"]["opacity"])
    rows = scores["localization"]["opacity"]
    untrained = {f"control/{name}" for name in (*controls.MAPS, "brightness", *controls.BOXES)}
    assert set(rows) == {"infomask", "infomask_bits", "infomask_evidence", "cam", "ceiling/16x16"} | untrained
    for row in rows.values():
        assert set(row) == METRICS | {"threshold", "protocols"}
        assert set(row["protocols"]) == set(PROTOCOLS)
        assert set(row["pxap"]) >= {"value", "ci95", "n"}
    assert rows["infomask"]["threshold"]["tuned_on"] == "val"
    for ending in ("md", "tex", "csv"):
        assert (run / "eval" / f"test.{ending}").stat().st_size > 1000


def test_maps_boxes_and_predictions_belong_to_the_same_images(run):
    data = datasets.load("synthetic", run.parent / "data")
    source = data.source("test")
    ids = [source[i]["image_id"] for i in range(len(source))]
    with np.load(run / "maps" / "test.npz") as maps:
        assert list(maps["image_id"]) == ids
        for method in ("infomask", "infomask_bits", "infomask_evidence", "cam"):
            assert maps[method].shape == (20, 16, 16) and maps[method].dtype == np.float16
            assert np.isfinite(maps[method]).all()
    with (run / "predictions" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image_id"] for row in rows] == ids
    assert [int(row["opacity label"]) for row in rows] == [int(source[i]["labels"][0]) for i in range(20)]
    for box in read(run / "boxes" / "test.json"):
        x, y, w, h = box["bbox"]
        assert box["file_name"] == ids[box["image_id"]] and min(x, y) >= 0 and max(x + w, y + h) <= 32 and min(w, h) > 0


def test_images_out_of_order_are_an_error(run, monkeypatch):
    """Not maps of other images: as where devices are not in the order of the processes that feed them."""
    data = datasets.load("synthetic", run.parent / "data")
    fetch = experiment.parallel.fetch
    monkeypatch.setattr(experiment.parallel, "fetch", lambda tree: jax.tree.map(lambda x: x[::-1], fetch(tree)))
    with pytest.raises(RuntimeError, match="out of order"):
        experiment.predict_split(run, data, "test", ["opacity"])


def test_figures_are_drawn_and_redrawn(run):
    first = {path.name for path in (run / "figures").glob("*.png")}
    assert "training.png" in first and first & {"hits.png", "misses.png"}
    (run / "figures" / "training.png").unlink()
    page = (run / "report.html").read_text()
    (run / "report.html").unlink()
    assert {path.name for path in report.report(run, "test")} == first | {"report.html"}
    assert (run / "report.html").read_text() == page and page.count("<img ") == len(first)
    with pytest.raises(FileNotFoundError, match=r"score this split first"):
        report.report(run, "val")


def test_boxes_of_an_older_run_are_drawn_the_same(run):
    path, page = run / "boxes" / "test.json", (run / "report.html").read_text()
    boxes = path.read_text()
    path.write_text(json.dumps([{**b, "image_id": b.pop("file_name")} for b in json.loads(boxes)]))
    report.report(run, "test")
    assert (run / "report.html").read_text() == page
    path.write_text("[]")
    report.report(run, "test")
    assert (run / "report.html").read_text() != page
    path.write_text(boxes)
    report.report(run, "test")


def test_python_of_the_readme_gives_the_scored_maps_and_every_term(run):
    section = (ROOT / "README.md").read_text().split("## From Python")[1].split("\n## ")[0]
    names = {}
    exec(section.split("```python")[1].split("```")[0].replace("runs/demo", str(run)), names)
    with np.load(run / "maps" / "test.npz") as arrays:
        np.testing.assert_array_equal(arrays["infomask"], names["maps"]["infomask"][..., 0])
    assert np.isfinite(names["loss"]) and set(names["terms"]) == {"nll", "rate_z", "rate_m", "mask_mean"}
    assert names["out"]["kl_z"].shape == (8, 8, 8) and names["heat"].shape == (8, 32, 32)


def test_scoring_twice_gives_the_same_scores(run):
    before = read(run / "eval" / "test.json")
    experiment.evaluate_run(run, datasets.load("synthetic", run.parent / "data"), "test")
    assert read(run / "eval" / "test.json") == before


def test_faithfulness_holds_each_map_against_its_own_model(run):
    """The curves begin with the images as they are: there, the mean probability of the model itself."""
    experiment.evaluate_run(run, datasets.load("synthetic", run.parent / "data"), "test", faithfulness=True)
    found = read(run / "eval" / "test.json")["faithfulness"]["opacity"]
    assert set(found) == {"infomask", "infomask_bits", "infomask_evidence", "cam", "control/random"}
    with (run / "predictions" / "test.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["opacity label"] == "1"]
    own = np.mean([float(row["opacity probability"]) for row in rows])
    for method in ("infomask", "control/random"):
        assert found[method]["curves"]["deletion"][0] == pytest.approx(own, abs=1e-4)
        assert found[method]["curves"]["insertion"][-1] == pytest.approx(own, abs=1e-4)
        assert found[method]["deletion"]["n"] == len(rows)
    assert found["cam"]["curves"]["deletion"][0] != pytest.approx(own, abs=1e-4)


def test_run_of_attention_mil_is_whole(run, tmp_path):
    """Boxes, pictures and faithfulness of a classifier without mask that has two maps, in a folder called as ours
    are."""
    workdir = tmp_path / "plain"
    alone = PLAIN | ONE_VIEW | {"model.kind": "attention_mil", "map_shifts": 1, "workdir": workdir}
    lone = changed(config(run.parent), alone)
    data = datasets.load("synthetic", run.parent / "data")
    train(lone, data)
    experiment.evaluate_run(workdir, data, "test", faithfulness=True)
    scores = read(workdir / "eval" / "test.json")
    assert set(scores["faithfulness"]["opacity"]) == {"attention", "cam", "control/random"}
    cut = predict.thresholds(workdir, ["opacity"])["opacity"]["cam"]
    assert cut == scores["localization"]["opacity"]["cam"]["threshold"]["value"]
    with np.load(workdir / "maps" / "test.npz") as maps:
        expected = Counter(maps["image_id"][region_boxes(maps["cam"], cut, frame=32)[0].image].tolist())
    found = Counter(box["file_name"] for box in read(workdir / "boxes" / "test.json"))
    assert found == expected and sum(found.values()) > 0


def test_other_data_is_scored_beside_the_run(run, tmp_path):
    own = read(run / "eval" / "test.json")
    other = datasets.prepare(Synthetic(data_dir=tmp_path, size=32, train=8, val=8, test=12, seed=7, workers=1))
    output = experiment.evaluate_run(run, other, "test")
    assert output != run and read(output / "eval" / "test.json")["n_images"] == 12
    assert read(run / "eval" / "test.json") == own
    with pytest.raises(ValueError, match="no split 'holdout'"):
        experiment.evaluate_run(run, other, "holdout")
    strange = dataclasses.replace(other, findings=("nodule",))
    with pytest.raises(ValueError, match=r"trained to find opacity.*--rename RUN'S=DATA'S"):
        experiment.evaluate_run(run, strange, "test")
    before = read(output / "eval" / "test.json")["localization"]["opacity"]
    experiment.evaluate_run(run, strange, "test", renamed={"opacity": "nodule"})
    found = read(output / "eval" / "test.json")
    assert found["localization"] == {"nodule": before} and found["classification"].keys() == {"nodule"}
    with pytest.raises(ValueError, match=r"--rename: .* finds opacity; found mass"):
        experiment.evaluate_run(run, strange, "test", renamed={"mass": "nodule"})


def test_baseline_differs_only_where_it_must(tmp_path):
    own, plain = config(tmp_path), experiment.baseline_config(config(tmp_path))
    then, now = ({name: value for name, _, value in leaves(c)} for c in (own, plain))
    changes = {name: now[name] for name in now if now[name] != then[name]}
    model = {"kind": "plain", "pooling": "mean", "two_views": False, "close_empty": False, "evidence_bound": 0}
    free = dict.fromkeys(("beta_z", "beta_m", "auxiliary", "hidden", "consistency"), 0)
    expected = {f"model.{name}": value for name, value in model.items()}
    expected |= {f"loss.{name}": value for name, value in free.items()}
    assert changes == {**expected, "workdir": own.workdir / "plain", "baseline": False}


def test_config_survives_its_file(run):
    assert Config.load(run) == config(run.parent)
    with pytest.raises(FileNotFoundError, match="is not a run"):
        Config.load(run.parent)


@pytest.mark.parametrize("script", ["quickstart", "rsna_pneumonia", "nih_pneumonia"])
def test_experiment_scripts_explain_themselves(script):
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(
        option in done.stdout for option in ("--preset paper", "--train.steps", "--loss.beta-m", "--machine.workers")
    )


def test_missing_data_is_one_line_that_says_what_to_run(tmp_path):
    script = ROOT / "experiments" / "quickstart.py"
    command = [sys.executable, str(script), "--data-dir", str(tmp_path), "--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "python -m infomask_jax prepare synthetic" in done.stderr
    assert not (tmp_path / "run").exists()


def test_sigterm_beside_training_asks_for_the_same_command(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, command.ends(resumes=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert ended.value.code == 75 and "The same command continues" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


CHANGES = [  # file, field, what is put there (None: nothing), what the message must hold
    ("manifest.json", ("dataset",), None, "dataset is missing"),
    ("manifest.json", ("dataset", "findings"), "opacity", "dataset.findings: expected a list, found 'opacity'"),
    ("manifest.json", ("dataset", "findings"), ["opacity", "mass"], "dataset.findings: expected 1, as many as were"),
    ("manifest.json", ("dataset", "findings"), ["\x1b[31m"], "dataset.findings: expected printable names, found"),
    ("manifest.json", ("stored_size",), "32", "stored_size: expected a whole number, found '32'"),
    ("manifest.json", ("libraries",), [], "libraries: expected an object"),
    ("eval/test.json", ("localization", "opacity"), 3, "localization.opacity: expected an object, found 3"),
    ("eval/test.json", ("localization", "opacity", "infomask", "threshold"), None, "infomask.threshold is missing"),
    ("eval/test.json", ("localization", "opacity", "infomask", "threshold", "value"), "x", "infomask.threshold.value"),
    ("eval/test.json", ("localization", "opacity", "cam", "pxap", "value"), [], "cam.pxap.value: expected"),
    ("eval/test.json", ("localization", "opacity", "cam", "protocols", "wsol"), None, "KeyError: 'wsol'"),
    ("eval/test.json", ("counts",), None, "counts is missing"),
    ("boxes/test.json", (0, "bbox"), [1, 2, 3], "0.bbox: expected 4 items, found 3"),
    ("boxes/test.json", (0, "category"), 7, "0.category: expected text, found 7"),
]


@pytest.fixture
def damaged(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    return tmp_path / "run"


@pytest.mark.parametrize(("name", "field", "value", "words"), CHANGES)
def test_changed_field_of_a_run_is_named_with_its_file(damaged, tmp_path, name, field, value, words):
    change(damaged / name, field, value)
    told = rf"{damaged / name}: (.*\.)?{re.escape(words)}"
    told = told if words[0] != "K" else rf"{damaged / name} is damaged \({words}"
    with pytest.raises(ValueError, match=told) as error:
        if name == "manifest.json" and "libraries" not in field:
            predict.predict_files(damaged, [], tmp_path / "out")
        else:
            report.report(damaged, "test")
    assert "\n" not in str(error.value)
    if "threshold" in field:  # where `predict` reads them
        with pytest.raises(ValueError, match=told):
            predict.thresholds(damaged, ["opacity"])


def test_config_that_is_nested_without_end_is_named(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not a config of this version"):
        Config.load(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "eval/test.json", "boxes/test.json", "metrics.jsonl"])
def test_cut_file_of_a_run_is_named(damaged, name):
    text = (damaged / name).read_text()
    (damaged / name).write_text(text[: len(text) // 2] + ("\n" if name == "metrics.jsonl" else ""))
    with pytest.raises(ValueError, match=rf"{damaged / name}(, line \d)?: expected JSON, found"):
        report.report(damaged, "test")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions/test.csv", b"image_id,opacity probability\n20000000,x\n"),
        ("predictions/test.csv", b"image_id\n20000000\n"),
    ],
)
def test_damaged_maps_and_probabilities_are_named(damaged, name, content):
    (damaged / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{damaged / name} is damaged \(.*\); evaluate the run again"):
        report.report(damaged, "test")


@pytest.mark.parametrize("content", [b"no archive", b"PK\x03\x04 one that is cut"])
def test_damaged_maps_are_named(damaged, content):
    (damaged / "maps" / "test.npz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{damaged / 'maps' / 'test.npz'}: expected an .npz file, found"):
        report.report(damaged, "test")


def test_page_goes_without_an_audit_that_is_damaged(damaged, capsys):
    (damaged / "eval" / "audit_test.json").write_text('{"findings": {}}')
    page = report.write_page(damaged, damaged).read_text()
    assert "audit_test.json is not of this version" in page
    assert "goes without" in (told := capsys.readouterr().out) and "audit_test.json: dataset is missing" in told


def test_damaged_log_stops_training_and_reproduction(damaged):
    path = damaged / "metrics.jsonl"
    path.write_text(path.read_text().replace('"losses"', '"lossess"', 1))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: losses is missing"):
        losses(damaged)
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: step is missing; move it away"):
        MetricsLog(path, 6, 8)
