"""Implanted opacities: the background stays what it was and knows nothing of the label, and the truth is exact."""

import shutil

import numpy as np
import pytest
import releases
from releases import changed, everything, examples, nothing_is_left, picture

from infomask_jax.datasets import BadData, Synthetic, folder, images, implanted, nih, prepare, rsna
from infomask_jax.datasets.schema import Item
from infomask_jax.datasets.synthetic import PhantomConfig, render
from infomask_jax.pixels import encode, resize

POSITIVE, NEGATIVE = (PhantomConfig(prevalence=p, contrast=0.35) for p in (1.0, 0.0))


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """Twenty phantoms without opacities, in two sub-folders: even ones whole, odd ones lungs alone."""
    root = tmp_path_factory.mktemp("films")
    for index in range(20):
        film = render(8, index, PhantomConfig(size=128, prevalence=0))
        path = root / ("whole", "lungs")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(np.where(film["lung"] > 0, film["image"], 0) if index % 2 else film["image"]))
    return root


@pytest.fixture
def options(films, tmp_path):
    shutil.copytree(films, tmp_path / "films")
    return Synthetic(backgrounds=tmp_path / "films", data_dir=tmp_path / "data", size=32, workers=1)


def items(root):
    problems = []
    found = implanted.read(Synthetic(backgrounds=root), problems).items
    assert not problems
    return found


@pytest.fixture
def drawn(monkeypatch):
    """A function (item, config) -> what `draw` made and the alphas [N, H, W] that it used."""

    def run(item, config):
        kept = []

        def spy(rng, lung):
            kept.extend(alpha for alpha, *_ in found) if (found := original(rng, lung)) else None
            return found

        original = implanted.opacities
        with monkeypatch.context() as patch:
            patch.setattr(implanted, "opacities", spy)
            made = implanted.draw(item, config)
        return made, np.array(kept).reshape(-1, config.size, config.size)

    return run


@pytest.mark.parametrize(("size", "deep"), [(32, False), (64, True)])
def test_what_no_opacity_reaches_is_the_background(films, drawn, tmp_path, size, deep):
    for item in items(films)[::5]:
        pixels = images.decode(item.path)
        if deep:
            pixels = pixels.astype(np.uint16) * 257
            item = Item(item.image_id, item.patient_id, item.split, (), tmp_path / "deep.png")
            item.path.write_bytes(encode(pixels))
        background = resize(pixels, size)
        negative, none = drawn(item, changed(NEGATIVE, size=size))
        positive, alphas = drawn(item, changed(POSITIVE, size=size))
        assert (negative["labels"], positive["labels"]) == ((0,), (1,)) and len(none) == 0
        assert not images.decode(negative["mask"]).any() and len(alphas) == len(positive["boxes"]) > 0
        np.testing.assert_array_equal(negative["pixels"], background)
        np.testing.assert_array_equal(images.decode(positive["image"]), positive["pixels"])
        reached = (alphas > 0).any(0)
        assert positive["pixels"].dtype == background.dtype and 0 < reached.mean() < 0.4
        np.testing.assert_array_equal(positive["pixels"][~reached], background[~reached])
        assert (positive["pixels"] >= background).all() and (positive["pixels"] > background)[reached].mean() > 0.7


def test_what_is_black_outside_the_lungs_stays_black(films):
    for item in items(films / "lungs")[::2]:
        film = images.decode(item.path)
        black = resize(film, 64) == 0
        assert black.mean() > 0.5 and not implanted.draw(item, POSITIVE)["pixels"][black].any()


