"""Ablations: what each variant changes, what is trained and asked once, and the table's numbers from their parts."""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import chex
import cv2
import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from infomask_jax import ablation, checkpoint, command, datasets, inference, monitor, pipeline, presets
from infomask_jax.ablation import predictions, table
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic
from infomask_jax.evaluate import bootstrap, controls, scoring
from infomask_jax.explain import attribution, shifted_heat_maps
from infomask_jax.localize import prepare_maps
from infomask_jax.losses import BITS
from infomask_jax.model import build
from infomask_jax.presets import changed
from infomask_jax.report import ablations as drawing
from infomask_jax.report.sheet import number
from infomask_jax.run import differences
from infomask_jax.train import train

sys.path.insert(0, str(Path(__file__).parent.parent / "experiments"))
import ablations as script

ONLY, SEEDS = ("no_mask", "cam/gradcam", "cam/gradient"), (3, 5)
RUNS = [f"{name}/seed{seed}" for seed in SEEDS for name in ("default", "no_mask", "cam")]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("ablations")
    found = Config(
        data_dir=folder / "data",
        workdir=folder / "all",
        map_shifts=2,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=4, stride=2, latent_channels=2, two_views=False),
        loss=LossConfig(delay=0.2, hidden=0.0, consistency=0.0),
        train=OptimizerConfig(steps=3),
        machine=MachineConfig(log_every=1, checkpoint_every=2),
    )
    datasets.prepare(Synthetic(data_dir=found.data_dir, size=32, train=16, val=16, test=24, workers=1))
    run(found)
    return found


@pytest.fixture(scope="module")
def rows(base) -> dict[str, dict]:
    found = json.loads((base.workdir / "ablations.json").read_text(), parse_constant=pytest.fail)
    return {row["method"]: row for row in found["findings"]["opacity"]["rows"]}


@pytest.fixture(scope="module")
def splits(base):
    return predictions.read_splits(loaded(base), "test", 32)


def loaded(base: Config):
    return datasets.load(base.dataset, base.data_dir)


def run(base: Config, only=ONLY, seeds=SEEDS, split="test", **options) -> dict:
    return ablation.run(base, loaded(base), only, seeds, split, "the command", **options)


def of(base: Config, name: str, seed: int) -> tuple[ablation.Variant, Config]:
    variant = next(v for v in ablation.variants(base, 1) if v.name == name)
    return variant, ablation.config_of(base, variant, seed)


def one_map(explain, variables, images) -> tuple[None, dict]:
    """A pass of `shifted_heat_maps` that gives the map of finding 0 of an attribution."""
    return None, {"m": explain(variables, images, 0)[..., None]}


def written(base: Config) -> dict[str, bytes]:
    names = ("ablations.json", "ablations.md", "figures/forest.png")
    return {name: (base.workdir / name).read_bytes() for name in names}


# --- variants


@pytest.mark.parametrize("name", ["synthetic", "findings", "rsna-cpu"])
def test_variants_differ_from_the_default_where_they_say(name):
    """In what they list and in nothing else; maps alone where they ask the run of another. No two train the same, and
    what cannot be built says why."""
    base = dataclasses.replace(script.BASES[name], workdir=Path("w"))
    every = ablation.variants(base, 2)
    found = {v.name: v for v in every}
    assert len(found) == len(every) and every[0].name == "default" and not every[0].changes
    default, trained = ablation.config_of(base, every[0], 7), {}
    assert default == dataclasses.replace(base, workdir=Path("w/default/seed7"), seed=7, baseline=False)
    if base.model.encoder != "small":
        assert "expected 8, 16 or 32" in found.pop("stride_4").skip
    for v in found.values():
        config = ablation.config_of(base, v, 7)
        assert config.workdir == Path("w") / (v.run or v.name) / "seed7" and config.dataset == base.dataset
        differing = {line.split(":")[0] for line in differences(default.to_dict(), config.to_dict())} - {"workdir"}
        assert differing == set(v.changes) - ({"map_shifts"} if v.run else set()), v.name
        first = trained.setdefault(dataclasses.replace(config, workdir=Path(), map_shifts=1), config.workdir)
        if v.twin:  # with one view the recipe and its rivals meet
            assert not base.model.two_views and first == Path("w") / v.twin / "seed7" and v.skip.endswith(v.twin)
            assert v.twin in {chosen.name for chosen in ablation.select(every, (v.name,))}
        else:
            assert first == config.workdir and not v.skip, v.name
    paper = presets.changed(base, presets.PAPER)
    assert ablation.config_of(base, found["paper"], 0).model == paper.model and paper.loss.auxiliary == 0
    betas = ablation.config_of(base, found["beta_x0.0625"], 0).loss
    assert (betas.beta_z, betas.beta_m) == pytest.approx((base.loss.beta_z / 16, base.loss.beta_m / 16), rel=1e-9)


