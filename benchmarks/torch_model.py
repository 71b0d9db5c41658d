"""The default InfoMask and its loss in PyTorch, for benchmarks/step.py alone, which checks it against ours with equal
parameters."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from infomask_jax.config import LossConfig, ModelConfig
from infomask_jax.model.infomask import LOGIT_BOUND
from infomask_jax.model.views import EMPTY_RANGE

RELU_GAIN = (2.0 / (1.0 - 1.0 / math.pi)) ** 0.5


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
            for block in range(c.depth):
                shrinks = stage > 0 and block == 0
                skip = [WSConv(inputs, channels, 1)] if shrinks else []
                second = c.second_kernel if stage else 3
                convs = [*skip, WSConv(inputs, channels, 3), WSConv(channels, channels, second)]
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
    """One finding or more; sampler concrete, pooling lse, fill zero, two views: the defaults."""

    def __init__(self, c: ModelConfig, findings: int):
        super().__init__()
        self.c, self.encoder, inputs = c, Encoder(c), c.width * 2 ** (c.stride.bit_length() - 2)
        self.mask, self.mu = nn.Conv2d(inputs, 1, 1), nn.Conv2d(inputs, c.latent_channels, 1)
        self.log_sigma = nn.Conv2d(inputs, c.latent_channels, 1)
        self.head = nn.Conv2d(c.latent_channels, findings, 1, bias=False)
        self.closed_evidence = nn.Parameter(torch.full((findings,), c.closed_evidence))
        self.prior_logit = nn.Parameter(torch.tensor([math.log(c.mask_prior / (1 - c.mask_prior))]))
        self.prior_coupling = nn.Parameter(torch.tensor([c.mask_coupling]))
        nn.init.zeros_(self.mask.weight)
        nn.init.constant_(self.mask.bias, c.mask_bias)
        nn.init.constant_(self.log_sigma.bias, c.log_sigma_bias)

    def encode(self, x):
        if self.c.dtype == "bfloat16":
            with torch.autocast(x.device.type, torch.bfloat16):
                return self.encoder(x.to(torch.bfloat16)).float()
        return self.encoder(x)

    def bounded(self, evidence):
        bound = self.c.evidence_bound
        return bound * torch.tanh(evidence / bound)

    def pooled(self, cells):  # [..., K, h, w] -> [..., K]
        cells = (cells + self.closed_evidence.view(-1, 1, 1)).flatten(-2)
        r = self.c.sharpness
        return (torch.logsumexp(r * cells, dim=-1) - math.log(cells.shape[-1])) / r

    def forward(self, x):
        c, train = self.c, self.training
        features = self.encode(x)
        high = F.max_pool2d(x, c.stride)
        content = ((high + F.max_pool2d(-x, c.stride)) > EMPTY_RANGE).float()
        features, shown, other = features * content, content, x
        if train:
            grid = features.shape[-2:]
            share = c.hide * torch.rand(len(x), 1, 1, 1, device=x.device)
            blocks = torch.rand(len(x), 1, -(-grid[0] // 2), -(-grid[1] // 2), device=x.device) >= share
            kept = F.interpolate(blocks.float(), scale_factor=2)[..., : grid[0], : grid[1]]
            other = x * F.interpolate(kept, scale_factor=c.stride)
            shown = shown * kept
        turned = shown * self.encode(other.flip(2, 3)).flip(2, 3)
        first = features
        features = torch.where(shown > 0, (first + turned) / 2, first)
        if train:
            by_first, by_turned = self.mu(first), self.mu(turned)
            mu = torch.where(shown > 0, (by_first + by_turned) / 2, by_first)
            heads = self.head(by_first), self.head(by_turned)
            expected = torch.where(shown > 0, (heads[0] + heads[1]) / 2, heads[0])
        else:
            mu = self.mu(features)
            expected = self.head(mu)
        log_sigma = self.log_sigma(features).clamp(-8.0, 2.0)
        logits = self.mask(features) + c.mask_evidence * self.bounded(expected).detach().amax(1, keepdim=True)
        logits = LOGIT_BOUND * torch.tanh(logits / LOGIT_BOUND)
        logits = torch.where(content > 0, logits, -LOGIT_BOUND)
        pi, m = content * torch.sigmoid(logits), torch.sigmoid(logits)[None]
        if train:
            u = torch.rand((c.mask_samples + 1) // 2, *logits.shape, device=x.device).clamp(1e-6, 1 - 1e-6)
            half = torch.logit(u)
            noise = torch.cat([half, -half[: c.mask_samples // 2]])  # antithetic pairs
            m = torch.sigmoid((logits + noise) / c.temperature)
        m = m * content
        around = torch.ones(1, 1, 3, 3, device=x.device)
        around[..., 1, 1] = 0
        neighbours = F.conv2d(torch.ones_like(pi), around, padding=1)
        prior = self.prior_logit + self.prior_coupling * F.conv2d(pi, around, padding=1) / neighbours
        p = torch.sigmoid(logits)
        kl_m = p * (F.logsigmoid(logits) - F.logsigmoid(prior))
        kl_m = content * (kl_m + (1 - p) * (F.logsigmoid(-logits) - F.logsigmoid(-prior)))
        evidence = expected
        if train:  # drawn itself, in place of z
            variance = F.conv2d(torch.exp(2 * log_sigma), self.head.weight**2)
            evidence = expected + torch.sqrt(variance + 1e-12) * torch.randn_like(expected)
        kl_z = (0.5 * (mu**2 + torch.exp(2 * log_sigma) - 1.0) - log_sigma).sum(1, keepdim=True)
        kl_z = p * content * kl_z
        cells = content * self.bounded(evidence)
        open_cells = cells if c.teach_through_mask else cells.detach()
        out = {"sample_logits": self.pooled(m * open_cells[None]), "auxiliary_logits": self.pooled(cells)}
        out |= {"kl_z": kl_z, "kl_m": kl_m}
        if train:
            seen, alone = (shown * self.bounded(e) for e in heads)
            squares = ((seen - alone) ** 2).sum((1, 2, 3))
            out["hidden_logits"] = self.pooled(alone)
            out["view_difference"] = squares / shown.sum((1, 2, 3)).clamp(min=1.0)
        return out["sample_logits"].mean(0), out


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
        model.closed_evidence.copy_(tensor(params["closed_evidence"]))
        model.prior_logit.copy_(tensor(params["prior"]["logit"]))
        model.prior_coupling.copy_(tensor(params["prior"]["coupling"]))
