"""Tables fit, agree and say what is oracle; galleries sort hits from misses upright; curves survive resumes."""

import base64
import csv
import html
import io
import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rich.console import Console

from infomask_jax.config import Config
from infomask_jax.evaluate import score
from infomask_jax.report import draw, figures, print_scores, render, write_page, write_scores
from infomask_jax.report.sheet import number
from infomask_jax.report.table import document
from infomask_jax.system import write_all


def scene(n=24, grid=16, seed=0, name="image"):
    """Positives have one box, with the map hot in it."""
    rng = np.random.default_rng(seed)
    labels, found = np.arange(n) % 2, []
    maps = 0.2 * rng.random((n, grid, grid, 1), dtype=np.float32)
    for i in range(n):
        y, x = rng.integers(0, grid - 5, 2)
        maps[i, y : y + 4, x : x + 4] += labels[i]
        found.append((np.array([[y, x, y + 4, x + 4]]) / grid if labels[i] else np.zeros((0, 4)), [0] * int(labels[i])))
    ids, p = [f"{name}{i}" for i in range(n)], np.clip(0.6 * labels + 0.4 * rng.random(n), 0, 1)[:, None]
    data = {"image_id": ids, "patient_id": ids, "labels": labels[:, None], "boxes": found, "probabilities": p}
    return data | {"sizes": [(64, 64)] * n}, maps


@pytest.fixture(scope="module")
def scored():
    """Scores, tuned on validation, of mass and of nodule, which every image has."""
    splits, methods = [], []
    for data, maps in (scene(), scene(seed=1, name="val")):
        more = {"labels": np.hstack([data["labels"], np.ones((24, 1), int)])}
        splits.append(data | more | {"probabilities": np.hstack([data["probabilities"]] * 2)})
        methods.append({"cam": maps[..., 0] ** 2, "infomask_bits": maps[..., 0], "infomask": maps[..., 0]})
    (data, val), (maps, val_maps) = splits, methods
    return score(["mass", "nodule"], data, maps, val=val, val_maps=val_maps, frame=32, dataset="squares", resamples=50)


@pytest.fixture(scope="module")
def result(scored):
    return scored[0]


def sheets(result, kind=""):
    return [sheet for sheet in document(result)[1] if sheet.kind.startswith(kind)]


def printed(result, width, protocols=False):
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    print_scores(result, console, protocols)
    return console.export_text()


def test_tables_fit_and_name_every_method_and_its_threshold(result):
    text = printed(result, 100, True)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text and "Wang 2017" in text and "Wang 2017" not in printed(result, 120)
    for words in ("PxAP", "boxes/", "mean_lung_boxes", "tuned on validation", "oracle", "one class only"):
        assert words in text, words
    assert "Not localized (no positive image has a box): nodule" in text
    rows = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert rows.index("infomask") < rows.index("infomask_bits") < rows.index("cam") < rows.index("random")
    value = number(result["localization"]["mass"]["infomask"]["mean_iou"]["value"])
    assert any(line.split()[:1] == ["infomask"] and value in line for line in text.splitlines())


def test_oracles_are_starred_and_ceilings_stand_apart_and_are_never_best(result):
    (headline,) = sheets(result, "headline")
    cells = {(row.name, h): c for row in headline.rows for h, c in zip(headline.headings[1:], row.cells, strict=True)}
    maps = {"infomask", "infomask_bits", "cam", "random", "center"}  # boxes have no threshold to choose
    assert {at for at, cell in cells.items() if cell.mark} == {(name, "MaxBox AccV2") for name in maps}
    assert any(note.startswith("* ") for note in headline.notes) and headline.rows[-1].name == "16x16"
    rows = [(sheet, row) for kind in ("headline", "protocol") for sheet in sheets(result, kind) for row in sheet.rows]
    best = {(sheet.title, row.name, row.group) for sheet, row in rows if any(cell.bold for cell in row.cells)}
    ceilings = [row for _, row in rows if row.name == "16x16"]
    assert ceilings and all("knows the true boxes" in row.group for row in ceilings)
    assert best and not any(name == "16x16" or "AFP" in title for title, name, _ in best)  # few false boxes are good
    cuts = {row.name: (row.cells[-1].text, row.cells[-1].below) for row in headline.rows}
    assert cuts["whole_image"] == ("-", "") and cuts["cam"][1] == "val"


def test_differences_faithfulness_and_prevalence_are_shown(result):
    (sheet,) = sheets(result, "differences")
    assert [row.name for row in sheet.rows[:2]] == ["cam - best control", "infomask_bits - cam"]
    best = result["differences"]["mass"]["infomask - best control"]["pxap"]["control"].removeprefix("control/")
    assert f"PxAP {best}," in sheet.notes[-1]
    wins = [cell.verdict for row in sheet.rows for cell in row.cells if row.name == "infomask - best control"]
    assert "green" in wins and "red" not in wins
    v = {"value": 0.25, "ci95": [0.2, 0.3], "n": 12}
    measured = {"mass": {"infomask": {"deletion": v, "insertion": {**v, "value": 0.75}, "curves": {}}}}
    (sheet,) = sheets({**result, "faithfulness": measured}, "faithfulness")
    assert [cell.text for cell in sheet.rows[0].cells] == [".250", ".750"]
    nodule = sheets(result, "classification")[0].rows[1].cells[-2]
    assert (nodule.text, nodule.below) == ("-", "no negative known")


