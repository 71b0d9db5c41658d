"""The shortcut audit: exact shares on maps and regions made by hand, and a planted marker that it must expose."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infomask_jax import audit, datasets
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic, images, schema
from infomask_jax.datasets.build import _fingerprint
from infomask_jax.datasets.synthetic import render
from infomask_jax.evaluate import shares
from infomask_jax.evaluate.shares import REGIONS, region_areas
from infomask_jax.model import build
from infomask_jax.pixels import encode
from infomask_jax.presets import CAM, changed
from infomask_jax.train import train

NONE = (np.zeros((0, 4)), ())


def square(size, rows, columns):
    region = np.zeros((size, size), bool)
    region[slice(*rows), slice(*columns)] = True
    return region


def split(labels, boxes=None, masks=None, patients=None):
    labels = np.reshape(labels, (len(labels), -1)).astype(np.int8)
    ids = [f"i{i}" for i in range(len(labels))]
    boxes = boxes or [NONE] * len(ids)
    return {"image_id": ids, "patient_id": patients or ids, "labels": labels, "boxes": boxes, "masks": masks}


def values(of):
    return {region: v["value"] for region, v in of.items()}


def one_finding(labels, maps, lung, boxes=None, masks=None, **options):
    data = split(labels, boxes, masks)
    result, means = shares.audit(("x",), data, {"m_bits": np.asarray(maps, float)}, lambda i: lung, **options)
    return result["findings"]["x"], means["x"]


def test_a_half_covered_cell_gives_half():
    areas = region_areas((2, 2), square(4, (0, 4), (0, 1)), square(4, (0, 1), (2, 4)))
    np.testing.assert_allclose(areas[0], [[0, 0.5], [0, 0]])
    np.testing.assert_allclose(areas[1], [[0.5, 0], [0.5, 0]])
    np.testing.assert_allclose(areas[2], [[0.5, 0.5], [0.5, 1]])


def test_lesion_across_the_edge_of_the_lung_and_outside_it_is_lesion():
    lung = square(4, (0, 4), (0, 2))
    across = region_areas((1, 1), lung, square(4, (1, 2), (1, 3)))[:, 0, 0]
    np.testing.assert_allclose(across, [2 / 16, 7 / 16, 7 / 16])
    outside = region_areas((1, 1), lung, square(4, (0, 4), (3, 4)))[:, 0, 0]
    np.testing.assert_allclose(outside, [0.25, 0.5, 0.25])


def test_regions_of_different_sizes_are_exact():
    """Thirds against halves, and a box with edges inside pixels: nothing is rounded to a grid."""
    areas = region_areas((1, 1), square(3, (0, 1), (0, 3)), square(2, (0, 1), (0, 1)))[:, 0, 0]
    np.testing.assert_allclose(areas, [1 / 4, 1 / 6, 7 / 12])
    boxes = np.array([[0.1, 0, 0.35, 1], [0.3, 0, 0.4, 1]])  # their union, not their sum
    np.testing.assert_allclose(region_areas((1, 1), square(2, (0, 0), (0, 0)), None, boxes)[0], [[0.3]])
    np.testing.assert_allclose(region_areas((2, 1), square(2, (0, 0), (0, 0)), None, boxes)[0], [[0.6], [0]])
    wide = np.zeros((2, 6), bool)
    wide[0, :3] = True
    np.testing.assert_allclose(region_areas((2, 2), wide)[1], [[1, 0], [0, 0]])


def test_mask_and_boxes_together_are_what_they_share():
    areas = region_areas((1, 1), square(4, (0, 0), (0, 0)), square(4, (0, 2), (0, 4)), [[0, 0, 1, 0.5]])
    np.testing.assert_allclose(areas[:, 0, 0], [0.25, 0, 0.75])
    assert not region_areas((1, 1), square(4, (0, 4), (0, 4)), square(4, (0, 4), (0, 4)), np.zeros((0, 4)))[0].any()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_regions_share_every_cell(data, h, w):
    lung, mask = (data.draw(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))) for _ in range(2))
    corner = st.floats(0, 0.875, width=32)
    corners = data.draw(st.lists(st.tuples(corner, corner), max_size=3))
    boxes = np.array([(y, x, y + 0.1, x + 0.1) for y, x in corners]).reshape(-1, 4)
    heat = data.draw(arrays.arrays(float, (h, w), elements=st.floats(0, 100)))
    mask = data.draw(st.sampled_from([mask, None]))
    areas = region_areas((h, w), lung, mask, data.draw(st.sampled_from([boxes, None])))
    assert areas.shape == (3, h, w) and (areas >= 0).all()
    np.testing.assert_allclose(areas.sum(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(region_areas((h, w), lung)[1].mean(), lung.mean(), atol=1e-9)
    found, _ = one_finding([1, 0], [heat, heat], lung, masks=[np.ones((2, 2), bool), None], resamples=2)
    for group in ("positive", "negative"):
        total = found[group]["m_bits"]["total"]["value"]
        own = values(found[group]["m_bits"]["shares"])
        if total > 1e-5:
            assert sum(own.values()) == pytest.approx(1, abs=3e-6) and ("lesion" in own) == (group == "positive")
        assert sum(values(found[group]["area"]).values()) == pytest.approx(1, abs=3e-6)


def test_shares_pool_the_bits_of_all_images():
    """Two positives: three bits all in the lesion, one bit all elsewhere. Shares weigh bits, not images."""
    lung, lesion = square(2, (0, 1), (0, 2)), square(2, (0, 1), (0, 1))
    maps = [[[3, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 1], [0, 2]]]
    found, means = one_finding([1, 1, 0], maps, lung, masks=[lesion, lesion, None])
    own = found["positive"]["m_bits"]
    assert values(own["shares"]) == {"lesion": 0.75, "lung": 0, "elsewhere": 0.25}
    assert values(found["positive"]["area"]) == {"lesion": 0.25, "lung": 0.25, "elsewhere": 0.5}
    assert values(own["over_area"]) == {"lesion": 3, "lung": 0, "elsewhere": 0.5}
    assert own["total"]["value"] == 2 and own["shares"]["lesion"]["n"] == found["positive"]["images"] == 2
    assert own["shares"]["lesion"]["ci95"] == [0, 1]  # a resample of either image alone
    assert own["over_area"]["lesion"]["ci95"] == [0, 4] and own["total"]["ci95"] == [1, 3]
    assert values(found["negative"]["m_bits"]["shares"]) == {"lung": 0.5, "elsewhere": 0.5}
    assert found["negative"]["m_bits"]["total"]["value"] == 4
    np.testing.assert_allclose(means["positive"]["m_bits"], [[1.5, 0], [0, 0.5]])
    np.testing.assert_allclose(means["negative"]["lung"], [[1, 1], [0, 0]])


def test_intervals_draw_patients_not_images():
    lung, lesion = square(2, (0, 2), (0, 1)), square(2, (0, 1), (0, 1))
    data = split([1, 1, 0], masks=[lesion, lesion, None], patients=["p", "p", "q"])
    maps = {"m_bits": np.array([[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[1, 0], [0, 0]]], float)}
    result, _ = shares.audit(("x",), data, maps, lambda i: lung)
    assert result["findings"]["x"]["positive"]["m_bits"]["shares"]["lesion"]["ci95"] == [0.5, 0.5]
    assert (result["n_images"], result["n_patients"]) == (3, 2)


def test_what_has_no_lesion_or_no_label_is_counted():
    lung, box = square(2, (0, 1), (0, 2)), (np.array([[0, 0, 0.5, 0.5]]), (0,))
    heat = [[[8, 0], [0, 0]]] * 2 + [[[0, 1], [0, 1]], [[0, 0], [2, 2]]]
    found, _ = one_finding([1, -1, 1, 0], heat, lung, boxes=[box, box, NONE, NONE])
    counts = {"positive": 1, "positive_without_lesion": 1, "negative": 1, "unknown": 1}
    assert found["counts"] == counts
    assert values(found["positive"]["m_bits"]["shares"]) == {"lesion": 1, "lung": 0, "elsewhere": 0}
    assert values(found["positive_without_lesion"]["m_bits"]["shares"]) == {"lung": 0.5, "elsewhere": 0.5}
    assert values(found["negative"]["m_bits"]["shares"]) == {"lung": 0, "elsewhere": 1}
    only, _ = one_finding([1, -1], heat[:2], lung, boxes=[box, NONE])
    assert "negative" not in only and only["counts"]["negative"] == 0


def test_a_map_of_zeros_has_no_share_and_says_so():
    result = one_finding([0, 0], np.zeros((2, 2, 2)), square(2, (0, 0), (0, 0)))[0]["negative"]
    for region in ("lung", "elsewhere"):
        share = result["m_bits"]["shares"][region]
        assert share["value"] is None and share["reason"] == "the map is zero everywhere"
    assert result["m_bits"]["total"]["value"] == 0
    assert result["area"]["lung"]["value"] == 0
    dark = one_finding([0], [np.ones((2, 2))], square(2, (0, 0), (0, 0)))[0]["negative"]
    assert dark["m_bits"]["over_area"]["lung"] == {"value": None, "ci95": None, "n": 1, "reason": "no area"}
    data, maps = split([0, 1]), {"m_bits": np.ones((2, 2, 2))}
    result, means = shares.audit(("x",), data, maps, lambda i: square(2, (0, i), (0, 1)))
    assert result["n_images_without_lung"] == 1
    assert [means["x"][g]["lung"].sum() for g in ("negative", "positive_without_lesion")] == [0, 1]


def test_each_finding_has_its_own_lesions_maps_and_labels():
    """One image, both findings; the mask holds the lesions of both and each finding's boxes tell its own."""
    lung, mask = square(2, (0, 2), (0, 2)), square(4, (0, 1), (0, 4))
    boxes = (np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 1]]), (0, 1))
    heat = np.zeros((1, 4, 4, 2))
    heat[0, 0, 0] = 4, 1
    heat[0, 0, 3] = 0, 3
    data, options = split([[1, 1]], [boxes], [mask]), {"lung_of": lambda i: lung}
    found = shares.audit(("a", "b"), data, {"m_bits": heat}, **options)[0]["findings"]
    assert [values(found[f]["positive"]["m_bits"]["shares"])["lesion"] for f in "ab"] == [1, 0.75]
    shared = shares.audit(("a", "b"), data, {"m_bits": heat[..., 1]}, **options)[0]["findings"]
    assert [values(shared[f]["positive"]["m_bits"]["shares"])["lesion"] for f in "ab"] == [0.25, 0.75]
    other = split([[1, 1]], [(boxes[0][:1], (0,))], [mask])
    found = shares.audit(("a", "b"), other, {"m_bits": heat}, **options)[0]["findings"]
    assert found["b"]["counts"]["positive_without_lesion"] == 1 and found["a"]["counts"]["positive"] == 1


