"""What PyTorch's encoders give for seeded weights: writes golden_encoders.npz, for test_encoders.py.

It needs torch, torchvision, torchxrayvision and efficientnet_lite_pytorch (extra `torch`):

    python tests/golden_encoders.py
"""

import zlib
from pathlib import Path

import numpy as np

NAMES = ("efficientnet_lite0", "resnet18", "resnet34", "resnet50", "densenet121", "densenet121_xray")
STRIDES = (32, 16, 8)
SIDE, PROBES = 64, 4  # pixels of the image; random directions that features and gradients are seen from
PATH = Path(__file__).with_suffix(".npz")


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


def network(name: str, stride: int):
    """PyTorch's network in evaluation, dilated beyond a stride, and a function that gives its features."""
    import torch
    import torchvision
    from torch import nn

    if name == "efficientnet_lite0":
        from efficientnet_lite_pytorch import EfficientNet

        net = EfficientNet.from_name(name.replace("_", "-"), image_size=SIDE)
        dilate_same(net, stride)
        return net.eval(), net.extract_features
    if name.startswith("densenet"):
        if name.endswith("xray"):
            import torchxrayvision

            net = torchxrayvision.models.DenseNet(weights=None, in_channels=1, num_classes=18)
        else:
            net = torchvision.models.densenet121(weights=None)
        dilated = 1
        for index, at in ((2, 16), (3, 32)):
            if at > stride:
                transition = getattr(net.features, f"transition{index}")
                pad = nn.ReplicationPad2d((0, dilated, 0, dilated))
                transition.pool = nn.Sequential(pad, Spread(dilated))
                dilated *= 2
                for layer in getattr(net.features, f"denseblock{index + 1}").children():
                    layer.conv2.dilation = layer.conv2.padding = (dilated, dilated)
        return net.eval(), lambda x: torch.relu(net.features(x))
    if name == "resnet50":
        options = {"replace_stride_with_dilation": [False, stride < 16, stride < 32]}
        net = torchvision.models.resnet50(weights=None, **options)
    else:
        net = getattr(torchvision.models, name)(weights=None)
        before = 1
        for layer, at in ((net.layer3, 16), (net.layer4, 32)):
            if at > stride:
                for number, block in enumerate(layer):
                    first = before if number == 0 else 2 * before
                    block.conv1.stride, block.conv1.dilation, block.conv1.padding = (
                        (1, 1),
                        (first, first),
                        (first, first),
                    )
                    block.conv2.dilation = block.conv2.padding = (2 * before, 2 * before)
                layer[0].downsample[0].stride = (1, 1)
                before *= 2
    body = nn.Sequential(*list(net.children())[:-2])
    return net.eval(), body.eval()


def Spread(dilation: int):
    """Mean of four cells that lie `dilation` apart."""
    import torch
    from torch import nn

    class Spread(nn.Module):
        def forward(self, x):
            h, w = x.shape[2] - dilation, x.shape[3] - dilation
            corners = [x[:, :, i : i + h, j : j + w] for i in (0, dilation) for j in (0, dilation)]
            return torch.stack(corners).mean(0)

    return Spread()


def dilate_same(net, stride: int) -> None:
    """Depthwise convolutions of EfficientNet, padded as TensorFlow does, dilated beyond a stride."""
    from torch import nn

    at, dilated = 2, 1
    for block in net._blocks:
        conv = block._depthwise_conv
        side, step = conv.kernel_size[0], conv.stride[0]
        low, spread = (side - step) // 2, dilated
        if step == 2:
            at *= 2
            if at > stride:
                conv.stride = (1, 1)
                dilated *= 2
        if dilated > 1:
            conv.dilation = (spread, spread)
            high = spread * (side - 1) - spread * low
            conv.static_padding = nn.ZeroPad2d((spread * low, high, spread * low, high))


def golden_arrays() -> dict[str, np.ndarray]:
    """{NAME/STRIDE/WHAT: float32}, and {NAME/names: names and shapes of the state dict}."""
    import torch

    torch.set_default_dtype(torch.float64)  # in which no rounding turns a ReLU on or off
    golden, x = {}, torch.tensor(image()).double().permute(0, 3, 1, 2)
    for name in NAMES:
        for stride in STRIDES:
            net, body = network(name, stride)
            state = {k: seeded(k, tuple(v.shape)) for k, v in net.state_dict().items() if v.ndim}
            net.load_state_dict({k: torch.tensor(v).double() for k, v in state.items()}, strict=False)
            golden[f"{name}/names"] = np.array([f"{k} {' '.join(map(str, v.shape))}" for k, v in state.items()])
            features = body(x if name.endswith("xray") else x.repeat(1, 3, 1, 1))
            pooled = features.mean((2, 3))
            head = next(k for k in state if k.endswith(("fc.weight", "classifier.weight")))
            golden[f"{name}/{stride}/logits"] = (
                pooled.detach().numpy() @ state[head].T + state[head.replace("weight", "bias")]
            )[0]
            cells = features.permute(0, 2, 3, 1)
            golden[f"{name}/{stride}/features"] = cells.detach().numpy() @ probes("features", (cells.shape[-1],))
            (cells * torch.tensor(probes("loss", tuple(cells.shape))[..., 0])).sum().backward()
            kernels = {k: p.grad.numpy() for k, p in net.named_parameters() if p.ndim == 4}
            seen = [np.tensordot(g, probes(k, g.shape), g.ndim) for k, g in kernels.items()]
            golden[f"{name}/{stride}/gradients"] = np.array(seen)
            golden[f"{name}/{stride}/norms"] = np.array([np.linalg.norm(g) for g in kernels.values()])
            print(name, stride, tuple(cells.shape), float(cells.detach().abs().max()))
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in golden.items()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **golden_arrays())
