"""Anyone's maps and boxes through the command line: right numbers, every image accounted for, every fault named."""

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infomask_jax import __main__ as command
from infomask_jax.score_files import box_tables, galleries, matching

ROOT = Path(__file__).parent.parent
HEADER = "image,finding,x,y,w,h,image_width,image_height,patient"
NIH_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
RSNA_HEADER = "patientId,x,y,width,height,Target"
SIDE, GRID = 160, 16  # of the images and maps here


def hot(boxes, noise=0.0, seed=0):
    """Maps [N,16,16] that are 1 in the boxes (x, y, w, h in cells), row 0 on top."""
    maps = noise * np.random.default_rng(seed).random((len(boxes), GRID, GRID), dtype=np.float32)
    for heat, (x, y, w, h) in zip(maps, boxes, strict=True):
        heat[y : y + h, x : x + w] = 1
    return maps


def cells(n=12, seed=0):
    """Off-centre boxes in the top left quarter: no flip of a map finds them again."""
    rng = np.random.default_rng(seed)
    return [(*map(int, rng.integers(0, 4, 2)), *map(int, rng.integers(3, 5, 2))) for _ in range(n)]


def row(name, finding, box, patient):
    pixels = [v * SIDE // GRID for v in box] if box else [""] * 4
    return ",".join(map(str, [name, finding, *pixels, SIDE, SIDE, patient]))


def evaluate(folder, *arguments):
    """The command, in `folder`; returns what it has `written`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["infomask_jax", "evaluate", *map(str, arguments)])
        command.main()
    return written(folder)


def written(folder):
    """eval.json, rows of per_image.csv and the text of table.md."""
    out = folder / "evaluation"
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return json.loads((out / "eval.json").read_text()), rows, (out / "table.md").read_text()


def refusal(folder, *arguments):
    """The message with which the command ends; it must leave nothing behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        evaluate(folder, *arguments)
    assert sorted(folder.rglob("*")) == before
    return str(stop.value.code)


FILES = ("--maps", "maps.npz", "--boxes", "boxes.csv", "--resamples", 20, "--frame", 32)


def make_own(folder):
    """Twelve positives and six negatives of a mass, two images a patient; ten more images to tune on."""
    found, more = cells(), cells(8, seed=1)
    names, val = [f"t{i}.png" for i in range(18)], [f"v{i}.png" for i in range(10)]
    lines = [row(name, "mass", box, f"p{i // 2}") for i, (name, box) in enumerate(zip(names, found, strict=False))]
    lines += [row(name, "mass", None, f"p{i // 2}") for i, name in enumerate(names) if i >= 12]
    lines += [row(name, "mass", box, f"q{i}") for i, (name, box) in enumerate(zip(val, more, strict=False))]
    lines += [row(val[8], "mass", None, "q8"), row(val[9], "", None, "q9")]
    (folder / "boxes.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    maps, val_maps = (hot([*b, *[(8, 8, 2, 2)] * n], 0.3) for b, n in ((found, 6), (more, 2)))
    p, val_p = np.linspace(0.9, 0.1, 18), np.linspace(0.9, 0.1, 10)
    save(folder, image_id=names, infomask=maps, cam=maps[:, ::-1], probability=p)
    save(folder, "val.npz", image_id=val, infomask=val_maps, cam=val_maps[:, ::-1], probability=val_p)
    return folder


@pytest.fixture
def own(tmp_path):
    return make_own(tmp_path)


def add_rows(folder, *lines):
    with (folder / "boxes.csv").open("a") as file:
        file.write("\n".join(lines) + "\n")


def save(folder, name="maps.npz", **arrays):
    np.savez(folder / name, **{k: np.array(v) if k == "image_id" else v for k, v in arrays.items()})


def change(folder, name="maps.npz", **arrays):
    with np.load(folder / name) as stored:
        kept = {k: stored[k] for k in stored.files}
    np.savez(folder / name, **{k: v for k, v in {**kept, **arrays}.items() if v is not None})


@pytest.fixture
def matched(own, monkeypatch):
    """A function of the command's arguments: findings, split and maps as they go to the scorer."""

    def call(*arguments):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr("infomask_jax.evaluate.score", scorer := Mock(side_effect=ZeroDivisionError))
            evaluate(own, *arguments)
        return scorer.call_args.args

    return call


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """eval.json, rows of per_image.csv, table.md, and what was printed, of own files with thresholds tuned."""
    folder = make_own(tmp_path_factory.mktemp("own"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        found = evaluate(folder, *FILES, "--tune-on", "val.npz")
    assert (folder / "evaluation" / "table.tex").read_text().count(r"\toprule") == found[2].count("\n## ")
    return *found, printed.getvalue()


def test_own_files_are_scored_tuned_counted_and_written(scored):
    scores, rows, text, printed = scored
    entry = scores["localization"]["mass"]["infomask"]
    assert scores["n_images"] == 18 and scores["n_patients"] == 9
    assert entry["threshold"]["tuned_on"] == "val" and entry["mean_iou"]["value"] > 0.9
    assert scores["files"] == {
        **{"maps": 18, "with_boxes": 12, "positive_without_box": 0, "negative": 6, "unknown": 0},
        **{"boxes": 12, "boxes_of_other_findings": 0, "boxed_images_without_map": 0, "boxes_without_map": 0},
        "negative_images_without_map": 0,
        **{"tune_on_maps": 10, "tune_on_with_boxes": 8, "tune_on_positive_without_box": 0},
        **{"tune_on_negative": 2, "tune_on_unknown": 0},
    }
    assert scores["classification"]["mass"]["auroc"]["value"] == 1.0
    assert "Paired differences, mass" in printed and "Images counted" in printed and "images with a map" in printed
    assert "Wang 2017" not in printed and "Wang 2017" in text
    assert {r["method"] for r in rows} >= {"infomask", "cam", "control/random", "ceiling/16x16"}
    for method, entry in scored[0]["localization"]["mass"].items():  # rows of images average to the scores
        mine = [r for r in scored[1] if r["method"] == method]
        # A negative has no overlap, but RSNA's score: of maps alone, not of controls.
        negatives = set() if "/" in method else {f"t{i}.png" for i in range(12, 18)}
        assert len(mine) == 12 + len(negatives) and {r["image_id"] for r in mine if not r["iou"]} == negatives
        boxed = [r for r in mine if r["iou"]]
        assert np.mean([float(r["iou"]) for r in boxed]) == pytest.approx(entry["mean_iou"]["value"], abs=1e-5)


def test_only_the_upright_map_finds_the_box_and_protocols_are_printed_if_asked_for(own, capsys):
    boxes = [(0, 4, 6, 2)] * 18  # wide, left of centre and above it
    lines = [row(f"t{i}.png", "mass", boxes[i], "") for i in range(18)]
    (own / "boxes.csv").write_text("\n".join([HEADER, *lines]))
    upright = hot(boxes).astype(np.float16)  # as a run has them
    turned = {"down": upright[:, ::-1], "mirrored": upright[..., ::-1], "transposed": upright.swapaxes(1, 2)}
    np.savez_compressed(
        own / "maps.npz", image_id=np.array([f"t{i}.png" for i in range(18)]), upright=upright, **turned
    )
    scores, _, text = evaluate(own, *FILES, "--protocol", "wang2017", "wsol")
    entries = scores["localization"]["mass"]
    iou = {method: entries[method]["mean_iou"]["value"] for method in ("upright", *turned)}
    assert iou.pop("upright") > 0.95 and max(iou.values()) < 0.4
    assert "li2018" not in entries["upright"]["protocols"] and "Li 2018" not in text
    assert "Wang 2017" in capsys.readouterr().out


def test_nih_list_is_read_as_it_is_in_both_spellings(tmp_path):
    boxes = cells(6)
    lines = [f"0000{i // 2}_00{i}.png,Infiltrate,{','.join(str(v * 64.0) for v in b)},,," for i, b in enumerate(boxes)]
    lines += ["00000_000.png,Mass,10.5,20,300,400", "00010_000.png,Infiltrate,10.5,20,300,400"]
    (tmp_path / "BBox_List_2017.csv").write_text("\n".join([NIH_HEADER, *lines]) + "\n")
    names = [f"0000{i // 2}_00{i}.png" for i in range(6)] + ["00000_017.png", "00002_020.png", "00009_000.png"]
    maps = hot([*boxes, *boxes[:3]])
    save(tmp_path, image_id=names, cam=maps)
    options = ("--maps", "maps.npz", "--boxes", "BBox_List_2017.csv", "--resamples", 20, "--frame", 64)
    assert "--findings" in refusal(tmp_path, *options) and "Infiltration, Mass" in refusal(tmp_path, *options)
    scores, rows, _ = evaluate(tmp_path, *options, "--findings", "Infiltration")
    entry, files = scores["localization"]["Infiltration"]["cam"], scores["files"]
    assert entry["mean_iou"]["value"] > 0.85 and {r["patient_id"] for r in rows} == {"00000", "00001", "00002"}
    assert (files["maps"], files["with_boxes"], files["unknown"]) == (9, 6, 3)
    assert (files["boxes"], files["boxes_of_other_findings"], files["boxed_images_without_map"]) == (6, 1, 1)
    # AFP divides by all boxes of the images, as Wang et al. do: a mass is on them, too.
    wang = entry["protocols"]["wang2017"]
    assert wang["afp_iou"]["0.1"]["n"] == 7 and wang["acc_iou"]["0.1"]["n"] == 6
    findings = np.array(["Infiltrate", "Mass", "Hernia"])
    save(tmp_path, image_id=names, cam=np.stack([maps] * 3, -1), findings=findings)
    scores, _, _ = evaluate(tmp_path, *options)
    assert list(scores["localization"]) == ["Infiltration", "Mass"]
    assert scores["notes"] == ["no box in BBox_List_2017.csv of Hernia"]


def test_rsna_labels_are_read_as_they_are(tmp_path):
    boxes = cells(4)
    lines = [f"id-{i},{','.join(str(v * 64.0) for v in b)},1" for i, b in enumerate(boxes)]
    lines += ["id-0,700,700,200,200,1", "id-4,,,,,0", "id-5,,,,,0", "id-6,,,,,0"]
    (tmp_path / "labels.csv").write_text("\n".join([RSNA_HEADER, *lines]) + "\n")
    save(tmp_path, image_id=[f"id-{i}" for i in range(6)], cam=hot([*boxes, *boxes[:2]]))
    options = ("--maps", "maps.npz", "--boxes", "labels.csv", "--resamples", 20, "--frame", 64)
    scores, rows, _ = evaluate(tmp_path, *options)
    assert scores["counts"]["pneumonia"]["scored_boxes"] == 5 and scores["files"]["negative"] == 2
    assert all(r["rsna"] == "0" for r in rows if r["method"] == "cam" and r["image_id"] in ("id-4", "id-5"))
    change(tmp_path, image_id=np.array([f"folder/id-{i}.dcm" for i in range(6)]))
    assert "'folder/id-0.dcm' is 'id-0'" in refusal(tmp_path, *options)


def pictures(folder, names, shape=(SIDE, SIDE)):
    (folder / "films" / "a").mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "films" / "a" / name), np.full(shape, 60, np.uint8))


def test_images_give_sizes_and_galleries(own):
    pictures(own, [f"t{i}.png" for i in range(18)], (SIDE // 2, SIDE))  # half as high, and so are y and h
    boxes = [(x * 10, y * 5, w * 10, h * 5) for x, y, w, h in cells()]
    lines = [f"t{i}.png,mass,{x},{y},{w},{h}" for i, (x, y, w, h) in enumerate(boxes)]
    lines += [f"t{i}.png,mass,,,," for i in range(12, 18)] + ["elsewhere.png,mass,1,1,900,900"]
    (own / "boxes.csv").write_text("\n".join(["image,finding,x,y,w,h", *lines]))
    change(own, cam=None, probability=np.linspace(0.9, 0.6, 18))  # all hits: the misses are negatives, false alarms
    assert "row 1: expected also the columns image_width, image_height" in refusal(own, *FILES)
    scores, _, _ = evaluate(own, *FILES, "--images", "films", "--seed", 3)
    assert scores["files"]["without_image_file"] == 0 and scores["bootstrap"]["seed"] == 3
    assert scores["files"]["boxed_images_without_map"] == 1  # nobody asks for its file
    assert scores["localization"]["mass"]["infomask"]["mean_iou"]["value"] > 0.9
    figures = {path.name: path.stat().st_size for path in (own / "evaluation" / "figures").iterdir()}
    assert figures.keys() == {"hits.png", "misses.png"} and min(figures.values()) > 5000
    (own / "films" / "a" / "t3.png").unlink()
    assert "row 5, x, y, w, h: expected a file of 't3.png'" in refusal(own, *FILES, "--images", "films", "--out", "b")
    make_own(own)  # with columns of sizes
    cv2.imwrite(str(own / "films" / "a" / "t3.png"), np.zeros((SIDE, SIDE - 2), np.uint8))
    wanted = "row 2, x, y, w, h: expected image_width x image_height in the aspect ratio of its file, 160 x 80"
    assert wanted in refusal(own, *FILES, "--images", "films")


def test_a_hidden_twin_of_an_image_is_not_its_file(own):
    pictures(own, ["t0.png", "re\u0301.png"])
    (own / "films" / "a" / "._t0.png").write_bytes(b"\0\5\x16\7")
    find = galleries.finder(own / "films")
    assert {find(name).name for name in ("t0", "t0.png", "a/t0.png")} == {"t0.png"}
    assert find("r\xe9.png").name == "re\u0301.png" and galleries.without_file(find, ["t0", "x"], own) == {"x"}


def test_figures_are_those_of_this_run(own, monkeypatch):
    """Two findings with one folder's name, without every film; then none drawn."""
    pictures(own, [f"t{i}.png" for i in range(10)])
    drawn = []
    monkeypatch.setattr("infomask_jax.report.figures.gallery", lambda films, _: drawn.extend(films) or b"drawn")
    (own / "boxes.csv").write_text((own / "boxes.csv").read_text().replace(",mass,", ",a/b,"))
    add_rows(own, *[row(f"t{i}.png", "A_B", box, f"p{i // 2}") for i, box in enumerate(cells())])
    maps = np.load(own / "maps.npz")["cam"]
    change(own, cam=maps, zebra=maps, infomask=maps, probability=np.full((18, 2), 0.2))  # every positive is missed
    options = (*FILES, "--findings", "a/b", "A_B")
    scores, _, _ = evaluate(own, *options, "--images", "films")
    figures = own / "evaluation" / "figures"
    assert {str(path.relative_to(figures)) for path in figures.rglob("*.png")} == {"a_b/misses.png", "A_B_2/misses.png"}
    assert scores["files"]["without_image_file"] == 8
    assert all(list(film.maps) == ["infomask", "cam", "zebra"] for film in drawn)  # as in the tables
    (figures / "mine.png").write_bytes(b"")
    evaluate(own, *options)
    assert [path.name for path in figures.rglob("*.png")] == ["mine.png"]


def test_axes_of_findings_are_picked_by_name(own, matched):
    maps = np.random.default_rng(0).random((18, 2, 3, 2))
    add_rows(own, *[row(f"t{i}.png", "nodule", (9, 9, 3, 3), f"p{i // 2}") for i in range(12)])
    change(own, infomask=maps[..., 0], cam=maps, probability=None)
    assert "which axis is which finding" in refusal(own, *FILES)
    findings, data, arrays = matched(*FILES, "--findings", "nodule", "mass")
    assert findings == ["nodule", "mass"] and {*data["boxes"][0][1]} == {0, 1}
    np.testing.assert_array_equal(arrays["cam"], maps)
    change(own, findings=np.array(["nodule", "mass"]), probability=np.linspace(0, 1, 36).reshape(18, 2))
    findings, data, arrays = matched(*FILES, "--findings", "mass")
    np.testing.assert_array_equal(arrays["cam"], maps[..., 1:])
    np.testing.assert_array_equal(data["probabilities"][:, 0], np.linspace(0, 1, 36)[1::2])
    assert findings == ["mass"] and {*data["boxes"][0][1]} == {0, -1}
    scores, _, _ = evaluate(own, *FILES)
    assert list(scores["localization"]) == ["nodule", "mass"]
    assert scores["notes"] == ["maps.npz, cam: of shape (18, 2, 3, 2): the last axis was taken as findings"]
    assert "found masss" in refusal(own, *FILES, "--findings", "masss")


def test_labels_and_patients_come_from_both_files(own, matched):
    lines = (own / "boxes.csv").read_text().splitlines()
    (own / "boxes.csv").write_text("\n".join(line for line in lines if ",,,," not in line))
    change(own, label=np.array([1] * 11 + [-1] + [0] * 4 + [1, -1]), patient_id=np.array([""] * 13 + ["x"] * 5))
    data = matched(*FILES)[1]
    assert data["labels"][:, 0].tolist() == [1] * 12 + [0] * 4 + [1, -1]
    assert data["patient_id"] == [f"p{i // 2}" for i in range(12)] + [""] + ["x"] * 5
    counted = {"maps": 18, "with_boxes": 12, "positive_without_box": 1, "negative": 4, "unknown": 1}
    assert matching.count(data) == counted


def test_notes_tell_fixed_thresholds_and_names_that_nearly_match(own, capsys):
    lines = (own / "boxes.csv").read_text().splitlines()
    (own / "boxes.csv").write_text("\n".join(line for line in lines if not re.match("v[0-7]", line)))
    rename(own, "maps.npz", ["t0", "t1", "a/t2.png", *[f"t{i}.png" for i in range(3, 18)]])
    scores, _, text = evaluate(own, *FILES, "--tune-on", "val.npz")
    near, fixed = scores["notes"]
    assert near.startswith("3 images are not matched, but would be without folder and suffix: 't0' has a map and 't0.p")
    assert fixed == "no box on the images of val.npz: thresholds are fixed for mass"
    printed = capsys.readouterr().out
    assert near in text and fixed in text and fixed in printed and scores["files"]["with_boxes"] == 9
    assert scores["localization"]["mass"]["cam"]["threshold"]["tuned_on"] == "fixed"


def test_maps_to_tune_on_are_of_other_images_of_the_table(own):
    names, tuned = [f"v{i}.png" for i in range(10)], (*FILES, "--tune-on", "val.npz")
    rename(own, "val.npz", [*names[:4], "t7.png", *names[5:]])
    message = refusal(own, *tuned)
    assert "1 of its 10 images" in message and "'t7.png'" in message and "oracle" in message
    rename(own, "val.npz", [f"w{i}.png" for i in range(10)])
    wanted = "--tune-on val.npz: no image in common with the boxes: image_id has 'w0.png'"
    assert wanted in refusal(own, *tuned)
    change(own, "val.npz", image_id=np.array(names), cam=np.full((10, 4, 4), np.nan))
    assert "val.npz: cam maps with NaN, infinity or float16 overflow: v0.png" in refusal(own, *tuned)
    change(own, "val.npz", cam=None)
    assert "expected maps of cam, infomask" in refusal(own, *tuned)


def rename(own, name, names):
    change(own, name, image_id=np.array(names))


def test_names_match_in_either_unicode_form(own, scored):
    """Of images, patients, findings and files, some in one form and some in the other; './a.png' is 'a.png'."""
    forms, before = ("r\xe9", "re\u0301"), scored[0]
    text = (own / "boxes.csv").read_text().replace("mass", forms[0])
    for i in range(0, 18, 2):
        text = text.replace(f"t{i}.png", f"{forms[i // 2 % 2]}{i}.png")
    (own / "boxes.csv").write_text(text.replace("v3.png", "v\xe93.png"), encoding="utf-8")
    names = [f"./t{i}.png" if i % 2 else f"{forms[1 - i // 2 % 2]}{i}.png" for i in range(18)]
    rename(own, "maps.npz", names)
    rename(own, "val.npz", [f"v{i}.png" if i != 3 else "ve\u03013.png" for i in range(10)])
    scores, _, _ = evaluate(own, *FILES, "--tune-on", "val.npz", "--findings", forms[1])
    assert scores["localization"][forms[0]] == before["localization"]["mass"] and not scores["notes"]
    assert scores["files"] == before["files"]


def test_names_that_would_be_formulas_or_markup_are_only_text_and_files_come_before_the_screen(own, monkeypatch):
    monkeypatch.setattr("infomask_jax.report.print_scores", Mock(side_effect=BrokenPipeError))
    name = "=a|b`c`&amp;$x$"
    text = (own / "boxes.csv").read_text().replace("mass", name).replace("t0.png", "@t0.png")
    (own / "boxes.csv").write_text(text)
    rename(own, "maps.npz", ["@t0.png", *[f"t{i}.png" for i in range(1, 18)]])
    change(own, **{"-cam": np.load(own / "maps.npz")["cam"]})
    with pytest.raises((BrokenPipeError, SystemExit)):
        evaluate(own, *FILES)
    scores, rows, table = written(own)
    assert name in scores["localization"]
    assert {row["finding"] for row in rows} == {f"'{name}"} and {"'-cam", "cam"} < {row["method"] for row in rows}
    assert "'@t0.png" in {row["image_id"] for row in rows}
    assert r"\=" not in table and r"=a\|b\`c\`\&amp;\$x\$" in table
    assert r"=a\textbar{}b\`{}c\`{}\&amp;\$x\$" in (own / "evaluation" / "table.tex").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected a RUN, or --maps with --boxes; found none"),
        (("runs/x", "--maps", "maps.npz"), "found both"),
        ((*FILES, "--split", "val", "--dataset", "nih"), "--dataset, --split: only for a RUN"),
        ((*FILES, "--protocol", "wang"), "--protocol: expected some of wang2017"),
        ((*FILES[:-1], 0), "--frame: expected 8 to 4096, found 0"),
        ((*FILES, "--out", "boxes.csv"), "--out: expected a folder"),
        ((*FILES, "--images", "nowhere"), "--images: expected a folder"),
        (("--maps", "none.npz", "--boxes", "boxes.csv"), "none.npz: expected a file of maps, found none"),
        ((*FILES, "--out", "taken"), "--out: expected to write taken/table.md, found a folder"),
        (("--maps", "maps.npz", "--boxes", "none.csv"), "found no file none.csv"),
    ],
)
def test_bad_options_are_refused(own, arguments, words):
    (own / "taken" / "table.md").mkdir(parents=True)
    assert words in refusal(own, *arguments)


N = 18
BAD_ARRAYS = [
    ({"image_id": np.array(["a"] * N)}, "image_id: expected each image once, found a"),
    ({"image_id": np.array([b"t0.png"] * N)}, "found bytes; write image_id=numpy.array(names, dtype=str)"),
    ({"image_id": None}, "expected an array image_id, found infomask, cam, probability"),
    ({"image_id": np.array(["../a"] * N)}, "image_id: expected the name of an image inside its folder"),
    ({"image_id": np.array([f"x{i}" for i in range(N)])}, "image_id has 'x0', they have 't0.png'"),
    ({"cam": np.ones((N - 1, 4, 4))}, "found (17, 4, 4); one map for each of the 18 names"),
    ({"cam": np.ones((N, 1, 4, 1)), "findings": np.array(["mass"])}, "squeeze axis 1: cam[:, 0]"),
    ({"cam": np.ones((N, 2, 4, 4)), "findings": np.array(["mass", "b"])}, "last: cam.transpose(0, 2, 3, 1)"),
    ({"cam": np.ones((N, 4, 4, 2)), "infomask": np.ones((N, 4, 4, 3))}, "expected a last axis of the same"),
    ({"cam": np.zeros((N, 4, 4), "V2")}, "found |V2; write maps.detach().float().cpu().numpy() (bfloat16"),
    ({"control/x": np.ones((N, 4, 4))}, "this beginning is kept for our own controls"),
    ({"probabilities": np.ones(N)}, "image_id; other arrays have one of the names image_id, patient_id"),
    ({"probability": np.linspace(-3, 3, N)}, "expected 0 to 1; apply a sigmoid to logits; found -3 of t0.png"),
    ({"label": np.ones(N)}, "label of t12.png: expected 0 or -1 of mass, as the boxes say; found 1"),
    ({"patient_id": np.array(["p0", "q9"] + [""] * 16)}, "patient_id of t1.png: expected 'p0', as the boxes say"),
]


@pytest.mark.parametrize(("arrays", "words"), BAD_ARRAYS)
def test_bad_arrays_are_named(own, arrays, words):
    change(own, **arrays)
    message = refusal(own, *FILES)
    assert words in message and "maps.npz" in message, message


def test_faults_of_the_machine_are_one_line(own, monkeypatch):
    """Too little memory, and a folder that cannot be written, which is found before all."""
    monkeypatch.setattr("infomask_jax.evaluate.score", Mock(side_effect=MemoryError))
    assert refusal(own, *FILES) == "error: out of memory; score fewer images or methods at a time, in a smaller --frame"
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(30, "Read-only file system")))
    message = refusal(own, *FILES)
    assert "--out: expected a folder that can be written to" in message and "Read-only file system" in message


