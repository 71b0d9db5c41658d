"""images.py: every format gives the same picture, and no bad file gets through."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from infomask_jax.datasets import images
from infomask_jax.datasets.images import BadImage, decode
from infomask_jax.pixels import encode

RAMP8 = np.add.outer(np.arange(48), np.arange(40)).astype(np.uint8) * 2  # [48, 40], smooth
RAMP16 = RAMP8.astype(np.uint16) * 257
RGB8 = np.repeat(RAMP8[..., None], 3, 2)
PIXELS = b"\xe0\x7f\x10\0"  # the tag of Pixel Data


def coded(kind, image):
    return cv2.imencode(kind, image)[1].tobytes()


def dicom(image, syntax=ExplicitVRLittleEndian, frame=None, bits=None, kind="MONOCHROME2", meta=None, **tags):
    """DICOM bytes of an image; `frame` are its compressed bytes, if the syntax is a compressed one."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Rows, ds.Columns = image.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1 if image.ndim == 2 else 3, kind
    if image.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * image.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(image.dtype.kind == "i")
    ds.PixelData = image.tobytes() if frame is None else encapsulate([frame])
    if frame is not None:
        ds["PixelData"].is_undefined_length = True
    for name, value in tags.items():
        setattr(ds, name, value)
    for name, value in (meta or {}).items():
        setattr(ds.file_meta, name, value)
    if syntax == RLELossless and frame is None:
        ds.PixelData = image.tobytes()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless)
    out = io.BytesIO()
    if ds.file_meta.TransferSyntaxUID is None:
        del ds.file_meta.TransferSyntaxUID
        ds.preamble = bytes(128)
        ds.save_as(out, implicit_vr=False, little_endian=True)
    else:
        ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def lut(entries, first, bits, count=None):
    """One item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.LUTDescriptor = [count or len(entries), first, bits]
    item.LUTData = np.array(entries, "<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


PNG, JPEG = coded(".png", RAMP8), coded(".jpg", RAMP8)


def j2k(image):
    rows, columns = image.shape
    sizes = dict.fromkeys(("bits_allocated", "bits_stored"), 8 * image.itemsize) | {"rows": rows, "columns": columns}
    kind = {"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_representation": 0}
    return pydicom.pixels.get_encoder(JPEG2000Lossless).encode(image, number_of_frames=1, **sizes, **kind)


def signed_j2k(image):
    """The same code stream, whose header calls its samples signed."""
    frame = bytearray(j2k(image))
    frame[42] |= 0x80
    return bytes(frame)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(png, *chunks):
    """Chunks put behind the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def jpeg_of_size(height, width):
    data = bytearray(JPEG)
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.parametrize("image", [RAMP8, RAMP16], ids=["8 bit", "16 bit"])
def test_lossless_formats_return_the_very_pixels(image):
    rgb = np.repeat(image[..., None], 3, 2)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], np.iinfo(image.dtype).max)], 2)
    frames = [coded(".png", rgb), coded(".png", rgba), encode(image)]
    frames += [dicom(image), dicom(image, RLELossless), dicom(image, JPEG2000Lossless, j2k(image))]
    for data in frames:
        found = decode(data)
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"])
def test_jpeg_ls_inside_dicom(name):
    """Files of pydicom's own tests. After 0xff JPEG-LS stuffs a bit, so 0x01 .. 0x7f there are no markers."""
    path = get_testdata_file(name)
    with pydicom.dcmread(path) as ds:
        expected = ds.pixel_array.astype(float)
    found = decode(path)
    alike = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    assert found.shape == expected.shape and alike > 0.98  # one has a window
    with open(path, "rb") as file, pytest.raises(BadImage):
        data = file.read()
        decode(data[: -len(data) // 3])


def test_jpeg_is_close_alone_and_inside_dicom_and_jpeg_2000_may_end_in_a_byte_of_padding():
    for data in (JPEG, coded(".jpg", RGB8), dicom(RAMP8, JPEGBaseline8Bit, JPEG)):
        found = decode(data)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - RAMP8).max() <= 3
    assert decode(get_testdata_file("examples_jpeg2k.dcm")).shape == (480, 640)


def test_palette_and_transparency():
    head = struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    body = chunk(b"PLTE", bytes([10, 10, 10, 200, 200, 200])) + chunk(b"IDAT", zlib.compress(b"\0\1\0"))
    palette = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")
    assert decode(palette).tolist() == [[200, 10]]
    with pytest.raises(BadImage, match="tRNS"):
        decode(with_chunks(PNG, chunk(b"tRNS", b"\0\0")))
    half = np.full((1, 2, 4), 200, np.uint8)
    half[0, 0, 3] = 0
    half[0, 1, 3] = 100
    assert decode(coded(".png", half)).tolist() == [[0, round(200 * 100 / 255)]]
    deep = np.full((300, 2, 4), 50_000, np.uint16)
    deep[:, 1, 3] = 65535
    np.testing.assert_array_equal(decode(coded(".png", deep)), [[round(50_000**2 / 65535), 50_000]] * 300)


def test_kinds_and_depths_of_dicom():
    np.testing.assert_array_equal(decode(dicom(RAMP8, kind="MONOCHROME1")), 255 - RAMP8)
    np.testing.assert_array_equal(decode(dicom(RAMP8, RescaleSlope=-1, RescaleIntercept=255)), 255 - RAMP8)
    np.testing.assert_array_equal(decode(dicom(RGB8, kind="RGB")), RAMP8)
    expected = np.round((RAMP16 >> 4) / 4095 * 65535).astype(np.uint16)
    np.testing.assert_array_equal(decode(dicom(RAMP16 >> 4, bits=12)), expected, strict=True)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high", "allocated"), [(12, 15, 16), (10, 12, 16), (12, 11, 16), (6, 7, 8)])
def test_bits_beside_those_stored_are_not_of_the_pixel(bits, high, allocated, signed):
    """PS3.5 8.1.1: an overlay or rubbish may lie there; the sign is the highest bit stored."""
    rng, shift = np.random.default_rng(0), high + 1 - bits
    values = rng.integers(0, 1 << bits, (48, 40))
    codes = (values ^ (1 << bits - 1) if signed else values) << shift  # two's complement of values - half the range
    rubbish = rng.integers(0, 1 << allocated, values.shape) & ~(((1 << bits) - 1) << shift)
    image = (codes | rubbish).astype(f"u{allocated // 8}").view(f"{'iu'[not signed]}{allocated // 8}")
    found = decode(dicom(image, bits=bits, HighBit=high))
    np.testing.assert_array_equal(found, np.round(values / ((1 << bits) - 1) * 65535))


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_those_stored_in_compressed_pixels(signed):
    values = (RAMP16 >> 4).astype(np.uint16)
    codes = (values ^ 0x800 if signed else values) | 0xA000
    found = decode(dicom(codes, JPEG2000Lossless, j2k(codes), bits=12, PixelRepresentation=int(signed)))
    np.testing.assert_array_equal(found, np.round(values / 4095 * 65535))


@pytest.mark.parametrize(("place", "bits"), [("Modality", 8), ("Modality", 16), ("VOI", 12)])
def test_lookup_table_of_any_depth(place, bits):
    """Entries for more values than 8 bits count, from 100 on; values before and after get the first and last entry."""
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    entries = np.arange(1000) ** 2 * ((1 << bits) - 1) // 999**2
    expected = entries[np.clip(stored.astype(int) - 100, 0, 999)] / ((1 << bits) - 1) * 65535
    found = decode(dicom(stored, bits=12, **{f"{place}LUTSequence": [lut(entries, 100, bits)]})).astype(float)
    assert np.abs(found * 65535 / found.max() - expected).max() < 1


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 100, "WindowWidth": 0},
        {"WindowCenter": 100, "WindowWidth": 0.5},
        {"WindowCenter": 100, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": None, "RescaleIntercept": 5},
        {"WindowCenter": "NaN", "WindowWidth": 50},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_useless_window_or_rescale_is_left_out(tags):
    np.testing.assert_array_equal(decode(dicom(RAMP8, **tags)), RAMP8)


@pytest.mark.parametrize("slope", [1, 2, -1])
def test_window_shows_its_values_and_clips_the_others(slope):
    stored = np.arange(-500, 500, dtype=np.int16).reshape(20, 50)
    values = stored * slope + 100.0  # after rescale
    window = {"WindowCenter": 100, "WindowWidth": 401, "RescaleSlope": slope, "RescaleIntercept": 100}
    expected = np.clip((values - 99.5) / 400 + 0.5, 0, 1) * 65535
    found = decode(dicom(stored, RescaleType="HU", **window))
    assert np.abs(found.astype(float) - expected).max() < 2


def test_only_the_chunks_of_the_still_picture_are_decoded(capfd):
    """An animation's first frame, a profile and text say nothing of the pixels; the decoder never sees them."""
    control = chunk(b"fcTL", struct.pack(">7IHHBB", *range(7), 1, 1, 0, 0)[:26])
    animation, profile = chunk(b"acTL", struct.pack(">II", 2, 0)), b"RGB\0\0" + zlib.compress(b"rubbish")
    for extra in ((animation, control), (animation,), (chunk(b"iCCP", profile),), (chunk(b"tEXt", b"a\0b"),)):
        np.testing.assert_array_equal(decode(with_chunks(PNG, *extra)), RAMP8)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(BadImage, match="the decoder refused it"):
        decode(PNG[:33] + animation + chunk(b"IDAT", b"rubbish") + chunk(b"IEND", b""))
    with pytest.raises(BadImage, match="found b'ABCD'"):
        decode(with_chunks(PNG, chunk(b"ABCD", b"")))


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)], ids=str
)
@pytest.mark.parametrize("color", [False, True])
def test_jpeg_with_lost_data_is_refused(options, color):
    """Decoders fill what is lost with gray."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3) if color else (64, 64), np.uint8)
    jpeg = cv2.imencode(".jpg", image, options)[1].tobytes()
    start = jpeg.index(b"\xff\xda") + 14
    for cut in np.linspace(start, len(jpeg) - 20, 5).astype(int):
        with pytest.raises(BadImage, match="libjpeg: "):
            decode(jpeg[:cut] + b"\xff\xd9")


def test_jpeg_of_more_than_eight_bits_is_read():
    """Of 12 bits, taken out of a DICOM file of pydicom's own tests."""
    with pydicom.dcmread(get_testdata_file("JPGExtended.dcm")) as ds:
        stored, jpeg = ds.pixel_array, get_frame(ds.PixelData, 0, number_of_frames=1)
    np.testing.assert_array_equal(decode(jpeg), np.round(stored / 4095 * 65535))


