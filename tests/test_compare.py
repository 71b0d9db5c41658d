"""Runs side by side: their own scores on the images of all, paired differences, and the page."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import change

from infomask_jax.compare import METRICS, compare
from infomask_jax.report import comparison


def at(entry: dict, metric: str):
    """A score of eval/SPLIT.json by its path."""
    for part in metric.split("/"):
        entry = entry[part]
    return entry["value"]


@pytest.fixture
def other(trained, tmp_path):
    """`trained` as another run: of another seed, whose maps are turned upside down."""
    folder = shutil.copytree(trained, tmp_path / "other/run", ignore=shutil.ignore_patterns("figures", "films"))
    change(folder / "config.json", ("seed",), 7)
    arrays = dict(np.load(folder / "maps/test.npz"))
    np.savez(folder / "maps/test.npz", **{n: a[:, ::-1] if a.ndim == 3 else a for n, a in arrays.items()})
    return folder


def test_a_run_has_its_own_scores_and_differs_by_their_difference(trained, other, tmp_path, capsys):
    found = compare([trained, other], tmp_path / "out")
    names, opacity = ["trained/run", "other/run"], found["findings"]["opacity"]
    assert [*opacity["runs"]] == names and found["images"] == 20
    assert found["settings"] == {"seed": {"trained/run": 0, "other/run": 7}}
    scores = json.loads((trained / "eval/test.json").read_text())
    entry = scores["localization"]["opacity"]["infomask"] | {"auroc": scores["classification"]["opacity"]["auroc"]}
    first, second = opacity["runs"].values()
    for metric in METRICS:
        assert first[metric]["value"] == pytest.approx(at(entry, metric), abs=2e-6), metric
        minus = opacity["differences"]["other/run"][metric]
        assert minus["value"] == pytest.approx(second[metric]["value"] - first[metric]["value"], abs=2e-6)
        assert minus["ci95"][0] <= minus["value"] + 0.05 and minus["value"] - 0.05 <= minus["ci95"][1]
    assert first["auroc"] == second["auroc"] and first["pxap"] != second["pxap"]  # the maps alone are other ones
    told = capsys.readouterr().out
    assert "Settings that differ" in told and "other/run" in told
    page = (tmp_path / "out/compare.html").read_text()
    assert "opacity: minus trained/run" in page and "Content-Security-Policy" in page and "<path" in page
    assert json.loads((tmp_path / "out/compare.json").read_text()) == json.loads(json.dumps(found))


def test_images_are_those_of_all_in_any_order(trained, other, tmp_path):
    same = compare([trained, other], tmp_path / "out")
    order = np.random.default_rng(0).permutation(20)
    for place, count in ((trained, 20), (other, 15)):
        folder = shutil.copytree(place, tmp_path / f"part{count}", ignore=shutil.ignore_patterns("figures", "films"))
        arrays = dict(np.load(folder / "maps/test.npz"))
        np.savez(folder / "maps/test.npz", **{n: a[order[:count]] for n, a in arrays.items() if len(a) == 20})
        head, *rows = (folder / "predictions/test.csv").read_text().splitlines()
        (folder / "predictions/test.csv").write_text("\n".join([head, *(rows[i] for i in order[:count])]) + "\n")
    shuffled = compare([tmp_path / "part20", other], tmp_path / "out")
    assert [*shuffled["findings"]["opacity"]["runs"].values()] == [*same["findings"]["opacity"]["runs"].values()]
    assert compare([trained, tmp_path / "part15"], tmp_path / "out")["images"] == 15


def test_what_cannot_be_compared_is_told(trained, other, tmp_path):
    for folders, words in (([trained], "two or more runs"), ([trained, trained], "each run once")):
        with pytest.raises(ValueError, match=words):
            compare(folders, tmp_path / "out")
    away = shutil.copytree(trained, tmp_path / "away", ignore=shutil.ignore_patterns("figures", "films"))
    csv, maps = away / "predictions/test.csv", away / "maps/test.npz"
    head, *rows = csv.read_text().splitlines(keepends=True)
    csv.write_text(head + "".join(rows[::-1]))
    with pytest.raises(ValueError, match=r"predictions/test.csv .*a row for each image of maps/test.npz, in its order"):
        compare([trained, away], tmp_path / "out")
    csv.write_text(head + "".join(f"x{row}" for row in rows))
    arrays = dict(np.load(maps))
    np.savez(maps, **arrays | {"image_id": np.char.add("x", arrays["image_id"])})
    with pytest.raises(ValueError, match="an image of synthetic/test in common, found none"):
        compare([trained, away], tmp_path / "out")
    change(other / "eval/test.json", ("localization",), {})
    with pytest.raises(ValueError, match=r"localize a finding in common, found .*other/run: none"):
        compare([trained, other], tmp_path / "out")
    shutil.rmtree(other / "eval")
    with pytest.raises(FileNotFoundError, match="score this split first"):
        compare([trained, other], tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "infomask_jax", "compare", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.startswith("error: expected two or more runs")
    assert not (tmp_path / "out").exists()


def test_an_ablation_has_a_page(trained, tmp_path):
    score = {"mean": 0.5, "sd": 0.1, "by_seed": [0.4, 0.6]}
    minus = {
        "pxap": {"value": 0.1, "ci95": None, "reason": "2 seeds: no interval"},
        "nll": {"value": -0.1, "ci95": [-0.2, -0.05]},
    }
    row = {
        "method": "default",
        "group": "default",
        "changes": {},
        "scores": {"pxap": score, "nll": score},
        "default_minus": {},
    }
    rows = [row, row | {"method": "<b>", "group": "terms", "changes": {"loss.beta_m": 0}, "default_minus": minus}]
    result = {"command": "the command", "dataset": "synthetic", "split": "test", "seeds": [0, 1]}
    (tmp_path / "ablations.json").write_text(json.dumps(result | {"findings": {"opacity": {"rows": rows}}}))
    (tmp_path / "default/seed0").mkdir(parents=True)
    shutil.copy(trained / "metrics.jsonl", tmp_path / "default/seed0/metrics.jsonl")
    assert compare([tmp_path], tmp_path / "out") is None
    page = (tmp_path / "out/compare.html").read_text()
    assert "2 seeds: no interval" in page and "&lt;b&gt;" in page and "<b>&" not in page and "default/seed0" in page
    assert comparison._minus("nll", minus["nll"]).verdict == "green"  # low is good: the default is better
    (tmp_path / "ablations.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="findings is missing"):
        compare([tmp_path], tmp_path / "out")
    with pytest.raises(ValueError, match="shown alone"):
        compare([tmp_path, trained], tmp_path / "out")
