"""The whole way, as a user walks it: prepare, train, evaluate here and elsewhere, report; every contracted file."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import change, tiny_config

from infomask_jax import datasets, experiment, predict
from infomask_jax.config import Config, leaves
from infomask_jax.datasets import Synthetic
from infomask_jax.evaluate import PROTOCOLS, controls
from infomask_jax.localize import region_boxes
from infomask_jax.monitor import MetricsLog
from infomask_jax.presets import ONE_VIEW, PLAIN, changed
from infomask_jax.run import Run
from infomask_jax.train import train

ROOT = Path(__file__).parent.parent
METRICS = {"pxap", "pointing_game", "mean_iou", "max_box_acc_v2", "acc_iou", "acc_iobb", "afp", "boxes_per_image"}
OWN = {"infomask", "infomask_bits", "infomask_evidence", "cam"}


@pytest.fixture(scope="module")
def data(trained):
    return datasets.load("synthetic", trained.parent / "data")


def read(path: Path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_work_directory_holds_the_contract(trained, data):
    for name in ("config.json", "manifest.json", "metrics.jsonl", "checkpoints", "report.html"):
        assert (trained / name).exists()
    scores = read(trained / "eval" / "test.json")
    assert (scores["dataset"], scores["split"], scores["n_images"]) == ("synthetic", "test", 20)
    for whose in ("classification", "classification_plain"):
        found = set(scores[whose]["opacity"])
        assert found == {"auroc", "auprc", "ece", "brier", "reliability", "prevalence"}
    rows = scores["localization"]["opacity"]
    untrained = {f"control/{name}" for name in ("random", "center", "brightness", *controls.BOXES)}
    assert set(rows) == OWN | {"ceiling/16x16"} | untrained
    for row in rows.values():
        assert set(row) == METRICS | {"threshold", "protocols"} and set(row["protocols"]) == set(PROTOCOLS)
        assert set(row["pxap"]) >= {"value", "ci95", "n"}
    assert rows["infomask"]["threshold"]["tuned_on"] == "val"
    assert all((trained / "eval" / f"test.{ending}").stat().st_size > 1000 for ending in ("md", "tex", "csv"))
    assert "training.png" in {path.name for path in (trained / "figures").glob("*.png")}


def test_maps_boxes_and_predictions_belong_to_the_same_images(trained, data):
    source = data.source("test")
    ids = [source[i]["image_id"] for i in range(len(source))]
    with np.load(trained / "maps" / "test.npz") as maps:
        assert list(maps["image_id"]) == ids and {*maps.files} == OWN | {"image_id", "findings", "probability"}
        for method in OWN:
            assert maps[method].shape == (20, 16, 16) and maps[method].dtype == np.float16
    rows = table(trained / "predictions" / "test.csv")
    assert [row["image_id"] for row in rows] == ids
    assert [int(row["opacity label"]) for row in rows] == [int(source[i]["labels"][0]) for i in range(20)]
    for box in read(trained / "boxes" / "test.json"):
        x, y, w, h = box["bbox"]
        assert box["file_name"] == ids[box["image_id"]] and min(x, y) >= 0 and max(x + w, y + h) <= 32 and min(w, h) > 0


def test_figures_are_redrawn_the_same_from_files(trained, trained_copy, capsys):
    page, first = (trained_copy / "report.html").read_text(), {p.name for p in (trained / "figures").glob("*.png")}
    (trained_copy / "report.html").unlink()
    boxes = read(trained_copy / "boxes" / "test.json")  # every second as an older version wrote it
    boxes[::2] = [{**box, "image_id": box.pop("file_name")} for box in boxes[::2]]
    (trained_copy / "boxes" / "test.json").write_text(json.dumps(boxes))
    assert {path.name for path in experiment.redraw(trained_copy, "test")} == first | {"test.json", "report.html"}
    again = (trained_copy / "report.html").read_text()
    assert again == page and page.count("data:image/png") == 0 and len(page) > 10_000
    (trained_copy / "eval" / "audit_test.json").write_text('{"findings": {}}')
    (trained_copy / "boxes" / "test.json").write_text("[]")
    experiment.redraw(trained_copy, "test")
    other = (trained_copy / "report.html").read_text()
    assert other != page and "audit_test.json is not of this version" in other
    with pytest.raises(FileNotFoundError, match="score this split first"):
        experiment.redraw(trained_copy, "val")


def test_python_of_the_readme_gives_the_scored_maps_and_every_term(trained):
    section = (ROOT / "README.md").read_text().split("## From Python")[1].split("\n## ")[0]
    names, film = {}, sorted((trained.parent / "films").iterdir())[0]
    for block in section.split("```python")[1:]:
        exec(block.split("```")[0].replace("runs/demo", str(trained)).replace("film.png", str(film)), names)
    with np.load(trained / "maps" / "test.npz") as arrays:
        np.testing.assert_array_equal(arrays["infomask"][0], names["film"].grids["infomask"])
    assert np.isfinite(names["loss"]) and set(names["terms"]) == {"nll", "rate_z", "rate_m", "mask_mean"}
    assert names["out"]["kl_z"].shape == (8, 8, 8) and names["heat"].shape == (32, 32)


def test_scoring_again_gives_the_same_and_faithfulness_holds_each_map_against_its_model(trained_copy, data):
    """The curves begin with the images as they are: there, the mean probability of the model itself."""
    before = read(trained_copy / "eval" / "test.json")
    experiment.evaluate_run(trained_copy, data, "test", with_faithfulness=True)
    after = read(trained_copy / "eval" / "test.json")
    found = after.pop("faithfulness")["opacity"]
    assert after == before and set(found) == OWN | {"control/random"}
    rows = [row for row in table(trained_copy / "predictions" / "test.csv") if row["opacity label"] == "1"]
    own = np.mean([float(row["opacity probability"]) for row in rows])
    for method in ("infomask", "control/random"):
        curves = found[method]["curves"]
        assert (curves["deletion"][0], curves["insertion"][-1]) == pytest.approx((own, own), abs=1e-4)
        assert found[method]["deletion"]["n"] == len(rows)
    assert found["cam"]["curves"]["deletion"][0] != pytest.approx(own, abs=1e-4)


def test_run_of_attention_mil_is_whole(data, tmp_path):
    """Boxes and pictures of a classifier without mask that has two maps, in a folder called as ours."""
    workdir = tmp_path / "plain"
    alone = PLAIN | ONE_VIEW | {"model.kind": "attention_mil", "map_shifts": 1, "workdir": workdir}
    train(changed(tiny_config(tmp_path), alone), data)
    experiment.evaluate_run(workdir, data, "test")
    scores = read(workdir / "eval" / "test.json")
    assert {"attention", "cam"} < set(scores["localization"]["opacity"])
    cut = predict.thresholds(Run.open(workdir))["opacity"]["cam"]
    assert cut == scores["localization"]["opacity"]["cam"]["threshold"]["value"]
    with np.load(workdir / "maps" / "test.npz") as maps:
        expected = Counter(maps["image_id"][region_boxes(maps["cam"], cut, frame=32)[0].image].tolist())
    found = Counter(box["file_name"] for box in read(workdir / "boxes" / "test.json"))
    assert found == expected and sum(found.values()) > 0


def test_other_data_is_scored_beside_the_run(trained_copy, tmp_path):
    own = read(trained_copy / "eval" / "test.json")
    other = datasets.prepare(Synthetic(data_dir=tmp_path, size=32, train=8, val=8, test=12, seed=7, workers=1))
    output = experiment.evaluate_run(trained_copy, other, "test")
    assert output != trained_copy and read(output / "eval" / "test.json")["n_images"] == 12
    assert read(trained_copy / "eval" / "test.json") == own
    before = read(output / "eval" / "test.json")["localization"]["opacity"]
    strange = dataclasses.replace(other, findings=("nodule",))
    experiment.evaluate_run(trained_copy, strange, "test", renamed={"opacity": "nodule"})
    found = read(output / "eval" / "test.json")
    assert found["localization"] == {"nodule": before} and found["classification"].keys() == {"nodule"}
    run = Run.open(trained_copy)
    for arguments, words in [
        ((other, "holdout"), "no split 'holdout'"),
        ((strange, "test"), r"trained to find opacity.*--rename RUN'S=DATA'S"),
        ((strange, "test", {"mass": "nodule"}), r"--rename: .* finds opacity; found mass"),
    ]:
        with pytest.raises(ValueError, match=words):
            run.place(*arguments)


def test_baseline_differs_only_where_it_must(tmp_path):
    own, plain = tiny_config(tmp_path), experiment.baseline_config(tiny_config(tmp_path))
    then, now = ({name: value for name, _, value in leaves(c)} for c in (own, plain))
    changes = {name: now[name] for name in now if now[name] != then[name]}
    model = {"kind": "plain", "pooling": "mean", "two_views": False, "close_empty": False, "evidence_bound": 0}
    free = dict.fromkeys(("beta_z", "beta_m", "auxiliary", "hidden", "consistency"), 0)
    expected = {f"model.{name}": value for name, value in model.items()}
    expected |= {f"loss.{name}": value for name, value in free.items()}
    assert changes == {**expected, "workdir": own.workdir / "plain", "baseline": False}


def test_experiment_scripts_explain_themselves_and_say_what_is_missing(tmp_path):
    script = [sys.executable, str(ROOT / "experiments" / "quickstart.py")]
    told = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in told for option in ("--preset paper", "--train.steps", "--loss.beta-m", "--machine.workers"))
    words = ["--data-dir", str(tmp_path), "--workdir", str(tmp_path / "run")]
    done = subprocess.run([*script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "python -m infomask_jax prepare synthetic" in done.stderr and not (tmp_path / "run").exists()


CHANGES = [  # file, field, what is put there (None: nothing), what the message must hold
    ("manifest.json", ("dataset",), None, "dataset is missing"),
    ("manifest.json", ("dataset", "findings"), ["opacity", "mass"], "dataset.findings: expected 1, as many as were"),
    ("manifest.json", ("dataset", "findings"), ["\x1b[31m"], "dataset.findings: expected printable names, found"),
    ("eval/test.json", ("localization", "opacity"), 3, "localization.opacity: expected an object, found 3"),
    ("eval/test.json", ("localization", "opacity", "infomask", "threshold", "value"), "x", "infomask.threshold.value"),
    ("eval/test.json", ("counts",), None, "counts"),
    ("boxes/test.json", (0, "bbox"), [1, 2, 3], "0.bbox: expected 4 items, found 3"),
]


@pytest.mark.parametrize(("name", "field", "value", "words"), CHANGES)
def test_changed_field_of_a_run_is_named_with_its_file(trained_copy, tmp_path, name, field, value, words):
    change(trained_copy / name, field, value)
    with pytest.raises(ValueError, match=rf"{trained_copy / name}.*{re.escape(words)}") as error:
        if name == "manifest.json":
            predict.predict_files(trained_copy, [trained_copy], tmp_path / "out")
        else:
            experiment.redraw(trained_copy, "test")
    assert "\n" not in str(error.value)
    if "threshold" in field:  # where `predict` reads them
        with pytest.raises(ValueError, match=re.escape(words)):
            predict.thresholds(Run.open(trained_copy))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("eval/test.json", None, "expected JSON, found"),
        ("config.json", b"[" * 100_000, "is not a config of this version"),
        ("predictions/test.csv", b"image_id,opacity probability\n20000000,x\n", "evaluate the run again"),
        ("maps/test.npz", b"no archive", r"expected an \.npz file"),
    ],
)
def test_damaged_file_of_a_run_is_named(trained_copy, name, content, words):
    path = trained_copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    with pytest.raises(ValueError, match=rf"{path}.*{words}"):
        experiment.redraw(trained_copy, "test")


def test_config_survives_its_file_and_damaged_log_stops_training(trained_copy, trained):
    assert Config.load(trained) == tiny_config(trained.parent)
    with pytest.raises(FileNotFoundError, match="is not a run"):
        Config.load(trained.parent)
    (trained_copy / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: step is missing"):
        MetricsLog(trained_copy / "metrics.jsonl", 6, 8)
    shutil.rmtree(trained_copy / "checkpoints")
    with pytest.raises(FileNotFoundError, match="train it first"):
        assert Run.open(trained_copy).params
