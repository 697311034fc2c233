"""FFNified attention against self-attention in the same blocks at the same cost, on CIFAR-10: accuracy, and time of a picture.

Two stages of MetaMixer blocks on maps of 16 and 8, the sizes of the paper's last two stages at 256 pixels, where it replaces attention.
The arms differ in the token mixer: FFNified attention with 7x7 kernels, or multi-head self-attention (a 1x1 convolution with
BatchNorm to queries, keys and values, heads of 12, a 1x1 convolution). Stem, downsampling, channel mixers and head are the same; the
widths make the multiply-adds equal. Time is that of eight pictures through the form for inference (:func:`offprint.deploy`) on this
machine, the best of several passes, measured for every seed; the paper's is of an iPhone.

The setting was declared before the first run.
"""

from __future__ import annotations

import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from offprint.models.backbones.metamixer import ChannelMixer, Downsampling, FFNifiedAttention, MixerBlock
from offprint.models.deploy import deploy
from offprint.nn.mergeable import ConvNorm
from offprint.proofs import Effect, Proof, kit

HEAD = 12
ARMS = {"self-attention": (24, 48), "FFNified attention": (32, 64)}  # widths of the two stages
DEPTHS = (1, 3)
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 1, 50, (0, 1), (3e-3,)),
    "full": (750, 1000, 5, 50, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}
PASSES = {"quick": 3, "full": 20, "gpu": 50}


class SelfAttention(nn.Module):
    """The frame filled as a transformer fills it."""

    def __init__(self, dim: int):
        super().__init__()
        self.heads = dim // HEAD
        self.qkv = ConvNorm(dim, 3 * dim)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        rows = self.qkv(x).permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, HEAD)
        y = F.scaled_dot_product_attention(*rows.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(y.transpose(1, 2).reshape(b, h, w, -1).permute(0, 3, 1, 2))


def _network(arm: str) -> nn.Sequential:
    mixer = SelfAttention if arm == "self-attention" else FFNifiedAttention
    first, second = ARMS[arm]
    blocks = [
        [MixerBlock(mixer(dim), ChannelMixer(dim), dim) for _ in range(depth)]
        for dim, depth in zip((first, second), DEPTHS, strict=True)
    ]
    return kit.fan_in_(  # type: ignore[return-value]
        nn.Sequential(
            ConvNorm(3, first, 3, 2), nn.GELU(), *blocks[0], Downsampling(first, second), *blocks[1],
            nn.BatchNorm2d(second), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(second, 10),
        )
    )  # fmt: skip


def _cost(arm: str) -> int:
    """Multiply-adds of a picture; the products of attention are counted where they are written out."""
    with sdpa_kernel(SDPBackend.MATH):
        return kit.macs(_network(arm))


def _milliseconds(net: nn.Module, passes: int, images: Tensor) -> float:
    """Best time of the images through the form for inference."""
    with torch.inference_mode():
        merged, best = deploy(net, images, tolerance=1e-3), float("inf")
        for _ in range(passes):
            began = time.perf_counter()
            float(merged(images).sum())
            best = min(best, time.perf_counter() - began)
    return 1000 * best


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(name: str) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> dict[str, float]:
            took: list[float] = []
            images = data.test[0][:8].to(ctx.device)
            accuracy = kit.fit(
                partial(_network, name), data, setting, seed=seed, rate=rate, part=part, device=ctx.device,
                after=lambda net: took.append(_milliseconds(net, PASSES[ctx.mode], images)),
            )  # fmt: skip
            return {"accuracy": accuracy, "milliseconds": took[0]}

        return kit.Arm(name, run, _cost(name))

    found = kit.compare(ctx, [arm(name) for name in ARMS], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "gain_of_ffnified_attention": found.effect("FFNified attention"),
        "time_saved": found.effect("FFNified attention", metric="milliseconds"),
        "milliseconds": found.metrics["milliseconds"],
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="Token mixers at equal cost")
    kit.bars({"arms": figures["milliseconds"]}, right, title="Eight pictures, merged", ylabel="milliseconds")


_EFFECTS = (
    Effect(
        "gain_of_ffnified_attention",
        unit="points",
        why="the frame counts, not attention: convolutions do as well or better",
    ),
    Effect("time_saved", side="below", unit="ms", why="convolutions take less time than attention at the same cost"),
)
PROOF = Proof(
    slug="metamixer",
    question="At the same cost, does FFNified attention classify better than self-attention, and is it faster?",
    data="CIFAR-10 (JPEG copies): 750 training, 500 validation and 1,000 test images, bundled",
    baseline="self-attention in the same blocks, at widths of the same multiply-adds; same data, optimizer, epochs and seeds",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
