"""Whole PNG, JPEG and DICOM files of many kinds, small, by real encoders: what the mutators damage."""

import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

try:  # the only encoder of JPEG-LS
    import jpeg_ls
except ImportError:
    jpeg_ls = None


def film(rng: np.random.Generator, bits: int, channels: int = 1, least: int = 5) -> np.ndarray:
    """A smooth picture with noise, of odd sides, uint8 or uint16 [H, W] or [H, W, channels], values below 2**bits."""
    height, width = rng.integers(least, least + 35, 2)
    y, x = np.mgrid[:height, :width] / 8
    waves = [np.sin(x * rng.uniform(0.2, 1) + y * rng.uniform(0.2, 1) + k) for k in range(channels)]
    values = (np.stack(waves, axis=-1) + 1) / 2 + rng.normal(0, 0.03, (height, width, channels))
    values = (values.clip(0, 1) * ((1 << bits) - 1)).round().astype(np.uint8 if bits <= 8 else np.uint16)
    return values[..., 0] if channels == 1 else values


def png(rng: np.random.Generator) -> bytes:
    """Gray of 1, 8 and 16 bits, colour of 8 and 16, palette; with alpha or tRNS; interlaced."""
    kind = rng.choice(["gray8", "gray16", "rgb8", "rgb16", "rgba8", "rgba16", "gray1", "la", "palette", "interlaced"])
    if kind in ("rgb16", "rgba16", "gray16"):
        return cv2.imencode(".png", film(rng, 16, {"gray16": 1, "rgb16": 3, "rgba16": 4}[kind]))[1].tobytes()
    image = Image.fromarray(film(rng, 8, {"rgb8": 3, "rgba8": 4, "la": 2}.get(kind, 1)))
    options = {}
    if kind == "gray1":
        image = image.convert("1")
    elif kind == "palette":
        image = image.convert("RGB").quantize(int(rng.integers(2, 64)))
    if kind in ("palette", "gray8", "rgb8") and rng.random() < 0.4:
        options["transparency"] = image.getpixel((0, 0))
    if kind == "interlaced":
        return interlaced(np.asarray(image))
    return _saved(image, "PNG", compress_level=int(rng.integers(0, 10)), **options)


def interlaced(gray: np.ndarray) -> bytes:
    """Adam7, which no encoder at hand writes: seven small pictures in one stream, unfiltered."""
    rows = b""
    for y, x, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = gray[y::dy, x::dx]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", *gray.shape[::-1], 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def jpeg(rng: np.random.Generator, gray: bool = False) -> bytes:
    """Gray and colour of every sampling, progressive, restart markers, CMYK, RGB without transform, lossless of 8 to 16
    bits."""
    kinds = ["gray", "colour", "rgb", "cmyk", "lossless"]
    kind = "gray" if gray else rng.choice(kinds, p=[0.35, 0.35, 0.05, 0.05, 0.2])
    if kind == "lossless":
        bits = int(rng.choice([8, 10, 12, 16]))
        return lossless_jpeg(film(rng, bits), bits)
    channels = {"gray": 1, "cmyk": 4}.get(kind, 3)
    image = Image.fromarray(film(rng, 8, channels), "CMYK" if kind == "cmyk" else None)
    options = {"quality": int(rng.integers(30, 100)), "progressive": bool(rng.random() < 0.3)}
    options |= {"optimize": bool(rng.random() < 0.3), "restart_marker_blocks": int(rng.integers(0, 4))}
    if kind == "colour":
        options["subsampling"] = int(rng.integers(0, 3))
    elif kind == "rgb":
        options["keep_rgb"] = True
    return _saved(image, "JPEG", **options)


def lossless_jpeg(image: np.ndarray, bits: int) -> bytes:
    """JPEG of process 14, predictor 1, one table of Huffman codes, all of five bits."""
    values = image.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    text = ""
    for difference in ((values - predicted + 32768) % 65536 - 32768).ravel():
        size = int(abs(difference)).bit_length()
        text += format(size, "05b")
        if 0 < size < 16:
            text += format(int(difference if difference > 0 else difference + (1 << size) - 1), f"0{size}b")
    text += "1" * (-len(text) % 8)
    entropy = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    table = b"\0" + bytes([0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17))
    frame = struct.pack(">BHHB", bits, *image.shape, 1) + b"\1\x11\0"
    segments = ((b"\xc3", frame), (b"\xc4", table), (b"\xda", b"\1\1\0\1\0\0"))
    body = b"".join(b"\xff" + kind + struct.pack(">H", len(data) + 2) + data for kind, data in segments)
    return b"\xff\xd8" + body + entropy + b"\xff\xd9"


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
PACKED = (RLELossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEG2000Lossless, *([JPEGLSLossless] if jpeg_ls else []))


