"""What others watch of a training: TensorBoard's event files beside metrics.jsonl, and Weights & Biases.

Both are optional: pip install 'infomask-jax[tensorboard]'; W&B where it is installed and WANDB_PROJECT is set."""

import hashlib
import os
from importlib.util import find_spec
from numbers import Number
from pathlib import Path

import numpy as np

from infomask_jax import parallel
from infomask_jax.config import Config


class Watchers:
    """Takes every line of metrics.jsonl, and pictures; in the main process alone, and only for libraries that are
    there. What a resumed run repeats takes the place of what it had told."""

    def __init__(self, config: Config, step: int):
        self.config, self.step, self.board, self.wandb = config, step, None, None
        self.begun = not parallel.is_main()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()

    def tell(self, row: dict) -> None:
        """One line of metrics.jsonl."""
        scalars = {name: float(value) for name, value in row.items() if isinstance(value, Number) and name != "step"}
        self._begin()
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, row["step"])
        if self.wandb:
            self.wandb.log(scalars, step=row["step"])

    def show(self, step: int, picture: np.ndarray | None) -> None:
        """A picture, uint8 [H, W, 3]."""
        if picture is None:
            return
        self._begin()
        if self.board:
            self.board.add_image("validation", picture, step, dataformats="HWC")
        if self.wandb:
            import wandb

            self.wandb.log({"validation": wandb.Image(picture)}, step=step)

    @property
    def any(self) -> bool:
        """Whether someone watches."""
        self._begin()
        return bool(self.board or self.wandb)

    def _begin(self) -> None:
        if self.begun:
            return
        self.begun, workdir = True, Path(self.config.workdir)
        if find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir), purge_step=self.step + 1 if self.step else None)
        if os.environ.get("WANDB_PROJECT") and find_spec("wandb"):
            import wandb

            same = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
            about = {"name": workdir.name, "id": same, "resume": "allow", "dir": str(workdir)}
            self.wandb = wandb.init(config=self.config.to_dict(), **about)
