"""InfoMask in JAX: localize chest disease from image-level labels with a masked variational latent representation.

run = infomask_jax.open("runs/demo")
film = run.predict("film.png")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from infomask_jax.api import TrainedRun

__version__ = "0.2.0"
__all__ = ["__version__"]  # not `open`: `import *` would put it in the place of Python's own


def open(folder: "str | os.PathLike[str]") -> "TrainedRun":
    """A finished run, to predict films with: see `api.TrainedRun`. FileNotFoundError where there is no run, ValueError
    naming the file for what is not as it was written."""
    from infomask_jax.api import TrainedRun  # JAX loads only where it is needed

    return TrainedRun.open(folder)
