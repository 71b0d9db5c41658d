"""K folds by patient over all splits of a prepared data set, for data too small to be held out."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infomask_jax.datasets.store import Prepared


@dataclass(frozen=True)
class Picked:
    """Examples chosen from several sources."""

    sources: Sequence
    places: np.ndarray  # [N, 2]: which source, which of its examples

    def __len__(self):
        return len(self.places)

    def __getitem__(self, i) -> dict:
        if not 0 <= i < len(self.places):
            raise IndexError(f"expected 0..{len(self.places) - 1}, found {i}")
        source, index = self.places[int(i)].tolist()
        return self.sources[source][index]


@dataclass(frozen=True)
class Folded(Prepared):
    """`whole` with the patients of one fold as `test` and all others as `train`, or all as `test`, fold after fold."""

    whole: Prepared | None = None
    places: dict[str, np.ndarray] | None = None  # by split, [N, 2]: split of `whole`, index there

    def source(self, split: str, fields: Sequence[str] | None = None) -> Picked:
        if split not in self.splits:
            raise ValueError(f"{self.directory}: expected one of {', '.join(self.splits)}; found split {split!r}")
        return Picked([self.whole.source(name, fields) for name in self.whole.splits], self.places[split])


def fingerprint(data: Prepared, folds: int, number: int) -> str:
    """That of a fold, as a run's manifest has it."""
    return hashlib.sha256(f"{data.fingerprint} {folds} {number}".encode()).hexdigest()


def fold(data: Prepared, folds: int, number: int) -> Folded:
    """One fold of `folds`, or, of number -1, all. Every patient is in one, whatever the split, on every machine the
    same. ValueError for fewer patients than folds."""
    sources = [data.source(split, ("patient_id",)) for split in data.splits]
    patients = [[source[i]["patient_id"] for i in range(len(source))] for source in sources]
    names = sorted({patient for those in patients for patient in those})
    if len(names) < folds:
        raise ValueError(f"folds: expected at most {len(names)}, as many as there are patients, found {folds}")
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    of_patient = {name: place % folds for place, name in enumerate(names)}
    places = np.array([(s, i) for s, those in enumerate(patients) for i in range(len(those))])
    fold_of = np.array([of_patient[patient] for those in patients for patient in those])
    if number < 0:
        chosen = {"test": places[np.argsort(fold_of, kind="stable")]}
    else:
        chosen = {"train": places[fold_of != number], "test": places[fold_of == number]}
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    values |= {"fingerprint": fingerprint(data, folds, number), "splits": {k: len(v) for k, v in chosen.items()}}
    return Folded(**values, whole=data, places=chosen)
