"""Heat maps and boxes as DICOM, beside the film in its own study: a segmentation and a presentation state.

- seg/IMAGE_ID.dcm: Segmentation, FRACTIONAL, a segment a finding, at the film's own pixels: what pictures/ show, times
  255. A radiograph has no frame of reference: the segmentation belongs to it by its UIDs.
- gsps/IMAGE_ID.dcm: Grayscale Softcopy Presentation State: boxes, as closed lines in pixels of the film, and text.

Both copy what the film says of its patient and study, and say nothing of this machine. Their UIDs follow from the film
and the results: predicted again, a film gets the same files, but for their dates.
"""

import io
import logging
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat

from infomask_jax import __version__
from infomask_jax.localize import resize_map
from infomask_jax.report.figures import PREDICTED
from infomask_jax.system import write_all

_PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")  # copied, each may be empty; so with a study
_STUDY = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
_OWN = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}  # or of its file
_GROUPS = ("StudyInstanceUID", "SeriesInstanceUID")
_PIXELS = ("SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation")
_NUMBERS = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
_LUTS = ("ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction")
_WANTED = [*_PATIENT, *_STUDY, *_OWN, *_GROUPS, *_PIXELS, *_NUMBERS, *_LUTS]

RESEARCH = "for research, not for diagnosis"
_PRODUCT = {"manufacturer": "infomask_jax", "manufacturer_model_name": "InfoMask", "software_versions": __version__}
_PRODUCT |= {"device_serial_number": "none", "instance_number": 1}

# It quotes names of patients.
warnings.filterwarnings("ignore", module="highdicom")
logging.getLogger("highdicom").setLevel(logging.CRITICAL)


class NoDicom(Exception):
    """Why a film gets no DICOM."""


def check() -> None:
    """ValueError where highdicom is not installed."""
    if find_spec("highdicom") is None:
        raise ValueError("--dicom needs highdicom: pip install infomask-jax[dicom]")


def write(folder: Path, image_id: str, film: Path, size: Sequence[int], findings: Sequence[str], panels) -> list[str]:
    """Write seg/IMAGE_ID.dcm and gsps/IMAGE_ID.dcm into `folder`. Returns what has to be said of it, nothing where all
    is well: a film that DICOM cannot refer to is no error. OSError where nothing can be written.

    Args:
      film: the file. size: its (height, width). panels: of each finding what `report.overlay` draws.
    """
    with film.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return ["no DICOM written: PNG or JPEG"]
    files, notes = {}, []
    try:
        source, look = _source(film, size, notes)
        made = {"seg": _segmentation(source, findings, panels)}
        if source.SamplesPerPixel == 1:
            made["gsps"] = _presentation(source, look, panels)
        else:
            notes.append("no boxes written: a presentation state shows gray films alone")
        for kind, dataset in made.items():
            data = io.BytesIO()
            dataset.save_as(data, enforce_file_format=True)
            files[folder / kind / f"{image_id}.dcm"] = data.getvalue()
    except NoDicom as error:
        return [*notes, f"no DICOM written: {error}"]
    except Exception as error:  # on odd films pydicom and highdicom raise anything, and quote them
        return [*notes, f"no DICOM written: highdicom cannot refer to such a film ({type(error).__name__})"]
    write_all(files)
    return notes


def tell(notes: dict[str, list[str]]) -> None:
    """Print what there is to say, by X-ray, once for all of which it is true."""
    films = defaultdict(list)
    for image_id, own in notes.items():
        for note in own:
            films[note].append(image_id)
    for note, ids in films.items():
        print(f"--dicom: {note}: {len(ids)} of {len(notes)} X-rays, {ids[0]}{' and others' if len(ids) > 1 else ''}")


def _source(film: Path, size: Sequence[int], notes: list[str]) -> tuple[Dataset, Dataset]:
    """What is copied of a film, valid, with `notes` of what is not; and how it is to look, see `_look`."""
    found, source = pydicom.dcmread(film, specific_tags=_WANTED, stop_before_pixels=True), Dataset()
    found.decode()
    source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: it has the letters of all others
    source.Rows, source.Columns = size
    for keyword in (*_PATIENT, *_STUDY):
        if not _set(source, keyword, found.get(keyword)):
            setattr(source, keyword, "")
            notes.append(f"{keyword} is not valid, and left out")
    for keyword in (*_OWN, *_GROUPS):
        value = found.get(keyword) or found.file_meta.get(_OWN.get(keyword, ""))
        if not value and keyword in _GROUPS:
            value = generate_uid(entropy_srcs=[source.SOPInstanceUID, keyword])
            notes.append(f"{keyword} is missing, a new one is taken")
        if not value or not _set(source, keyword, value):
            raise NoDicom(f"expected a valid {keyword}, found {'another' if value else 'none'}")
    source.SamplesPerPixel = found.SamplesPerPixel
    return source, _look(found)


def _set(source: Dataset, keyword: str, value) -> bool:
    """Whether a value is valid, and then set."""
    several = isinstance(value, pydicom.multival.MultiValue)
    if several or (keyword == "PatientSex" and value not in ("M", "F", "O", "", None)):
        return False
    try:
        vr = dictionary_VR(keyword)
        source.add(DataElement(keyword, vr, str(value or ""), validation_mode=pydicom.config.RAISE))
    except ValueError:
        return False
    return True


