"""Our DICOM decoder against two viewers' on every DICOM file in some folders: a table of accepted, refused, equal.

    apt install dcmtk libgdcm-tools
    python tests/fuzz/viewers.py FOLDER...       # by default the files that pydicom ships for its own tests

DCMTK shows a film as we do (rescale, LUT, window), so pictures are compared, up to brightness and contrast. GDCM gives
the stored values: ours must be a rising or falling function of them.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pydicom

from infomask_jax.datasets import images

JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
TOLERANCE = 0.006  # of the range: two roundings to 8 bits, of colour three


def main(folders: list[str]) -> None:
    default = Path(pydicom.__file__).parent / "data"
    counts, odd = Counter(), []
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(p for f in folders or [default] for p in Path(f).rglob("*") if p.is_file()):
            with path.open("rb") as file:
                if file.read(132)[128:] != b"DICM":
                    continue
            try:
                ours, reason = images.decode(path), None
            except images.BadImage as error:
                ours, reason = None, str(error)
            dataset = pydicom.dcmread(path, force=True)
            for viewer, show in (("DCMTK", dcmtk), ("GDCM", gdcm)):
                theirs = show(path, dataset, Path(scratch))
                counts[viewer, verdict(viewer, ours, theirs)] += 1
                if ours is not None and verdict(viewer, ours, theirs) == "other picture":
                    odd.append(f"{viewer}: {path}")
                if ours is None and theirs is not None:
                    odd.append(f"{viewer} shows it: {path.name}: {reason.partition(': ')[2]}")
    kinds = ("equal", "other picture", "only we", "only they", "neither")
    print(f"| viewer | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for viewer in ("DCMTK", "GDCM"):
        print(f"| {viewer} | {' | '.join(str(counts[viewer, kind]) for kind in kinds)} |")
    print(*odd, sep="\n")


def verdict(viewer: str, ours: np.ndarray | None, theirs: np.ndarray | None) -> str:
    if ours is None or theirs is None:
        return ("neither", "only they")[theirs is not None] if ours is None else "only we"
    same = ours.shape == theirs.shape and (alike if viewer == "DCMTK" else function_of)(ours, theirs)
    return "equal" if same else "other picture"


def dcmtk(path: Path, dataset: pydicom.Dataset, scratch: Path) -> np.ndarray | None:
    """[H, W] as shown; None where it does not show it."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    window = dataset.get("WindowWidth") not in (None, "") and dataset.get("WindowCenter") not in (None, "")
    voi = ["+Wl", "1"] if dataset.get("VOILUTSequence") else ["+Wi", "1"] if window else []
    tool, out = "dcml2pnm" if syntax in JPEG_LS else "dcmj2pnm", scratch / "dcmtk.png"
    out.unlink(missing_ok=True)
    subprocess.run([tool, "-q", "-O", "+on2", *voi, path, out], capture_output=True, timeout=60)
    image = cv2.imread(str(out), cv2.IMREAD_UNCHANGED) if out.exists() else None
    return image if image is None or image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def gdcm(path: Path, dataset: pydicom.Dataset, scratch: Path) -> np.ndarray | None:
    """[H, W] stored values of a gray film, without bits that are not of the pixel; None where it does not read it."""
    if not str(dataset.get("PhotometricInterpretation")).startswith("MONOCHROME"):
        return None
    out = scratch / "gdcm.dcm"
    out.unlink(missing_ok=True)
    subprocess.run(["gdcmconv", "--raw", path, out], capture_output=True, timeout=60)
    try:
        raw = pydicom.dcmread(out)
        values = np.frombuffer(raw.PixelData, f"<u{raw.BitsAllocated // 8}")[: raw.Rows * raw.Columns]
        values = values.reshape(raw.Rows, raw.Columns).astype(int)
    except Exception:  # whatever it left us
        return None
    values = values >> (raw.HighBit + 1 - raw.BitsStored) & ((1 << raw.BitsStored) - 1)
    sign = (1 << (raw.BitsStored - 1)) * dataset.PixelRepresentation
    return (values ^ sign) - sign


def alike(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether two pictures are the same up to a change of brightness and (rising) contrast."""
    ours, theirs = ours.astype(float), theirs.astype(float)
    if ours.std() == 0 or theirs.std() == 0:
        return ours.std() == theirs.std()
    slope, offset = np.polyfit(ours.ravel(), theirs.ravel(), 1)
    return slope > 0 and np.abs(slope * ours + offset - theirs).max() < TOLERANCE * np.ptp(theirs)


def function_of(ours: np.ndarray, values: np.ndarray) -> bool:
    """Whether `ours` is one brightness for each value, in their order or against it."""
    order = np.argsort(values, axis=None, kind="stable")
    values, shown = values.ravel()[order], ours.ravel()[order].astype(int)
    first = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    low, high = np.minimum.reduceat(shown, first), np.maximum.reduceat(shown, first)
    slack = TOLERANCE * np.iinfo(ours.dtype).max  # lossy frames: two inverse transforms
    return (high - low).max() <= slack and (bool((np.diff(high) >= -slack).all() or (np.diff(high) <= slack).all()))


if __name__ == "__main__":
    main(sys.argv[1:])
