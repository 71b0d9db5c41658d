"""What an independent decoder sees in a picture, and whether ours says the same.

PNG and JPEG: Pillow, and for damage in JPEG libjpeg-turbo with its warnings as errors; else the committee's libjpeg.
DICOM: pydicom with a plugin of other code than ours where there is one (gdcm, CharLS, Pillow), and its own transforms.
"""

import io
import warnings

import libjpeg
import numpy as np
import pydicom
import simplejpeg
from fuzz import mutators
from PIL import Image, ImageFile
from pydicom.encaps import get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder

MEAN, MOST = 0.006, 0.07  # of the range: how far two right decoders of lossy JPEG are apart, on average and at most
EXACT = 0.001  # of the range, where nothing is lost
Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, False
UNKNOWN = "tjDecompressHeader"  # of libjpeg-turbo: a kind of JPEG that it does not know, not damage
PLUGINS = ("pyjpegls", "pillow", "pydicom", "gdcm", "pylibjpeg")  # the first that has the format; ours is the last
warnings.filterwarnings("ignore", module="pydicom|PIL")


class Refused(Exception):
    """The independent decoder calls the file damaged."""


class Unjudged(Exception):
    """The independent decoder cannot tell: the reason, and not of damage."""


def judge(data: bytes, ours: np.ndarray) -> str:
    """ "" if the independent decoder shows the same picture; else what differs. Raises Unjudged."""
    kind = png if data.startswith(mutators.PNG) else jpeg if data.startswith(b"\xff\xd8") else dicom
    try:
        pictures, mean, most = kind(data)
    except Refused as refused:
        return f"accepted, but refused by {refused}"
    top, found = np.float32(np.iinfo(ours.dtype).max), []
    mean, most = max(mean, 0.51 / top), max(most, 0.51 / top)  # ours is rounded
    for name, picture in pictures.items():
        if picture.shape != ours.shape:
            found.append(f"{name} has {picture.shape}, ours {ours.shape}")
            continue
        difference = np.abs(picture - ours / top)
        if difference.mean() <= mean and difference.max() <= most:
            return ""
        found.append(f"{difference.mean():.3f} on average and {difference.max():.3f} at most from {name}")
    return "accepted, but " + ", ".join(found)


