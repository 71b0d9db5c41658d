"""PNG and JPEG bytes -> one gray array. Headers are read before anything is decoded, so that no file asks for more
memory or time than the limits allow. A picture whose decoder had to invent pixels is refused."""

import re
import struct
import zlib

import cv2
import libjpeg
import numpy as np
import simplejpeg

from infomask_jax.text import line

MAX_PIXELS = 40_000_000  # a radiograph has at most about 20 million
MAX_PARTS = 100_000  # chunks of a PNG, segments of a JPEG
MAX_SCANS = 50  # of a progressive JPEG; encoders write about 10

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")  # the chunks of a PNG that make the picture
_TURBO = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # JPEG frames that libjpeg-turbo reads, at 8 bits
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_NOT_ENTROPY = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # first marker after the entropy-coded bytes of a JPEG scan
_NOT_ENTROPY_LS = re.compile(rb"\xff[\x80-\xfe]")  # of JPEG-LS, which stuffs a bit after 0xff and not a byte


class BadImage(ValueError):
    """A file that is not one readable gray picture."""


def expect(holds: bool, wanted: str, found, remedy: str) -> None:
    if not holds:
        raise BadImage(f"expected {wanted}, found {found}; {remedy}")


def truncated(where: str) -> BadImage:
    return BadImage(f"expected a whole file, found it truncated or damaged ({where}); fetch it again")


def check_size(height: int, width: int, samples: int = 1) -> None:
    size = f"{width} x {height}{f' x {samples} samples' if samples > 1 else ''}"
    expect(height > 0 and width > 0, "at least one pixel", size, "remove the file")
    expect(height * width * samples <= MAX_PIXELS, f"at most {MAX_PIXELS} pixels", size, "shrink or remove it")


def decode_png(data: bytes) -> np.ndarray:
    """Walks the chunks (size in the header, every checksum, the end mark) and decodes those that make the picture."""
    at, kind, kept = len(PNG), b"", [PNG]
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            raise truncated(f"no end chunk in {len(data)} bytes of PNG")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise truncated(f"PNG chunk {kind!r} wants {end + 4} bytes of {len(data)}")
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise truncated(f"checksum of PNG chunk {kind!r}")
        if at == len(PNG):
            if kind != b"IHDR" or length != 13:
                raise truncated(f"PNG begins with chunk {kind!r}")
            width, height = struct.unpack_from(">II", data, at + 8)
            check_size(height, width)
        if kind in _PICTURE:
            kept.append(memoryview(data)[at : end + 4])
        # Decoders differ in what they make of a transparent colour; critical chunks none may leave out.
        expect(kind != b"tRNS", "no transparent colour", "PNG chunk tRNS", "save it again without")
        known = kind in _PICTURE or kind[0] & 0x20
        expect(known, "chunks of the PNG standard", repr(kind), "save it again as PNG")
        at = end + 4
        if kind == b"IEND":
            break
    else:
        raise BadImage(f"expected at most {MAX_PARTS} chunks of PNG, found more; save it again as PNG")
    try:
        image = cv2.imdecode(np.frombuffer(b"".join(kept), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadImage(f"cannot be decoded: {error.err}; fetch it again") from error
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise truncated("the decoder refused it")
    if image.ndim == 2:
        return image
    gray, top = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.iinfo(image.dtype).max
    if image.shape[2] == 4:
        for first in range(0, len(gray), 256):  # rows, so that little memory is needed
            rows = slice(first, first + 256)
            gray[rows] = (gray[rows] * image[rows, :, 3].astype(np.uint32) + top // 2) // top
    return gray


def decode_jpeg(data: bytes) -> np.ndarray:
    """By libjpeg-turbo, or, of more than 8 bits or without loss (gray alone), by pylibjpeg's libjpeg."""
    shape, bits, turbo = check_jpeg(data)
    if turbo:
        return decode_turbo(data)
    try:
        image = libjpeg.decode(data)
    except Exception as error:  # it raises kinds of its own
        raise BadImage(f"cannot be decoded from JPEG of {bits} bits ({line(error)}); convert it to PNG") from error
    gray = image.shape == shape and 8 <= bits <= 16
    expect(gray, "one gray image", f"{image.shape} of {bits} bits", "convert it to PNG")
    top = (1 << bits) - 1
    return image if bits == 8 else ((image.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)


def decode_turbo(data: bytes) -> np.ndarray:
    """By libjpeg-turbo, which warns where it has to invent pixels: an error here."""
    try:
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
    except ValueError as error:
        raise truncated(f"libjpeg: {error}") from error


def check_jpeg(data: bytes) -> tuple[tuple[int, int], int, bool]:
    """Walks the segments to the end mark, which decoders do not insist on. Returns (height, width), the bits of a
    sample and whether libjpeg-turbo reads it."""
    at, frame, not_entropy, scans = 2, None, _NOT_ENTROPY, 0
    for _ in range(MAX_PARTS):
        found = _MARKER.match(data, at)
        if not found:
            break
        marker, at = found[1][0], found.end()
        if marker == 0xD9:
            if frame is None:
                break
            return frame
        if at + 2 > len(data):
            break
        length = struct.unpack_from(">H", data, at)[0]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # a frame header
            if at + 7 > len(data):
                break
            if frame:
                raise truncated("two frame headers of JPEG")
            bits, *shape = struct.unpack_from(">BHH", data, at + 2)
            check_size(*shape)
            frame = (tuple(shape), bits, bits == 8 and marker in _TURBO)
            not_entropy = _NOT_ENTROPY_LS if marker == 0xF7 else _NOT_ENTROPY
        at += length
        if marker == 0xDA:
            scans += 1
            expect(scans <= MAX_SCANS, f"at most {MAX_SCANS} scans of JPEG", "more", "convert it to PNG")
            found = not_entropy.search(data, at)
            if not found:
                break
            at = found.start()
    raise truncated(f"no end mark behind whole segments in {len(data)} bytes of JPEG")
