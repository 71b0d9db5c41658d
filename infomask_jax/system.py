"""What is asked of the operating system: the cores that are ours, folders that one process may write at a time, and
files that are whole or not there, and hold what we wrote."""

import contextlib
import errno
import fcntl
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

NUMBER = int | float  # a shape, see `read_json`
LARGEST = 1e15  # number in a JSON file of ours: float64 has it exactly


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, on whose kind the rounding of a run depends."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_all(files: dict[Path, str | bytes | Callable[[BinaryIO], None] | None]) -> list[Path]:
    """Write files, first all of them beside their places, then each into its place, whole; return their paths. A
    content is text, bytes, a function that writes it to the open file, or None: remove an old one."""
    temporary = {path: path.with_name(path.name + ".tmp") for path, content in files.items() if content is not None}
    try:
        for path, beside in temporary.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = files[path]
            try:
                if callable(content):
                    with beside.open("wb") as file:
                        content(file)
                else:
                    beside.write_bytes(content.encode() if isinstance(content, str) else content)
            except OSError as error:  # of a full disk, which does not name the file
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, beside in temporary.items():
            beside.replace(path)
        for path in files.keys() - temporary.keys():
            path.unlink(missing_ok=True)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
    return list(temporary)


def write_json(path: Path, value: Any) -> None:
    """Readers see the old file or the new one, never a half."""
    write_all({path: json.dumps(value, indent=1, allow_nan=False) + "\n"})


def lock(folder: Path, told: str) -> IO:
    """Keeps other processes out of a folder, which is made if need be, until the file that is returned is closed or
    this process dies. BlockingIOError, with the text `told`, if another one is in; PermissionError where nothing can be
    written. Where the file system has no locks, nobody is kept out."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a" if os.access(path, os.W_OK) or not path.exists() else "r")  # it may be another user's
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(f"{folder} cannot be written: {error.strerror}; give another folder") from error
        raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(f"{folder}: {told}") from error
    except OSError:  # ENOLCK, ENOTSUP, EBADF: no locks here
        pass
    return file


def read_json(path: Path, shape: Any, hint: str = "") -> Any:
    """What is in a JSON file of ours. ValueError naming the file, the first field that is not of the shape, and `hint`.

    A shape is a type or union; [shape of every item], or of several, [each item's]; {name: shape}, where "name?" may be
    absent, and other names are free, or, with {str: shape}, of that shape; (shape, or else shape). Numbers are below
    LARGEST, and bool is none.
    """
    return _parsed(path.read_bytes(), shape, str(path), hint)


def read_json_lines(path: Path, shape: Any, hint: str = "") -> list:
    """The lines of a file, each as in `read_json`; a last one without an end was cut by a kill, and is none."""
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [_parsed(line, shape, f"{path}, line {number}", hint) for number, line in enumerate(whole, 1)]


def _parsed(text: bytes, shape: Any, where: str, hint: str) -> Any:
    try:
        value = json.loads(text)
        wrong = _differs(value, shape, "")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        wrong = f"expected JSON, found {error}"
    if wrong:
        raise ValueError("; ".join(filter(None, (f"{where}: {wrong}", hint))))
    return value


def _differs(value: Any, shape: Any, field: str) -> str | None:
    """The first field of a value that is not of the shape, in words."""
    if isinstance(shape, tuple):
        found = [_differs(value, each, field) for each in shape]
        return None if None in found else found[-1]
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = {dict: "an object", list: "a list", str: "text", int: "a whole number", NUMBER: "a number"}.get(kind)
        return f"{field or 'the file'}: expected {name or kind}, found {value!r:.60}"
    if isinstance(value, NUMBER) and not abs(value) < LARGEST:  # NaN, too
        return f"{field}: expected a number below {LARGEST:g}, found {value!r:.60}"
    before = f"{field}." if field else ""
    if isinstance(shape, list):
        if len(shape) not in (1, len(value)):
            return f"{field}: expected {len(shape)} items, found {len(value)}"
        parts = zip(map(str, range(len(value))), value, shape if len(shape) > 1 else shape * len(value), strict=True)
    elif isinstance(shape, dict):
        if missing := [name for name in shape if name is not str and not name.endswith("?") and name not in value]:
            return f"{before}{missing[0]} is missing"
        known = {name.removesuffix("?"): each for name, each in shape.items() if name is not str}
        free = shape.get(str)
        parts = [(name, v, known.get(name, free)) for name, v in value.items() if name in known or free is not None]
    else:
        return None
    return next(filter(None, (_differs(v, each, f"{before}{name}") for name, v, each in parts)), None)
