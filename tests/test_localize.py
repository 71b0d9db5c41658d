"""Heat map to boxes: alignment, orientation, box edges, failures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infomask_jax import localize
from infomask_jax.evaluate.truth import rasterise
from infomask_jax.localize import detections, prepare_map, prepare_maps, region_boxes, resize_map


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


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(7, 28), st.integers(7, 28))
def test_resize_has_half_pixel_centres_and_shrinking_averages_over_areas(seed, height, width):
    heat = np.random.default_rng(seed).random((7, 7)).astype(np.float32)
    np.testing.assert_allclose(resize_map(heat, height, width), bilinear(heat, height, width), atol=1e-5)
    fine = np.random.default_rng(seed).random((15, 6))  # no pixel of a fine map is lost
    np.testing.assert_allclose(resize_map(fine, 5, 3), fine.reshape(5, 3, 3, 2).mean((1, 3)), rtol=1e-6)
    half = bilinear(fine.reshape(5, 3, 6).mean(1), 5, width)
    np.testing.assert_allclose(resize_map(fine, 5, width), half, rtol=1e-6)


@pytest.mark.parametrize(("level", "gain"), [(0.9999, 1e-8), (1e6, 1e-3), (-3.0, 1e300)])
def test_level_and_range_of_a_map_do_not_matter_and_constant_maps_stay_constant(level, gain):
    heat = np.random.default_rng(0).random((320, 320))
    np.testing.assert_allclose(prepare_map(level + gain * heat, 224, 224), prepare_map(heat, 224, 224), atol=1e-5)
    constant = np.full((1, 320, 320), level)
    assert not prepare_maps(constant, 224).any() and not len(region_boxes(constant, 0.01, frame=224)[1])


@pytest.mark.parametrize("grid, cell", [((8, 8), (1, 6)), ((7, 14), (5, 2)), ((14, 7), (0, 6)), ((16, 16), (15, 0))])
def test_one_hot_cell_finds_its_own_box_and_no_mirrored_one(grid, cell):
    """The region above half of the maximum is that cell, to a pixel, wherever it lies; its edges are pixel edges."""
    (rows, columns), (r, c) = grid, cell
    heat = np.zeros((1, rows, columns), np.float32)
    heat[0, r, c] = 1
    box = np.array([[r / rows, c / columns, (r + 1) / rows, (c + 1) / columns]])
    np.testing.assert_allclose(region_boxes(heat, 0.5, frame=224)[0].boxes, box, atol=1.5 / 224)
    np.testing.assert_array_equal(region_boxes(heat, 0.5)[0].boxes, box)
    assert rasterise(box, 224)[np.unravel_index(prepare_maps(heat, 224)[0].argmax(), (224, 224))]


def test_detections_are_coco_in_source_pixels_the_highest_peak_first(monkeypatch):
    monkeypatch.setattr(localize, "MOSAIC_PIXELS", 128)  # two images at once
    maps = np.zeros((4, 8, 8), np.float16)
    maps[::2, 2:4, 4:8], maps[2, 0, 0] = 1, 0.8
    maps[3] = 5  # constant: no box, as image 1; the others keep their number
    sizes, p = [(1000, 400), (9, 9), (8, 16), (9, 9)], [0.25, 1, 1, 1]
    found = detections(list("abcd"), maps, sizes, 0.6, (8, 8), 3, "mass", probabilities=p, first=5)
    about = {"category_id": 3, "category": "mass"}
    assert found == [
        {"image_id": 5, "file_name": "a", **about, "bbox": [200, 250, 200, 250], "score": 0.25},
        {"image_id": 7, "file_name": "c", **about, "bbox": [8, 2, 8, 2], "score": 1},
        {"image_id": 7, "file_name": "c", **about, "bbox": [0, 0, 2, 1], "score": 0.799805},
    ]
    assert [box["score"] for box in detections(list("abcd"), maps, sizes, 0.6, 8, 3, "mass")] == [1, 1, 0.799805]
    whole = 1 - np.eye(8)[None] / 9  # a dip of a ninth on a diagonal: its region is the whole image, which is no place
    assert detections("a", whole, sizes, 0.5, 8, 3, "mass") == []
    whole[0, 0] = whole[0, :, 0] = 0
    assert [box["bbox"] for box in detections("a", whole, sizes, 0.05, 8, 3, "mass")] == [[50, 125, 350, 875]]
    maps[1, 0, 0] = np.inf
    with pytest.raises(ValueError, match=r"image b: .*non-finite"):
        detections(list("abcd"), maps, sizes, 0.5, (4, 4), 0, "mass")
