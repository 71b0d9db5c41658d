"""Tables fit and say what is oracle; galleries sort hits from misses and keep orientation; curves survive resumes."""

import io
import json

import cv2
import numpy as np
import pytest
from rich.console import Console

from infomask_jax.evaluate import score
from infomask_jax.report import figures
from infomask_jax.report.table import number, tables


def scene(n=24, grid=16, seed=0):
    """Positives have one box, with the map hot in it."""
    rng = np.random.default_rng(seed)
    labels, found = np.arange(n) % 2, []
    maps = 0.2 * rng.random((n, grid, grid), dtype=np.float32)
    for i in range(n):
        y, x = rng.integers(0, grid - 5, 2)
        maps[i, y : y + 4, x : x + 4] += labels[i]
        found.append((np.array([[y, x, y + 4, x + 4]]) / grid if labels[i] else np.zeros((0, 4)), [0] * int(labels[i])))
    ids = [f"image{i}" for i in range(n)]
    p = np.clip(0.6 * labels + 0.4 * rng.random(n), 0, 1)[:, None]
    data = {"image_id": ids, "patient_id": ids, "labels": labels[:, None], "boxes": found, "probabilities": p}
    return data, maps


@pytest.fixture(scope="module")
def result():
    (data, maps), (val, val_maps) = scene(), scene(seed=1)
    data["labels"] = np.hstack([data["labels"], np.ones((24, 1), int)])
    val["labels"] = np.hstack([val["labels"], np.ones((24, 1), int)])
    for split in (data, val):
        split["probabilities"] = np.hstack([split["probabilities"]] * 2)
    methods, val_methods = ({"cam": m**2, "infomask_bits": m, "infomask": m} for m in (maps, val_maps))
    return score(
        ["mass", "nodule"], data, methods, val=val, val_maps=val_methods, frame=32, dataset="squares", resamples=50
    )


def printed(result, width):
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(tables(result))
    return console.export_text()


@pytest.mark.parametrize("width", [100, 120])
def test_tables_fit_and_name_every_method_and_its_threshold(result, width):
    text = printed(result, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for words in ("PxAP", "boxes/", "mean_lung_boxes", "tuned on validation", "oracle", "one class only"):
        assert words in text, words
    assert "Not localized (no positive image has a box): nodule" in text
    rows = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert rows.index("infomask") < rows.index("infomask_bits") < rows.index("cam") < rows.index("random")
    value = number(result["localization"]["mass"]["infomask"]["mean_iou"]["value"])
    assert any(line.split()[:1] == ["infomask"] and value in line for line in text.splitlines())


def test_fixed_thresholds_are_called_fixed(result):
    data, maps = scene()
    text = printed(score(["mass"], data, {"cam": maps}, frame=16, resamples=10), 110)
    assert "fixed, not tuned" in text and "leave-one-out" in text and "tuned on validation" not in text


@pytest.mark.parametrize(
    "x, text", [(0.7124, ".712"), (1.0, "1.00"), (0.9999, "1.00"), (0.0, ".000"), (-0.05, "-.050"), (None, "-")]
)
def test_numbers_are_short(x, text):
    assert number(x) == text


def test_outcomes_judge_map_and_classifier():
    data, maps = scene(8)
    images = np.zeros((8, 64, 64))
    truth = [b for b, _ in data["boxes"]]
    p, labels = np.array([0.1, 0.9, 0.9, 0.1, 0.2, 0.8, 0.2, 0.7]), data["labels"][:, 0]
    maps[5] = maps[5, ::-1, ::-1]
    truth[7] = np.zeros((0, 4))
    expected = ["rejected", "hit", "false alarm", "missed positive", "rejected", "miss", "rejected", "found"]
    assert figures.outcomes(images, maps, truth, p, labels) == expected


def test_gallery_draws_map_and_boxes_where_they_are(tmp_path):
    """Read back from the picture: the brightest corner of the overlay and the green box are both top right."""
    image, heat = np.zeros((64, 64)), np.zeros((8, 8))
    heat[1, 6] = 1
    truth = [np.array([[0.0, 0.5, 0.5, 1.0]])]
    path = figures.gallery([image], {"infomask": [heat]}, truth, {}, [0.9], [1], ["a"], tmp_path / "g.png")
    picture = cv2.imread(str(path)).astype(int)
    blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
    dark = picture.sum(-1) < 120  # the two panels side by side; text is narrower
    rows, cols = np.flatnonzero(dark.mean(1) > 0.4), np.flatnonzero(dark.mean(0) > 0.4)
    top, bottom, left, right = rows.min(), rows.max(), cols.min(), cols.max()
    split = (left + right) // 2
    pure = (green > 150) & (red < 120) & (blue < 150)
    rows, cols = np.argwhere(pure[:bottom, :split]).T
    assert rows.mean() < (top + bottom) / 2 and cols.mean() > (left + split) / 2
    warm = (red > 130) & (green > 80) & (blue < 130)  # the hot end of the colour map over black
    rows, cols = np.argwhere(warm[top:bottom, split:right]).T
    assert rows.mean() < (bottom - top) / 2 and cols.mean() > (right - split) / 2


def test_galleries_write_hits_and_misses_and_drop_stale_files(tmp_path):
    data, maps = scene()
    maps[1] = maps[1, ::-1, ::-1]
    images, truth = np.zeros((24, 32, 32)), [b for b, _ in data["boxes"]]
    arguments = images, {"infomask": maps, "cam": maps}, truth, {}, data["probabilities"][:, 0], data["labels"][:, 0]
    paths = figures.galleries(*arguments, data["image_id"], tmp_path, "test", rows=2)
    assert [p.name for p in paths] == ["hits.png", "misses.png"] and all(p.stat().st_size > 5000 for p in paths)
    negatives = np.flatnonzero(data["labels"][:, 0] == 0)
    rejected = [
        [a[i] for i in negatives] for a in (images, truth, np.zeros(24), data["labels"][:, 0], data["image_id"])
    ]
    few = {"infomask": maps[negatives]}
    assert figures.galleries(rejected[0], few, rejected[1], {}, *rejected[2:], tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_resumed_and_torn_metrics_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "loss": 1.0} for s in (0, 10, 20, 30)] + [{"step": s, "loss": 2.0} for s in (20, 30, 40)]
    lines[1]["rate_z"] = None
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 50, "lo')
    metrics = figures.read_metrics(path)
    np.testing.assert_array_equal(metrics["step"], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(metrics["loss"], [1, 1, 2, 2, 2])
    assert np.isnan(metrics["rate_z"]).all()
    assert figures.training_curves({"InfoMask": path, "plain": path}, tmp_path / "sub" / "t.png").stat().st_size > 5000
    path.write_text("")
    assert figures.training_curves(path, tmp_path / "t.png").exists()
