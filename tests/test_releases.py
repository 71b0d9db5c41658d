"""rsna.py and nih.py: miniature releases as users have them, and the real ones where they are at hand."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import releases
from releases import changed, everything, examples, nothing_is_left, picture, table, with_rows

from infomask_jax.datasets import BadData, Nih, Rsna, prepare, schema

SHARED = Path(os.environ.get("INFOMASK_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="no real radiographs: set INFOMASK_REAL_DATA to a folder with rsna_lung and nih64"
)
LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
ENTRIES, BOX_LIST = "Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"


@pytest.fixture
def rsna(tmp_path):
    return releases.rsna(tmp_path)


@pytest.fixture
def nih(tmp_path):
    return releases.nih(tmp_path)


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
    assert everything(prepare(changed(rsna, **options))).keys() == {f"patient-{i}" for i in ids}


def test_rsna_without_split_goes_by_hash(rsna):
    table(rsna.source / "split.csv", ("patientId", "split", "matched"), ("patient-0", "train", 0))
    with pytest.raises(BadData, match="no image is left"):  # a split that leaves nothing is not none
        prepare(changed(rsna, matched=True))
    (rsna.source / "split.csv").unlink()
    with pytest.raises(BadData, match="--matched"):
        prepare(changed(rsna, matched=True))
    prepared = prepare(rsna)
    assert sum(prepared.splits.values()) == 7
    for split in prepared.splits:
        assert all(schema.hash_split(n, train=0.8, val=0.1, test=0.1) == split for n in examples(prepared, split))


BAD_ROWS = {  # of a table of a release, and what the message must hold
    ("rsna", LABELS): [
        ("patient-1,1,1,5,5,1", "Target: expected one value an image"),
        ("patient-0,,,,,1", "Target: expected a box with Target 1 and none with 0"),
        ("patient-0,1000,1,50,5,1", "box: expected a box inside 1024 x 1024"),
        ("patient-0,1000,,5,5,1", "x, y, width, height: expected four numbers"),
        ("patient-0,1,1,5,5,3", "Target: expected 0 or 1, found '3'"),
        ("patient-0,256.0,512,128,64,1", "x, y, width, height: expected each box once"),
        ("patient-0,0.1,0.2,0.3,0.4,1", "x, y, width, height: expected pixels, found a box of 0.3 x 0.4;"),
        ("patient-9,,,,,0", "patientId: expected a class in"),
    ],
    ("rsna", CLASSES): [
        ("patient-0,Normal", "class: expected one class"),
        ("patient-0,Opacity", "class: expected one"),
    ],
    ("rsna", "split.csv"): [
        ("patient-0,test,1,AP", "patientId: expected a patient in one split, found 'patient-0' also in train"),
        ("patient-9,test,1,AP", "patientId: expected an image of"),
        ("patient-0,train,1,A\x1bP", r"view: expected printable text, found 'A\x1bP'"),
    ],
    ("nih", "test_list.txt"): [
        ("0001_000.png", "image: expected each image once, found '0001_000.png' also in train_val_list.txt"),
        ("9999_000.png", "image: expected an image of Data_Entry"),
        ("00\x1b41.png", r"image: expected printable text, found '00\x1b41.png'"),
    ],
    ("nih", ENTRIES): [
        ("0040_001.png,Mass,0,0,5,PA", "Image Index: expected it in"),
        ("0042_000.png,Mass|Lump,0,0,5,PA", "Finding Labels: expected some of Atelectasis"),
    ],
    ("nih", BOX_LIST): [
        ("0042_000.png,Mass,1,1,5,5", "Image Index: expected an image of the release"),
        ("0041_000.png,Mass,1,1,5,5", "Finding Label: expected a label of 0041_000.png"),
        ("0041_000.png,Masss,1,1,5,5", "Finding Label: expected one of Atelectasis"),
        ("0041_000.png,Pneumonia,,,,", "Bbox [x,y,w,h]: expected a box, found nothing"),
        ("0041_000.png,Pneumonia,1000,1,50,5", "box: expected a box inside 1024 x 1024"),
        ("0000_000.png,Infiltration,512,256,256,512", "Bbox [x,y,w,h]: expected each box once"),
        ("0041_000.png,Pneumonia,.1,.1,.5,.5", "Bbox [x,y,w,h]: expected pixels, found a box of 0.5 x 0.5"),
    ],
}


@pytest.mark.parametrize(("release", "name"), BAD_ROWS)
def test_bad_rows_are_all_named_and_leave_nothing(release, name, request):
    options, rows = request.getfixturevalue(release), BAD_ROWS[release, name]
    text = (options.source / name).read_text("utf-8-sig")
    (options.source / name).write_text(text + "\n".join(row for row, _ in rows))
    with pytest.raises(BadData, match="problem") as error:
        prepare(options)
    for number, (_, words) in enumerate(rows, len(text.splitlines()) + 1):
        assert f"{name}, row {number}, {words}" in str(error.value), (words, str(error.value))
    assert nothing_is_left(options)


def test_releases_match_names_in_either_unicode_form_and_hidden_twins_are_nobodys(rsna, nih):
    for options, old in ((rsna, "patient-0"), (nih, "0041_000")):
        for path in (path for path in options.source.iterdir() if path.is_file()):
            path.write_text(path.read_text().replace(old, releases.NFC), encoding="utf-8")
        path = next(options.source.rglob(f"{old}.png"))
        path.rename(path.with_name(f"{releases.NFD}.png"))
        for path in list(options.source.rglob("*.*")):
            if path.suffix in (".png", ".dcm"):
                (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        picture(options.source / "__MACOSX" / path.name)
        found = {name.removesuffix(".png"): example for name, example in everything(prepare(options)).items()}
        assert len(found[releases.NFC]["boxes"]) and old not in found


def test_two_files_for_one_patient_and_one_patient_in_both_lists_are_refused(rsna, nih):
    picture(rsna.source / "again/patient-1.png")
    with pytest.raises(BadData, match=r"found again/patient-1.png, stage_2_train_images/patient-1.dcm"):
        prepare(rsna)
    picture(nih.source / "flat/0041_001.png")
    for name, row in (
        (ENTRIES, ("0041_001.png", "No Finding", 0, 41, 5, "PA")),
        ("train_val_list.txt", ["0041_001.png"]),
    ):
        with_rows(nih, name, row)
    with pytest.raises(BadData, match="expected patient 41 in one split, found test, train"):
        prepare(nih)


@pytest.mark.parametrize("release", ["rsna", "nih"])
def test_missing_images_are_counted_or_allowed(release, request):
    options = request.getfixturevalue(release)
    gone = sorted(options.source.rglob("*.png"))[0]
    gone.unlink()
    with pytest.raises(BadData, match=r"1 are missing, for example .*--allow-missing"):
        prepare(changed(options, skip_bad=True))
    prepared = prepare(changed(options, allow_missing=True))
    assert all(gone.stem not in name for name in everything(prepared))
    with pytest.raises(BadData, match="1 missing, asked for without --allow-missing"):
        prepare(options)


def test_nih_becomes_examples(nih):
    prepared = prepare(nih)
    assert len(prepared.findings) == 15 and prepared.splits["test"] == 2 and sum(prepared.splits.values()) == 43
    patients = [{e["patient_id"] for e in examples(prepared, split).values()} for split in prepared.splits]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 13  # nobody is in two splits
    example = everything(prepared)["0000_000.png"]
    assert [prepared.findings[k] for k in np.flatnonzero(example["labels"])] == ["Infiltration", "Mass"]
    np.testing.assert_allclose(example["boxes"], [[0.25, 0.5, 0.75, 0.75]])
    assert prepared.findings[example["box_labels"][0]] == "Infiltration" and example["view"] == "PA"


def test_views_of_negatives_are_matched_to_those_of_positives(nih):
    """Positives of train are one in three AP; of ten negatives of each view, as many stay as make that share."""
    lines = (nih.source / ENTRIES).read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for number, row in enumerate(rows):
        row[-1] = "AP" if (number % 6 == 1 if row[1] == "Pneumonia" else number % 4) else "PA"
    (nih.source / ENTRIES).write_text("\n".join([lines[0], *map(",".join, rows)]))
    whole = prepare(changed(nih, findings=("Pneumonia",)))
    before = {split: examples(whole, split) for split in whole.splits}
    matched = prepare(changed(nih, findings=("Pneumonia",), matched="view", overwrite=True))
    views = {split: Counter((int(e["labels"][0]), e["view"]) for e in before[split].values()) for split in before}
    for split, counts in views.items():
        kept = Counter((int(e["labels"][0]), e["view"]) for e in examples(matched, split).values())
        if split != "test" and counts[1, "AP"] + counts[1, "PA"]:
            positive = [view for view in ("AP", "PA") if counts[1, view]]
            each = min(counts[0, view] / counts[1, view] for view in positive)
            counts.update({(0, view): round(each * counts[1, view]) - counts[0, view] for view in ("AP", "PA")})
        assert +kept == +counts
    assert matched.splits["train"] < whole.splits["train"]
    for findings in ((), ("Pneumonia", "Mass")):
        with pytest.raises(BadData, match="--matched view: expected one of --findings"):
            prepare(changed(nih, findings=findings, matched="view", overwrite=True))


def test_nih_boxes_of_findings_that_are_not_kept_are_nobodys(nih):
    """But there: Wang's AFP is over all images with a box of any finding."""
    prepared = prepare(changed(nih, findings=("Pneumonia",)))
    assert prepared.findings == ("Pneumonia",) and sum(s["boxes"] for s in prepared.summary.values()) == 2
    found = {name: example["box_labels"].tolist() for name, example in everything(prepared).items()}
    assert {name: labels for name, labels in found.items() if labels} == {"0000_000.png": [-1], "0041_000.png": [0]}
    with pytest.raises(BadData, match="found Pneumona"):
        prepare(changed(nih, findings=("Pneumona",), overwrite=True))


@real
def test_real_releases_have_the_counts_that_are_known(tmp_path):
    prepared = prepare(Rsna(SHARED / "rsna_lung", data_dir=tmp_path, size=16, matched=True))
    assert prepared.splits == {"train": 4730, "val": 400, "test": 580}
    labels = [prepared.summary[split]["labels"] for split in schema.SPLITS]
    assert labels == [[[2365, 2365, 0]], [[200, 200, 0]], [[280, 300, 0]]]
    prepared = prepare(Nih(SHARED / "nih64", data_dir=tmp_path, size=64, allow_missing=True))
    assert sum(prepared.splits.values()) == 1000 and prepared.splits["test"] == 310
    assert {split: s["boxes"] for split, s in prepared.summary.items()} == {"train": 0, "val": 0, "test": 9}
    patients = [{e["patient_id"] for e in examples(prepared, split).values()} for split in prepared.splits]
    assert sum(map(len, patients)) == len(set.union(*patients))
