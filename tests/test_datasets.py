"""datasets/: releases are read right or refused with every problem, and what is on disk is whole or not there."""

import csv
import errno
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import change

from infomask_jax import datasets, pipeline
from infomask_jax.config import DataConfig, MachineConfig
from infomask_jax.datasets import BadData, Folder, Synthetic, images, load, prepare, schema
from infomask_jax.datasets.store import Source
from infomask_jax.pixels import encode, resize
from infomask_jax.system import lock

REPOSITORY = Path(__file__).resolve().parents[1]


def picture(path, seed=0, shape=(32, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)))


def table(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        csv.writer(file).writerows(rows)


def examples(prepared, split):
    source = prepared.source(split)
    return {example["image_id"]: example for example in (source[i] for i in range(len(source)))}


@pytest.fixture
def own(tmp_path):
    """A folder release of six images, 32 high and 40 wide, with two findings and two boxes."""
    rows = [("a.png", 1, 0, "p1", "train"), ("b.png", 0, "", "p1", "train"), ("sub/c.png", "", 1, "p2", "val")]
    rows += [("d.png", 0, 0, "p3", "test"), ("e.png", 1, 1, "p4", "train"), ("f.png", "0.0", "1.0", "p5", "train")]
    for seed, row in enumerate(rows):
        picture(tmp_path / "own/images" / row[0], seed, (32, 40))
    table(tmp_path / "own/labels.csv", ("image", "mass", "edema", "patient", "split"), *rows)
    boxes = [("a.png", "mass", 10, 4, 20, 16), ("e.png", "edema", 0, 0, 40.5, 32)]
    table(tmp_path / "own/boxes.csv", ("image", "finding", "x", "y", "w", "h"), *boxes)
    return Folder(tmp_path / "own", data_dir=tmp_path / "data", size=16)


def with_rows(own, name, *rows):
    """Adds rows to a table of the release."""
    with (own.source / name).open("a", newline="") as file:
        csv.writer(file).writerows(rows)
    return own


def changed(options, **values):
    return type(options)(**{**vars(options), **values})


def nothing_is_left(options):
    folder = next(options.data_dir.iterdir())
    return [path.name for path in folder.iterdir()] == [".lock"]


def test_folder_becomes_examples(own):
    prepared = prepare(own)
    assert prepared.findings == ("mass", "edema")
    assert prepared.splits == {"train": 4, "val": 1, "test": 1}
    train = examples(prepared, "train")
    assert {name: e["labels"].tolist() for name, e in train.items()} == {
        "a.png": [1, 0],
        "b.png": [0, -1],
        "e.png": [1, 1],
        "f.png": [0, 1],
    }
    for example in train.values():
        schema.check(example, prepared.findings)
        assert (example["height"], example["width"], example["mask"]) == (32, 40, b"")
    np.testing.assert_allclose(train["a.png"]["boxes"], [[4 / 32, 10 / 40, 20 / 32, 30 / 40]])
    assert train["a.png"]["box_labels"].tolist() == [0] and train["e.png"]["box_labels"].tolist() == [1]
    assert train["e.png"]["boxes"].max() == 1  # half a pixel outside is rounding
    expected = resize(images.decode(own.source / "images/a.png"), 16)
    np.testing.assert_array_equal(images.decode(train["a.png"]["image"]), expected)
    assert prepared.summary["train"] == {
        **{"images": 4, "patients": 3, "boxes": 2, "boxed images": 2},
        "labels": [[2, 2, 0], [2, 1, 1]],
    }


def test_findings_select_labels_and_boxes(own):
    train = examples(prepare(changed(own, findings=("edema",))), "train")
    assert train["a.png"]["labels"].tolist() == [0] and train["a.png"]["box_labels"].tolist() == [-1]
    assert train["e.png"]["box_labels"].tolist() == [0]


def test_sixteen_bits_stay_sixteen(own):
    deep = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 50
    (own.source / "images/a.png").write_bytes(encode(deep))
    image = images.decode(examples(prepare(own), "train")["a.png"]["image"])
    np.testing.assert_array_equal(image, resize(deep, 16))
    assert image.dtype == np.uint16


def test_fields_are_read_as_tfds_reads_them(own):
    prepared = prepare(own)
    parser = tfds.builder_from_directory(prepared.directory).info.features
    for split in prepared.splits:
        source = prepared.source(split)
        for i in range(len(source)):
            expected = parser.deserialize_example_np(source.records[i])
            expected |= {name: expected[name].decode() for name in ("image_id", "patient_id", "view")}
            chex.assert_trees_all_equal(source[i], expected, strict=True)
            assert prepared.source(split, ["boxes"])[i].keys() == {"boxes"}


def test_field_that_is_absent_or_of_another_shape_is_named(own):
    records = prepare(own).source("train").records
    flags = Source(records, {"flag": tfds.features.TensorInfo(shape=(), dtype=np.int32)})
    with pytest.raises(ValueError, match="expected a field flag in the example, found box_labels, boxes"):
        flags[0]
    boxes = Source(records, {"boxes": tfds.features.TensorInfo(shape=(), dtype=np.float32)})
    with pytest.raises(ValueError, match=r"boxes: expected one value, found \d+; prepare it again"):
        boxes[0]


def test_source_crosses_to_a_spawned_worker(own):
    source = prepare(own).source("train")
    assert len(pickle.dumps(source)) < 20_000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(source.__getitem__, (1,))
    assert there["image_id"] == source[1]["image_id"] and there["image"] == source[1]["image"]
    with pytest.raises(IndexError):
        source[4]


def test_preparing_never_imports_tensorflow_or_jax(own):
    code = (
        "import sys; from pathlib import Path; from infomask_jax.datasets import Folder, prepare;"
        f"p = prepare(Folder(Path({str(own.source)!r}), data_dir=Path({str(own.data_dir)!r}), size=16));"
        "p.source('train')[0]; sys.exit('tensorflow' in sys.modules or 'jax' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60)


BAD_ROWS = {  # what is wrong -> (table, its rows, what the message must hold)
    "label": ("labels.csv", [("g.png", "2", 0, "p9", "train")], ["row 8, mass", "expected 0, 1 or nothing, found '2'"]),
    "nan label": ("labels.csv", [("g.png", "nan", 0, "p9", "train")], ["row 8, mass", "'nan'"]),
    "duplicate": ("labels.csv", [("./a.png", 1, 0, "p1", "train")], ["row 8, image", "'a.png' also in row 2"]),
    "missing": ("labels.csv", [("none.png", 1, 0, "p9", "train")], ["row 8, image", "no 'none.png'"]),
    "parent": ("labels.csv", [("../own/g.png", 1, 0, "p9", "train")], ["row 8, image", "'../own/g.png'"]),
    "absolute": ("labels.csv", [("/etc/passwd", 1, 0, "p9", "train")], ["row 8, image", "'/etc/passwd'"]),
    "link": ("labels.csv", [("link.png", 1, 0, "p9", "train")], ["row 8, image", "found a link to"]),
    "same file": ("labels.csv", [("same.png", 1, 0, "p9", "test")], ["row 8, image", "same file as 'a.png'"]),
    "split": ("labels.csv", [("g.png", 1, 0, "p9", "dev")], ["row 8, split", "'dev'"]),
    "two splits": ("labels.csv", [("h.png", 1, 0, "p1", "test")], ["row 8, split", "patient p1", "test, train"]),
    "ragged": ("labels.csv", [("g.png", 1)], ["row 8, row", "expected 5 cells, found 2"]),
    "truncated": ("labels.csv", [("cut.png", 1, 0, "p9", "train")], ["row 8, image", "cut.png", "truncated"]),
    "box finding": ("boxes.csv", [("a.png", "masss", 1, 1, 2, 2)], ["row 4, finding", "'masss'"]),
    "box label": ("boxes.csv", [("a.png", "edema", 1, 1, 2, 2)], ["row 4, finding", "expected label 1"]),
    "box image": ("boxes.csv", [("z.png", "mass", 1, 1, 2, 2)], ["row 4, image", "'z.png'"]),
    "box outside": ("boxes.csv", [("a.png", "mass", 30, 1, 20, 2)], ["row 4, box", "inside 40 x 32", "x 30"]),
    "box area": ("boxes.csv", [("a.png", "mass", 3, 1, 0, 2)], ["row 4, box", "some area", "width 0"]),
    "box nan": ("boxes.csv", [("a.png", "mass", "nan", 1, 2, 2)], ["row 4, x, y, w, h", "nan"]),
    "box twice": (
        "boxes.csv",
        [("./a.png", "mass", "10.0", "4.00", "2e1", 16)],
        ["row 4, x, y, w, h", "expected each box once, found it also in boxes.csv, row 2"],
    ),
    "box below a pixel": (
        "boxes.csv",
        [("e.png", "mass", 0.1, 0.2, 0.25, 1)],
        ["row 4, x, y, w, h", "expected pixels, found a box of 0.25 x 1; multiply it by the image's size"],
    ),
    "box name": ("boxes.csv", [("../a.png", "mass", 1, 1, 2, 2)], ["row 4, image", "found '../a.png'"]),
    "escape": ("labels.csv", [("g\x1b[31m.png", 1, 0, "p9", "train")], ["row 8, image", r"found 'g\x1b[31m.png'"]),
    "direction": ("labels.csv", [("g.png", 1, 0, "p\u202e9", "train")], ["row 8, patient", r"found 'p\u202e9'"]),
    "long name": ("labels.csv", [("x" * 300 + ".png", 1, 0, "p9", "train")], ["row 8, image", "found no 'xxx"]),
    "long path": ("labels.csv", [("x/" * 3000 + "g.png", 1, 0, "p9", "train")], ["row 8, image", "found no 'x/x"]),
}


@pytest.fixture
def traps(own):
    folder = own.source / "images"
    picture(folder / "g.png", 9)
    picture(folder / "h.png", 11)
    picture(own.source.parent / "outside.png", 10)
    (folder / "link.png").symlink_to(own.source.parent / "outside.png")
    (folder / "same.png").symlink_to(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "g.png").read_bytes()[:-20])
    return own


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row_is_named_and_leaves_nothing(traps, kind):
    name, rows, words = BAD_ROWS[kind]
    with pytest.raises(BadData) as error:
        prepare(with_rows(traps, name, *rows))
    assert name in str(error.value) and all(word in str(error.value) for word in words), str(error.value)
    assert nothing_is_left(traps)
    with pytest.raises(FileNotFoundError, match="python -m infomask_jax prepare folder"):
        load("folder", traps.data_dir)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_boxes_in_0_to_1_stop_it(own, skip_bad):
    boxes = [("a.png", "mass", 0.1, 0.2, 0.3, 0.25), ("e.png", "edema", 0, 0, 1, 1)]
    table(own.source / "boxes.csv", ("image", "finding", "x", "y", "w", "h"), *boxes)
    words = "boxes.csv, x, y, w, h: expected pixels, found no box larger than 1; multiply them by the image's size"
    with pytest.raises(BadData, match=words):
        prepare(changed(own, skip_bad=skip_bad))
    assert nothing_is_left(own)


def test_bad_name_in_the_first_row_of_boxes_is_named(own):
    table(own.source / "boxes.csv", ("image", "finding", "x", "y", "w", "h"), ("/a.png", "mass", 1, 1, 2, 2))
    with pytest.raises(BadData, match=r"boxes\.csv, row 2, image: expected the name of an image .* found '/a\.png'"):
        prepare(own)


@pytest.mark.parametrize("name", ["mass\x1b[31m", "mass\x9b", "mass\nis large", "mass\u202e"])
def test_names_of_findings_that_do_not_print_are_refused(own, name):
    table(own.source / "labels.csv", ("image", name), ("a.png", 1), ("b.png", 0))
    with pytest.raises(BadData, match=r"labels\.csv, row 1: expected printable names of columns, found 'mass") as error:
        prepare(own)
    assert str(error.value).isprintable()


def test_a_column_of_something_else_is_told_once(own):
    rows = [(f"{name}.png", i % 2, 40 + i, "MF"[i % 2], "") for i, name in enumerate("abdef")]
    table(own.source / "labels.csv", ("image", "mass", "age", "sex", "nodule"), *rows)
    (own.source / "boxes.csv").unlink()
    for skip_bad in (False, True):
        with pytest.raises(BadData, match=r"2 problems:\n.*, age: .* '40' in row 2 and so on, 5 of 5") as error:
            prepare(changed(own, skip_bad=skip_bad))
        assert "labels.csv, sex: " in str(error.value) and str(error.value).count("name the findings with --find") == 2
    prepared = prepare(changed(own, findings=("mass",)))
    assert prepared.findings == ("mass",) and sum(prepared.splits.values()) == 5


def test_boxes_of_a_finding_that_is_not_asked_for_need_its_label_all_the_same(own):
    with_rows(own, "boxes.csv", ("a.png", "edema", 1, 1, 2, 2))
    with pytest.raises(BadData, match="row 4, finding: expected label 1"):
        prepare(changed(own, findings=("mass",)))


NFC, NFD = "r\xe9", "re\u0301"


@pytest.mark.parametrize("written", [NFC, NFD])
def test_names_match_in_either_unicode_form(own, written):
    """Of images, patients and findings; folder and file are in both forms."""
    other = NFD if written == NFC else NFC
    for i, name in enumerate((f"{other}/{other}0", f"{written}1", "plain")):
        picture(own.source / f"images/{name}.png", i, (32, 40))
    rows = [(f"{written}/{written}0.png", 1, written, "train"), (f"{other}1.png", 0, other, "train")]
    table(own.source / "labels.csv", ("image", written, "patient", "split"), *rows, ("plain.png", 0, "p", "val"))
    table(
        own.source / "boxes.csv",
        ("image", "finding", "x", "y", "w", "h"),
        (f"{other}/{written}0.png", other, 1, 1, 20, 20),
    )
    prepared = prepare(changed(own, findings=(other,)))
    assert prepared.findings == (NFC,) and prepared.summary["train"]["boxes"] == 1
    train = examples(prepared, "train")
    assert set(train) == {f"{NFC}/{NFC}0.png", f"{NFC}1.png"} and {e["patient_id"] for e in train.values()} == {NFC}
    picture(own.source / f"images/{other}1.png", 5)
    with pytest.raises(BadData, match=r"row 3, image: expected one file, found .*\(NFC, NFD\); keep one"):
        prepare(changed(own, overwrite=True))


def test_a_name_in_both_forms_is_one_image(own):
    picture(own.source / f"images/{NFD}.png", 7)
    table(own.source / "labels.csv", ("image", "mass"), (f"{NFC}.png", 1), (f"{NFD}.png", 1))
    (own.source / "boxes.csv").unlink()
    with pytest.raises(BadData, match=r"row 3, image: expected each image once, found .* also in row 2"):
        prepare(own)


def test_skipped_csv_holds_no_formula(own):
    with_rows(own, "labels.csv", ("=cmd.png", 1, 0, "p9", "train"), ("g\x1b.png", 1, 0, "p9", "train"))
    with (prepare(changed(own, skip_bad=True)).directory / "skipped.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [r"g\x1b.png", "'=cmd.png"]


def test_all_problems_come_at_once(traps):
    chosen = ["label", "parent", "truncated", "box finding", "box outside"]
    for kind in chosen:
        with_rows(traps, *BAD_ROWS[kind][:1], *BAD_ROWS[kind][1])
    with_rows(traps, "boxes.csv", ("e.png", "mass", 1, 2, "inf", 2))
    with_rows(traps, "boxes.csv", ("f.png", "edema", 1, 2, 200, 2))
    with pytest.raises(BadData, match="7 problems") as error:
        prepare(traps)
    for word in ("'2'", "'../own/g.png'", "cut.png", "'masss'", "inf", "width 200"):
        assert word in str(error.value)


def test_skip_bad_lists_what_it_leaves_out(traps):
    for kind in ("label", "truncated", "two splits", "box outside"):
        name, rows, _ = BAD_ROWS[kind]
        with_rows(traps, name, *rows)
    prepared = prepare(changed(traps, skip_bad=True))
    assert set(examples(prepared, "train")) == {"e.png", "f.png"}  # a: its box; b: its patient is in two splits
    with (prepared.directory / "skipped.csv").open() as file:
        skipped = list(csv.DictReader(file))
    assert {row["image"] for row in skipped} == {"a.png", "b.png", "g.png", "h.png", "cut.png"}
    assert {"file", "row", "field", "reason"} < skipped[0].keys() and all(row["reason"] for row in skipped)
    with pytest.raises(BadData, match="asked for without --skip-bad"):
        prepare(traps)


def test_skip_bad_may_empty_a_split(own):
    (own.source / "images/d.png").write_bytes(b"")
    prepared = prepare(changed(own, skip_bad=True))
    assert prepared.splits == {"train": 4, "val": 1}
    with pytest.raises(ValueError, match="expected one of train, val; found split 'test'"):
        prepared.source("test")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "found none"),
        (b"image,mass\n", "only the header"),
        (b"name,mass\na.png,1\n", "among them image"),
        (b"image\na.png\n", "a column for each finding"),
        (b"image,mass,mass\na.png,1,1\n", "names of their own"),
        (b"image,mass\na\xff.png,1\n", "UTF-8"),
        (b'image,mass\n"a.png,1\n', "unexpected end"),
    ],
)
def test_unusable_table_is_refused(own, text, words):
    (own.source / "labels.csv").write_bytes(text)
    (own.source / "boxes.csv").unlink()
    with pytest.raises(BadData, match=words):
        prepare(own)
    assert nothing_is_left(own)


