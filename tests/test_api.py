"""Films in, plain numbers and arrays out: those of the command, to the last bit."""

import base64
import dataclasses
import json
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import infomask_jax
from infomask_jax import api, datasets, explain, pipeline, predict
from infomask_jax.localize import WHOLE, normalise, prepare_map, region_boxes, resize_map
from infomask_jax.pixels import decode_gray

FIELDS = ("image_id", "size", "probabilities", "boxes", "bits", "sampled", "unlike")


@pytest.fixture(scope="module")
def run(trained) -> api.TrainedRun:
    return infomask_jax.open(trained)


@pytest.fixture
def folder(trained) -> Path:
    return trained.parent / "films"


def same(a: api.Film, b: api.Film) -> bool:
    grids = a.grids.keys() == b.grids.keys() and all((a.grids[name] == b.grids[name]).all() for name in a.grids)
    return grids and all(getattr(a, name) == getattr(b, name) for name in FIELDS)


def test_opening_is_lazy():
    """command.py hears Ctrl-C before JAX loads; and `import *` leaves Python's open alone."""
    code = "import io, sys, infomask_jax; from infomask_jax import *; print('jax' in sys.modules, open is io.open)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True"]


def test_numbers_are_those_of_the_command_bit_for_bit(run, folder, tmp_path):
    predict.predict_files(run.folder, [folder], tmp_path / "out", samples=3)
    films, boxes = run.predict(folder, samples=3), json.loads((tmp_path / "out" / "boxes.json").read_text())
    with np.load(tmp_path / "out" / "maps.npz") as maps:
        assert [film.image_id for film in films] == list(maps["image_id"]) and len(films) == 20
        assert {*films[0].grids} == {*maps} - {"image_id", "findings", "probability"}
        for method in films[0].grids:
            np.testing.assert_array_equal(np.stack([film.grids[method] for film in films]), maps[method])
        np.testing.assert_array_equal([[*film.probabilities.values()] for film in films], maps["probability"])
    ours = [
        {"image_id": i, "file_name": film.image_id, "category_id": run.findings.index(box.finding)}
        | {"category": box.finding, "bbox": [box.x, box.y, box.width, box.height], "score": box.score}
        for i, film in enumerate(films)
        for box in film.boxes
    ]
    assert len(boxes) >= 20 and ours == boxes
    for film in films:
        assert film.picture() == (tmp_path / "out" / "pictures" / film.image_id).read_bytes()


def test_one_gives_one_and_a_list_a_list_in_its_order(run, folder):
    paths = sorted(folder.iterdir())[:3]
    films = run.predict([paths[2], str(paths[0]), paths[1], paths[2]])
    assert [film.image_id for film in films] == [paths[i].name for i in (2, 0, 1, 2)] and same(films[0], films[3])
    assert same(run.predict(paths[0]), films[1]) and len(run.predict([folder, paths[0]])) == 21
    assert isinstance(run.predict([paths[0]]), list)


def test_arrays_of_every_type_are_the_film(run, folder):
    """uint16 and floats that are a file's gray values on another scale; the same but for rounding, PIL and JAX too."""
    path = sorted(folder.iterdir())[0]
    film, of_file = decode_gray(path.read_bytes()), run.predict(path)
    found = run.predict(
        [film, film.astype(np.uint16) * 257, film / 7 - 3, film.astype(np.int64), jax.numpy.array(film)]
    )
    assert [one.image_id for one in found] == [f"array {i}" for i in range(5)]
    for i in (0, 4):
        assert same(dataclasses.replace(found[i], image_id=path.name), of_file)
    for one in found:
        assert one.probabilities["opacity"] == pytest.approx(of_file.probabilities["opacity"], abs=1e-3)
        np.testing.assert_allclose(one.grids["infomask"], of_file.grids["infomask"], atol=2e-3)
    assert run.predict(np.zeros((3, 5))).size == (3, 5)
    assert run.predict(Image.fromarray(np.zeros((3, 5), np.uint8))).size == (3, 5)
    assert run.predict([np.zeros((3, 5))] * 2)._repr_html_().count("<figure>") == 2


@pytest.mark.parametrize(
    "x, words",
    [
        (
            np.zeros((2, 8, 8)),
            r"film 0: expected numbers \[H, W\], one gray film, found float64 \[2, 8, 8\]; take one",
        ),
        ([np.zeros((8, 8)), np.full((8, 8), np.nan)], "1 problem.*\n.*film 1: expected finite numbers, found NaN"),
        (np.zeros((8, 8), bool), "found bool"),
        (np.array([["a"]]), "found <U1"),
        ([], "found an empty list"),
        ("nowhere", "nowhere: no such file or folder"),
    ],
)
def test_what_is_no_film_is_told(run, x, words):
    for ask in (run.predict, lambda x: run.explain(x, "gradient")):
        with pytest.raises(ValueError, match=words.removeprefix("1 problem.*\n.*")):
            ask(x)
    with pytest.raises(ValueError, match=words):
        run.predict(x)


