"""Ablations: what each variant changes, what is trained and asked once, and the table's numbers from their parts."""

import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from infomask_jax import ablation, checkpoint, command, datasets, experiment, monitor, pipeline, presets
from infomask_jax.ablation import predictions, table
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.datasets.synthetic import PhantomConfig, render
from infomask_jax.evaluate import bootstrap, controls, scoring
from infomask_jax.explain import attribution, heat_maps, shifted_heat_maps
from infomask_jax.localize import prepare_maps
from infomask_jax.losses import BITS
from infomask_jax.manifest import differences
from infomask_jax.model import build
from infomask_jax.report import ablations as drawing

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import ablations as script

ONLY, SEEDS = ("no_mask", "cam/gradcam", "cam/gradient"), (3, 5)


def tiny(folder: Path) -> Config:
    return Config(
        data_dir=folder / "data",
        workdir=folder / "all",
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=4, stride=2, latent_channels=2, two_views=False),
        loss=LossConfig(delay=0.2, hidden=0.0, consistency=0.0),
        train=OptimizerConfig(steps=3),
        machine=MachineConfig(log_every=1),
    )


def again(base: Config) -> dict:
    return ablation.run(base, datasets.load(base.dataset, base.data_dir), ONLY, SEEDS, "test", "the command")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Config:
    found = tiny(tmp_path_factory.mktemp("ablations"))
    datasets.prepare(Synthetic(data_dir=found.data_dir, size=32, train=16, val=16, test=24, workers=1))
    again(found)
    return found


@pytest.fixture(scope="module")
def rows(base) -> dict[str, dict]:
    found = json.loads((base.workdir / "ablations.json").read_text(), parse_constant=pytest.fail)
    return {row["method"]: row for row in found["findings"]["opacity"]["rows"]}


@pytest.fixture(scope="module")
def splits(base):
    return predictions.read_splits(datasets.load(base.dataset, base.data_dir), "test", 32)


def of(base: Config, name: str, seed: int) -> tuple[object, Config]:
    variant = next(v for v in ablation.variants(base, 1) if v.name == name)
    return variant, ablation.config_of(base, variant, seed)


def written(base: Config) -> dict[str, bytes]:
    names = ("ablations.json", "ablations.md", "figures/forest.png")
    return {name: (base.workdir / name).read_bytes() for name in names}


@pytest.mark.parametrize("name", script.BASES)
def test_variants_differ_from_the_default_where_they_say(name):
    """In what they list and in nothing else; maps alone where they ask the run of another. No two train the same."""
    base = dataclasses.replace(script.BASES[name], workdir=Path("w"))
    found = {v.name: v for v in ablation.variants(base, 2)}
    assert len(found) == len(ablation.variants(base, 2)) and next(iter(found)) == "default"
    default, trained = ablation.config_of(base, found["default"], 7), {}
    assert default == dataclasses.replace(base, workdir=Path("w/default/seed7"), seed=7, baseline=False)
    if base.model.encoder != "small":
        assert "expected 8, 16 or 32" in found.pop("stride_4").skip
    for v in found.values():
        config = ablation.config_of(base, v, 7)
        lines = differences(default.to_dict(), config.to_dict())
        asked = {"map_shifts"} if v.run else set()
        assert {line.split(":")[0] for line in lines} - {"workdir"} == set(v.changes) - asked, v.name
        assert config.workdir == Path("w") / (v.run or v.name) / "seed7"
        settings = json.dumps(config.to_dict() | {"workdir": "", "map_shifts": 0})
        first = trained.setdefault(settings, config.workdir)
        if v.twin:  # with one view the recipe and its rivals meet
            assert not base.model.two_views and first == Path("w") / v.twin / "seed7" and v.skip.endswith(v.twin)
            assert v.twin in {chosen.name for chosen in ablation.select([*found.values()], (v.name,))}
            continue
        assert first == config.workdir and not v.skip, v.name
    assert found["default"].changes == {} and found["no_kl_z"].changes == {"loss.beta_z": 0.0}
    assert found["sampler_sigmoid"].changes == {"model.sampler": "sigmoid"}
    assert found["no_shifts"] == ablation.Variant("no_shifts", "recipe", {"map_shifts": 1}, run="default")
    assert (found["cam/rise"].run, found["cam/rise"].method) == ("cam", "rise")
    paper = presets.changed(base, presets.PAPER)
    assert ablation.config_of(base, found["paper"], 0).model == paper.model and paper.loss.auxiliary == 0
    betas = ablation.config_of(base, found["beta_x0.0625"], 0).loss
    assert (betas.beta_z, betas.beta_m) == pytest.approx((base.loss.beta_z / 16, base.loss.beta_m / 16), rel=1e-9)


