"""Waves of unseen pulses: dense kernels against one-way filters, at an equal budget of multiply-adds.

Pulses on the unit square, solved by finite elements; a network of five layers sees eight frames of a zone and tells the next eight. The
arms differ in how a kernel is written: dense, ``pair`` of one and of two terms (the same multiply-adds, since it is computed through its
dense kernel), ``chain`` and ``cp`` (fewer in a step, so more steps, until their sum is that of the dense arm). The rate of each is chosen
from the same grid on pulses of their own; judged pulses are of the same law, other draws.

The paper says two things of accuracy: that it is equivalent, which no interval proves and which is shown, and that there is less
overfitting: the error on unseen pulses less that on the training's own, ``pair`` of one term against dense, is judged.
Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.waves import wave_fields
from offprint.methods.training.a_priori_compression import OneWayConv3d, WavePredictor, macs, relative_l2
from offprint.proofs import Effect, Proof, kit

FRAMES = 8
ARMS = {  # name: layout, rank
    "dense": ("", 1), "pair": ("pair", 1), "pair, 2 terms": ("pair", 2), "chain": ("chain", 1), "cp": ("cp", 16),
}  # fmt: skip
SIZES = {  # mode: steps of the dense arm, batch, pulses to learn from, channels, side of the zone, judged seeds, rates
    "quick": (12, 4, 8, 4, 8, (0,), (6e-3,)),
    "full": (50, 8, 120, 8, 14, (0, 1, 2, 3, 4), (3e-3, 1e-2)),
    "gpu": (4000, 32, 2000, 16, 16, (0, 1, 2, 3, 4), (1e-3, 3e-3, 1e-2)),
}


@cache
def _fields(count: int, seed: int, zone: int) -> Tensor:
    """(count, 1, zone, zone, 16): frames 2 to 17 of waves."""
    fields = wave_fields(count, seed=seed, steps=2 * FRAMES + 1, zone=zone)
    return torch.from_numpy(np.ascontiguousarray(fields[..., 2:])).float()


def _data(mode: str) -> dict[str, Tensor]:
    _, _, count, _, zone, _, _ = SIZES[mode]
    parts = {"train": _fields(count, 1, zone), "val": _fields(40 if mode != "quick" else 4, 2, zone)}
    parts["test"] = _fields(60 if mode != "quick" else 4, 3, zone)
    scale = parts["train"].std()
    return {name: part / scale for name, part in parts.items()}


def _cost(layout: str, rank: int, channels: int, zone: int) -> float:
    """Multiply-adds of one forward pass for one pulse."""
    total = 0.0
    for a, b in [(1, channels), *[(channels, channels)] * 3, (channels, 1)]:
        layer = OneWayConv3d(a, b, 3, min(rank, 9) if layout == "cp" else rank, layout or "pair", padding=1)
        ours, dense = macs(layer, (1, a, zone, zone, FRAMES), (1, b, zone, zone, FRAMES))
        total += ours if layout else dense
    return total


def _network(layout: str, rank: int, channels: int) -> WavePredictor:
    return WavePredictor(channels, layout=layout, rank=min(rank, 9) if layout == "cp" else rank)


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps, batch, _, channels, zone, _, _ = SIZES[mode]
    layout, rank = ARMS[name]
    dense, own = _cost("", 1, channels, zone), _cost(layout, rank, channels, zone)
    steps_here = round(steps * dense / own)

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        model, data = _network(layout, rank, channels).to(device), _data(mode)
        train, draw = data["train"], torch.Generator().manual_seed(seed + 1)
        optimizer = torch.optim.Adam(model.parameters(), rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps_here)
        for _ in range(steps_here):
            x = train[torch.randint(len(train), (batch,), generator=draw)].to(device)
            loss = F.mse_loss(model(x[..., :FRAMES]), x[..., FRAMES:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()

        @torch.no_grad()
        def error(fields: Tensor) -> float:
            said = torch.cat([model(x[..., :FRAMES].to(device)).cpu() for x in fields.split(20)])
            return 100 * float(relative_l2(said, fields[..., FRAMES:]).mean())

        unseen = error(data[part])
        return {"error": unseen, "overfitting": unseen - error(train[:60])}

    return kit.Arm(name, run, own * steps_here)


def run(ctx) -> dict:
    _, _, _, channels, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates, lower_is_better=True)  # fmt: skip
    sizes = {n: sum(p.numel() for p in _network(*ARMS[n], channels).parameters()) for n in ARMS}
    return {
        **found.figures("error"),
        **{f"error_more_{kit.slug(n)}": found.effect(n) for n in ARMS if n != "dense"},
        "overfitting_of_pair": found.effect("pair", metric="overfitting"),
        "overfitting_of_pair_2": found.effect("pair, 2 terms", metric="overfitting"),
        **{f"parameters_{kit.slug(n)}": size for n, size in sizes.items()},
        "data_digest": kit.digest(*_data(ctx.mode).values()),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures, figure.subplots(), title="Next eight frames of a wave", ylabel="relative L2 error on unseen pulses (%)"
    )


_EFFECTS = (
    Effect("overfitting_of_pair", side="below", unit="points", why="the abstract says that there is less overfitting"),
)
PROOF = Proof(
    slug="a-priori-compression",
    question="With kernels of one-way filters and the same multiply-adds, is the error on unseen waves nearer to that of the training?",
    data="waves of random pulses, solved here by finite elements (scikit-fem); other pulses of the same law for the test",
    baseline="the same network with dense kernels, its rate chosen by the same rule",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
