"""Damaged files of every format: a short, fixed part of what tests/fuzz/run.py does; and that its oracles can fail."""

import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzz import mutators, oracles, pictures, runs, seeds, tables, workers
from fuzz.workers import Bad

from infomask_jax.datasets import images

SCRIPT = Path(__file__).parent / "fuzz" / "run.py"


@pytest.mark.parametrize(("formats", "files"), [("png jpeg dicom csv npz", 120), ("json checkpoint", 20)])
def test_damaged_files_are_refused_or_read_right(formats, files):
    command = [sys.executable, SCRIPT, "--formats", *formats.split(), "--files", str(files), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"| {files} |") == len(formats.split())


def whole(kind: str) -> bytes:
    """A picture that has a gradient, of two bytes a value where the format has that."""
    for index in range(100):
        made = getattr(seeds, kind)(np.random.default_rng(index))
        data = seeds.written(made) if kind == "dicom" else made
        try:
            if images.decode(data).std() > 20 and oracles.judge(data, images.decode(data)) == "":
                return data
        except (images.BadImage, oracles.Unjudged):
            continue
    raise AssertionError(f"no {kind} of 100 is read")


@pytest.mark.parametrize("kind", ["png", "jpeg", "dicom"])
def test_another_picture_is_seen(kind):
    data = whole(kind)
    assert pictures.Pictures(kind).check(data, lambda: None) == ("accepted", "equal")
    for change in (
        *(np.fliplr, np.transpose, np.zeros_like),
        *(lambda image: image[1:], lambda image: np.iinfo(image.dtype).max - image),
    ):
        with pytest.raises(Bad, match=r"wrong.*accepted, but"):
            pictures.Pictures(kind, lambda data, change=change: change(images.decode(data))).check(data, lambda: None)


def test_invented_pixels_are_seen():
    def tolerant(data):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)

    picture = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    data = cv2.imencode(".jpg", picture)[1].tobytes()
    cut = data[: len(data) // 2] + b"\xff\xd9"
    with pytest.raises(Bad, match="refused by"):
        pictures.Pictures("jpeg", tolerant).check(cut, lambda: None)
    parts = mutators.chunks(cv2.imencode(".png", picture)[1].tobytes())
    cut = mutators.joined([(name, part[: len(part) // 2] if name == b"IDAT" else part) for name, part in parts])
    with pytest.raises(Bad, match="refused by Pillow"):
        pictures.Pictures("png", lambda data: picture).check(cut, lambda: None)


def misbehaving():
    """A check that does everything that must be seen; called in the worker."""

    def check(index, decoded):
        if index == 0:
            raise KeyError("no such key")
        if index == 1:
            time.sleep(600)
        if index == 2:
            np.ones(workers.BOMB // 8 + (1 << 24))
        if index == 3:
            decoded()
            os._exit(3)
        return "accepted", "equal"

    return check


def test_crash_hang_and_bomb_cost_one_file_each(monkeypatch):
    monkeypatch.setattr(workers, "KILL", 6)
    found = {outcome.index: outcome for outcome in workers.run(misbehaving, range(5), 1)}
    assert [found[i].kind for i in range(5)] == ["crash", "hang", "bomb", "accepted", "accepted"]
    assert "KeyError: 'no such key'" in found[0].detail and "independent decoder crashed" in found[3].detail


def test_oracles_of_tables_and_runs_can_fail():
    with pytest.raises(Bad, match="names no file"):
        tables.names_a_file("Expecting value: line 1 column 1 (char 0)", ["config.json"])
    with pytest.raises(Bad, match="a box at"):
        tables.in_unit(np.array([0.5, 0.1, 0.4, 0.2]))
    with pytest.raises(Bad, match="steps: '12' taken for"):
        runs.check_types(runs.OptimizerConfig(steps="12"))
    tree = {"a": np.float32([0, 1]), "b": np.int32(3)}
    assert runs.same(tree, {"a": np.float32([0, 1]), "b": np.int32(3)})
    assert not runs.same(tree, {"a": np.float32([-0.0, 1]), "b": np.int32(3)})
