"""dicom_out.py: what a viewer opens lies on the film to the pixel, is the film's own, and tells nothing else."""

import getpass
import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from test_images import dicom, lut

from infomask_jax import __version__, dicom_out, localize, predict
from infomask_jax.datasets import images

highdicom = pytest.importorskip("highdicom")
DX = DigitalXRayImageStorageForPresentation
UIDS = {"StudyInstanceUID": "1.2.3.4", "SeriesInstanceUID": "1.2.3.5"}
PATIENT = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Änne", "PatientID": "p 1", "StudyID": "7"}
FINDINGS = ["mass", "Erguß\\Flüssigkeit " + "x" * 60]
HEAT = np.random.default_rng(0).random((2, 16, 16)).astype(np.float16)
HEAT[1] = 0  # a segment all the same
BOXES = [np.array([[0.1, 0.25, 0.3, 0.75], [0.5, 0.5, 1 + 1e-9, 1 + 1e-9]]), np.zeros((0, 4))]
PANELS = [(f"{name[:5]}: p = 0.{k}00", HEAT[k], BOXES[k]) for k, name in enumerate(FINDINGS)]


def film(path: Path, shape=(137, 91), syntax=ExplicitVRLittleEndian, drop=(), kind="MONOCHROME2", **tags) -> Path:
    """A DX film of 12 bits, from black to white, without what is dropped, be it of the file."""
    pixels = np.linspace(0, 4095, shape[0] * shape[1]).astype(np.uint16).reshape(shape[:2])
    pixels = pixels if len(shape) == 2 else np.repeat((pixels >> 4).astype(np.uint8)[..., None], 3, axis=2)
    tags = {"SOPClassUID": DX, "SOPInstanceUID": "1.2.3.6", "FrameOfReferenceUID": "1.2.3.7"} | UIDS | PATIENT | tags
    bits, kind = (12, kind) if len(shape) == 2 else (8, "RGB")
    if syntax == ExplicitVRBigEndian:
        pixels = pixels.byteswap()
    path.write_bytes(
        dicom(pixels, syntax, bits=bits, kind=kind, meta={"MediaStorageSOPInstanceUID": "1.2.3.6"}, **tags)
    )
    found = pydicom.dcmread(path)
    for name in drop:
        del (found if name in found else found.file_meta)[name]
        found.file_meta.pop(f"MediaStorage{name}", None)
    found.save_as(path)
    return path


def write(path: Path, **options) -> tuple[list[str], list[Dataset]]:
    """What is said of a film, and what is written of it, read without a word of protest."""
    made = film(path / "a.dcm", **options)
    size = options.get("shape", (137, 91))[:2]
    notes = dicom_out.write(path / "out", "a.dcm", made, size, FINDINGS, PANELS)
    files = [path / "out" / kind / "a.dcm.dcm" for kind in ("seg", "gsps")]
    read = [pydicom.dcmread(file) for file in files if file.exists()]
    with pydicom.config.strict_reading():
        for dataset in read:
            dataset.decode()
    return notes, read


