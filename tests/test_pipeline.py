"""Batches: contract, determinism over workers and restarts, padding, augmentation."""

import dataclasses
import json
from functools import partial

import chex
import cv2
import grain
import jax
import numpy as np
import pytest

from infomask_jax import parallel, pipeline
from infomask_jax.config import DataConfig

CONFIG = DataConfig(image_size=16, batch_size=8)


def first(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def test_batch_contract(examples):
    (batch,) = first(pipeline.train_batches(examples, CONFIG, seed=0), 1)
    chex.assert_shape(batch["image"], (8, 16, 16, 1))
    chex.assert_shape([batch["labels"], batch["label_mask"]], (8, 1))
    chex.assert_shape([batch["valid"], batch["index"]], (8,))
    chex.assert_type([batch[k] for k in ("image", "labels", "label_mask", "valid")], np.float32)
    chex.assert_type(batch["index"], np.int32)


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_count_does_not_change_the_batches(examples, workers):
    parallel = dataclasses.replace(CONFIG, workers=workers)
    for alone, shared in zip(
        first(pipeline.train_batches(examples, CONFIG, seed=3), 6),
        first(pipeline.train_batches(examples, parallel, seed=3), 6),
        strict=True,
    ):
        chex.assert_trees_all_equal(alone, shared)


def test_same_seed_same_stream_other_seed_other_stream(examples):
    a, b, c = (first(pipeline.train_batches(examples, CONFIG, seed=s), 3) for s in (1, 1, 2))
    chex.assert_trees_all_equal(a, b)
    assert any((x["index"] != y["index"]).any() for x, y in zip(a, c, strict=True))


def test_epochs_are_whole_and_differ(examples):
    epochs = len(examples) // 8
    index = np.concatenate([b["index"] for b in first(pipeline.train_batches(examples, CONFIG, seed=0), 2 * epochs)])
    assert sorted(index[:64]) == sorted(index[64:]) == list(range(64))
    assert (index[:64] != index[64:]).any()


def test_iterator_state_restores_the_stream(examples):
    iterator = iter(pipeline.train_batches(examples, CONFIG, seed=0))
    for _ in range(5):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint stores it
    expected = [next(iterator) for _ in range(3)]
    other = iter(pipeline.train_batches(examples, CONFIG, seed=0))
    other.set_state(state)
    chex.assert_trees_all_equal(expected, [next(other) for _ in range(3)])


def test_evaluation_counts_every_image_once_and_masks_padding(examples):
    batches = list(pipeline.eval_batches(examples, 16, 24))
    assert {b["image"].shape[0] for b in batches} == {24}
    valid = np.concatenate([b["valid"] for b in batches])
    index = np.concatenate([b["index"] for b in batches])
    assert valid.sum() == 64 and list(index[valid > 0]) == list(range(64)) and set(index[valid == 0]) == {-1}


def test_unknown_labels_are_masked():
    image = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    sample = pipeline.to_sample(0, {"image": image, "labels": np.array([1, 0, -1], np.int8)}, 4, 1)
    np.testing.assert_array_equal(sample["labels"], [1, 0, 0])
    np.testing.assert_array_equal(sample["label_mask"], [1, 1, 0])
    np.testing.assert_array_equal(sample["image"], 0.0)  # a constant image is not a NaN image


def test_sixteen_bit_images_keep_their_depth():
    image = np.arange(256, dtype=np.uint16).reshape(16, 16) * 200
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(pipeline.fit(pipeline.decode_gray(data), 16), image.astype(np.float32))


def test_augmentation_off_is_the_identity_and_flip_mirrors(examples):
    sample = pipeline.to_sample(0, examples[0], 16, 64)
    still = DataConfig(image_size=16, shift=0.0, scale=0.0, contrast=0.0)
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(pipeline.augment(sample, rng, still)["image"], sample["image"], atol=1e-5)
    flipped = [pipeline.augment(sample, rng, dataclasses.replace(still, flip=True))["image"] for _ in range(40)]
    mirrored = [np.allclose(image, sample["image"][:, ::-1], atol=1e-4) for image in flipped]
    same = [np.allclose(image, sample["image"], atol=1e-4) for image in flipped]
    assert any(mirrored) and any(same) and all(a != b for a, b in zip(mirrored, same, strict=True))


def test_augmentation_stays_in_its_limits(examples):
    """The centre of mass of one bright pixel moves by at most the shift plus what the zoom adds."""
    image = np.zeros((64, 64, 1), np.float32)
    image[40:44, 40:44] = 1.0
    config = DataConfig(shift=0.05, scale=0.1, contrast=0.2)
    rng = np.random.default_rng(0)
    moved, gains = [], []
    for _ in range(200):
        out = pipeline.augment({"image": image}, rng, config)["image"][..., 0]
        y, x = np.indices(out.shape)
        moved.append([(out * y).sum() / out.sum() - 41.5, (out * x).sum() / out.sum() - 41.5])
        gains.append(out.max())
    limit = 0.05 * 64 + 0.1 * 10.5
    assert np.abs(moved).max() < limit and np.abs(moved).max() > limit / 2
    assert 0.75 < min(gains) < 0.9 and 1.1 < max(gains) <= 1.21


def test_empty_training_split_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        pipeline.train_batches([], CONFIG, seed=0)


def test_batches_arrive_sharded(examples):
    _, split = parallel.shardings(8)
    (batch,) = first(pipeline.train_batches(examples, CONFIG, 0, partial(parallel.to_devices, split=split)), 1)
    assert len(batch["image"].sharding.device_set) == jax.local_device_count() == 8
    assert batch["image"].addressable_shards[0].data.shape == (1, 16, 16, 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches(examples, processes):
    """Their parts, one after the other, are the batches of one process: in training, and in scoring to the last one."""
    whole = first(pipeline.train_batches(examples, CONFIG, seed=4), 20)
    streams = [pipeline.train_batches(examples, CONFIG, 4, None, p, processes) for p in range(processes)]
    for batch, *parts in zip(whole, *(first(stream, 20) for stream in streams), strict=True):
        chex.assert_trees_all_equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *parts))
    scored = list(pipeline.eval_batches(examples, 16, 24))
    streams = [list(pipeline.eval_batches(examples, 16, 24, p, processes)) for p in range(processes)]
    for batch, *parts in zip(scored, *streams, strict=True):
        chex.assert_trees_all_equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *parts))


def test_stream_is_a_grain_dataset(examples):
    assert isinstance(pipeline.train_batches(examples, CONFIG, seed=0), grain.IterDataset)