def hostile(result):
    """The same scores of methods and a finding with names that mean something to LaTeX, Markdown and rich."""
    text = json.dumps(result).replace('"mass"', r'"50% of_a $mass & [red]#1|~^{x\\y}*"')
    return json.loads(text.replace('"cam"', '"[cam]_*`|&"'))


def test_latex_and_markdown_are_balanced_and_escaped(result):
    text = render(hostile(result), [])["tex"]
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") == len(sheets(result))
    bare = re.sub(r"\\[{}]", "", body)  # escaped braces
    depth = np.cumsum([{"{": 1, "}": -1}.get(character, 0) for character in bare])
    assert depth.min() == 0 and depth[-1] == 0
    assert bare.replace(r"\$", "").count("$") % 2 == 0 and bare.isascii()
    for line in lines:
        if line.startswith(r"\begin{tabular}"):
            columns = len(re.search(r"\{(l?r*)\}$", line)[1])
        elif line.endswith(r"\\") and not line.startswith(r"\multicolumn"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
            assert not re.search(r"^[\[*]|(?<!\\)[#%_]", line), line  # [ and * would be the argument of the row's end
    for table in re.findall(r"(?:^\|.*\n)+", render(hostile(result), [])["md"], re.MULTILINE):
        bars = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(bars)) == 1 and len(bars) > 2, table
    assert printed(hostile(result), 120, True).count("[red]") >= 3  # rich does not take it for a colour


def test_scores_are_written_as_four_files_that_agree(scored, tmp_path):
    paths = write_scores(tmp_path / "eval" / "test.v1", *scored)
    assert [path.name for path in paths] == ["test.v1.json", "test.v1.md", "test.v1.tex", "test.v1.csv"]
    assert sorted((tmp_path / "eval").iterdir()) == sorted(paths) and json.loads(paths[0].read_text()) == scored[0]
    with paths[3].open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, cells in zip(scored[1], rows, strict=True):
        for name, value in row.items():
            assert cells[name] == "" if value is None else isinstance(value, str) or float(cells[name]) == value
        assert row["true_boxes"] is None or cells["true_boxes"].isdigit()
    text = paths[1].read_text()
    assert all(cell.text in text for sheet in sheets(scored[0]) for row in sheet.rows for cell in row.cells)


def test_page_holds_every_cell_and_needs_nothing_else(result, tmp_path):
    named = json.loads(json.dumps(hostile(result)).replace("[cam]", "<script src=x>{{ 7 * 7 }}</script>"))
    dataset = {"name": "<i>rsna", "fingerprint": "f0", "findings": ["mass"]}
    manifest = {"seed": 3, "dataset": dataset, "git_revision": None, "libraries": {"jax": "0.1"}}
    manifest |= {"devices": ["TPU v5e"] * 4}
    files = {"eval/test.json": named, "eval/val.json": result, "eval/train.json": {}, "config.json": {}}
    texts = {tmp_path / name: json.dumps(value) for name, value in files.items()}
    write_all(texts | {tmp_path / "figures" / "mass" / "hits.png": b"a picture"})
    config = Config(data_dir=tmp_path, workdir=tmp_path, seed=3)
    run = SimpleNamespace(folder=tmp_path, manifest=manifest, config=config, plain=None, folds=[], steps="6")
    text = write_page(tmp_path, run).read_text()
    assert "train.json is not of this version" in text and "4 x TPU v5e<" in text and "&lt;i&gt;rsna" in text
    picture = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
    assert re.findall(r'<[^>]*(?:src|href)=("[^"]*")', text) == ['"data:,"', f'"{picture}"']
    assert text.count("<script") == 1 and '<th scope="row">seed</th><td>3</td><td>0</td>' in text
    order = [s for r in (named, result) for kind in (False, True) for s in sheets(r) if (s.kind == "protocol") == kind]
    tables = re.split('<table(?: class="fold")?>', text.split("<h2>Settings")[0])[1:]
    for sheet, table in zip(order, tables, strict=True):
        bare = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
        rows = [[html.unescape(re.sub("<.*?>", "", cell)) for cell in cells] for cells in bare if len(cells) > 1]
        assert rows[0] == list(sheet.headings)
        for row, cells in zip(sheet.rows, rows[1:], strict=True):
            assert cells == [row.name, *(cell.text + cell.mark + cell.below for cell in row.cells)]


@pytest.mark.parametrize(
    "x, text",
    [
        *[(0.7124, ".712"), (0.9999, "1.00"), (0.0, ".000"), (-0.05, "-.050"), (None, "-")],
        *[(9.996, "10.0"), (99.96, "100"), (-12.34, "-12.3")],
    ],
)
def test_numbers_are_short(x, text):
    assert number(x) == text


