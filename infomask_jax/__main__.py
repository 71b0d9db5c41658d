"""Localize chest disease from image-level labels: prepare a dataset, evaluate a trained run, redraw its report.

Training is in experiments/: each script there is one configuration and takes --help.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated

import tyro

from infomask_jax import datasets


@dataclass(frozen=True)
class Prepare:
    """Read a raw release, check all of it, and store it for training; `prepare DATASET --help` lists the options."""

    release: reduce(or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in datasets.OPTIONS.items()))


@dataclass(frozen=True)
class Evaluate:
    """Score a trained run (and its plain classifier) on a split of prepared data; print tables, write all outputs."""

    run: Annotated[Path, tyro.conf.Positional]
    """Work directory of the run."""
    data_dir: Path | None = None
    """Folder given to `prepare`; by default the one that the run was trained on."""
    dataset: str | None = None
    """Name of the prepared dataset; by default the one that the run was trained on."""
    split: str = "test"
    """Split to score. Thresholds come from the same data's val split, never from the scored one."""


@dataclass(frozen=True)
class Report:
    """Print the tables of a scored run again and redraw its figures."""

    run: Annotated[Path, tyro.conf.Positional]
    """Work directory of the run."""
    split: str = "test"
    """Scored split."""


def main() -> None:
    verbs = reduce(or_, (Annotated[v, tyro.conf.subcommand(v.__name__.lower())] for v in (Prepare, Evaluate, Report)))
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    verb = tyro.cli(verbs, prog="python -m infomask_jax", description=__doc__, config=config)
    try:
        if isinstance(verb, Prepare):
            datasets.prepare(verb.release)
            return
        from infomask_jax import experiment, report  # JAX loads only where it is needed
        from infomask_jax.config import Config

        if isinstance(verb, Evaluate):
            config = Config.load(verb.run)
            data = datasets.load(verb.dataset or config.dataset, verb.data_dir or config.data_dir)
            experiment.evaluate_run(verb.run, data, verb.split)
        else:
            report.report(verb.run, verb.split)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; nothing half-written is left") from None
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