def test_variants_are_chosen_by_name_and_group_and_some_are_skipped():
    base = script.BASES["synthetic"]
    every = ablation.variants(base, 1)
    for only, names in [
        (("delay", "sampler_sigmoid"), ["default", "sampler_sigmoid", "delay_0", "delay_0.5"]),
        (("cam/rise",), ["default", "cam", "cam/rise"]),
        ((), [v.name for v in every]),
    ]:
        assert [v.name for v in ablation.select(every, only)] == names
    with pytest.raises(ValueError, match=r"no_maks(.|\n)*terms: no_bottleneck, no_mask,"):
        ablation.select(every, ("no_mask", "no_maks"))
    linear = {"model.evidence_bound": 0.0, "model.mask_prior": 0.2, "model.mask_coupling": 0.0}
    for changes, name, words in [
        (linear, "mask_per_finding", "one finding"),
        (linear, "lse_mil", "the settings of plain"),
        ({"data.image_size": 60}, "stride_8", "60 px do not divide"),
        ({"loss.beta_m": 1e5}, "beta_x16", "loss.beta_m: expected"),
    ]:
        assert words in next(v.skip for v in ablation.variants(presets.changed(base, changes), 1) if v.name == name)


# --- the table


def test_table_holds_every_row_once_and_follows_from_the_seeds(rows):
    untrained = [f"control/{name}" for name in ("random", "center", "brightness", *controls.BOXES)]
    of_two = [f"{name}/{what}" for name in ("default", "no_mask") for what in ("bits", "evidence")]
    assert list(rows) == ["default", *of_two, "no_mask/probability", "cam", "cam/gradcam", "cam/gradient", *untrained]
    assert rows["default"]["default_minus"] == {} and "rate_z" not in rows["cam"]["scores"]
    for name, row in rows.items():
        assert name not in untrained or set(row["scores"]) == set(table.MAP_SCORES)
        for metric, score in row["scores"].items():
            values = np.array(score["by_seed"])
            assert len(values) == (1 if name in untrained else 2)
            assert score["mean"] == pytest.approx(values.mean(), abs=2e-6)
            assert (score["sd"] or 0) == pytest.approx(values.std(ddof=1) if len(values) > 1 else 0, abs=2e-6)
            if name != "default":
                found, ours = row["default_minus"][metric], np.array(rows["default"]["scores"][metric]["by_seed"])
                assert found["value"] == pytest.approx((ours - values).mean(), abs=3e-6)
                assert found["ci95"] is None and found["reason"] == "2 seeds: no interval"
    for metric in table.MODEL_SCORES:  # the same classifier, seed by seed and patient by patient
        assert rows["default/bits"]["default_minus"][metric]["value"] == 0


def assert_scored(row: dict, at: int, files: list[Path], name: str, splits) -> None:
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
    tried = np.linspace(0.01, 1, 100, dtype=np.float32)
    of_tried = [((val >= t) & known).sum((1, 2)) / np.maximum(((val >= t) | known).sum((1, 2)), 1) for t in tried]
    best = float(np.linspace(0.01, 1, 100)[np.argmax([each.mean() for each in of_tried])])
    assert row["threshold"][at] == pytest.approx(best, abs=1e-6)


