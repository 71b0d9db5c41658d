"""PyTorch's .pt and .pth files without PyTorch, and without running what is in them.

Such a file is a pickle: a program that names functions to call. Only what builds tensors is built. Modules of networks
become lifeless stand-ins, from which their tensors are collected. Any other name, and any operation that PyTorch's
files do not need, is an error.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np

from infomask_jax.text import line

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before PyTorch 1.6, which are no archives
DTYPES = {
    **{"Float": np.float32, "Double": np.float64, "Half": np.float16, "BFloat16": ml_dtypes.bfloat16},
    **{"Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8, "Bool": np.bool_},
}
NETWORKS = ("torch.nn.", "torchvision.models.", "torchxrayvision.", "efficientnet_lite_pytorch.")
OPERATIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
    *("SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE"),
    *("TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
)
MODULES, DIMENSIONS = 100_000, 32  # at most
COPIES = 4  # of a file's bytes, at most, where tensors share theirs


class _Inert:
    """Stands for an object of a network's class; keeps its state and does nothing."""

    def __new__(cls, *_, **__):
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *_, **__):
        pass


class _Storage:
    """Numbers of the file, by their key."""

    def __init__(self, key: str, dtype: np.dtype):
        self.key, self.dtype = key, dtype


class _Tensor:
    """A tensor of the file: what of its storage it is."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self, stored: np.ndarray) -> np.ndarray:
        """Its values, a copy. ValueError where it does not lie within its storage."""
        if max(len(self.shape), len(self.strides)) > DIMENSIONS:
            raise ValueError(f"a tensor of more than {DIMENSIONS} dimensions")
        numbers = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
            raise ValueError("a tensor whose shape, strides and offset are not numbers from 0 on")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) > len(stored) or (0 not in self.shape and last >= len(stored)):
            raise ValueError(f"a tensor of {self.shape}, strides {self.strides}, in {len(stored)} numbers")
        if 0 in self.shape:
            return np.empty(self.shape, stored.dtype)
        strides = [step * stored.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(stored[self.offset :], self.shape, strides).copy()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_) -> _Tensor:
    if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise pickle.UnpicklingError("a tensor without a storage, shape or strides")
    return _Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_) -> Any:
    return tensor


def _check_keys(keys: Iterable) -> None:
    """Keys of dicts and sets are texts or numbers: a tuple of tuples can take for ever to hash."""
    if not all(isinstance(key, (str, int, float, bytes, type(None))) for key in keys):
        raise pickle.UnpicklingError("a key that is no name")


def _set(items: Any = ()) -> set:
    _check_keys(items)
    return set(items)


def _ordered(items: Any = ()) -> OrderedDict:
    _check_keys(key for key, _ in items)
    return OrderedDict(items)


class _Unpickler(pickle._Unpickler):  # the one in C makes room for whatever number a damaged file names
    """Builds containers, tensors and stand-ins for networks; UnpicklingError for anything else."""

    BUILDERS: ClassVar = {
        ("collections", "OrderedDict"): _ordered,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,  # before 0.4
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch.nn.parameter", "Parameter"): _rebuild_parameter,
        ("torch", "Size"): tuple,
        ("__builtin__", "set"): _set,
        ("builtins", "set"): _set,
    }
    dispatch: ClassVar = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPERATIONS
    }

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.dtypes = {}  # of storages, by key

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.BUILDERS:
            return self.BUILDERS[module, name]
        if module == "torch" and name.removesuffix("Storage") in DTYPES:
            return np.dtype(DTYPES[name.removesuffix("Storage")])
        if f"{module}.".startswith(NETWORKS) and "." not in name:
            return type(name, (_Inert,), {})
        raise pickle.UnpicklingError(f"it would call {f'{module}.{name}'!a}")

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == ("module",) and isinstance(pid[1], type):
            return pid[1]  # a class and its source, in files before 1.6
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        _, dtype, key, *_ = pid
        if not isinstance(dtype, np.dtype) or type(key) is not str:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        self.dtypes[key] = dtype
        return _Storage(key, dtype)

    def load_build(self) -> None:
        state, thing = self.stack.pop(), self.stack[-1]
        if isinstance(thing, _Inert):
            thing.state = state if isinstance(state, dict) else {}
        elif not isinstance(thing, (OrderedDict, _Tensor)):  # whose states, metadata and hooks, are left
            raise pickle.UnpicklingError("a state of what has none")

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of the state dict in a file, or of the network, or of the state dict in a checkpoint's `state_dict`
    or `model`. ValueError where it holds none, is damaged, or would run code: nothing in it is run."""
    try:
        with open(path, "rb") as file:
            begin = file.read(2)
            if begin != b"PK" and begin[:1] != b"\x80":
                raise ValueError("a file of another kind")
            found, storage = _from_archive(file) if begin == b"PK" else _from_stream(path.read_bytes())
            arrays, size = {}, 0
            for name, tensor in _tensors(found).items():
                arrays[name] = tensor.array(storage(tensor.storage))
                size += arrays[name].nbytes
                if size > COPIES * path.stat().st_size:
                    raise ValueError("tensors that share their numbers many times over")
            return arrays
    except OSError:
        raise
    except Exception as error:  # a hostile pickle makes its reader raise nearly anything
        known = isinstance(error, (ValueError, pickle.UnpicklingError)) and str(error)
        reason = line(error) if known else "a damaged or cut off file"
        hint = "Nothing of it was run. PyTorch writes such a file with torch.save(model.state_dict(), FILE)."
        raise ValueError(f"{path}: expected PyTorch's weights alone, found: {reason}. {hint}") from error


