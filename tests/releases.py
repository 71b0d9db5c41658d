"""Miniature releases as users have them, and what tests ask of them."""

import csv
from pathlib import Path

import cv2
import numpy as np
from test_images import dicom

from infomask_jax.datasets import Folder, Nih, Rsna
from infomask_jax.pixels import decode_gray, encode

NFC, NFD = "r\xe9", "re\u0301"  # one name in both Unicode forms
BOXES = ("image", "finding", "x", "y", "w", "h")


def picture(path: Path, seed=0, shape=(32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)))


def table(path: Path, *rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        csv.writer(file).writerows(rows)


def with_rows(options, name: str, *rows):
    """Adds rows to a table of the release."""
    with (options.source / name).open("a", newline="") as file:
        csv.writer(file).writerows(rows)
    return options


def changed(options, **values):
    return type(options)(**{**vars(options), **values})


def examples(prepared, split: str) -> dict[str, dict]:
    """{image_id: example} of a split, each held against what schema.py promises."""
    source = prepared.source(split)
    found = [source[i] for i in range(len(source))]
    for example in found:
        labels, boxes, kinds = (example[name] for name in ("labels", "boxes", "box_labels"))
        dtypes, shapes = (np.int8, np.float32, np.int32), ((len(prepared.findings),), (len(boxes), 4), (len(boxes),))
        assert [(a.dtype, a.shape) for a in (labels, boxes, kinds)] == list(zip(dtypes, shapes, strict=True))
        assert {*labels.tolist()} <= {1, 0, -1} and ((kinds >= -1) & (kinds < len(labels))).all()
        assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        shown = [decode_gray(example[name]) for name in ("image", "mask", "lung") if example[name] or name == "image"]
        assert {image.shape for image in shown} == {(prepared.size, prepared.size)}
        assert example["image_id"] and example["patient_id"] and min(example["height"], example["width"]) > 0
    return {example["image_id"]: example for example in found}


def everything(prepared) -> dict[str, dict]:
    return {name: example for split in prepared.splits for name, example in examples(prepared, split).items()}


def nothing_is_left(options) -> bool:
    folder = next(options.data_dir.iterdir())
    return [path.name for path in folder.iterdir()] == [".lock"]


def folder(root: Path) -> Folder:
    """Six images, 32 high and 40 wide, with two findings and two boxes; on disk NFC is NFD."""
    rows = [("a.png", 1, 0, "p1", "train"), ("b.png", 0, "", "p1", "train"), (f"{NFC}/{NFC}.png", "", 1, "p2", "val")]
    rows += [("d.png", 0, 0, "p3", "test"), ("e.png", 1, 1, "p4", "train"), ("f.png", "0.0", "1.0", "p5", "train")]
    for seed, row in enumerate(rows):
        picture(root / "own/images" / row[0].replace(NFC, NFD), seed, (32, 40))
    table(root / "own/labels.csv", ("image", "mass", "edema", "patient", "split"), *rows)
    table(root / "own/boxes.csv", BOXES, ("a.png", "mass", 10, 4, 20, 16), ("e.png", "edema", 0, 0, 40.5, 32))
    return Folder(root / "own", data_dir=root / "data", size=16)


def rsna(root: Path) -> Rsna:
    """Seven patients, those with an opacity with two boxes, the others normal or sick; DICOM, PNG and sizes mixed."""
    labels, classes, split = [], [], []
    kinds = {"opacity": "Lung Opacity", "normal": "Normal", "sick": "No Lung Opacity / Not Normal"}
    for i, kind in enumerate(["opacity", "normal", "sick", "opacity", "normal", "sick", "normal"]):
        name = f"patient-{i}"
        if i % 2:
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8)
            (root / "r/stage_2_train_images").mkdir(parents=True, exist_ok=True)
            (root / f"r/stage_2_train_images/{name}.dcm").write_bytes(dicom(pixels))
        else:
            picture(root / f"r/converted/deep/{name}.png", i, (32, 48))
        boxes = [(256, 512, 128, 64), (0, 0, 1024, 1024)] if kind == "opacity" else [("", "", "", "")]
        labels += [(name, *box, int(kind == "opacity")) for box in boxes]
        classes += [(name, kinds[kind])] * len(boxes)
        split.append((name, ["train", "train", "train", "val", "val", "test", "test"][i], int(i != 2), "AP"))
    table(root / "r/stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), *labels)
    table(root / "r/stage_2_detailed_class_info.csv", ("patientId", "class"), *classes)
    table(root / "r/split.csv", ("patientId", "split", "matched", "view"), *split)
    return Rsna(root / "r", data_dir=root / "data", size=16)


def nih(root: Path) -> Nih:
    """Eleven train_val patients with about four images each and two test patients, in two sub-folders."""
    header = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "View Position")
    names = [("0000_000.png", "Infiltration|Mass", 0), ("0000_001.png", "No Finding", 0)]
    for i in range(1, 42):
        names.append((f"{i:04d}_000.png", "Pneumonia" if i % 2 else "No Finding", i if i >= 40 else i // 4 + 1))
    for i, (name, _, _) in enumerate(names):
        picture(root / f"n/images_{i % 2:03d}/images/{name}", i)
    cv2.imwrite(str(root / "n/images_000/images/0000_000.png"), np.full((32, 32, 4), 255, np.uint8))
    table(root / "n/Data_Entry_2017_v2020.csv", header, *((n, f, 0, p, 50, "PA") for n, f, p in names))
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n0000_000.png,Infiltrate,512.0,256.0,256.0,512.0,,,\n"
    (root / "n/BBox_List_2017.csv").write_text(boxes + "0041_000.png,Pneumonia,0,0,100,100\n")
    (root / "n/train_val_list.txt").write_text("\n".join(n for n, _, p in names if p < 40) + "\n")
    (root / "n/test_list.txt").write_text("\n".join(n for n, _, p in names if p >= 40) + "\n")
    return Nih(root / "n", data_dir=root / "data", size=16)
