"""Damaged files of maps, through the reader of `evaluate --maps`."""

import io
import shutil
import struct
import tempfile
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from fuzz import mutators
from fuzz.tables import names_a_file, safe
from fuzz.workers import Bad

from infomask_jax.score_files import map_file


@cache
def maps() -> dict[str, np.ndarray]:
    """What a whole file of maps holds."""
    rng, names = np.random.default_rng(0), np.array([f"{i}.png" for i in range(6)])
    return {
        "image_id": names,
        "cam": rng.random((6, 4, 5), np.float32),
        "ours": rng.random((6, 3, 3, 2)).astype(np.float16),
        "probability": rng.random((6, 2)),
        "label": rng.integers(-1, 2, (6, 2)),
        "findings": np.array(["mass", "nodule"]),
        "patient_id": np.array([f"p{i}" for i in range(6)]),
    }


@cache
def _zeros() -> bytes:
    """Deflated zeros, 16 MiB, to be put behind each other."""
    packer = zlib.compressobj(1, wbits=-15)
    packer.compress(b"\0" * (1 << 24))
    packer.flush(zlib.Z_FULL_FLUSH)
    return packer.compress(b"\0" * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)


class Maps:
    """Checks files of maps."""

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="fuzz-maps-")) / "maps.npz"

    def close(self) -> None:
        shutil.rmtree(self.path.parent)

    def make(self, rng: np.random.Generator) -> tuple[bool, bytes]:
        """(whether the bytes were damaged blindly, which checksums must see; the file)."""
        compressed, arrays = bool(rng.random() < 0.5), dict(maps())
        kind = rng.choice(["bytes", "bytes", "array", "array", "header", "member"])
        if rng.random() < 0.004:
            return False, bomb(rng)
        if kind == "array":
            for _ in range(rng.integers(1, 3)):
                name = list(arrays)[rng.integers(len(arrays))]
                arrays[name] = changed(rng, arrays[name])
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, array)
                data = member.getvalue()
                if kind == "header" and rng.random() < 0.3:
                    data = mutators.damage(rng, data[:128]) + data[128:]
                member = f"{name}.npy"
                if kind == "member" and rng.random() < 0.3:
                    member = str(rng.choice(["image_id.npy", "x", "a/b.npy", "\x1b[2J.npy", "data.pkl", "cam.npy"]))
                archive.writestr(member, data)
        blind = bool(kind == "bytes")
        return blind, mutators.damage(rng, file.getvalue()) if blind else file.getvalue()

    def check(self, case: tuple[bool, bytes], decoded) -> tuple[str, str]:
        blind, data = case
        self.path.write_bytes(data)
        try:
            found = map_file.read(self.path)
        except ValueError as error:
            names_a_file(str(error), ["maps.npz"])
            return "refused", ""
        decoded()
        n = len(found.ids)
        if len(set(found.ids)) < n or any(map(safe, found.ids)):
            raise Bad("wrong", f"ids {found.ids}")
        if any(m.shape[0] != n or m.ndim not in (3, 4) or m.dtype.kind not in "fiu" for m in found.maps.values()):
            raise Bad("wrong", f"maps {[(m.shape, m.dtype) for m in found.maps.values()]}")
        if found.probability is not None and not ((found.probability >= 0) & (found.probability <= 1)).all():
            raise Bad("wrong", "a probability outside of 0..1")
        if found.label is not None and not np.isin(found.label, (-1, 0, 1)).all():
            raise Bad("wrong", "a label that is none")
        if not blind:
            return "accepted", "not comparable: another file"
        own = maps()
        same = found.ids == own["image_id"].tolist() and found.findings == own["findings"].tolist()
        same &= found.maps.keys() == {"cam", "ours"} and np.array_equal(found.probability, own["probability"])
        if not same or not all(np.array_equal(found.maps[name], own[name]) for name in found.maps):
            raise Bad("wrong", "other values after damage to the bytes")
        return "accepted", "equal"


def changed(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """The array of another type or shape, or with other values."""
    kinds = ["O", "S", "f8", "f2", "i8", "?", "c16", "U3", "V4", "M8[s]", "u1"]
    kind = rng.choice(["type", "axis", "short", "empty", "values", "order", "scalar"])
    if kind == "type":
        try:
            return array.astype(kinds[rng.integers(len(kinds))])
        except (ValueError, TypeError):
            return np.zeros(3, "V4")
    if kind == "values" and array.size and array.dtype.kind in "fiU":
        array = array.copy()
        odd = {"f": (np.nan, np.inf, -1, 2, 1e300), "U": ("0", "..", ""), "i": (5, -2)}[array.dtype.kind]
        with np.errstate(all="ignore"):
            array.flat[rng.integers(array.size)] = odd[rng.integers(len(odd))]
        return array
    array = np.atleast_1d(array)
    shapes = {"axis": array[None], "short": array[:-1], "empty": array[:0], "scalar": array.reshape(-1)[:1].squeeze()}
    return shapes.get(kind, np.asfortranarray(array.T))


def bomb(rng: np.random.Generator) -> bytes:
    """Some megabytes that unpack to 3 GiB, or a header that claims exabytes."""
    header, times = io.BytesIO(), 200
    shape = (6, 1 << 14, 1 << 15) if rng.random() < 0.7 else (6, 1 << 29, 1 << 29)
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    start = header.getvalue()
    stored = b"\0" + struct.pack("<HH", len(start), len(start) ^ 0xFFFF) + start
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in maps().items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
        raw = stored + _zeros() * times + b"\3\0"
        info = zipfile.ZipInfo("bomb.npy")
        archive.writestr(info, raw)
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(start) + times * (1 << 24)
    return file.getvalue()
