"""npz.py: what an .npz takes in memory is known before it is unpacked, and what is damaged or odd is refused."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from infomask_jax import npz

IDS = np.array(["a.png", "b.png"])


def entry(array, **header):
    """The bytes of an array, under a header that may lie."""
    file = io.BytesIO()
    facts = np.lib.format.header_data_from_array_1_0(array) | header
    np.lib.format.write_array_header_1_0(file, facts)
    return file.getvalue() + array.tobytes()


def pack(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as stored:
        for name, data in entries.items():
            stored.writestr(f"{name}.npy", data)
    return path


def refusal(path):
    """The message, without taking much memory for it."""
    tracemalloc.start()
    try:
        with pytest.raises(npz.BadNpz) as error:
            npz.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()
    return str(error.value)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(npz, "LARGEST", 1 << 20)


def test_arrays_are_read_as_they_were_saved(tmp_path, small):
    maps = {"cam": np.random.default_rng(0).random((2, 4, 4)), "raw": np.zeros((2, 400, 400))}
    np.savez(tmp_path / "a.npz", image_id=IDS, **maps)  # larger than a packed one may be, but all of it is there
    found = npz.read(tmp_path / "a.npz")
    np.testing.assert_equal(found, {"image_id": IDS, **maps})


@pytest.mark.parametrize("which", ["maps", "names", "no array", "many"])
def test_small_files_that_unpack_to_much_are_refused_with_the_numbers(tmp_path, small, which):
    zeros = np.zeros((1 << 20,), np.uint8)
    entries = {"image_id": entry(IDS), "cam": entry(zeros.reshape(2, 512, 1024))}
    if which == "names":
        entries["image_id"] = entry(np.zeros(1 << 10, "<U256"))
    elif which == "no array":
        entries["cam"] = bytes(1 << 20)
    elif which == "many":
        entries |= {"cam": b"", **{f"cam{i}": entry(zeros[: 1 << 18].reshape(2, 256, 512)) for i in range(4)}}
    message = refusal(pack(tmp_path / "a.npz", **entries))
    assert "at most 0.000976562 GiB or 20 times the size of the file, found 0.0 GiB in 0.0 MiB" in message


LIES = {
    "more": entry(np.zeros((2, 4, 4)), shape=(10**9, 64, 64)),
    "less": entry(np.zeros((2, 4, 4)), shape=(2, 4, 2)),
    "another type": entry(np.zeros((2, 4, 4)), descr="<f4"),
    "no bytes an entry": entry(np.zeros((0,)), descr="<U0", shape=(10**12,)),
    "negative": entry(np.zeros((2, 4, 4)), shape=(-2, 4, -4)),
    "long header": b"\x93NUMPY\x02\x00" + (1 << 23).to_bytes(4, "little") + b" " * (1 << 23),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_say_another_size_are_refused(tmp_path, lie):
    message = refusal(pack(tmp_path / "a.npz", image_id=entry(IDS), cam=LIES[lie]))
    if lie == "negative":  # as many bytes, but no shape
        assert "a.npz, cam: cannot be read" in message
    else:
        assert "a.npz, cam: cannot be read, it is damaged (" in message and "write it again" in message


def test_objects_are_refused_without_being_made(tmp_path):
    np.savez(tmp_path / "a.npz", image_id=np.array(["a", None], object))
    assert "image_id: expected numbers or text, found Python objects" in refusal(tmp_path / "a.npz")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.npz", "w") as stored:
        for _ in range(2):
            stored.writestr("cam.npy", entry(np.zeros((2, 4, 4))))
    assert "expected each array once, found cam more than once" in refusal(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{"r\xe9": IDS, "re\u0301": IDS})
    assert "expected each array once, found r\xe9 more" in refusal(tmp_path / "b.npz")
