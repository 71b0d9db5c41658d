"""Batches: contract, determinism over workers and restarts, padding, augmentation; and the pixels that they are of."""

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
from infomask_jax.pixels import decode_gray, rescale, resize, standardise

CONFIG = DataConfig(image_size=16, batch_size=8)


def first(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


@pytest.fixture(scope="module")
def stream(examples):
    """The first batches of three epochs of eight."""
    return first(pipeline.train_batches(examples, CONFIG, seed=0), 24)


def test_batch_contract_and_seeds(examples, stream):
    (batch, *_) = stream
    chex.assert_shape(batch["image"], (8, 16, 16, 1))
    chex.assert_shape([batch["labels"], batch["label_mask"]], (8, 1))
    chex.assert_shape([batch["valid"], batch["index"]], (8,))
    chex.assert_type([batch[k] for k in ("image", "labels", "label_mask", "valid")], np.float32)
    chex.assert_type(batch["index"], np.int32)
    again, other = (first(pipeline.train_batches(examples, CONFIG, seed=seed), 3) for seed in (0, 2))
    chex.assert_trees_all_equal(stream[:3], again)
    assert any((x["index"] != y["index"]).any() for x, y in zip(stream, other, strict=False))


def test_epochs_are_whole_and_differ(examples, stream):
    """Also those that end within a batch."""
    epochs = np.concatenate([batch["index"] for batch in stream]).reshape(3, 64)
    assert (np.sort(epochs) == np.arange(64)).all() and len(np.unique(epochs, axis=0)) == 3
    few = [examples[i] for i in range(3)]
    epochs = np.concatenate([b["index"] for b in first(pipeline.train_batches(few, CONFIG, seed=0), 6)]).reshape(16, 3)
    assert (np.sort(epochs) == [0, 1, 2]).all() and len(np.unique(epochs, axis=0)) > 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_another_stood_whatever_reads_it(examples, stream, workers):
    """Across the end of an epoch, and with another number of loader processes."""
    other = pipeline.train_batches(examples, CONFIG, 0, MachineConfig(workers=workers))
    chex.assert_trees_all_equal(stream[0], next(other))
    other.wind(5)
    chex.assert_trees_all_equal(stream[5:12], first(other, 7))
    assert other.taken == 12


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
def test_what_is_kept_is_decoded_once_and_does_not_change_the_batches(examples, stream, kept):
    """64 images, with room for `kept` of them."""
    source, nbytes = Counting(examples), decode_gray(examples[0]["image"]).nbytes
    decoded = pipeline.Decoded(source, (kept + 0.5) * nbytes / 2**30)
    for _ in range(3):
        for i in range(64):
            pixels, labels = decoded[i]
            np.testing.assert_array_equal(pixels, decode_gray(examples[i]["image"]))
            np.testing.assert_array_equal(labels, examples[i]["labels"])
    assert [source.asked.count(i) for i in range(64)] == [1] * kept + [3] * (64 - kept)
    chex.assert_trees_all_equal(first(pipeline.train_batches(decoded, CONFIG, seed=0), 24), stream)


def test_evaluation_counts_every_image_once_and_masks_padding(examples):
    source = Counting(examples)
    batches = list(pipeline.eval_batches(source, 16, 24))
    assert {b["image"].shape[0] for b in batches} == {24}
    valid, index = (np.concatenate([b[name] for b in batches]) for name in ("valid", "index"))
    assert valid.sum() == 64 and list(index[valid > 0]) == list(range(64)) and set(index[valid == 0]) == {-1}
    assert len(source.asked) <= 65  # however much is padding


def test_unknown_labels_are_masked():
    image = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    (batch,) = pipeline.eval_batches([{"image": image, "labels": np.array([1, 0, -1], np.int8)}], 4, 1)
    np.testing.assert_array_equal(batch["labels"], [[1, 0, 0]])
    np.testing.assert_array_equal(batch["label_mask"], [[1, 1, 0]])
    np.testing.assert_array_equal(batch["image"], 0.0)  # a constant image is not a NaN image


def test_empty_training_split_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        pipeline.train_batches([], CONFIG, seed=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_standardised_images_have_mean_zero_and_variance_one(dtype):
    image = np.random.default_rng(0).integers(0, 256, (16, 12)).astype(dtype)
    expected = (image - image.astype(np.float64).mean()) / image.astype(np.float64).std()
    np.testing.assert_allclose(standardise(image), expected, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(9, 200), st.integers(9, 200)), st.integers(4, 64), st.sampled_from([rescale, resize]))
def test_a_new_size_keeps_what_is_where(shape, size, resized):
    """Of a slope along either side it keeps the values at the centres of the new pixels, but beside the edges."""
    for axis, length in enumerate(shape):
        slope = np.indices(shape, np.float32)[axis] + 0.5
        expected = (np.arange(size) + 0.5) * length / size
        pixel = max(length / size, 1.0)
        inner = (expected > pixel) & (expected < length - pixel)
        found = resized(slope, size).mean(axis=1 - axis)
        close = 0.02 if resized is rescale else 0.2  # areas that end within a pixel count it as flat
        np.testing.assert_allclose(found[inner], expected[inner], atol=close * pixel)


@pytest.mark.parametrize("length", range(64, 260, 14))
def test_shrinking_smooths_about_as_averages_over_areas_do(length):
    """White noise is neither let through (aliasing) nor blurred away: .6 to 1.4 of what area averages leave."""
    noise = np.random.default_rng(length).normal(size=(length, length)).astype(np.float32)
    assert 0.6 < rescale(noise, 64).std() / resize(noise, 64).std() < 1.4


def seen(image, size, draw, zoom=pipeline.ZOOM, shift=pipeline.SHIFT):
    """One image, augmented."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "ZOOM", zoom)
        patch.setattr(pipeline, "SHIFT", shift)
        (out,) = pipeline.augment([image], size, np.array([draw]))
    return out


def test_augmentation_off_is_the_identity_and_images_of_any_shape_go_side_by_side(examples):
    pixels = decode_gray(examples[0]["image"])
    np.testing.assert_array_equal(seen(pixels, 16, [0.7, -0.3, 0.2], 0.0, 0.0), pixels)
    np.testing.assert_array_equal(seen(pixels, 16, [0.0, 0.0, 0.0]), pixels)
    assert (seen(pixels, 16, [0.7, -0.9, 0.9]) != pixels).any()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape).astype(dtype) for shape in ((40, 70), (16, 16)) for dtype in ("u1", "u2")]
    draws = rng.uniform(-1, 1, (4, 3))
    for image, draw, out in zip(images, draws, pipeline.augment(images, 16, draws), strict=True):
        assert out.dtype == image.dtype
        np.testing.assert_array_equal(out, seen(image, 16, draw))


def test_gains_are_the_deviations_of_the_images(stream):
    """Uniform in 1 - contrast .. 1 + contrast, whatever else is augmented."""
    images = np.concatenate([batch["image"] for batch in stream])[..., 0]
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
    stored, spot = 64, np.array([26.0, 37.0])
    centres = np.indices((stored, stored)) + 0.5
    image = 200 * np.exp(-((centres - spot[:, None, None]) ** 2).sum(0) / 18)
    out = seen(image.astype(np.uint8), size, draw, scale, shift).astype(float)
    zoom = 1 + scale * draw[0]
    expected = stored / 2 + zoom * (spot - stored / 2) + shift * stored * np.array(draw[1:])
    if ((10 * zoom < expected) & (expected < stored - 10 * zoom)).all():  # all of the spot is seen
        weight = np.clip(out - out.max() / 2, 0, None)
        found = (weight * (np.indices(out.shape) + 0.5)).sum((1, 2)) / weight.sum() * stored / size
        np.testing.assert_allclose(found, expected, atol=1.6 * zoom)
    assert out.shape == (size, size) and np.isfinite(out).all()


def test_what_lies_beyond_the_edge_repeats_it():
    image = np.repeat(np.arange(64, dtype=np.uint8)[:, None], 64, axis=1)
    out = seen(image, 64, [-1.0, 1.0, 0.0], 0.9, 0.5)  # zoom 0.1: far above the image
    assert (np.diff(out[:, 0].astype(int)) >= 0).all() and out[0, 0] == out[31, 0] < out[-1, 0]


def test_batches_arrive_sharded(examples):
    to_devices = partial(parallel.to_devices, split=parallel.shardings(8)[1])
    (batch,) = first(pipeline.train_batches(examples, CONFIG, 0, to_devices=to_devices), 1)
    assert len(batch["image"].sharding.device_set) == jax.local_device_count() == 8
    assert batch["image"].addressable_shards[0].data.shape == (1, 16, 16, 1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches(examples, stream, processes):
    """Their parts, one after the other, are the batches of one process: in training, and in scoring to the last one."""
    streams = [pipeline.train_batches(examples, CONFIG, 0, process=p, processes=processes) for p in range(processes)]
    scored = list(pipeline.eval_batches(examples, 16, 24))
    parts = [
        [*first(part, 12), *pipeline.eval_batches(examples, 16, 24, p, processes)] for p, part in enumerate(streams)
    ]
    for batch, *own in zip(stream[:12] + scored, *parts, strict=True):
        chex.assert_trees_all_equal(batch, jax.tree.map(lambda *x: np.concatenate(x), *own))
