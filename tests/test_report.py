"""Tables fit, agree and say what is oracle; galleries sort hits from misses upright; curves survive resumes."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from rich.console import Console

from infomask_jax.evaluate import score
from infomask_jax.report import figures, write_page, write_scores
from infomask_jax.report.render import escape, latex, markdown, tables
from infomask_jax.report.sheet import number
from infomask_jax.report.table import sheets
from infomask_jax.system import write_all


def scene(n=24, grid=16, seed=0, name="image"):
    """Positives have one box, with the map hot in it."""
    rng = np.random.default_rng(seed)
    labels, found = np.arange(n) % 2, []
    maps = 0.2 * rng.random((n, grid, grid), dtype=np.float32)
    for i in range(n):
        y, x = rng.integers(0, grid - 5, 2)
        maps[i, y : y + 4, x : x + 4] += labels[i]
        found.append((np.array([[y, x, y + 4, x + 4]]) / grid if labels[i] else np.zeros((0, 4)), [0] * int(labels[i])))
    ids = [f"{name}{i}" for i in range(n)]
    p = np.clip(0.6 * labels + 0.4 * rng.random(n), 0, 1)[:, None]
    data = {"image_id": ids, "patient_id": ids, "labels": labels[:, None], "boxes": found, "probabilities": p}
    return data, maps


@pytest.fixture(scope="module")
def result(scored):
    return scored[0]


@pytest.fixture(scope="module")
def scored():
    (data, maps), (val, val_maps) = scene(), scene(seed=1, name="val")
    data["labels"] = np.hstack([data["labels"], np.ones((24, 1), int)])
    val["labels"] = np.hstack([val["labels"], np.ones((24, 1), int)])
    for split in (data, val):
        split["probabilities"] = np.hstack([split["probabilities"]] * 2)
    methods, val_methods = ({"cam": m**2, "infomask_bits": m, "infomask": m} for m in (maps, val_maps))
    return score(
        ["mass", "nodule"], data, methods, val=val, val_maps=val_methods, frame=32, dataset="squares", resamples=50
    )


def printed(result, width, protocols=False):
    console = Console(width=width, color_system=None, record=True, file=io.StringIO())
    console.print(tables(result, protocols))
    return console.export_text()


@pytest.mark.parametrize("protocols", [False, True])
@pytest.mark.parametrize("width", [100, 120])
def test_tables_fit_and_name_every_method_and_its_threshold(result, width, protocols):
    text = printed(result, width, protocols)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text and ("Wang 2017" in text) == protocols
    for words in ("PxAP", "boxes/", "mean_lung_boxes", "tuned on validation", "oracle", "one class only"):
        assert words in text, words
    assert "Not localized (no positive image has a box): nodule" in text
    rows = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert rows.index("infomask") < rows.index("infomask_bits") < rows.index("cam") < rows.index("random")
    value = number(result["localization"]["mass"]["infomask"]["mean_iou"]["value"])
    assert any(line.split()[:1] == ["infomask"] and value in line for line in text.splitlines())


def test_fixed_thresholds_are_called_fixed():
    data, maps = scene()
    scores, _ = score(["mass"], data, {"cam": maps}, frame=16, resamples=10)
    text = printed(scores, 110)
    assert "fixed: not tuned" in text and "leave-one-out" in text and "tuned on validation" not in text
    assert {(row.cells[-1].text, row.cells[-1].below) for row in headline(scores).rows} == {
        (".500", "fixed"),
        ("-", ""),
    }


def headline(result):
    return next(sheet for sheet in sheets(result) if sheet.kind == "headline")


def test_every_sheet_has_a_cell_for_every_heading_and_every_method_a_threshold(result):
    found = sheets(result)
    assert [s.kind for s in found if s.kind != "protocol"] == ["classification", "headline", "differences", "counts"]
    for protocol in ("Wang 2017", "Li 2018", "WSOL", "CheXlocalize", "RSNA challenge", "Pixel AUPRC"):
        assert any(sheet.title.startswith(protocol) for sheet in found), protocol
    for sheet in found:
        assert all(len(row.cells) == len(sheet.headings) - 1 for row in sheet.rows)
    rows = {row.name: row for row in headline(result).rows}
    for method, entry in result["localization"]["mass"].items():
        cut, expected = rows[method.split("/")[-1]].cells[-1], entry["threshold"]
        assert (cut.text, cut.below) == (("-", "") if expected["value"] is None else (number(expected["value"]), "val"))


def test_oracles_are_starred_and_nothing_else(result):
    scores = json.loads(json.dumps(result))
    starred = {
        (row.name, h)
        for row in headline(scores).rows
        for h, c in zip(headline(scores).headings[1:], row.cells, strict=True)
        if c.mark
    }
    maps = {"infomask", "infomask_bits", "cam", "random", "center"}  # boxes have no threshold to choose
    assert starred == {(name, "MaxBox AccV2") for name in maps}
    assert any(note.startswith("* ") for note in headline(scores).notes)


def test_a_ceiling_stands_apart_and_is_never_best(result):
    rows = [row for sheet in sheets(result) if sheet.kind in ("headline", "protocol") for row in sheet.rows]
    ceilings = [row for row in rows if row.name == "16x16"]
    assert ceilings and all("knows the true boxes" in row.group for row in ceilings)
    assert not any(cell.bold for row in ceilings for cell in row.cells)
    assert any(cell.bold for row in rows for cell in row.cells)
    assert headline(result).rows[-1].name == "16x16"
    false_boxes = [sheet for sheet in sheets(result) if "AFP" in sheet.title]
    assert false_boxes and not any(cell.bold for s in false_boxes for row in s.rows for cell in row.cells)


def test_differences_name_the_best_control_of_each_score(result):
    sheet = next(s for s in sheets(result) if s.kind == "differences")
    assert [row.name for row in sheet.rows[:2]] == ["cam - best control", "infomask_bits - cam"]
    best = result["differences"]["mass"]["infomask - best control"]["pxap"]["control"].removeprefix("control/")
    assert f"PxAP {best}," in sheet.notes[-1]
    wins = [cell.verdict for row in sheet.rows for cell in row.cells if row.name == "infomask - best control"]
    assert "green" in wins and "red" not in wins


def test_faithfulness_has_a_table_where_it_was_measured(result):
    v = {"value": 0.25, "ci95": [0.2, 0.3], "n": 12}
    measured = {"mass": {"infomask": {"deletion": v, "insertion": {**v, "value": 0.75}, "curves": {}}}}
    sheet = next(s for s in sheets({**result, "faithfulness": measured}) if s.kind == "faithfulness")
    assert [cell.text for cell in sheet.rows[0].cells] == [".250", ".750"]


def hostile(result):
    """The same scores of methods and a finding with names that mean something to LaTeX, Markdown and rich."""
    text = (
        json.dumps(result).replace('"mass"', r'"50% of_a $mass & [red]#1|~^{x\\y}*"').replace('"cam"', '"[cam]_*`|&"')
    )
    return json.loads(text)


@pytest.mark.parametrize("names", ["plain", "hostile"])
def test_latex_is_balanced_and_escaped(result, names):
    text = latex(hostile(result) if names == "hostile" else result)
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    body = "\n".join(lines)
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") == len(sheets(result))
    bare = re.sub(r"\\[{}]", "", body)  # escaped braces
    depth = np.cumsum([{"{": 1, "}": -1}.get(character, 0) for character in bare])
    assert depth.min() == 0 and depth[-1] == 0
    assert bare.replace(r"\$", "").count("$") % 2 == 0 and bare.isascii()
    columns = 0
    for line in lines:
        if line.startswith(r"\begin{tabular}"):
            columns = len(re.search(r"\{(l?r*)\}$", line)[1])
        elif line.endswith(r"\\") and not line.startswith(r"\multicolumn"):
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
            assert not line.startswith(("[", "*"))  # the end of the row above would take it for its argument
            assert not re.search(r"(?<!\\)[#%_]", line), line
    assert columns


def test_latex_prints_special_characters():
    assert escape("a_b 5% #1 {x}") == r"a\_b 5\% \#1 \{x\}"
    assert escape("--tune-on .1–.2") == "-{}-tune-on .1--.2"
    assert escape("a`b & c|d") == r"a\`{}b \& c\textbar{}d"
    assert escape("a---b") == "a-{}-{}-b"
    assert escape("[x] >.1 \\") == r"{[}x] $>$.1 \textbackslash{}"


def test_markdown_keeps_its_columns_whatever_the_names(result):
    columns = 0
    for line in markdown(hostile(result)).splitlines():
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line))
            columns = bars if line.startswith(("| method", "| finding", "| difference")) else columns
            assert bars == columns, line
    assert printed(hostile(result), 120, True).count("[red]") >= 3  # rich does not take it for a colour


def test_scores_are_written_as_four_files_that_agree(scored, tmp_path):
    paths = write_scores(tmp_path / "eval" / "test.v1", *scored)
    assert [p.name for p in paths] == ["test.v1.json", "test.v1.md", "test.v1.tex", "test.v1.csv"]
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == sorted(p.name for p in paths)
    assert json.loads(paths[0].read_text()) == scored[0]
    with paths[3].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(scored[1])
    for row, cells in zip(scored[1], rows, strict=True):
        for name, value in row.items():
            assert cells[name] == "" if value is None else isinstance(value, str) or float(cells[name]) == value
        assert row["true_boxes"] is None or cells["true_boxes"].isdigit()
    for sheet in sheets(scored[0]):
        for row in sheet.rows:
            for cell in row.cells:
                assert cell.text in paths[1].read_text()


class Page(HTMLParser):
    """The tables of a page as texts, its open elements and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.open, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if set(self.open) & {"td", "th"}:
            self.tables[-1][-1][-1] += data