@pytest.mark.parametrize("shape", [(1021, 1377), (1377, 1021)])
def test_maps_and_boxes_lie_on_the_film_to_the_pixel(tmp_path, shape):
    notes, (_, gsps) = write(tmp_path, shape=shape)
    assert notes == []
    seg = highdicom.seg.segread(tmp_path / "out" / "seg" / "a.dcm.dcm")
    found = seg.get_pixels_by_source_instance(["1.2.3.6"], rescale_fractional=False)
    for k, heat in enumerate(HEAT):
        expected = (localize.resize_map(heat, *shape) * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(found[0, ..., k], expected)
    assert (seg.SegmentationFractionalType, seg.MaximumFractionalValue, seg.NumberOfFrames) == ("PROBABILITY", 255, 2)
    labels = [seg.get_segment_description(number).segment_label for number in (1, 2)]
    assert labels == ["mass", FINDINGS[1].replace("\\", "/")[:64]]
    height, width = shape
    (annotation,) = gsps.GraphicAnnotationSequence
    corners = [np.reshape(item.GraphicData, (5, 2)) for item in annotation.GraphicObjectSequence]
    for points, (ymin, xmin, ymax, xmax) in zip(corners, BOXES[0], strict=True):
        np.testing.assert_allclose(points.min(0), [xmin * width, ymin * height], rtol=1e-6)
        np.testing.assert_allclose(points.max(0), [xmax * width, ymax * height], rtol=1e-6)
        assert points.max(0)[0] <= width and points.max(0)[1] <= height and (points[0] == points[4]).all()
    assert all(item.GraphicAnnotationUnits == "PIXEL" for item in annotation.GraphicObjectSequence)
    texts = [item.UnformattedTextValue for item in annotation.TextObjectSequence]
    assert "not for diagnosis" in texts[0] and texts[1:] == [PANELS[0][0]] * 2


def test_files_are_the_films_and_the_same_again_but_for_dates(tmp_path):
    _, first = write(tmp_path)
    _, again = write(tmp_path)
    for one, other in zip(first, again, strict=True):
        assert {one.file_meta.MediaStorageSOPInstanceUID, one.SOPInstanceUID} == {other.SOPInstanceUID}
        assert one.StudyInstanceUID == "1.2.3.4" and str(one.PatientName) == "Müller^Änne"
        assert (one.PatientID, one.PatientBirthDate, one.StudyID) == ("p 1", "", "7")
        lines = [
            [line for line in str(ds).splitlines() if not re.search(r" (DA|TM|DT): ", line)] for ds in (one, other)
        ]
        assert lines[0] == lines[1]
        (series,) = one.ReferencedSeriesSequence
        (image,) = series.get("ReferencedInstanceSequence") or series.ReferencedImageSequence
        assert (series.SeriesInstanceUID, image.ReferencedSOPInstanceUID, image.ReferencedSOPClassUID) == (
            "1.2.3.5",
            "1.2.3.6",
            DX,
        )
        assert one.Manufacturer == "infomask_jax" and one.SoftwareVersions == __version__
        assert "not for diagnosis" in one.SeriesDescription
        told = " ".join(str(element.value) for element in one.iterall() if element.keyword != "PixelData")
        words = re.findall(r"[^\s'^\[\],]+", told)
        assert not {getpass.getuser(), platform.node()} & {*words} and "/" not in re.sub("/F.{14}", "", told)
    uids = {uid for ds in first for uid in (ds.SOPInstanceUID, ds.SeriesInstanceUID)}
    assert len(uids) == 4
    moved = [(caption, heat + np.float16(0.01), boxes + 0.01) for caption, heat, boxes in PANELS]
    dicom_out.write(tmp_path / "other", "a", tmp_path / "a.dcm", (137, 91), FINDINGS, moved)
    assert not uids & {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / "other").rglob("*.dcm")}


def table(order: str) -> list:
    return [lut(np.array([0, 50, 200, 255] * 1024, f"{order}u2").view("<u2"), 0, 8)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"WindowCenter": [1000, 5], "WindowWidth": [500, 5]},
        {"WindowCenter": 1000, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 2000},
        {"VOILUTSequence": table},
        {"ModalityLUTSequence": table, "WindowCenter": 100, "WindowWidth": 0.1},  # a window that is none
        {"WindowCenter": "", "RescaleSlope": 2, "RescaleIntercept": ""},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_boxes_leave_the_film_in_its_window(tmp_path, syntax, tags, kind):
    """What a viewer makes of the film by the presentation state is what the model saw."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    tags = {name: value(order) if callable(value) else value for name, value in tags.items()}
    notes, (_, state) = write(tmp_path, syntax=syntax, kind=kind, **tags)
    assert notes == []
    stored = pydicom.dcmread(tmp_path / "a.dcm")
    values = apply_modality_lut(stored.pixel_array, state)
    for voi in state.get("SoftcopyVOILUTSequence", []):
        voi.BitsStored, voi.PixelRepresentation, voi.PhotometricInterpretation = 12, 0, "MONOCHROME2"
        for name in {"RescaleSlope", "RescaleIntercept"} & {*state.dir()}:
            voi[name] = state[name]
        values = apply_voi_lut(values, voi)
    shown = cv2.normalize(values.astype(float), None, 0, 1, cv2.NORM_MINMAX)
    shown = 1 - shown if state.PresentationLUTShape == "INVERSE" else shown
    seen = images.decode(tmp_path / "a.dcm")
    np.testing.assert_allclose(shown, seen / np.iinfo(seen.dtype).max, atol=1 / 255)


@pytest.mark.parametrize(
    ("options", "said", "count"),
    [
        ({"drop": ["StudyInstanceUID"]}, "StudyInstanceUID is missing, a new one is taken", 2),
        ({"SeriesInstanceUID": ""}, "SeriesInstanceUID is missing, a new one is taken", 2),
        ({"SOPInstanceUID": "", "SOPClassUID": ""}, None, 2),  # those of the file's header
        ({"drop": ["SOPInstanceUID"]}, "no DICOM written: expected a valid SOPInstanceUID, found none", 0),
        ({"drop": list(PATIENT)}, None, 2),
        ({"shape": (40, 60, 3)}, "no boxes written: a presentation state shows gray films alone", 1),
    ],
    ids=str,
)
def test_films_that_lack_something_get_what_they_can(tmp_path, options, said, count):
    notes, files = write(tmp_path, **options)
    assert notes == ([said] if said else []) and len(files) == count
    again, _ = write(tmp_path, **options)
    assert again == notes and all(ds.StudyInstanceUID and ds.PatientID in ("", "p 1") for ds in files)


def test_values_that_are_not_valid_are_left_out(tmp_path):
    path = film(tmp_path / "a.dcm")
    found = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        found.PatientBirthDate, found.PatientSex, found.PatientName = "Secret", "female", "x" * 80
        found.StudyInstanceUID = "1.02.3"
        found.save_as(path)
    notes = dicom_out.write(tmp_path / "out", "a", path, (137, 91), FINDINGS, PANELS)
    left = [f"{name} is not valid, and left out" for name in ("PatientName", "PatientBirthDate", "PatientSex")]
    assert notes == [*left, "no DICOM written: expected a valid StudyInstanceUID, found another"]
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_patient_is_told(tmp_path):
    """Not by the warnings and logs of libraries, which find this name odd."""
    made = film(tmp_path / "a.dcm", PatientName="Secret")
    panels = "[('mass', np.ones((2, 2), np.float16), np.zeros((0, 4)))]"
    code = f"""from infomask_jax import predict
