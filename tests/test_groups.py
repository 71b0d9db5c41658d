"""What goes with the label beside the disease is counted, told where it differs, and evened out."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from releases import changed, examples, picture, table

from infomask_jax.datasets import Folder, groups, prepare
from infomask_jax.datasets.schema import BadData, Item

RNG = np.random.default_rng(0)


def folder(root, shares: dict[str, tuple[float, float]], films: int = 80) -> Folder:
    """`films` images a split; of the positives, then of the negatives, these shares are AP."""
    rows = []
    for split, (positives, negatives) in shares.items():
        for number in range(films):
            label = number % 2
            portion = (number // 2) / (films // 2)
            view = "AP" if portion < (positives if label else negatives) else "PA"
            name = f"{split}{number:03d}.png"
            picture(root / "own/images" / name, len(rows), (8, 8))
            rows.append((name, label, name, split, view, "FM"[number % 3 == 0], f"{30 + number % 50:03d}Y"))
    table(root / "own/labels.csv", ("image", "mass", "patient", "split", "view", "sex", "age"), *rows)
    return Folder(root / "own", data_dir=root / "data", size=8)


def test_a_view_that_turns_in_test_is_told_and_matching_takes_it_away(tmp_path, capsys):
    options = folder(tmp_path, {"train": (0.25, 0.75), "val": (0.25, 0.75), "test": (0.75, 0.25)})
    picture(tmp_path / "own/images/nobodys.png", 1, (8, 8))
    prepare(options)
    told = " ".join(capsys.readouterr().out.split())
    assert "25% / 75%" in told and "75% / 25%" in told
    assert "mass: view AP is 25% of the positives and 75% of the negatives in train, but 75% and 25% in test" in told
    assert "1 images in" in told and "nobodys.png" in told and "No film of val has a box" in told
    assert "mass: train has only 40 films with it" in told
    matched = prepare(changed(options, matched="view", overwrite=True))
    told = " ".join(capsys.readouterr().out.split())
    assert "view AP" not in told and "nobodys.png" in told
    for split in ("train", "val"):
        counted = Counter((int(e["labels"][0]), e["view"]) for e in examples(matched, split).values())
        assert counted[1, "AP"] * counted[0, "PA"] == pytest.approx(counted[1, "PA"] * counted[0, "AP"], rel=0.2)
    assert matched.splits["test"] == 80


def test_a_view_that_nearly_is_the_label_is_told_though_it_does_not_turn(tmp_path, capsys):
    prepare(folder(tmp_path, {"train": (1.0, 0.1), "val": (1.0, 0.1), "test": (1.0, 0.1)}, films=16))
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "mass: view AP is 100% of the positives and 12% of the negatives in train: a model may learn the view" in told
    )
    assert "wrong there" not in told and "mass: test has 8 films with it and 8 without, too few" in told


def test_views_are_matched_for_one_finding_that_has_negatives_of_each(tmp_path):
    options = folder(tmp_path, {"train": (0.5, 0.0), "test": (0.5, 0.5)}, films=8)
    with pytest.raises(BadData, match="--matched view: expected negatives of train in view 'AP'"):
        prepare(changed(options, matched="view"))
    text = (tmp_path / "own/labels.csv").read_text().splitlines()
    (tmp_path / "own/labels.csv").write_text("\n".join([f"{text[0]},edema", *(f"{line},1" for line in text[1:])]))
    with pytest.raises(BadData, match="--matched view: expected one of --findings, found 2: mass, edema"):
        prepare(changed(options, matched="view"))


def test_a_view_of_val_without_negatives_takes_no_other_views_negatives():
    counts = {(split, view, label): 4 for split in ("train", "val") for view in ("AP", "PA") for label in (0, 1, -1)}
    counts |= {("val", "LL", 1): 1, ("train", "LL", 0): 2}
    items = [
        Item(f"{key}{i}", "", key[0], (key[2],), None, key[1]) for key, count in counts.items() for i in range(count)
    ]
    kept = Counter((i.split, i.view, i.labels[0]) for i in groups.matched(items, SimpleNamespace(matched="view")))
    assert kept == {key: count for key, count in counts.items() if key != ("train", "LL", 0)}


@given(st.lists(st.tuples(st.sampled_from(["AP", "PA", "LL", ""]), st.sampled_from([1, 0, -1])), min_size=1))
def test_counts_are_those_of_a_plain_count(rows):
    those = [{"labels": np.array([label]), "groups": {"view": view} if view else {}} for view, label in rows]
    counted = groups.count({"train": those})
    views = {view for view, _ in rows if view}
    assert set(counted) == ({"view"} if len(views) > 1 else set())
    for view, labels in counted.get("view", {}).get("train", {}).items():
        assert labels == [[rows.count((view, 1)), rows.count((view, 0))]]


def test_groups_of_a_patient_are_bands_of_what_is_known():
    assert groups.about("m", "057Y", "3") == {"sex": "M", "age": "40 to 59", "follow-up": "later film"}
    assert groups.about("", "39.0", "0") == {"age": "under 40", "follow-up": "first film"}
    assert groups.about("F", "unknown", "") == groups.about("F", "-5", "") == {"sex": "F"}