def test_unknown_finding_option_is_refused(own):
    with pytest.raises(BadData, match="expected some of mass, edema; found Mass"):
        prepare(changed(own, findings=("Mass",)))


def test_prepare_twice_is_once(own, capsys):
    first = prepare(own)
    before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    assert prepare(changed(own, skip_bad=True)) == first == load("folder", own.data_dir)
    assert "already prepared" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    assert not list(first.directory.parent.glob(".building*"))


def test_what_a_killed_prepare_left_is_taken_away_by_the_next(own, capsys):
    """Also where it was replacing what is there, even when it had moved that away; not while it is at work."""
    first = prepare(own)
    scratch = first.directory.parent / ".building"
    (scratch / "folder").mkdir(parents=True)
    with lock(scratch.parent, "at work"):
        assert prepare(own) == first and (scratch / "folder").exists()
    assert prepare(own) == first and not scratch.exists()
    scratch.mkdir()
    first.directory.rename(scratch / "replaced")
    capsys.readouterr()
    assert prepare(own) == first and not scratch.exists()
    assert "already prepared" in capsys.readouterr().out


def test_changed_request_is_refused_with_the_difference(own):
    first = prepare(own)
    with pytest.raises(BadData, match=r"(?s)--overwrite.*size: prepared with 16, asked for 8"):
        prepare(changed(own, size=8))
    with_rows(own, "labels.csv", ("a.png", 1, 0, "p1", "train"))
    with pytest.raises(BadData, match="has changed since"):
        prepare(own)
    with pytest.raises(BadData, match="also in row 2"):
        prepare(changed(own, overwrite=True))
    assert load("folder", own.data_dir) == first  # a failed replacement leaves the old one