def test_map_scores_are_those_of_the_maps_on_disk_and_of_evaluate(base, rows, splits):
    for row, folder, suffix, name in (
        ("default", "default", "", "infomask"),
        ("no_mask/evidence", "no_mask", "", "vib_evidence"),
        ("cam/gradient", "cam", "-gradient", "gradient"),
    ):
        for at, seed in enumerate(SEEDS):
            maps = base.workdir / folder / f"seed{seed}" / "maps"
            assert_scored(rows[row], at, [maps / f"{split}{suffix}.npz" for split in ("test", "val")], name, splits)
    folder = base.workdir / "no_mask" / f"seed{SEEDS[0]}" / "maps"
    maps = [{"bits": np.load(folder / f"{name}.npz")["vib_bits"]} for name in ("test", "val")]
    options = {"frame": 32, "val": splits[1].examples, "val_maps": maps[1], "resamples": 2, "protocols": ()}
    found, _ = scoring.score(["opacity"], splits[0].examples, maps[0], **options)
    for ours, theirs in (("no_mask/bits", "bits"), *((n, n) for n in rows if n.startswith("control/"))):
        for metric in table.MAP_SCORES:
            value = found["localization"]["opacity"][theirs][metric]["value"]
            assert rows[ours]["scores"][metric]["by_seed"][0] == pytest.approx(value, abs=2e-6), (ours, metric)


def test_model_scores_are_those_of_the_model(base, rows, splits):
    labels, source = splits[0].examples["labels"][:, 0], loaded(base).source("test")
    batch = next(iter(pipeline.eval_batches(source, 32, len(source))))
    for name, row in (("default", "default"), ("cam", "cam")):
        _, config = of(base, name, SEEDS[1])
        params, _ = checkpoint.load_params(config.workdir)
        apply = jax.jit(partial(build(config.model, 1).apply, train=False))
        logits, out = apply({"params": params}, batch["image"])
        p = np.float64(jax.nn.sigmoid(logits[:, 0]))
        own = {metric: score["by_seed"][1] for metric, score in rows[row]["scores"].items()}
        assert own["nll"] == pytest.approx(-np.mean(np.where(labels == 1, np.log(p), np.log1p(-p))), rel=1e-4)
        assert own["auroc"] == pytest.approx(roc_auc_score(labels, p), abs=1e-6)
        for rate, kl in (("rate_z", "kl_z"), ("rate_m", "kl_m")) if name != "cam" else ():
            assert own[rate] == pytest.approx(float(out[kl].sum() / len(labels) * BITS), rel=1e-4)


def test_interval_is_the_hierarchical_bootstrap():
    """Against resampling by hand: seeds with replacement, and patients, the same for all seeds, from other numbers."""
    rng, seeds, patients = np.random.default_rng(8), 3, np.repeat(np.arange(20), 2)
    a = rng.normal(size=(seeds, 40)) + 0.3 * rng.normal(size=(seeds, 1)) + np.repeat(rng.normal(size=20), 2)
    b = a + rng.normal(size=(seeds, 40)) + np.array([[0.0], [0.6], [2.0]])
    weights = bootstrap.patient_weights(patients, 6000)
    estimates = [[bootstrap.estimate(bootstrap.average(row), *weights) for row in x] for x in (a, b)]
    pairs = [bootstrap.difference(*pair) for pair in zip(*estimates, strict=True)]
    found, by_hand = bootstrap.as_json(table.over_seeds(pairs)), []
    for _ in range(6000):
        images = np.concatenate([[2 * p, 2 * p + 1] for p in rng.integers(0, 20, 20)])
        by_hand.append((a - b)[rng.integers(0, seeds, seeds)][:, images].mean())
    assert found["value"] == pytest.approx((a - b).mean(), abs=1e-6)
    assert found["ci95"] == pytest.approx(np.percentile(by_hand, [2.5, 97.5]), abs=0.06)
    np.testing.assert_array_equal(table.over_seeds(pairs[:1]).samples, pairs[0].samples)


