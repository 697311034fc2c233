"""Rating distorted photographs by distance to the original: top-down attention against the same network bottom-up, PSNR and SSIM.

Eight real photographs, each blurred, made noisy and compressed at five levels. A small network (a ResNet-18 from random weights, 64
channels) learns the level from pairs of crops, and is judged by SRCC over all copies of photographs it has not seen: scores of
different distortions must stand in one order, which a distance of pixels does not give. The other arm has the same weights and
the same cost, but begins with the shallowest level and queries deeper ones. Which photographs are held out, the order of crops and the
start all follow from the seed.

The order of levels is no opinion of people; a level of one distortion is not as bad as that of another, and no metric can be at 1.
Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.opinions import DISTORTIONS, LEVELS, distorted
from offprint.data.photos import photographs, set5
from offprint.models.signals.topiq import CFANet, nin_loss
from offprint.proofs import Effect, Proof, kit
from offprint.tasks.quality import correlations, ssim_of
from offprint.tasks.restoration import psnr

SIDE = 128  # of the middle of a photograph, which is all that the proof sees of it
SIZES = {  # mode: steps, pairs per step, side of a crop, judged seeds, rates
    "quick": (2, 4, 64, (0,), (3e-4,)),
    "full": (120, 8, 64, (0, 1, 2, 3, 4), (3e-4, 1e-3)),
    "gpu": (3000, 32, 96, (0, 1, 2, 3, 4), (1e-4, 3e-4, 1e-3)),
}


class BottomUp(CFANet):
    """The same network asked from the other end: the shallowest tokens query each deeper level in turn."""

    def _tokens(self, x: Tensor, reference: Tensor | None) -> list[Tensor]:
        return super()._tokens(x, reference)[::-1]


ARMS = {"bottom-up": BottomUp, "top-down": CFANet}


def _network(kind: type[CFANet]) -> CFANet:
    return kind(backbone="resnet18", use_ref=True, inter_dim=64, num_heads=4, drop_rate=0.0)


@cache
def _middles() -> dict[str, Tensor]:
    """The middle of every photograph, (3, SIDE, SIDE) uint8."""
    found = {}
    for name, picture in {**set5(), **photographs()}.items():
        top, left = ((n - SIDE) // 2 for n in picture.shape[-2:])
        found[name] = picture[:, top : top + SIDE, left : left + SIDE]
    return found


@cache
def _pairs(names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """(copies, originals, scores) of photographs: (N, 3, SIDE, SIDE) twice and (N, 1)."""
    rated = distorted({n: _middles()[n] for n in names}, []).train
    reference = [o.reference() for o in rated if o.reference is not None]
    return torch.stack([o.read() for o in rated]), torch.stack(reference), torch.tensor([[o.score] for o in rated])


def _parts(seed: int) -> dict[str, tuple[str, ...]]:
    """Two photographs for the test, two others to choose rates by, four to learn from."""
    names = sorted(_middles())
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    names = [names[i] for i in order]
    return {"test": tuple(names[:2]), "val": tuple(names[2:4]), "train": tuple(names[4:])}


def _srcc(said: Tensor, truth: Tensor) -> float:
    return 100 * correlations(said, truth)["srcc"]


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps, batch, side, _, _ = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> float:
        torch.manual_seed(seed)
        model = _network(ARMS[name]).to(device).train()
        parts, draw = _parts(seed), torch.Generator().manual_seed(seed + 1)
        copies, originals, scores = _pairs(parts["train"])
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(copies), (batch,), generator=draw)
            top, left = torch.randint(SIDE - side + 1, (2,), generator=draw).tolist()
            x, y = (v[chosen][..., top : top + side, left : left + side].to(device) for v in (copies, originals))
            target, said = scores[chosen].to(device), model(x, y)
            loss = F.mse_loss(said, target) + nin_loss(said, target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        x, y, truth = _pairs(parts[part])
        with torch.no_grad():
            said = torch.cat([model(a.to(device), b.to(device)) for a, b in zip(x.split(8), y.split(8), strict=True)])
        return _srcc(said.cpu(), truth)

    example = torch.rand(1, 3, side, side)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _network(ARMS[name]).eval()(example, example)
    return kit.Arm(name, run, counter.get_total_flops() / 2)


def _distances(seed: int) -> dict[str, float]:
    """SRCC (%) of PSNR and SSIM on the same held-out copies."""
    x, y, truth = _pairs(_parts(seed)["test"])
    pairs = [((a * 255).round(), (b * 255).round()) for a, b in zip(x, y, strict=True)]
    return {
        "psnr": _srcc(torch.tensor([min(psnr(a, b), 100.0) for a, b in pairs]), truth),
        "ssim": _srcc(torch.tensor([ssim_of(a, b) for a, b in pairs]), truth),
    }


def run(ctx) -> dict:
    _, _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates)
    beside = [_distances(seed) for seed in seeds]
    ours = found.scores["top-down"]
    arms = {**found.scores, **{name.upper(): [row[name] for row in beside] for name in ("psnr", "ssim")}}
    return {
        **found.figures("srcc"),
        "arms": arms,
        "gain_of_top_down": found.effect("top-down"),
        **{f"gain_over_{name}": kit.paired(ours, [row[name] for row in beside]) for name in ("psnr", "ssim")},
        **{f"srcc_{name}": kit.interval([row[name] for row in beside]) for name in ("psnr", "ssim")},
        "copies": len(DISTORTIONS) * LEVELS + 1,
        "data_digest": kit.digest(*_middles().values()),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures, figure.subplots(), title="Order of distorted photographs", ylabel="SRCC on held-out photographs (%)"
    )


_EFFECTS = (
    Effect("gain_over_psnr", unit="points", why="what is in a picture decides which faults are seen"),
    Effect("gain_over_ssim", unit="points", why="what is in a picture decides which faults are seen"),
    Effect(
        "gain_of_top_down", unit="points", why="semantics guide the attention to distortions, not the other way round"
    ),
)
PROOF = Proof(
    slug="topiq",
    question="Does a network that attends from the deepest level to the shallowest rank distorted photographs better than bottom-up, PSNR "
    "and SSIM?",
    data="eight real photographs (Set5 and three free ones), bundled; blur, noise and JPEG at five levels are made, the order of levels "
    "stands for opinions",
    baseline="the same network from the shallowest level up, same weights, cost and rule for the rate; PSNR and SSIM on the same copies",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
