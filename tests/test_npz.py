"""npz.py: what an .npz takes in memory is known before it is unpacked, and what is damaged or odd is refused."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from infomask_jax import npz

IDS = np.array(["a.png", "b.png"])
ZEROS = np.zeros((1 << 20,), np.uint8)


def entry(array, **header):
    """The bytes of an array, under a header that may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | header)
    return file.getvalue() + array.tobytes()


def packed(**entries):
    """The bytes of an .npz of these entries beside IDS."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as stored:
        for name, data in ({"image_id": entry(IDS)} | entries).items():
            stored.writestr(f"{name}.npy", data)
    return file.getvalue()


def saved(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def changed(data, after, offset, value):
    """The bytes with one in another value, so far after the last place where `after` is."""
    at = data.rindex(after) + offset
    return data[:at] + bytes([value]) + data[at + 1 :]


def without_last(data):
    """A flipped bit in the size of the directory: zipfile reads fewer entries, and does not count them."""
    start = int.from_bytes(data[-6:-2], "little")
    second = data.index(b"PK\1\2", start + 4)
    size = int.from_bytes(data[-10:-6], "little") - (len(data) - 22 - second)
    return data[:second] + data[-22:-10] + size.to_bytes(4, "little") + start.to_bytes(4, "little") + data[-2:]


MAPS = np.zeros((2, 4, 4))
WHOLE = saved(image_id=IDS, cam=MAPS)
BOMB = "at most 0.000976562 GiB or 20 times the size of the file, found 0.0 GiB in 0.0 MiB"
DAMAGED = "a.npz, cam: cannot be read, it is damaged ("
LONG = b"\x93NUMPY\x02\x00" + (1 << 23).to_bytes(4, "little") + b" " * (1 << 23)
REFUSED = {
    "large maps": (packed(cam=entry(ZEROS.reshape(2, 512, 1024))), BOMB),
    "many": (packed(**{f"cam{i}": entry(ZEROS[: 1 << 18].reshape(2, 256, 512)) for i in range(4)}), BOMB),
    "header of more": (packed(cam=entry(MAPS, shape=(10**9, 64, 64))), DAMAGED),
    "no bytes an entry": (packed(cam=entry(np.zeros(0), descr="<U0", shape=(10**12,))), DAMAGED),
    "negative": (packed(cam=entry(MAPS, shape=(-2, 4, -4))), "a.npz, cam: cannot be read"),  # as many bytes
    "long header": (packed(cam=LONG), DAMAGED),
    "no header": (packed(cam=b"\x93NUMPY"), DAMAGED),
    "a changed byte": (changed(WHOLE, b"<f8", 100, 7), DAMAGED),
    "a lost entry": (without_last(WHOLE), "1 arrays of 2"),
    "half": (WHOLE[: len(WHOLE) // 2], "found a zip cut short: its end is missing; write it again"),
    "text": (b"image_id", "found something else; write it with numpy.savez"),
    "npy": (saved(lambda file, x: np.save(file, x), x=MAPS), "found one array (.npy); write it with numpy.savez"),
    "torch": (saved(**{"archive/data.pkl": MAPS}), "found one of torch.save; write it with numpy.savez"),
    "objects": (saved(image_id=np.array(["a", None], object)), "image_id: expected numbers or text, found Python obj"),
    "one name in two forms": (saved(**{"r\xe9": IDS, "re\u0301": IDS}), "each array once, found r\xe9 more than once"),
    "unprintable name": (saved(**{"a\x1b[m": IDS}), "expected printable names of arrays, found 'a\\x1b[m'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_damaged_or_too_large_is_refused_in_one_line_and_in_little_memory(tmp_path, monkeypatch, case):
    data, words = REFUSED[case]
    if words == BOMB:
        monkeypatch.setattr(npz, "LARGEST", 1 << 20)
    (tmp_path / "a.npz").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            npz.read(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    assert words in str(error.value) and str(tmp_path / "a.npz") in str(error.value) and "\n" not in str(error.value)


def test_arrays_are_read_as_they_were_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "LARGEST", 1 << 20)
    maps = {"cam": np.random.default_rng(0).random((2, 4, 4)), "raw": np.zeros((2, 400, 400))}
    np.savez(tmp_path / "a.npz", image_id=IDS, **maps)  # larger than a packed one may be, but all of it is there
    np.testing.assert_equal(npz.read(tmp_path / "a.npz"), {"image_id": IDS, **maps})
