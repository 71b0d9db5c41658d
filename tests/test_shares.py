"""Shares of a map in lesion, lung and elsewhere: exact on maps and regions made by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from infomask_jax.evaluate.shares import audit, region_areas

NONE = (np.zeros((0, 4)), ())


def square(size, rows, columns):
    region = np.zeros((size, size), bool)
    region[slice(*rows), slice(*columns)] = True
    return region


def split(labels, boxes=None, masks=None, patients=None):
    labels = np.reshape(labels, (len(labels), -1)).astype(np.int8)
    ids = [f"i{i}" for i in range(len(labels))]
    boxes = boxes or [NONE] * len(ids)
    return {"image_id": ids, "patient_id": patients or ids, "labels": labels, "boxes": boxes, "masks": masks}


def values(of):
    return {region: v["value"] for region, v in of.items()}


def one_finding(labels, maps, lung, boxes=None, masks=None, patients=None, **options):
    data = split(labels, boxes, masks, patients)
    maps = {"m_bits": np.asarray(maps, float)[..., None]}
    result, means = audit(("x",), data, maps, lambda i: lung, **options)
    return result["findings"]["x"], means["x"]


EMPTY = square(2, (0, 0), (0, 0))
ACROSS = [[0.1, 0, 0.35, 1], [0.3, 0, 0.4, 1]]  # edges inside pixels; what counts is their union, not their sum


@pytest.mark.parametrize(
    "grid, lung, mask, boxes, lesion, lung_beside",
    [
        ((2, 2), square(4, (0, 4), (0, 1)), square(4, (0, 1), (2, 4)), None, [[0, 0.5], [0, 0]], [[0.5, 0], [0.5, 0]]),
        ((1, 1), square(4, (0, 4), (0, 2)), square(4, (1, 2), (1, 3)), None, 2 / 16, 7 / 16),  # over the lung's edge
        ((1, 1), square(4, (0, 4), (0, 2)), square(4, (0, 4), (3, 4)), None, 0.25, 0.5),  # outside of it
        ((1, 1), square(3, (0, 1), (0, 3)), square(2, (0, 1), (0, 1)), None, 1 / 4, 1 / 6),  # thirds against halves
        ((1, 1), EMPTY, None, ACROSS, 0.3, 0),
        ((1, 1), EMPTY, square(4, (0, 2), (0, 4)), [[0, 0, 1, 0.5]], 0.25, 0),  # mask and boxes: what they share
    ],
)
def test_regions_of_any_sizes_are_exact(grid, lung, mask, boxes, lesion, lung_beside):
    areas, expected = region_areas(grid, lung, mask, boxes), np.zeros((3, *grid))
    expected[:2] = np.broadcast_to(lesion, grid), np.broadcast_to(lung_beside, grid)
    expected[2] = 1 - expected[:2].sum(0)
    np.testing.assert_allclose(areas, expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 5))
def test_regions_share_every_cell(data, h, w):
    lung, mask = (data.draw(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))) for _ in range(2))
    corner = st.floats(0, 0.875, width=32)
    corners = data.draw(st.lists(st.tuples(corner, corner), max_size=3))
    boxes = np.array([(y, x, y + 0.1, x + 0.1) for y, x in corners]).reshape(-1, 4)
    mask, boxes = (data.draw(st.sampled_from([given, None])) for given in (mask, boxes))
    areas = region_areas((h, w), lung, mask, boxes)
    assert areas.shape == (3, h, w) and (areas >= 0).all()
    np.testing.assert_allclose(areas.sum(axis=0), 1, atol=1e-9)
    np.testing.assert_allclose(region_areas((h, w), lung)[1].mean(), lung.mean(), atol=1e-9)


def test_shares_pool_the_bits_of_all_images():
    """Two positives: three bits all in the lesion, one bit all elsewhere. Shares weigh bits, not images."""
    lung, lesion = square(2, (0, 1), (0, 2)), square(2, (0, 1), (0, 1))
    maps = [[[3, 0], [0, 0]], [[0, 0], [0, 1]], [[1, 1], [0, 2]]]
    scores = {"probe": np.array([[0.9], [0.8], [0.1]])}
    found, means = one_finding([1, 1, 0], maps, lung, masks=[lesion, lesion, None], scores=scores)
    assert found["probe"]["value"] == 1
    own, negative = found["positive"]["m_bits"], found["negative"]["m_bits"]
    assert values(own["shares"]) == {"lesion": 0.75, "lung": 0, "elsewhere": 0.25}
    assert values(found["positive"]["area"]) == {"lesion": 0.25, "lung": 0.25, "elsewhere": 0.5}
    assert values(own["over_area"]) == {"lesion": 3, "lung": 0, "elsewhere": 0.5}
    assert own["total"]["value"] == 2 and own["shares"]["lesion"]["n"] == found["positive"]["images"] == 2
    assert own["shares"]["lesion"]["ci95"] == [0, 1]  # a resample of either image alone
    assert own["over_area"]["lesion"]["ci95"] == [0, 4] and own["total"]["ci95"] == [1, 3]
    assert values(negative["shares"]) == {"lung": 0.5, "elsewhere": 0.5} and negative["total"]["value"] == 4
    np.testing.assert_allclose(means["positive"]["m_bits"], [[1.5, 0], [0, 0.5]])
    np.testing.assert_allclose(means["negative"]["lung"], [[1, 1], [0, 0]])
    together, _ = one_finding([1, 1, 0], maps, lung, masks=[lesion, lesion, None], patients=["p", "p", "q"])
    of_one = together["positive"]["m_bits"]["shares"]["lesion"]
    assert of_one["value"] == 0.75 and of_one["ci95"] is None and "one patient" in of_one["reason"]  # not of two images


def test_what_has_no_lesion_or_no_label_is_counted():
    lung, box = square(2, (0, 1), (0, 2)), (np.array([[0, 0, 0.5, 0.5]]), (0,))
    heat = [[[8, 0], [0, 0]]] * 2 + [[[0, 1], [0, 1]], [[0, 0], [2, 2]]]
    found, _ = one_finding([1, -1, 1, 0], heat, lung, boxes=[box, box, NONE, NONE])
    assert found["counts"] == {"positive": 1, "positive_without_lesion": 1, "negative": 1, "unknown": 1}
    shares = {group: values(found[group]["m_bits"]["shares"]) for group in found if group != "counts"}
    assert shares == {
        "positive": {"lesion": 1, "lung": 0, "elsewhere": 0},
        "positive_without_lesion": {"lung": 0.5, "elsewhere": 0.5},
        "negative": {"lung": 0, "elsewhere": 1},
    }


def test_a_map_of_zeros_has_no_share_and_no_lung_no_area():
    result = one_finding([0, 0], np.zeros((2, 2, 2)), EMPTY)[0]["negative"]
    for share in result["m_bits"]["shares"].values():
        assert share["value"] is None and share["reason"] == "the map is zero everywhere"
    dark = one_finding([0, 0], np.ones((2, 2, 2)), EMPTY)[0]["negative"]
    assert dark["m_bits"]["over_area"]["lung"] == {"value": None, "ci95": None, "n": 2, "reason": "no area"}


def test_each_finding_has_its_own_lesions_maps_and_labels():
    """One image, both findings; the mask holds the lesions of both and each finding's boxes tell its own."""
    mask, boxes = square(4, (0, 1), (0, 4)), (np.array([[0, 0, 1, 0.5], [0, 0.5, 1, 1]]), (0, 1))
    heat = np.zeros((1, 4, 4, 2))
    heat[0, 0, 0] = 4, 1
    heat[0, 0, 3] = 0, 3

    def audited(boxes, maps):
        data = split([[1, 1]], [boxes], [mask])
        return audit(("a", "b"), data, {"m_bits": maps}, lambda i: square(2, (0, 2), (0, 2)))[0]["findings"]

    for maps, expected in ((heat, [1, 0.75]), (heat[..., 1:], [0.25, 0.75])):  # own, and shared by both
        found = audited(boxes, maps)
        assert [values(found[f]["positive"]["m_bits"]["shares"])["lesion"] for f in "ab"] == expected
