"""What others watch of a training: TensorBoard's event files beside metrics.jsonl, and Weights & Biases.

Both are optional: pip install 'infomask-jax[tensorboard]'; W&B where it is installed and WANDB_PROJECT is set. One that
fails is told of and left: it ends no training."""

import hashlib
import os
import sys
import time
from importlib.util import find_spec
from numbers import Number
from pathlib import Path

import numpy as np

from infomask_jax import parallel
from infomask_jax.config import Config
from infomask_jax.text import line


class Watchers:
    """Takes every line of metrics.jsonl, and pictures; in the main process alone, and only for libraries that are
    there. What a resumed run repeats takes the place of what it had told."""

    def __init__(self, config: Config, step: int):
        self.config, self.step, self.watching, self.begun = config, step, [], not parallel.is_main()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._each("close")

    def tell(self, row: dict) -> None:
        """One line of metrics.jsonl."""
        self._begin()
        scalars = {name: float(value) for name, value in row.items() if isinstance(value, Number) and name != "step"}
        self._each("tell", row["step"], scalars)

    def show(self, step: int, picture: np.ndarray | None) -> None:
        """A picture, uint8 [H, W, 3]."""
        if picture is not None:
            self._begin()
            self._each("show", step, picture)

    @property
    def any(self) -> bool:
        """Whether someone watches."""
        self._begin()
        return bool(self.watching)

    def _begin(self) -> None:
        if self.begun:
            return
        self.begun = True
        there = {TensorBoard: find_spec("tensorboardX"), Wandb: os.environ.get("WANDB_PROJECT") and find_spec("wandb")}
        for kind in (kind for kind, found in there.items() if found):
            try:
                self.watching.append(kind(self.config, self.step))
            except Exception as error:  # of libraries that are not ours, here and below
                _tell(kind, error)

    def _each(self, name: str, *given) -> None:
        for one in list(self.watching):
            try:
                getattr(one, name)(*given)
            except Exception as error:
                self.watching.remove(one)
                _tell(type(one), error)


def _tell(kind: type, error: Exception) -> None:
    print(f"{kind.__name__} fails, and the training goes on without: {line(error)}", file=sys.stderr)


class TensorBoard:
    """An event file, written at once: the thread of tensorboardX's own SummaryWriter dies of a full disk, and whoever
    tells it more then waits for ever."""

    def __init__(self, config: Config, step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.writer, self.event = EventsWriter(str(Path(config.workdir) / "events")), Event
        if step:
            self._write(step + 1, session_log=SessionLog(status=SessionLog.START))  # what was told from there on goes

    def tell(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            self._write(step, summary=scalar(name, value))
        self.writer.flush()

    def show(self, step: int, picture: np.ndarray) -> None:
        from tensorboardX.summary import image

        self._write(step, summary=image("validation", picture, dataformats="HWC"))

    def close(self) -> None:
        self.writer.close()

    def _write(self, step: int, **content) -> None:
        self.writer.write_event(self.event(step=step, wall_time=time.time(), **content))


class Wandb:
    def __init__(self, config: Config, step: int):
        import wandb

        workdir = Path(config.workdir)
        same = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
        about = {"name": workdir.name, "id": same, "resume": "allow", "dir": str(workdir)}
        self.run, self.image = wandb.init(config=config.to_dict(), **about), wandb.Image

    def tell(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log(scalars, step=step)

    def show(self, step: int, picture: np.ndarray) -> None:
        self.run.log({"validation": self.image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()
