"""Encoders against PyTorch's: features, logits and gradients of seeded weights, at each stride."""

import zlib
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infomask_jax import weights
from infomask_jax.model import Backbone, stages
from infomask_jax.model.backbone import Conv

NAMES = ("efficientnet_lite0", "resnet18", "resnet34", "resnet50", "densenet121", "densenet121_xray")
CASES = [(name, stride) for name in NAMES for stride in (32, 16, 8)]
# Gradients of two of three strides are left out, for they take most of the time to compile.
WITH_GRADIENTS = {*zip(NAMES, (8, 8, 32, 16, 16, 8), strict=True)}
SIDE, PROBES = 64, 4  # pixels of the image; random directions that features and gradients are seen from
PATH = Path(__file__).with_name("golden_encoders.npz")  # made by golden_encoders.py
GOLDEN = dict(np.load(PATH)) if PATH.exists() else {}


def seeded(name: str, shape: tuple) -> np.ndarray:
    """A tensor of a state dict, of a distribution that keeps signals within bounds."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("weight") and len(shape) == 1:
        return rng.uniform(0.4, 0.9, shape).astype(np.float32)
    spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1
    return (spread * rng.standard_normal(shape)).astype(np.float32)


def image() -> np.ndarray:
    """[1, SIDE, SIDE, 1] float32."""
    return np.random.default_rng(0).standard_normal((1, SIDE, SIDE, 1)).astype(np.float32)


def probes(name: str, shape: tuple) -> np.ndarray:
    """[*shape, PROBES] float32, of mean square 1 / size."""
    rng = np.random.default_rng(zlib.crc32(f"probe {name}".encode()))
    return (rng.standard_normal((*shape, PROBES)) / np.prod(shape) ** 0.5).astype(np.float32)


def state_dict(name: str) -> dict[str, np.ndarray]:
    """The seeded state dict of which the golden arrays are, with the names and shapes that PyTorch gave it."""
    rows = (row.split() for row in GOLDEN[f"{name}/names"])
    return {key: seeded(key, tuple(map(int, shape))) for key, *shape in rows}


def loaded(name: str, stride: int, dtype: str):
    """An encoder and its parameters with the seeded weights."""
    kind = name.removesuffix("_xray")
    encoder = Backbone(stages(kind, stride, True, dtype), stride)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), image())["params"]
    return encoder, weights.matched(kind, weights.renamed(kind, state_dict(name)), shapes)[0]


@pytest.mark.parametrize(("side", "stride", "dilation", "same"), [(3, 2, 1, False), (5, 1, 4, True)])
def test_depthwise_sums_are_the_convolution_of_accelerators(monkeypatch, side, stride, dilation, same):
    conv = Conv(6, side, stride, 2, dilation, same=same, depthwise=True)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 6)).astype(np.float32)
    params = conv.init(jax.random.key(0), x)
    shown, found = probes("out", (2, 16 // stride, 16 // stride, 6))[..., 0], []
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        found.append(conv.apply(params, x))
        found.append(jax.grad(lambda params, x: jnp.sum(shown * conv.apply(params, x)), argnums=(0, 1))(params, x))
    assert found[0].shape == shown.shape
    chex.assert_trees_all_close(found[:2], found[2:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "densenet121"])
def test_signals_keep_their_size_from_scratch(name):
    encoder = nn.Sequential(stages(name, 32, pretrained=False)[:2])
    x = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 1)).astype(np.float32)
    features, _ = jax.jit(encoder.init_with_output)(jax.random.key(0, impl="rbg"), x)  # which compiles at once
    assert 0.2 < float(jnp.sqrt(jnp.mean(features**2))) < 5


@pytest.mark.parametrize(("name", "stride"), CASES)
def test_features_logits_and_gradients_are_pytorchs(monkeypatch, name, stride):
    """Computed as on accelerators, which compiles in half of the time."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    golden = {key: GOLDEN[f"{name}/{stride}/{key}"] for key in ("features", "logits", "gradients", "norms")}
    with jax.enable_x64(True):  # in which no rounding turns a ReLU on or off
        encoder, params = loaded(name, stride, "float64")

        def loss(params, x):
            features = encoder.apply({"params": params}, x)
            return jnp.sum(features * probes("loss", features.shape)[..., 0]), features

        wanted = jax.grad(loss, has_aux=True) if (name, stride) in WITH_GRADIENTS else lambda *of: (None, loss(*of)[1])
        gradients, features = jax.device_get(jax.jit(wanted)(params, image()))
    seen = features @ probes("features", features.shape[-1:])
    np.testing.assert_allclose(seen, golden["features"], rtol=1e-5, atol=1e-5 * abs(golden["features"]).max())
    state = state_dict(name)
    head = next(key for key in state if key.endswith(("fc.weight", "classifier.weight")))
    logits = features.mean(axis=(0, 1, 2)) @ state[head].T + state[head.replace("weight", "bias")]
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-5, atol=1e-5 * abs(golden["logits"]).max())
    if gradients is None:
        return
    layers = {key: leaves for stage in gradients.values() for key, leaves in stage.items()}
    kernels = [key for key, value in state.items() if value.ndim == 4]
    assert {key.removesuffix(".weight") for key in kernels} == {k for k, leaves in layers.items() if "kernel" in leaves}
    for key, projections, norm in zip(kernels, golden["gradients"], golden["norms"], strict=True):
        gradient = layers[key.removesuffix(".weight")]["kernel"].transpose(3, 2, 0, 1)
        gradient = np.broadcast_to(gradient, state[key].shape)  # each colour of a gray film has that of their sum
        found = np.tensordot(gradient, probes(key, gradient.shape), gradient.ndim)
        np.testing.assert_allclose(found, projections, rtol=1e-4, atol=1e-4 * norm / gradient.size**0.5, err_msg=key)
    for leaves in layers.values():  # statistics and affine constants are constants
        assert not any(np.any(leaves[key]) for key in ("scale", "shift") if key in leaves)


def test_golden_arrays_are_what_pytorch_gives():
    for module in ("torch", "torchvision", "torchxrayvision", "efficientnet_lite_pytorch"):  # the extra `torch`
        pytest.importorskip(module)
    import golden_encoders

    anew = golden_encoders.golden_arrays()
    assert anew.keys() == GOLDEN.keys()
    for key, array in anew.items():
        if key.endswith("/names"):
            np.testing.assert_array_equal(array, GOLDEN[key])
        else:
            np.testing.assert_allclose(array, GOLDEN[key], rtol=1e-5, atol=1e-5 * abs(array).max(), err_msg=key)
