"""experiments/tpu.sh against a cloud that is this machine: gcloud runs the commands of the one host here."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "experiments" / "tpu.sh"
COMMANDS = {
    "gcloud": """case "$*" in
        *describe*) echo ACTIVE ;;
        *ssh*) cd "$HOME" && exec bash -c "${@: -1}" ;;
        *) echo "$@" ;;
        esac""",
    "gcsfuse": 'echo "$@" >> "$HOME/mounts"',
    "mountpoint": "exit 1",
    "sudo": "true",
    "sleep": 'echo "slept $1"',
    "python3.11": """mkdir -p "$3/bin" && ln -sf "$(command -v pip)" "$(command -v python)" "$3/bin" """,
    "pip": "true",
    # What is trained: is preempted once, then goes on until it is let go.
    "python": """echo "trains $* at $(git rev-parse HEAD)"
        [ -e "$HOME/preempted" ] || { touch "$HOME/preempted"; exit 75; }
        until [ -e "$HOME/go" ]; do /bin/sleep .05; done
        echo trained""",
}


@pytest.fixture
def host(tmp_path) -> Path:
    """A host's home folder; beside it `bin` with the commands, and `origin`, the source, of two commits."""
    if not shutil.which("flock"):  # the hosts have Linux, a developer may not
        pytest.skip("no flock here (util-linux)")
    for folder in ("home", "bin", "origin"):
        (tmp_path / folder).mkdir()
    for name, text in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    git = ["git", "-C", tmp_path / "origin", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    for message in ("older", "newer"):
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", message], check=True)
    yield tmp_path / "home"
    (tmp_path / "home" / "go").touch()


def revision(home: Path, name: str) -> str:
    command = ["git", "-C", home.parent / "origin", "rev-parse", name]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def tpu(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    cloud = {"PROJECT": "p", "ZONE": "z", "BUCKET": "films", "REPOSITORY": str(home.parent / "origin")}
    path = f"{home.parent / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **cloud, "HOME": str(home), "PATH": path, **variables}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_a_run_is_started_gone_on_with_when_preempted_and_not_started_twice(host):
    older = revision(host, "HEAD~1")
    start = ("start", "--", "experiments/some.py", "--workdir", "/mnt/bucket/a run")
    begun = tpu(host, *start, REVISION=older)  # returns while the run goes on
    assert begun.returncode == 0 and not (host / "go").exists(), begun
    assert "films /mnt/bucket" in (host / "mounts").read_text()
    trains = f"trains experiments/some.py --workdir /mnt/bucket/a run at {older}"
    deadline = time.monotonic() + 30
    while (lines := tpu(host, "log").stdout.splitlines()) != [trains, "slept 60", trains]:
        assert time.monotonic() < deadline, lines
    again = tpu(host, *start, REVISION=older)
    assert again.returncode != 0 and "a run is going on" in again.stdout
    assert tpu(host, "log").stdout.splitlines() == lines  # it has lost nothing
    (host / "go").touch()
    while tpu(host, "log").stdout.splitlines()[-1] != "trained":
        assert time.monotonic() < deadline
    assert tpu(host, *start, REVISION=revision(host, "HEAD")).returncode == 0


def test_what_cannot_be_started_says_why(host):
    found = tpu(host, "start", "--", "some.py", REVISION="0" * 40)
    assert found.returncode != 0 and "push this revision" in found.stdout and not (host / "train.log").exists()
    assert "expected -- SCRIPT" in tpu(host, "start").stderr
    assert "set it to the bucket" in tpu(host, "start", "--", "some.py", BUCKET="").stderr
    assert "start -- SCRIPT" in tpu(host).stderr
