"""Small whole files of every format, damaged: either the documented error, or what an independent decoder reads."""

import csv
import io
import json
import struct
from functools import partial

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from releases import BOXES
from test_images import JPEG, PNG, RAMP8, RAMP16, RGB8, chunk, coded, dicom, j2k

from infomask_jax import npz
from infomask_jax.datasets import images, store
from infomask_jax.report.stored import SCORES
from infomask_jax.score_files import box_tables
from infomask_jax.system import read_json
from infomask_jax.text import printable


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """A bit flipped, a run zeroed, made random, cut out, doubled or put elsewhere, or the end cut off."""
    at, to = (int(i) for i in rng.integers(0, len(data) + 1, 2))
    run = data[at : at + int(rng.choice([1, 2, 4, 16, 200]))]
    start, end = data[:at], data[at + len(run) :]
    flipped, without = bytes(byte ^ 1 << int(rng.integers(8)) for byte in run[:1]) + run[1:], start + end
    news = [start + new + end for new in (flipped, bytes(len(run)), rng.bytes(len(run)), run + run)]
    return [*news, without, start, without[:to] + run + without[to:]][rng.integers(7)]


def chunks(png: bytes) -> list[bytes]:
    """Name and content of every chunk."""
    found, at = [], 8
    while at + 8 <= len(png) and (not found or found[-1][:4] != b"IEND"):
        end = at + 8 + struct.unpack_from(">I", png, at)[0]
        found.append(png[at + 4 : end])
        at = end + 4
    return found


def damaged_png(rng: np.random.Generator, data: bytes) -> bytes:
    """Half of them with right checksums, which no damage by accident has."""
    if rng.random() < 0.5:
        return damaged(rng, data)
    parts = chunks(data)
    at, to = rng.integers(0, len(parts), 2)
    if rng.random() < 0.3:
        parts[at], parts[to] = parts[to], parts[at]
    else:
        parts[at] = parts[at][:4] + damaged(rng, parts[at][4:])
    return PNG[:8] + b"".join(chunk(part[:4], part[4:]) for part in parts)


def same_picture(data: bytes, found: np.ndarray) -> bool:
    """As Pillow shows it: of PNG the chunks of the picture, of JPEG the luminance, as near as two decoders are."""
    if data.startswith(PNG[:8]):
        kept = [part for part in chunks(data) if part[:4] in (b"IHDR", b"PLTE", b"IDAT", b"IEND")]
        data = PNG[:8] + b"".join(chunk(part[:4], part[4:]) for part in kept)
    image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
    image.draft("L", image.size)
    other = np.asarray(image if image.mode in ("L", "I;16") else image.convert("RGBA")) / 255
    if other.ndim == 3:
        other = other[..., :3] @ (0.299, 0.587, 0.114) * other[..., 3]
    gap = np.abs(other / (257 if image.mode == "I;16" else 1) - found / np.iinfo(found.dtype).max)
    return other.shape == found.shape and gap.mean() < 0.006 and gap.max() < 0.07