def test_page_holds_every_cell_and_needs_nothing_else(result, tmp_path):
    named = json.loads(json.dumps(hostile(result)).replace("[cam]", "<script src=x>{{ 7 * 7 }}</script>"))
    (tmp_path / "eval").mkdir()
    (tmp_path / "figures" / "mass").mkdir(parents=True)
    (tmp_path / "eval" / "test.json").write_text(json.dumps(named))
    (tmp_path / "eval" / "val.json").write_text(json.dumps(result))
    (tmp_path / "eval" / "train.json").write_text("{}")
    (tmp_path / "figures" / "mass" / "hits.png").write_bytes(b"a picture")
    (tmp_path / "config.json").write_text("{}")
    manifest = {"seed": 3, "dataset": {"name": "<i>rsna"}, "git_revision": None, "libraries": {"jax": "0.1"}}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "devices": ["TPU v5e"] * 4}))
    text = write_page(tmp_path, tmp_path).read_text()
    assert "train.json is not of this version" in text
    page = Page(text)
    assert page.open == ["html"] or not page.open
    assert page.loads == ["data:image/png;base64," + base64.b64encode(b"a picture").decode()]
    order = [s for r in (named, result) for kind in (False, True) for s in sheets(r) if (s.kind == "protocol") == kind]
    for sheet, table in zip(order, page.tables, strict=True):
        rows = [cells for cells in table if len(cells) > 1]
        assert rows[0] == list(sheet.headings)
        for row, cells in zip(sheet.rows, rows[1:], strict=True):
            assert cells == [row.name, *(cell.text + cell.mark + cell.below for cell in row.cells)]