@pytest.mark.parametrize("name", ["boxes.csv", "images/d.png"])
def test_what_is_added_or_exchanged_since_is_noticed(own, name):
    later = (own.source / name).read_bytes()
    (own.source / name).unlink()
    if name != "boxes.csv":
        picture(own.source / name, 9, (20, 20))
    prepare(own)
    (own.source / name).write_bytes(later)
    with pytest.raises(BadData, match="has changed since"):
        prepare(own)


def test_names_in_brackets_are_printed_as_they_are(own, capsys):
    names = ("Nodule [s]", "Mass [/old]")
    text = (own.source / "labels.csv").read_text("utf-8-sig").replace("mass,edema", ",".join(names), 1)
    (own.source / "labels.csv").write_text(text)
    (own.source / "boxes.csv").unlink()
    assert prepare(own).findings == names
    assert all(name in capsys.readouterr().out for name in names[:1]) and load("folder", own.data_dir).findings == names


def test_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """Files can grow to 20 kB: enough for all but the images."""
    limits = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limits += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    words = ["x", "prepare", "synthetic", "--data-dir", str(tmp_path), "--size", "64"]
    words += ["--train", "60", "--val", "1", "--test", "1", "--workers", "1"]
    script = f"{limits}import sys; sys.argv = {words}; from infomask_jax.__main__ import main; main()"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert found.returncode == 1 and "Traceback" not in found.stderr, found
    assert f"error: {tmp_path / 'synthetic'} could not be written" in found.stderr
    assert [path.name for path in (tmp_path / "synthetic").iterdir()] == [".lock"]