def test_truth_is_where_the_film_changed_in_the_lung_that_was_drawn(films, drawn):
    for item in items(films):
        made, alphas = drawn(item, POSITIVE)
        mask = images.decode(made["mask"]) > 0
        np.testing.assert_array_equal(mask, (alphas > 0.5 * alphas.max((1, 2), keepdims=True)).any(0))
        rise = made["pixels"].astype(float) - resize(images.decode(item.path), 64)
        assert rise[mask].mean() > 4 * rise[~mask].mean()
        for box, alpha in zip(made["boxes"] * 64, alphas, strict=True):
            alone = rise * (alpha > alphas.sum(0) / 2)  # what this opacity did
            centre = (alone.sum(1) @ np.arange(64) / alone.sum(), alone.sum(0) @ np.arange(64) / alone.sum())
            assert (box[:2] - 0.5 <= centre).all() and (centre <= box[2:] - 0.5).all()
        lung = render(8, int(item.path.stem), PhantomConfig(size=128, prevalence=0))["lung"]
        assert (resize(lung, 64)[mask] > 127).mean() > (0.99 if "lungs" in item.image_id else 0.8)


def test_labels_know_nothing_of_the_background(films):
    one, other = items(films)[:2]
    drawn = []
    for seed, path in ((0, one.path), (0, other.path), (1, one.path)):
        named = [Item(f"{index}.png", f"{index}.png", "train", (), path) for index in range(20)]
        drawn.append([implanted.draw(item, PhantomConfig(size=32, seed=seed))["labels"] for item in named])
    assert drawn[0] == drawn[1] != drawn[2]


def test_lungs_of_whole_films_are_found_and_little_else():
    hits, extras = [], []
    for index in range(16):
        film = render(9, index, PhantomConfig(size=128, prevalence=0))
        field, lung = implanted.lung_field(film["image"], 128) > 0.5, film["lung"] > 0
        hits.append((field & lung).sum() / lung.sum())
        extras.append((field & ~lung).sum() / field.sum())
    assert np.median(hits) > 0.75 and np.min(hits) > 0.3 and np.median(extras) < 0.05 and np.max(extras) < 0.3


def test_an_implant_multiplies_the_light_let_through():
    film = np.array([[0, 13107, 39321, 52429, 65535]], np.uint16)  # light 1, .8, .4, .2, 0
    full, half = (np.full(film.shape, v) for v in (1.0, 0.5))
    for found, light in (
        ([(full, full)], [0.5, 0.4, 0.2, 0.1, 0]),
        ([(half, full), (full, half)], [0.5, 0.4, 0.2, 0.1, 0]),
        ([(full, 3 * full)], [0.125, 0.1, 0.05, 0.025, 0]),
    ):
        made = implanted.implant(film, found, contrast=np.log(2))
        np.testing.assert_allclose(1 - made / 65535, [light], atol=2e-5)
    np.testing.assert_array_equal(implanted.implant(film, [(0 * full, -full)], contrast=10), film, strict=True)


def test_images_depend_neither_on_workers_nor_on_the_others(options, tmp_path):
    whole = prepare(options)
    assert whole.name == "implanted" and whole.findings == ("opacity",) and len(everything(whole)) == 20
    again = prepare(changed(options, data_dir=tmp_path / "2", workers=2))
    assert again.fingerprint == whole.fingerprint
    with pytest.raises(BadData, match="seed: prepared with 0, asked for 1"):
        prepare(changed(options, seed=1))
    some = prepare(changed(options, data_dir=tmp_path / "2", train=5, val=0, test=1, overwrite=True))
    assert some.splits == {"train": 5, "test": 1} and examples(some, "train").keys() < examples(whole, "train").keys()
    for path in sorted(options.backgrounds.rglob("*.png"))[::3]:
        path.unlink()
    fewer = prepare(changed(options, data_dir=tmp_path / "3"))
    assert 0 < sum(fewer.splits.values()) < 20
    for split in fewer.splits:
        for name, example in examples(fewer, split).items():
            for field, value in example.items():
                np.testing.assert_array_equal(value, examples(whole, split)[name][field])


