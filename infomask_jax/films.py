"""X-rays that a user names or has in memory, as `predict` takes them: found, named once, decoded when asked for."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infomask_jax.datasets import images, lookup, schema
from infomask_jax.datasets.images import BadImage
from infomask_jax.familiar import thumbnail
from infomask_jax.pixels import as_panel, encode, resize
from infomask_jax.text import normal, printable

LONGEST_NAME = 247  # bytes of a file name, so that a file of that name, .dcm and .tmp can be written


class Films:
    """X-rays, files or arrays, as a source of `pipeline.eval_batches`, squared as `prepare` does it. Once film i has
    been asked for, `sizes[i]` is its (height, width), `shown[i]` uint8 [H, W] to draw on and `thumbnails[i]` what tells
    it from others, see familiar.py; or `problems[i]` says what is wrong."""

    def __init__(self, paths: Sequence[Path | np.ndarray], size: int):
        self.paths, self.size = paths, size
        self.sizes: dict[int, tuple[int, int]] = {}
        self.shown: dict[int, np.ndarray] = {}
        self.thumbnails: dict[int, np.ndarray] = {}
        self.problems: dict[int, str] = {}

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> dict:
        film = self.decode(i)
        if film is None:
            square = np.zeros((self.size, self.size), np.uint8)
        else:
            square = resize(film, self.size)
            self.sizes[i], self.shown[i], self.thumbnails[i] = film.shape, as_panel(film), thumbnail(square)
        return {"image": encode(square), "labels": np.zeros(0)}

    def decode(self, i: int) -> np.ndarray | None:
        """Film i, uint8 or uint16 [H, W], as it is in its file; None, and a problem more, where it cannot be read."""
        given = self.paths[i]
        try:
            return as_film(given, f"film {i}") if isinstance(given, np.ndarray) else images.decode(given)
        except BadImage as error:
            self.problems[i] = str(error)


def as_film(pixels: np.ndarray, name: str) -> np.ndarray:
    """uint8 or uint16 [H, W], large is bright, as it is; of other numbers their range stretched over uint16, which the
    model cannot tell, for each film is standardised. BadImage, naming it, for what is not one finite gray picture."""
    if pixels.ndim != 2 or not pixels.size or pixels.dtype.kind not in "uif":
        found = f"{pixels.dtype} {list(pixels.shape)}"
        hint = "take one channel of a colour film, give several films as a list"
        raise BadImage(f"{name}: expected numbers [H, W], one gray film, found {found}; {hint}")
    if pixels.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(pixels)
    if not np.isfinite(pixels).all():
        raise BadImage(f"{name}: expected finite numbers, found NaN or infinity; replace them")
    low, high = float(pixels.min()), float(pixels.max())
    return np.rint((pixels.astype(np.float64) - low) * (65535 / max(high - low, 1e-300))).astype(np.uint16)


def find(xrays: Sequence[Path]) -> dict[str, Path]:
    """{image_id: file}: of a file its name, of those in a folder their place in it; each file once. Prints what is left
    out of folders. ValueError for no film, what is not there, and names that clash or cannot be written; OSError for a
    folder that cannot be entered."""
    if not xrays:
        raise ValueError("expected X-rays or folders of them after the RUN, found none")
    found, seen, wrong = {}, set(), []
    for given in map(Path, xrays):
        folder = os.path.isdir(given)
        for path in _files(given) if folder else [given]:
            image_id = normal(path.relative_to(given).as_posix() if folder else path.name)
            if os.path.realpath(path) in seen:
                continue
            seen.add(os.path.realpath(path))
            if not printable(image_id) or "\\" in image_id or len(os.fsencode(image_id.split("/")[-1])) > LONGEST_NAME:
                wrong.append(f"{image_id!r}: not printable, with a backslash, or of over {LONGEST_NAME} bytes")
            elif not os.path.lexists(path):
                wrong.append(f"{path}: no such file or folder")
            elif (other := found.setdefault(image_id, path)) != path:
                same = normal(str(other)) == normal(str(path))
                both = f"{lookup.one_name([other, path])}: keep one"
                wrong.append(both if same else f"{other} and {path} are both {image_id}: give the folder above them")
    if wrong:
        raise ValueError(f"X-rays that cannot be taken by these names: {schema.describe(wrong)}")
    return found


def _files(folder: Path) -> list[Path]:
    """X-rays in a folder and its sub-folders, by name."""
    files, others, linked, hidden = [], 0, 0, 0

    def fail(error: OSError):
        raise error

    for place, folders, names in os.walk(folder, onerror=fail):
        hidden += sum(map(lookup.hidden, folders + names))
        folders[:], names = ([name for name in those if not lookup.hidden(name)] for those in (folders, names))
        own = [Path(place, name) for name in names if name.lower().endswith(images.SUFFIXES)]
        files, others = files + own, others + len(names) - len(own)
        linked += sum(os.path.islink(os.path.join(place, name)) for name in folders)
    kinds = ", ".join(images.SUFFIXES)
    counts = {f"files whose names do not end in {kinds}": others, "linked folders": linked}
    counts |= {"hidden files or folders (._*, .*, __MACOSX)": hidden}
    if left_out := [f"{count} {what}" for what, count in counts.items() if count]:
        print(f"{folder}: left out {' and '.join(left_out)}; give X-rays among them by name")
    if not files:
        raise ValueError(f"{folder}: no X-ray is in this folder or below: no file whose name ends in {kinds}")
    return sorted(files)
