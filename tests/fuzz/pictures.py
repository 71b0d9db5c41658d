"""Damaged pictures through `images.decode`, and what came out of it against an independent decoder."""

import numpy as np
from fuzz import dicom_mutators, mutators, oracles
from fuzz.workers import Bad

from infomask_jax.datasets import images


class Pictures:
    """Checks PNG, JPEG or DICOM files."""

    def __init__(self, kind: str, decode=images.decode):
        self.make, self.decode = getattr(dicom_mutators if kind == "dicom" else mutators, kind), decode

    def close(self) -> None:
        """Nothing is left on disk."""

    def check(self, data: bytes, decoded) -> tuple[str, str]:
        try:
            ours = self.decode(data)
        except images.BadImage as error:
            if not str(error).isprintable() or len(str(error)) > 600:
                raise Bad("message", f"{str(error)[:300]!r}, {len(str(error))} characters") from error
            return "refused", ""
        decoded()
        if ours.ndim != 2 or ours.dtype not in (np.uint8, np.uint16):
            raise Bad("wrong", f"{ours.dtype} {ours.shape}")
        try:
            difference = oracles.judge(data, ours)
        except oracles.Unjudged as unjudged:
            return "accepted", str(unjudged)
        if difference:
            raise Bad("wrong", difference)
        return "accepted", "equal"