def first_shard(own):
    prepared = prepare(own)
    return prepared, next(prepared.directory.glob("*train.array_record*"))


def test_damaged_record_is_named_with_its_file(own):
    prepared, shard = first_shard(own)
    stored = bytearray(shard.read_bytes())
    stored[100] ^= 1  # of the first record
    shard.write_bytes(stored)
    with pytest.raises(
        OSError, match=r"folder-train.array_record-00000-of-00001 is damaged \(.*prepare folder"
    ) as error:
        examples(prepared, "train")
    assert "\n" not in str(error.value) and "--overwrite" in str(error.value)
    assert len(examples(prepared, "val")) == 1


def test_damaged_record_is_told_to_the_training(own):
    """Through the threads and the processes that read ahead of it."""
    prepared, shard = first_shard(own)
    shard.write_bytes(bytes(len(shard.read_bytes())))
    config, source = DataConfig(image_size=16, batch_size=4), prepared.source("train", pipeline.FIELDS)
    for workers in (0, 1):
        stream = pipeline.train_batches(source, config, 0, MachineConfig(workers=workers), lambda batch: batch)
        with pytest.raises(OSError, match="00000-of-00001 is damaged"):
            next(iter(stream))
    with pytest.raises(OSError, match="00000-of-00001 is damaged"):
        next(iter(pipeline.eval_batches(source, 16, 4)))


