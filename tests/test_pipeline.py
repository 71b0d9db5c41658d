"""Batches: contract, determinism over workers and restarts, padding, augmentation."""

from functools import partial

import chex
import cv2
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

from infomask_jax import parallel, pipeline
from infomask_jax.config import DataConfig, MachineConfig
from infomask_jax.pixels import decode_gray, fit, rescale, standardise

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
    alone = pipeline.train_batches(examples, CONFIG, seed=3)
    shared = pipeline.train_batches(examples, CONFIG, 3, MachineConfig(workers=workers))
    chex.assert_trees_all_equal(first(alone, 6), first(shared, 6))


def test_same_seed_same_stream_other_seed_other_stream(examples):
    a, b, c = (first(pipeline.train_batches(examples, CONFIG, seed=s), 3) for s in (1, 1, 2))
    chex.assert_trees_all_equal(a, b)
    assert any((x["index"] != y["index"]).any() for x, y in zip(a, c, strict=True))


def test_epochs_are_whole_and_differ(examples):
    epochs = len(examples) // 8
    index = np.concatenate([b["index"] for b in first(pipeline.train_batches(examples, CONFIG, seed=0), 2 * epochs)])
    assert sorted(index[:64]) == sorted(index[64:]) == list(range(64))
    assert (index[:64] != index[64:]).any()


def test_epochs_end_within_a_batch(examples):
    """A batch larger than the split holds several epochs; each has every image once."""
    few = [examples[i] for i in range(3)]
    index = np.concatenate([b["index"] for b in first(pipeline.train_batches(few, CONFIG, seed=0), 6)]).reshape(16, 3)
    assert (np.sort(index, axis=1) == [0, 1, 2]).all() and len(np.unique(index, axis=0)) > 3


class Counting:
    """A source that notes what is read of it."""

    def __init__(self, source):
        self.source, self.asked = source, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        self.asked.append(i)
        return self.source[i]


@pytest.mark.parametrize("kept", [0, 20, 64])
def test_what_is_kept_is_decoded_once_and_does_not_change_the_batches(examples, kept):
    """64 images, with room for `kept` of them."""
    source, nbytes = Counting(examples), decode_gray(examples[0]["image"]).nbytes
    decoded = pipeline.Decoded(source, (kept + 0.5) * nbytes / 2**30)
    for _ in range(3):
        for i in range(64):
            pixels, labels = decoded[i]
            np.testing.assert_array_equal(pixels, decode_gray(examples[i]["image"]))
            np.testing.assert_array_equal(labels, examples[i]["labels"])
    assert [source.asked.count(i) for i in range(64)] == [1] * kept + [3] * (64 - kept)
    streams = (pipeline.train_batches(source, CONFIG, seed=0) for source in (pipeline.Decoded(examples), decoded))
    chex.assert_trees_all_equal(*(first(stream, 24) for stream in streams))  # three epochs


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_stream_goes_on_where_another_stood_whatever_reads_it(examples, workers):
    """Across the end of an epoch, and with another number of loader processes."""
    whole = first(pipeline.train_batches(examples, CONFIG, seed=0), 12)
    other = pipeline.train_batches(examples, CONFIG, 0, MachineConfig(workers=workers))
    next(other)
    other.wind(5)
    chex.assert_trees_all_equal(whole[5:], first(other, 7))
    assert other.taken == 12


def test_evaluation_counts_every_image_once_and_masks_padding(examples):
    batches = list(pipeline.eval_batches(examples, 16, 24))
    assert {b["image"].shape[0] for b in batches} == {24}
    valid = np.concatenate([b["valid"] for b in batches])
    index = np.concatenate([b["index"] for b in batches])
    assert valid.sum() == 64 and list(index[valid > 0]) == list(range(64)) and set(index[valid == 0]) == {-1}


def test_unknown_labels_are_masked():
    image = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    (batch,) = pipeline.eval_batches([{"image": image, "labels": np.array([1, 0, -1], np.int8)}], 4, 1)
    np.testing.assert_array_equal(batch["labels"], [[1, 0, 0]])
    np.testing.assert_array_equal(batch["label_mask"], [[1, 1, 0]])
    np.testing.assert_array_equal(batch["image"], 0.0)  # a constant image is not a NaN image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_standardised_images_have_mean_zero_and_variance_one(dtype):
    image = np.random.default_rng(0).integers(0, 256, (16, 12)).astype(dtype)
    expected = (image - image.astype(np.float64).mean()) / image.astype(np.float64).std()
    np.testing.assert_allclose(standardise(image), expected, atol=1e-5)


def test_sixteen_bit_images_keep_their_depth():
    image = np.arange(256, dtype=np.uint16).reshape(16, 16) * 200
    data = cv2.imencode(".png", image)[1].tobytes()
    np.testing.assert_array_equal(fit(decode_gray(data), 16), image.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(9, 200), st.integers(9, 200)), st.integers(4, 64))
def test_resizing_keeps_what_is_where(shape, size):
    """Of a slope along either side it keeps the values at the centres of the new pixels, but beside the edges."""
    for axis, length in enumerate(shape):
        slope = np.indices(shape, np.float32)[axis] + 0.5
        expected = (np.arange(size) + 0.5) * length / size
        pixel = max(length / size, 1.0)
        inner = (expected > pixel) & (expected < length - pixel)
        found = rescale(slope, size).mean(axis=1 - axis)
        np.testing.assert_allclose(found[inner], expected[inner], atol=0.02 * pixel)


