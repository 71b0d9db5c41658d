"""rsna.py and nih.py: miniature releases as users have them, and the real ones where they are at hand."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_datasets import changed, examples, nothing_is_left, picture, table, with_rows
from test_images import dicom

from infomask_jax.datasets import BadData, Nih, Rsna, prepare, schema

SHARED = Path(os.environ.get("INFOMASK_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no real radiographs: set INFOMASK_REAL_DATA to a folder with rsna_lung and nih64"
)
RSNA_CLASSES = {"opacity": "Lung Opacity", "normal": "Normal", "sick": "No Lung Opacity / Not Normal"}


@pytest.fixture
def rsna(tmp_path):
    """Ten patients: two each opacity with two boxes, the others normal or sick; DICOM, PNG and sizes mixed."""
    labels, classes, split = [], [], []
    for i, kind in enumerate(["opacity", "normal", "sick", "opacity", "normal", "sick", "normal"]):
        name = f"patient-{i}"
        if i % 2:
            pixels = np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8)
            (tmp_path / "r/stage_2_train_images").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"r/stage_2_train_images/{name}.dcm").write_bytes(dicom(pixels))
        else:
            picture(tmp_path / f"r/converted/deep/{name}.png", i, (32, 48))
        boxes = [(256, 512, 128, 64), (0, 0, 1024, 1024)] if kind == "opacity" else [("", "", "", "")]
        labels += [(name, *box, int(kind == "opacity")) for box in boxes]
        classes += [(name, RSNA_CLASSES[kind])] * len(boxes)
        split.append((name, ["train", "train", "train", "val", "val", "test", "test"][i], int(i != 2), "AP"))
    table(tmp_path / "r/stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), *labels)
    table(tmp_path / "r/stage_2_detailed_class_info.csv", ("patientId", "class"), *classes)
    table(tmp_path / "r/split.csv", ("patientId", "split", "matched", "view"), *split)
    return Rsna(tmp_path / "r", data_dir=tmp_path / "data", size=16)


def test_rsna_boxes_are_in_the_1024_frame_whatever_the_file(rsna):
    prepared = prepare(rsna)
    assert prepared.findings == ("pneumonia",) and prepared.splits == {"train": 3, "val": 2, "test": 2}
    for example in (examples(prepared, "train")["patient-0"], examples(prepared, "val")["patient-3"]):
        np.testing.assert_allclose(example["boxes"], [[0.5, 0.25, 0.5625, 0.375], [0, 0, 1, 1]])
        assert (example["height"], example["width"], example["view"]) == (1024, 1024, "AP")


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({"matched": True}, {0, 1, 3, 4, 5, 6}),
        ({"negatives": "normal"}, {0, 1, 3, 4, 6}),
        ({"negatives": "not_normal"}, {0, 2, 3, 5}),
    ],
)
def test_rsna_selection(rsna, options, ids):
    prepared = prepare(changed(rsna, **options))
    found = {name for split in prepared.splits for name in examples(prepared, split)}
    assert found == {f"patient-{i}" for i in ids}


def test_rsna_without_split_goes_by_hash(rsna):
    (rsna.source / "split.csv").unlink()
    with pytest.raises(BadData, match="--matched"):
        prepare(changed(rsna, matched=True))
    prepared = prepare(rsna)
    assert sum(prepared.splits.values()) == 7
    for split in prepared.splits:
        assert all(schema.hash_split(n, train=0.8, val=0.1, test=0.1) == split for n in examples(prepared, split))


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("stage_2_train_labels.csv", ("patient-1", 1, 1, 5, 5, 1), "expected one value an image"),
        ("stage_2_train_labels.csv", ("patient-1", 1, 1, 5, 5, 0), "expected 1 for an image with a box"),
        ("stage_2_train_labels.csv", ("patient-0", 1000, 1, 50, 5, 1), "inside 1024 x 1024"),
        ("stage_2_train_labels.csv", ("patient-0", 1000, "", 5, 5, 1), "four numbers"),
        ("stage_2_train_labels.csv", ("patient-0", 1, 1, 5, 5, 3), "expected 0 or 1, found '3'"),
        ("stage_2_train_labels.csv", ("patient-0", "", "", "", "", 1), "four numbers"),
        ("stage_2_detailed_class_info.csv", ("patient-0", "Normal"), "expected one class"),
        ("stage_2_detailed_class_info.csv", ("patient-0", "Opacity"), "found 'Opacity'"),
        ("split.csv", ("patient-0", "test", 1, "AP"), "a patient in one split, found 'patient-0' also in train"),
        ("split.csv", ("patient-9", "test", 1, "AP"), "found 'patient-9'"),
        (
            "stage_2_train_labels.csv",
            ("patient-0", "256.0", 512, 128, 64, 1),
            "row 11, x, y, width, height: expected each",
        ),
        (
            "stage_2_train_labels.csv",
            ("patient-0", 0.1, 0.2, 0.3, 0.4, 1),
            "expected pixels, found a box of 0.3 x 0.4;",
        ),
        ("split.csv", ("patient-0", "train", 1, "A\x1bP"), r"row 9, view: expected printable text, found 'A\x1bP'"),
    ],
)
def test_rsna_bad_row_is_named(rsna, name, row, words):
    with pytest.raises(BadData, match="problem") as error:
        prepare(with_rows(rsna, name, row))
    assert words in str(error.value) and name in str(error.value) and nothing_is_left(rsna)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_boxes_of_a_release_in_0_to_1_stop_it(rsna, nih_release, skip_bad):
    path = rsna.source / "stage_2_train_labels.csv"
    path.write_text(
        path.read_text().replace(",256,512,128,64,", ",.1,.2,.3,.4,").replace(",0,0,1024,1024,", ",0,0,1,1,")
    )
    with pytest.raises(
        BadData, match=r"labels\.csv, x, y, width, height: expected pixels, .* than 1; multiply them by 1024"
    ):
        prepare(changed(rsna, skip_bad=skip_bad))
    path = nih_release.source / "BBox_List_2017.csv"
    path.write_text(path.read_text().replace("512.0,256.0,256.0,512.0", ".5,.25,.25,.5").replace("100", ".1"))
    with pytest.raises(
        BadData, match=r"\.csv, Bbox \[x,y,w,h\]: expected pixels, .* larger than 0\.5; multiply them by 1024"
    ):
        prepare(changed(nih_release, skip_bad=skip_bad))


def test_releases_match_names_in_either_unicode_form(rsna, nih_release):
    for options, old in ((rsna, "patient-0"), (nih_release, "0041_000")):
        for path in (path for path in options.source.iterdir() if path.is_file()):
            path.write_text(path.read_text().replace(old, "r\xe9"), encoding="utf-8")
        path = next(options.source.rglob(f"{old}.png"))
        path.rename(path.with_name("re\u0301.png"))
        prepared = prepare(options)
        found = {name.removesuffix(".png"): e for s in prepared.splits for name, e in examples(prepared, s).items()}
        assert len(found["r\xe9"]["boxes"]) and old not in found


def test_hidden_twins_of_films_are_nobodys(rsna, nih_release):
    for options in (rsna, nih_release):
        for path in list(options.source.rglob("*.*")):
            if path.suffix in (".png", ".dcm"):
                (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        picture(options.source / "__MACOSX" / path.name)
        assert prepare(options).splits["test"] == 2


def test_rsna_split_that_leaves_nothing_is_no_split_by_hash(rsna):
    table(rsna.source / "split.csv", ("patientId", "split", "matched"), ("patient-0", "train", 0))
    with pytest.raises(BadData, match="no image is left"):
        prepare(changed(rsna, matched=True))
    assert nothing_is_left(rsna)


def test_rsna_two_files_for_one_patient_are_refused(rsna):
    picture(rsna.source / "again/patient-1.png")
    with pytest.raises(BadData, match=r"found again/patient-1.png, stage_2_train_images/patient-1.dcm"):
        prepare(rsna)


@pytest.mark.parametrize("release", ["rsna", "nih_release"])
def test_missing_images_are_counted_or_allowed(release, request):
    options = request.getfixturevalue(release)
    gone = sorted(options.source.rglob("*.png"))[0]
    gone.unlink()
    with pytest.raises(BadData, match=r"1 are missing, for example .*--allow-missing"):
        prepare(changed(options, skip_bad=True))
    prepared = prepare(changed(options, allow_missing=True))
    assert all(gone.stem not in name for split in prepared.splits for name in examples(prepared, split))
    with pytest.raises(BadData, match="1 missing, asked for without --allow-missing"):
        prepare(options)


@pytest.fixture
def nih_release(tmp_path):
    """Eleven train_val patients with about four images each and two test patients, in two sub-folders."""
    header = (
        "Image Index",
        "Finding Labels",
        "Follow-up #",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
    )
    names = [("0000_000.png", "Infiltration|Mass", 0), ("0000_001.png", "No Finding", 0)]
    names += [
        (f"{i:04d}_000.png", "Pneumonia" if i % 2 else "No Finding", i if i >= 40 else i // 4 + 1) for i in range(1, 42)
    ]
    root = tmp_path / "n"
    for i, (name, _, _) in enumerate(names):
        picture(root / f"images_{i % 2:03d}/images/{name}", i)
    rgba = np.full((32, 32, 4), 255, np.uint8)
    cv2.imwrite(str(root / "images_000/images/0000_000.png"), rgba)
    table(root / "Data_Entry_2017_v2020.csv", header, *((n, f, 0, p, 50, "F", "PA") for n, f, p in names))
    box = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n0000_000.png,Infiltrate,512.0,256.0,256.0,512.0,,,\n"
    (root / "BBox_List_2017.csv").write_text(box + "0041_000.png,Pneumonia,0,0,100,100\n")
    (root / "train_val_list.txt").write_text("\n".join(n for n, _, p in names if p < 40))
    (root / "test_list.txt").write_text("\n".join(n for n, _, p in names if p >= 40) + "\n")
    return Nih(root, data_dir=tmp_path / "data", size=16)


def test_nih_becomes_examples(nih_release):
    prepared = prepare(nih_release)
    assert len(prepared.findings) == 15 and prepared.splits["test"] == 2 and sum(prepared.splits.values()) == 43
    everything = {split: examples(prepared, split) for split in prepared.splits}
    patients = [{e["patient_id"] for e in those.values()} for those in everything.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 13  # nobody is in two splits
    example = {name: e for those in everything.values() for name, e in those.items()}["0000_000.png"]
    assert [prepared.findings[k] for k in np.flatnonzero(example["labels"])] == ["Infiltration", "Mass"]
    np.testing.assert_allclose(example["boxes"], [[0.25, 0.5, 0.75, 0.75]])
    assert prepared.findings[example["box_labels"][0]] == "Infiltration" and example["view"] == "PA"


def test_views_of_negatives_are_matched_to_those_of_positives(nih_release):
    """Positives of train are one in three AP; of ten negatives of each view, as many stay as make that share."""
    lines = (nih_release.source / "Data_Entry_2017_v2020.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows):
        row[-1] = "AP" if (number % 6 == 1 if row[1] == "Pneumonia" else number % 4) else "PA"
    (nih_release.source / "Data_Entry_2017_v2020.csv").write_text("\n".join([lines[0], *map(",".join, rows)]))
    whole = prepare(changed(nih_release, findings=("Pneumonia",)))
    before = {split: examples(whole, split) for split in whole.splits}
    matched = prepare(changed(nih_release, findings=("Pneumonia",), matched="view", overwrite=True))
    for split in whole.splits:
        after, labels = examples(matched, split), {}
        for name, example in before[split].items():
            labels.setdefault(int(example["labels"][0]), {}).setdefault(example["view"], []).append(name)
        kept = {view: len([n for n in those if n in after]) for view, those in labels.get(0, {}).items()}
        assert all(name in after for those in labels.get(1, {}).values() for name in those)
        if split == "test" or not labels.get(1):
            assert after.keys() == before[split].keys()
            continue
        each = min(len(labels[0].get(view, ())) / len(those) for view, those in labels[1].items())
        assert kept == {view: round(each * len(labels[1].get(view, ()))) for view in labels[0]}
    assert len(examples(matched, "train")) < len(before["train"])
    for findings in ((), ("Pneumonia", "Mass")):
        with pytest.raises(BadData, match="--matched view: expected one of --findings"):
            prepare(changed(nih_release, findings=findings, matched="view", overwrite=True))


def test_nih_boxes_of_findings_that_are_not_kept_are_nobodys(nih_release):
    """But there: Wang's AFP is over all images with a box of any finding."""
    prepared = prepare(changed(nih_release, findings=("Pneumonia",)))
    assert prepared.findings == ("Pneumonia",) and sum(s["boxes"] for s in prepared.summary.values()) == 2
    found = {i: e["box_labels"].tolist() for split in prepared.splits for i, e in examples(prepared, split).items()}
    assert {i: labels for i, labels in found.items() if labels} == {"0000_000.png": [-1], "0041_000.png": [0]}
    with pytest.raises(BadData, match="found Pneumona"):
        prepare(changed(nih_release, findings=("Pneumona",), overwrite=True))


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("test_list.txt", "0001_000.png\n", "also in train_val_list.txt"),
        ("test_list.txt", "9999_000.png\n", "expected an image of Data_Entry"),
        ("Data_Entry_2017_v2020.csv", "0040_001.png,Mass,0,0,5,F,PA\n", "in neither"),
        ("Data_Entry_2017_v2020.csv", "0041_000.png,Mass,0,0,5,F,PA\n", "expected each image once"),
        ("BBox_List_2017.csv", "0041_000.png,Mass,1,1,5,5\n", "without it"),
        ("BBox_List_2017.csv", "0041_000.png,Masss,1,1,5,5\n", "found 'Masss'"),
        ("BBox_List_2017.csv", "0041_000.png,Pneumonia,1000,1,50,5\n", "inside 1024 x 1024"),
        (
            "BBox_List_2017.csv",
            "0000_000.png,Infiltration,512,256,256,512\n",
            "row 4, Bbox [x,y,w,h]: expected each box",
        ),
        (
            "BBox_List_2017.csv",
            "0041_000.png,Pneumonia,.1,.1,.5,.5\n",
            "row 4, Bbox [x,y,w,h]: expected pixels, found a box",
        ),
        ("test_list.txt", "00\x1b41.png\n", r"row 3, image: expected printable text, found '00\x1b41.png'"),
    ],
)
def test_nih_bad_row_is_named(nih_release, name, line, words):
    with (nih_release.source / name).open("a") as file:
        file.write(line)
    with pytest.raises(BadData) as error:
        prepare(nih_release)
    assert words in str(error.value) and name in str(error.value) and nothing_is_left(nih_release)


