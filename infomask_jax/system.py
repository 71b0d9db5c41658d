"""What is asked of the operating system: the cores that are ours, folders that one process may write at a time, and
files that are whole or not there, and hold what we wrote."""

import errno
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_all(files: dict[Path, str | bytes | Callable[[BinaryIO], None] | None]) -> list[Path]:
    """Write files: first all of them beside their places, then each into its place, whole. A content is text, bytes,
    a function that writes it to the open file, or None: remove an old one.

    Returns: the paths written.
    """
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


def lock(folder: Path, told: str) -> IO:
    """Keeps other processes out of a folder, which is made if need be, until the file that is returned is closed; the
    system frees it, too, if this process dies.

    BlockingIOError, with the text `told`, if another one is in; PermissionError where nothing can be written. Where the
    file system has no locks, nobody is kept out.
    """
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
    """What is in a JSON file of ours. ValueError naming the file and the first field that is not of the shape.

    Args:
      shape: a type or union; [shape of every item]; {name: shape}, where "name?" may be absent, other names are free
        and {str: shape} is of every name. Numbers are finite; bool is no number.
      hint: how to mend the file, for the message.
    """
    try:
        value = json.loads(path.read_bytes())
        wrong = _differs(value, shape, "")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        wrong = f"expected JSON, found {error}"
    if wrong:
        raise ValueError(f"{path}: {wrong}{'; ' * bool(hint)}{hint}")
    return value


def _differs(value: Any, shape: Any, field: str) -> str | None:
    """The first field of a value that is not of the shape, in words."""
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    if not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object)):
        names = {dict: "an object", list: "a list", str: "text"}
        return f"{field or 'file'}: expected {names.get(kind) or getattr(kind, '__name__', kind)}, found {value!r:.60}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{field}: expected a finite number, found {value}"
    if isinstance(shape, list):
        parts = [(str(i), item, shape[0]) for i, item in enumerate(value)]
    elif isinstance(shape, dict) and str in shape:
        parts = [(name, item, shape[str]) for name, item in value.items()]
    elif isinstance(shape, dict):
        names = [(name.removesuffix("?"), name) for name in shape]
        if missing := [name for name, told in names if name == told and name not in value]:
            return f"{field}{'.' * bool(field)}{missing[0]} is missing"
        parts = [(name, value[name], shape[told]) for name, told in names if name in value]
    else:
        return None
    return next(filter(None, (_differs(v, s, f"{field}{'.' * bool(field)}{name}") for name, v, s in parts)), None)