def test_several_draws_are_of_one_patient_and_each_its_own(options):
    once = prepare(options)
    first = {split: examples(once, split) for split in once.splits}
    thrice = prepare(changed(options, draws=3, overwrite=True))
    for split in once.splits:
        drawn = examples(thrice, split)
        assert drawn.keys() >= first[split].keys() and len(drawn) == (3 if split == "train" else 1) * len(first[split])
        assert {e["patient_id"] for e in drawn.values()} == {e["patient_id"] for e in first[split].values()}
        assert all(drawn[name]["image"] == example["image"] for name, example in first[split].items())
    drawn = examples(thrice, "train")
    several = [[drawn[f"{name}{end}"] for end in ("", "@2", "@3")] for name in first["train"]]
    assert any(len({int(e["labels"][0]) for e in those}) == 2 for those in several)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"draws": 0}, "--draws: expected 1 to 1000, found 0"),
        ({"shortcut": 0.5}, "--shortcut: expected 0"),
        ({"train": 6144}, "--train: expected 0 to"),
        ({"backgrounds": "none"}, "found no folder"),
        ({"backgrounds": "films/empty"}, "expected negative radiographs"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, values, words):
    (options.backgrounds / "empty").mkdir()
    if values.get("backgrounds"):
        values = {"backgrounds": options.backgrounds.parent / values["backgrounds"]}
    with pytest.raises(BadData, match=words):
        prepare(changed(options, **values))


def test_all_bad_backgrounds_are_named_or_skipped(options, tmp_path):
    """Files that are hidden are none of them."""
    root, whole = options.backgrounds, options.backgrounds / "whole"
    picture(tmp_path / "outside.png")
    (root / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "twice.png").symlink_to(whole / "00.png")
    (whole / "._00.png").write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX").mkdir()
    shutil.copy(whole / "00.png", root / "__MACOSX" / "00.png")
    (whole / "02.png").rename(whole / f"{releases.NFD}.png")
    shutil.copy(whole / f"{releases.NFD}.png", whole / f"{releases.NFC}.png")
    (root / "cut.png").write_bytes((whole / "00.png").read_bytes()[:-20])
    (root / "empty.jpg").write_bytes(b"")
    (root / "black.png").write_bytes(encode(np.zeros((64, 64), np.uint8)))
    (root / "white.png").write_bytes(encode(np.full((64, 64), 255, np.uint8)))
    named = ["cut.png", "empty.jpg: expected an image", "black.png: expected a lung field", "white.png"]
    named += ["found a link to", "found the same file", "one name in two Unicode forms"]
    for prevalence in (0.0, 1.0):  # what is refused does not depend on the label
        with pytest.raises(BadData, match="7 problems") as error:
            prepare(changed(options, prevalence=prevalence))
        assert all(words in str(error.value) for words in named) and nothing_is_left(options)
    prepared = prepare(changed(options, skip_bad=True))
    assert sum(prepared.splits.values()) == 19 and "found a link to" in (prepared.directory / "skipped.csv").read_text()


@pytest.mark.parametrize("kind", ["rsna", "nih", "folder"])
def test_of_a_release_only_negatives_are_used_in_its_own_splits(kind, tmp_path):
    release, reader = getattr(releases, kind)(tmp_path), {"rsna": rsna, "nih": nih, "folder": folder}[kind]
    whole, negative = reader.read(release, []), {}
    for item in whole.items:
        if {f for f, label in zip(whole.findings, item.labels, strict=True) if label} <= {"No Finding"}:
            negative[item.image_id] = (item.split, item.patient_id, item.path, item.view)
    assert 0 < len(negative) < len(whole.items)
    assert {i.image_id: (i.split, i.patient_id, i.path, i.view) for i in items(release.source)} == negative
    if kind != "folder":  # of which every image has to be there
        next(iter(negative.values()))[2].unlink()
        problems = []
        assert implanted.read(Synthetic(backgrounds=release.source), problems).missing == 1 and not problems
    if kind == "rsna":  # half a release is not taken for a folder of negatives
        (release.source / rsna.TABLES[1]).unlink()
        with pytest.raises(BadData, match=rsna.TABLES[1]):
            items(release.source)