def png(data: bytes) -> tuple[dict, float, float]:
    """Gray in 0..1 by Pillow. Colour as Rec. 601, transparent black, gamma and orientation left alone.

    Pillow gets the chunks that make the picture: what is wrong with others, and where they are, does not change it.
    """
    parts = mutators.chunks(data)
    parts = [part for part in parts if part[0] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")]
    names = [name for name, _ in parts]
    if b"tRNS" in names and names.index(b"tRNS") > names.index(b"IDAT"):
        raise Refused("the standard: tRNS behind the pixels")
    try:
        image = Image.open(io.BytesIO(mutators.joined(parts)), formats=["PNG"])
        image.load()
    except Exception as error:
        raise Refused(f"Pillow: {type(error).__name__}, {str(error)[:60]}") from error
    clear = image.info.get("transparency")
    if image.mode in ("I;16", "I"):  # 16 bits of gray
        values = np.asarray(image).astype(np.float32)
        alpha = np.ones_like(values) if clear is None else values != clear
        return {"Pillow": values / 65535 * alpha}, EXACT, EXACT
    depth = data[24]
    if depth == 16 and clear is not None:
        raise Unjudged("Pillow keeps 8 of 16 bits, and the transparent colour has 16")
    exact = depth <= 8
    values = np.asarray(image.convert("RGBA"), np.float32) / 255
    # Rounded to 8 bits before alpha is applied, or not: both are fine.
    return {"Pillow": (values[..., :3] @ WEIGHTS) * values[..., 3]}, 0.004 if exact else 0.006, 0.006 if exact else 0.01


WEIGHTS = np.float32([0.299, 0.587, 0.114])


def jpeg(data: bytes) -> tuple[dict, float, float]:
    """Y in 0..1 by Pillow, and as gray of its RGB; lossless JPEG by libjpeg. Raises Refused for lost data."""
    bits, kind = frame_of(data)
    if kind in (0xC3, 0xF7) or bits != 8:
        try:
            values = libjpeg.decode(data)
        except Exception as error:
            raise Refused(f"libjpeg: {error!r}") from error
        if values.ndim != 2:
            raise Unjudged("colour of lossless JPEG")
        return {"libjpeg": values.astype(np.float32) / ((1 << bits) - 1)}, EXACT, EXACT
    try:
        simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError as error:
        if not str(error).startswith(UNKNOWN):
            raise Refused(f"libjpeg-turbo: {error}") from error
    pictures = {}
    for name in ("Pillow's Y", "Pillow's gray of RGB"):
        try:
            image = Image.open(io.BytesIO(data), formats=["JPEG"])
            if name == "Pillow's Y":
                image.draft("L", image.size)
            image.load()
        except Exception as error:  # of headers that Pillow reads itself, and narrowly
            try:
                values = libjpeg.decode(data)
            except Exception as second:
                wrong = f"{type(error).__name__}, {str(error)[:40]}"
                raise Refused(f"Pillow ({wrong}) and libjpeg ({str(second)[:100]})") from second
            pictures["libjpeg"] = (values if values.ndim == 2 else values[..., 0]).astype(np.float32) / 255
            break
        pictures[name] = np.asarray(image.convert("RGB"), np.float32) @ WEIGHTS / 255
    return pictures, MEAN, MOST


def frame_of(data: bytes) -> tuple[int, int]:
    """Bits and marker of the first frame header of a JPEG."""
    for part in mutators.segments(data):
        part = b"\xff" + part.lstrip(b"\xff")
        if len(part) > 4 and (part[1] == 0xF7 or (0xC0 <= part[1] <= 0xCF and part[1] not in (0xC4, 0xC8, 0xCC))):
            return part[4], part[1]
    return 8, 0xC0


def dicom(data: bytes) -> tuple[dict, float, float]:
    """The film in 0..1 by pydicom: pixels of another plugin, its rescale and window over all that can be stored."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    syntax, bits, allocated = dataset.file_meta.TransferSyntaxUID, dataset.BitsStored, dataset.BitsAllocated
    signed = bool(dataset.get("PixelRepresentation") or 0)
    high = bits - 1 if dataset.get("HighBit") in (None, "") else dataset.HighBit
    kind, lossy = dataset.PhotometricInterpretation, syntax in (pydicom.uid.JPEGBaseline8Bit, pydicom.uid.JPEG2000)
    tolerances = (2 * MEAN, 1) if lossy else (EXACT, EXACT)  # a narrow window makes much of one level
    array = stored(data, dataset, high)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        return {"pydicom": (array >> (bits - 8)).astype(np.float32) @ WEIGHTS / 255}, 0.006, MOST
    codes = (array.astype(np.int64) & ((1 << allocated) - 1)) >> (high + 1 - bits) & ((1 << bits) - 1)
    values = np.arange(1 << bits, dtype=np.int64)
    if signed:
        values = np.where(values >> (bits - 1), values - (1 << bits), values)
    values, pictures = modality(values.astype(np.int32 if signed else np.uint32), dataset), {}
    for name, rounded in (("pydicom", values), ("pydicom with whole values", np.round(values).astype(np.int64))):
        rounded = (
            rounded.clip(-32768, 65535) if dataset.get("VOILUTSequence") else rounded
        )  # beyond, pydicom's run over
        try:
            table = np.asarray(apply_voi_lut(rounded, without_useless(dataset)), np.float64)
        except Exception as error:  # useless elements are left out by ours, as viewers do; pydicom gives up
            raise Unjudged(f"pydicom: {type(error).__name__}") from error
        low, top = table.min(), table.max()
        if not np.isfinite(table).all() or top <= low:
            raise Refused(f"{name}: {low} to {top} after rescale and window")
        table = (table - low) / (top - low)
        pictures[name] = (1 - table if kind == "MONOCHROME1" else table)[codes].astype(np.float32)
        if "VOILUTSequence" not in dataset:  # only in a lookup table does it matter
            break
    return pictures, *tolerances


def without_useless(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """Without a window that is not finite, and without the slope: with a negative one pydicom turns the window."""
    dataset.pop("RescaleSlope", None)
    window = [np.ravel(dataset.get(name) or [])[:1] for name in ("WindowCenter", "WindowWidth")]
    if not all(np.isfinite(np.asarray(value, float)).all() for value in window):
        del dataset.WindowCenter, dataset.WindowWidth
    return dataset


def modality(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Rescaled values; where one of the two numbers is empty, as they are."""
    if not dataset.get("ModalityLUTSequence") and None in (
        dataset.get("RescaleSlope"),
        dataset.get("RescaleIntercept"),
    ):
        return values
    try:
        return apply_modality_lut(values, dataset)
    except Exception as error:  # lookup tables of 12 bits, for one
        raise Unjudged(f"pydicom: {type(error).__name__}") from error


def stored(data: bytes, dataset: pydicom.Dataset, high: int) -> np.ndarray:
    """Pixels as stored, all bits allocated, by the first plugin that can. Raises Refused, Unjudged."""
    syntax, shape = dataset.file_meta.TransferSyntaxUID, (dataset.Rows, dataset.Columns)
    samples, kind = dataset.SamplesPerPixel, dataset.PhotometricInterpretation
    if not syntax.is_compressed:
        order = "<" if syntax.is_little_endian else ">"
        needed = shape[0] * shape[1] * samples * dataset.BitsAllocated // 8
        if len(dataset.PixelData) < needed:
            raise Refused(f"its length: {len(dataset.PixelData)} bytes of {needed}")
        array = np.frombuffer(dataset.PixelData[:needed], f"{order}u{dataset.BitsAllocated // 8}")
        if samples == 1:
            return array.reshape(shape)
        if kind != "RGB":
            raise Unjudged(kind)
        planar = dataset.get("PlanarConfiguration", 0) == 1
        return array.reshape((samples, *shape)).transpose(1, 2, 0) if planar else array.reshape((*shape, samples))
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if frame.startswith(b"\xff\xd8\xff") and frame_of(frame) == (8, 0xC0):
        jpeg(frame)  # refuses what is lost
    if kind not in ("MONOCHROME1", "MONOCHROME2", "RGB"):
        raise Unjudged(kind)
    decoder, wrong = get_decoder(syntax), []
    for plugin in [name for name in PLUGINS if name in decoder.available_plugins]:
        copy = pydicom.dcmread(io.BytesIO(data))
        copy.pop("ExtendedOffsetTable", None)  # of no use with one frame, often damaged
        if syntax == pydicom.uid.RLELossless:  # so that bits above Bits Stored are given
            copy.BitsStored, copy.HighBit = copy.BitsAllocated, copy.BitsAllocated - 1
        try:
            return decoder.as_array(copy, decoding_plugin=plugin, raw=True)[0]
        except Exception as error:
            wrong.append(f"{plugin}: {str(error).strip().splitlines()[-1][:100] if str(error) else error!r}")
    raise Refused("; ".join(wrong))
