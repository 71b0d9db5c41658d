"""The bytes of a radiograph -> one gray array, whatever the format. Orientation tags (EXIF) are ignored: boxes are
drawn on the pixels as stored. Transparent pixels count as black."""

from pathlib import Path

import numpy as np

from infomask_jax.datasets import dicom, png_jpeg
from infomask_jax.datasets.lookup import SUFFIXES as SUFFIXES
from infomask_jax.datasets.png_jpeg import BadImage

MAX_BYTES = 1 << 28


def decode(data: bytes | str | Path, *, name: str | None = None) -> np.ndarray:
    """Decodes one radiograph: [H, W], uint8, or uint16 where 8 bits do not hold it; large is bright. BadImage, naming
    the file, if that cannot be told for sure.

    Args:
      data: the bytes of a PNG, JPEG or DICOM file, or its path. The kind is read from the bytes, not from the suffix.
      name: what to call the file in errors; the path by default.
    """
    if not isinstance(data, bytes):
        name, data = name or str(data), _read(Path(data), name or str(data))
    name = name or "image"
    try:
        png_jpeg.expect(len(data) > 0, "an image", "an empty file", "fetch it again")
        if data.startswith(png_jpeg.PNG):
            return png_jpeg.decode_png(data)
        if data.startswith(png_jpeg.JPEG):
            return png_jpeg.decode_jpeg(data)
        if data[128:132] == b"DICM":
            return dicom.decode(data)
        bare = data[:4] in dicom.WITHOUT_PREAMBLE
        png_jpeg.expect(not bare, "DICOM with its 128 bytes of preamble", "none", "write it anew, with dcmconv")
        raise BadImage(f"expected PNG, JPEG or DICOM, found a file beginning {data[:8]!r}; convert or remove it")
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from error


def _read(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "none"
            raise BadImage(f"{name}: expected a file, found {found}; correct the name")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise BadImage(f"{name}: expected at most {MAX_BYTES} bytes, found {size}; is it a picture?")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"{name}: cannot be read: {error.strerror}; check its permissions") from error