def test_every_choice_of_sampler_and_pooling_is_a_variant():
    found = {(k, x) for v in ablation.variants(script.BASES["synthetic"], 1) for k, x in v.changes.items()}
    kinds = get_type_hints(ModelConfig)
    for name in ("sampler", "pooling"):
        others = set(get_args(kinds[name])) - {getattr(ModelConfig, name)}
        assert others and {(f"model.{name}", value) for value in others} <= found


@pytest.mark.parametrize("name", script.BASES)
def test_variants_of_every_base_can_be_built(name):
    base = script.BASES[name]
    unfit = () if base.model.encoder == "small" else ("stride_4",)
    for v in ablation.variants(base, 1):
        assert v.twin or bool(v.skip) == (v.name in ("mask_per_finding", *unfit)), (v.name, v.skip)
        if v.name in unfit:
            continue
        config = ablation.config_of(base, v, 0)
        assert config.dataset == base.dataset and config.data.image_size % config.model.stride == 0


def test_a_base_without_a_mask_is_refused(base):
    model = dataclasses.replace(base.model, kind="vib")
    other, data = dataclasses.replace(base, model=model), datasets.load(base.dataset, base.data_dir)
    with pytest.raises(ValueError, match=r"model\.kind: expected infomask, .* found vib"):
        ablation.run(other, data, ONLY, SEEDS, "test", "the command")


def test_a_damaged_run_goes_on_from_the_checkpoint_before(base, tmp_path):
    data, (_, config) = datasets.load(base.dataset, base.data_dir), of(base, "default", 0)
    config = dataclasses.replace(config, workdir=tmp_path, machine=MachineConfig(checkpoint_every=2))
    whole = predictions.trained(config, data)
    (path,) = (tmp_path / "checkpoints" / "3" / "state" / "d").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    chex.assert_trees_all_equal(predictions.trained(config, data), whole)
    assert (tmp_path / "broken-3").exists()


def test_what_cannot_be_or_is_there_already_is_skipped():
    base = script.BASES["synthetic"]
    linear = dataclasses.replace(base.model, evidence_bound=0.0, mask_prior=0.2, mask_coupling=0.0)
    found = {v.name: v.skip for v in ablation.variants(dataclasses.replace(base, model=linear), 1)}
    assert "one finding" in found["mask_per_finding"]
    cam = dataclasses.replace(linear, pooling="mean", two_views=False, close_empty=False)
    same = dataclasses.replace(base, model=cam, loss=dataclasses.replace(base.loss, hidden=0.0, consistency=0.0))
    skipped = {v.name: v.skip for v in ablation.variants(same, 1)}
    assert skipped["cam"] == skipped["cam/gradcam"] == "the settings of no_bottleneck"
    assert found["lse_mil"] == "the settings of plain" and found["mask_prior_0.2"] == "the settings of default"
    odd = dataclasses.replace(base, data=dataclasses.replace(base.data, image_size=60))
    assert "60 px do not divide" in next(v.skip for v in ablation.variants(odd, 1) if v.name == "stride_8")
    dear = dataclasses.replace(base, loss=dataclasses.replace(base.loss, beta_m=1e5))
    assert "loss.beta_m: expected" in next(v.skip for v in ablation.variants(dear, 1) if v.name == "beta_x16")


def test_variants_are_chosen_by_name_and_group():
    every = ablation.variants(script.BASES["synthetic"], 1)
    assert ablation.select(every, ()) == every
    assert [v.name for v in ablation.select(every, ("delay", "sampler_sigmoid"))] == [
        "default",
        "sampler_sigmoid",
        "delay_0",
        "delay_0.5",
    ]
    assert [v.name for v in ablation.select(every, ("cam/rise",))] == ["default", "cam", "cam/rise"]
    with pytest.raises(ValueError, match=r"no variant or group no_maks(.|\n)*terms: no_bottleneck, no_mask,"):
        ablation.select(every, ("no_mask", "no_maks"))