def same_film(data: bytes, found: np.ndarray) -> bool:
    """Whether brightness only rises (MONOCHROME1: falls) with the values that pydicom finds."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        return same_picture(get_frame(dataset.PixelData, 0, number_of_frames=1), found)
    bits, high, signed = dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    stored = dataset.pixel_array.astype(int) >> (high + 1 - bits) & ((1 << bits) - 1)
    stored = (stored ^ (signed << (bits - 1))) * (1 if dataset.PhotometricInterpretation == "MONOCHROME2" else -1)
    pairs = np.unique(np.stack([stored, found], -1).reshape(-1, 2), axis=0)  # sorted by what is stored
    return stored.shape == found.shape and (np.diff(pairs[:, 0]) > 0).all() and (np.diff(pairs[:, 1]) >= 0).all()


def same_arrays(data: bytes, found: dict) -> bool:
    with np.load(io.BytesIO(data)) as file:
        return all(np.array_equal(file[name], found[name]) for name in file.files) and len(found) == len(file.files)


def same_boxes(data: bytes, found: box_tables.BoxTable) -> bool:
    expected = []
    for row in csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")):
        row = {name.strip(): (cell or "").strip() for name, cell in row.items() if name}
        if any(row[name] for name in BOXES[2:]):
            x, y, w, h, width, height = (float(row[name]) for name in (*BOXES[2:], "image_width", "image_height"))
            corners = [y / height, x / width, (y + h) / height, (x + w) / width]
            expected.append((row["finding"], *np.clip(corners, 0, 1)))
    boxes = sorted((finding, *box.tolist()) for own in found.boxes.values() for finding, box in own)
    return all(np.allclose(a[1:], b[1:], atol=1e-6) for a, b in zip(boxes, sorted(expected), strict=True))


TABLE = b"image,finding,x,y,w,h,image_width,image_height\na.png,mass,1,2,30,40,100,80\nb.png,mass,,,,,,\n"
TABLE += b"a.png,edema,10.5,20,3e1,4,100,80\nc.png,mass,0,0,9,9,10,10\n"
COUNTS = {"images": 4, "patients": 3, "boxes": 2, "boxed images": 2, "labels": [[2, 2, 0]]}
METADATA = {"name": "folder", "findings": ["mass"], "fingerprint": "0f", "size": 16, "options": {}, "missing": 0}
METADATA |= {"tables": {"a.csv": "0f"}, "splits": {"train": 4}, "summary": {"train": COUNTS}, "skipped": 0}
AUROC = {"value": 0.5, "ci95": [0.25, 0.75], "n": 9}
EVALUATED = {"dataset": "rsna", "split": "test", "n_images": 9, "n_boxed_images": 4, "frame": 224, "counts": {}}
EVALUATED |= {"classification": {"mass": {"auroc": AUROC, "prevalence": 0.5}}} | {"localization": {}}
EVALUATED["mean_boxes_from"] = {"mass": "val"}
PICTURES = [PNG, coded(".png", RAMP16), coded(".png", RGB8), JPEG, coded(".jpg", RGB8)]
PICTURES += [cv2.imencode(".jpg", RGB8, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()]
FILMS = [dicom(RAMP8), dicom(RAMP16 >> 4, bits=12, WindowCenter=2000, WindowWidth=3000), dicom(RAMP8, RLELossless)]
FILMS += [dicom(RAMP8, JPEGBaseline8Bit, JPEG), dicom(RAMP16, JPEG2000Lossless, j2k(RAMP16))]
np.savez_compressed(MAPS := io.BytesIO(), image_id=["a", "b"], cam=np.random.default_rng(0).random((2, 7, 7)))
FORMATS = {  # whole files, how to read one, and whether what was read is what is there
    "picture": (PICTURES, images.decode, same_picture),
    "dicom": (FILMS, images.decode, same_film),
    "npz": ([MAPS.getvalue()], npz.read, same_arrays),
    "boxes": ([TABLE], lambda path: box_tables.read([path]), same_boxes),
}
for kind, value, shape in (("metadata", METADATA, store.FACTS), ("scores", EVALUATED, SCORES)):
    read = partial(read_json, shape=shape)
    FORMATS[kind] = ([json.dumps(value).encode()], read, lambda data, found: json.loads(data) == found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_refused_or_read_right(kind, tmp_path):
    wholes, read, same = FORMATS[kind]
    path, outcomes = tmp_path / "damaged.file", []
    for number in range(600):
        rng, data = np.random.default_rng(number), wholes[number % len(wholes)]
        for _ in range(number // len(wholes) % 3):  # every third is whole
            data = (damaged_png if data.startswith(PNG[:8]) else damaged)(rng, data)
        path.write_bytes(data)
        try:
            found = read(path)
        except ValueError as error:  # BadImage, BadNpz, BadData
            lines = str(error).split("\n")  # of rows, one each
            assert path.name in lines[0] or (kind == "boxes" and path.name in lines[1]), (number, lines)
            assert all(map(printable, lines)) and (len(lines) == 1 or kind == "boxes"), (number, lines)
            outcomes.append(False)
        else:
            assert same(data, found), number
            outcomes.append(True)
    assert 200 <= sum(outcomes) < 500
