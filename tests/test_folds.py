"""Folds: every patient is scored once, by a model that has not seen one of their films."""

import dataclasses
import json

import numpy as np
import pytest

from infomask_jax import datasets, experiment, verbs
from infomask_jax.config import Config, DataConfig, MachineConfig, ModelConfig, OptimizerConfig
from infomask_jax.datasets import Synthetic, fold, load, prepare
from infomask_jax.run import Run


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("folds")
    prepare(Synthetic(size=32, data_dir=root, train=16, val=4, test=4, workers=1))
    return root


class Several:
    """Three films a patient, which lie in different splits."""

    def __init__(self, split, fields=None):
        self.films = {"train": range(0, 20), "val": range(20, 25), "test": range(25, 33)}[split]

    def __len__(self):
        return len(self.films)

    def __getitem__(self, i):
        return {"image_id": str(self.films[i]), "patient_id": f"p{(self.films[i] * 2) % 11}"}


@pytest.mark.parametrize("folds", [2, 7])
@pytest.mark.parametrize("several", [False, True])
def test_folds_part_the_patients_of_all_splits(data_dir, folds, several):
    data, films, patients = load("synthetic", data_dir), 24, 24
    if several:
        data, films, patients = dataclasses.replace(data, splits={"train": 20, "val": 5, "test": 8}), 33, 11
        object.__setattr__(data, "source", Several)
    tested, whole = [], fold(data, folds, -1)
    for k in range(folds):
        part = fold(data, folds, k)
        assert sorted(part.splits) == ["test", "train"] and sum(part.splits.values()) == films
        own = {split: [part.source(split)[i] for i in range(len(part.source(split)))] for split in part.splits}
        seen = {split: {film["patient_id"] for film in those} for split, those in own.items()}
        assert not seen["train"] & seen["test"] and abs(len(seen["test"]) - patients / folds) < 1
        tested += [film["image_id"] for film in own["test"]]
    assert len(set(tested)) == films
    assert [whole.source("test")[i]["image_id"] for i in range(films)] == tested
    fingerprints = {fold(data, folds, k).fingerprint for k in range(-1, folds)}
    assert len(fingerprints) == folds + 1 and data.fingerprint not in fingerprints


def test_folds_splits_and_places_that_are_not_there_are_refused(data_dir):
    data = load("synthetic", data_dir)
    with pytest.raises(ValueError, match="folds: expected at most 24, as many as there are patients, found 25"):
        fold(data, 25, 0)
    with pytest.raises(IndexError):
        fold(data, 2, 0).source("test")[24]
    with pytest.raises(ValueError, match="expected one of train, test; found split 'val'"):
        fold(data, 2, 0).source("val")
    for folds, k in ((1, 0), (3, 3)):
        with pytest.raises(ValueError, match="fold: expected"):
            Config(data_dir=data_dir, workdir=data_dir, folds=folds, fold=k)


def test_all_folds_are_trained_and_scored_together(data_dir, tmp_path):
    config = Config(
        data_dir=data_dir,
        workdir=tmp_path / "run",
        folds=2,
        baseline=False,
        map_shifts=1,
        data=DataConfig(image_size=32, batch_size=8),
        model=ModelConfig(width=4, latent_channels=4),
        train=OptimizerConfig(steps=2),
        machine=MachineConfig(log_every=1),
    )
    experiment.run(config)
    scores = json.loads((tmp_path / "run/eval/test.json").read_text())
    assert scores["n_images"] == 24
    maps = np.load(tmp_path / "run/maps/test.npz")
    for k in range(2):  # what each says of its own, in their order
        run = tmp_path / f"run/fold-{k}"
        own = datasets.of_run(Config.load(run))
        experiment.evaluate_run(run, own, "test")
        part = np.load(run / "maps/test.npz")
        at = [list(maps["image_id"]).index(name) for name in part["image_id"]]
        np.testing.assert_array_equal(maps["infomask"][at], part["infomask"])
    before = (tmp_path / "run/eval/test.json").read_bytes()
    experiment.evaluate_run(tmp_path / "run", datasets.of_run(Config.load(tmp_path / "run")), "test")
    assert (tmp_path / "run/eval/test.json").read_bytes() == before
    with pytest.raises(ValueError, match="a folder of 2 runs: on other data score one"):
        experiment.evaluate_run(tmp_path / "run", load("synthetic", data_dir), "test")
    with pytest.raises(FileNotFoundError, match="is a folder of runs, one a fold: give one of them"):
        assert Run.open(tmp_path / "run").params
    run = tmp_path / "run/fold-1"
    own = verbs.open_data(verbs.Evaluate(run=run, dataset="synthetic", data_dir=data_dir))
    assert own.fingerprint == datasets.of_run(Config.load(run)).fingerprint  # not whole: it was trained on part of it