def test_every_variant_shows_maps_of_its_grid():
    base = script.BASES["synthetic"]
    base = dataclasses.replace(base, model=dataclasses.replace(base.model, width=2))
    two = {"attention_mil": ("weights", "evidence")} | dict.fromkeys(("no_mask", "vib"), ("bits", "evidence"))
    for v in ablation.variants(base, 2):
        config = ablation.config_of(base, v, 0)
        if v.method:
            assert list(table.shown(v, config, {v.method: np.zeros((1, 4, 4))})) == [v.name]
            continue
        model, image = build(config.model, 2), jnp.zeros((1, 64, 64, 1))
        _, out = jax.eval_shape(
            lambda key, m=model, x=image: m.init_with_output(key, x, train=False), jax.random.key(0)
        )[0]
        maps = jax.eval_shape(lambda out, b=config.model.kind: heat_maps(out, b), out)
        found = table.shown(v, config, {name: np.full(m.shape, 3, np.float16) for name, m in maps.items()})
        names = [f"{v.name}/{what}" for what in two.get(v.name, ())] or [v.name]
        no_cell_logits = ("cam", "cam_no_shifts", "cam_of_recipe", "attention_mil")
        if config.model.kind != "infomask" and v.name not in no_cell_logits:
            names += [f"{v.name}/probability"]
            np.testing.assert_allclose(found[names[-1]], 1 / (1 + math.exp(-3)), rtol=1e-6)
        assert list(found) == names + ["default/bits", "default/evidence"] * (v.name == "default")
        side = 64 // config.model.stride
        per_finding = {"infomask": v.name == "mask_per_finding", "vib": False}.get(config.model.kind, True)
        for name, array in found.items():
            count = 2 if per_finding or name.endswith(("/evidence", "/probability")) else 1
            assert array.shape == (1, side, side, count), name


def test_table_holds_every_row_once(rows):
    untrained = [f"control/{name}" for name in (*controls.MAPS, "brightness", *controls.BOXES)]
    of_two = [f"{name}/{what}" for name in ("default", "no_mask") for what in ("bits", "evidence")]
    shown = ["default", *of_two, "no_mask/probability", "cam", "cam/gradcam", "cam/gradient"]
    assert list(rows) == shown + untrained
    for name in shown:
        assert all(len(score["by_seed"]) == 2 for score in rows[name]["scores"].values())
    for name in untrained:
        assert set(rows[name]["scores"]) == set(table.MAP_SCORES)
        assert all(score["sd"] is None and len(score["by_seed"]) == 1 for score in rows[name]["scores"].values())
    assert rows["default"]["default_minus"] == {} and "rate_z" not in rows["cam"]["scores"]
    assert rows["cam/gradient"]["scores"]["auroc"] == rows["cam"]["scores"]["auroc"]


def assert_scored(row: dict, at: int, files: list[Path], name: str, splits: list[predictions.Split]) -> None:
    """A row has, of seed number `at`, the scores of the maps `name` in files of the splits: the scored one, val."""
    maps, val = (
        prepare_maps(np.load(file)[name][split.truths[0].scored], 32) for file, split in zip(files, splits, strict=True)
    )
    truth, known = splits[0].truths[0].mask, splits[1].truths[0].mask
    own = {metric: score["by_seed"][at] for metric, score in row["scores"].items()}
    assert own["pxap"] == pytest.approx(average_precision_score(truth.ravel(), maps.ravel()), abs=1e-5)
    region = maps >= np.float32(row["threshold"][at])
    iou = (region & truth).sum((1, 2)) / (region | truth).sum((1, 2))
    assert own["mean_iou"] == pytest.approx(iou.mean(), abs=1e-5)
    tried = [
        ((val >= t) & known).sum((1, 2)) / np.maximum(((val >= t) | known).sum((1, 2)), 1)
        for t in np.linspace(0.01, 1, 100, dtype=np.float32)
    ]
    best = float(np.linspace(0.01, 1, 100)[np.argmax([t.mean() for t in tried])])
    assert row["threshold"][at] == pytest.approx(best, abs=1e-6)


def test_map_scores_are_those_of_the_maps_on_disk(base, rows, splits):
    for row, variant, method, name in (
        ("default", "default", "", "infomask"),
        ("no_mask/evidence", "no_mask", "", "vib_evidence"),
        ("cam/gradient", "cam", "-gradient", "gradient"),
    ):
        for at, seed in enumerate(SEEDS):
            folder = base.workdir / variant / f"seed{seed}" / "maps"
            assert_scored(rows[row], at, [folder / f"{split}{method}.npz" for split in ("test", "val")], name, splits)


def test_the_scores_are_those_of_evaluate(base, rows, splits):
    """The same maps through the usual entry point."""
    folder = base.workdir / "no_mask" / f"seed{SEEDS[0]}" / "maps"
    maps = [{"bits": np.load(folder / f"{name}.npz")["vib_bits"]} for name in ("test", "val")]
    found, _ = scoring.score(
        ["opacity"], splits[0].examples, maps[0], frame=32, val=splits[1].examples, val_maps=maps[1], resamples=2
    )
    for ours, theirs in (("no_mask/bits", "bits"), *((n, n) for n in rows if n.startswith("control/"))):
        for metric in table.MAP_SCORES:
            value = found["localization"]["opacity"][theirs][metric]["value"]
            assert rows[ours]["scores"][metric]["by_seed"][0] == pytest.approx(value, abs=2e-6), (ours, metric)