def test_markdown_shows_what_the_json_holds_and_figures_are_pictures(base, rows):
    lines = (base.workdir / "ablations.md").read_text().splitlines()
    assert lines[2] == "    the command"
    row = rows["no_mask/evidence"]
    score, found = row["scores"]["pxap"], row["default_minus"]["pxap"]
    shown = [line.split(" | ") for line in lines if line.startswith("| no_mask/evidence | ")]
    assert shown[0][1] == f"{number(score['mean'])} ± {number(score['sd'])}"
    assert shown[1][1] == f"{number(found['value'], sign=True)} (2 seeds: no interval)"
    result = json.loads((base.workdir / "ablations.json").read_text())
    for low, high in ((0.01, 0.2), (-0.1, 0.2), (-0.2, -0.1)):
        copy = next(r for r in result["findings"]["opacity"]["rows"] if r["method"] == "no_mask/evidence")
        copy["default_minus"]["pxap"] |= {"ci95": [low, high]}
        told = [
            line.split(" | ")[1] for line in drawing.markdown(result).splitlines() if line.startswith("| no_mask/ev")
        ]
        value, *ends = (number(x, sign=True) for x in (found["value"], low, high))
        bold = "**" if low > 0 or high < 0 else ""
        assert told[1] == f"{bold}{value} [{', '.join(ends)}]{bold}"
    assert shown[2][1] == " ".join(map(number, score["by_seed"]))
    assert cv2.imread(str(base.workdir / "figures" / "forest.png")).shape[1] > 600
    score = {"mean": 1.0, "by_seed": [0.5, 1.5]}
    beta = [{"method": n, "scores": dict.fromkeys(("nll", "rate_z", "rate_m"), score)} for n in ("beta_x4", "default")]
    maps = {row["method"]: np.eye(4, dtype=np.float16) for row in beta}
    assert drawing.rate_distortion(beta, np.zeros((32, 32), np.float32), np.eye(32, dtype=bool), maps)


# --- what is trained and asked once


def test_a_second_call_only_scores_and_a_damaged_run_goes_on(base, monkeypatch):
    """To the same bytes. Runs in lockstep, if they are asked for, come first, and all at once. Maps without shifts are
    asked of the run of the default, and kept beside its others."""
    before, asked, trained, real = written(base), [], [], predictions.train
    with monkeypatch.context() as patched:
        for module, name in ((predictions, "train"), (inference, "predict"), (predictions, "attribute")):
            patched.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
        patched.setattr(ablation, "train_together", lambda configs, data: asked.extend(configs))
        run(base, together=True)
    assert [f"{config.workdir.parent.name}/seed{config.seed}" for config in asked] == RUNS
    assert written(base) == before
    monkeypatch.setattr(predictions, "train", lambda c, d: trained.append(c.workdir) or real(c, d))
    found = run(base, ("no_shifts",))["findings"]["opacity"]["rows"]
    assert "no_shifts" in {row["method"] for row in found} and not (base.workdir / "no_shifts").exists()
    for name, side in (("test", 32), ("test-no_shifts", 16)):
        assert np.load(base.workdir / f"default/seed3/maps/{name}.npz")["infomask"].shape == (24, side, side)
    folder = base.workdir / "no_mask" / "seed5"
    (path,) = (folder / "checkpoints" / "3" / "state" / "d").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    run(base)
    assert trained == [folder] and (folder / "broken-3").exists() and written(base) == before


def test_what_is_kept_is_of_these_parameters_settings_and_bytes(base, splits, monkeypatch):
    data, (v, config) = loaded(base), of(base, "default", SEEDS[0])
    config = dataclasses.replace(config, workdir=base.data_dir.parent / "kept")
    params, asked, maps = {"w": np.ones(3)}, [], np.random.default_rng(0).random((24, 4, 4, 1)).astype(np.float16)
    real = inference.Predicted(np.ones((24, 1), np.float32), {"infomask": maps}, np.full((24, 2), np.nan))
    monkeypatch.setattr(inference, "predict", lambda *a: asked.append(1) or real)

    def count(config=config, params=params, split=splits[0]) -> int:
        asked.clear()
        for wanted, found in zip(real, predictions.predicted(v, config, params, data, split), strict=True):
            chex.assert_trees_all_equal(found, wanted)
        return len(asked)

    assert count() == 1 and count() == 0
    assert count(params={"w": np.full(3, 2.0)}) == 1 and count() == 1
    assert count(config=dataclasses.replace(config, map_shifts=1)) == 1 and count() == 1
    other = splits[0]._replace(data=dataclasses.replace(data, fingerprint="other"))
    assert count(split=other) == 1 and count(split=other) == 0 and count() == 0  # beside each other
    path = config.workdir / "maps" / "test.npz"
    inference.save_maps(path, splits[0].examples["image_id"], {"infomask": maps[:, :2]})
    assert count() == 1 and count() == 0
    stored = path.with_suffix(".json")
    stored.write_text(stored.read_text().replace("null", "0.5", 1))
    assert count() == 1 and count() == 0


