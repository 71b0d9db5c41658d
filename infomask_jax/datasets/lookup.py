"""Files of images by their names, in whichever Unicode form the disk has them and never outside their folder."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from infomask_jax.text import normal, printable

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def safe_name(name: str) -> str:
    """An image name of a table, NFC. ValueError if it could lead out of the folder or is not printable."""
    path = PurePosixPath(normal(name))
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(str(path)).drive or "\\" in name
    if not name.strip() or str(path) == "." or outside or not printable(name):
        raise ValueError(f"expected the name of an image inside its folder, found {name!r}")
    return str(path)


def inside(path: Path, root: str) -> bool:
    """Whether a file, links followed, lies in `root` (itself a real path)."""
    return os.path.realpath(path).startswith(root.rstrip(os.sep) + os.sep)


def hidden(name: str) -> bool:
    """Whether systems make such files and folders beside those of users: ._a.png, .DS_Store, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def index_images(root: Path, key: str, suffixes: Sequence[str] = SUFFIXES) -> dict[str, list[Path]]:
    """All images below `root` by `key`, "name" or "stem", NFC; not those hidden or in linked folders."""
    found = defaultdict(list)
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not hidden(name)]
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in suffixes and not hidden(name):
                found[normal(getattr(path, key))].append(path)
    return found


def locator(folder: Path) -> Callable[[str], Path]:
    """The path of a file by its name below `folder`, in the Unicode form that the disk has, or as named. ValueError
    where both forms are there."""

    @cache
    def spellings(place: Path) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in os.listdir(place) if os.path.isdir(place) else ():
            found[normal(name)].append(name)
        return found

    def locate(name: str) -> Path:
        path = folder
        for part in PurePosixPath(normal(name)).parts:
            there = [] if part.isascii() else spellings(path).get(part, [])
            if len(there) > 1:
                raise ValueError(f"expected one file, found {one_name(there)}; keep one")
            path = path / (there[0] if there else part)
        return path

    return locate


def one_name(names: Sequence[str | Path]) -> str:
    """Names that look the same, told apart."""
    return f"{' and '.join(ascii(str(name)) for name in names)}, one name in two Unicode forms (NFC, NFD)"


def find_image(image_id: str, index: dict[str, list[Path]], root: str) -> Path:
    """The one file of an image. LookupError if there is none, ValueError if there are two or it is elsewhere."""
    paths = index.get(image_id, ())
    if not paths:
        raise LookupError(image_id)
    if len(paths) > 1:
        names = [os.path.relpath(path, root) for path in paths]
        same = len(set(map(normal, names))) == 1
        raise ValueError(f"expected one file, found {one_name(names) if same else ', '.join(names)}; keep one")
    if not inside(paths[0], root):
        raise ValueError(f"expected a file inside {root}, found a link to {os.path.realpath(paths[0])}")
    return paths[0]