def scores_of(*findings, split="test"):
    """As much of eval/SPLIT.json as galleries need."""
    entries = {name: {} for name in findings}
    return {"dataset": "d", "split": split, "frame": 64, "classification": entries, "localization": entries}


def pixels(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(int)


def test_outcomes_judge_map_and_classifier():
    data, maps = scene(9)
    truth, labels = [b for b, _ in data["boxes"]], data["labels"][:, 0]
    p = np.array([0.1, 0.9, 0.9, 0.1, 0.2, 0.8, 0.2, 0.7, 0.9])
    maps[5] = maps[5, ::-1, ::-1]
    truth[7], labels[8] = np.zeros((0, 4)), -1
    expected = ["rejected", "hit", "false alarm", "missed positive", "rejected", "miss", "rejected", "found", "unknown"]
    assert figures.outcomes(maps[..., 0], truth, p, labels, 64) == expected


def test_gallery_draws_map_and_boxes_where_they_are(tmp_path):
    """Read back from the picture: the peak of the overlay and the true box are top right, the predicted box is below
    them."""
    heat = np.zeros((1, 8, 8, 1))
    heat[0, 1, 6] = 1
    data = {"image_id": ["a"], "labels": [[1]], "probabilities": [[0.9]], "sizes": [(100, 200)]}
    data["boxes"] = [(np.array([[0.0, 0.5, 0.5, 1.0]]), [0])]
    detections = [{"category": "mass", "file_name": "a", "image_id": 0, "bbox": [10, 80, 40, 15]}]
    odd = r"$\frac_{$ 5% of a name that takes lines"  # which is no formula
    detections[0]["category"] = odd
    drawn = draw(tmp_path, scores_of(odd), data, {"cam": heat}, detections, lambda i: np.zeros((64, 64)), {})
    picture = pixels(drawn[tmp_path / "figures" / "hits.png"])
    blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
    dark = picture.sum(-1) < 120  # the two panels side by side; text is narrower
    rows, cols = np.flatnonzero(dark.mean(1) > 0.4), np.flatnonzero(dark.mean(0) > 0.4)
    top, bottom, left, right = rows.min(), rows.max(), cols.min(), cols.max()
    split, middle = (left + right) // 2, (top + bottom) / 2
    true = np.argwhere((green > 150) & (red < 120) & (blue < 150) & (np.arange(len(green)) < bottom)[:, None])
    true = true[true[:, 1] < split]
    assert true[:, 0].mean() < middle and true[:, 1].mean() > (left + split) / 2
    warm = (red > 130) & (green > 80) & (blue < 130)  # the hot end of the colour map over black, and orange
    hot, box = np.argwhere(warm[top : int(middle), split:right]), np.argwhere(warm[int(middle) : bottom, split:right])
    assert hot[:, 1].mean() > (right - split) / 2 and len(box) and box[:, 1].mean() < (right - split) / 2


def test_galleries_read_only_the_films_that_they_draw(tmp_path, monkeypatch):
    """Two findings, of which the second is found nowhere: its misses are drawn, and its hits of an older run go."""
    data, maps = scene(200)
    maps[1] = maps[1, ::-1, ::-1]
    asked, shown = [], {}
    monkeypatch.setattr(figures, "gallery", lambda films, title: shown.update({title: films}) or b"drawn")

    def image_of(i):
        asked.append(i)
        return np.zeros((8, 8))

    data |= {name: np.hstack([data[name], data[name]]) for name in ("labels", "probabilities")}
    data["boxes"] = [(np.repeat(boxes, 2, 0), [0, 1] * len(at)) for boxes, at in data["boxes"]]
    both = {"infomask": np.concatenate([maps, maps[:, ::-1, ::-1]], axis=-1), "other": maps, "cam": maps}
    drawn = draw(tmp_path, scores_of("a/b", "A_b"), data, both, [], image_of, {})
    names = ["a_b/hits.png", "a_b/misses.png", "A_b_2/hits.png", "A_b_2/misses.png", "training.png"]
    assert list(drawn) == [tmp_path / "figures" / name for name in names] and not list(tmp_path.iterdir())
    assert len(asked) == sum(map(len, shown.values())) <= 24 and all(i % 2 for i in asked)
    assert all(list(film.maps) == ["infomask", "cam"] for films in shown.values() for film in films)
    assert next(iter(shown)).split(": ")[1] == "hits judged by InfoMask (6 of 99)"


def test_resumed_and_torn_metrics_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "loss": 1.0} for s in (0, 10, 20, 30)] + [{"step": s, "loss": 2.0} for s in (20, 30, 40)]
    lines[1]["rate_z"] = None
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 50, "lo')
    metrics = figures.read_metrics(path)
    np.testing.assert_array_equal(metrics["step"], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(metrics["loss"], [1, 1, 2, 2, 2])
    assert np.isnan(metrics["rate_z"]).all()
    both = figures.training_curves({"InfoMask": path, "plain": path})
    path.write_text("")
    empty = figures.training_curves({"InfoMask": path})
    assert pixels(both).shape[1] > 1000 and (pixels(both).sum() < pixels(empty).sum())
