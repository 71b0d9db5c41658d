"""PyTorch's part of the benchmarks: the default InfoMask and its loss as functions of our parameters, which step.py
trains once their logits are ours; and torchvision's classifiers for encoders.py."""

import math
from collections.abc import Callable

import jax
import numpy as np
import torch
from torch.nn import functional as F

from infomask_jax.config import Config, LossConfig, ModelConfig
from infomask_jax.model import build, encoder
from infomask_jax.model.encoder import RELU_GAIN
from infomask_jax.model.infomask import LOGIT_BOUND
from infomask_jax.model.sampling import TEMPERATURE
from infomask_jax.model.views import EMPTY_RANGE
from infomask_jax.train import CLIP_NORM, WEIGHT_DECAY, create_state

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensor(x: np.ndarray) -> torch.Tensor:
    """A parameter of ours: kernels [h, w, in, out] and [in, out] become [out, in, h, w]."""
    x = torch.from_numpy(np.array(x)).to(DEVICE)
    x = x.T[..., None, None] if x.ndim == 2 else x.permute(3, 2, 0, 1) if x.ndim == 4 else x
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x).requires_grad_()


def standardised(p: dict, x):
    """Convolution with scaled weight standardisation, [B, C, H, W]."""
    k = p["kernel"]
    variance, mean = torch.var_mean(k, dim=(1, 2, 3), unbiased=False, keepdim=True)
    scale = p["gain"].view(-1, 1, 1, 1) * torch.rsqrt(k[0].numel() * variance + 1e-4)
    return F.conv2d(x, ((k - mean) * scale).to(x.dtype), p["bias"].to(x.dtype), padding=k.shape[-1] // 2)


def encode(c: ModelConfig, p: dict, x):
    """[B, 1, H, W] -> [B, D, h, w]."""
    convs = (p[f"WSConv_{i}"] for i in range(len(p)))
    with torch.autocast(DEVICE, torch.bfloat16, enabled=c.dtype == "bfloat16"):
        x = standardised(next(convs), F.pixel_unshuffle(x.to(getattr(torch, c.dtype)), 2))
        for stage in range(c.stride.bit_length() - 1):
            for block in range(encoder.Encoder.depth):
                y = F.relu(x) * RELU_GAIN
                if stage > 0 and block == 0:
                    y = F.avg_pool2d(y, 2)
                    x = standardised(next(convs), y)
                y = F.relu(standardised(next(convs), y)) * RELU_GAIN
                x = x + standardised(next(convs), y)
        return (F.relu(x) * RELU_GAIN).float()


def views(c: ModelConfig, p: dict, x, train: bool):
    """Features, those of the first view and of the second, turned back, and the cells that the second shows."""
    shown = ((F.max_pool2d(x, c.stride) + F.max_pool2d(-x, c.stride)) > EMPTY_RANGE).float()
    first = encode(c, p, x) * shown
    if train:
        height, width = first.shape[-2:]
        share = torch.rand(len(x), 1, 1, 1, device=x.device)
        blocks = torch.rand(len(x), 1, -(-height // 2), -(-width // 2), device=x.device) >= share
        kept = F.interpolate(blocks.float(), scale_factor=2)[..., :height, :width]
        x, shown = x * F.interpolate(kept, scale_factor=c.stride), shown * kept
    second = shown * encode(c, p, x.flip(2, 3)).flip(2, 3)
    return torch.where(shown > 0, (first + second) / 2, first), first, second, shown


def infomask(c: ModelConfig, p: dict, x, train: bool):
    """(logits [B, K], out) with one mask, sampler concrete, pooling lse, two views, empty cells closed: the default."""

    def dense(name, x):
        return F.conv2d(x, p[name]["kernel"], p[name].get("bias"))

    def evidence(z):  # [B, C, h, w] -> [B, K, h, w]
        return content * c.evidence_bound * torch.tanh(dense("head", z) / c.evidence_bound)

    def pooled(cells):  # [..., K, h, w] -> [..., K]
        cells = (cells + p["closed_evidence"].view(-1, 1, 1)).flatten(-2)
        return torch.logsumexp(cells, dim=-1) - math.log(cells.shape[-1])

    features, first, second, shown = views(c, p["encoder"], x, train)
    content = (features != 0).any(1, keepdim=True).float()
    mu, log_sigma = dense("mu", features), dense("log_sigma", features).clamp(-8.0, 2.0)
    z = mu + torch.exp(log_sigma) * torch.randn_like(mu) if train else mu

    known = evidence(mu).detach().amax(1, keepdim=True)
    logits = LOGIT_BOUND * torch.tanh((dense("mask", features) + c.mask_evidence * known) / LOGIT_BOUND)
    logits = torch.where(content > 0, logits, -LOGIT_BOUND)
    pi = content * torch.sigmoid(logits)
    m = pi[None]
    if train:
        half = torch.logit(torch.rand((c.mask_samples + 1) // 2, *logits.shape, device=x.device), eps=1e-6)
        noise = torch.cat([half, -half[: c.mask_samples // 2]])  # antithetic pairs
        m = content * torch.sigmoid((logits + noise) / TEMPERATURE)

    cells = evidence(z)
    sample_logits = pooled(m * (cells if c.teach_through_mask else cells.detach()))
    around = torch.ones(1, 1, 3, 3, device=x.device)
    around[..., 1, 1] = 0
    neighbours = F.conv2d(pi, around, padding=1) / F.conv2d(torch.ones_like(pi), around, padding=1)
    prior = p["prior_logit"] + p["prior_coupling"] * neighbours
    kl_z = pi * (0.5 * (mu**2 + torch.exp(2 * log_sigma) - 1.0) - log_sigma).sum(1, keepdim=True)
    kl_m = content * (torch.sigmoid(logits) * (logits - prior) + F.softplus(prior) - F.softplus(logits))
    out = {"sample_logits": sample_logits, "kl_z": kl_z, "kl_m": kl_m}
    if train:
        by_first, by_second = (shown * evidence(dense("mu", view)) for view in (first, second))
        squares = ((by_first - by_second) ** 2).sum((1, 2, 3))
        out |= {"auxiliary_logits": pooled(cells), "hidden_logits": pooled(by_second)}
        out["view_difference"] = squares / shown.sum((1, 2, 3)).clamp(min=1.0)
    return sample_logits.mean(0), out


def loss_of(c: LossConfig, out: dict, labels):
    """The objective at full rates, labels [B, K] all known."""

    def nll(logits):
        return F.binary_cross_entropy_with_logits(logits, labels.expand_as(logits), reduction="none").sum(-1).mean()

    loss = nll(out["sample_logits"]) + c.auxiliary * nll(out["auxiliary_logits"])
    loss = loss + c.hidden * nll(out["hidden_logits"]) + c.consistency * out["view_difference"].mean()
    return loss + (c.beta_z * out["kl_z"] + c.beta_m * out["kl_m"]).sum((1, 2, 3)).mean()


def training(loss: Callable, parameters: list, batch: dict) -> Callable[[int], None]:
    """run(n) trains n steps of loss(images, labels) with our optimizer, and waits."""
    torch.backends.cudnn.benchmark = True  # XLA measures its algorithms, too
    labels, images = (torch.from_numpy(batch[name]).to(DEVICE) for name in ("labels", "image"))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=WEIGHT_DECAY, fused=True)
    loss = torch.compile(loss) if DEVICE == "cuda" else loss

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            loss(images, labels).backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return run


def infomask_training(config: Config, batch: dict) -> Callable[[int], None]:
    """run(n) of the default model. AssertionError if its logits are not ours."""
    torch.manual_seed(0)
    rng = np.random.default_rng(1)  # not as initialised: a mask kernel of zeros would hide a mistake
    params = create_state(config, 1).params
    params = jax.tree.map(lambda x: np.asarray(x + 0.05 * rng.normal(size=x.shape).astype(np.float32)), params)
    port = jax.tree.map(tensor, params)
    with torch.no_grad():
        images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(DEVICE)
        theirs = infomask(config.model, port, images, train=False)[0].cpu().numpy()
    ours = build(config.model, 1).apply({"params": params}, batch["image"], train=False)[0]
    tolerance = 1e-3 if config.model.dtype == "float32" else 0.2
    np.testing.assert_allclose(theirs, ours, atol=tolerance, rtol=tolerance)

    def loss(images, labels):
        return loss_of(config.loss, infomask(config.model, port, images, train=True)[1], labels)

    return training(loss, jax.tree.leaves(port), batch)


def classifier_training(name: str, dtype: str, batch: dict) -> Callable[[int], None]:
    """run(n) of torchvision's network with frozen BatchNorm, which evaluation mode is, and one logit."""
    import torchvision

    net = getattr(torchvision.models, name)(weights=None, num_classes=1).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.requires_grad_(False)
    net = net.to(DEVICE, memory_format=torch.channels_last)

    def loss(images, labels):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = net(images)
        return F.binary_cross_entropy_with_logits(logits.float(), labels)

    colours = batch | {"image": np.repeat(batch["image"], 3, axis=-1)}
    return training(loss, [p for p in net.parameters() if p.requires_grad], colours)