def test_model_scores_are_those_of_the_model(base, rows, splits):
    data = datasets.load(base.dataset, base.data_dir)
    labels, source = splits[0].examples["labels"][:, 0], data.source("test")
    batch = next(iter(pipeline.eval_batches(source, 32, len(source))))
    for name, row in (("default", "default"), ("no_mask", "no_mask/bits"), ("cam", "cam")):
        _, config = of(base, name, SEEDS[1])
        params, _ = checkpoint.load_params(config.workdir)
        logits, out = build(config.model, 1).apply({"params": params}, batch["image"], train=False)
        p = np.float64(jax.nn.sigmoid(logits[:, 0]))
        nll = -np.mean(np.where(labels == 1, np.log(p), np.log1p(-p)))
        own = {metric: score["by_seed"][1] for metric, score in rows[row]["scores"].items()}
        assert own["nll"] == pytest.approx(nll, rel=1e-4)
        assert own["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-6)
        if name != "cam":
            assert own["rate_z"] == pytest.approx(float(out["kl_z"].sum() / len(labels) * BITS), rel=1e-4)
            assert own["rate_m"] == pytest.approx(float(out["kl_m"].sum() / len(labels) * BITS), rel=1e-4)


def test_means_deviations_and_differences_follow_from_the_seeds(rows):
    for name, row in rows.items():
        for metric, score in row["scores"].items():
            values = np.array(score["by_seed"])
            assert score["mean"] == pytest.approx(values.mean(), abs=2e-6)
            if len(values) > 1:
                assert score["sd"] == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum()), abs=2e-6)
            if name != "default":
                found, ours = row["default_minus"][metric], np.array(rows["default"]["scores"][metric]["by_seed"])
                assert found["value"] == pytest.approx((ours - values).mean(), abs=3e-6)
                low, high = found["ci95"]
                assert low - 0.01 <= found["value"] <= high + 0.01
    for metric in table.MODEL_SCORES:  # the same classifier, seed by seed and patient by patient
        assert rows["default/bits"]["default_minus"][metric]["ci95"] == [0, 0]


def test_interval_is_the_hierarchical_bootstrap():
    """Against resampling by hand: seeds with replacement, and patients, the same for all seeds."""
    rng, seeds, patients = np.random.default_rng(8), 3, np.repeat(np.arange(20), 2)
    a = rng.normal(size=(seeds, 40)) + 0.3 * rng.normal(size=(seeds, 1)) + np.repeat(rng.normal(size=20), 2)
    b = a + rng.normal(size=(seeds, 40)) + np.array([[0.0], [0.6], [2.0]])
    weights = bootstrap.patient_weights(patients, 6000)
    pairs = [
        bootstrap.difference(*(bootstrap.estimate(bootstrap.average(x[s]), *weights) for x in (a, b)))
        for s in range(seeds)
    ]
    found = bootstrap.as_json(table.over_seeds(pairs))
    by_hand = []
    for _ in range(6000):
        images = np.concatenate([np.flatnonzero(patients == p) for p in rng.integers(0, 20, 20)])
        drawn = rng.integers(0, seeds, seeds)
        by_hand.append(np.mean([np.mean((a - b)[s, images]) for s in drawn]))
    assert found["value"] == pytest.approx((a - b).mean(), abs=1e-6)
    assert found["ci95"] == pytest.approx(np.percentile(by_hand, [2.5, 97.5]), abs=0.06)
    alone = np.ptp(np.percentile(np.mean([e.samples for e in pairs], axis=0), [2.5, 97.5]))
    assert np.ptp(found["ci95"]) > 1.5 * alone
    np.testing.assert_array_equal(table.over_seeds(pairs[:1]).samples, pairs[0].samples)


def test_seeds_are_drawn_apart_from_patients():
    """One stream of random numbers for both would tie the draws of seeds to those of patients."""
    weights, _ = bootstrap.patient_weights(np.arange(2), 4000)
    unit = [bootstrap.Estimate(0.0, np.full(4000, float(s)), 2) for s in range(2)]
    share = table.over_seeds(unit).samples
    assert abs(np.corrcoef(share, weights[:, 0])[0, 1]) < 0.05


