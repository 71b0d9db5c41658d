"""Scores of weakly supervised localization, with image-blind controls and bootstrap intervals.

Usable on anyone's maps: plain numpy arrays in, a JSON-ready dict out. This room imports no other room and no JAX.

    scoring.py       `score`: all of it
    localization.py  what is true of a finding, every score of one method, the conventions in words
    frame.py         maps, boxes and masks on one scoring frame
    pixels.py        PxAP, pointing game, mean IoU, threshold tuning
    boxes.py         regions, IoU, MaxBoxAccV2, accuracy at IoU and IoBB, false positives
    controls.py      predictions that never look at the image
    bootstrap.py     intervals over patients, paired differences
    ranking.py       AUROC and average precision from counts
    checks.py        what is accepted
"""

from infomask_jax.evaluate.scoring import classification_scores, score

__all__ = ["classification_scores", "score"]
