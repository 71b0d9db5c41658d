"""datasets/: what is on disk is whole or not there, and read as it was written; a folder of one's own becomes it."""

import csv
import errno
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import chex
import numpy as np
import pytest
import releases
import tensorflow_datasets as tfds
from conftest import change
from releases import NFC, NFD, changed, examples, nothing_is_left, picture, with_rows

from infomask_jax import pipeline
from infomask_jax.config import DataConfig, MachineConfig
from infomask_jax.datasets import BadData, Synthetic, images, load, prepare
from infomask_jax.pixels import encode, resize
from infomask_jax.system import lock

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def own(tmp_path):
    return releases.folder(tmp_path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The options of a data set that is prepared once, and not to be changed."""
    options = releases.folder(tmp_path_factory.mktemp("stored"))
    prepare(options)
    return options


@pytest.fixture
def copied(stored, tmp_path):
    """A copy of it."""
    shutil.copytree(stored.data_dir, tmp_path / "data")
    return load("folder", tmp_path / "data")


def test_folder_becomes_examples(stored):
    prepared = load("folder", stored.data_dir)
    assert prepared.findings == ("mass", "edema") and prepared.splits == {"train": 4, "val": 1, "test": 1}
    train = examples(prepared, "train")
    labels = {"a.png": [1, 0], "b.png": [0, -1], "e.png": [1, 1], "f.png": [0, 1]}
    assert {name: e["labels"].tolist() for name, e in train.items()} == labels
    assert {(e["height"], e["width"], e["mask"]) for e in train.values()} == {(32, 40, b"")}
    np.testing.assert_allclose(train["a.png"]["boxes"], [[4 / 32, 10 / 40, 20 / 32, 30 / 40]])
    assert train["a.png"]["box_labels"].tolist() == [0] and train["e.png"]["box_labels"].tolist() == [1]
    assert train["e.png"]["boxes"].max() == 1  # half a pixel outside is rounding
    expected = resize(images.decode(stored.source / "images/a.png"), 16)
    np.testing.assert_array_equal(images.decode(train["a.png"]["image"]), expected)
    counts = {"images": 4, "patients": 3, "boxes": 2, "boxed images": 2, "labels": [[2, 2, 0], [2, 1, 1]]}
    assert prepared.summary["train"] == counts
    assert [e["labels"].tolist() for e in examples(prepared, "val").values()] == [[-1, 1]]  # whose file is named in NFD


def test_findings_select_labels_and_boxes_and_sixteen_bits_stay(own):
    deep = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) * 50
    (own.source / "images/a.png").write_bytes(encode(deep))
    train = examples(prepare(changed(own, findings=("edema",))), "train")
    assert train["a.png"]["labels"].tolist() == [0] and train["a.png"]["box_labels"].tolist() == [-1]
    assert train["e.png"]["box_labels"].tolist() == [0]
    np.testing.assert_array_equal(images.decode(train["a.png"]["image"]), resize(deep, 16), strict=True)


def test_fields_are_read_as_tfds_reads_them(stored):
    prepared = load("folder", stored.data_dir)
    parser = tfds.builder_from_directory(prepared.directory).info.features
    for split in prepared.splits:
        source = prepared.source(split)
        for i in range(len(source)):
            expected = parser.deserialize_example_np(source.records[i])
            expected |= {name: expected[name].decode() for name in ("image_id", "patient_id", "view")}
            chex.assert_trees_all_equal(source[i], expected, strict=True)
            assert prepared.source(split, ["boxes"])[i].keys() == {"boxes"}
        with pytest.raises(IndexError):
            source[len(source)]
    assert len(pickle.dumps(source)) < 20_000  # what a worker is sent


BAD_ROWS = {  # of a table, and what the message must hold
    "labels.csv": [
        (("g.png", "nan", 0, "p9", "train"), "mass: expected 0, 1 or nothing, found 'nan'"),
        (("./a.png", 1, 0, "p1", "train"), "image: expected each image once"),
        (("../own/g.png", 1, 0, "p9", "train"), "image: expected the name of an image"),
        (("link.png", 1, 0, "p9", "train"), "image: expected a file inside"),
        (("same.png", 1, 0, "p9", "test"), "image: expected each image once, found 'same.png' to be the same file"),
        (("i.png", 1, 0, "p9", "dev"), "split: expected one of train, val, test; found 'dev'"),
        (("h.png", 1, 0, "p1", "test"), "split: expected patient p1 in one split, found test, train"),
        (("g.png", 1), "row: expected 5 cells, found 2"),
        (("cut.png", 1, 0, "p9", "train"), "image: "),
        (("g\x1b[31m.png", 1, 0, "p9", "train"), r"image: expected printable text, found 'g\x1b[31m"),
        (("x" * 300 + ".png", 1, 0, "p9", "train"), "image: expected a file in"),
    ],
    "boxes.csv": [
        (("a.png", "masss", 1, 1, 2, 2), "finding: expected one of mass, edema; found 'masss'"),
        (("a.png", "edema", 1, 1, 2, 2), "finding: expected label 1"),
        (("a.png", "mass", 30, 1, 20, 2), "box: expected a box inside 40 x 32, found x 30"),
        (("a.png", "mass", 3, 1, 0, 2), "box: expected a box of some area"),
        (("a.png", "mass", "nan", 1, 2, 2), "x, y, w, h: expected four numbers, found 'nan"),
        (("./a.png", "mass", "10.0", "4.00", "2e1", 16), "x, y, w, h: expected each box once, found it also in boxes"),
        (("e.png", "mass", 0.1, 0.2, 0.25, 1), "x, y, w, h: expected pixels, found a box of 0.25 x 1; multiply it by"),
    ],
}


@pytest.fixture
def traps(own):
    folder = own.source / "images"
    picture(folder / "g.png", 9)
    picture(folder / "h.png", 11)
    picture(folder / "i.png", 12)
    picture(own.source.parent / "outside.png", 10)
    (folder / "link.png").symlink_to(own.source.parent / "outside.png")
    (folder / "same.png").symlink_to(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "g.png").read_bytes()[:-20])
    return own


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_all_named_and_leave_nothing(traps, name):
    first = len((traps.source / name).read_text().splitlines()) + 1
    with pytest.raises(BadData, match="problems:") as error:
        prepare(with_rows(traps, name, *(row for row, _ in BAD_ROWS[name])))
    for number, (_, words) in enumerate(BAD_ROWS[name], first):
        assert f"{name}, row {number}, {words}" in str(error.value), (words, str(error.value))
    assert nothing_is_left(traps)
    with pytest.raises(FileNotFoundError, match="python -m infomask_jax prepare folder"):
        load("folder", traps.data_dir)
    with pytest.raises(ValueError, match="expected one of synthetic, implanted, rsna, nih, folder; found 'chexpert'"):
        load("chexpert", traps.data_dir)
    with pytest.raises(BadData, match=r"expected 1\.\.4096 pixels, found 4097"):
        prepare(changed(traps, size=4097))


def test_skip_bad_lists_what_it_leaves_out(traps):
    rows = [("g.png", "2", 0, "p9", "train"), ("h.png", 1, 0, "p1", "test"), ("cut.png", 1, 0, "p9", "train")]
    with_rows(traps, "labels.csv", *rows, ("=cmd.png", 1, 0, "p9", "train"))
    with_rows(traps, "boxes.csv", ("a.png", "mass", 30, 1, 20, 2))
    (traps.source / "images/d.png").write_bytes(b"")  # the only one of its split
    prepared = prepare(changed(traps, skip_bad=True))
    assert set(examples(prepared, "train")) == {"e.png", "f.png"}  # a: its box; b: its patient is in two splits
    assert prepared.splits == {"train": 2, "val": 1}
    with pytest.raises(ValueError, match="expected one of train, val; found split 'test'"):
        prepared.source("test")
    with (prepared.directory / "skipped.csv").open(newline="") as file:
        skipped = list(csv.DictReader(file))
    named = {"a.png", "b.png", "g.png", "h.png", "cut.png", "d.png", "'=cmd.png"}  # that one is no formula
    assert {row["image"] for row in skipped} == named
    assert {"file", "row", "field", "reason"} < skipped[0].keys() and all(row["reason"] for row in skipped)
    with pytest.raises(BadData, match="asked for without --skip-bad"):
        prepare(traps)


IN_UNITS = b"image,finding,x,y,w,h\na.png,mass,.1,.2,.3,.25\ne.png,edema,0,0,1,1\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("labels.csv", b"", "found none"),
        ("labels.csv", b"image,mass\n", "only the header"),
        ("labels.csv", b"name,mass\na.png,1\n", "among them image"),
        ("labels.csv", b"image,mass\na\xff.png,1\n", "UTF-8"),
        ("labels.csv", b"image,mass\x1b[31m\na.png,1\n", r"row 1: expected printable names of columns, found 'mass"),
        ("labels.csv", f"image,mass\n{NFC}.png,1\n{NFD}.png,1\n".encode(), "row 3, image: expected each image once"),
        (
            "labels.csv",
            b"image,mass,dose,room\na.png,1,40,M\nb.png,0,41,F\n",
            ", dose: expected 0, 1 or nothing in its",
        ),
        ("boxes.csv", IN_UNITS, "no box larger than 1;"),
        ("boxes.csv", b"image,finding,x,y,w,h\n/a.png,mass,1,1,2,2\n", "boxes.csv, row 2, image: expected the name"),
    ],
)
def test_unusable_table_is_refused_and_names_what_is_wrong(own, name, text, words):
    picture(own.source / f"images/{NFD}.png", 7)
    if name == "labels.csv":
        (own.source / "boxes.csv").unlink()
    (own.source / name).write_bytes(text)
    for skip_bad in (False, True) if ", age" in words or "larger" in words else (False,):  # of the whole table
        with pytest.raises(BadData) as error:
            prepare(changed(own, skip_bad=skip_bad))
        assert words in str(error.value) and str(error.value).replace("\n", "").isprintable(), str(error.value)
    assert nothing_is_left(own)


def test_findings_that_are_asked_for(own):
    with pytest.raises(BadData, match="expected some of mass, edema; found Mass"):
        prepare(changed(own, findings=("Mass",)))
    text = (own.source / "labels.csv").read_text("utf-8-sig").replace("patient", "age", 1).replace("edema", "Mass [s]")
    (own.source / "labels.csv").write_text(text)
    (own.source / "boxes.csv").unlink()
    prepared = prepare(changed(own, findings=("mass", "Mass [s]")))  # the column of something else is not read
    assert prepared.findings == ("mass", "Mass [s]") and sum(prepared.splits.values()) == 6


def test_what_is_there_is_not_prepared_again(own, capsys):
    """Nor what a killed prepare left, which is taken away, even where it had moved away what it was to replace."""
    first = prepare(own)
    before = {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}
    scratch = first.directory.parent / ".building"
    (scratch / "folder").mkdir(parents=True)
    with lock(scratch.parent, "at work"):
        assert prepare(own) == first and (scratch / "folder").exists()
        with pytest.raises(BlockingIOError, match="another prepare is at work"):
            prepare(changed(own, overwrite=True))
    assert prepare(changed(own, skip_bad=True)) == first == load("folder", own.data_dir) and not scratch.exists()
    scratch.mkdir()
    first.directory.rename(scratch / "replaced")
    assert prepare(own) == first and not scratch.exists()
    assert capsys.readouterr().out.count("already prepared") == 3
    assert before == {path: path.stat().st_mtime_ns for path in first.directory.iterdir()}


def test_other_requests_and_tables_are_refused_with_the_difference(own, tmp_path):
    boxes = (own.source / "boxes.csv").read_bytes()
    (own.source / "boxes.csv").unlink()
    first = prepare(own)
    assert prepare(changed(own, data_dir=tmp_path / "again")).fingerprint == first.fingerprint
    with pytest.raises(BadData, match=r"(?s)--overwrite.*size: prepared with 16, asked for 8"):
        prepare(changed(own, size=8))
    (own.source / "boxes.csv").write_bytes(boxes)
    with pytest.raises(BadData, match=r"boxes\.csv has changed since"):
        prepare(own)
    second = prepare(changed(own, overwrite=True))
    picture(own.source / "images/a.png", 77, (32, 41))
    with pytest.raises(BadData, match="images has changed since"):
        prepare(own)
    third = prepare(changed(own, overwrite=True))
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    with_rows(own, "labels.csv", ("a.png", 1, 0, "p1", "train"))
    with pytest.raises(BadData, match="also in row 2"):
        prepare(changed(own, overwrite=True))
    assert load("folder", own.data_dir) == third  # a failed replacement leaves the old one


@pytest.mark.parametrize("locked", [True, False])
def test_what_is_already_prepared_need_not_be_written(own, monkeypatch, locked, capsys):
    """Also for root, from whom the permission to write is taken away here."""

    def denied(path, *arguments, **options):
        if path.is_relative_to(own.data_dir) and set("wax+") & set((*arguments, "r")[0]):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    first, opened = prepare(own), Path.open
    if not locked:  # a copy without its hidden files
        (own.data_dir / "folder/.lock").unlink()
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert prepare(own) == first and "folder is already prepared." in capsys.readouterr().out
    if not locked:
        with pytest.raises(PermissionError, match="data/folder cannot be written: Permission denied; give another"):
            prepare(changed(own, overwrite=True))


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


def test_damaged_record_is_named_with_its_file_and_told_to_the_training(copied):
    """Through the threads and the processes that read ahead of it."""
    shard = next(copied.directory.glob("*train.array_record*"))
    whole = bytearray(shard.read_bytes())
    whole[100] ^= 1  # of the first record
    shard.write_bytes(whole)
    words = r"folder-train.array_record-00000-of-00001 is damaged \(.*prepare folder .*--overwrite$"
    with pytest.raises(OSError, match=words):
        examples(copied, "train")
    assert len(examples(copied, "val")) == 1
    shard.write_bytes(bytes(len(whole)))
    config, source = DataConfig(image_size=16, batch_size=4), copied.source("train", pipeline.FIELDS)
    for workers in (0, 1):
        stream = pipeline.train_batches(source, config, 0, MachineConfig(workers=workers), lambda batch: batch)
        with pytest.raises(OSError, match="00000-of-00001 is damaged"):
            next(iter(stream))
    with pytest.raises(OSError, match="00000-of-00001 is damaged"):
        next(iter(pipeline.eval_batches(source, 16, 4)))


def test_nothing_in_a_data_folder_is_imported(copied, tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    features = copied.directory / "features.json"
    text = re.sub(r'"pythonClassName": "[^"]*"', '"pythonClassName": "evil_module.Evil"', features.read_text())
    features.write_text(text)
    change(copied.directory / "dataset_info.json", ("moduleName",), "evil_module")
    assert len(examples(load("folder", tmp_path / "data"), "train")) == 4
    features.unlink()
    assert len(examples(load("folder", tmp_path / "data"), "train")) == 4


JSON_DAMAGE = [  # file, field, what is put there (None: nothing), what the message must hold
    ("metadata.json", ("findings",), None, "findings is missing"),
    ("metadata.json", ("findings", 0), 1, "findings.0: expected text, found 1"),
    ("metadata.json", ("findings", 0), "m\x1bass", r"findings: expected ['m\\x1bass'"),
    ("metadata.json", ("size",), True, "size: expected a whole number, found True"),
    ("metadata.json", ("splits", "train"), 5, "shardLengths of train: expected '5 in all'"),
    ("metadata.json", ("summary", "train", "boxes"), None, "summary.train.boxes is missing"),
    ("metadata.json", ("summary", "train", "labels"), [], "summary.train.labels: expected"),
    ("dataset_info.json", ("splits", 0, "numBytes"), "1", "bytes of train: expected '1', found"),
    ("dataset_info.json", ("splits", 0, "shardLengths"), ["1", "0"], "files of train: expected 2, found 1"),
    ("dataset_info.json", ("splits", 0, "shardLengths"), ["x"], "shardLengths of train: expected '4 in all'"),
]


def test_damaged_data_set_is_not_loaded_and_names_file_and_field(own, copied):
    folder, shard = copied.directory, next(copied.directory.glob("*train.array_record*"))
    whole = {path: path.read_bytes() for path in (folder / "metadata.json", folder / "dataset_info.json", shard)}

    def refused(words):
        with pytest.raises(FileNotFoundError, match=r"expected a whole data set, found .*--overwrite$") as error:
            load("folder", own.data_dir)
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)
        for path, data in whole.items():
            path.write_bytes(data)

    for name, field, value, words in JSON_DAMAGE:
        change(folder / name, field, value)
        refused(words)
    for name in ("metadata.json", "dataset_info.json"):
        for text in (b"", b"[]", b"\xff\xfe", b"[" * 100_000):
            (folder / name).write_bytes(text)
            refused(f"{name}: ")
    shard.write_bytes(whole[shard][:-100])
    refused("bytes of train")
    for path in whole:
        path.unlink()
        refused("bytes of train" if path == shard else path.name)
    (folder / "metadata.json").unlink()
    assert prepare(changed(own, overwrite=True)).fingerprint == copied.fingerprint


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_prepare_leaves_nothing_to_load_and_no_worker(tmp_path, stop):
    code = (
        "from pathlib import Path; from infomask_jax.datasets import Synthetic, prepare;"
        f"prepare(Synthetic(data_dir=Path({str(tmp_path)!r}), size=32, train=100_000, val=2, test=2, workers=1))"
    )
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    options = {"cwd": REPOSITORY, "stderr": subprocess.DEVNULL, "preexec_fn": heard}
    process, deadline = subprocess.Popen([sys.executable, "-c", code], **options), time.time() + 300
    while not list(tmp_path.rglob("*.array_record*")) and time.time() < deadline:
        time.sleep(0.05)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = workers.read_text().split() if workers.exists() else []
    process.send_signal(stop)
    assert process.wait(300) != 0
    with pytest.raises(FileNotFoundError):
        load("synthetic", tmp_path)
    if stop == signal.SIGINT:  # a kill cannot be cleaned up after, until the next prepare
        assert not (tmp_path / "synthetic/.building").exists()
    while any(map(alive, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert time.time() < deadline  # no worker outlives its parent
    if stop == signal.SIGKILL:
        prepared = prepare(Synthetic(data_dir=tmp_path, size=32, train=4, val=2, test=2, workers=1))
        assert prepared.splits == {"train": 4, "val": 2, "test": 2}
        assert not (tmp_path / "synthetic/.building").exists()


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_phantoms_do_not_depend_on_workers_or_training_images(tmp_path):
    one = prepare(Synthetic(data_dir=tmp_path / "1", size=32, train=8, val=2, test=4, workers=1))
    two = prepare(Synthetic(data_dir=tmp_path / "2", size=32, train=9, val=2, test=4, workers=2))
    assert one.fingerprint != two.fingerprint and one.findings == ("opacity",)
    for split, count in {"train": 8, "val": 2, "test": 4}.items():
        own, other = examples(one, split), examples(two, split)
        assert len(own) == count
        chex.assert_trees_all_equal(own, {name: other[name] for name in own})
    for example in examples(one, "train").values():
        mask = images.decode(example["mask"])
        assert mask.shape == (32, 32) and mask.any() == example["labels"][0] == bool(len(example["boxes"]))