def test_a_second_call_only_scores_and_writes_the_same_bytes(base, monkeypatch):
    before = written(base)
    stamps = {path: path.stat().st_mtime_ns for path in base.workdir.rglob("checkpoints/**/*")}
    for module, name in ((predictions, "train"), (experiment, "predict"), (predictions, "attribute")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    again(base)
    assert written(base) == before
    assert stamps == {path: path.stat().st_mtime_ns for path in base.workdir.rglob("checkpoints/**/*")}


def test_maps_without_shifts_are_asked_of_the_run_of_the_default(base, monkeypatch):
    before = written(base)
    monkeypatch.setattr(predictions, "train", lambda *_: pytest.fail("trained again"))
    data = datasets.load(base.dataset, base.data_dir)
    only = "no_shifts", "cam_no_shifts", "cam/hirescam"  # the last one asks with shifts again
    found = ablation.run(base, data, only, SEEDS, "test", "the command")["findings"]["opacity"]["rows"]
    assert set(only) <= {row["method"] for row in found} and not list(base.workdir.glob("*no_shifts"))
    for run, name in (("default", "infomask"), ("cam", "cam"), ("cam", "hirescam")):
        maps = base.workdir / run / "seed3" / "maps"
        asked = "test-hirescam" if name == "hirescam" else "test"
        assert np.load(maps / f"{asked}.npz")[name].shape[1] == 32
    for run, name in (("default", "infomask"), ("cam", "cam")):
        alone = f"test-{'cam_' * (run == 'cam')}no_shifts.npz"
        assert np.load(base.workdir / run / "seed3" / "maps" / alone)[name].shape[1] == 16
    assert Config.load(base.workdir / "default" / "seed3").map_shifts == 2
    again(base)
    assert written(base) == before


def test_an_unfinished_run_is_taken_up_and_ends_in_the_same_bytes(base, monkeypatch):
    before, trained = written(base), []
    shutil.rmtree(base.workdir / "no_mask" / "seed5" / "checkpoints")
    shutil.rmtree(base.workdir / "no_mask" / "seed5" / "maps")
    real = predictions.train
    monkeypatch.setattr(predictions, "train", lambda c, d: trained.append(c.workdir) or real(c, d))
    again(base)
    assert trained == [base.workdir / "no_mask" / "seed5"]
    assert written(base) == before


def test_processes_train_and_score_what_one_does(base, rows):
    """Of two processes; only the run that is gone is trained again, there on one device."""
    data, before = datasets.load(base.dataset, base.data_dir), written(base)
    shutil.rmtree(base.workdir / "no_mask" / "seed5")
    found = ablation.run(base, data, ONLY, SEEDS, "test", "the command", 2)["findings"]["opacity"]["rows"]
    assert [row["method"] for row in found] == list(rows)
    for row in found:
        if not row["method"].startswith("no_mask"):
            assert row == rows[row["method"]]
            continue
        for metric, score in row["scores"].items():
            assert score["by_seed"][0] == rows[row["method"]]["scores"][metric]["by_seed"][0]
            assert score["by_seed"][1] == pytest.approx(rows[row["method"]]["scores"][metric]["by_seed"][1], rel=0.02)
    assert "maps of vib" in (base.workdir / "logs" / "no_mask-seed5.log").read_text()
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, latent_channels=3))
    with pytest.raises(ValueError, match=r"(?s)belongs to another run.*model.latent_channels: 2 -> 3"):
        ablation.run(other, data, ONLY, SEEDS, "test", "the command", 2)
    shutil.rmtree(base.workdir / "no_mask" / "seed5")
    again(base)
    assert written(base) == before


def test_other_data_is_scored_by_the_runs_that_are_there(base, tmp_path, monkeypatch):
    """In this process and in others, by its own val, under any name; the table of their own data stays."""
    data, before = datasets.load(base.dataset, base.data_dir), written(base)
    for i in range(100):  # lungs alone
        film = render(1, i, PhantomConfig(prevalence=0.0))
        cv2.imwrite(str(tmp_path / f"{i}.png"), film["image"] * (film["lung"] > 0))
    fresh = datasets.prepare(Synthetic(backgrounds=tmp_path, data_dir=base.data_dir, size=48, train=0, workers=1))
    monkeypatch.setattr(predictions, "train", lambda *_: pytest.fail("trained again"))
    run = partial(ablation.run, base, data, ("cam/iba",), SEEDS, "test", "the command", scored=fresh)
    found = run()
    assert (found["dataset"], found["fingerprint"], found["trained_on"]) == (
        "implanted",
        fresh.fingerprint,
        data.fingerprint,
    )
    suffix = f"on-implanted-{fresh.fingerprint[:8]}"
    assert json.loads((base.workdir / suffix / "ablations.json").read_text()) == found and written(base) == before
    assert "other data" in (base.workdir / suffix / "ablations.md").read_text()
    by_name, splits = (
        {r["method"]: r for r in found["findings"]["opacity"]["rows"]},
        predictions.read_splits(fresh, "test", 32),
    )
    _, config = of(base, "default", SEEDS[1])
    params, _ = checkpoint.load_params(config.workdir)
    for row, variant, method, name in (("default", "default", "", "infomask"), ("cam/iba", "cam", "-iba", "iba")):
        for at, seed in enumerate(SEEDS):
            folder = base.workdir / variant / f"seed{seed}" / "maps"
            files = [folder / f"{split}{method}-{suffix}.npz" for split in ("test", "val")]
            assert_scored(by_name[row], at, files, name, splits)
    maps = experiment.predict(config, params, fresh.source("test"), 1)[1]["infomask"][..., 0]
    np.testing.assert_array_equal(np.load(config.workdir / "maps" / f"test-{suffix}.npz")["infomask"], maps)
    for kept in base.workdir.glob(f"*/seed*/maps/*-{suffix}.*"):
        kept.unlink()
    run(jobs=2)
    assert (config.workdir / "maps" / f"test-{suffix}.npz").exists()
    for row, again_row in zip(found["findings"]["opacity"]["rows"], run()["findings"]["opacity"]["rows"], strict=True):
        assert row["scores"]["pxap"]["mean"] == pytest.approx(again_row["scores"]["pxap"]["mean"], rel=1e-3)


