"""A run of all folds is a folder of runs, one a fold; what they predict is put together."""

from pathlib import Path

import numpy as np

from infomask_jax.config import Config
from infomask_jax.presets import changed


def several(config: Config) -> bool:
    """Whether a run is of all folds: a folder of runs, one a fold."""
    return config.folds > 1 and config.fold < 0


def each_fold(config: Config) -> list[Config]:
    """The configs of the runs that a run is made of: itself, or one in WORKDIR/fold-K for each fold."""
    if not several(config):
        return [config]
    workdir = Path(config.workdir)
    return [changed(config, {"fold": k, "workdir": workdir / f"fold-{k}"}) for k in range(config.folds)]


def joined(parts: list[dict]) -> dict:
    """Dicts of equal keys whose values, lists, arrays or such dicts, are put one after the other."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    return np.concatenate(parts) if isinstance(first, np.ndarray) else [value for part in parts for value in part]
