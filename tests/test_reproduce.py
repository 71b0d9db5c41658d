"""A finished run that is made again, and the first step that differs."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from infomask_jax import datasets
from infomask_jax.reproduce import losses, reproduce


def test_run_is_reproduced_and_the_first_difference_is_named(trained_copy, trained, capsys):
    data, log = datasets.load("synthetic", trained.parent / "data"), trained_copy / "metrics.jsonl"
    facts = json.loads((trained_copy / "manifest.json").read_text()) | {"cores": 999}
    (trained_copy / "manifest.json").write_text(json.dumps(facts))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert reproduce(trained_copy, data)
    told = " ".join(capsys.readouterr().out.split())
    assert "cores: 999 ->" in told and "the same, bit for bit; 6 steps" in told
    rows[1]["losses"][1] = float(np.nextafter(np.float32(rows[1]["losses"][1]), np.float32(9)))  # step 4, last bit
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not reproduce(trained_copy, data)
    assert "the first step that differs is 4:" in capsys.readouterr().out
    log.write_text("".join(json.dumps(row) + "\n" for row in rows[:1]))
    assert not reproduce(trained_copy, data) and "3: loss None then" in capsys.readouterr().out
    with pytest.raises(ValueError, match="best is one step of a run: reproduce that run"):
        reproduce(trained_copy / "best", data)
    with pytest.raises(ValueError, match="prepare it as it was"):
        reproduce(trained_copy, dataclasses.replace(data, fingerprint="0"))
    log.write_text(log.read_text().replace('"losses"', '"lossess"', 1))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: losses is missing"):
        losses(trained_copy)


def test_command(trained):
    done = subprocess.run([sys.executable, "-m", "infomask_jax", "reproduce", str(trained)], capture_output=True)
    assert done.returncode == 2 and b"NOT reproduced" in done.stdout, done  # on one device, not eight: other sums
