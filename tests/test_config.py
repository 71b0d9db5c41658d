"""Settings: few, explained, in range; config.json of other revisions."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

from infomask_jax import config, presets
from infomask_jax.config import Config, leaves

BASE = Config(data_dir=Path("data"), workdir=Path("run"))


def stored(folder: Path, change) -> Path:
    """A run whose config.json is that of BASE, changed in place by a function of its values."""
    values = BASE.to_dict()
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_settings_are_few_explained_in_a_line_and_in_range():
    source, settings = inspect.getsource(config), [*leaves(BASE)]
    assert len({name for name, _, _ in settings}) == len(settings) <= 52
    for name, field, value in settings:
        own = name.split(".")[-1]
        before, behind = rf"^    # (.*)\n    {own}: ", rf"^    {own}: .*  # (.*)$"
        (text,) = re.findall(behind, source, re.M) or re.findall(before, source, re.M)
        assert 1 < len(text.split()) <= 12 and text.endswith("."), (name, text)
        if type(value) in (int, float) and name not in ("map_shifts", "model.stride"):
            lowest, highest = field.metadata["range"]
            assert lowest <= value <= highest, name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"machine.log_every": 0}, "machine.log_every: expected 1 to 1000000000, found 0"),
        ({"machine.accumulate": 3}, "machine.accumulate: expected a divisor of data.batch_size, 32, found 3"),
        ({"loss.beta_m": -1}, "loss.beta_m: expected 0 to 1000000, found -1"),
        ({"loss.beta_z": float("nan")}, "loss.beta_z: .* found nan"),
        ({"map_shifts": 4, "model.stride": 2}, "map_shifts: expected at most model.stride, 2, found 4"),
        ({"model.two_views": False}, "loss.hidden: expected 0 without model.two_views, found 0.5\n.*loss.consistency"),
        ({"model.kind": "attention_mil"}, "model.two_views: expected False for attention_mil, found True"),
        ({"loss.auxiliary": 0.0}, "loss.auxiliary: expected above 0 without model.teach_through_mask"),
        ({"model.stride": 32}, "model.stride: expected 2 to 16 for the small encoder, found 32"),
        ({"model.encoder": "resnet18"}, "model.stride: expected 8, 16 or 32 for resnet18, found 4"),
        ({"model.init": "imagenet"}, "model.init: expected nothing for the small encoder, found imagenet"),
        ({"model.top_down": True, "model.remat": True}, "model.top_down: .* found True\n.*model.remat: .* found True"),
        ({"model.frozen_stages": 1}, "model.frozen_stages: expected 0 without model.init, found 1"),
        ({"train.encoder_rate": 0.5}, "train.encoder_rate: expected 1 without model.init, found 0.5"),
        ({"train.head_first": 0.5}, "train.head_first: expected 0 without model.init, found 0.5"),
        ({"data.image_size": 63}, "data.image_size: expected a multiple of 4, as 60, found 63"),
        ({"fold": 2}, "fold: expected --folds as well, found 2"),
        ({"fold": 2, "folds": 2}, "fold: expected below folds, 2, found 2"),
    ],
    ids=str,
)
def test_settings_that_are_out_of_range_or_exclude_each_other_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        presets.changed(BASE, changes)


def test_what_another_setting_allows():
    for changes in (presets.ONE_VIEW, {"model.teach_through_mask": True, "loss.auxiliary": 0.0}, presets.PLAIN):
        presets.changed(BASE, changes)


def test_a_config_is_read_as_it_was_written(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"is not a run, it has no config.json: give the --workdir of a train"):
        Config.load(tmp_path)
    for base in (BASE, presets.changed(BASE, presets.PAPER | {"machine.hosts": "a:1,2,0", "seed": 7})):
        (tmp_path / "config.json").write_text(json.dumps(base.to_dict()))
        expected = dataclasses.replace(base, data_dir=base.data_dir.absolute(), workdir=base.workdir.absolute())
        assert Config.load(tmp_path) == expected
    assert capsys.readouterr().err == ""


def test_a_run_older_than_a_field_has_the_value_of_before_and_tells_of_it_once(tmp_path, capsys, monkeypatch):
    """As whoever adds a term or changes a default finds his old runs, and those that lack a whole group."""
    known = config.ModelConfig.__dataclass_fields__["evidence_bound"]
    monkeypatch.setattr(known, "metadata", {**known.metadata, "before": 0.0})

    def older(values):
        del values["model"]["evidence_bound"], values["map_shifts"], values["machine"]

    run = stored(tmp_path, older)
    found, told = [Config.load(run) for _ in range(2)], capsys.readouterr().err
    own = dataclasses.replace(BASE, data_dir=BASE.data_dir.absolute(), workdir=BASE.workdir.absolute())
    assert found == [presets.changed(own, {"model.evidence_bound": 0.0})] * 2
    assert told.count("\n") == 1 and f"{run / 'config.json'} is older than map_shifts (so 4)" in told
    assert "model.evidence_bound (so 0.0)" in told and "machine" not in told  # which says nothing of a run


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["model"].update(half_turn=True), "unknown model.half_turn"),
        (lambda v: v["loss"].update(beta_z="much"), "loss.beta_z: expected float, found 'much'"),
        (lambda v: v["model"].update(mask_samples=True), "model.mask_samples: expected int, found True"),
        (lambda v: v["model"].update(kind="unet"), "model.kind: expected infomask or vib .*, found 'unet'"),
        (lambda v: v.update(model=[1]), r"model: expected an object, found \[1\]"),
        (lambda v: v.pop("workdir"), "workdir: expected Path, found None"),
        (lambda v: v["model"].update(stride=4.0), "model.stride: expected .*, found 4.0"),
        (lambda v: v["loss"].update(delay=float("nan")), "loss.delay: expected 0 to 1, found nan"),
    ],
)
def test_a_config_of_another_revision_is_refused_in_a_line(tmp_path, change, told):
    with pytest.raises(ValueError, match=rf"config.json is not a config of this version: (?s:.*){told}.*Use the revis"):
        Config.load(stored(tmp_path, change))


def test_presets_change_what_they_name_and_nothing_else():
    for changes in (presets.PLAIN, presets.CAM, presets.PAPER):
        pairs = zip(leaves(BASE), leaves(presets.changed(BASE, changes)), strict=True)
        assert {name for (name, _, before), (_, _, after) in pairs if before != after} == set(changes)
