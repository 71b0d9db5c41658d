"""X-ray files that a user names, as `predict` takes them: found, named once, decoded when asked for."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infomask_jax.datasets import images, lookup, schema
from infomask_jax.datasets.images import BadImage
from infomask_jax.pixels import as_panel, encode, resize
from infomask_jax.text import normal, printable

LONGEST_NAME = 250  # bytes of a file name, so that a picture of that name and .png can be written


class Films:
    """X-ray files as a source of `pipeline.eval_batches`, squared as `prepare` does it. Once film i has been asked for,
    `sizes[i]` is its (height, width) and `shown[i]` uint8 [H, W] to draw on, or `problems[i]` says what is wrong."""

    def __init__(self, paths: Sequence[Path], size: int):
        self.paths, self.size = paths, size
        self.sizes, self.shown, self.problems = {}, {}, {}

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i: int) -> dict:
        film = self.decode(i)
        if film is None:
            film = np.zeros((1, 1), np.uint8)
        else:
            self.sizes[i], self.shown[i] = film.shape, as_panel(film)
        return {"image": encode(resize(film, self.size)), "labels": np.zeros(0)}

    def decode(self, i: int) -> np.ndarray | None:
        """Film i as it is in its file; None, and a problem more, where it cannot be read."""
        try:
            return images.decode(self.paths[i])
        except BadImage as error:
            self.problems[i] = str(error)


def find(xrays: Sequence[Path]) -> dict[str, Path]:
    """{image_id: file}: of a file its name, of those in a folder their place in it; each file once. Prints what is left
    out of folders. ValueError for no film or names that clash or cannot be written; OSError for a folder that cannot be
    entered."""
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
            elif (other := found.setdefault(image_id, path)) != path:
                same = normal(str(other)) == normal(str(path))
                both = f"{lookup.one_name([other, path])}: keep one"
                wrong.append(both if same else f"{other} and {path} are both {image_id}: give the folder above them")
    if wrong:
        raise ValueError(f"names of X-rays: {schema.describe(wrong)}\nRename them.")
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
        raise ValueError(f"{folder}: expected X-rays ({kinds}), found none in this folder")
    return sorted(files)