def test_attributions_explain_the_scored_images_of_cam(base, splits, monkeypatch):
    data, scored, (_, config) = loaded(base), splits[0].truths[0].scored, of(base, "cam", SEEDS[0])
    variables = {"params": checkpoint.load_params(config.workdir)[0]}
    images = next(iter(pipeline.eval_batches(data.source("test"), 32, 24)))["image"][scored]
    for method in ("gradient", "gradcam"):
        found = np.load(config.workdir / "maps" / f"test-{method}.npz")[method]
        assert found.shape == (24, 32, 32) and found.dtype == np.float16
        explain = attribution(method, config.model, 1)
        direct = explain(variables, images, 0)
        if method == "gradcam":
            direct = shifted_heat_maps(partial(one_map, explain, variables), images, 2, 2)[1]["m"][..., 0]
        largest = np.abs(direct).max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(found[scored], direct / np.where(largest, largest, 1), atol=2e-3)
        assert found[scored].any() and not np.delete(found, scored, axis=0).any()
    seen = []  # by IBA: the training images
    monkeypatch.setattr(predictions, "feature_statistics", lambda *a: seen.extend(a[-1]) or {})
    monkeypatch.setattr(predictions, "attribution", lambda *a: lambda v, x, k: x[:, ::2, ::2, 0])
    maps = predictions.attribute("iba", config, variables["params"], data, splits[0])
    assert sum(map(len, seen)) == 16 and np.abs(maps[scored]).max() == 1


def test_other_data_is_scored_by_the_runs_that_are_there(base, tmp_path, monkeypatch):
    """By its own val; the table of their own data stays."""
    before = written(base)
    fresh = datasets.prepare(Synthetic(data_dir=tmp_path, size=48, train=0, val=12, test=12, seed=9, workers=1))
    monkeypatch.setattr(predictions, "train", lambda *_: pytest.fail("trained again"))
    found, data = run(base, ("default",), scored=fresh), loaded(base)
    assert (found["fingerprint"], found["trained_on"]) == (fresh.fingerprint, data.fingerprint)
    folder = base.workdir / f"on-synthetic-{fresh.fingerprint[:8]}"
    assert json.loads((folder / "ablations.json").read_text()) == found and written(base) == before
    files = [base.workdir / "default/seed3/maps" / f"{split}-{folder.name}.npz" for split in ("test", "val")]
    row = found["findings"]["opacity"]["rows"][0]
    assert_scored(row, 0, files, "infomask", predictions.read_splits(fresh, "test", 32))


def test_what_cannot_be_scored_is_refused(base, tmp_path):
    data, before = loaded(base), written(base)
    healthy = Synthetic(data_dir=tmp_path, size=32, train=0, val=0, test=2, prevalence=0.0, workers=1)
    fresh = datasets.prepare(healthy)
    for options, told in (
        ({"base": presets.changed(base, {"model.kind": "vib"})}, "infomask, .* vib"),
        (
            {"base": presets.changed(base, {"model.latent_channels": 3})},
            r"(?s)another run.*model.latent_channels: 2 -> 3",
        ),
        ({"scored": data}, "expected other data"),
        ({"scored": fresh}, "expected boxes of a finding on images of test"),
        ({"scored": dataclasses.replace(fresh, findings=("mass",))}, "opacity; .* is labelled with mass"),
        ({"split": "fresh"}, "has no split 'fresh'"),
        ({"seeds": (3, 3)}, "different numbers"),
    ):
        with pytest.raises(ValueError, match=told):
            run(**{"base": base} | options)
    assert written(base) == before


# --- in lockstep