def _from_archive(file: BinaryIO) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive, kept = zipfile.ZipFile(file), {}
    names = archive.namelist()
    found = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError(f"an archive with {len(found)} data.pkl, not one")
    index, folder = found[0], found[0].removesuffix("data.pkl")
    if any(name.startswith(f"{folder}code/") for name in names):
        raise ValueError("a program of TorchScript")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("compressed members, which PyTorch does not write")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("big-endian numbers")
    network = _Unpickler(io.BytesIO(archive.read(index))).load()

    def storage(lazy: _Storage) -> np.ndarray:
        if lazy.key not in kept:
            kept.clear()  # tensors seldom share one
            kept[lazy.key] = np.frombuffer(archive.read(f"{folder}data/{lazy.key}"), lazy.dtype)
        return kept[lazy.key]

    return network, storage


def _from_stream(data: bytes) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    file = io.BytesIO(data)
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
        raise ValueError("another pickle")
    _Unpickler(file).load()  # sizes of the machine's numbers
    unpickler = _Unpickler(file)
    found, dtypes, stored = unpickler.load(), unpickler.dtypes, {}
    for key in _Unpickler(file).load():  # each storage: its number of elements, then they
        (count,) = struct.unpack("<q", file.read(8))
        if type(key) is not str or key not in dtypes or count < 0:
            raise ValueError(f"a storage of {count} numbers, of no tensor")
        stored[key] = np.frombuffer(data, dtypes[key], count, file.tell()) if count else np.empty(0, dtypes[key])
        file.seek(stored[key].nbytes, 1)
    return found, lambda lazy: stored[lazy.key]


def _tensors(found: Any) -> dict[str, _Tensor]:
    """Those of a state dict, of a checkpoint that holds one, or of a network."""
    if isinstance(found, dict):
        for key in ("state_dict", "model"):
            if isinstance(found.get(key), (dict, _Inert)):
                found = found[key]
                break
    if isinstance(found, _Inert):
        return dict(_of_network(found))
    if isinstance(found, dict):
        tensors = {name: value for name, value in found.items() if isinstance(value, _Tensor)}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors
    raise ValueError("neither a state dict nor a network")


def _of_network(network: _Inert) -> Iterator[tuple[str, _Tensor]]:
    """(name, tensor) as the state dict of a network has them."""
    waiting, seen = [("", network)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        if seen > MODULES or prefix.count(".") > DIMENSIONS:
            raise ValueError("modules within each other without end")
        left_out = module.state.get("_non_persistent_buffers_set", ())
        for kind in ("_parameters", "_buffers"):
            for name, value in module.state.get(kind, {}).items():
                if isinstance(value, _Tensor) and name not in left_out:
                    yield f"{prefix}{name}", value
        children = module.state.get("_modules", {}).items()
        waiting += [(f"{prefix}{name}.", child) for name, child in children if isinstance(child, _Inert)]