@pytest.mark.parametrize("length", range(64, 260, 7))
def test_shrinking_smooths_about_as_averages_over_areas_do(length):
    """White noise is neither let through (aliasing) nor blurred away: .6 to 1.4 of what area averages leave."""
    noise = np.random.default_rng(length).normal(size=(length, length)).astype(np.float32)
    areas = cv2.resize(noise, (64, 64), interpolation=cv2.INTER_AREA)
    assert 0.6 < rescale(noise, 64).std() / areas.std() < 1.4


def seen(image, size, draw, zoom=pipeline.ZOOM, shift=pipeline.SHIFT):
    """One image, augmented."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "ZOOM", zoom)
        patch.setattr(pipeline, "SHIFT", shift)
        (out,) = pipeline.augment([image], size, np.array([draw]))
    return out


def test_augmentation_off_is_the_identity(examples):
    pixels = decode_gray(examples[0]["image"])
    np.testing.assert_array_equal(seen(pixels, 16, [0.7, -0.3, 0.2], 0.0, 0.0), pixels)
    np.testing.assert_array_equal(seen(pixels, 16, [0.0, 0.0, 0.0]), pixels)
    assert (seen(pixels, 16, [0.7, -0.9, 0.9]) != pixels).any()


def test_images_of_any_shape_are_augmented_side_by_side():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape).astype(dtype) for shape in ((40, 70), (16, 16)) for dtype in ("u1", "u2")]
    draws = rng.uniform(-1, 1, (4, 3))
    for image, draw, out in zip(images, draws, pipeline.augment(images, 16, draws), strict=True):
        assert out.dtype == image.dtype
        np.testing.assert_array_equal(out, seen(image, 16, draw))


def test_gains_are_the_deviations_of_the_images(examples):
    """Uniform in 1 - contrast .. 1 + contrast, whatever else is augmented."""
    batches = first(pipeline.train_batches(examples, CONFIG, 0), 25)
    images = np.concatenate([batch["image"] for batch in batches])[..., 0]
    gains = images.std(axis=(1, 2))
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 0, atol=1e-5)
    assert 0.8 <= gains.min() < 0.83 and 1.17 < gains.max() <= 1.2 + 1e-5 and abs(gains.mean() - 1) < 0.03


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.sampled_from([24, 32, 40, 64]),
)
def test_zoom_and_shift_move_a_spot_where_they_say(draw, scale, shift, size):
    """A spot at p lands at centre + zoom (p - centre) + shift, to the nearest stored pixel, edges repeated beyond."""
    stored, (y, x) = 64, (26.0, 37.0)
    rows, columns = np.indices((stored, stored)) + 0.5
    image = 200 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18)
    out = seen(image.astype(np.uint8), size, draw, scale, shift).astype(float)
    zoom = 1 + scale * draw[0]
    expected = [
        stored / 2 + zoom * (p - stored / 2) + shift * stored * d for p, d in zip((y, x), draw[1:], strict=True)
    ]
    if all(10 * zoom < p < stored - 10 * zoom for p in expected):  # all of the spot is seen
        weight = np.clip(out - out.max() / 2, 0, None)
        rows, columns = (np.indices(out.shape) + 0.5) * stored / size
        found = (weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum()
        np.testing.assert_allclose(found, expected, atol=1.6 * zoom)
    assert out.shape == (size, size) and np.isfinite(out).all()


def test_what_lies_beyond_the_edge_repeats_it():
    image = np.repeat(np.arange(64, dtype=np.uint8)[:, None], 64, axis=1)
    out = seen(image, 64, [-1.0, 1.0, 0.0], 0.9, 0.5)  # zoom 0.1: far above the image
    assert (np.diff(out[:, 0].astype(int)) >= 0).all() and out[0, 0] == out[31, 0] < out[-1, 0]


def test_empty_training_split_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        pipeline.train_batches([], CONFIG, seed=0)


def test_batches_arrive_sharded(examples):
    _, split = parallel.shardings(8)
    (batch,) = first(
        pipeline.train_batches(examples, CONFIG, 0, to_devices=partial(parallel.to_devices, split=split)), 1
    )
    assert len(batch["image"].sharding.device_set) == jax.local_device_count() == 8
    assert batch["image"].addressable_shards[0].data.shape == (1, 16, 16, 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches(examples, processes):
    """Their parts, one after the other, are the batches of one process: in training, and in scoring to the last one."""
    whole = first(pipeline.train_batches(examples, CONFIG, seed=4), 20)
    streams = [pipeline.train_batches(examples, CONFIG, 4, process=p, processes=processes) for p in range(processes)]
    for batch, *parts in zip(whole, *(first(stream, 20) for stream in streams), strict=True):
        chex.assert_trees_all_equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *parts))
    scored = list(pipeline.eval_batches(examples, 16, 24))
    streams = [list(pipeline.eval_batches(examples, 16, 24, p, processes)) for p in range(processes)]
    for batch, *parts in zip(scored, *streams, strict=True):
        chex.assert_trees_all_equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *parts))
