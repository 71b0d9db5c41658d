"""Films from files: the same numbers as from prepared data, in the file's own pixels, whole or not at all."""

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import scipy.special
from conftest import change, tiny_config

from infomask_jax import audit, datasets, experiment, familiar, localize, pipeline, predict
from infomask_jax.films import Films, find
from infomask_jax.localize import region_boxes
from infomask_jax.model import build
from infomask_jax.pixels import as_panel
from infomask_jax.report import overlay
from infomask_jax.run import Run
from infomask_jax.score_files import score_files
from infomask_jax.system import lock

FINDINGS = ("mass", "effusion")
WHOLE = {"predictions.csv", "maps.npz", "boxes.json", "boxes.csv", "pictures"}


def draw(folder: Path, count: int) -> None:
    """Films that are not square and larger than what is stored, and their tables."""
    (folder / "images" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, boxes = [], []
    for i in range(count):
        film = rng.integers(0, 60, (90, 70), np.uint8)
        name, label = f"{'sub/' if i % 3 == 0 else ''}{i:03d}.{'png' if i % 2 else 'jpg'}", i % 2
        if label:
            film[10:40, 5:30] += 120
            boxes.append(f"{name},mass,5,10,25,30")
        cv2.imwrite(str(folder / "images" / name), film)
        rows.append(f"{name},{label},{(i // 2) % 2},{('train', 'train', 'test', 'val')[i // 8 % 4]}")
    (folder / "labels.csv").write_text("\n".join([f"image,{','.join(FINDINGS)},split", *rows]))
    (folder / "boxes.csv").write_text("\n".join(["image,finding,x,y,w,h", *boxes]))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[Path]:
    """A run of two findings, trained on films of 48 pixels that it takes as 32, and scored."""
    folder = tmp_path_factory.mktemp("predict")
    draw(folder / "release", 32)
    datasets.prepare(datasets.Folder(source=folder / "release", data_dir=folder / "data", size=48))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(localize, "WHOLE", 1.0)  # so little training boxes whole films
        experiment.run(dataclasses.replace(tiny_config(folder), dataset="folder"))
        yield folder / "run"


@pytest.fixture
def films(run) -> Path:
    return run.parent / "release" / "images"


def table(path: Path) -> dict[str, dict]:
    with path.open(newline="") as file:
        return {row["image_id"]: row for row in csv.DictReader(file)}


def order(boxes: list[dict]) -> list[tuple]:
    return sorted((box["file_name"], *np.round(box["bbox"], 2), round(box["score"], 3)) for box in boxes)


def test_files_have_the_scores_of_the_prepared_images(run, films, tmp_path):
    out = tmp_path / "out"
    predict.predict_files(run, [films], out)
    rows, prepared = table(out / "predictions.csv"), table(run / "predictions" / "test.csv")
    assert len(rows) == 32 and len(prepared) == 8
    ours, scored = (json.loads(path.read_text()) for path in (out / "boxes.json", run / "boxes/test.json"))
    with np.load(out / "maps.npz") as found, np.load(run / "maps" / "test.npz") as kept:
        assert list(found["findings"]) == list(FINDINGS) and found["probability"].shape == (32, 2)
        at = [list(found["image_id"]).index(name) for name in kept["image_id"]]
        for method in ("infomask", "infomask_bits", "infomask_evidence"):
            np.testing.assert_allclose(found[method][at], kept[method], atol=2e-3)
        assert all(found["image_id"][box["image_id"]] == box["file_name"] for box in ours)
        assert all(kept["image_id"][box["image_id"]] == box["file_name"] for box in scored)
    for name, row in prepared.items():
        for column in (f"{finding} probability" for finding in FINDINGS):
            assert float(rows[name][column]) == pytest.approx(float(row[column]), rel=1e-4)
        assert (rows[name]["height"], rows[name]["width"]) == ("90", "70")
    ours = [box for box in ours if box["file_name"] in prepared and box["category"] == "mass"]
    assert len(scored) >= 8 and order(ours) == order(scored)
    pictures = {path.relative_to(out / "pictures").as_posix() for path in out.rglob("*.png")}
    assert pictures == {f"{name[:-4]}.png" for name in rows}
    # and its maps can be scored as anyone's
    lines = (run.parent / "release" / "boxes.csv").read_text().splitlines()
    framed = [f"{lines[0]},image_width,image_height", *(f"{line},70,90" for line in lines[1:])]
    (tmp_path / "boxes.csv").write_text("\n".join(framed))
    options = {"out": tmp_path / "scored", "findings": ("mass",), "resamples": 5}
    assert score_files(out / "maps.npz", [tmp_path / "boxes.csv"], **options)["localization"]["mass"]["infomask"]


def test_bad_files_are_all_named_and_nothing_is_written(run, films, tmp_path, capsys):
    mine, out = tmp_path / "mine", tmp_path / "out"
    shutil.copytree(films, mine)
    (mine / "000.png").write_bytes(b"")
    (mine / "sub" / "torn.png").write_bytes((films / "001.png").read_bytes()[:100])
    (mine / "notes.txt").write_text("no film")
    (mine / "linked").symlink_to(films)
    with pytest.raises(ValueError, match=r"(?s)2 problems.*000\.png.*empty.*torn\.png.*truncated.*--skip-bad"):
        predict.predict_files(run, [mine], out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    predict.predict_files(run, [mine], out, skip_bad=True)
    told = capsys.readouterr().out
    assert "left out 1 files" in told and "1 linked folders" in told and "left out: 2 files" in told
    with np.load(out / "maps.npz") as maps:
        names = list(maps["image_id"])
        assert "000.png" not in names and len(maps["infomask"]) == len(table(out / "predictions.csv")) == 32
    boxes = json.loads((out / "boxes.json").read_text())  # numbered without the films that are left out
    assert boxes and all(names[box["image_id"]] == box["file_name"] for box in boxes)
    with (out / "skipped.csv").open() as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == ["000.png", "torn.png"]
    for absent, words in (("000.png", "1 problem"), ("absent", r"mine/absent: no such file or folder")):
        with pytest.raises(ValueError, match=words) as error:
            predict.predict_files(run, [mine / absent], tmp_path / "none", skip_bad=True)
        assert "--skip-bad" not in str(error.value)
    assert not (tmp_path / "none").exists()


def test_out_is_empty_apart_from_what_a_killed_predict_left(run, films, tmp_path):
    """Hidden folders, and what had moved up already, as predictions.csv had not; nothing else, and none at work."""
    out, film = tmp_path / "out", [films / "001.png"]
    (out / ".building" / "pictures").mkdir(parents=True)
    (out / "maps.npz").write_bytes(b"of the killed one")
    with lock(out / ".building", "at work"), pytest.raises(BlockingIOError, match="another predict is at work here"):
        predict.predict_files(run, film, out)
    assert (out / ".building" / "pictures").exists()
    (out / "mine.txt").write_text("")
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        predict.predict_files(run, film, out)
    (out / "mine.txt").unlink()
    predict.predict_files(run, film, out)
    assert {path.name for path in out.iterdir()} == WHOLE and list(table(out / "predictions.csv")) == ["001.png"]
    (out / ".building").mkdir()
    with pytest.raises(ValueError, match="expected a new or an empty folder"):  # it was whole
        predict.predict_files(run, film, out)
    with pytest.raises(ValueError, match="expected a folder outside of"):
        predict.predict_files(run, [films], films / "found")
    assert not (films / "found").exists()


def test_predict_that_a_signal_ends_can_be_repeated(run, films, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "infomask_jax", "predict", str(run), str(films / "sub"), "--out", str(out)]
    for number, status in ((signal.SIGINT, 1), (signal.SIGKILL, -9)):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not (out / ".building").exists() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
        assert process.returncode == status and "Traceback" not in told
        assert out.exists() == (number == signal.SIGKILL)
    for folder in (out, whole):
        predict.predict_files(run, [films / "sub"], folder)
    names = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_plain_classifier_and_several_findings(run, films, tmp_path, capsys):
    """A plain classifier is cut as it was scored with its run; one mask of both findings is audited for each."""
    predict.predict_files(run / "plain", [films / "001.png", films / "sub" / "003.png"], tmp_path / "out")
    assert "mass: not scored" not in capsys.readouterr().out
    cut = json.loads((run / "eval" / "test.json").read_text())["localization"]["mass"]["cam"]["threshold"]["value"]
    with np.load(tmp_path / "out" / "maps.npz") as maps:
        _, expected = region_boxes(maps["cam"][1:2, ..., 0], cut, frame=32)
    boxes = [b for b in json.loads((tmp_path / "out" / "boxes.json").read_text()) if b["category"] == "mass"]
    assert len([b for b in boxes if b["file_name"] == "003.png"]) == len(expected) > 0
    shutil.copytree(run, tmp_path / "run")
    data = datasets.load("folder", run.parent / "data")
    output = audit.audit_run(tmp_path / "run", data, "test", lungs_from_image=True)
    found = json.loads((output / "eval" / "audit_test.json").read_text())["findings"]
    assert all({"infomask", "infomask_bits"} < set(found[finding]["negative"]) for finding in FINDINGS)


def test_what_is_asked_for_is_found_once(films, tmp_path, capsys):
    found = find([films, films / "001.png", films / "sub", films / "sub" / "003.png"])
    assert len(found) == 32 and found["sub/003.png"] == films / "sub" / "003.png"
    (tmp_path / "001.png").write_bytes(b"another film")
    (tmp_path / "empty").mkdir()
    for asked, words in [
        ([films, tmp_path / "001.png"], r"1 problem.*\n.*are both 001\.png"),
        ([tmp_path / "a\nb.png", tmp_path / ("x" * 251), tmp_path / "caf\udce9.png"], r"(?s)3 problems.*a\\nb"),
        ([tmp_path / "empty"], "no X-ray is in this folder or below: no file whose name ends in .png"),
        ([], "found none"),
    ]:
        with pytest.raises(ValueError, match=words):
            find(asked)
    mine = tmp_path / "mine"
    for name in ("a.png", "._a.png", ".DS_Store", "__MACOSX/._a.png", "sub/._b.jpg", "sub/b.jpg", "notes.txt"):
        (mine / name).parent.mkdir(exist_ok=True, parents=True)
        (mine / name).write_bytes(b"")
    assert list(find([mine])) == ["a.png", "sub/b.jpg"]
    told = capsys.readouterr().out
    assert "left out 1 files whose names do not end in" in told and " and 4 hidden files or folders" in told
    assert list(find([mine / "._a.png"])) == ["._a.png"]  # by name
    (tmp_path / "empty" / "re\u0301.png").write_bytes(b"a")
    assert find([tmp_path / "empty"]) == {"r\xe9.png": tmp_path / "empty" / "re\u0301.png"}
    (tmp_path / "empty" / "r\xe9.png").write_bytes(b"b")
    with pytest.raises(ValueError, match="one name in two Unicode forms"):
        find([tmp_path / "empty"])


def test_unscored_run_and_run_of_before_still_predict(run, films, tmp_path, capsys):
    old = shutil.copytree(run, tmp_path / "run")
    assert predict.stored_size(Run.open(old)) == 48
    change(old / "manifest.json", ("stored_size",), None)
    assert predict.stored_size(Run.open(old)) == 48  # that of its data
    change(old / "manifest.json", ("dataset", "fingerprint"), "other")
    assert predict.stored_size(Run.open(old)) == 32 and "straight to 32" in capsys.readouterr().out
    cuts = predict.thresholds(Run.open(old))
    assert set(cuts) == {"mass"} and "effusion: not scored" in capsys.readouterr().out
    assert predict.thresholds(Run.open(old / "plain")) == cuts
    shutil.rmtree(old / "eval")
    predict.predict_files(old, [films / "001.png"], tmp_path / "out")
    told = capsys.readouterr().out
    assert "mass, effusion: not scored" in told and "cut at 0.5" in told and "of 1 X-rays" in told
    change(old / "config.json", ("train", "steps"), 7)
    with pytest.raises(ValueError, match="stopped at step 6 of 7"):
        predict.predict_files(old, [films / "001.png"], tmp_path / "other")


def test_picture_is_not_upside_down():
    film = np.zeros((300, 200), np.uint16)
    film[:150] = 65535  # bright above
    heat = np.zeros((8, 8))
    heat[:2, 6:] = 1  # hot at the top right
    nothing, box = np.zeros((0, 4)), np.array([[0.0, 0.75, 0.25, 1.0]])
    png = overlay(as_panel(film), "a film", [("mass", heat, nothing), ("mass", np.zeros((8, 8)), box)])
    page = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(int)
    plain, hot, boxed = np.split(page[24:], 3, axis=1)
    assert plain.shape == (512, 341, 3) and plain[:240].min() == 255 and plain[270:].max() == 0
    change = np.abs(hot - plain * 0.85).sum(-1)
    row, column = np.argwhere(change > 0.9 * change.max()).mean(0) / change.shape
    assert row < 0.25 and column > 0.7
    orange = np.argwhere((boxed == (0x1E, 0x9D, 0xFF)).all(-1))
    assert orange[:, 1].min() in range(254, 258) and orange[:, 0].max() in range(125, 131)
    long = overlay(as_panel(film[:200]), "x" * 500, [("ünbekannt\n" * 40, heat, nothing)] * 14)  # panels wrap
    assert cv2.imdecode(np.frombuffer(long, np.uint8), cv2.IMREAD_COLOR).shape == (4 * (512 + 24), 4 * 512, 3)


def test_boxes_are_listed_of_all_and_drawn_of_what_is_probable():
    """Of a mask for each finding; those of other models are stretched to be seen."""
    maps = np.zeros((2, 8, 8, 2), np.float16)
    maps[:, 2:4, 4:6, 0] = maps[:, 6:, :2, 1] = 0.8
    found = {"probability": np.array([[0.4, 0.9], [0.6, 0.1]]), "infomask": maps, "cam": maps}
    asked = ["a", "b"], [(80, 160), (160, 80)], ["mass", "effusion"], {"mass": {"infomask": 0.5, "cam": 0.5}}, 64
    boxes, panels = predict.find_boxes(found, "infomask", *asked)
    names = [(box["file_name"], box["category"]) for box in boxes]
    assert names == [("a", "mass"), ("b", "mass"), ("a", "effusion"), ("b", "effusion")]
    captions = [[caption for caption, _, _ in own] for own in panels]
    assert captions == [["mass: p = 0.400", "effusion: p = 0.900"], ["mass: p = 0.600", "effusion: p = 0.100"]]
    assert [[len(drawn) for _, _, drawn in own] for own in panels] == [[0, 1], [1, 0]]
    np.testing.assert_allclose(panels[1][0][2], [[0.25, 0.5, 0.5, 0.75]], atol=0.05)
    np.testing.assert_allclose(panels[0][1][2], [[0.75, 0.0, 1.0, 0.25]], atol=0.05)
    np.testing.assert_array_equal(panels[0][1][1], maps[0, ..., -1])
    assert predict.find_boxes(found, "cam", *asked)[1][0][0][1].max() == 1


def test_pictures_have_short_names_that_differ():
    """a.png of a.png, a.jpg or a, unless two films would have it."""
    assert predict.picture_names(["n1.png", "sub/n1.JPG", "IM.0001"]) == ["n1.png", "sub/n1.png", "IM.0001.png"]
    clashing = ["a.png", "a.jpg", "a.png.png", "a.jpg.dcm", "b", "b.png", "c.png"]
    names = predict.picture_names(clashing)
    assert len({*names}) == len(names) and names[-1] == "c.png"


def test_run_tells_of_its_training_and_of_films_unlike_it(run, films, tmp_path, capsys):
    """One line, and none for films of its own, or of a run from before; facts are those of its training films."""
    facts = json.loads((run / "manifest.json").read_text())["films"]
    assert facts == familiar.facts(datasets.load("folder", run.parent / "data")) and facts["aspect"] == [0.778, 0.778]
    predict.predict_files(run, [films / "001.png"], tmp_path / "own")
    told = capsys.readouterr().out
    assert "trained on folder, to find mass, effusion: 6 steps of 8 films, 32 px" in told and "warning" not in told
    other = tmp_path / "other"
    other.mkdir()
    for i in range(4):
        cv2.imwrite(str(other / f"{i}.png"), np.random.default_rng(i).integers(0, 60, (40, 90), np.uint8))
    predict.predict_files(run, [other, films / "001.png"], tmp_path / "out")
    told = capsys.readouterr().out
    assert told.count("warning: unlike those that the run was trained on: 4 of 5 X-rays") == 1
    assert f"such as {other / '0.png'} (width / height 2.25, of theirs 0.78 to 0.78)" in told
    corner = np.eye(64, dtype=np.float32)[0] * 64
    assert "from their mean picture" in familiar.unlike(facts, corner, (90, 70))
    old = shutil.copytree(run, tmp_path / "run")
    change(old / "manifest.json", ("films", "mean"), [0.0] * 9)
    with pytest.raises(ValueError, match=r"manifest\.json: films\.mean: expected 64 items, found 9"):
        predict.predict_files(old, [other], tmp_path / "old")
    change(old / "manifest.json", ("films",), None)
    predict.predict_files(old, [other], tmp_path / "old")
    assert "warning" not in capsys.readouterr().out


def test_samples_add_columns_and_arrays_and_change_none(run, films, tmp_path):
    """A film has the same numbers alone, among others and again; they are moments of single draws of the model."""
    asked = {"none": 0, "some": 5, "again": 5}
    for name, samples in asked.items():
        predict.predict_files(run, [films / "sub"], tmp_path / name, samples=samples)
    predict.predict_files(run, [films / "sub" / "003.png"], tmp_path / "alone", samples=5)
    kept = {name: dict(np.load(tmp_path / name / "maps.npz")) for name in (*asked, "alone")}
    new = {"infomask_mean", "infomask_sd"}
    assert kept["some"].keys() - kept["none"].keys() == new
    for name, array in kept["some"].items():
        np.testing.assert_array_equal(array, kept["again"][name])
        assert name in new or (array == kept["none"][name]).all()
    at = list(kept["some"]["image_id"]).index("003.png")
    for name in new:
        np.testing.assert_array_equal(kept["alone"][name][0], kept["some"][name][at])
        assert kept["some"][name].shape[1:] == (8, 8) and kept["some"][name].max() > 0
    rows, plain = table(tmp_path / "some" / "predictions.csv"), table(tmp_path / "none" / "predictions.csv")
    assert all(row.items() <= rows[name].items() for name, row in plain.items())
    assert rows["003.png"] == table(tmp_path / "alone" / "predictions.csv")["003.png"]
    opened = Run.open(run)
    source = Films([films / "sub" / "003.png"], 48)
    image = pipeline.to_batch(pipeline.Decoded(source), np.array([0]), 32)["image"]
    model = build(dataclasses.replace(opened.config.model, mask_samples=1), 2)
    features = model.apply({"params": opened.params}, image, train=False)[1]["features"]
    drawn = [
        model.apply({"params": opened.params}, image, train=True, features=features, rngs={"sample": key})
        for key in jax.random.split(jax.random.key(0), 5)
    ]
    p = scipy.special.expit(np.stack([logits[0] for logits, _ in drawn]))
    for k, name in enumerate(FINDINGS):
        for what, value in (("mean", p[:, k].mean()), ("sd", p[:, k].std())):
            assert float(rows["003.png"][f"{name} probability {what}"]) == pytest.approx(value, rel=1e-3)
    masks = np.stack([out["mask"][0, ..., 0] for _, out in drawn])
    np.testing.assert_allclose(kept["alone"]["infomask_sd"][0], masks.std(axis=0), atol=2e-3)
    with pytest.raises(ValueError, match="samples: expected 0, for a model of kind plain draws nothing; found 5"):
        predict.predict_files(run / "plain", [films / "001.png"], tmp_path / "plain", samples=5)
    with pytest.raises(ValueError, match="from 2 on, found 1"):
        predict.predict_files(run, [films / "001.png"], tmp_path / "one", samples=1)
