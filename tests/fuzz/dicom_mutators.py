"""Damage to DICOM files: elements, compressed pixels and bytes."""

import struct
import zlib

import numpy as np
import pydicom
from fuzz import seeds
from fuzz.mutators import EXTREME, damage, damaged_jpeg
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame

TEXTS = (
    "",
    "0",
    "-1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1,5",
    "abc",
    "\\",
    "4096\\0\\12",
    "12" * 40,
    "\x1b[31m\n",
)


def dicom(rng: np.random.Generator) -> bytes:
    """A damaged DICOM: elements changed, taken away, of another type; pixels damaged; or bytes anywhere."""
    dataset = seeds.dicom(rng)
    if rng.random() < 0.1:
        return seeds.written(dataset)  # as it is: that its picture is right is half of the test
    for _ in range(rng.integers(1, 3)):
        kind = rng.choice(["bytes", "element", "element", "pixels", "add", "add", "remove", "meta"])
        if kind == "bytes":
            return damage(rng, _written(dataset), int(rng.choice([0, 128, 132])))
        if kind == "pixels" and "PixelData" in dataset:
            dataset["PixelData"]._value = _pixels(rng, dataset)
        elif kind == "add":
            _set(dataset, rng, *ADDED[rng.integers(len(ADDED))])
        elif kind == "remove":
            tags = list(dataset.keys())
            del dataset[tags[rng.integers(len(tags))]]
        elif kind == "meta":
            if rng.random() < 0.3:
                dataset.file_meta.pop("TransferSyntaxUID", None)
            else:  # a preamble or header that is longer than usual
                dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
                dataset.file_meta.PrivateInformation = b"\0" * int(rng.choice([2, 6000, 100_000]))
        else:
            tags = [element.tag for element in dataset if element.VR != "SQ" and element.keyword != "PixelData"]
            element = dataset[tags[rng.integers(len(tags))]]
            _set(dataset, rng, element.keyword, element.VR, (*EXTREME, *TEXTS))
    return _written(dataset)


ADDED = (
    ("HighBit", "US", (0, 7, 11, 14, 15)),
    ("BitsStored", "US", (1, 6, 8, 9, 12, 15, 16)),
    ("PixelRepresentation", "US", (0, 1, 2)),
    ("NumberOfFrames", "IS", ("", "0", "1", "2", "1000000000")),
    ("RescaleSlope", "DS", ("", "0", "-1", "2.5", "1e-30", "nan", "1e308", "1,5")),
    ("RescaleIntercept", "DS", ("", "0", "-1024", "1e300", "x")),
    ("WindowCenter", "DS", ("", "100", "2048\\5", "nan", "1500,5", "1e308")),
    ("WindowWidth", "DS", ("", "0", "0.5", "1", "2", "-300", "4096", "inf", "400\\800")),
    ("VOILUTFunction", "CS", ("", "LINEAR", "LINEAR_EXACT", "SIGMOID", "OTHER")),
    ("PresentationLUTShape", "CS", ("", "IDENTITY", "INVERSE", "OTHER")),
    ("PhotometricInterpretation", "CS", ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR", "")),
    ("SamplesPerPixel", "US", (0, 1, 3, 4)),
    ("PlanarConfiguration", "US", (0, 1, 2)),
    ("PixelPaddingValue", "US", (0, 65535)),
    ("SmallestImagePixelValue", "US", (0, 1000)),
    ("ModalityLUTSequence", "SQ", ()),
    ("VOILUTSequence", "SQ", ()),
    ("SpecificCharacterSet", "CS", ("", "ISO_IR 192", "ISO 2022 IR 87", "NONE")),
    ("ExtendedOffsetTable", "OV", (b"\0" * 8, b"\xff" * 8)),
)


def _set(dataset: Dataset, rng: np.random.Generator, keyword: str, kind: str, values: tuple) -> None:
    """An element with one of the values, written as it stands, whether its type allows it or not."""
    tag = pydicom.datadict.tag_for_keyword(keyword)
    if kind == "SQ":
        lut, count = Dataset(), int(rng.choice([0, 1, 16, 256, 4096]))
        lut.LUTDescriptor = [count, int(rng.choice([0, 5, 65535])), int(rng.choice([8, 10, 12, 16, 0]))]
        lut["LUTDescriptor"].VR = "US"
        entries = np.linspace(0, 4095, max(1, count - int(rng.random() < 0.2))).astype("<u2")
        lut.add_new("LUTData", "OW", entries.tobytes())
        if rng.random() < 0.1:
            del lut[("LUTDescriptor", "LUTData")[rng.integers(2)]]
        dataset[tag] = DataElement(tag, "SQ", pydicom.Sequence([lut] if rng.random() < 0.9 else []))
        return
    value = values[rng.integers(len(values))]
    little = dataset.file_meta.get("TransferSyntaxUID") != seeds.ExplicitVRBigEndian
    if isinstance(value, bytes):
        data = value
    elif isinstance(value, int) and kind in ("US", "SS", "UL"):
        data = struct.pack(("<" if little else ">") + "H", value & 0xFFFF)
    else:
        data = str(value).encode()
    data += b" " * (len(data) % 2)
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(data), data, 0, False, little, True)


def _pixels(rng: np.random.Generator, dataset: Dataset) -> bytes:
    """Pixel Data damaged: the frame inside of its fragments, or the fragments."""
    pixels = dataset.PixelData
    if dataset.file_meta.get("TransferSyntaxUID") not in seeds.PACKED or rng.random() < 0.2:
        new = damage(rng, pixels)
        return new + b"\0" * (len(new) % 2)
    try:
        frame = get_frame(pixels, 0, number_of_frames=1)
    except Exception:
        return pixels
    if frame.startswith(b"\xff\xd8\xff") and rng.random() < 0.7:
        frame = damaged_jpeg(rng, frame)
    elif rng.random() < 0.1:
        frame += frame
    else:
        frame = damage(rng, frame)
    return encapsulate([frame or b"\0\0"], fragments_per_frame=int(rng.integers(1, 4)) if len(frame) > 99 else 1)


def _written(dataset: Dataset) -> bytes:
    """The bytes of a data set that need not be right; without a transfer syntax, as Explicit Little Endian has them."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    buffer = pydicom.filebase.DicomBytesIO()
    buffer.is_little_endian = syntax != seeds.ExplicitVRBigEndian
    buffer.is_implicit_VR = syntax == seeds.ImplicitVRLittleEndian
    pydicom.filewriter.write_dataset(buffer, dataset)
    body = buffer.getvalue()
    if syntax == seeds.DeflatedExplicitVRLittleEndian:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
        body += b"\0" * (len(body) % 2)
    meta = pydicom.filebase.DicomBytesIO()
    meta.is_little_endian, meta.is_implicit_VR = True, False
    pydicom.filewriter.write_file_meta_info(meta, dataset.file_meta, enforce_standard=False)
    return b"\0" * 128 + b"DICM" + meta.getvalue() + body