def test_auroc_of_a_probe_is_over_known_labels():
    scores = {"probe": np.array([[0.9], [0.5], [0.1], [7.0]])}
    options = {"lung": square(2, (0, 1), (0, 1)), "scores": scores}
    found, _ = one_finding([1, 0, 0, -1], np.ones((4, 2, 2)), **options)
    assert (found["probe"]["value"], found["probe"]["n"]) == (1, 3)
    found, _ = one_finding([0, 0, 0, -1], np.ones((4, 2, 2)), **options)
    assert found["probe"] == {"value": None, "ci95": None, "n": 3, "reason": "one class only"}


@pytest.mark.parametrize("empty", [0, 12])
def test_shuffling_moves_the_mask_and_nothing_else(empty):
    """And only to cells that show something: those of the first `empty` columns of pixels do not, and stay closed."""
    config = Config(data_dir="data", workdir="run", model=ModelConfig(width=8, latent_channels=4))
    model = build(config.model, 1)
    x = jax.random.normal(jax.random.key(1), (3, 32, 32, 1)).at[:, :, :empty].set(0.5)
    params = model.init({"params": jax.random.key(0)}, x, train=False)["params"]
    params["mask"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(2), params["mask"]["kernel"].shape)
    unmixed, calls = type(model).apply, []

    def watched(self, variables, images, **options):
        logits, out = unmixed(self, variables, images, **options)
        calls.append(out)
        return logits, out

    def shuffled(x):
        logits, out = model.apply({"params": params}, x, train=False)
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "apply", watched)
            moved_logits, maps = audit.make_shuffled(config, 1)(params, x)
        moved = calls[-1]  # of what the logits are made
        assert not maps and len(calls) == 2
        np.testing.assert_array_equal(moved["mu"], out["mu"])
        np.testing.assert_array_equal(moved["mask"][:, :, : empty // 4], out["mask"][:, :, : empty // 4])
        before, after = (np.asarray(o["mask"])[:, :, empty // 4 :].reshape(3, -1) for o in (out, moved))
        np.testing.assert_array_equal(np.sort(before), np.sort(after))
        assert (before != after).any(axis=1).all()
        ranks = [np.argsort(np.argsort(row)) for row in np.concatenate([before, after])]
        return logits, moved_logits, [tuple(np.argsort(ranks[i])[ranks[3 + i]]) for i in range(3)]

    logits, moved_logits, orders = shuffled(x)
    others = shuffled(x.at[1].add(0.37))[2]
    assert others[::2] == orders[::2] and len({*orders, others[1]}) == 4  # each image its own, be its place the same
    assert shuffled(x[::-1])[2] == orders[::-1]
    assert not np.allclose(logits, moved_logits)
    config = dataclasses.replace(config, seed=1)
    assert not {*shuffled(x)[2]} & {*orders}


# From here on, trained runs.


def trained_on(root: Path, shortcut: float) -> tuple[Path, datasets.Prepared]:
    options = {"size": 64, "train": 256, "val": 0, "test": 48, "contrast": 1.5, "shortcut": shortcut, "workers": 1}
    data = datasets.prepare(Synthetic(data_dir=root / "data", **options))
    config = Config(
        data_dir=root / "data",
        workdir=root / "run",
        seed=1,  # 240 steps are few: with seed 0 the clean run is only just at the lesion
        baseline=False,
        map_shifts=2,
        data=DataConfig(image_size=64, batch_size=16),
        # The plainest recipe, whose blind spot is the marker: what is audited is not what is tested here.
        model=ModelConfig(width=8, two_views=False, close_empty=False, mask_coupling=0.0, mask_evidence=0.0),
        loss=LossConfig(delay=0.2, hidden=0.0, consistency=0.0),
        train=OptimizerConfig(steps=240, learning_rate=4e-3),
    )
    train(config, data)
    return root / "run", data


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{shortcut: (run, its data, what the audit says)}."""
    out = {}
    for shortcut in (1.0, 0.0):
        run, data = trained_on(tmp_path_factory.mktemp("audited"), shortcut)
        assert audit.audit_run(run, data, "test") == run
        text = (run / "eval" / "audit_test.json").read_text()
        out[shortcut] = run, data, json.loads(text, parse_constant=lambda name: pytest.fail(f"holds {name}"))
    return out


def bits_of_positives(run, data) -> np.ndarray:
    """The rate maps [N,16,16] of positive images, as one forward pass gives them."""
    labels = audit.read_examples(data, "test", ["opacity"])["labels"][:, 0]
    config, params = audit.finished(run)
    unshifted = dataclasses.replace(config, map_shifts=1)
    bits = audit.predict(unshifted, params, data.source("test"), 1)[1]["infomask_bits"]
    return bits[labels == 1].astype(float)[..., 0]


def test_the_audit_exposes_a_planted_marker(runs):
    own = {shortcut: result["findings"]["opacity"]["positive"] for shortcut, (*_, result) in runs.items()}
    planted, clean = (own[s]["infomask_bits"]["shares"]["elsewhere"] for s in (1.0, 0.0))
    assert planted["value"] > 0.9 and planted["ci95"][0] > clean["ci95"][1] + 0.15
    assert own[1.0]["infomask_bits"]["over_area"]["lesion"]["value"] < 0.6
    assert own[0.0]["infomask_bits"]["over_area"]["lesion"]["value"] > 1
    bits = {shortcut: bits_of_positives(run, data) for shortcut, (run, data, _) in runs.items()}
    corners = {shortcut: b[:, :4, :4].sum() / b.sum() for shortcut, b in bits.items()}
    for shortcut, b in bits.items():
        assert own[shortcut]["infomask_bits"]["total"]["value"] == pytest.approx(b.sum() / len(b), rel=1e-5)
    assert corners[1.0] > 0.8 and corners[0.0] < 0.15
    assert runs[1.0][2]["findings"]["opacity"]["auroc"]["value"] > 0.99  # which alone would be praised
    assert runs[1.0][2]["findings"]["opacity"]["auroc_of_openness"]["value"] > 0.9


def test_the_report_agrees_with_the_maps_and_is_whole(runs):
    run, data, result = runs[1.0]
    found = result["findings"]["opacity"]
    assert set(found) >= {"counts", "positive", "negative", "auroc", "auroc_of_openness", "auroc_of_shuffled_mask"}
    assert found["positive"]["images"] + found["negative"]["images"] == result["n_images"] == 48
    assert set(found["positive"]) == {"images", "area", "infomask_bits", "infomask"}
    drawn = [render(0, 2 * datasets.FAR + i, _config(data)) for i in range(48)]
    lesion = np.mean([d["mask"].mean() / 255 for d in drawn if d["label"]])
    assert found["positive"]["area"]["lesion"]["value"] == pytest.approx(lesion, abs=1e-6)
    lung = np.mean([(d["lung"] > 0).mean() for d in drawn if not d["label"]])
    assert found["negative"]["area"]["lung"]["value"] == pytest.approx(lung, abs=1e-6)
    assert result["lung_from"] == "stored"
    text = (run / "eval" / "audit_test.md").read_text()
    assert "positive images" in text and "elsewhere / area" in text and "with each mask shuffled" in text
    image = cv2.imread(str(run / "figures" / "audit_test.png"))
    assert image.shape[1] > 1000 and not list(run.rglob("*.tmp"))


def _config(data):
    return Synthetic(**{k: data.options[k] for k in ("size", "contrast", "shortcut", "prevalence")})


def test_other_data_is_audited_beside_the_run(runs):
    run, own = runs[1.0][:2]
    before = (run / "eval" / "audit_test.json").read_bytes()
    output = audit.audit_run(run, runs[0.0][1], "test")
    assert output.parent == run and output.name.startswith("on-synthetic-")
    assert (output / "figures" / "audit_test.png").exists() and (output / "eval" / "audit_test.md").exists()
    assert (run / "eval" / "audit_test.json").read_bytes() == before
    with pytest.raises(ValueError, match="no split 'val'"):
        audit.audit_run(run, own, "val")


def test_lungs_come_from_files_images_or_the_store(runs, tmp_path):
    data = runs[0.0][1]
    source, examples = data.source("test"), audit.read_examples(data, "test", ["opacity"])
    fields = [images.decode(source[i]["lung"]) > 0 for i in range(len(source))]
    stored, where = audit.lung_fields(examples, source, data, "test", None, False)
    assert where == "stored" and all((stored(i) == field).all() for i, field in enumerate(fields))
    shown, _ = audit.lung_fields(examples, source, data, "test", None, True)
    assert (shown(3) == (images.decode(source[3]["image"]) > 0)).all()

    for name, field in zip(examples["image_id"], fields, strict=True):
        (tmp_path / f"{name}.png").write_bytes(encode(field.astype(np.uint8).repeat(2, 0).repeat(2, 1)))
    files, where = audit.lung_fields(examples, source, data, "test", tmp_path, False)
    assert where == str(tmp_path) and (files(5)[::2, ::2] == fields[5]).all() and files(5).shape == (128, 128)
    with pytest.raises(ValueError, match=r"found both"):
        audit.lung_fields(examples, source, data, "test", tmp_path, True)
    twins = {**examples, "image_id": ["a.jpg", "a.png", *examples["image_id"][2:]]}
    with pytest.raises(ValueError, match=r"a\.png: expected the lung of one image"):
        audit.lung_fields(twins, source, data, "test", tmp_path, False)
    path = tmp_path / f"{examples['image_id'][5]}.png"
    path.write_bytes(encode(np.ones((128, 100), np.uint8)))
    with pytest.raises(ValueError, match=rf"{path.name}.*aspect"):
        files(5)
    for name in examples["image_id"][:4]:
        (tmp_path / f"{name}.png").unlink()
    first = examples["image_id"][0]
    with pytest.raises(ValueError, match=rf"expected 48 files, found that 4 are missing: {first}\.png, .*, \.\.\.$"):
        audit.lung_fields(examples, source, data, "test", tmp_path, False)
    named = {**examples, "image_id": [f"sub/{name}.PNG" for name in examples["image_id"]]}
    (tmp_path / "sub").mkdir()
    for name, field in zip(examples["image_id"], fields, strict=True):
        (tmp_path / "sub" / f"{name}.png").write_bytes(encode(field.astype(np.uint8)))
    assert (audit.lung_fields(named, source, data, "test", tmp_path, False)[0](5) == fields[5]).all()


def test_a_lung_file_may_have_the_aspect_of_the_source(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(np.eye(40, 80, dtype=np.uint8)))
    files, _ = audit.lung_fields({"image_id": ["a"], "sizes": [(1000, 2000)]}, None, None, "test", tmp_path, False)
    assert files(0).sum() == 40


def test_lungs_are_found_in_either_unicode_form(tmp_path):
    (tmp_path / "re\u0301.png").write_bytes(encode(np.eye(40, dtype=np.uint8)))
    files, _ = audit.lung_fields({"image_id": ["r\xe9.jpg"], "sizes": [(9, 9)]}, None, None, "test", tmp_path, False)
    assert files(0).sum() == 40
    with pytest.raises(ValueError, match="expected 1 files, found that 1 are missing"):
        audit.lung_fields({"image_id": ["x" * 300], "sizes": [(9, 9)]}, None, None, "test", tmp_path, False)


def test_data_without_lungs_says_what_to_do(runs, tmp_path):
    run = runs[1.0][0]
    for i in range(3):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / f"{i}.png").write_bytes(encode(np.full((64, 64), 9 * i + 9, np.uint8)))
    (tmp_path / "own" / "labels.csv").write_text("image,opacity,split\n0.png,1,test\n1.png,0,test\n2.png,,test\n")
    other = datasets.prepare(datasets.Folder(tmp_path / "own", data_dir=tmp_path / "data", size=64))
    with pytest.raises(ValueError, match=r"no lung field for 3 of the 3 images of test: give --lungs DIR"):
        audit.audit_run(run, other, "test")
    output = audit.audit_run(run, other, "test", lungs_from_image=True)
    found = json.loads((output / "eval" / "audit_test.json").read_text())["findings"]["opacity"]
    assert found["counts"] == {"positive": 0, "positive_without_lesion": 1, "negative": 1, "unknown": 1}
    assert found["negative"]["infomask"]["shares"]["lung"]["value"] == 1
    text = (output / "eval" / "audit_test.md").read_text()
    assert "1 positive without box or mask, 1 of unknown label" in text


def test_data_of_an_older_version_must_be_prepared_again(runs, tmp_path):
    data = runs[1.0][1]
    shutil.copytree(data.directory, tmp_path / "synthetic" / "1.0.0")
    with pytest.raises(FileNotFoundError, match=r"found that of another version of this package, 1\.0\.0; run: .*prep"):
        datasets.load("synthetic", tmp_path)
    with pytest.raises(FileNotFoundError, match="found none; run: python -m infomask_jax prepare synthetic"):
        datasets.load("synthetic", tmp_path / "empty")


def test_a_lung_field_does_not_change_the_fingerprint_of_data():
    """So that runs trained before lungs were stored are still runs on the same data."""
    drawn = render(0, 1, Synthetic(size=32, contrast=0.35))
    example = {"image_id": "a", "patient_id": "a", "view": "", "height": 32, "width": 32, "labels": np.ones(1, np.int8)}
    example |= {"boxes": drawn["boxes"], "box_labels": np.zeros(len(drawn["boxes"]), np.int32)}
    prints = {_fingerprint({**example, "lung": lung}, drawn["image"], "test") for lung in (b"", b"\x89PNG")}
    assert len(prints) == 1
    full = {**example, "image": encode(drawn["image"]), "mask": b"", "lung": encode(drawn["lung"])}
    schema.check(full, ("opacity",))
    schema.check({**full, "lung": b""}, ("opacity",))
    with pytest.raises(ValueError, match="lung: expected PNG"):
        schema.check({**full, "lung": b"no"}, ("opacity",))


def test_the_command_prints_the_table(runs):
    run = runs[0.0][0]
    command = [sys.executable, "-m", "infomask_jax", "audit"]
    done = subprocess.run([*command, str(run)], capture_output=True, text=True, check=True)
    assert "InfoMask bits" in done.stdout and "audit_test.png" in done.stdout and all(r in done.stdout for r in REGIONS)
    wrong = [str(run), "--lungs", str(run), "--lungs-from-image"]
    done = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "found both" in done.stderr and "Traceback" not in done.stderr
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--lungs-from-image" in helped and "--split" in helped


def test_a_plain_classifier_has_nothing_to_audit(tmp_path):
    options = {"size": 32, "train": 8, "val": 0, "test": 4, "workers": 1}
    data = datasets.prepare(Synthetic(data_dir=tmp_path / "data", **options))
    config = Config(
        data_dir=tmp_path / "data",
        workdir=tmp_path / "run",
        baseline=False,
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=8),
        train=OptimizerConfig(steps=2),
        machine=MachineConfig(log_every=2),
    )
    train(changed(config, CAM), data)
    with pytest.raises(ValueError, match="plain classifier: it has no bits"):
        audit.audit_run(tmp_path / "run", data, "test")