def _look(found: Dataset) -> Dataset:
    """How pixels of a film become light, as `datasets.dicom` does it, in elements of a presentation state: without them
    a viewer would show it in another window."""
    look, voi, numbers = Dataset(), Dataset(), {}
    for keyword in _NUMBERS:
        value = found.get(keyword)
        value = value[0] if isinstance(value, pydicom.multival.MultiValue) and value else value
        if value not in (None, "", []) and math.isfinite(float(value)):
            numbers[keyword] = DSfloat(float(value), auto_format=True)
    luts = {name: found[name].value[:1] for name in _LUTS[:2] if found.get(name)}
    for (lut,) in luts.values():
        if isinstance(lut.LUTData, bytes) and not found.original_encoding[1]:
            lut.LUTData = np.frombuffer(lut.LUTData, ">u2").astype("<u2").tobytes()
    if "ModalityLUTSequence" in luts:
        look.ModalityLUTSequence = luts["ModalityLUTSequence"]
    elif {"RescaleSlope", "RescaleIntercept"} <= numbers.keys():
        look.RescaleSlope, look.RescaleIntercept = numbers["RescaleSlope"], numbers["RescaleIntercept"]
        look.RescaleType = "US"  # unspecified
    function = str(found.get("VOILUTFunction") or "LINEAR").upper()
    if "VOILUTSequence" in luts:
        voi.VOILUTSequence = luts["VOILUTSequence"]
    elif {"WindowCenter", "WindowWidth"} <= numbers.keys() and numbers["WindowWidth"] >= (function == "LINEAR"):
        voi.WindowCenter, voi.WindowWidth = numbers["WindowCenter"], numbers["WindowWidth"]
        voi.VOILUTFunction = function
    if voi:
        look.SoftcopyVOILUTSequence = [voi]
    look.PresentationLUTShape = "INVERSE" if found.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    return look


def _uids(source: Dataset, *content: str | bytes) -> dict[str, str]:
    """Of the new series and its one file: others of other content."""
    told = repr([source.SOPInstanceUID, source.Rows, source.Columns, __version__, *content])
    return {n: generate_uid(entropy_srcs=[n, told]) for n in ("series_instance_uid", "sop_instance_uid")}


def _segmentation(source: Dataset, findings: Sequence[str], panels) -> Dataset:
    import highdicom
    from pydicom.sr.codedict import codes

    pixels = np.empty((1, source.Rows, source.Columns, len(panels)), np.float32)
    for k, (_, heat, _) in enumerate(panels):
        pixels[0, ..., k] = resize_map(heat, source.Rows, source.Columns).clip(0, 1)
    family = codes.DCM.ArtificialIntelligence
    algorithm = highdicom.AlgorithmIdentificationSequence("InfoMask", family, __version__)
    kind, segments = (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion), []
    for number, (finding, (caption, _, _)) in enumerate(zip(findings, panels, strict=True), 1):
        segments.append(highdicom.seg.SegmentDescription(number, _label(finding), *kind, "AUTOMATIC", algorithm))
        segments[-1].SegmentDescription = caption
    made = highdicom.seg.Segmentation(
        [source],
        pixels,
        "FRACTIONAL",
        segments,
        fractional_type="PROBABILITY",
        omit_empty_frames=False,
        series_number=9001,
        series_description=f"Heat map, {RESEARCH}",
        content_label="HEAT_MAP",
        content_description=f"Where a finding may be, {RESEARCH}",
        **_uids(source, "seg", *findings, *(part for text, heat, _ in panels for part in (text, heat.tobytes()))),
        **_PRODUCT,
    )
    made.PatientOrientation = ""  # has to be there, and may be empty
    for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[made.SOPInstanceUID])  # theirs is by chance
    return made


def _presentation(source: Dataset, look: Dataset, panels) -> Dataset:
    from highdicom import color, pr

    captions, graphics = [caption for caption, _, _ in panels], []
    about = "\r\n".join([RESEARCH.capitalize(), *captions])[:1024]
    texts = [pr.TextObject(about, "DISPLAY", bounding_box=(0.01, 0.01, 0.4, 0.15), text_justification="LEFT")]
    scale = np.array([source.Rows, source.Columns] * 2)
    for caption, _, boxes in panels:
        for ymin, xmin, ymax, xmax in np.minimum(boxes * scale, scale):
            corners = np.array([[xmin, ymin], [xmax, ymin], [xmax, ymax], [xmin, ymax], [xmin, ymin]])
            graphics.append(pr.GraphicObject("POLYLINE", corners, "PIXEL"))
            texts.append(pr.TextObject(caption, "PIXEL", anchor_point=(xmin, ymin), anchor_point_visible=False))
    layer = pr.GraphicLayer("INFOMASK", 1, f"Boxes, {RESEARCH}", color.CIELabColor.from_string(PREDICTED))
    state = pr.GrayscaleSoftcopyPresentationState(
        [source],
        graphic_layers=[layer],
        graphic_annotations=[pr.GraphicAnnotation([source], layer, graphic_objects=graphics, text_objects=texts)],
        series_number=9002,
        series_description=f"Boxes, {RESEARCH}",
        content_label="BOXES",
        content_description=f"Boxes of probable findings, {RESEARCH}",
        **_uids(source, "gsps", *(part for text, _, boxes in panels for part in (text, boxes.tobytes()))),
        **_PRODUCT,
    )
    state.Laterality = ""  # has to be there, and may be empty
    state.update(look)
    return state


def _label(finding: str) -> str:
    return finding.replace("\\", "/")[:64]