def test_time_and_memory_have_bounds():
    """Scans, fill bytes, segments, chunks, elements and fragments without end, behind small files."""
    jpeg = cv2.imencode(".jpg", RAMP8, (cv2.IMWRITE_JPEG_PROGRESSIVE, 1))[1].tobytes()
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    many = {
        "scans": jpeg[:-2] + scan * 60 + b"\xff\xd9",
        "whole segments": jpeg[:2] + b"\xff\xfe\0\2" * 100_001 + jpeg[2:],
        "chunks": with_chunks(PNG, chunk(b"tEXt", b"a\0") * 100_001),
        "header that takes": dicom(RAMP8).replace(PIXELS, b"\x09\0\x10\0LO\0\0" * 100_001 + PIXELS),
        "fragments": dicom(RAMP8, JPEGBaseline8Bit, b"\xfe\xff\0\xe0\0\0\0\0" * 10_001 + JPEG),
    }
    for found, data in many.items():
        with pytest.raises(BadImage, match=found):
            decode(data)
    at = jpeg.index(b"\xff\xc2")
    with pytest.raises(BadImage, match="two frame headers"):
        decode(jpeg[:at] + jpeg[at : at + 13].replace(b"\xff\xc2", b"\xff\xc3") + jpeg[at:])
    np.testing.assert_array_equal(decode(jpeg[:2] + b"\xff" * 10_000_000 + jpeg[2:]), decode(jpeg))


