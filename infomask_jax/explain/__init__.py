"""Heat maps of a trained model, one [h, w] map per image and finding; higher means more evidence or information."""

import jax

from infomask_jax.losses import BITS


def heat_maps(out: dict[str, jax.Array], bottleneck: str) -> dict[str, jax.Array]:
    """Every map that one forward pass of InfoMask yields, by method name: [B, h, w, K], or [B, h, w, 1] shared by all.

    infomask: the mask, as used in evaluation. infomask_bits (vib_bits without a mask): pi KL_z + KL_m in bits; sums to
    the rate of the image. cam: the per-cell class evidence of a plain classifier, which for a mean-pooled linear head
    is the class activation map of Zhou et al. 2016.

    Args:
      out: second result of InfoMask, with train=False.
      bottleneck: the model's, see ModelConfig.
    """
    if bottleneck == "none":
        return {"cam": out["evidence"]}
    bits = (out["kl_z"][..., None] + out["kl_m"]) * BITS
    if bottleneck == "vib":
        return {"vib_bits": bits}
    return {"infomask": out["mask"], "infomask_bits": bits}
