"""The validation split during a training: its scores, the best step as a run of its own, what watchers are shown."""

import dataclasses
import json
import struct
import sys
import tracemalloc
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score
from tensorboardX.proto.event_pb2 import Event

from infomask_jax import checkpoint, datasets, pipeline, validation, watch
from infomask_jax.config import Config, LossConfig
from infomask_jax.inference import predict, predicted_batches
from infomask_jax.losses import nll, positive_weights
from infomask_jax.presets import changed
from infomask_jax.run import BEST, Run
from infomask_jax.system import write_json
from infomask_jax.train import train, training_labels
from infomask_jax.validation import Best, Validation


def rows(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run) -> list[Event]:
    """Of all event files of a run, in the order of their writing; a record is a length, its sum, the event, its sum."""
    found = []
    for path in sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_scores_are_those_of_the_split_and_the_least_nll_is_kept_as_a_run(trained):
    data, run = datasets.load("synthetic", trained.parent / "data"), Run.open(trained)
    logged = [row for row in rows(trained) if "val_nll" in row]
    assert [row["step"] for row in logged] == [2, 4, 6]
    labels = Validation(run.config, data).labels[:, 0]
    at, best = dict(zip((2, 4, 6), logged, strict=True)), Run.open(trained / BEST)
    least = min(at, key=lambda step: at[step]["val_nll"])
    assert max(int(path.name) for path in (trained / BEST / "checkpoints").glob("[0-9]*")) == least
    assert best.steps == f"{least} of 6 (least NLL on validation)" or least == 6
    for step, params in ((6, run.params), (least, best.params)):
        logits = predict(changed(run.config, {"map_shifts": 1}), params, data.source("val", pipeline.FIELDS), 1).logits
        p = 1 / (1 + np.exp(-logits[:, 0].astype(float)))
        assert at[step]["val_auroc"] == pytest.approx(roc_auc_score(labels, p))
        assert at[step]["val_nll"] == pytest.approx(log_loss(labels, p), rel=1e-5)


def test_event_files_hold_what_metrics_holds_and_a_picture(trained):
    told = {(event.step, value.tag): value for event in events(trained) for value in event.summary.value}
    for row in rows(trained):
        for name in ("loss", "rate_z", "mask_mean", "val_auroc"):
            assert told[row["step"], name].simple_value == pytest.approx(row[name], rel=1e-6)
    assert {tag for _, tag in told if tag == "validation"} and told[6, "validation"].image.width > 0


def test_best_forgets_what_a_resumed_run_will_do_again(trained_copy):
    kept = sorted(int(path.name) for path in (trained_copy / BEST / "checkpoints").glob("[0-9]*"))
    rows = [{"step": 1, "val_nll": 0.0}, {"step": kept[-2], "val_nll": 0.1}]  # that of step 1 is kept no more
    with Best(trained_copy, None, rows, kept[-1] - 1) as best:
        assert best.least == 0.1 and best.checkpoints.all_steps() == kept[:-1]
        best.keep(kept[-1], {"val_nll": 0.2}, None, None)  # no better: nothing is saved
    with Best(trained_copy, None, rows[:1], 1) as best:
        assert best.least == np.inf and not best.checkpoints.all_steps()


def test_the_best_step_is_on_the_disk_before_a_checkpoint_after_it(trained, tmp_path, monkeypatch):
    """A kill between the two would leave a log whose best step is nowhere."""
    config, order = Run.open(trained).config, []
    save, wait = checkpoint.save, checkpoint.wait

    def saved(checkpoints, step, *state):
        order.append(("saved", checkpoints.directory.parent.name, step))
        save(checkpoints, step, *state)

    def waited(checkpoints):
        wait(checkpoints)
        order.append(("waited", checkpoints.directory.parent.name, None))

    monkeypatch.setattr(checkpoint, "save", saved)
    monkeypatch.setattr(checkpoint, "wait", waited)
    machine = dataclasses.replace(config.machine, checkpoint_every=2)
    data = datasets.load("synthetic", trained.parent / "data")
    train(dataclasses.replace(config, workdir=tmp_path / "run", machine=machine), data)
    for i, (what, folder, _) in enumerate(order):
        if (what, folder) == ("saved", BEST):
            assert ("waited", BEST) in (told := [each[:2] for each in order[i:]])
            assert told.index(("waited", BEST)) < told.index(("saved", "run"))
    assert order.count(("saved", BEST, 2)) == 1 and [step for what, folder, step in order if folder == "run" and step]