def test_nothing_of_the_patient_is_told():
    """Neither by warnings nor by errors, on the screen or in a log."""
    name = "DOE^JANE"
    tags = {"PatientName": name, "PatientID": name, "SpecificCharacterSet": "BOGUS", "StudyDate": name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, window = dicom(RAMP8, **tags), dicom(RAMP8, **tags, WindowWidth=8, WindowCenter=12345678)
    bad = window.replace(b"12345678", b"DOE^JANE"), whole.replace(b"CS\x0c\0MONOCHROME2 ", b"CS\x08\0DOE^JANE")
    code = """
import sys
from infomask_jax.datasets import images
for hexed in sys.stdin.read().split():
    try:
        images.decode(bytes.fromhex(hexed))
    except images.BadImage as error:
        print(error)
"""
    sent = "\n".join(data.hex() for data in (whole, *bad))
    command = [sys.executable, "-W", "always", "-c", code]
    done = subprocess.run(command, input=sent, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "JANE" not in done.stdout and len(done.stdout), done


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "b'<html>no'"),
        (png_header(100_000, 100_000), "100000 x 100000"),
        (jpeg_of_size(0, 40), "40 x 0"),
        (dicom(RAMP8, JPEGBaseline8Bit, coded(".jpg", RAMP8[:20])), "40 x 20 compressed"),
        (dicom(RAMP8, JPEGBaseline8Bit, JPEG[:-60]), "no end mark"),
        (dicom(RAMP16, JPEG2000Lossless, j2k(RAMP16)[:-60]), "no end mark in its JPEG 2000"),
        (dicom(RAMP8, ExplicitVRLittleEndian).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"), "9.9.9"),
        (dicom(RAMP8, DeflatedExplicitVRLittleEndian, meta={"PrivateInformation": bytes(9000)}), "deflated"),
        (dicom(RAMP8, meta={"TransferSyntaxUID": None}), "Transfer Syntax UID (0002,0010)"),
        (dicom(RAMP8)[132:], "preamble"),
        (dicom(RAMP8, kind="DOE^JANE"), "found another"),
        (dicom(RAMP16, JPEG2000Lossless, j2k(RAMP16), bits=12, HighBit=15), "High Bit (0028,0102) 11, found 15"),
        (dicom(RAMP16, JPEG2000Lossless, signed_j2k(RAMP16)), "Pixel Representation (0028,0103) 1"),
        (dicom(RAMP8, PixelData=None), "Pixel Data (7FE0,0010), found none"),
        (dicom(RAMP8, PresentationLUTShape="INVERSE"), "Presentation LUT Shape (2050,0020) IDENTITY with MONOCHROME2"),
        (dicom(RAMP8, ModalityLUTSequence=[lut([1, 2, 3], 0, 16, count=9)]), "Modality LUT (0028,3000)"),
        (dicom(RAMP8, RescaleSlope="NaN", RescaleIntercept=0, VOILUTSequence=[lut([1, 2, 3], 0, 16)]), "Rescale Slope"),
        (dicom(RAMP8, WindowCenter=10, WindowWidth=9, VOILUTFunction="CURVE"), "VOI LUT Function (0028,1056)"),
        (dicom(RAMP8, WindowCenter=8.5, WindowWidth=9).replace(b"8.5 ", b"8,5 "), "Window Center (0028,1050)"),
        (dicom(RAMP8, NumberOfFrames=7), "7"),
        (dicom(RAMP8, RescaleSlope=0, RescaleIntercept=0), "0.0 to 0.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_file_is_refused_by_name(data, found):
    with warnings.catch_warnings(), pytest.raises(BadImage, match=r"x\.dcm") as error:
        warnings.simplefilter("ignore")
        decode(data, name="x.dcm")
    assert found in str(error.value)


def test_paths_are_read_whatever_their_suffix_but_not_folders_or_huge_files(tmp_path, monkeypatch):
    (tmp_path / "a.dat").write_bytes(PNG)
    np.testing.assert_array_equal(decode(tmp_path / "a.dat"), decode(str(tmp_path / "a.dat")))
    with pytest.raises(BadImage, match="found a folder"):
        decode(tmp_path)
    with pytest.raises(BadImage, match="found none"):
        decode(tmp_path / "none.png")
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    with pytest.raises(BadImage, match="at most 10 bytes"):
        decode(tmp_path / "a.dat")
