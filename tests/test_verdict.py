"""A run says in a few lines what its scores say, and why not to trust them."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from infomask_jax import evaluate
from infomask_jax.evaluate.bootstrap import as_json, patient_weights
from infomask_jax.evaluate.ranking import within
from infomask_jax.report import read_scores, verdict

MASK = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8, 1)


def entry(value=0.4, low=0.3, high=0.5, **more) -> dict:
    return {"value": value, "ci95": [low, high], **more}


def result(auroc=(0.8, 0.7, 0.9), cam=(0.1, 0.05, 0.15), control=(0.2, 0.1, 0.3), **more) -> dict:
    rows = {"infomask - cam": {"pxap": entry(*cam)}}
    rows["infomask - best control"] = {"pxap": entry(*control, control="control/mean_lung_boxes")}
    return {
        "classification": {"mass": {"auroc": entry(*auroc), **more}},
        "localization": {"mass": {"infomask": {"pxap": entry()}}},
        "differences": {"mass": rows},
    }


def lines(found: dict, mask=MASK, labels=((1,),), **more) -> list[str]:
    return verdict(found, {"infomask": np.repeat(mask, len(labels), axis=0)}, np.array(labels), **more)


def test_a_good_run_gets_one_sentence_with_its_intervals():
    (told,) = lines(result())
    assert told == (
        "mass: InfoMask has PxAP .400: better than CAM (+.100 [+.050, +.150]), "
        "better than the best control, mean_lung_boxes, which never looks (+.200 [+.100, +.300])."
    )
    (told,) = lines(result(cam=(-0.1, -0.2, -0.05), control=(0.0, -0.1, 0.1)))
    assert "worse than CAM" in told and "not surely better than the best control" in told
    several = result()
    several["differences"] |= {"edema": {"infomask - cam": {"pxap": entry(-0.1, -0.2, -0.05)}}}
    several["localization"]["edema"] = several["localization"]["mass"]
    assert lines(several)[0].startswith(
        "InfoMask is in PxAP better than CAM for 1 of 2 findings, worse for 1; better than"
    )


@pytest.mark.parametrize(
    ("found", "more", "words"),
    [
        (result(auroc=(0.52, 0.45, 0.6)), {}, "mass is at chance, AUROC .520 [.450, .600]: its maps mean nothing"),
        (result(auroc=(0.6, 0.4, 0.8)), {}, "these films are too few to tell it from chance, AUROC .600 [.400, .800]"),
        (result(auroc=(0.4, 0.35, 0.45)), {}, "mass is worse than chance, AUROC .400 [.350, .450]"),
        (result(auroc_of_view=0.85), {}, "who knows only the view of a film (AP, PA) has AUROC .850, the model .800"),
        (result(), {"rows": [{"step": 1, "val_auroc": 0.95}]}, "AUROC is .950 on val and .800 here"),
        (result(auroc_within_view=entry(0.5, 0.4, 0.6)), {}, "within a view it is at chance (AUROC .500 [.400, .600])"),
        (result(), {"mask": MASK / 4 + 0.7}, "open on 82% of a film"),
        (
            result(),
            {"mask": MASK / 40, "labels": ((1,), (0,), (1,))},
            "2 of 2 masks of positive films are nearly const",
        ),
        (result(), {"epochs": 0.4}, "Training saw 40% of its films"),
        (result(), {"rows": [{"step": i, "val_nll": 1 - i / 10} for i in range(5)]}, "still fell at the end"),
        (
            result(),
            {"rows": [{"step": i, "val_nll": 1 + i / 10} for i in range(5)]},
            "rose from 1.000 at step 0 to 1.4",
        ),
    ],
)
def test_each_reason_not_to_trust_is_one_line(found, more, words):
    told = lines(found, **more)
    assert len(told) == 2 and words in told[1]


def test_a_verdict_takes_no_copy_of_the_maps():
    labels = np.ones((400, 1))
    mask = np.random.default_rng(0).random((400, 100, 100, 1)).astype(np.float16) * np.float16(0.6)
    mask[:2] = 0.9
    tracemalloc.start()
    told = verdict(result(), {"infomask": mask}, labels)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < mask.nbytes / 4 and "2 of 400 masks" in told[1]


@given(st.integers(0, 2**32 - 1))
def test_auroc_within_groups_counts_pairs_of_one_group(seed):
    rng = np.random.default_rng(seed)
    labels, groups, scores = rng.integers(0, 2, 40), rng.integers(0, 3, 40), rng.integers(0, 9, 40) / 8
    won = pairs = 0
    for group in range(3):
        positive, negative = (scores[(groups == group) & (labels == label)] for label in (1, 0))
        difference = positive[:, None] - negative
        won, pairs = won + np.sum((difference > 0) + 0.5 * (difference == 0)), pairs + difference.size
    found = within(labels, scores, groups, *patient_weights(np.arange(40), 20))
    if pairs:
        assert found.value == pytest.approx(won / pairs) and np.isfinite(found.samples).any()
    else:
        assert found.reason
    if len(set(labels)) == 2:
        one = within(labels, scores, np.zeros(40), *patient_weights(np.arange(40), 20))
        assert one.value == pytest.approx(roc_auc_score(labels, scores))


def test_pairs_of_one_positive_patient_have_no_interval():
    labels, views = np.array([1, 1, 0, 0, 1, 1]), np.array([*"AAAABB"])  # B has no negative
    patients = patient_weights(["a", "a", "b", "c", "d", "e"])
    found = as_json(within(labels, np.linspace(1, 0, 6), views, *patients))
    assert found["value"] == 1 and found["ci95"] is None and "one patient" in found["reason"]


def test_one_positive_patient_has_no_interval_and_views_stand_beside_the_auroc(trained):
    n = 30
    data = {"image_id": [str(i) for i in range(n)], "patient_id": [str(max(i, 2)) for i in range(n)]}
    data |= {"labels": (np.arange(n) < 3).astype(int)[:, None], "boxes": [(np.zeros((0, 4)), [])] * n}
    data |= {"probabilities": np.linspace(0.9, 0.1, n)[:, None]}
    for i in range(3):
        data["boxes"][i] = (np.array([[0.1, 0.1, 0.4, 0.4]]), [0])
    maps = {"mine": np.random.default_rng(0).random((n, 8, 8))}
    found, _ = evaluate.score(["mass"], data, maps, frame=16)
    auroc, pxap = found["classification"]["mass"]["auroc"], found["localization"]["mass"]["mine"]["pxap"]
    for score in (auroc, pxap):
        assert score["value"] is not None and score["ci95"] is None and "one patient" in score["reason"]
    assert "auroc_within_view" not in found["classification"]["mass"]
    data |= {"patient_id": data["image_id"], "view": ["AP", "PA"] * (n // 2)}
    own = evaluate.score(["mass"], data, maps, frame=16)[0]["classification"]["mass"]
    assert own["auroc"]["ci95"] and own["auroc_within_view"]["value"] == 1 and 0.5 <= own["auroc_of_view"] < 1


def test_a_scored_run_ends_with_its_verdict(trained):
    scores = read_scores(trained / "eval/test.json")
    assert scores["verdict"][0].startswith("opacity: InfoMask has PxAP")
    assert json.loads((trained / "manifest.json").read_text())["training_films"] == 24
