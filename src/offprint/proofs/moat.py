"""MOAT blocks against the other order of their halves and against mobile and transformer blocks in stacks, at equal cost on CIFAR-10.

Behind the same stem and strided mobile convolutions, a stage has two mobile convolutions M and two attentions A: M A M A as in MOAT, or A M A
M. The stack M (A F) (A F) has two transformer blocks whose MLPs F, of twice the width inside, cost together what the second M does.
"""

from __future__ import annotations

from torch import Tensor, nn

from offprint.models.backbones.moat import Attention, MBConv, Stem
from offprint.proofs import Effect, Proof, kit

DIMS, SIDES = (32, 64), (8, 4)  # of the two stages, for a 32-pixel image
ARMS = {"stacked": "MAFAF", "attention first": "AMAM", "MOAT": "MAMA"}
SIZES = {  # mode: (training images, test images, epochs, batch, judged seeds, rates)
    "quick": (200, 250, 2, 50, (0, 1), (3e-3,)),
    "full": (1000, 1000, 4, 50, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (45000, 10000, 40, 250, (0, 1, 2, 3, 4), (1e-3, 3e-3, 9e-3)),
}


class _Branch(nn.Module):
    """A residual branch over channels-last tokens, behind a LayerNorm; a map in and out."""

    def __init__(self, dim: int, branch: nn.Module):
        super().__init__()
        self.norm, self.branch = nn.LayerNorm(dim), branch

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        return x + self.branch(self.norm(y)).permute(0, 3, 1, 2)


class _Head(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.mean((2, 3))))


def _network(pattern: str) -> nn.Module:
    layers: list[nn.Module] = [Stem(3, 12)]
    channels = 12
    for dim, side in zip(DIMS, SIDES, strict=True):
        layers.append(MBConv(channels, dim, 2, 2, se=False))
        for part in pattern:
            if part == "M":
                layers.append(MBConv(dim, dim, 1, 2, se=False))
            elif part == "A":
                layers.append(_Branch(dim, Attention(dim, side)))
            else:
                layers.append(_Branch(dim, nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))))
        channels = dim
    return kit.fan_in_(nn.Sequential(*layers, _Head(channels)))


def run(ctx) -> dict:
    count, test, epochs, batch, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    data, setting = kit.cifar(count, test=test), kit.Setting(epochs, batch)

    def arm(name: str, pattern: str) -> kit.Arm:
        def run(seed: int, rate: float, part: str) -> float:
            return kit.fit(lambda: _network(pattern), data, setting, seed=seed, rate=rate, part=part, device=ctx.device)

        return kit.Arm(name, run, kit.macs(_network(pattern)))

    found = kit.compare(ctx, [arm(*item) for item in ARMS.items()], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "moat_over_stacked": found.effect("MOAT"),
        "moat_over_attention_first": found.effect("MOAT", "attention first"),
        "data_digest": data.digest,
    }


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="Order of mobile convolution and attention (multiply-adds below)")


_GAINS = (
    Effect("moat_over_stacked", unit="points", why="one block of both beats a stack of either (the paper's ablation)"),
    Effect(
        "moat_over_attention_first",
        unit="points",
        why="the convolution comes before the attention (the paper's ablation)",
    ),
)
PROOF = Proof(
    slug="moat",
    question="At the same cost, do MOAT blocks classify better than the other order of their halves, and than stacks of mobile and "
    "transformer blocks?",
    data="CIFAR-10 (JPEG copies): 1,000 training, 500 validation and 1,000 test images, bundled",
    baseline="the same stem and strided convolutions, and in each stage one mobile convolution and two transformer blocks at the same "
    "multiply-adds; same data, optimizer, epochs and seeds",
    bands={"quick": _GAINS, "full": _GAINS},
    run=run,
    plot=plot,
)