BAD_ROWS = {
    "t0.png,mass,1,1,5,5,160,160,p0\nt0.png,mass,1,1,5,5,160,160,p0": "row 31, x, y, w, h: expected each box once",
    "t0.png,mass,150,1,50,5,160,160,p0": "expected a box inside 160 x 160",
    "t0.png,mass,.1,.1,.5,.5,160,160,p0": "row 30, x, y, w, h: expected pixels, found a box of 0.5 x 0.5",
    "t0.png,mass,nan,1,5,5,160,160,p0": "expected four numbers, found 'nan, 1, 5, 5'",
    "t0.png,mass,1,1,5,5,,,p0": "expected image_width and image_height, found nothing",
    "t0.png,mass,1,1,5,5,320,160,p0": "one size of 't0.png', found 320 x 160, and 160 x 160 in boxes.csv, row 2",
    "t0.png,mass,1,1,5,5,160.5,160,p0": "expected image_width and image_height in pixels, found '160.5, 160'; whole",
    "t0.png,,1,1,5,5,160,160,p0": "finding: expected the finding of the box, found nothing",
    "t0.png,mass,1,1,5,5,160,160,p7": "patient: expected one patient of 't0.png', found also 'p0'",
    "t0.png,mass,,,,,160,160,p0": "expected no box of an image that is negative, found 't0.png' negative in boxes.csv",
    "t0.png,mass,1,1": "row 30, row: expected 9 cells, found 4",
}


