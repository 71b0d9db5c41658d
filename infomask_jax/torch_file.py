"""PyTorch's .pt and .pth files without PyTorch, and without running what is in them.

Such a file is a pickle that names functions to call. Only what builds tensors is built; modules of networks become
lifeless stand-ins, from which their tensors are collected; any other name is an error.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6, which are no archives
DTYPES = {
    **{"Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16},
    **{"Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_},
}
NETWORKS = ("torch.nn.", "torchvision.models.", "torchxrayvision.")
DEEPEST = 32  # modules within modules


class _Inert:
    """Stands for an object of a network's class; keeps its state and does nothing."""

    def __new__(cls, *_, **__):
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *_, **__):
        pass

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}


class _Lazy:
    """A storage of the file, by its key: (element type, number of elements)."""

    def __init__(self, key: str, dtype: np.dtype, count: int):
        self.key, self.dtype, self.count = key, dtype, count


class _Tensor:
    """A tensor of the file: what of its storage it is."""

    def __init__(self, storage: _Lazy, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, stored: np.ndarray) -> np.ndarray:
        """Its values, a copy. ValueError where it does not lie within its storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise ValueError(f"a tensor of shape {self.shape} with strides {self.strides}")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) > len(stored) or (0 not in self.shape and last >= len(stored)):
            raise ValueError(f"a tensor of {self.shape}, strides {self.strides}, in {len(stored)} numbers")
        if 0 in self.shape:
            return np.empty(self.shape, stored.dtype)
        strides = [step * stored.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(stored[self.offset :], self.shape, strides).copy()


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Lazy):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle._Unpickler):  # the one in C makes room for whatever number a damaged file names
    """Builds containers, tensors and stand-ins for networks; UnpicklingError for anything else."""

    BUILDERS: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch", "Size"): tuple,
        ("__builtin__", "set"): set,
        ("builtins", "set"): set,
    }

    def __init__(self, file):
        super().__init__(file)
        self.dtypes = {}  # of storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.BUILDERS:
            return self.BUILDERS[module, name]
        if module == "torch" and name.removesuffix("Storage") in DTYPES:
            return np.dtype(DTYPES[name.removesuffix("Storage")])
        if f"{module}.".startswith(NETWORKS) and "." not in name:
            return type(name, (_Inert,), {})
        raise pickle.UnpicklingError(f"it would call {f'{module}.{name}'!a}")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class and its source, in files before 1.6
            return pid[1]
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str) or type(count) is not int:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.dtypes[key] = dtype
        return _Lazy(key, dtype, count)


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of the state dict in a file, or of the network, or of the state dict in a checkpoint's `state_dict`
    or `model`. ValueError where it holds none, is damaged, or would run code: nothing in it is run."""
    try:
        with open(path, "rb") as file:
            found, storage = _from_archive(file) if file.read(2) == b"PK" else _from_stream(path.read_bytes())
            return {name: tensor.array(storage(tensor.storage)) for name, tensor in _tensors(found).items()}
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a hostile pickle makes its reader raise nearly anything
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: expected PyTorch's weights alone, found: {reason}. Nothing of it was run."
        ) from error


def _from_archive(file: BinaryIO) -> tuple[Any, Callable[[_Lazy], np.ndarray]]:
    archive, kept = zipfile.ZipFile(file), {}
    found = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError(f"an archive with {len(found)} data.pkl, not one")
    index, folder = found[0], found[0].removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("compressed members, which PyTorch does not write")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("big-endian numbers")
    found = _Unpickler(io.BytesIO(archive.read(index))).load()

    def storage(lazy: _Lazy) -> np.ndarray:
        if lazy.key not in kept:
            kept.clear()  # tensors seldom share one
            kept[lazy.key] = np.frombuffer(archive.read(f"{folder}data/{lazy.key}"), lazy.dtype)
        return kept[lazy.key]

    return found, storage


def _from_stream(data: bytes) -> tuple[Any, Callable[[_Lazy], np.ndarray]]:
    file = io.BytesIO(data)
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise ValueError("no file of PyTorch")
    _Unpickler(file).load()  # sizes of the machine's numbers
    unpickler = _Unpickler(file)
    found, dtypes, stored = unpickler.load(), unpickler.dtypes, {}
    for key in _Unpickler(file).load():  # each storage: its number of elements, then they
        (count,) = struct.unpack("<q", file.read(8))
        if key not in dtypes or count < 0:
            raise ValueError(f"a storage {key!r} of {count} numbers, of no tensor")
        stored[key] = np.frombuffer(data, dtypes[key], count, file.tell()) if count else np.empty(0, dtypes[key])
        file.seek(stored[key].nbytes, 1)
    return found, lambda lazy: stored[lazy.key]


def _of_network(module: _Inert, prefix: str, depth: int = 0) -> Iterator[tuple[str, _Tensor]]:
    if depth > DEEPEST:
        raise ValueError("modules within each other without end")
    for kind in ("_parameters", "_buffers"):
        for name, value in module.state.get(kind, {}).items():
            if isinstance(value, _Tensor):
                yield f"{prefix}{name}", value
    for name, child in module.state.get("_modules", {}).items():
        if isinstance(child, _Inert):
            yield from _of_network(child, f"{prefix}{name}.", depth + 1)


def _tensors(found: Any) -> dict[str, _Tensor]:
    """Those of a state dict, of a checkpoint that holds one, or of a network."""
    if isinstance(found, _Inert):
        return dict(_of_network(found, ""))
    if isinstance(found, dict):
        for key in ("state_dict", "model"):
            if isinstance(found.get(key), (dict, _Inert)):
                return _tensors(found[key])
        tensors = {name: value for name, value in found.items() if isinstance(value, _Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors
    raise ValueError("neither a state dict nor a network")