def dicom(rng: np.random.Generator) -> Dataset:
    """A film of any depth, sign, transfer syntax, rescale, window or lookup table; `written` gives its bytes."""
    kinds = [*PLAIN[:3], *PACKED]
    syntax = kinds[rng.integers(len(kinds))] if rng.random() < 0.97 else PLAIN[3]
    bits = 8 if syntax == JPEGBaseline8Bit else int(rng.choice([8, 10, 12, 14, 16]))
    signed = bool(syntax not in (JPEGBaseline8Bit, JPEGLosslessSV1) and rng.random() < 0.25)
    colour = bool(syntax in (*PLAIN, RLELossless) and bits == 8 and not signed and rng.random() < 0.2)
    least = 33 if syntax == JPEG2000Lossless else 5  # its encoder halves the picture five times
    image, allocated = film(rng, bits, 3 if colour else 1, least), 8 if bits == 8 else 16
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID, dataset.file_meta.MediaStorageSOPInstanceUID = syntax, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    dataset.Modality, dataset.PatientName, dataset.PatientID = "DX", "Test^Film", "1"
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = map(int, image.shape[:2])
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    if rng.random() < 0.4:
        dataset.RescaleSlope = str(round(float(rng.uniform(0.1, 3)) * (1 if rng.random() < 0.8 else -1), 3))
        dataset.RescaleIntercept = str(int(rng.integers(-2000, 2000)))
        dataset.RescaleType = "US"
    if not colour and rng.random() < 0.4:
        center = float(rng.uniform(-0.5, 0.5) if signed else rng.uniform(0, 1)) * (1 << bits)
        pairs = int(rng.integers(1, 3))
        dataset.WindowCenter = [str(round(center, 1))] * pairs
        dataset.WindowWidth = [str(round(float(rng.uniform(2, 1 << bits)), 1))] * pairs
        if rng.random() < 0.4:
            dataset.VOILUTFunction = str(rng.choice(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    elif not colour and rng.random() < 0.3:
        lut = Dataset()
        count = 1 << int(rng.integers(4, 9))
        lut.add_new("LUTDescriptor", "SS" if signed else "US", [count, 0, 16])
        lut.add_new("LUTData", "OW", np.linspace(0, 65535, count).astype("<u2").tobytes())
        dataset.VOILUTSequence = [lut]
    pixels = _dirty(rng, image, bits, allocated, signed) if syntax in (*PLAIN, RLELossless) else image
    frame = _packed(dataset, pixels, syntax, bits, signed)
    dataset.PixelData = frame if syntax in PLAIN else encapsulate([frame])
    dataset["PixelData"].VR = "OB" if syntax in PACKED or allocated == 8 else "OW"
    return dataset


def _dirty(rng: np.random.Generator, image: np.ndarray, bits: int, allocated: int, signed: bool) -> np.ndarray:
    """Something above Bits Stored, which is not of the pixel: the sign, an overlay, or nothing."""
    above = (1 << allocated) - (1 << bits)
    if signed:
        return image | np.where(image >> (bits - 1) & 1, above, 0).astype(image.dtype)
    noise = rng.integers(0, 1 << allocated, image.shape, image.dtype) & above
    return image | noise if rng.random() < 0.2 else image


def _packed(dataset: Dataset, image: np.ndarray, syntax: str, bits: int, signed: bool) -> bytes:
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    if syntax in PLAIN:
        data = image.astype(image.dtype.newbyteorder(order)).tobytes()
        return data + b"\0" * (len(data) % 2)
    if syntax == JPEGBaseline8Bit:
        return _saved(Image.fromarray(image), "JPEG", quality=90)
    if syntax == JPEGLosslessSV1:
        return lossless_jpeg(image, bits)
    if syntax == JPEGLSLossless:
        return jpeg_ls.encode_array(image)
    if signed:  # the encoders take numbers with their sign
        kind = np.int8 if image.dtype == np.uint8 else np.int16
        image = (image.astype(np.int32) << (32 - bits) >> (32 - bits)).astype(kind)
    facts = {"rows": dataset.Rows, "columns": dataset.Columns, "samples_per_pixel": dataset.SamplesPerPixel}
    facts |= {"photometric_interpretation": dataset.PhotometricInterpretation, "planar_configuration": 0}
    facts |= {"bits_allocated": dataset.BitsAllocated, "pixel_representation": int(signed), "number_of_frames": 1}
    facts["bits_stored"] = dataset.BitsAllocated if syntax == RLELossless else bits  # for the bits above them, too
    plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"
    return pydicom.pixels.get_encoder(syntax).encode(image, encoding_plugin=plugin, **facts)


def written(dataset: Dataset) -> bytes:
    """The bytes of a DICOM file, in its own transfer syntax."""
    file = io.BytesIO()
    syntax = dataset.file_meta.TransferSyntaxUID
    big, implicit = syntax == ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=not big, enforce_file_format=True)
    return file.getvalue()
