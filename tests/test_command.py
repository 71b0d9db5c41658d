"""command.py: how commands end, what they print where, and what `~` means, each in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infomask_jax import command

ROOT = Path(__file__).parent.parent


def python(code, *words, **options):
    """Runs code in a process, output as bytes."""
    options = {"capture_output": True, "timeout": 60, "cwd": ROOT} | options
    return subprocess.run([sys.executable, "-c", code, *words], **options)


ENDS = "import gc, os, signal, sys, time\nfrom infomask_jax import command\n"
SWALLOWED = """
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


@pytest.mark.parametrize(("name", "resumes", "status"), [("SIGINT", False, 1), ("SIGTERM", True, 75)])
def test_signal_that_is_swallowed_ends_the_command_all_the_same(name, resumes, status):
    done = python(ENDS + SWALLOWED.format(name=name, resumes=resumes))
    assert done.returncode == status and done.stdout == b""
    told = "The same command continues" if status == 75 else "interrupted; nothing half-written is left"
    assert told in done.stderr.decode() and b"Traceback" not in done.stderr and b"ignored" not in done.stderr


def test_second_signal_does_not_disturb_the_clean_up(tmp_path):
    code = f"""
with command.ends():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        open({str(tmp_path / "clean")!r}, "w").close()
"""
    assert python(ENDS + code).returncode == 1 and (tmp_path / "clean").exists()


def test_error_is_one_line_that_cannot_command_the_terminal_and_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit, match=r"^error: \\x1b\[31m red\n  second line$"), command.ends():
        raise ValueError("\x1b[31m red\n  second line")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", rb".1-.2 +- Erguss \xe9 \u80ba"),
        ("utf-8", ".1–.2 ± Erguss é 肺".encode()),
    ],
)
def test_any_terminal_takes_any_text(encoding, expected):
    code = ENDS + "with command.ends(): print('.1\\u2013.2 \\u00b1 Erguss \\u00e9 \\u80ba')"
    done = python(code, env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, expected, b"")


def test_reader_may_go_away(tmp_path):
    """`| head`: help ends as if by SIGPIPE; work goes on, and keeps its result."""
    code = f"""
with command.ends():
    for i in range(20000): print("step", i)
    open({str(tmp_path / "result")!r}, "w").close()
"""
    for words, status in [
        (["experiments/quickstart.py", "--help"], 128 + signal.SIGPIPE),
        (["-c", ENDS + code], 0),
    ]:
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run([sys.executable, *words], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
        os.close(writing)
        assert done.returncode == status and b"Traceback" not in done.stderr
    assert (tmp_path / "result").exists()


def test_platform_without_a_device_is_one_line():
    code = ENDS + "with command.ends():\n from infomask_jax import parallel; parallel.set_up()"
    done = python(code, env=os.environ | {"JAX_PLATFORMS": "cuda"})
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert done.stderr.decode().strip().splitlines()[-1].startswith("error: JAX_PLATFORMS=cuda names no device")


def test_commands_work_without_a_home():
    code = ENDS + "with command.ends():\n from infomask_jax import parallel; parallel.set_up(); import jax\n"
    code += " print(jax.config.jax_compilation_cache_dir)"
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "JAX_COMPILATION_CACHE_DIR")}
    done = python(code, env=environment | {"HOME": "/proc/none", "JAX_PLATFORMS": "cpu"})
    assert (done.returncode, done.stdout.strip()) == (0, b"None"), done


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")
    found = [command._expanded(word) for word in ("--workdir=~/run", "~/films", "--seed=3", "./~", "a~b", "--x=~")]
    assert found == ["--workdir=/home/jane/run", "/home/jane/films", "--seed=3", "./~", "a~b", "--x=/home/jane"]
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without one
    with pytest.raises(ValueError, match=r"--workdir=~/run: this user has no home folder"):
        command._expanded("--workdir=~/run")


def test_signal_waits_for_the_end_of_an_import(tmp_path):
    """NumPy prints what interrupts its import and makes an ImportError of it; other libraries crash."""
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.5)\nprint('imported')"
    (tmp_path / "slow.py").write_text(slow)
    code = ENDS + "with command.ends(): import slow; time.sleep(20); print('on')"
    done = python(code, env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    expected = 1, b"imported\n", b"interrupted; nothing half-written is left\n"
    assert (done.returncode, done.stdout, done.stderr) == expected


def test_signal_within_exec_keeps_the_exit_status(tmp_path):
    """A module's process would end as if SIGINT had killed it."""
    code = ENDS + "with command.ends(): exec('os.kill(os.getpid(), signal.SIGINT); time.sleep(20)')"
    (tmp_path / "module.py").write_text(code)
    words, environment = [sys.executable, "-m", "module"], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, cwd=tmp_path, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"interrupted; nothing half-written is left\n")


def test_files_with_names_of_any_letters_are_found_in_an_old_locale(tmp_path):
    (tmp_path / "é").write_text("found")
    code = ENDS + "with command.ends(): print(open('\\u00e9').read(), sys.argv[1])"
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = python(code, "Höhe", cwd=tmp_path, env=os.environ | old)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"found H\\xf6he\n", b"")


def test_full_disk_under_the_screen_is_an_error_at_the_end(tmp_path):
    code = ENDS + "with command.ends():\n print('told', flush=True); open(sys.argv[1], 'w').close()"
    with open("/dev/full", "w") as full:
        done = python(code, str(tmp_path / "result"), capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and (tmp_path / "result").exists() and b"No space left on device" in done.stderr


def test_file_does_not_take_the_place_of_a_closed_screen(tmp_path):
    code = ENDS + "with command.ends():\n file = open(sys.argv[1], 'w'); os.write(1, b'x'); print('told', flush=True)"
    words = [sys.executable, "-c", code, str(tmp_path / "result")]
    done = subprocess.run(words, stderr=subprocess.PIPE, cwd=ROOT, timeout=60, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr, (tmp_path / "result").read_bytes()) == (0, b"", b"")


def test_processes_started_deaf_do_not_hear_an_interrupt():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with command.deaf():
        blocked = python(code).stdout
    assert (blocked, python(code).stdout) == (b"True\n", b"False\n")
