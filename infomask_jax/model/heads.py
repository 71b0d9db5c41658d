"""What is read off the cells: maps that are linear in the features, evidence for each finding, attention scores."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from infomask_jax.model.encoder import add_bias, per_cell

product = partial(jnp.matmul, precision="highest")  # in float32, which accelerators else round to half of its digits


class Head(nn.Module):
    """Evidence of each cell for each finding before it is bounded, w_k . z: [B, h, w, C] -> [B, h, w, K].

    Linear and without a bias: a closed cell, z = 0, gives none. With `spread`, z holds the log sigma of N(mu, sigma^2)
    and what is returned is that of w_k . z. Evidence drawn with it is distributed as if z were drawn, for each finding
    on its own, hence every loss has the same mean, for K random numbers a cell in place of C (local
    reparameterization, Kingma et al. 2015).
    """

    findings: int

    @nn.compact
    def __call__(self, z: jax.Array, spread: bool = False) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (z.shape[-1], self.findings))
        if spread:
            variance = per_cell(lambda cells: product(cells, kernel**2), jnp.exp(2 * z))
            return 0.5 * jnp.log(variance + 1e-12)  # finite where w is 0
        return per_cell(lambda cells: product(cells, kernel), z)


class Affine(nn.Module):
    """Kernel [D, N] and bias [N] of a map of the features, for `affine_maps`."""

    outputs: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (inputs, self.outputs))
        return kernel, self.param("bias", self.bias_init, (self.outputs,))


def affine_maps(features: jax.Array, layers: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
    """Maps of the same features as one matrix product: [B, h, w, D] -> [B, h, w, N] each.

    One product for their gradients too, see benchmarks/README.md for what that saves. Transposed twice, for XLA:CPU
    computes a weight gradient of N x D faster than one of D x N.
    """
    *grid, inputs = features.shape
    kernels, biases = zip(*layers, strict=True)
    products = product(features.reshape(-1, inputs), jnp.concatenate([kernel.T for kernel in kernels], axis=0).T)
    ends = itertools.accumulate(len(bias) for bias in biases[:-1])
    parts = jnp.split(add_bias(products, jnp.concatenate(biases)), list(ends), axis=1)
    return [part.reshape(*grid, -1) for part in parts]


def expected_evidence(head: Head, layer: tuple[jax.Array, jax.Array] | None, features: jax.Array) -> jax.Array:
    """Evidence of mu = features @ kernel + bias, (kernel, bias) = layer, without one of the features themselves.

    [B, h, w, D] -> [B, h, w, K]. Both maps are linear, so their kernels are multiplied, not D x C and C x K products
    made of every cell.
    """
    if layer is None:
        return head(features)
    kernel, bias = layer
    return per_cell(lambda cells: product(cells, head(kernel)), features) + head(bias)[None, None, None]


class GatedAttention(nn.Module):
    """Scores w_k . (tanh(V z) * sigmoid(U z)) of the cells, whose softmax weighs them (Ilse et al. 2018, eq. 9).

    One w per finding; V and U are shared and have as many rows as z has channels (ours). Without biases, as in the
    paper: a cell that holds zeros scores zero. [B, h, w, C] -> [B, h, w, K].
    """

    findings: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, use_bias=False, precision="highest")
        gated = nn.tanh(dense(z.shape[-1], name="tanh")(z)) * nn.sigmoid(dense(z.shape[-1], name="gate")(z))
        return dense(self.findings, name="weights")(gated)