def test_other_data_that_cannot_be_scored_is_refused(base, tmp_path):
    data = datasets.load(base.dataset, base.data_dir)
    run = partial(ablation.run, base, data, ONLY, SEEDS, "test", "the command")
    with pytest.raises(ValueError, match="expected other data than that of the training"):
        run(scored=data)
    negative = Synthetic(data_dir=tmp_path, size=32, train=0, val=0, test=2, prevalence=0.0, workers=1)
    fresh = datasets.prepare(negative)
    with pytest.raises(ValueError, match="expected boxes of a finding on images of test, found none"):
        run(scored=fresh)
    with pytest.raises(ValueError, match=r"findings of the training, opacity; .* is labelled with mass"):
        run(scored=dataclasses.replace(fresh, findings=("mass",)))
    with pytest.raises(ValueError, match="has no split 'fresh'"):
        ablation.run(base, data, ONLY, SEEDS, "fresh", "the command", scored=fresh)


def test_runs_in_lockstep_are_what_they_are_one_after_the_other(base, monkeypatch):
    """Stopped after one step all have saved; what has begun goes on alone, what has not trains in lockstep."""
    data, before = datasets.load(base.dataset, base.data_dir), written(base)
    run = partial(ablation.run, base, data, ONLY, SEEDS, "test", "the command")
    for name in ("default", "no_mask", "cam"):
        shutil.rmtree(base.workdir / name)
    with monkeypatch.context() as patched, pytest.raises(command.Stopped, match="before step 1 of 3: nothing to save"):
        patched.setattr(monitor.Stop, "requested", property(lambda stop: True))  # while it was compiling
        run(together=True)
    assert not list(base.workdir.glob("default/*/checkpoints"))
    with monkeypatch.context() as patched, pytest.raises(command.Stopped, match="step 1 of 3"):
        asked = iter([False, True])
        patched.setattr(monitor.Stop, "requested", property(lambda stop: next(asked)))
        run(together=True)
    for name in ("default", "no_mask", "cam"):
        assert [checkpoint.load_params(base.workdir / name / f"seed{seed}")[1] for seed in SEEDS] == [1, 1]
    for name in ("no_mask", "cam"):
        shutil.rmtree(base.workdir / name)
    alone, real = [], predictions.train
    monkeypatch.setattr(predictions, "train", lambda c, d: alone.append(c.workdir.parent.name) or real(c, d))
    run(together=True)
    assert written(base) == before and alone == ["default", "default"]
    logged = (base.workdir / "cam" / "seed3" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3]


def test_a_run_that_diverges_in_lockstep_costs_no_other(base, tmp_path):
    data, (_, config) = datasets.load(base.dataset, base.data_dir), of(base, "default", 0)
    configs = [dataclasses.replace(config, workdir=tmp_path / name) for name in "ab"]
    configs[0] = dataclasses.replace(configs[0], train=dataclasses.replace(config.train, learning_rate=1e38))
    with pytest.raises(FloatingPointError, match=r"(?s)a: step \d.*other runs have saved at step"):
        ablation.train_together(configs, data)
    assert checkpoint.load_params(configs[1].workdir)[1] > 0
    assert not list(configs[0].workdir.glob("checkpoints/*"))