@pytest.mark.parametrize("line", BAD_ROWS)
def test_bad_rows_are_named_together(own, line):
    add_rows(own, line, "t1.png,mass,0,0,-3,3,160,160,p0")
    message = refusal(own, *FILES)
    assert BAD_ROWS[line] in message and "boxes.csv, row" in message and "found x 0, y 0, width -3" in message, message


BAD_TABLES = [
    ("a,b,c\n1,2,3", "expected the columns image, finding, x, y, w, h, image_width, image_height, or the header"),
    ("image,finding\x1b,x", r"among them image, finding, x, y, w, h; found image, finding\x1b, x"),
    (HEADER, "found only the header"),
    (f"{HEADER}\nt0.png,mass,.1,.1,.4,1,160,160,", "x, y, w, h: expected pixels, found no box larger than 1"),
    (f"{HEADER}\nt0.png,m\x1bass,1,1,5,5,160,160,", r"row 2, finding: expected printable text, found 'm\x1bass'"),
    (f"{HEADER}\nt0.png,mass,,,,,,,", "boxes.csv: expected a box, found only negative images"),
    (f"{NIH_HEADER}\nt0.png,Masss,1,1,5,5", "Finding Label: expected one of Atelectasis"),
    (f"{NIH_HEADER}\nt0.png,Mass,.1,.1,.4,.5", "Bbox [x,y,w,h]: expected pixels, found no box larger than 0.5; mul"),
    (f"{RSNA_HEADER}\nt0.png,1,1,5,5,0", "Target: expected a box with Target 1 and none with 0"),
    (f"{RSNA_HEADER}\nt0.png,,,,,0\nt0.png,1,1,5,5,1", "expected no box of an image that is negative"),
]