def test_nih_patient_in_both_lists_is_refused(nih_release):
    picture(nih_release.source / "flat/0041_001.png")
    with (nih_release.source / "Data_Entry_2017_v2020.csv").open("a") as file:
        file.write("0041_001.png,No Finding,0,41,5,F,PA\n")
    with (nih_release.source / "train_val_list.txt").open("a") as file:
        file.write("\n0041_001.png\n")
    with pytest.raises(BadData, match="expected patient 41 in one split, found test, train"):
        prepare(nih_release)


@real
def test_real_rsna_counts(tmp_path):
    prepared = prepare(Rsna(SHARED / "rsna_lung", data_dir=tmp_path, size=16, matched=True))
    assert prepared.splits == {"train": 4730, "val": 400, "test": 580}
    assert [prepared.summary[split]["labels"] for split in schema.SPLITS] == [
        [[2365, 2365, 0]],
        [[200, 200, 0]],
        [[280, 300, 0]],
    ]


@real
def test_real_nih_counts(tmp_path):
    prepared = prepare(Nih(SHARED / "nih64", data_dir=tmp_path, size=64, allow_missing=True))
    assert sum(prepared.splits.values()) == 1000 and prepared.splits["test"] == 310
    assert {split: s["boxes"] for split, s in prepared.summary.items()} == {"train": 0, "val": 0, "test": 9}
    patients = [{e["patient_id"] for e in examples(prepared, split).values()} for split in prepared.splits]
    assert sum(map(len, patients)) == len(set.union(*patients))