def test_runs_in_lockstep_need_the_same_batches_and_one_process(base, tmp_path, monkeypatch):
    data, (_, config) = datasets.load(base.dataset, base.data_dir), of(base, "default", 0)
    configs = [dataclasses.replace(config, workdir=tmp_path / name) for name in "ab"]
    configs[1] = dataclasses.replace(configs[1], data=dataclasses.replace(config.data, batch_size=16))
    with pytest.raises(ValueError, match=r"b: runs that train together need the same data settings"):
        ablation.train_together(configs, data)
    assert not list(tmp_path.iterdir())
    configs[1] = dataclasses.replace(configs[0], machine=MachineConfig(log_every=2))
    with pytest.raises(ValueError, match=r"runs that train together need .*machine"):
        ablation.train_together(configs, data)
    with pytest.raises(ValueError, match=r"together.*found 2"):
        ablation.run(base, data, ONLY, SEEDS, "test", "the command", jobs=2, together=True)
    monkeypatch.setattr(ablation.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"made by one process.*found 2"):
        ablation.run(base, data, ONLY, SEEDS, "test", "the command")


def test_processes_are_not_started_beside_an_accelerator_or_in_no_number(base, monkeypatch):
    data = datasets.load(base.dataset, base.data_dir)
    with pytest.raises(ValueError, match=r"jobs: expected at least 1.*found 0"):
        ablation.run(base, data, ONLY, SEEDS, "test", "the command", 0)
    monkeypatch.setattr(ablation.parallel, "accelerated", lambda: True)
    with pytest.raises(ValueError, match=r"found 2\. JAX_PLATFORMS=cpu"):
        ablation.run(base, data, ONLY, SEEDS, "test", "the command", 2)


def test_what_ends_the_processes_leaves_none_and_starts_none(tmp_path):
    """SIGTERM to the command: its runs save, none is begun any more, status 75; the same command goes on."""
    datasets.prepare(Synthetic(data_dir=tmp_path / "data", size=64, train=16, val=8, test=8, workers=1))
    where = ["--data-dir", str(tmp_path / "data"), "--workdir", str(tmp_path / "w")]
    what = ["--base", "synthetic", "--only", "no_mask", "--seeds", "0", "1", "--steps", "100000", "--jobs", "2"]
    command = [sys.executable, script.__file__, *what, *where]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    rows, deadline = [tmp_path / "w" / v / "seed0" / "metrics.jsonl" for v in ("default", "no_mask")], time.time() + 240
    while not all(path.exists() for path in rows):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75 and "The same command continues" in process.stderr.read()
    for name in ("default", "no_mask"):
        assert checkpoint.load_params(tmp_path / "w" / name / "seed0")[1] > 0
        assert not (tmp_path / "w" / name / "seed1").exists()


def test_a_run_of_other_settings_is_refused_by_its_fields(base):
    other = dataclasses.replace(base, model=dataclasses.replace(base.model, latent_channels=3))
    with pytest.raises(ValueError, match=r"(?s)belongs to another run.*model.latent_channels: 2 -> 3"):
        again(other)


def test_what_is_kept_is_of_these_parameters_settings_and_bytes(base, splits, monkeypatch):
    data, (v, config) = datasets.load(base.dataset, base.data_dir), of(base, "default", SEEDS[0])
    params, _ = checkpoint.load_params(config.workdir)
    asked, real = [], experiment.predict
    monkeypatch.setattr(experiment, "predict", lambda *a: asked.append(1) or real(*a))

    def count(config=config, params=params, split=splits[0]) -> int:
        asked.clear()
        predictions.maps_of(v, config, params, data, split)
        return len(asked)

    assert count() == 0
    other = jax.tree.map(np.array, params)
    other["mask"]["bias"] = other["mask"]["bias"] + 1e-3
    assert count(params=other) == 1 and count() == 1 and count() == 0
    shifts = dataclasses.replace(config, map_shifts=1)
    assert count(config=shifts) == 1 and count() == 1
    other = splits[0]._replace(data=dataclasses.replace(data, fingerprint="other"))
    assert count(split=other) == 1 and count(split=other) == 0 and count() == 0  # beside each other
    path = config.workdir / "maps" / "test.npz"
    experiment.save_maps(path, splits[0].examples["image_id"], {"infomask": np.zeros((24, 32, 32), np.float16)})
    assert count() == 1 and count() == 0
    with np.load(path) as arrays:
        assert arrays["infomask"].shape == (24, 32, 32) and arrays["probability"].shape == (24, 1)
        assert list(arrays["image_id"]) == splits[0].examples["image_id"]


def test_attributions_explain_the_scored_images_of_cam(base, splits):
    data, scored = datasets.load(base.dataset, base.data_dir), splits[0].truths[0].scored
    _, config = of(base, "cam", SEEDS[0])
    params, _ = checkpoint.load_params(config.workdir)
    images = next(iter(pipeline.eval_batches(data.source("test"), 32, 24)))["image"][scored]
    for method in ("gradient", "gradcam"):
        with np.load(config.workdir / "maps" / f"test-{method}.npz") as arrays:
            found = arrays[method]
        assert found.shape == (24, 32, 32) and found.dtype == np.float16
        explain = attribution(method, config.model, 1)
        direct = explain({"params": params}, images, 0)
        if method == "gradcam":
            forward = lambda x, e=explain: {"m": e({"params": params}, x, 0)[..., None]}  # noqa: E731
            direct = shifted_heat_maps(forward, images, 2, 2)["m"][..., 0]
        largest = np.abs(direct).max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(found[scored], direct / np.where(largest, largest, 1), atol=2e-3)
        assert not np.delete(found, scored, axis=0).any()
    assert found[scored].any()