@pytest.mark.parametrize(("text", "words"), BAD_TABLES)
def test_bad_tables_are_refused(own, text, words):
    (own / "boxes.csv").write_text(text + "\n" * bool(text), encoding="latin-1")
    assert words in refusal(own, *FILES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=30, deadline=None)
@given(st.data(), st.permutations(HEADER.split(",")))
def test_any_box_inside_its_image_is_read_back(folder, data, columns):
    width, height = data.draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    edges = [data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2).map(sorted)) for n in (width, height)]
    (x, w), (y, h) = [(low, high - low) for low, high in edges]
    cells = {"image": "a/b.png", "finding": "mass", "x": x, "y": y, "w": w, "h": h, "patient": "p"}
    cells |= {"image_width": width, "image_height": height}
    path = folder / "boxes.csv"
    path.write_text("\ufeff" + ",".join(columns) + "\n" + ",".join(str(cells[c]) for c in columns) + "\r\n")
    table = box_tables.read([path])
    ((finding, box),) = table.boxes["a/b.png"]
    np.testing.assert_allclose(box, [y / height, x / width, (y + h) / height, (x + w) / width], rtol=1e-6)
    assert finding == "mass" and table.patients == {"a/b.png": "p"}


class Tensor(np.ndarray):
    """Enough of torch for README's lines."""

    detach = float = cpu = numpy = lambda self: self


