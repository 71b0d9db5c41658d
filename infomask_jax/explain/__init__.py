"""Heat maps of a trained model, one [h, w] map per image and finding; higher means more evidence or information.

`heat_maps` are the maps that a forward pass yields by itself; `attribution` makes the classical methods that ask a
trained model for reasons afterwards.
"""

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
from infomask_jax.explain.readout import Readout
from infomask_jax.losses import BITS
from infomask_jax.model import build

ON_GRID = (cam, gradcam, gradcam_plus_plus, hirescam, layercam, eigencam, scorecam, iba)  # [B, h, w], of the latents
ON_PIXELS = (gradient, smoothgrad, integrated_gradients, occlusion, rise)  # [B, H, W]
METHODS: dict[str, Callable[..., jax.Array]] = {method.__name__: method for method in (*ON_GRID, *ON_PIXELS)}


def attribution(
    method: str, config: ModelConfig, findings: int, **options
) -> Callable[[dict, jax.Array, int], jax.Array]:
    """The compiled function maps(variables, images, finding) of a method in METHODS; the model is in evaluation mode.

    variables: {"params": ...} as trained; `iba` also wants "feature_statistics", see explain/bottleneck.py. images:
    [B, H, W, 1], standardised. finding: index; another one does not compile again. Returns float32 [B, h, w] on the
    latent grid or [B, H, W] on the pixels. The map of an image does not depend on the others of its batch; methods that
    draw at random draw the same for every image and call, from their option `seed`.

    config, findings: of the model. options: keyword arguments of the method's own function.
    """
    function, model = METHODS[method], build(config, findings)

    @jax.jit
    def compiled(variables, images, finding):
        images = jnp.asarray(images, jnp.float32)
        return function(Readout(model, variables, finding), images, **options).astype(jnp.float32)

    def maps(variables: dict, images: jax.Array, finding: int) -> jax.Array:
        if not isinstance(finding, jax.core.Tracer) and not 0 <= finding < findings:  # jit would clamp it
            raise ValueError(f"finding {finding}: the model has {findings}, counted from 0")
        return compiled(variables, images, finding)

    return maps


def shifted_heat_maps(
    forward: Callable[[jax.Array], tuple[Any, dict[str, jax.Array]]], images: jax.Array, stride: int, shifts: int
) -> tuple[Any, dict[str, jax.Array]]:
    """What `forward`, images [B, H, W, 1] -> (anything, {method: [B, h, w, K]}), says of the image as it is, and means
    of its maps over shifts x shifts shifts of the image, on a grid `shifts` times as fine.

    The shifts, a divisor of the `stride` pixels of a cell, spread evenly over it, edges are repeated, and each map is
    moved back before it is averaged. Ours: a cell's edges fall at random on a finding, and this averages over where.
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
    """Matrix [cells * times, cells] that samples a line of cells linearly at ((i + .5) / times - offset) cells, centres
    at .5, 1.5, ...; beyond the first and last centre the value stays."""
    at = np.clip((np.arange(cells * times) + 0.5) / times - offset - 0.5, 0, cells - 1)
    low = np.minimum(at.astype(int), max(cells - 2, 0))
    matrix = np.zeros((cells * times, cells), np.float32)
    rows = np.arange(len(at))
    matrix[rows, low] += 1 - (at - low)
    matrix[rows, np.minimum(low + 1, cells - 1)] += at - low
    return matrix


def heat_maps(out: dict[str, jax.Array], kind: str) -> dict[str, jax.Array]:
    """Every map of one forward pass of a model of that kind, by method: [B, h, w, K], or [B, h, w, 1] shared by all.

    infomask: the mask, as used in evaluation. infomask_bits (vib_bits without a mask): pi KL_z + KL_m in bits; sums to
    the rate of the image, but where each finding has a mask: there, its own pi, and KL_z counts for each that reads it.
    infomask_evidence: what each cell of the masked representation says for the finding. cam: the per-cell class
    evidence of a plain classifier (vib_evidence: of the bottleneck without a mask), which for a mean-pooled linear head
    is the class activation map of Zhou et al. 2016. attention: of attention MIL, the weights of the cells (Ilse et al.
    2018), which sum to 1 whether or not the finding is there.

    out: second result of the model, with train=False.
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