def test_maps_of_val_are_kept_of_the_films_that_are_pictured_alone(trained, monkeypatch):
    data, run = datasets.load("synthetic", trained.parent / "data"), Run.open(trained)
    whole = Validation(run.config, data)
    expected = whole.scores(run.params)

    def larger(*arguments, **options):
        for found in predicted_batches(*arguments, **options):
            yield found._replace(maps={m: np.repeat(a, 500, axis=1) for m, a in found.maps.items()})

    monkeypatch.setattr(validation, "predicted_batches", larger)
    tracemalloc.start()
    found = Validation(run.config, data)
    assert found.scores(run.params) == expected
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    films = sum(array.nbytes for maps in found.maps for array in maps.values())
    assert len(found.maps) == 4 and held < 1.5 * films


def test_of_a_large_val_some_films_are_scored_from_its_first_to_its_last(trained, monkeypatch):
    data, run = datasets.load("synthetic", trained.parent / "data"), Run.open(trained)
    monkeypatch.setattr(validation, "FILMS", 5)
    some, source = Validation(run.config, data), data.source("val")
    assert len(some.source) == 5 and some.source[4]["image"] == source[15]["image"]
    assert some.labels[[0, 4]].tolist() == [source[i]["labels"].tolist() for i in (0, 15)]
    assert set(some.scores(run.params)) == {"val_auroc", "val_nll"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its file stays open
@pytest.mark.parametrize("fails", ["__init__", "tell", "show", "close"])
def test_a_watcher_that_fails_ends_no_training_and_no_other(trained, tmp_path, monkeypatch, capsys, fails):
    def fail(*_, **__):
        raise RuntimeError("no\nnetwork")

    wandb = ModuleType("wandb")
    wandb.__spec__, wandb.Image, told = ModuleSpec("wandb", None), lambda picture: picture, []
    wandb.init = lambda **about: SimpleNamespace(log=lambda *_, **__: told.append("told"), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setattr(watch.TensorBoard, fails, fail)
    with watch.Watchers(dataclasses.replace(Run.open(trained).config, workdir=tmp_path), 0) as watchers:
        for step in range(40):
            watchers.tell({"step": step, "loss": 0.1, "losses": []})
            watchers.show(step, np.zeros((8, 8, 3), np.uint8))
        assert watchers.any
    assert (
        len(told) == 80
        and capsys.readouterr().err.count("TensorBoard fails, and the training goes on without: no") == 1
    )


def test_a_stopped_run_scores_on_as_if_it_had_not_stopped(trained, tmp_path):
    data, config = datasets.load("synthetic", trained.parent / "data"), Run.open(trained).config
    every = dataclasses.replace(config.machine, checkpoint_every=2)
    config = dataclasses.replace(config, workdir=tmp_path / "run", machine=every)
    train(config, data)
    whole = [{k: v for k, v in row.items() if k.startswith("val")} for row in rows(tmp_path / "run")]
    (tmp_path / "run/checkpoints/6").rename(tmp_path / "away")
    train(config, data)
    assert [{k: v for k, v in row.items() if k.startswith("val")} for row in rows(tmp_path / "run")] == whole
    assert whole[-1]["val_nll"] == rows(trained)[-1]["val_nll"]  # whatever is saved meanwhile


def test_auto_weighs_positives_by_their_rarity(tmp_path):
    labels = np.array([[1, 0], [0, 0], [0, -1], [0, 0], [-1, 0]] + [[0, 0]] * 300 + [[0, 1]])
    assert positive_weights(LossConfig(), labels) is None
    weights = positive_weights(LossConfig(positive_weight="auto"), labels)
    np.testing.assert_array_equal(weights, [100, 100])
    np.testing.assert_array_equal(positive_weights(LossConfig(positive_weight="auto"), labels[:5]), [3, 4])
    logits, known = np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)
    found = nll(logits, np.array([[1, 0], [0, 1]], np.float32), known, np.array([3, 5], np.float32))
    np.testing.assert_allclose(found, np.log(2) * np.array([3 + 1, 1 + 5]), rtol=1e-6)
    config = Config(tmp_path, tmp_path, loss=LossConfig(positive_weight="auto"))
    write_json(tmp_path / "config.json", config.to_dict())
    assert Config.load(tmp_path).loss.positive_weight == "auto"
    changed_by = config.to_dict() | {"loss": config.to_dict()["loss"] | {"positive_weight": "much"}}
    write_json(tmp_path / "config.json", changed_by)
    with pytest.raises(ValueError, match=r"loss.positive_weight: expected .*auto"):
        Config.load(tmp_path)


def test_labels_that_teach_nothing_are_refused_before_anything_is_written(trained, tmp_path):
    data = datasets.load("synthetic", trained.parent / "data")
    one = dataclasses.replace(data)
    object.__setattr__(one, "source", lambda split, fields=None: [{"labels": np.array([0])}] * 3)
    with pytest.raises(ValueError, match=r"expected a finding that some films of train have .* opacity 0 and 3"):
        training_labels(one)
    with pytest.raises(ValueError, match="nothing can be learned"):
        train(dataclasses.replace(Run.open(trained).config, workdir=tmp_path / "run"), one)
    assert not (tmp_path / "run").exists()