def test_maps_at_the_size_of_the_film_and_bits(run, trained, folder, tmp_path):
    wide = cv2.resize(decode_gray(sorted(folder.iterdir())[3].read_bytes()), (90, 50))
    film = run.predict(wide)
    assert film.size == (50, 90) and {each.shape for each in film.maps.values()} == {(50, 90)}
    mask, bits = film.grids["infomask"], film.grids["infomask_bits"]
    assert mask.shape == (16, 16) and {each.dtype for each in film.maps.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(film.maps["infomask"], resize_map(mask, 50, 90))
    np.testing.assert_array_equal(film.maps["infomask_bits"], resize_map(normalise(bits), 50, 90).clip(0, 1))
    rate = sum(film.bits.values())
    assert {*film.bits} == {"representation", "mask"} and rate > 0 and film.boxes
    whole, left = ([0, 0, w, 50] for w in (90, 45))
    assert api.bits_inside(bits, whole, film.size, 2) == pytest.approx(bits.astype(float).sum() / 4)
    assert api.bits_inside(bits, left, film.size, 2) == pytest.approx(bits[:, :8].astype(float).sum() / 4)
    assert all(0 <= box.bits <= api.bits_inside(bits, whole, film.size, 2) + 1e-6 for box in film.boxes)
    plain = infomask_jax.open(trained / "plain").predict(wide)
    assert plain.bits == {} and all(box.bits is None for box in plain.boxes) and {*plain.maps} == {"cam"}


@pytest.mark.parametrize("size", [(1021, 1377), (1377, 1021)])
def test_film_map_and_boxes_lie_on_each_other_on_odd_sizes(run, trained, folder, size):
    """A box is the region of the map in the scoring frame, in pixels of the film; the largest peak lies in one."""
    cut = predict.thresholds(run)["opacity"]["infomask"]
    for film in run.predict(
        [cv2.resize(decode_gray(path.read_bytes()), size[::-1]) for path in sorted(folder.iterdir())]
    ):
        assert film.size == size and film.maps["infomask"].shape == size
        regions = region_boxes(prepare_map(film.grids["infomask"], 32, 32)[None], cut)[0].boxes
        placed = [r for r in regions.astype(np.float32).tolist() if (r[2] - r[0]) * (r[3] - r[1]) <= WHOLE]
        expected = {tuple(np.round([x * size[1], y * size[0]], 2)) for y, x, *_ in placed}
        assert {tuple(np.round([box.x, box.y], 2)) for box in film.boxes} == expected
        y, x = np.array(np.unravel_index(film.maps["infomask"].argmax(), size)) + 0.5
        margin = np.array(size) / 64  # half a pixel of the frame
        inside = [
            box.y - margin[0] <= y <= box.y + box.height + margin[0]
            and box.x - margin[1] <= x <= box.x + box.width + margin[1]
            for box in film.boxes
        ]
        assert any(inside) or len(placed) < len(regions)


def test_explain_is_the_attribution_of_the_same_parameters(run, folder):
    paths = sorted(folder.iterdir())[:2]
    data = datasets.of_run(run.config).source("test", pipeline.FIELDS)
    image = pipeline.to_batch(pipeline.Decoded(data), np.array([0]), 32)["image"]
    for method, options in (("gradcam", {}), ("rise", {"masks": 4}), ("gradient", {})):
        heat = explain.attribution(method, run.config.model, 1, **options)({"params": run.params}, image, 0)
        found = run.explain(paths, method, **options)
        assert type(found[0]) is np.ndarray and len(found) == 2 and found[0].shape == (32, 32)
        np.testing.assert_allclose(found[0], resize_map(np.asarray(heat)[0], 32, 32), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(run.explain(paths[0], method, "opacity", **options), found[0])
    assert run.explain(paths[0], "iba", steps=1, samples=1).max() > 0  # reads the training films
    for wrong, words in (
        (("cam2",), "method: expected one of cam, "),
        (("cam", "mass"), "finding: expected one of opac"),
    ):
        with pytest.raises(ValueError, match=words):
            run.explain(paths[0], *wrong)


class Reader(HTMLParser):
    """Tags, and what stands between them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_html_shows_the_film_and_escapes_names(run, trained, folder, tmp_path):
    name = '"><script>alert(1)</script>.png'.replace("/", "")
    (tmp_path / name).write_bytes(sorted(folder.iterdir())[0].read_bytes())
    film = run.predict(tmp_path / name, samples=2)
    page = Reader(film._repr_html_())
    assert [tag for tag, _ in page.tags] == ["figure", "img", "figcaption"] and name in page.text
    assert page.tags[1][1]["alt"] == name and "opacity: p = 0." in page.text and "over samples" in page.text
    head, _, data = page.tags[1][1]["src"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == film.picture()
    assert "opacity" in repr(film) and "boxes" in repr(film)
    told = Reader(run._repr_html_()).text
    assert "trained on synthetic (drawn phantoms, no X-rays), to find opacity: 6 steps" in told
    odd = dataclasses.replace(run, folder=Path("<b>"))
    assert "<b>" in Reader(odd._repr_html_()).text and ("b", {}) not in Reader(odd._repr_html_()).tags


def test_films_unlike_the_training_warn_once(run, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own = run.predict(sorted(folder.iterdir())[:2])
    black = np.zeros((64, 64), np.uint8)
    black[60:] = 255
    with pytest.warns(UserWarning, match=r"unlike those .*: 2 of 4 X-rays .* such as array \d \(") as told:
        found = run.predict([black, sorted(folder.iterdir())[0], black, own[1].shown])
    assert len(told) == 1 and [bool(film.unlike) for film in found][:3] == [True, False, True]
    assert "unlike" in found[0]._repr_html_() and "unlike" not in found[1]._repr_html_()
