"""Arrays of an .npz file from anywhere: what it will take in memory is known before anything is unpacked."""

import io
import math
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from infomask_jax.text import line, normal, printable

HOW = "numpy.savez('maps.npz', image_id=numpy.array(names, dtype=str), cam=maps)"
LARGEST = 2 << 30  # bytes that a small file may unpack to; of a larger one, TIMES its own size, far more than maps gain
TIMES = 20
HEADER = 1 << 16  # bytes: an .npy header has about a hundred


def read(path: Path) -> dict[str, np.ndarray]:
    """Every array of the file by its name, NFC. ValueError, naming it, for what is not a whole .npz of numbers
    and text, or unpacks to more than `LARGEST` and `TIMES` its size."""
    if not path.is_file():
        raise ValueError(f"{path}: expected a file of maps, found {'a directory' if path.is_dir() else 'none'}")
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(max(path.stat().st_size - 22, 0))
        end = file.read()  # of a zip: how many entries it has, which zipfile does not ask
    if not zipfile.is_zipfile(path):
        cut = "a zip cut short: its end is missing; write it again"
        found = "one array (.npy)" if start == b"\x93NUMPY" else "something else"
        found = cut if start.startswith(b"PK") else f"{found}; write it with {HOW}"
        raise ValueError(f"{path}: expected an .npz file, found {found}")
    try:
        stored = np.load(path, allow_pickle=False)
    except Exception as error:  # damaged bytes make zipfile and numpy raise nearly anything
        raise ValueError(f"{path}: cannot be read, it is damaged ({line(error)}); write it again") from error
    with stored:
        _check(stored, end, path)
        return {normal(name): _array(stored, name, path) for name in stored.files}


def _check(stored, end: bytes, path: Path) -> None:
    """Names and sizes as the directory of the zip has them; zipfile unpacks no more of an array than it says there."""
    names, size = [normal(name) for name in stored.files], path.stat().st_size
    total, count = sum(entry.file_size for entry in stored.zip.infolist()), int.from_bytes(end[10:12], "little")
    most = f"arrays that unpack to at most {LARGEST / 2**30:g} GiB or {TIMES} times the size of the file"
    fewer = "if you made them so large, store them with numpy.savez, which does not compress, or fewer in a file"
    odd = [repr(name) for name in names if not printable(name) or not name]
    twice = [f"{name} more than once" for name, times in Counter(names).items() if times > 1]
    torch = ["one of torch.save"] if any(name.endswith("data.pkl") for name in names) else []
    huge = [f"{total / 2**30:.1f} GiB in {size / 2**20:.1f} MiB"] if total > max(LARGEST, TIMES * size) else []
    if end.startswith(b"PK\5\6") and count not in (len(names), 0xFFFF):
        raise ValueError(f"{path}: cannot be read, it is damaged ({len(names)} arrays of {count}); write it again")
    for wanted, found, hint in (
        ("an .npz file", torch, f"; write it with {HOW}"),
        ("printable names of arrays", odd, ""),
        ("each array once", twice, "; write it again"),
        (most, huge, f"; {fewer}"),
    ):
        if found:
            raise ValueError(f"{path}: expected {wanted}, found {found[0]}{hint}")


def _array(stored, name: str, path: Path) -> np.ndarray:
    try:
        _check_header(stored.zip, name if name in stored.zip.NameToInfo else f"{name}.npy")
        array = stored[name]
    except Exception as error:  # as above
        if "Object arrays" in str(error):
            hint = "ids: numpy.array(names, dtype=str); maps: one array of numbers, maps.detach().float().cpu().numpy()"
            raise ValueError(f"{path}, {name}: expected numbers or text, found Python objects; {hint}") from error
        what = "it does not fit into memory, or is damaged" if isinstance(error, MemoryError) else "it is damaged"
        raise ValueError(f"{path}, {name}: cannot be read, {what} ({line(error)}); write it again") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected an .npz file, found a zip with {name!r}; write it with {HOW}")
    return array


def _check_header(file: zipfile.ZipFile, entry: str) -> None:
    """ValueError where the header of an array says another size than the directory: numpy would make room for it."""
    with file.open(entry) as packed:
        start = io.BytesIO(packed.read(HEADER))
    if start.getvalue().startswith(np.lib.format.MAGIC_PREFIX):  # else no array
        new = np.lib.format.read_magic(start)[0] > 1
        shape, _, kind = getattr(np.lib.format, f"read_array_header_{1 + new}_0")(start)
        claimed, there = math.prod(shape) * kind.itemsize, file.getinfo(entry).file_size - start.tell()
        if not kind.hasobject and (claimed != there or not kind.itemsize):
            raise ValueError(f"{claimed} bytes by its header of {shape} {kind}, {there} in the file")
