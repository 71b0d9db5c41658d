"""DICOM bytes -> one gray array: pydicom reads and decodes; here is what it leaves open, and what no film may do."""

import io
import logging
import math
import struct
import warnings

import cv2
import numpy as np
import pydicom
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_windowing
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from infomask_jax.datasets import png_jpeg
from infomask_jax.datasets.png_jpeg import BadImage, check_size, expect, truncated
from infomask_jax.text import line

MAX_READS = 100_000  # of a header; elements of a film take some hundreds
MAX_FRAGMENTS = 10_000  # of compressed pixels
_STARTS = [(2, 0), (2, 1), (2, 2), (8, 0), (8, 1), (8, 5), (8, 8), (8, 22)]
WITHOUT_PREAMBLE = [bytes([group, 0, element, 0]) for group, element in _STARTS]  # how a data set begins then

# All that is read: what a file says of its patient is never parsed.
_ELEMENTS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ModalityLUTSequence", "RescaleIntercept"),
    *("RescaleSlope", "VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
    "PixelData",
]
_KINDS = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}  # Presentation LUT Shape: PS3.3 C.8.11.1.1.2
_JPEG2000 = b"\xff\x4f\xff\x51"
_ITEM = b"\xfe\xff\x00\xe0"  # begins each fragment of compressed pixels

# Its warnings quote the header, which may name the patient, and do not name the file.
warnings.filterwarnings("ignore", module="pydicom")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


class _File(io.BytesIO):
    """It cannot be inflated and has no more elements than a film."""

    reads = 0

    def read(self, size=-1):
        # Only what is to be inflated is read at once: a small file may grow to anything.
        deflated = size is None or size < 0
        expect(not deflated, "a data set that is not deflated", "one", "convert it, with dcmconv +te")
        self.reads += 1
        expect(self.reads <= MAX_READS, f"a header that takes {MAX_READS} reads at most", "more", "convert it to PNG")
        return super().read(size)


