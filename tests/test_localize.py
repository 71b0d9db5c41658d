"""Heat map to boxes: alignment, orientation, box edges, failures."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infomask_jax.evaluate.frame import prepare_maps
from infomask_jax.evaluate.regions import region_boxes
from infomask_jax.localize import boxes_from_map, detections, normalise, prepare_map, resize_map


def bilinear(heat, height, width):
    """Plain reference: sample i of n sits at (i+.5)/n, edges clamped."""
    out = np.zeros((height, width))
    h, w = heat.shape
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) * h / height - 0.5, 0, h - 1)
            x = np.clip((j + 0.5) * w / width - 0.5, 0, w - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            a, b = y - y0, x - x0
            top, bottom = heat[y0, x0] * (1 - b) + heat[y0, x1] * b, heat[y1, x0] * (1 - b) + heat[y1, x1] * b
            out[i, j] = top * (1 - a) + bottom * a
    return out


@pytest.mark.parametrize("height, width", [(28, 28), (21, 35), (7, 7), (7, 9)])
def test_resize_has_half_pixel_centres(height, width):
    heat = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    np.testing.assert_allclose(resize_map(heat, height, width), bilinear(heat, height, width), atol=1e-5)


@pytest.mark.parametrize("height, width", [(5, 3), (1, 1), (3, 14)])
def test_shrinking_averages_over_areas(height, width):
    """No pixel of a fine map is lost: the mean stays, and where sides divide each cell is the mean of its pixels."""
    heat = np.random.default_rng(0).random((15, 6))
    assert resize_map(heat, height, min(width, 6)).mean() == pytest.approx(heat.mean())
    cells = heat.reshape(5, 3, 3, 2).mean((1, 3))
    np.testing.assert_allclose(resize_map(heat, 5, 3), cells, rtol=1e-6)
    np.testing.assert_allclose(resize_map(heat, 5, 14), bilinear(heat.reshape(5, 3, 6).mean(1), 5, 14), rtol=1e-6)


def test_known_square_comes_back_where_it_was():
    """Rows 2-4 and columns 9-11 of a 16 x 16 map: the box straddles the cell edges by less than half a cell."""
    heat = np.zeros((16, 16), np.float32)
    heat[2:5, 9:12] = 1
    boxes, scores = boxes_from_map(heat, 0.5, (128, 128))
    np.testing.assert_allclose(boxes, [[2 / 16, 9 / 16, 5 / 16, 12 / 16]], atol=0.01)  # symmetric: the centre is exact
    np.testing.assert_allclose(boxes[0, :2] + boxes[0, 2:], [7 / 16, 21 / 16], atol=1e-6)
    assert scores == pytest.approx([1.0])


def test_box_edges_are_pixel_edges():
    heat = np.zeros((8, 8), np.float32)
    heat[3, 5] = 1
    boxes, _ = boxes_from_map(heat, 0.5, (8, 8))
    np.testing.assert_array_equal(boxes, np.float32([[3 / 8, 5 / 8, 4 / 8, 6 / 8]]))  # one pixel, one pixel wide


def test_diagonal_pixels_are_one_region():
    assert len(boxes_from_map(np.eye(6), 0.5, (6, 6))[0]) == 1


def test_regions_are_ordered_by_their_peak():
    heat = np.zeros((9, 9))
    heat[1, 1], heat[7, 7] = 0.6, 2.0
    boxes, scores = boxes_from_map(heat, 0.2, (9, 9))
    np.testing.assert_allclose(scores, [1.0, 0.3])
    assert boxes[0, 0] > boxes[1, 0]


@pytest.mark.parametrize(("dtype", "level"), [(np.uint8, 1), (np.float32, 0.1), (np.float32, 1.0), (np.float64, 1 / 3)])
@pytest.mark.parametrize(("size", "frame"), [(1, 64), (7, 224), (299, 224), (320, 224), (384, 224), (512, 224)])
def test_constant_maps_stay_constant_at_every_size(size, frame, dtype, level):
    assert not prepare_map(np.full((size, size), level, dtype), frame, frame).any()


@pytest.mark.parametrize("size", [28, 224, 320])
@pytest.mark.parametrize(("level", "gain"), [(0.9999, 1e-8), (1e6, 1e-3), (-3.0, 1e300)])
def test_level_and_range_of_a_map_do_not_matter(size, level, gain):
    heat = np.random.default_rng(0).random((size, size))
    np.testing.assert_allclose(prepare_map(level + gain * heat, 224, 224), prepare_map(heat, 224, 224), atol=1e-5)


def test_constant_map_has_no_box_and_bad_maps_name_the_image():
    assert boxes_from_map(np.full((4, 4), 3.0), 0.01, (8, 8))[0].shape == (0, 4)
    assert not normalise(np.full((4, 4), 3.0)).any()
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"image b: .*non-finite"):
            detections(["a", "b"], [np.eye(4), np.full((4, 4), bad)], [(4, 4)] * 2, 0.5, (4, 4), 0, "mass")
    with pytest.raises(ValueError, match=r"\[h,w\]"):
        boxes_from_map(np.zeros((2, 2, 2)), 0.5, (4, 4))


def test_detections_are_coco_in_source_pixels():
    heat = np.zeros((8, 8), np.float16)
    heat[2:4, 4:8] = 1
    found = detections(["x"], heat[None], [(1000, 400)], 0.6, (8, 8), 3, "mass", probabilities=[0.25])
    expected = {"category_id": 3, "category": "mass", "bbox": [200, 250, 200, 250], "score": 0.25}
    assert found == [{"image_id": 0, "file_name": "x", **expected}]
    json.dumps(found, allow_nan=False)


def test_images_without_a_box_keep_their_number():
    maps = np.stack([np.eye(4), np.zeros((4, 4)), np.eye(4)])
    found = detections(["a", "b", "c"], maps, [(4, 4)] * 3, 0.5, (4, 4), 0, "mass", first=5)
    assert [(box["image_id"], box["file_name"]) for box in found] == [(5, "a"), (7, "c")]
    assert all(type(box["image_id"]) is type(box["category_id"]) is int for box in found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_boxes_are_the_ones_that_evaluate_scores(seed, threshold):
    heat = np.random.default_rng(seed).random((6, 6)).astype(np.float32)
    drawn, _ = boxes_from_map(heat, threshold, (24, 24))
    scored = region_boxes(prepare_maps(heat[None], 24), threshold)[0].boxes
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, scored.astype(np.float32)))