def test_iba_knows_the_training_images(base, splits):
    data, (_, config) = datasets.load(base.dataset, base.data_dir), of(base, "cam", SEEDS[0])
    params, _ = checkpoint.load_params(config.workdir)
    maps = predictions.attribute("iba", dataclasses.replace(config, map_shifts=1), params, data, splits[0])
    assert maps.shape == (24, 16, 16, 1) and np.abs(maps[splits[0].truths[0].scored]).max() == 1


def test_markdown_shows_what_the_json_holds(base, rows):
    lines = (base.workdir / "ablations.md").read_text().splitlines()
    assert lines[2] == "    the command"
    score = rows["no_mask/evidence"]["scores"]["pxap"]
    wanted = f"{drawing.number(score['mean'])} ± {drawing.number(score['sd'])}"
    shown = [line.split(" | ") for line in lines if line.startswith("| no_mask/evidence | ")]
    assert shown[0][1] == wanted
    found = rows["no_mask/evidence"]["default_minus"]["pxap"]
    low, high = (drawing.number(x, sign=True) for x in found["ci95"])
    text = f"{drawing.number(found['value'], sign=True)} [{low}, {high}]"
    assert shown[1][1] == (f"**{text}**" if found["ci95"][0] > 0 or found["ci95"][1] < 0 else text)
    assert shown[2][1] == " ".join(map(drawing.number, score["by_seed"]))
    command = drawing.command_line(
        "s.py", {"--base": "rsna", "--only": None, "--seeds": (0, 1), "--workdir": Path("a b")}
    )
    assert command == "python s.py --base rsna --seeds 0 1 --workdir 'a b'"


def test_figures_are_pictures(base):
    assert cv2.imread(str(base.workdir / "figures" / "forest.png")).shape[1] > 600
    assert not (base.workdir / "figures" / "rate_distortion.png").exists()
    score = {"mean": 1.0, "by_seed": [0.5, 1.5]}
    names = ("beta_x4", "default", "beta_x0.25")
    rows = [{"method": n, "scores": dict.fromkeys(("auroc", "nll", "rate_z", "rate_m"), score)} for n in names]
    strip = {name: np.eye(4, dtype=np.float16) for name in names}
    drawn = drawing.rate_distortion(rows, np.zeros((32, 32), np.float32), np.eye(32, dtype=bool), strip)
    assert cv2.imdecode(np.frombuffer(drawn, np.uint8), cv2.IMREAD_COLOR).shape[0] > 300
    for row in rows:  # as where all images have one label
        row["scores"] = {name: value for name, value in row["scores"].items() if name != "auroc"}
    assert drawing.rate_distortion(rows, np.zeros((32, 32), np.float32), np.eye(32, dtype=bool), strip) != drawn
    assert [drawing.factor(name) for name in names] == [4, 1, 0.25]


def test_script_lists_variants_and_takes_steps(capsys, monkeypatch, tmp_path):
    script.main(script.Ablations("rsna", only="masks, delay", list=True))
    out = capsys.readouterr().out
    assert "delay_0.5" in out and "loss.delay 0.5" in out and "skipped: the data has one finding" in out
    calls = []
    monkeypatch.setattr("infomask_jax.datasets.load", lambda name, folder: f"{name} in {folder}")
    monkeypatch.setattr("infomask_jax.ablation.run", lambda *a, **options: calls.append((*a, options)))
    script.main(script.Ablations("implanted", data_dir=tmp_path, workdir=Path("w"), only="beta", seeds=(2,), steps=9))
    base, data, *rest, command, options = calls[0]
    assert (base.dataset, base.train.steps, base.data_dir) == ("implanted", 9, tmp_path)
    assert (data, rest) == (f"implanted in {tmp_path}", [("beta",), (2,), "test"])
    assert options == {"jobs": 1, "together": False, "scored": None}
    assert command.endswith("--workdir w --only beta --seeds 2 --split test --steps 9")
    script.main(script.Ablations("implanted", together=True, scored_dir=Path("fresh")))
    assert calls[1][-1] == {"jobs": 1, "together": True, "scored": "implanted in fresh"}
    assert calls[1][-2].endswith("--split test --scored-dir fresh --together")