def decode(data: bytes) -> np.ndarray:
    """[H, W], uint8 where 8 bits hold it exactly, else uint16: modality (rescale) and VOI (window) transforms applied,
    MONOCHROME1 turned, spread over the full range."""
    dataset = _read(data)
    allocated, bits, high, signed = _bits(dataset)
    # Bits above High Bit and below the lowest one stored are not of the pixel: PS3.5 8.1.1.
    codes = _pixels(dataset).astype(np.uint8 if allocated == 8 else np.uint16) >> (high + 1 - bits) & ((1 << bits) - 1)
    if dataset.PhotometricInterpretation not in _SHAPES:
        return cv2.cvtColor((codes >> (bits - 8)).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    table = np.arange(1 << bits, dtype=np.int32)
    if signed:
        half = 1 << (bits - 1)
        table = (table ^ half) - half  # the sign is the highest bit stored
    return _brightness(table, dataset)[codes]


def _read(data: bytes) -> Dataset:
    """The elements of a file that has one picture."""
    try:
        dataset = pydicom.dcmread(_File(data), specific_tags=_ELEMENTS)
        dataset.decode()  # parses every element
    except BadImage:
        raise
    except Exception as error:  # on hostile bytes the parser raises anything, and quotes them
        found = f"an unreadable header ({type(error).__name__})"
        raise BadImage(f"expected a DICOM picture, found {found}; fetch it again") from error
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    expect(syntax is not None, "a Transfer Syntax UID (0002,0010)", "none", "write it anew, with dcmconv")
    known = syntax in pydicom.uid.AllTransferSyntaxes
    expect(known, "a transfer syntax of the DICOM standard", repr(str(syntax)[:64]), "convert it")
    if not dataset.get("PixelData"):  # absent or empty
        raise BadImage("expected Pixel Data (7FE0,0010), found none: a DICOMDIR, a report, or cut short? Remove it")
    samples, kind = _whole(dataset, "SamplesPerPixel"), dataset.get("PhotometricInterpretation")
    check_size(_whole(dataset, "Rows"), _whole(dataset, "Columns"), samples)
    frames = _whole(dataset, "NumberOfFrames", 1)
    expect(frames == 1, "one frame", frames, "save the frame you mean as its own file")
    found = f"{kind if kind in (*_KINDS, 'PALETTE COLOR') else 'another or none'} with {samples} samples a pixel"
    right = kind in _KINDS and samples == (1 if kind in _SHAPES else 3)
    wanted = f"Photometric Interpretation (0028,0004) of {', '.join(_KINDS)}"
    expect(right, wanted, found, "convert it to PNG")
    return dataset


def _bits(dataset: Dataset) -> tuple[int, int, int, int]:
    """Bits Allocated, Bits Stored, High Bit and Pixel Representation (1: signed), if they agree."""
    allocated, bits = _whole(dataset, "BitsAllocated"), _whole(dataset, "BitsStored")
    high, signed = _whole(dataset, "HighBit", bits - 1), _whole(dataset, "PixelRepresentation")
    least = 1 if dataset.PhotometricInterpretation in _SHAPES else 8
    right = allocated in (8, 16) and least <= bits <= allocated
    expect(right, "8 or 16 bits", f"{bits} stored in {allocated}", "convert it to PNG")
    top = bits if dataset.file_meta.TransferSyntaxUID.is_compressed else allocated
    expect(bits - 1 <= high < top, f"High Bit (0028,0102) {bits - 1}", f"{high} of {allocated} bits", "correct it")
    expect(signed in (0, 1), f"{_named('PixelRepresentation')} 0 or 1", signed, "correct it")
    return allocated, bits, high, signed


def _pixels(dataset: Dataset) -> np.ndarray:
    """[H, W] as stored, or RGB [H, W, 3]."""
    syntax, shape = dataset.file_meta.TransferSyntaxUID, (int(dataset.Rows), int(dataset.Columns))
    if syntax.is_compressed:
        frame, turbo = _frame(dataset, shape)
        if turbo and syntax in pydicom.uid.JPEGTransferSyntaxes:
            gray = png_jpeg.decode_turbo(frame)  # not by pydicom's decoder, which invents what is lost
            if dataset.PhotometricInterpretation in _SHAPES:
                return gray
        # One decoder, whatever else is installed: some end the process on a damaged file.
        dataset.pixel_array_options(decoding_plugin="pydicom" if syntax == RLELossless else "pylibjpeg")
    else:  # for pydicom would drop the bits above Bits Stored, be they the pixel's
        dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    try:
        array = dataset.pixel_array
    except Exception as error:  # each decoder raises kinds of its own
        raise BadImage(f"cannot be decoded from {syntax.name}: {line(error)}; convert it to PNG") from error
    expect(array.shape[:2] == shape, f"{shape[1]} x {shape[0]} pixels", f"an array {array.shape}", "fetch it again")
    return array


def _frame(dataset: Dataset, shape: tuple[int, int]) -> tuple[bytes, bool]:
    """Compressed pixels, whose own header must be whole and agree with DICOM's; whether libjpeg-turbo reads them."""
    pixels, syntax = dataset.PixelData, dataset.file_meta.TransferSyntaxUID
    few = pixels.count(_ITEM) <= MAX_FRAGMENTS
    expect(few, f"at most {MAX_FRAGMENTS} fragments of pixels", "more", "convert it to PNG")
    try:
        frame = get_frame(pixels, 0, number_of_frames=1)
    except Exception as error:  # of damaged fragments
        raise truncated(f"{syntax.name}: {line(error)}") from error
    turbo = False
    if frame.startswith(png_jpeg.JPEG):
        found, _, turbo = png_jpeg.check_jpeg(frame)
    elif frame.startswith(_JPEG2000) and len(frame) > 42:
        agree = dataset.PixelRepresentation or not frame[42] & 0x80
        expect(agree, f"{_named('PixelRepresentation')} 1 as its JPEG 2000 data has", 0, "correct it")
        if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
            raise truncated("no end mark in its JPEG 2000 data")
        right, bottom, left, top = struct.unpack_from(">IIII", frame, 8)
        found = (bottom - top, right - left)
    else:
        found = shape  # RLE has no size of its own; an unknown syntax is refused by the decoder
    wanted = f"{shape[1]} x {shape[0]} pixels as its header says"
    expect(found == shape, wanted, f"{found[1]} x {found[0]} compressed", "fetch it again")
    return frame, turbo


def _brightness(table: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The pixel values of all codes -> what each shows."""
    kind, shape = dataset.PhotometricInterpretation, str(dataset.get("PresentationLUTShape") or "")
    wanted = f"Presentation LUT Shape (2050,0020) {_SHAPES[kind]} with {kind}"
    expect(shape in ("", _SHAPES[kind]), wanted, "another: which way is bright?", "correct one of the two")
    table = _voi(_modality(table, dataset), dataset).astype(np.float64)
    low, high = table.min(), table.max()
    several = np.isfinite(table).all() and high > low
    expect(several, "finite pixel values", f"{low} to {high} after rescale and window", "convert it to PNG")
    table = (table - low) / (high - low)
    if kind == "MONOCHROME1":
        table = 1 - table
    levels = np.round(table * 255)
    return levels.astype(np.uint8) if np.allclose(table * 255, levels) else np.round(table * 65535).astype(np.uint16)


def _look_up(table: np.ndarray, lut: Dataset, dataset: Dataset, name: str) -> np.ndarray:
    """Values -> entries of a lookup table; those before its first and after its last one get that: PS3.3 C.11.1.1."""
    try:
        count, first, _ = lut.LUTDescriptor
        entries, order = lut.LUTData, "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(entries, f"{order}u2") if isinstance(entries, bytes) else np.asarray(entries)
        entries = entries[: count or 1 << 16]
        if len(entries) < (count or 1 << 16):
            raise ValueError(f"{len(entries)} entries of {count}")
    except Exception as error:  # elements that are absent, or of other kinds
        raise BadImage(f"expected a whole {name}, found it damaged ({line(error)}); convert it to PNG") from error
    return entries[np.clip(np.floor(table) - first, 0, len(entries) - 1).astype(int)]


def _modality(table: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Values after the Modality LUT, or Rescale Slope and Intercept, which are left out where one is empty."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(table, dataset.ModalityLUTSequence[0], dataset, "Modality LUT (0028,3000)")
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        dataset.pop(keyword, None)  # pydicom would turn the window over where the slope is negative
    if slope is None or intercept is None:
        return table
    finite = math.isfinite(slope) and math.isfinite(intercept)
    expect(finite, f"finite {_named('RescaleSlope')} and Intercept", f"{slope} and {intercept}", "correct them")
    return table * slope + intercept


def _voi(table: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Values after the VOI LUT or the window, which is left out where empty, not finite or too narrow: PS3.3 C.11.2."""
    if dataset.get("VOILUTSequence"):
        return _look_up(table, dataset.VOILUTSequence[0], dataset, "VOI LUT (0028,3010)")
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    if center is None or width is None or not (math.isfinite(center) and 0 < width < math.inf):
        return table
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    wanted = "VOI LUT Function (0028,1056) LINEAR, LINEAR_EXACT or SIGMOID"
    expect(function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"), wanted, "another", "correct it")
    if function == "LINEAR" and width < 1:
        return table
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = center, width, function
    return apply_windowing(table, dataset)


def _number(dataset: Dataset, keyword: str) -> float | None:
    """The (first) number of an element, None where it is empty or absent."""
    value = dataset.get(keyword)
    value = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
    return None if value in (None, "", []) else _as(float, value, keyword)


def _whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    return _as(int, default if value in (None, "") else value, keyword)


def _as(kind: type, value, keyword: str):
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        wanted = f"a {'whole ' * (kind is int)}number in {_named(keyword)}"
        raise BadImage(f"expected {wanted}, found none; correct it") from error


def _named(keyword: str) -> str:
    return f"{dictionary_description(keyword)} {Tag(keyword)}"