def test_runs_in_lockstep_are_what_they_are_one_after_the_other(base, tmp_path, monkeypatch):
    """Stopped after one step all are saved and go on alone; what has begun is left alone."""
    configs = [of(base, *run)[1] for run in (("default", 3), ("default", 5), ("cam", 3))]
    expected = [checkpoint.load_params(config.workdir)[0] for config in configs]
    others = [dataclasses.replace(config, workdir=tmp_path / str(i)) for i, config in enumerate(configs)]
    with monkeypatch.context() as patched, pytest.raises(command.Stopped, match="step 1 of 3"):
        patched.setattr(monitor.Stop, "requested", True)
        ablation.train_together(others[:1], loaded(base))
    ablation.train_together(others, loaded(base))
    assert checkpoint.load_params(tmp_path / "0")[1] == 1
    chex.assert_trees_all_equal([predictions.trained(config, loaded(base)) for config in others], expected)
    logged = (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [1, 2, 3]


def test_positives_weigh_in_lockstep_what_they_weigh_alone(base, tmp_path):
    _, config = of(base, "default", 3)
    weighed = changed(config, {"loss.positive_weight": "auto", "machine.validations": 0})
    for name, train_all in (("a", ablation.train_together), ("b", lambda configs, data: train(*configs, data))):
        train_all([dataclasses.replace(weighed, workdir=tmp_path / name)], loaded(base))
    chex.assert_trees_all_equal(*(checkpoint.load_params(tmp_path / name)[0] for name in "ab"))


def test_a_run_that_diverges_in_lockstep_costs_no_other(base, tmp_path):
    _, config = of(base, "default", 0)
    configs = [dataclasses.replace(config, workdir=tmp_path / name) for name in "ab"]
    configs[0] = dataclasses.replace(configs[0], train=dataclasses.replace(config.train, learning_rate=1e38))
    with pytest.raises(FloatingPointError, match=r"(?s)a: step \d.*other runs have saved at step"):
        ablation.train_together(configs, loaded(base))
    assert checkpoint.load_params(configs[1].workdir)[1] > 0 and not list(configs[0].workdir.glob("checkpoints/*"))


def test_script_lists_variants_and_takes_steps(capsys, monkeypatch, tmp_path):
    script.main(script.Ablations("rsna", only=("masks", "delay"), list=True))
    out = capsys.readouterr().out
    assert "delay_0.5" in out and "loss.delay 0.5" in out and "skipped: the data has one finding" in out
    calls = []
    monkeypatch.setattr("infomask_jax.datasets.load", lambda name, folder: f"{name} in {folder}")
    monkeypatch.setattr("infomask_jax.ablation.run", lambda *a: calls.append(a))
    options = {"only": ("beta,delay", "masks"), "seeds": (2,), "steps": 9, "together": True}
    options |= {"scored_dir": Path("fresh"), "vary": (("loss.beta-m", "0", "1e-2"),)}
    script.main(script.Ablations("implanted", data_dir=tmp_path, workdir=Path("a b"), **options))
    ((base, *rest, told, together, scored, vary),) = calls
    assert (base.dataset, base.train.steps, base.data_dir) == ("implanted", 9, tmp_path)
    assert (*rest, together, scored, vary) == (
        *(f"implanted in {tmp_path}", ("beta", "delay", "masks"), (2,), "test"),
        *(True, "implanted in fresh", options["vary"]),
    )
    asked = "--seeds 2 --split test --scored-dir fresh --steps 9 --together --vary loss.beta-m 0 1e-2"
    assert told.endswith(f"--workdir 'a b' --only beta delay masks {asked}")
    with pytest.raises(
        ValueError, match=r"--base: expected one of synthetic, .* or the folder of a run, found nowhere"
    ):
        script.main(script.Ablations("nowhere", list=True))


def test_any_setting_can_be_varied_and_what_cannot_is_told(base):
    given = (("loss.beta-m", "0", "1e-2", "0.0"), ("model.close-empty", "false"), ("loss.positive-weight", "auto"))
    found = {v.name: v.changes for v in ablation.varied(base, given)}
    assert found == {
        "loss.beta_m=0.0": {"loss.beta_m": 0.0},
        "loss.beta_m=0.01": {"loss.beta_m": 0.01},
        "model.close_empty=False": {"model.close_empty": False},
        "loss.positive_weight=auto": {"loss.positive_weight": "auto"},
    }
    assert not ablation.varied(base, (("data.batch-size", str(base.data.batch_size)),))  # that is `default`
    for asked, words in {
        ("loss.beta-n", "1"): r"did you mean loss.beta_",
        ("loss.beta-m",): "expected values after it",
        ("loss.beta-m", "-1"): "loss.beta_m: expected 0 to 1000000, found -1",
        ("loss.beta-m", "much"): "loss.beta_m: expected float, found 'much'",
        ("model.sampler", "none"): "model.sampler: expected concrete or",
        ("model.mask-samples", "2.5"): "model.mask_samples: expected int, found 2.5",
        ("seed", "3"): "expected a setting",
    }.items():
        with pytest.raises(ValueError, match=words):
            ablation.varied(base, (asked,))
