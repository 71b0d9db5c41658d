"""PNG, JPEG and DICOM bytes -> one gray array, and every defence against bad files.

Headers are read before anything is decoded, so that a file cannot ask for more memory than `MAX_PIXELS` allows.
Orientation tags (EXIF) are ignored: boxes are drawn on the pixels as stored. Transparent pixels count as black.
"""

import io
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
MAX_PIXELS = 100_000_000  # a radiograph has at most about 20 million
MAX_BYTES = 1 << 29

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_JPEG2000 = b"\xff\x4f\xff\x51"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_NOT_ENTROPY = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # first marker after the entropy-coded bytes of a JPEG scan
_NOT_ENTROPY_LS = re.compile(rb"\xff[\x80-\xfe]")  # of JPEG-LS, which stuffs a bit after 0xff and not a byte


class BadImage(ValueError):
    """A file that is not one readable gray picture; the message names file, expected, found and what to do."""


def decode(data: bytes | str | Path, *, name: str | None = None) -> np.ndarray:
    """Decodes one radiograph.

    Args:
      data: the bytes of a PNG, JPEG or DICOM file, or its path. The kind is read from the bytes, not from the suffix.
      name: what to call the file in errors; the path by default.

    Returns:
      [H, W], uint8 or uint16 (PNG with 16 bits, DICOM with more than 8 bits stored); large is bright.

    Raises:
      BadImage: empty, truncated, not an image, of no pixels or too many, several frames, unknown transfer syntax.
    """
    if not isinstance(data, bytes):
        name, data = name or str(data), _read(Path(data), name or str(data))
    name = name or "image"
    if not data:
        raise BadImage(f"{name}: expected an image, found an empty file; fetch it again")
    if data.startswith(_PNG):
        _check_png(data, name)
        return _decode_plain(data, name)
    if data.startswith(_JPEG):
        _check_jpeg(data, name)
        return _decode_plain(data, name)
    if data[128:132] == b"DICM":
        return _decode_dicom(data, name)
    raise BadImage(f"{name}: expected PNG, JPEG or DICOM, found a file beginning {data[:8]!r}; convert or remove it")


