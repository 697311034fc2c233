"""Inception blocks with and without residual sums on CIFAR-10: steps to a given loss; and what scaling a wide residual does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.images import cifar10
from offprint.models.backbones.inception_v4 import ConvNorm, Mixed, Residual
from offprint.proofs import Band, Proof
from offprint.tasks.rmsprop import RMSpropTF

# the 35x35 block of Inception-ResNet-v2 at half its widths, and its 17x17 block at a third: one 1x1 branch, and longer ones
NARROW = (((16, 1),), ((16, 1), (16, 3)), ((16, 1), (24, 3), (32, 3)))
WIDE = (((64, 1),), ((48, 1), (56, (1, 7)), (64, (7, 1))))
TARGET = 2.1  # mean training loss of 10 steps; chance is 2.3
SCALES = (1.0, 0.1)


class _NoSum(Mixed):
    """The same branches and the same 1x1 after them, but as in Inception-v4: BatchNorm and ReLU, and no sum."""

    def __init__(self, channels: int, branches: tuple):
        super().__init__(channels, branches)
        self.last = ConvNorm(self.out_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


def _network(blocks: list[nn.Module], width: int) -> nn.Sequential:
    stem = [ConvNorm(3, 32, 3, 2), ConvNorm(32, width, 3, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _train(blocks: list[nn.Module], width: int, steps: int, batch: int, seed: int) -> tuple[list[float], float]:
    """Loss of each step of the paper's RMSProp, and the largest RMS that the last block put out on the way."""
    net = _network(blocks, width).to(memory_format=torch.channels_last).train()
    images, labels, _ = cifar10(True)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels)
    optimizer = RMSpropTF(net.parameters(), lr=0.045, eps=1.0, momentum=0.9, weight_decay=4e-5)
    generator = torch.Generator().manual_seed(seed)
    peak = 0.0

    def watch(module, inputs, output):
        nonlocal peak
        peak = max(peak, float(output.detach().square().mean().sqrt()))

    blocks[-1].register_forward_hook(watch)
    losses = []
    for _ in range(steps):
        index = torch.randint(0, len(x), (batch,), generator=generator)
        sample = (x[index].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        loss = F.cross_entropy(net(sample), y[index], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, peak


def _speed(kind: str, seed: int, depth: int, steps: int) -> list[float]:
    torch.manual_seed(seed)
    blocks = [Residual(48, NARROW, 0.17) if kind == "residual" else _NoSum(48, NARROW) for _ in range(depth)]
    return _train(blocks, 48, steps, 40, seed)[0]


def _peak(scale: float, seed: int, width: int, depth: int, steps: int) -> float:
    torch.manual_seed(seed)
    return _train([Residual(width, WIDE, scale) for _ in range(depth)], width, steps, 20, seed)[1]


def _steps_to(losses: list[float], target: float) -> int:
    """First step at which the mean of the last 10 losses is down to the target; all steps where it never is."""
    for step in range(10, len(losses) + 1):
        if sum(losses[step - 10 : step]) / 10 <= target:
            return step
    return len(losses)


def run(ctx) -> dict:
    # wide: channels, blocks (20, as in the released network), steps
    depth, steps, seeds, wide = (8, 70, (0,), (512, 20, 3)) if ctx.quick else (10, 250, (0, 1, 2), (1088, 20, 8))
    ctx.total(2 * len(seeds) + len(SCALES) * len(seeds))
    curves: dict[str, list[list[float]]] = {}
    for kind in ("residual", "no sum"):
        curves[kind] = []
        for seed in seeds:
            ctx.step(f"{kind}, seed {seed}")
            curves[kind].append(ctx.part(f"{kind}-{seed}", lambda k=kind, s=seed: _speed(k, s, depth, steps)))
    peaks: dict[str, list[float]] = {}
    for scale in SCALES:
        peaks[f"{scale:g}"] = []
        for seed in seeds:
            ctx.step(f"residual times {scale:g}, seed {seed}")
            peaks[f"{scale:g}"].append(ctx.part(f"scale-{scale:g}-{seed}", lambda c=scale, s=seed: _peak(c, s, *wide)))
    counts = {k: sum(_steps_to(c, TARGET) for c in v) / len(v) for k, v in curves.items()}
    means = {k: sum(v) / len(v) for k, v in peaks.items()}
    return {
        "steps_residual": counts["residual"],
        "steps_no_sum": counts["no sum"],
        "speed_up": counts["no sum"] / counts["residual"],
        "peak_unscaled_over_scaled": means["1"] / means["0.1"],
        "losses": curves,
        "peaks": peaks,
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    for kind, colour in (("residual", "#d9822b"), ("no sum", "#7d93ad")):
        for i, losses in enumerate(figures["losses"][kind]):
            smooth = [sum(losses[s - 10 : s]) / 10 for s in range(10, len(losses) + 1)]
            left.plot(range(10, len(losses) + 1), smooth, color=colour, label=kind if i == 0 else None)
    left.axhline(TARGET, color="k", linewidth=0.5)
    left.set_xlabel("step")
    left.set_ylabel("training loss")
    left.legend()
    for i, (scale, values) in enumerate(figures["peaks"].items()):
        right.bar(i, sum(values) / len(values), color="#d9822b" if scale != "1" else "#b9c6d6")
        right.plot([i] * len(values), values, "k.", markersize=5)
    right.set_xticks(range(len(figures["peaks"])), [f"residual x {s}" for s in figures["peaks"]])
    right.set_ylabel("largest RMS of the last block")


_WHY = "Sec. 3.3: the scale keeps activations in bounds; ten times smaller residuals must show as at least half as much"
PROOF = Proof(
    slug="inception-v4",
    question="Do Inception blocks reach a given loss in fewer steps with residual sums, and does scaling them keep the activations of a wide network small?",
    data="CIFAR-10 (JPEG copies): 5,000 training images, bundled",
    baseline="the same branches without the sum (their 1x1 with BatchNorm and ReLU, as in Inception-v4); residuals times 1",
    bands={
        "quick": (
            Band("speed_up", 1.2, 1e3, "", "Figs. 23 to 26: markedly faster"),
            Band("peak_unscaled_over_scaled", 2, 1e6, "", _WHY),
        ),
        "full": (
            Band("speed_up", 1.2, 1e3, "", "Figs. 23 to 26: markedly faster"),
            Band("peak_unscaled_over_scaled", 2, 1e6, "", _WHY),
        ),
    },
    run=run,
    plot=plot,
)