def test_lines_of_the_readme_work(tmp_path, monkeypatch):
    section = (ROOT / "README.md").read_text().split("## Score your own maps")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (line,) = re.findall(r"python -m infomask_jax (evaluate .*)", section)
    table = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert table[0] == HEADER and len([line for line in code.splitlines() if line]) == 3
    assert code.count(".detach().float().cpu().numpy()") == 3  # of bfloat16 on a GPU, too
    (tmp_path / "boxes.csv").write_text("\n".join([*table, "v.png,mass,1,1,50,50,1024,1024,p3"]))
    monkeypatch.chdir(tmp_path)
    for name, ids in (("val.npz", ["v.png"]), ("maps.npz", ["0001.png", "0002.png"])):
        n = len(ids)
        tensors = {"cam": hot([(8, 5, 1, 1)] * n), "gradcam": hot([(0, 5, 1, 1)] * n), "p": np.linspace(0.9, 0.1, n)}
        exec(code, {"names": ids} | {name: array.view(Tensor) for name, array in tensors.items()})
        (tmp_path / "maps.npz").rename(tmp_path / name)
    pictures(tmp_path, ["0001.png", "0002.png"])
    scores, _, _ = evaluate(tmp_path, *line.replace("DIR", "films").split()[1:], "--resamples", 20)
    found = {m: e["pointing_game"]["value"] for m, e in scores["localization"]["mass"].items()}
    assert found["cam"] == 1.0 and found["gradcam"] == 0.0 and scores["files"]["negative"] == 1


def test_scoring_files_needs_no_jax(own):
    code = "import sys; from infomask_jax.__main__ import main; main(); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "evaluate", *map(str, FILES)], cwd=own, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