def encode(image: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W] -> the bytes of a gray PNG of the same depth."""
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"expected uint8 or uint16 [H, W], found {image.dtype} {image.shape}")
    return data.tobytes()


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> [size, size], stretched to the square: area averages where it shrinks, linear where it grows."""
    height, width = image.shape
    if height > size or width > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def _read(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():
            raise BadImage(
                f"{name}: expected a file, found {'a folder' if path.is_dir() else 'none'}; correct the name"
            )
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadImage(f"{name}: expected at most {MAX_BYTES} bytes, found {size}; is it a picture?")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{name}: cannot be read: {error.strerror}; check its permissions") from error


def _truncated(name: str, where: str) -> BadImage:
    return BadImage(f"{name}: expected a whole file, found it truncated or damaged ({where}); fetch it again")


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise BadImage(f"{name}: expected at least one pixel, found {width} x {height}; remove the file")
    if height * width > MAX_PIXELS:
        raise BadImage(f"{name}: expected at most {MAX_PIXELS} pixels, found {width} x {height}; shrink or remove it")


def _check_png(data: bytes, name: str) -> None:
    """Walks the chunks: size in the header, every checksum, the end mark."""
    at, kind, pixels = len(_PNG), b"", False
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _truncated(name, f"no end chunk in {len(data)} bytes of PNG")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise _truncated(name, f"PNG chunk {kind!r} wants {end + 4} bytes of {len(data)}")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise _truncated(name, f"checksum of PNG chunk {kind!r}")
        if at == len(_PNG):
            if kind != b"IHDR" or length != 13:
                raise _truncated(name, f"PNG begins with chunk {kind!r}")
            width, height = struct.unpack_from(">II", data, at + 8)
            _check_size(height, width, name)
        pixels = pixels or kind == b"IDAT"
        at = end + 4
    if not pixels:
        raise _truncated(name, "PNG without pixel data")


def _check_jpeg(data: bytes, name: str) -> tuple[int, int]:
    """Walks the segments to the end mark, which decoders do not insist on. Returns height, width."""
    at, shape, not_entropy = 2, None, _NOT_ENTROPY
    while at + 4 <= len(data) or data[at : at + 2] == b"\xff\xd9":
        if data[at] != 0xFF:
            raise _truncated(name, f"no JPEG marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0xD9:
            if shape is None:
                break
            return shape
        else:
            length = struct.unpack_from(">H", data, at + 2)[0]
            if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # a frame header
                if at + 9 > len(data):
                    break
                shape = struct.unpack_from(">HH", data, at + 5)
                _check_size(*shape, name)
                not_entropy = _NOT_ENTROPY_LS if marker == 0xF7 else _NOT_ENTROPY
            at += 2 + length
            if marker == 0xDA:
                found = not_entropy.search(data, at)
                if not found:
                    break
                at = found.start()
    raise _truncated(name, f"no end mark in {len(data)} bytes of JPEG")


def _decode_plain(data: bytes, name: str) -> np.ndarray:
    """PNG or JPEG whose header was checked -> [H, W]."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImage(f"{name}: cannot be decoded: {error.err}; fetch it again") from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise _truncated(name, "the decoder refused it")
    if image.ndim == 3 and image.shape[2] == 4:
        alpha, image = image[..., 3], cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY)
        top = np.iinfo(image.dtype).max
        if alpha.min() < top:
            image = np.round(image * (alpha / top)).astype(image.dtype)
    elif image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    return image


def _decode_dicom(data: bytes, name: str) -> np.ndarray:
    """Modality (rescale) and VOI (window) transforms applied, MONOCHROME1 turned, spread over the full 8 or 16 bits."""
    if _DEFLATED in data[:4096]:
        raise BadImage(f"{name}: expected a transfer syntax of at most pixel compression, found a deflated data set")
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        syntax = dataset.file_meta.TransferSyntaxUID
        shape, frames = (int(dataset.Rows), int(dataset.Columns)), int(dataset.get("NumberOfFrames", 1) or 1)
        samples, kind = int(dataset.get("SamplesPerPixel", 1)), str(dataset.PhotometricInterpretation)
        allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
        signed, pixels = bool(dataset.PixelRepresentation), dataset.PixelData
    except Exception as error:  # on hostile bytes the parser raises anything
        raise BadImage(f"{name}: expected a DICOM picture, cannot read it ({error}); fetch it again") from error
    if syntax not in pydicom.uid.AllTransferSyntaxes:
        raise BadImage(f"{name}: expected a transfer syntax of the DICOM standard, found {syntax}; convert it to PNG")
    _check_size(*shape, name)
    if frames != 1:
        raise BadImage(f"{name}: expected one frame, found {frames}; save the frame you mean as its own file")
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise BadImage(f"{name}: expected 8 or 16 bits, found {bits} stored in {allocated}; convert it to PNG")
    gray = kind in ("MONOCHROME1", "MONOCHROME2") and samples == 1
    if not gray and not (kind.startswith(("RGB", "YBR")) and samples == 3):
        raise BadImage(f"{name}: expected MONOCHROME1, MONOCHROME2, RGB or YBR, found {kind} with {samples} samples")
    if syntax.is_compressed:
        _check_frame(pixels, shape, syntax, name)
    try:
        array = dataset.pixel_array
        if array.shape[:2] != shape:
            raise ValueError(f"{array.shape} pixels where the header says {shape}")
        if not gray:
            color = array if bits == 8 else (array >> (bits - 8)).clip(0, 255)
            return cv2.cvtColor(np.ascontiguousarray(color, dtype=np.uint8), cv2.COLOR_RGB2GRAY)
        lowest = -(1 << (bits - 1)) if signed else 0
        table = apply_modality_lut(np.arange(lowest, lowest + (1 << bits), dtype=array.dtype), dataset)
        for tag in (
            "RescaleSlope",
            "RescaleIntercept",
        ):  # pydicom would turn the window over where the slope is negative
            dataset.pop(tag, None)
        table = np.asarray(apply_voi_lut(table, dataset), np.float64)  # what each stored value shows
    except Exception as error:
        raise BadImage(f"{name}: cannot be decoded from {syntax.name}: {error}; convert it to PNG") from error
    low, high = table.min(), table.max()
    if not (np.isfinite(table).all() and high > low):
        raise BadImage(f"{name}: expected finite pixel values, found {low} to {high} after rescale and window")
    table = (table - low) / (high - low)
    if kind == "MONOCHROME1":
        table = 1 - table
    depth = np.uint8 if bits <= 8 else np.uint16
    table = np.round(table * np.iinfo(depth).max).astype(depth)
    return table[np.clip(array.astype(np.int32) - lowest, 0, len(table) - 1)]


def _check_frame(pixels: bytes, shape: tuple[int, int], syntax: pydicom.uid.UID, name: str) -> None:
    """Compressed pixel data carries its own header: it must be whole and agree with the DICOM one."""
    try:
        frame = get_frame(pixels, 0, number_of_frames=1)
    except Exception as error:
        raise _truncated(name, f"{syntax.name}: {error}") from error
    if frame.startswith(_JPEG):
        found = _check_jpeg(frame, name)
    elif frame.startswith(_JPEG2000):
        if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            raise _truncated(name, "no end mark in its JPEG 2000 data")
        right, bottom, left, top = struct.unpack_from(">IIII", frame, 8)
        found = (bottom - top, right - left)
    else:
        return  # RLE has no size of its own; an unknown syntax is refused by the decoder
    if found != shape:
        expected = f"{shape[1]} x {shape[0]} pixels as its header says"
        raise BadImage(f"{name}: expected {expected}, found {found[1]} x {found[0]} compressed; fetch it again")
