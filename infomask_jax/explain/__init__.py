"""Heat maps of a trained model, one [h, w] map per image and finding; higher means more evidence or information.

`heat_maps` are the maps that a forward pass yields by itself; `attribution` makes the classical methods that ask a
trained model for reasons afterwards.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infomask_jax.config import ModelConfig
from infomask_jax.explain.bottleneck import iba
from infomask_jax.explain.cams import cam, eigencam, gradcam, gradcam_plus_plus, hirescam, layercam
from infomask_jax.explain.gradients import gradient, integrated_gradients, smoothgrad
from infomask_jax.explain.perturbations import occlusion, rise, scorecam
from infomask_jax.losses import BITS
from infomask_jax.model import build

METHODS: dict[str, Callable[..., jax.Array]] = {
    # On the latent grid, [B, h, w]:
    "cam": cam,
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "hirescam": hirescam,
    "layercam": layercam,
    "eigencam": eigencam,
    "scorecam": scorecam,
    "iba": iba,
    # On the pixels, [B, H, W]:
    "gradient": gradient,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
    "occlusion": occlusion,
    "rise": rise,
}


def attribution(
    method: str, config: ModelConfig, findings: int, **options
) -> Callable[[dict, jax.Array, int], jax.Array]:
    """The compiled function maps(variables, images, finding) of an attribution method.

    variables: {"params": ...} as trained; `iba` also wants "feature_statistics", see explain/bottleneck.py. images:
    [B, H, W, 1], standardised as the pipeline gives them. finding: index, 0 .. findings - 1; another index does not
    compile again. Returns float32 [B, h, w] on the latent grid or [B, H, W] on the pixels, see METHODS. The map of an
    image does not depend on the other images of its batch. The model is in evaluation mode; methods that draw at random
    draw the same for every image and call, from their option `seed`. Memory does not grow with the number of
    perturbations.

    Args:
      method: name in METHODS.
      config, findings: of the model.
      options: keyword arguments of the method's own function. TypeError for one that it does not have.
    """
    if method not in METHODS:
        raise ValueError(f"unknown attribution method {method!r}; there are {', '.join(METHODS)}")
    function, model = METHODS[method], build(config, findings)
    inspect.signature(function).bind_partial(**options)

    @jax.jit
    def compiled(variables, images, finding):
        images = jnp.asarray(images, jnp.float32)
        return function(model, variables, images, finding, **options).astype(jnp.float32)

    def maps(variables: dict, images: jax.Array, finding: int) -> jax.Array:
        known = not isinstance(finding, jax.core.Tracer)
        if known and not 0 <= operator.index(finding) < findings:  # inside jit it would be clamped without a word
            raise ValueError(f"finding {finding}: the model has {findings}, counted from 0")
        return compiled(variables, images, finding)

    return maps


def shifted_heat_maps(
    forward: Callable[[jax.Array], tuple[Any, dict[str, jax.Array]]], images: jax.Array, stride: int, shifts: int
) -> tuple[Any, dict[str, jax.Array]]:
    """What `forward` says of the image as it is, and means of its maps over shifts x shifts shifts of the image, on a
    grid `shifts` times as fine.

    The shifts spread evenly over one cell, edges are repeated, and each map is moved back before it is averaged. Ours:
    a cell's edges fall at random on a finding, and this averages over where they fall. One pass is traced and compiled,
    and goes through the loop for every shift.

    Args:
      forward: images [B, H, W, 1] -> (anything, {method: [B, h, w, K]}).
      stride: pixels of a cell. shifts: a divisor of it.
    """
    if shifts == 1:
        return forward(images)
    offsets = [(2 * a - shifts + 1) * stride // (2 * shifts) for a in range(shifts)]  # pixels
    padded = jnp.pad(images, ((0, 0), (stride, stride), (stride, stride), (0, 0)), mode="edge")
    as_is, shape = jax.eval_shape(forward, images)
    h, w = next(iter(shape.values())).shape[1:3]
    rows, columns = (jnp.stack([finer(n, shifts, d / stride) for d in offsets]) for n in (h, w))
    shifted = [(a, b) for a in range(shifts) for b in range(shifts)]
    asked = [(0, 0, 0, 0), *((a, b, offsets[a], offsets[b]) for a, b in shifted)]  # first the image as it is

    def one(found, at):
        (number, (a, b, dy, dx)), (first, total) = at, found
        moved = jax.lax.dynamic_slice(padded, (0, stride + dy, stride + dx, 0), images.shape)
        other, maps = forward(moved)
        first = jax.tree.map(lambda kept, new: jnp.where(number == 0, new, kept), first, other)
        for method, m in maps.items():
            back = jnp.einsum("yi,xj,bijk->byxk", rows[a], columns[b], m, precision="highest") / shifts**2
            total[method] = jnp.where(number == 0, total[method], total[method] + back)
        return (first, total), None

    finest = {m: jnp.zeros((images.shape[0], h * shifts, w * shifts, s.shape[-1]), s.dtype) for m, s in shape.items()}
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), as_is), finest
    return jax.lax.scan(one, zeros, (jnp.arange(len(asked)), jnp.array(asked)))[0]


def finer(cells: int, times: int, offset: float) -> np.ndarray:
    """Matrix [cells * times, cells] that samples a line of cells linearly at a grid `times` as fine, float32.

    Sample i sits at ((i + .5) / times - offset) cells, centres at .5, 1.5, ...; beyond the first and last centre the
    value stays.
    """
    at = np.clip((np.arange(cells * times) + 0.5) / times - offset - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    matrix = np.zeros((cells * times, cells), np.float32)
    rows = np.arange(len(at))
    matrix[rows, low] += 1 - (at - low)
    matrix[rows, np.minimum(low + 1, cells - 1)] += at - low
    return matrix


def heat_maps(out: dict[str, jax.Array], kind: str) -> dict[str, jax.Array]:
    """Every map that one forward pass of InfoMask yields, by method name: [B, h, w, K], or [B, h, w, 1] shared by all.

    infomask: the mask, as used in evaluation. infomask_bits (vib_bits without a mask): pi KL_z + KL_m in bits; sums to
    the rate of the image, but where each finding has a mask: there, its own pi, and KL_z counts for each that reads it.
    infomask_evidence: what each cell of the masked representation says for the finding; one map a finding, where the
    mask may be shared by all. cam: the per-cell class evidence of a plain classifier (vib_evidence: of the bottleneck
    without a mask), which for a mean-pooled linear head is the class activation map of Zhou et al. 2016. attention:
    of attention MIL, the weights of the cells (Ilse et al. 2018), which sum to 1 whether or not the finding is
    there.

    Args:
      out: second result of InfoMask, with train=False.
      kind: the model's, see ModelConfig.
    """
    kl_z = out["kl_z"][..., None]
    if out["kl_m"].shape[-1] > 1:  # weighed by the probability that any mask is open: of that, each mask's own
        pi = jax.nn.sigmoid(out["mask_logits"])
        kl_z = kl_z * pi / (1.0 - jnp.prod(1.0 - pi, axis=-1, keepdims=True))
    bits = (kl_z + out["kl_m"]) * BITS
    if kind == "infomask":
        return {"infomask": out["mask"], "infomask_bits": bits, "infomask_evidence": out["evidence"]}
    if kind == "vib":
        return {"vib_bits": bits, "vib_evidence": out["evidence"]}
    cam = {"cam": out["evidence"]}
    return cam | {"attention": out["attention"]} if kind == "attention_mil" else cam