@pytest.mark.parametrize(
    "x, text",
    [
        *[(0.7124, ".712"), (1.0, "1.00"), (0.9999, "1.00"), (0.0, ".000"), (-0.05, "-.050"), (None, "-")],
        *[(9.994, "9.99"), (9.996, "10.0"), (13.91, "13.9"), (99.96, "100"), (-12.34, "-12.3")],
    ],
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


def pixels(png):
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)


def test_gallery_draws_map_and_boxes_where_they_are():
    """Read back from the picture: the brightest corner of the overlay and the green box are both top right."""
    image, heat = np.zeros((64, 64)), np.zeros((8, 8))
    heat[1, 6] = 1
    truth = [np.array([[0.0, 0.5, 0.5, 1.0]])]
    picture = pixels(figures.gallery([image], {"infomask": [heat]}, truth, {}, [0.9], [1], ["a"])).astype(int)
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


def test_galleries_are_hits_and_misses_and_nothing_without_examples(tmp_path):
    data, maps = scene()
    maps[1] = maps[1, ::-1, ::-1]
    images, truth = np.zeros((24, 32, 32)), [b for b, _ in data["boxes"]]
    arguments = images, {"infomask": maps, "cam": maps}, truth, {}, data["probabilities"][:, 0], data["labels"][:, 0]
    drawn = figures.galleries(*arguments, data["image_id"], tmp_path, "test", rows=2)
    assert [p.name for p in drawn] == ["hits.png", "misses.png"] and not list(tmp_path.iterdir())
    assert write_all(drawn) == list(drawn) and all(p.stat().st_size > 5000 for p in drawn)
    negatives = np.flatnonzero(data["labels"][:, 0] == 0)
    rejected = [
        [a[i] for i in negatives] for a in (images, truth, np.zeros(24), data["labels"][:, 0], data["image_id"])
    ]
    few = {"infomask": maps[negatives]}
    nothing = figures.galleries(rejected[0], few, rejected[1], {}, *rejected[2:], tmp_path)
    assert nothing == dict.fromkeys(drawn) and write_all(nothing) == []
    assert not list(tmp_path.iterdir())  # old ones are removed


