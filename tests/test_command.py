"""command.py: how commands end, what they print where, and what `~` means, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infomask_jax import command

ROOT = Path(__file__).parent.parent


def python(code, *words, **options):
    """Runs code in a process, output as bytes."""
    options = {"capture_output": True, "timeout": 60, "cwd": ROOT} | options
    return subprocess.run([sys.executable, "-c", code, *words], **options)


SWALLOWED = """
import gc, os, signal, sys, time
from infomask_jax import command
def collect(phase, info):  # as JAX has one: what is raised in here is printed and dropped
    gc.callbacks.remove(collect)
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.05)
with command.ends(resumes={resumes}):
    gc.callbacks.append(collect)
    gc.collect()
    time.sleep(20)
print("went on")
"""


@pytest.mark.parametrize(
    ("name", "resumes", "status"),
    [("SIGINT", False, 1), ("SIGTERM", False, 1), ("SIGINT", True, 1), ("SIGTERM", True, 75)],
)
def test_signal_that_is_swallowed_ends_the_command_all_the_same(name, resumes, status):
    began = time.monotonic()
    done = python(SWALLOWED.format(name=name, resumes=resumes))
    assert done.returncode == status and done.stdout == b"" and time.monotonic() - began < 15
    told = "The same command continues" if status == 75 else "interrupted; nothing half-written is left"
    assert told in done.stderr.decode() and b"Traceback" not in done.stderr and b"ignored" not in done.stderr


def test_second_signal_does_not_disturb_the_clean_up(tmp_path):
    code = f"""
import os, signal, time
from infomask_jax import command
with command.ends():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        open({str(tmp_path / "clean")!r}, "w").close()
"""
    assert python(code).returncode == 1 and (tmp_path / "clean").exists()


def test_handlers_are_as_before_once_a_command_has_ended():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match="error: wrong"), command.ends():
        raise ValueError("wrong")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_takes_any_text(encoding):
    code = "from infomask_jax import command\nwith command.ends(): print('.1\\u2013.2 \\u00b1 Erguss \\u00e9 \\u80ba')"
    done = python(code, env=os.environ | {"PYTHONIOENCODING": encoding})
    expected = {
        "ascii": rb".1-.2 +- Erguss \xe9 \u80ba",
        "latin-1": b".1-.2 \xb1 Erguss \xe9 \\u80ba",
        "utf-8": ".1–.2 ± Erguss é 肺".encode(),
    }
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected[encoding], b"")


@pytest.mark.parametrize("script", ["-m infomask_jax predict", "experiments/quickstart.py", "-m infomask_jax"])
def test_help_may_be_cut_short(script):
    reading, writing = os.pipe()
    os.close(reading)  # `| head` that has gone
    words = [sys.executable, *script.split(), "--help"]
    done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_work_goes_on_where_nobody_reads(tmp_path):
    """A training whose screen has gone keeps its result."""
    code = f"""
from infomask_jax import command
with command.ends():
    for i in range(20000): print("step", i)
    open({str(tmp_path / "result")!r}, "w").close()
"""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writing)
    assert (tmp_path / "result").exists() and b"Traceback" not in done.stderr and done.returncode == 0


@pytest.mark.parametrize("platform", ["cuda", "tpu", "nonsense"])
def test_platform_without_a_device_is_one_line(platform):
    code = (
        "from infomask_jax import command\nwith command.ends():\n from infomask_jax import parallel; parallel.set_up()"
    )
    done = python(code, env=os.environ | {"JAX_PLATFORMS": platform})
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1 and lines[-1].startswith(f"error: JAX_PLATFORMS={platform} names no device")
    assert "Traceback" not in done.stderr.decode()


def test_commands_work_without_a_home(tmp_path):
    code = """
import os, sys
from infomask_jax import command
with command.ends():
    from infomask_jax import parallel
    parallel.set_up()
    import jax
    print(jax.config.jax_compilation_cache_dir)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "JAX_COMPILATION_CACHE_DIR")}
    done = python(code, env=environment | {"HOME": "/proc/none", "JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stdout.strip()) == (0, b"None"), done


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    found = [command._expanded(word) for word in ("--workdir=~/run", "~/films", "--seed=3", "./~", "a~b", "--x=~")]
    assert found == ["--workdir=/home/jane/run", "/home/jane/films", "--seed=3", "./~", "a~b", "--x=/home/jane"]
