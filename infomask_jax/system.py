"""What is asked of the operating system: the cores that are ours, and files that are whole or not there."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO


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
            if callable(content):
                with beside.open("wb") as file:
                    content(file)
            else:
                beside.write_bytes(content.encode() if isinstance(content, str) else content)
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
