"""Scores of weakly supervised localization, with controls and bootstrap intervals: numpy arrays in, a JSON-ready dict
out, for anyone's maps. `scoring.score` is all of it; protocols.py holds the published protocols, shares.py the shortcut
audit. Imports no JAX and no other room but localize.py. docs/evaluation.md explains every score.
"""

from infomask_jax.evaluate.faithfulness import deletion_insertion
from infomask_jax.evaluate.localization import PROTOCOLS
from infomask_jax.evaluate.ranking import classification_scores
from infomask_jax.evaluate.scoring import score

__all__ = ["PROTOCOLS", "classification_scores", "deletion_insertion", "score"]
