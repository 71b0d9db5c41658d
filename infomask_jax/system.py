"""What is asked of the operating system: the cores that are ours, and files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


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
