"""What PyTorch's encoders give for seeded weights: writes golden_encoders.npz, for test_encoders.py.

It needs the extra `torch`: python tests/golden_encoders.py
"""

import numpy as np
import torch
import torchvision
import torchxrayvision
from efficientnet_lite_pytorch import EfficientNet
from test_encoders import CASES, PATH, SIDE, image, probes, seeded
from torch import nn


class Spread(nn.Module):
    """Mean of four cells that lie `dilation` apart; those at the edge repeat it."""

    def __init__(self, dilation: int):
        super().__init__()
        self.dilation = dilation

    def forward(self, x):
        h, w, steps = *x.shape[2:], (0, self.dilation)
        x = nn.functional.pad(x, (0, self.dilation, 0, self.dilation), mode="replicate")
        return sum(x[:, :, i : i + h, j : j + w] for i in steps for j in steps) / 4


def network(name: str, stride: int):
    """PyTorch's network in evaluation, dilated beyond a stride, and a function that gives its features."""
    if name == "efficientnet_lite0":
        net = EfficientNet.from_name(name.replace("_", "-"), image_size=SIDE)
        dilate_same(net, stride)
        return net.eval(), net.extract_features
    if name.startswith("densenet121"):
        net = torchvision.models.densenet121(weights=None)
        if name.endswith("xray"):
            net = torchxrayvision.models.DenseNet(weights=None, in_channels=1, num_classes=18)
        dilated = 1
        for index, at in ((2, 16), (3, 32)):
            if at > stride:
                getattr(net.features, f"transition{index}").pool = Spread(dilated)
                dilated *= 2
                for layer in getattr(net.features, f"denseblock{index + 1}").children():
                    layer.conv2.dilation = layer.conv2.padding = (dilated, dilated)
        return net.eval(), lambda x: torch.relu(net.features(x))
    if name == "resnet50":
        options = {"replace_stride_with_dilation": [False, stride < 16, stride < 32]}
        net = torchvision.models.resnet50(weights=None, **options)
    else:
        net, before = getattr(torchvision.models, name)(weights=None), 1
        for layer, at in ((net.layer3, 16), (net.layer4, 32)):
            if at > stride:
                for number, block in enumerate(layer):
                    first = before if number == 0 else 2 * before
                    block.conv1.stride = (1, 1)
                    block.conv1.dilation = block.conv1.padding = (first, first)
                    block.conv2.dilation = block.conv2.padding = (2 * before, 2 * before)
                layer[0].downsample[0].stride = (1, 1)
                before *= 2
    body = nn.Sequential(*list(net.children())[:-2])
    return net.eval(), body.eval()


def dilate_same(net, stride: int) -> None:
    """Depthwise convolutions of EfficientNet, padded as TensorFlow does, dilated beyond a stride."""
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
    torch.set_default_dtype(torch.float64)  # in which no rounding turns a ReLU on or off
    golden, x = {}, torch.tensor(image()).double().permute(0, 3, 1, 2)
    for name, stride in CASES:
        net, body = network(name, stride)
        state = {k: seeded(k, tuple(v.shape)) for k, v in net.state_dict().items() if v.ndim}
        net.load_state_dict({k: torch.tensor(v).double() for k, v in state.items()}, strict=False)
        golden[f"{name}/names"] = np.array([f"{k} {' '.join(map(str, v.shape))}" for k, v in state.items()])
        cells = body(x if name.endswith("xray") else x.repeat(1, 3, 1, 1)).permute(0, 2, 3, 1)
        head = next(k for k in state if k.endswith(("fc.weight", "classifier.weight")))
        bias = state[head.replace("weight", "bias")]
        golden[f"{name}/{stride}/logits"] = (cells.detach().numpy().mean((1, 2)) @ state[head].T + bias)[0]
        golden[f"{name}/{stride}/features"] = cells.detach().numpy() @ probes("features", (cells.shape[-1],))
        (cells * torch.tensor(probes("loss", tuple(cells.shape))[..., 0])).sum().backward()
        kernels = {k: p.grad.numpy() for k, p in net.named_parameters() if p.ndim == 4}
        seen = [np.tensordot(g, probes(k, g.shape), g.ndim) for k, g in kernels.items()]
        golden[f"{name}/{stride}/gradients"] = np.array(seen)
        golden[f"{name}/{stride}/norms"] = np.array([np.linalg.norm(g) for g in kernels.values()])
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in golden.items()}


if __name__ == "__main__":
    np.savez_compressed(PATH, **golden_arrays())