def test_galleries_print_any_text_whole_and_say_who_judges(tmp_path, monkeypatch):
    data, maps = scene(4)
    odd, kept = r"$\frac_{$ 5%", []
    monkeypatch.setattr(figures.plt, "close", kept.append)  # keeps what is drawn
    truth, chance = [b for b, _ in data["boxes"]], data["probabilities"][:, 0]
    methods = {odd + " and a long name": maps, "cam": maps[:, ::-1]}
    for own in ({odd: maps}, methods):
        title, ids = f"maps of 2026 with a long name.npz, a finding called {odd}, 4 images", [odd] * 4
        figures.galleries(np.zeros((4, 32, 32)), own, truth, {}, chance, data["labels"][:, 0], ids, tmp_path, title)
        heading = kept[-1]._suptitle
        box = heading.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= kept[-1].bbox.x1 and box.y1 <= kept[-1].bbox.y1
        text = "".join(heading.get_text().split())
        assert f"hitsjudgedby{''.join(next(iter(own)).split())}(2of2)" in text
    for fig in kept:
        figures.plt.figure(fig.number).clear()
    monkeypatch.undo()
    figures.plt.close("all")


def test_prevalence_needs_a_known_negative(result):
    sheet = next(s for s in sheets(result) if s.kind == "classification")
    prevalence = {row.name: row.cells[-2] for row in sheet.rows}
    assert prevalence["mass"].text == ".500"
    assert (prevalence["nodule"].text, prevalence["nodule"].below) == ("-", "no negative known")


def test_resumed_and_torn_metrics_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "loss": 1.0} for s in (0, 10, 20, 30)] + [{"step": s, "loss": 2.0} for s in (20, 30, 40)]
    lines[1]["rate_z"] = None
    path.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"step": 50, "lo')
    metrics = figures.read_metrics(path)
    np.testing.assert_array_equal(metrics["step"], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(metrics["loss"], [1, 1, 2, 2, 2])
    assert np.isnan(metrics["rate_z"]).all()
    assert len(figures.training_curves({"InfoMask": path, "plain": path})) > 5000
    path.write_text("")
    assert pixels(figures.training_curves(path)) is not None
