"""Files of ours are what they were when written, or an error names file and field; a folder has one writer."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from types import NoneType

import pytest

from infomask_jax.system import NUMBER, lock, read_json, read_json_lines, write_all

SHAPE = {"n": int, "v": NUMBER | None, "ci?": (NoneType, [NUMBER, NUMBER]), "of": {str: {"names": [str]}}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"n": 1, "v": 0.5, "of": {}}', None),
        ('{"n": 1, "v": null, "ci": [0, 1.5], "of": {"a": {"names": ["b"]}}, "free": true}', None),
        ('{"n": 1, "v": 0.5', "expected JSON, found"),
        ('{"n": 1, "of": {}}', "v is missing"),
        ('{"n": 1.5, "v": 1, "of": {}}', "n: expected a whole number, found 1.5"),
        ('{"n": 1, "v": NaN, "of": {}}', "v: expected a number below 1e+15, found nan"),
        ('{"n": 1, "v": 1' + "0" * 400 + ', "of": {}}', "v: expected a number below 1e+15, found 1000"),
        ('{"n": 1, "v": 1, "ci": [1], "of": {}}', "ci: expected 2 items, found 1"),
        ('{"n": 1, "v": 1, "of": {"a": {}}}', "of.a.names is missing"),
        ('{"n": 1, "v": 1, "of": {"a": {"names": ["b", 2]}}}', "of.a.names.1: expected text, found 2"),
    ],
)
def test_file_and_field_that_are_not_as_written_are_named(tmp_path, text, words):
    path = tmp_path / "facts.json"
    path.write_text(text)
    if words is None:
        assert read_json(path, SHAPE)["n"] == 1
    else:
        with pytest.raises(ValueError, match=re.escape(f"{path}: {words}") + ".*; mend it$"):
            read_json(path, SHAPE, "mend it")


def test_line_is_named_and_a_last_one_without_an_end_is_none(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n"')
    assert read_json_lines(path, {"n": int}) == [{"n": 1}, {"n": 2}]
    path.write_text('{"n": 1}\n{"m": 2}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2: n is missing"):
        read_json_lines(path, {"n": int})


def test_lock_keeps_others_out_and_is_free_once_its_process_is_gone(tmp_path):
    code = "import sys; from pathlib import Path; from infomask_jax.system import lock\n"
    code += f"file = lock(Path({str(tmp_path / 'a')!r}), 'another is in'); print('in', flush=True); sys.stdin.read()"
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": Path(__file__).parents[1]}
    with subprocess.Popen([sys.executable, "-c", code], **options) as other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(BlockingIOError, match=f"{tmp_path}/a: another is in"):
            lock(tmp_path / "a", "another is in")
        other.kill()
        other.wait()
        with lock(tmp_path / "a", "another is in"):
            pass


def test_file_that_cannot_be_written_is_named(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.npz'"):
        write_all({tmp_path / "a.npz": full})
    assert not list(tmp_path.iterdir())