from infomask_jax.dicom_out import *
print(write(Path({str(tmp_path)!r}), "a", Path({str(made)!r}), (137, 91), ["mass"], {panels}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_predict_writes_dicom_whole_or_not_at_all(trained, tmp_path, capsys, monkeypatch):
    films = tmp_path / "films"
    (films / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.dcm", "sub/b.dcm")):
        film(films / name, (210, 170), SOPInstanceUID=f"1.2.3.{i}")
    first = next((trained.parent / "films").glob("*.png"))
    (films / "c.png").write_bytes(first.read_bytes())
    for left in ("out/.building", "out/dicom/seg/of a killed one.dcm"):
        (tmp_path / left).mkdir(parents=True)
    monkeypatch.setattr(predict, "PROBABLE", 0.0)
    predict.predict_files(trained, [films], tmp_path / "out", dicom=True)
    assert "--dicom: no DICOM written: PNG or JPEG: 1 of 3 X-rays, c.png" in capsys.readouterr().out
    out = tmp_path / "out" / "dicom"
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.dcm")}
    assert names == {f"{kind}/{name}.dcm" for kind in ("seg", "gsps") for name in ("a.dcm", "sub/b.dcm")}
    boxes = json.loads((tmp_path / "out" / "boxes.json").read_text())
    maps = np.load(tmp_path / "out" / "maps.npz")
    for name in ("a.dcm", "sub/b.dcm"):
        heat = localize.four_axes(maps["infomask"])[list(maps["image_id"]).index(name), ..., 0]
        seg, state = (pydicom.dcmread(out / kind / f"{name}.dcm") for kind in ("seg", "gsps"))
        expected = (localize.resize_map(heat, 210, 170) * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(seg.pixel_array, expected)
        items = state.GraphicAnnotationSequence[0].get("GraphicObjectSequence", [])
        drawn = sorted([*np.reshape(item.GraphicData, (5, 2))[[0, 2]].ravel()] for item in items)
        own = sorted([x, y, x + w, y + h] for x, y, w, h in (b["bbox"] for b in boxes if b["file_name"] == name))
        assert len(own) > 0
        np.testing.assert_allclose(drawn, own, atol=1e-4)
    monkeypatch.setattr(dicom_out, "write_all", lambda files: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        predict.predict_files(trained, [films], tmp_path / "full", dicom=True)
    assert not (tmp_path / "full").exists()


def test_without_highdicom_the_extra_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ValueError, match=r"infomask-jax\[dicom\]"):
        predict.predict_files(tmp_path, [tmp_path], tmp_path / "out", dicom=True)
