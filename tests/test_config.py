"""Settings: few, explained, in range; config.json of other revisions."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from infomask_jax import config, presets
from infomask_jax.config import FREE, Config, leaves

BASE = Config(data_dir=Path("data"), workdir=Path("run"))


def stored(folder: Path, change) -> Path:
    """A run whose config.json is that of BASE, changed in place by a function of its values."""
    values = BASE.to_dict()
    change(values)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_settings_are_few_and_explained_in_a_line():
    source = inspect.getsource(config)
    names = [name for name, _, _ in leaves(BASE)]
    assert len(names) == len(set(names)) <= 52
    for name in names:
        field = name.split(".")[-1]
        (text,) = re.findall(rf"^    {field}: .*  # (.*)$", source, re.M) or re.findall(
            rf"^    # (.*)\n    {field}: ", source, re.M
        )
        assert 1 < len(text.split()) <= 12 and text.endswith("."), (name, text)


def test_every_number_has_a_range_that_its_default_lies_in():
    for name, field, value in leaves(BASE):
        if type(value) in (int, float) and name != "map_shifts" and name != "model.stride":
            lowest, highest = field.metadata["range"]
            assert lowest <= value <= highest, name


def test_a_config_is_read_as_it_was_written(tmp_path, capsys):
    for base in (BASE, presets.changed(BASE, presets.PAPER | {"machine.hosts": "a:1,2,0", "seed": 7})):
        (tmp_path / "config.json").write_text(json.dumps(base.to_dict()))
        expected = dataclasses.replace(base, data_dir=base.data_dir.absolute(), workdir=base.workdir.absolute())
        assert Config.load(tmp_path) == expected
    assert capsys.readouterr().err == ""


def test_a_run_older_than_a_field_has_the_value_of_before_and_tells_of_it_once(tmp_path, capsys):
    """As whoever adds a term finds his old runs: with a default of .5, and 0 for those that did not have it."""

    @dataclasses.dataclass(frozen=True)
    class Loss(config.LossConfig):
        smoothness: float = config.setting(0.5, 0, 1, before=0.0)

    @dataclasses.dataclass(frozen=True)
    class WithTerm(Config):
        loss: Loss = dataclasses.field(default_factory=Loss)

    run = stored(tmp_path, lambda values: values["machine"].pop("log_every"))
    Config.load(run), Config.load(run)
    assert capsys.readouterr().err == f"{run}/config.json is older than machine.log_every (so 20)\n"
    WithTerm.__annotations__["loss"] = Loss
    found = WithTerm.load(run)
    assert (found.loss.smoothness, found.machine.log_every, Loss().smoothness) == (0.0, 20, 0.5)
    assert "is older than loss.smoothness (so 0.0), machine.log_every (so 20)" in capsys.readouterr().err


def test_a_whole_group_may_be_younger_than_the_run(tmp_path, capsys, monkeypatch):
    """And a default may have changed: what counts is what a run did that knew nothing of the field."""
    known = config.ModelConfig.__dataclass_fields__["evidence_bound"]
    monkeypatch.setattr(known, "metadata", {**known.metadata, "before": 0.0})

    def older(values):
        del values["model"]["evidence_bound"], values["map_shifts"], values["machine"]

    run = stored(tmp_path, older)
    found, told = [Config.load(run) for _ in range(2)], capsys.readouterr().err
    own = dataclasses.replace(BASE, data_dir=BASE.data_dir.absolute(), workdir=BASE.workdir.absolute())
    assert found == [presets.changed(own, {"model.evidence_bound": 0.0})] * 2
    assert told.count("\n") == 1 and f"{run / 'config.json'} is older than map_shifts (so 4)" in told
    assert "model.evidence_bound (so 0.0)" in told and "machine.workers (so 0)" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v: v["model"].update(half_turn=True), "unknown model.half_turn"),
        (lambda v: v.update(hosts={}, parallel="jit"), "unknown hosts, parallel"),
        (lambda v: v["loss"].update(beta_z="much"), "loss.beta_z: expected float, found 'much'"),
        (lambda v: v["model"].update(mask_samples=True), "model.mask_samples: expected int, found True"),
        (
            lambda v: v["model"].update(kind="unet"),
            "model.kind: expected infomask or vib or plain or attention_mil, found 'unet'",
        ),
        (lambda v: v.update(model=[1]), r"model: expected an object, found \[1\]"),
        (lambda v: v.pop("workdir"), "workdir: expected Path, found None"),
        (lambda v: v.pop("data_dir"), "data_dir: expected Path, found None"),
        (lambda v: v["train"].update(steps=1), "train.steps: expected 2 to 1000000000, found 1"),
        (lambda v: v.update(sede=v.pop("seed")), "unknown sede"),
        (lambda v: v["model"].update(wdith=v["model"].pop("width")), "unknown model.wdith"),
        (lambda v: v.update(seed="0"), "seed: expected int, found '0'"),
        (lambda v: v.update(baseline=1), "baseline: expected bool, found 1"),
        (lambda v: v["model"].update(stride=4.0), "model.stride: expected .*, found 4.0"),
        (lambda v: v["loss"].update(delay=None), "loss.delay: expected float, found None"),
        (lambda v: v["loss"].update(delay=float("nan")), "loss.delay: expected 0 to 1, found nan"),
        (lambda v: v["data"].update(image_size=7), "data.image_size: expected 8 to 4096, found 7"),
    ],
)
def test_a_config_of_another_revision_is_refused_in_a_line(tmp_path, change, told):
    with pytest.raises(ValueError, match=rf"config.json is not a config of this version: (?s:.*){told}.*Use the revis"):
        Config.load(stored(tmp_path, change))


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run, it has no config.json: give the --workdir of a train"):
        Config.load(tmp_path)


def test_what_may_change_is_a_field():
    assert set(FREE) <= {field.name for field in dataclasses.fields(Config)}


def test_presets_change_what_they_name_and_nothing_else():
    def values(of: Any) -> dict:
        return {name: value for name, _, value in leaves(of)}

    for changes in (presets.PLAIN, presets.CAM, presets.PAPER):
        before, after = values(BASE), values(presets.changed(BASE, changes))
        assert {name for name in before if before[name] != after[name]} == set(changes)
    with pytest.raises(ValueError, match=r"loss\.beta_m: expected 0 to 1000000, found -1"):
        presets.changed(BASE, {"loss.beta_m": -1})
