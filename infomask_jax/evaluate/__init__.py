"""Scores of weakly supervised localization, with controls and bootstrap intervals.

Usable on anyone's maps: plain numpy arrays in, a JSON-ready dict out. This room imports no JAX
and no other room but localize.py.

    scoring.py       `score`: all of it
    localization.py  every score of one prediction, the conventions in words
    protocols.py     the published protocols, one function each
    truth.py         what is true of a finding, in boxes and pixels, and on which images
    pixels.py        average precision, pointing game, overlap of regions, threshold tuning
    boxes.py         overlaps of boxes
    sweep.py         the boxes of a map's regions at all thresholds
    controls.py      predictions of what has learned nothing, and the ceiling of a grid
    bootstrap.py     intervals over patients, paired differences
    ranking.py       AUROC, average precision and calibration of the classifier
    faithfulness.py  deletion and insertion curves
    shares.py        where the mass of a map lies: lesion, lung, elsewhere
    checks.py        what is accepted
"""

from infomask_jax.evaluate.faithfulness import deletion_insertion
from infomask_jax.evaluate.localization import PROTOCOLS
from infomask_jax.evaluate.ranking import classification_scores
from infomask_jax.evaluate.scoring import score

__all__ = ["PROTOCOLS", "classification_scores", "deletion_insertion", "score"]
