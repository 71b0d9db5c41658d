"""What goes with the label beside the disease: the view of a film, sex, age, follow-up. A model may learn these in its
place. Counted when a data set is prepared, told where they differ, and evened out for the view."""

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from infomask_jax.datasets.schema import SPLITS, BadData, Item
from infomask_jax.text import shown

BANDS = (40, 60)  # ages that part three bands, years
LARGEST = 12  # groups of one kind that are counted by name; the rest are "other"
STRONG = 0.6  # difference of shares from which on there is a warning
GAP, DEVIATIONS = 0.1, 3.0  # least difference of shares that is told, absolute and in standard errors
TURNED = 0.05  # least difference the other way round that is told, too
LEFT = "other"


def about(sex: str = "", age: str = "", follow_up: str = "") -> dict[str, str]:
    """What a table tells of a film's patient, as groups; what is empty or no number is in none."""
    found = {"sex": shown(sex)[:20].upper()}
    with contextlib.suppress(ValueError):
        years, (low, high) = float(age.strip("Yy ")), BANDS
        if 0 <= years < 130:
            older = f"{low} to {high - 1}" if years < high else f"{high} and over"
            found["age"] = f"under {low}" if years < low else older
    if follow_up.isdecimal():
        found["follow-up"] = "later film" if int(follow_up) else "first film"
    return {kind: group for kind, group in found.items() if group}


def count(examples: dict[str, list[dict]]) -> dict:
    """{kind: {split: {group: [[present, absent] of each finding]}}} of {split: examples with `labels` [K] and `groups`
    {kind: group}}; kinds of one group are left out."""
    names = defaultdict(Counter)
    for example in (example for those in examples.values() for example in those):
        for kind, group in example["groups"].items():
            names[kind][group] += 1
    found = {}
    for kind, counted in names.items():
        kept = [group for group, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:LARGEST]]
        if len(kept) < 2:
            continue
        found[kind] = {}
        for split, those in examples.items():
            of_group = defaultdict(list)
            for example in those:
                if group := example["groups"].get(kind):
                    of_group[group if group in kept else LEFT].append(example["labels"])
            found[kind][split] = {
                group: [[int(np.sum(own == 1)), int(np.sum(own == 0))] for own in np.array(labels).T]
                for group, labels in sorted(of_group.items())
            }
    return found


def table(findings: Sequence[str], counted: dict) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows of "finding", "kind group" and, of each split, "share of the positives / of the negatives", where they
    differ in train; and a warning for each that turns in test."""
    rows, warnings = [], []
    for k, finding in enumerate(findings):
        for kind, by_split in counted.items():
            gaps = {split: dict(_gaps(by_split.get(split, {}), k)) for split in SPLITS}
            if not gaps["train"]:
                continue
            group = max(gaps["train"], key=lambda name: abs(gaps["train"][name][2]))
            positive, negative, gap, error = gaps["train"][group]
            if abs(gap) < GAP or abs(gap) < DEVIATIONS * error:
                continue
            texts = (_text(gaps[split].get(group)) for split in SPLITS)
            rows.append((finding, f"{kind} {group}", *texts))
            in_test = gaps["test"].get(group)
            if abs(gap) >= STRONG:
                told = f"{positive:.0%} of the positives and {negative:.0%} of the negatives in train"
                warnings.append(f"{finding}: {kind} {group} is {told}: a model may learn the {kind} in place of it.")
            if in_test and in_test[2] * gap < 0 and abs(in_test[2]) >= TURNED:
                told = f"{positive:.0%} of the positives and {negative:.0%} of the negatives in train"
                told += f", but {in_test[0]:.0%} and {in_test[1]:.0%} in test"
                hint = "; --matched in `prepare --help` says how to even it out" if kind == "view" else ""
                wrong = f"a model that goes by the {kind} will be wrong there{hint}"
                warnings.append(f"{finding}: {kind} {group} is {told}: {wrong}.")
    return rows, warnings


def _gaps(groups: dict, k: int) -> Iterator[tuple[str, tuple[float, float, float, float]]]:
    """(group, (share of the positives, of the negatives, their difference, its standard error)) of finding k."""
    positives, negatives = np.sum([labels[k] for labels in groups.values()], axis=0) if groups else (0, 0)
    if positives and negatives:
        for group, labels in groups.items():
            a, b = labels[k][0] / positives, labels[k][1] / negatives
            both = (labels[k][0] + labels[k][1]) / (positives + negatives)
            yield group, (a, b, a - b, float(np.sqrt(both * (1 - both) * (1 / positives + 1 / negatives))))


def _text(gap: tuple | None) -> str:
    return f"{gap[0]:.0%} / {gap[1]:.0%}" if gap else "-"


def check_matched(options, findings: Sequence[str]) -> None:
    """BadData where negatives cannot be matched: with more than one finding."""
    if options.matched and len(findings) != 1:
        raise BadData(f"--matched view: expected one of --findings, found {len(findings)}: {', '.join(findings)}")


def matched(items: list[Item], options) -> list[Item]:
    """The items; with options.matched in train and val of the negatives of their one finding as many as leave both
    labels the same shares of views. BadData where train has no negative of some view; val's other views are matched."""
    if not options.matched:
        return items
    return [item for split in SPLITS for item in _matched([i for i in items if i.split == split], split)]


def _matched(items: list[Item], split: str) -> list[Item]:
    positives, negatives, unknown = (defaultdict(list) for _ in range(3))
    for item in sorted(items, key=lambda i: hashlib.sha256(i.image_id.encode()).digest()):
        {1: positives, 0: negatives, -1: unknown}[item.labels[0]][item.view].append(item)
    if split == "test" or not positives:
        return items
    if split == "train" and (without := [view for view in positives if not negatives[view]]):
        found = f"view {without[0]!r} of its positives, found none"
        raise BadData(f"--matched view: expected negatives of train in {found}")
    shares = [len(negatives[view]) / len(those) for view, those in positives.items() if negatives[view]]
    each = min(shares, default=0.0)  # negatives to a positive
    kept = {item.image_id for view, those in positives.items() for item in negatives[view][: round(each * len(those))]}
    return [item for item in items if item.labels[0] or item.image_id in kept]