def test_nothing_in_a_data_folder_is_imported(own, tmp_path, monkeypatch):
    prepared = prepare(own)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = prepared.directory / "features.json"
    stored = features.read_text()
    features.write_text(re.sub(r'"pythonClassName": "[^"]*"', '"pythonClassName": "evil_module.Evil"', stored))
    info = json.loads((prepared.directory / "dataset_info.json").read_text()) | {"moduleName": "evil_module"}
    (prepared.directory / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(SystemExit, match="imported"):  # as TFDS has it
        tfds.builder_from_directory(prepared.directory)
    assert len(examples(load("folder", own.data_dir), "train")) == 4
    features.unlink()
    assert len(examples(load("folder", own.data_dir), "train")) == 4


JSON_DAMAGE = [  # file, field, what is put there (None: nothing), what the message must hold
    ("metadata.json", ("findings",), None, r"metadata.json: findings is missing"),
    ("metadata.json", ("findings",), "mass", r"metadata.json: findings: expected a list, found 'mass'"),
    ("metadata.json", ("findings",), [], r"metadata.json: findings: expected \[\]"),
    ("metadata.json", ("findings", 0), 1, r"metadata.json: findings.0: expected text, found 1"),
    ("metadata.json", ("findings", 0), "m\x1bass", r"metadata.json: expected printable names, found 'm\\x1bass'"),
    ("metadata.json", ("fingerprint",), 7, r"metadata.json: fingerprint: expected text, found 7"),
    ("metadata.json", ("size",), "16", r"metadata.json: size: expected a whole number, found '16'"),
    ("metadata.json", ("size",), True, r"metadata.json: size: expected a whole number, found True"),
    ("metadata.json", ("options",), [], r"metadata.json: options: expected an object"),
    ("metadata.json", ("tables",), None, r"metadata.json: tables is missing"),
    ("metadata.json", ("splits",), {}, r"metadata.json: splits"),
    ("metadata.json", ("splits", "train"), 5, r"shardLengths of train: expected 5 examples.* found 4"),
    ("metadata.json", ("splits", "../train"), 4, r"metadata.json: splits: expected"),
    ("metadata.json", ("summary", "train", "boxes"), None, r"metadata.json: summary.train.boxes is missing"),
    ("metadata.json", ("summary", "train", "labels"), [], r"metadata.json: summary.train.labels: expected three"),
    ("dataset_info.json", ("splits",), None, r"dataset_info.json: splits is missing"),
    ("dataset_info.json", ("splits", 0, "numBytes"), 1, r"dataset_info.json: splits.0.numBytes: expected text"),
    ("dataset_info.json", ("splits", 0, "shardLengths"), ["4", "0"], r"in 1 files, .*dataset_info.json says .* in 2"),
    (
        "dataset_info.json",
        ("splits", 0, "shardLengths"),
        ["x"],
        r"dataset_info.json: shardLengths of train: expected 4",
    ),
]


@pytest.mark.parametrize(("name", "field", "value", "words"), JSON_DAMAGE)
def test_changed_field_is_named_with_its_file(own, name, field, value, words):
    change(prepare(own).directory / name, field, value)
    with pytest.raises(FileNotFoundError, match=f"expected a whole data set, found .*{words}.*--overwrite") as error:
        load("folder", own.data_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("name", ["metadata.json", "dataset_info.json"])
def test_json_that_is_none_is_named(own, name, text):
    path = prepare(own).directory / name
    path.write_bytes(text)
    with pytest.raises(FileNotFoundError, match=rf"{name}: (the file: expected an object|expected JSON), found"):
        load("folder", own.data_dir)


def test_name_that_no_data_set_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of synthetic, implanted, rsna, nih, folder; found 'chexpert'"):
        load("chexpert", tmp_path)


def test_fingerprint_follows_content(own, tmp_path):
    first = prepare(own)
    again = prepare(changed(own, data_dir=tmp_path / "again"))
    assert again.fingerprint == first.fingerprint
    picture(own.source / "images/a.png", 77, (32, 40))
    assert prepare(changed(own, overwrite=True)).fingerprint != first.fingerprint


def test_second_prepare_waits_its_turn(own):
    with lock(own.data_dir / "folder", "another"), pytest.raises(BlockingIOError, match="another prepare is at work"):
        prepare(own)


@pytest.fixture
def read_only(monkeypatch):
    """A function that takes a folder's permission to write away, also from root."""

    def take(folder):
        def denied(path, *arguments, **options):
            if path.is_relative_to(folder) and set("wax+") & set((*arguments, "r")[0]):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return opened(path, *arguments, **options)

        opened = Path.open
        monkeypatch.setattr(Path, "open", denied)
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)

    return take


@pytest.mark.parametrize("locked", [True, False])
def test_what_is_already_prepared_need_not_be_written(own, read_only, locked, capsys):
    first = prepare(own)
    if not locked:  # a copy without its hidden files
        (own.data_dir / "folder/.lock").unlink()
    read_only(own.data_dir)
    assert prepare(own) == first and "folder is already prepared." in capsys.readouterr().out
    with pytest.raises(BadData, match="size: prepared with 16, asked for 8"):
        prepare(changed(own, size=8))
    if not locked:
        with pytest.raises(PermissionError, match="data/folder cannot be written: Permission denied; give another"):
            prepare(changed(own, overwrite=True))


@pytest.mark.parametrize("damage", ["dataset_info.json", "metadata.json", "shard", "half a shard"])
def test_incomplete_copy_is_not_loaded(own, damage):
    prepared = prepare(own)
    shard = next(prepared.directory.glob("*train.array_record*"))
    if damage == "half a shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    else:
        (shard if damage == "shard" else prepared.directory / damage).unlink()
    with pytest.raises(FileNotFoundError, match="--overwrite"):
        load("folder", own.data_dir)
    assert prepare(changed(own, overwrite=True)) == prepared


def test_what_was_replaced_comes_back_if_the_new_one_does_not_get_there(own, monkeypatch):
    prepared = prepare(own)

    def stopped(path, target):
        if path.parent.name == "folder" and path.parent.parent.name == ".building":
            raise KeyboardInterrupt
        return rename(path, target)

    rename = Path.rename
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", stopped)
        prepare(changed(own, size=24, overwrite=True))
    assert load("folder", own.data_dir) == prepared


def test_a_killed_drawer_is_an_error_that_says_so(tmp_path, monkeypatch):
    def broken(*_):
        raise BrokenProcessPool("a child process terminated abruptly")

    monkeypatch.setattr(datasets.build, "build", broken)
    with pytest.raises(OSError, match="process that draws was killed"):
        prepare(Synthetic(data_dir=tmp_path, size=32, train=2, val=2, test=2, workers=1))


@pytest.mark.parametrize("size", [0, 4097])
def test_sides_that_no_image_has_are_refused(own, size):
    with pytest.raises(BadData, match=rf"expected 1\.\.4096 pixels, found {size}"):
        prepare(changed(own, size=size))


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_prepare_leaves_nothing_to_load(tmp_path, stop):
    code = (
        "from pathlib import Path; from infomask_jax.datasets import Synthetic, prepare;"
        f"prepare(Synthetic(data_dir=Path({str(tmp_path)!r}), size=32, train=100_000, val=2, test=2, workers=1))"
    )
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL, preexec_fn=heard
    )
    deadline = time.time() + 60
    while not list(tmp_path.rglob("*.array_record*")) and time.time() < deadline:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = workers.read_text().split() if workers.exists() else []
    process.send_signal(stop)
    assert process.wait(30) != 0
    with pytest.raises(FileNotFoundError):
        load("synthetic", tmp_path)
    if stop == signal.SIGINT:  # a kill cannot be cleaned up after, until the next prepare
        assert not (tmp_path / "synthetic/.building").exists()
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in workers) and time.time() < deadline:
        time.sleep(0.05)
    assert time.time() < deadline  # no worker outlives its parent
    prepared = prepare(Synthetic(data_dir=tmp_path, size=32, train=4, val=2, test=2, workers=1))
    assert prepared.splits == {"train": 4, "val": 2, "test": 2}
    assert not (tmp_path / "synthetic/.building").exists()


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_phantoms_do_not_depend_on_workers_or_training_images(tmp_path):
    one = prepare(Synthetic(data_dir=tmp_path / "1", size=32, train=12, val=4, test=4, workers=1))
    two = prepare(Synthetic(data_dir=tmp_path / "2", size=32, train=12, val=4, test=4, workers=2))
    more = prepare(Synthetic(data_dir=tmp_path / "3", size=32, train=20, val=4, test=4, workers=2))
    assert one.fingerprint == two.fingerprint != more.fingerprint
    assert examples(one, "test").keys() == examples(more, "test").keys()
    ids = [name for split in one.splits for name in examples(one, split)]
    assert len(set(ids)) == 20 and one.findings == ("opacity",)
    for example in examples(one, "train").values():
        schema.check(example, one.findings)
        mask = images.decode(example["mask"])
        assert mask.shape == (32, 32) and mask.any() == example["labels"][0] == bool(len(example["boxes"]))
