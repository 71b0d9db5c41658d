"""Information-bottleneck attribution of a trained model (Schulz et al. 2020): how many bits each cell must pass.

Noise is mixed into the features, R' = l R + (1 - l) eps with eps ~ N(mean, std^2) of each feature, and l in (0, 1) is
optimised for every image and element so that the finding stays predicted while R' says as little as possible about R.
The bottleneck sits at the encoder's output (the paper's sits inside an ImageNet network): ours.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infomask_jax.config import ModelConfig
from infomask_jax.explain.readout import Readout
from infomask_jax.losses import BITS
from infomask_jax.model import build

MIN_STD = 0.01  # of a feature that never varies


def feature_statistics(
    config: ModelConfig, findings: int, variables: dict, batches: Iterable[np.ndarray]
) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every feature at every cell over `batches` of images [B, H, W, 1]: {"mean",
    "std"}, float32 [h, w, D], which `iba` takes as variables["feature_statistics"]."""
    features = jax.jit(lambda variables, images: Readout(build(config, findings), variables, 0).encode(images))
    count, mean, squares = 0, 0.0, 0.0
    for images in batches:
        batch = np.asarray(features(variables, images), np.float64)
        shift = batch.mean(axis=0) - mean
        squares = squares + len(batch) * batch.var(axis=0) + shift**2 * (count * len(batch) / (count + len(batch)))
        mean = mean + shift * (len(batch) / (count + len(batch)))
        count += len(batch)
    return {"mean": np.float32(mean), "std": np.float32(np.sqrt(squares / count))}


def iba(model: Readout, images: jax.Array, *, width: float = 1.0, **settings) -> jax.Array:
    """Per-sample bottleneck: bits that each cell passes, [B, h, w], after `optimise` with its `settings`.

    width: standard deviation of the Gaussian that smooths l over the grid, cells (paper: 1).
    """
    features = model.encode(images)
    closed = closed_share(optimise(model, features, width=width, **settings), width)
    return capacity(features, closed, model.variables["feature_statistics"]).sum(axis=-1) * BITS


def optimise(
    model: Readout,
    features: jax.Array,
    *,
    beta: float = 10.0,
    steps: int = 10,
    learning_rate: float = 1.0,
    samples: int = 10,
    width: float = 1.0,
    start: float = 5.0,
    seed: int = 0,
) -> jax.Array:
    """The alpha of every element, [B, h, w, D], l = sigmoid(alpha), after minimising `objective` by Adam from `start`.

    beta: price of information, in the paper's "beta = 10 / k" for k elements: weight of their mean, in nats. samples:
    noise draws averaged in each step, the same for every image; `seed` draws them. Defaults as in the paper.
    """
    optimizer = optax.adam(learning_rate)

    def loss(alpha, noise):
        return objective(model, features, alpha, noise, beta=beta, width=width).sum()

    def step(state, keys):
        alpha, moments = state

        def add(total, key):  # one draw at a time: memory does not grow with `samples`
            return total + jax.grad(loss)(alpha, jax.random.normal(key, features.shape[1:])), None

        gradient = jax.lax.scan(add, jnp.zeros_like(alpha), keys)[0] / samples
        update, moments = optimizer.update(gradient, moments)
        return (alpha + update, moments), None

    alpha = jnp.full(features.shape, start)
    keys = jax.random.split(jax.random.key(seed), (steps, samples))
    return jax.lax.scan(step, (alpha, optimizer.init(alpha)), keys)[0][0]


def objective(
    model: Readout, features: jax.Array, alpha: jax.Array, noise: jax.Array, *, beta: float, width: float
) -> jax.Array:
    """-log p(finding present | R') + beta * mean information, nats per image, [B].

    The paper's cross entropy of the softmax target becomes that of the finding's sigmoid being present (ours).
    features, alpha: [B, h, w, D]. noise: [h, w, D], standard normal, the same for every image.
    """
    statistics, closed = model.variables["feature_statistics"], closed_share(alpha, width)
    eps = statistics["mean"] + noise * jnp.maximum(statistics["std"], MIN_STD)
    noised = (1.0 - closed) * features + closed * eps[None]
    if model.model.config.close_empty:  # the model knows empty cells by their zeros, which noise would open
        noised = jnp.where(jnp.any(features != 0, axis=-1, keepdims=True), noised, 0.0)
    logit, _ = model.classify(noised)
    return -jax.nn.log_sigmoid(logit) + beta * capacity(features, closed, statistics).mean(axis=(1, 2, 3))


def closed_share(alpha: jax.Array, width: float) -> jax.Array:
    """1 - l of each element, [B, h, w, D], smoothed over the grid. sigmoid(-alpha), whose logarithm is needed: 1 -
    sigmoid(alpha) would round to 0."""
    smooth = []  # of rows and of columns; rows of these matrices sum to 1, so borders keep their level
    for side in alpha.shape[1:3]:
        distance = jnp.arange(side)[:, None] - jnp.arange(side)[None, :]
        weights = jnp.exp(-0.5 * (distance / width) ** 2)
        smooth.append(weights / weights.sum(axis=1, keepdims=True))
    return jnp.einsum("yi,xj,bijd->byxd", *smooth, jax.nn.sigmoid(-alpha))


def capacity(features: jax.Array, closed: jax.Array, statistics: dict[str, jax.Array]) -> jax.Array:
    """KL(N(l R + (1 - l) mean, (1 - l)^2 std^2) || N(mean, std^2)), nats, elementwise [B, h, w, D]."""
    normalised = (features - statistics["mean"][None]) / jnp.maximum(statistics["std"], MIN_STD)[None]
    return 0.5 * (closed**2 + ((1.0 - closed) * normalised) ** 2 - 1.0) - jnp.log(closed)
