"""What every experiment script does: its command line, then `experiment.run`. All but command.py is imported inside."""

import argparse
import sys
from typing import Any

from infomask_jax import command


def main(default: Any, description: str, presets: dict[str, dict[str, Any]] | None = None) -> None:
    """Runs an experiment script: the Config `default`, changed by a preset, its own or `paper`, and by any flag."""
    with command.ends(resumes=True):
        from infomask_jax.presets import PAPER, changed

        presets = {"paper": PAPER, **(presets or {})}
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--preset", choices=presets, action="append", default=[])
        chosen, sys.argv[1:] = parser.parse_known_args()
        if len(chosen.preset) > 1:
            raise ValueError(f"--preset: expected one, found {' and '.join(chosen.preset)}")
        preset = changed(default, presets[chosen.preset[0]] if chosen.preset else {})
        told = f"--preset {' or '.join(presets)}: flags beside it count. paper: the paper's objective alone, in our"
        config = command.parse(type(default), default=preset, description=f"{description}\n{told} reconstruction.")
        from infomask_jax import experiment, parallel

        parallel.start(config.machine.hosts)
        experiment.run(config)
