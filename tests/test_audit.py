"""The shortcut audit of trained runs: a planted marker that it must expose, lungs from anywhere, shuffled masks."""

import json
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from infomask_jax import audit, datasets
from infomask_jax.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.evaluate.shares import REGIONS
from infomask_jax.inference import predict, read_examples
from infomask_jax.model import build
from infomask_jax.pixels import decode_gray, encode
from infomask_jax.presets import changed
from infomask_jax.run import Run
from infomask_jax.train import train


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

    def shuffled(x, config=config):
        logits, out = model.apply({"params": params}, x, train=False)
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model), "apply", watched)
            moved_logits = audit.make_shuffled(config, 1)(params, x)[0]
        moved = calls[-1]  # of what the logits are made
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
    assert shuffled(x[::-1])[2] == orders[::-1] and not np.allclose(logits, moved_logits)
    assert not {*shuffled(x, changed(config, {"seed": 1}))[2]} & {*orders}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run on films whose corner tells the label, its data, and what the audit says of it."""
    root = tmp_path_factory.mktemp("audited")
    options = {"size": 32, "train": 256, "val": 0, "test": 48, "contrast": 1.5, "shortcut": 1.0, "workers": 1}
    data = datasets.prepare(Synthetic(data_dir=root / "data", **options))
    config = Config(
        data_dir=root / "data",
        workdir=root / "run",
        baseline=False,
        map_shifts=2,
        data=DataConfig(image_size=64, batch_size=16),
        # The plainest recipe, whose blind spot is the marker: what is audited is not what is tested here.
        model=ModelConfig(width=8, two_views=False, close_empty=False, mask_coupling=0.0, mask_evidence=0.0),
        loss=LossConfig(delay=0.2, hidden=0.0, consistency=0.0),
        train=OptimizerConfig(steps=160, learning_rate=4e-3),
    )
    train(config, data)
    assert audit.audit_run(root / "run", data, "test") == root / "run"
    return Run.open(root / "run"), data, json.loads((root / "run" / "eval" / "audit_test.json").read_text())


def test_the_audit_exposes_a_planted_marker(planted):
    run, data, result = planted
    found = result["findings"]["opacity"]
    share = found["positive"]["infomask_bits"]
    assert share["shares"]["elsewhere"]["ci95"][0] > 0.8 and share["over_area"]["lesion"]["value"] < 0.6
    assert found["auroc"]["value"] > 0.99  # which alone would be praised
    labels, source = read_examples(data, "test", ["opacity"])["labels"][:, 0], data.source("test")
    bits = predict(changed(run.config, {"map_shifts": 1}), run.params, source, 1).maps["infomask_bits"][..., 0]
    bits = bits[labels == 1].astype(float)
    assert share["total"]["value"] == pytest.approx(bits.sum() / len(bits), rel=1e-5)
    assert bits[:, :3, :3].sum() > 0.6 * bits.sum()  # the marker's corner, the first: not upside down


def test_the_report_agrees_with_the_data_and_is_whole(planted):
    run, data, result = planted
    found, source = result["findings"]["opacity"], data.source("test")
    assert set(found) >= {"counts", "positive", "negative", "auroc", "auroc_of_openness", "auroc_of_shuffled_mask"}
    assert found["positive"]["images"] + found["negative"]["images"] == result["n_images"] == 48
    films = [source[i] for i in range(48)]
    lesion = np.mean([(decode_gray(film["mask"]) > 0).mean() for film in films if film["labels"][0]])
    lung = np.mean([(decode_gray(film["lung"]) > 0).mean() for film in films if not film["labels"][0]])
    assert found["positive"]["area"]["lesion"]["value"] == pytest.approx(lesion, abs=1e-6)
    assert found["negative"]["area"]["lung"]["value"] == pytest.approx(lung, abs=1e-6)
    assert result["lung_from"] == "stored"
    assert "elsewhere / area" in (run.folder / "eval" / "audit_test.md").read_text()
    assert cv2.imread(str(run.folder / "figures" / "audit_test.png")).shape[1] > 1000


def test_other_data_is_audited_beside_the_run_and_lacks_lungs(trained_copy, tmp_path):
    (tmp_path / "own").mkdir()
    for i in range(3):
        film = np.random.default_rng(i).integers(1, 256, (32, 32), np.uint8)  # nowhere black
        (tmp_path / "own" / f"{i}.png").write_bytes(encode(film))
    (tmp_path / "own" / "labels.csv").write_text("image,opacity,split\n0.png,1,test\n1.png,0,test\n2.png,,test\n")
    other = datasets.prepare(datasets.Folder(tmp_path / "own", data_dir=tmp_path / "data", size=32))
    with pytest.raises(ValueError, match="no lung field for 3 of the 3 images of test"):
        audit.audit_run(trained_copy, other, "test")
    output = audit.audit_run(trained_copy, other, "test", lungs_from_image=True)
    assert output.parent == trained_copy and output.name.startswith("on-folder-")
    assert not (trained_copy / "eval" / "audit_test.json").exists()
    found = json.loads((output / "eval" / "audit_test.json").read_text())["findings"]["opacity"]
    assert found["counts"] == {"positive": 0, "positive_without_lesion": 1, "negative": 1, "unknown": 1}
    assert found["negative"]["infomask_bits"]["shares"]["lung"]["value"] == 1
    with pytest.raises(ValueError, match="no split 'val'"):
        audit.audit_run(trained_copy, other, "val")
    with pytest.raises(ValueError, match="plain classifier"):
        audit.audit_run(trained_copy / "plain", other, "test")


def test_lungs_come_from_files_images_or_the_store(trained, tmp_path):
    data = datasets.load("synthetic", trained.parent / "data")
    source, examples = data.source("test"), read_examples(data, "test", ["opacity"])
    fields, ids = [decode_gray(source[i]["lung"]) > 0 for i in range(20)], examples["image_id"]

    def lungs(folder=None, from_image=False, examples=examples):
        return audit.lung_fields(examples, source, data, "test", folder, from_image)[0]

    assert all((lungs()(i) == field).all() for i, field in enumerate(fields))
    assert (lungs(from_image=True)(3) == (decode_gray(source[3]["image"]) > 0)).all()
    (tmp_path / "sub").mkdir()
    for name, field in zip(ids, fields, strict=True):
        (tmp_path / f"{name}.png").write_bytes(encode(field.astype(np.uint8).repeat(2, 0).repeat(2, 1)))
        (tmp_path / "sub" / f"{name}.png").write_bytes(encode(field.astype(np.uint8)))
    assert (lungs(tmp_path)(5)[::2, ::2] == fields[5]).all()
    named = {**examples, "image_id": [f"sub/{name}.PNG" for name in ids]}
    assert (lungs(tmp_path, examples=named)(5) == fields[5]).all()
    (tmp_path / f"{ids[5]}.png").write_bytes(encode(np.ones((64, 50), np.uint8)))
    for name in ids[:2]:
        (tmp_path / "sub" / f"{name}.png").unlink()
    twice = {**examples, "image_id": ["a.jpg", "a.png", *ids[2:]]}
    for arguments, words in [
        ((tmp_path, True), "found both"),
        ((tmp_path, False, twice), r"a\.png: expected the lung of one image"),
        ((tmp_path,), rf"{ids[5]}\.png.*aspect"),
        ((tmp_path / "sub",), rf"20 files, found that 2 are missing: {ids[0]}\.png, {ids[1]}\.png$"),
    ]:
        with pytest.raises(ValueError, match=words):
            lungs(*arguments)(5)
    # of the source's aspect, and named in the other Unicode form
    (tmp_path / "re\u0301.png").write_bytes(encode(np.eye(40, 80, dtype=np.uint8)))
    assert lungs(tmp_path, examples={"image_id": ["r\xe9.jpg"], "sizes": [(1000, 2000)]})(0).sum() == 40


def test_the_command_prints_the_table(trained_copy):
    command = [sys.executable, "-m", "infomask_jax", "audit", str(trained_copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "audit_test.png" in done.stdout and all(region in done.stdout for region in REGIONS)
