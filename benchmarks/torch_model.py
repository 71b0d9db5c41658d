"""PyTorch's part: the default InfoMask for step.py, checked against ours with equal parameters, and torchvision's
classifiers for encoders.py."""

import math
from collections.abc import Callable

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from infomask_jax.config import Config, LossConfig, ModelConfig
from infomask_jax.model import build, encoder
from infomask_jax.model.encoder import RELU_GAIN
from infomask_jax.model.infomask import ABSENT, LOG_SIGMA, LOGIT_BOUND, MASK_LOGIT
from infomask_jax.model.sampling import TEMPERATURE
from infomask_jax.model.views import EMPTY_RANGE
from infomask_jax.train import CLIP_NORM, WEIGHT_DECAY, create_state

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class WSConv(nn.Module):
    """Convolution with scaled weight standardisation, [B, C, H, W]."""

    def __init__(self, inputs: int, outputs: int, side: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs, side, side) * (2.0 / (inputs * side**2)) ** 0.5)
        self.gain, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        k = self.kernel
        variance, mean = torch.var_mean(k, dim=(1, 2, 3), unbiased=False, keepdim=True)
        scale = self.gain.view(-1, 1, 1, 1) * torch.rsqrt(k[0].numel() * variance + 1e-4)
        return F.conv2d(x, ((k - mean) * scale).to(x.dtype), self.bias.to(x.dtype), padding=k.shape[-1] // 2)


class Encoder(nn.Module):
    """[B, 1, H, W] -> [B, D, h, w]."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.stem, self.blocks, inputs = WSConv(4, c.width, 3), nn.ModuleList(), c.width
        for stage in range(c.stride.bit_length() - 1):
            channels = c.width * 2**stage
            for block in range(encoder.Encoder.depth):
                shrinks = stage > 0 and block == 0
                skip = [WSConv(inputs, channels, 1)] if shrinks else []
                convs = [*skip, WSConv(inputs, channels, 3), WSConv(channels, channels, 1 if stage else 3)]
                self.blocks.append(nn.ModuleList(convs))
                inputs = channels

    def forward(self, x):
        x = self.stem(F.pixel_unshuffle(x, 2))
        for convs in self.blocks:
            y = F.relu(x) * RELU_GAIN
            if len(convs) == 3:
                y = F.avg_pool2d(y, 2)
                x = convs[0](y)
            x = x + convs[-1](F.relu(convs[-2](y)) * RELU_GAIN)
        return F.relu(x) * RELU_GAIN


class InfoMask(nn.Module):
    """One finding or more; one mask, sampler concrete, pooling lse, two views, empty cells closed: the defaults."""

    def __init__(self, c: ModelConfig, findings: int):
        super().__init__()
        self.c, self.encoder, inputs = c, Encoder(c), c.width * 2 ** (c.stride.bit_length() - 2)
        self.mask, self.mu = nn.Conv2d(inputs, 1, 1), nn.Conv2d(inputs, c.latent_channels, 1)
        self.log_sigma = nn.Conv2d(inputs, c.latent_channels, 1)
        self.head = nn.Conv2d(c.latent_channels, findings, 1, bias=False)
        self.closed_evidence = nn.Parameter(torch.full((findings,), ABSENT))
        self.prior_logit = nn.Parameter(torch.tensor([math.log(c.mask_prior / (1 - c.mask_prior))]))
        self.prior_coupling = nn.Parameter(torch.tensor([c.mask_coupling]))
        nn.init.zeros_(self.mask.weight)
        nn.init.constant_(self.mask.bias, MASK_LOGIT)
        nn.init.constant_(self.log_sigma.bias, LOG_SIGMA)

    def encode(self, x):
        if self.c.dtype == "bfloat16":
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.encoder(x.to(torch.bfloat16)).float()
        return self.encoder(x)

    def views(self, x):
        """Features, those of the first view and of the second, turned back, and the cells that the second shows."""
        stride = self.c.stride
        shown = ((F.max_pool2d(x, stride) + F.max_pool2d(-x, stride)) > EMPTY_RANGE).float()
        first = self.encode(x) * shown
        if self.training:
            height, width = first.shape[-2:]
            share = torch.rand(len(x), 1, 1, 1, device=x.device)
            blocks = torch.rand(len(x), 1, -(-height // 2), -(-width // 2), device=x.device) >= share
            kept = F.interpolate(blocks.float(), scale_factor=2)[..., :height, :width]
            x, shown = x * F.interpolate(kept, scale_factor=stride), shown * kept
        second = shown * self.encode(x.flip(2, 3)).flip(2, 3)
        return torch.where(shown > 0, (first + second) / 2, first), first, second, shown

    def evidence(self, z, content):  # [B, C, h, w] -> [B, K, h, w]
        bound = self.c.evidence_bound
        return content * bound * torch.tanh(self.head(z) / bound)

    def pooled(self, cells):  # [..., K, h, w] -> [..., K]
        cells = (cells + self.closed_evidence.view(-1, 1, 1)).flatten(-2)
        return torch.logsumexp(cells, dim=-1) - math.log(cells.shape[-1])

    def prior(self, pi):
        around = torch.ones(1, 1, 3, 3, device=pi.device)
        around[..., 1, 1] = 0
        neighbours = F.conv2d(torch.ones_like(pi), around, padding=1)
        return self.prior_logit + self.prior_coupling * F.conv2d(pi, around, padding=1) / neighbours

    def forward(self, x):
        c, train = self.c, self.training
        features, first, second, shown = self.views(x)
        content = (features != 0).any(1, keepdim=True).float()
        mu, log_sigma = self.mu(features), self.log_sigma(features).clamp(-8.0, 2.0)
        z = mu + torch.exp(log_sigma) * torch.randn_like(mu) if train else mu

        known = self.evidence(mu, content).detach().amax(1, keepdim=True)
        logits = LOGIT_BOUND * torch.tanh((self.mask(features) + c.mask_evidence * known) / LOGIT_BOUND)
        logits = torch.where(content > 0, logits, -LOGIT_BOUND)
        pi = content * torch.sigmoid(logits)
        m = pi[None]
        if train:
            u = torch.rand((c.mask_samples + 1) // 2, *logits.shape, device=x.device)
            half = torch.logit(u, eps=1e-6)
            noise = torch.cat([half, -half[: c.mask_samples // 2]])  # antithetic pairs
            m = content * torch.sigmoid((logits + noise) / TEMPERATURE)

        cells = self.evidence(z, content)
        taught = cells if c.teach_through_mask else cells.detach()
        sample_logits, prior = self.pooled(m * taught), self.prior(pi)
        kl_z = pi * (0.5 * (mu**2 + torch.exp(2 * log_sigma) - 1.0) - log_sigma).sum(1, keepdim=True)
        kl_m = torch.sigmoid(logits) * (logits - prior) + F.softplus(prior) - F.softplus(logits)
        out = {"sample_logits": sample_logits, "kl_z": kl_z, "kl_m": content * kl_m}
        if train:
            by_first, by_second = (shown * self.evidence(self.mu(view), content) for view in (first, second))
            squares = ((by_first - by_second) ** 2).sum((1, 2, 3))
            out |= {"auxiliary_logits": self.pooled(cells), "hidden_logits": self.pooled(by_second)}
            out["view_difference"] = squares / shown.sum((1, 2, 3)).clamp(min=1.0)
        return sample_logits.mean(0), out


def loss_of(config: LossConfig, out: dict, labels: torch.Tensor) -> torch.Tensor:
    """The objective at full rates, labels [B, K] all known."""

    def nll(logits):
        return F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").sum(-1).mean()

    loss = nll(out["sample_logits"]) + config.auxiliary * nll(out["auxiliary_logits"])
    loss = loss + config.hidden * nll(out["hidden_logits"]) + config.consistency * out["view_difference"].mean()
    loss = loss + config.beta_z * out["kl_z"].sum((1, 2, 3)).mean()
    return loss + config.beta_m * out["kl_m"].sum((1, 2, 3)).mean()


def load(model: InfoMask, params: dict) -> None:
    """Copy the parameters of our model into `model`."""

    def tensor(x):
        x = torch.from_numpy(x.copy())
        return x.permute(3, 2, 0, 1) if x.ndim == 4 else x.T[..., None, None] if x.ndim == 2 else x

    convs = [model.encoder.stem, *(conv for block in model.encoder.blocks for conv in block)]
    with torch.no_grad():
        for i, conv in enumerate(convs):
            for name, value in params["encoder"][f"WSConv_{i}"].items():
                getattr(conv, name).copy_(tensor(value))
        for name in ("mask", "mu", "log_sigma", "head"):
            layer = getattr(model, name)
            layer.weight.copy_(tensor(params[name]["kernel"]))
            if "bias" in params[name]:
                layer.bias.copy_(tensor(params[name]["bias"]))
        for name in ("closed_evidence", "prior_logit", "prior_coupling"):
            getattr(model, name).copy_(tensor(params[name]))


def trained(model: nn.Module, loss: Callable, batch: dict) -> Callable[[int], None]:
    """run(n) trains n steps of loss(forward, images, labels), with our optimizer, and waits."""
    torch.backends.cudnn.benchmark = True  # XLA measures its algorithms, too
    model = model.to(DEVICE, memory_format=torch.channels_last)
    images, labels = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2), torch.from_numpy(batch["labels"]).to(DEVICE)
    images = images.to(DEVICE).contiguous(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=WEIGHT_DECAY, fused=True)
    forward = torch.compile(model) if DEVICE == "cuda" else model

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(forward, images, labels).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def infomask(config: Config, batch: dict) -> Callable[[int], None]:
    """run(n) of the port. AssertionError if its logits are not ours."""
    torch.manual_seed(0)
    port, rng = InfoMask(config.model, 1), np.random.default_rng(1)
    params = create_state(config, 1).params  # not as initialised: a mask kernel of zeros would hide a mistake
    params = jax.tree.map(lambda x: np.asarray(x + 0.05 * rng.normal(size=x.shape).astype(np.float32)), params)
    load(port, params)
    with torch.no_grad():
        theirs = port.eval()(torch.from_numpy(batch["image"]).permute(0, 3, 1, 2))[0].numpy()
    ours = build(config.model, 1).apply({"params": params}, batch["image"], train=False)[0]
    tolerance = 1e-3 if config.model.dtype == "float32" else 0.2
    np.testing.assert_allclose(theirs, ours, atol=tolerance, rtol=tolerance)
    return trained(port.train(), lambda f, images, labels: loss_of(config.loss, f(images)[1], labels), batch)


def classifier(name: str, batch: dict, dtype: str) -> Callable[[int], None]:
    """run(n) of torchvision's network with frozen BatchNorm and one logit."""
    import torchvision

    net = getattr(torchvision.models, name)(weights=None, num_classes=1).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)

    def loss(forward, images, labels):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = forward(images)
        return F.binary_cross_entropy_with_logits(logits.float(), labels)

    return trained(net, loss, batch | {"image": np.repeat(batch["image"], 3, axis=-1)})
