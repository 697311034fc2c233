"""The hybrid against the 2-D network alone: slim H-DenseUNets on a real anatomy with simulated intensities.

Two networks learn four tissues from the same crops of eight sagittal slices: one segments each slice from three, the other has a 2-D
branch, a 3-D branch and their fusion. The 2-D network is the wider, so that both cost the same within five percent. Both are
trained whole from random weights with the same loss (the paper starts from ImageNet, trains the 2-D network first, and has its own
weights of the classes); the rate of each is chosen from the same grid on new images of the training hemisphere. The score is
the mean Dice of the tissues on the other hemisphere.

Setting and band were fixed before the first full run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.volumes import TISSUES, brain_labels, simulate_t1, tissue_classes
from offprint.models.segmentation.h_denseunet import DenseUNet, HDenseUNet, slice_triplets
from offprint.proofs import Effect, Proof, kit

SIDE, DEPTH = 64, 8
NARROW = {"layers": (2, 2, 2, 2), "growth": 8, "stem": 12, "up": (32, 24, 12, 12, 12)}
DEEP = {"layers": (2, 2, 2, 2), "growth": 6, "stem": 8, "up": (24, 16, 8, 8, 12)}
WIDE = {"layers": (2, 2, 2, 2), "growth": 12, "stem": 24, "up": (48, 32, 28, 28, 28)}
SIZES = {  # mode: steps, crops per step, judged seeds, rates
    "quick": (1, 1, (0,), (4e-3,)),
    "full": (50, 2, (0, 1, 2, 3, 4), (3e-3, 1e-2)),
    "gpu": (2000, 8, (0, 1, 2, 3, 4), (1e-3, 3e-3, 1e-2)),
}


class SliceBySlice(nn.Module):
    """Volumes (B, 1, H, W, D) to the stacked logits of a 2-D network, which sees each slice between its neighbours."""

    def __init__(self):
        super().__init__()
        self.plane = DenseUNet(num_classes=len(TISSUES) + 1, unet_connections=False, **WIDE)

    def forward(self, x: Tensor) -> Tensor:
        b, _, _, _, depth = x.shape
        slices = x.movedim(-1, 1)[:, slice_triplets(depth).to(x.device)].flatten(2, 3).flatten(0, 1)
        return self.plane(slices).unflatten(0, (b, depth)).movedim(1, -1)


ARMS = {
    "2-D": SliceBySlice,
    "hybrid": lambda: HDenseUNet(num_classes=len(TISSUES) + 1, plane=NARROW, volume=DEEP),
}


def _hemispheres() -> tuple[Tensor, Tensor]:
    """Training and test anatomy, slices last: one hemisphere, and the other one mirrored; (72, 80, 36) each."""
    labels = brain_labels()[:72, :72, :80].movedim(0, -1)
    return labels[..., :36], labels[..., 36:].flip(-1)


def _classes(labels: Tensor) -> Tensor:
    """Labels (...) to 0 for all that is none of the four tissues, and 1 to 4 (...) int64."""
    masks = tissue_classes(labels).long()
    return (masks * torch.arange(1, len(TISSUES) + 1).view(-1, *[1] * labels.ndim)).sum(0)


def _crops(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops: images (count, 1, 64, 64, 8), simulated anew, and their classes."""
    image, target = simulate_t1(labels, generator), _classes(labels)
    images, targets = [], []
    for _ in range(count):
        y, x, z = (
            int(torch.randint(n - s + 1, (1,), generator=generator))
            for n, s in zip(labels.shape, (SIDE, SIDE, DEPTH), strict=True)
        )
        place = (slice(y, y + SIDE), slice(x, x + SIDE), slice(z, z + DEPTH))
        images.append(image[place])
        targets.append(target[place])
    return torch.stack(images)[:, None], torch.stack(targets)


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps, batch, _, _ = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        model = ARMS[name]().to(device).train()
        train, test = _hemispheres()
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed + 1)  # dropout
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            images, target = (t.to(device) for t in _crops(train, batch, generator))
            loss = F.cross_entropy(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        place = (test if part == "test" else train)[4:68, 8:72, 2:34]
        image = simulate_t1(place, torch.Generator().manual_seed(99))[None, None].to(device)
        with torch.no_grad():
            said = torch.cat([model(x).argmax(1) for x in image.split(DEPTH, -1)], -1)[0].cpu()
        target, dice = _classes(place), {}
        for c, tissue in enumerate(TISSUES, 1):
            a, b = said == c, target == c
            dice[tissue] = 200 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum()))
        return {"score": sum(dice.values()) / len(dice), **dice}

    return kit.Arm(name, run, kit.macs(ARMS[name](), 1, 1, SIDE, SIDE, DEPTH))


def run(ctx) -> dict:
    _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates)
    return {
        **found.figures("dice"),
        "gain_of_the_hybrid": found.effect("hybrid"),
        "tissues": {name: {t: kit.interval(found.metrics[t][name])["mean"] for t in TISSUES} for name in found.scores},
        "data_digest": kit.digest(brain_labels()),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures,
        figure.subplots(),
        title="slices alone, or fused with the volume",
        ylabel="mean Dice on the other hemisphere (%)",
    )


_GAIN = Effect("gain_of_the_hybrid", unit="points", why="the hybrid is above the 2-D network in the paper's ablation")
PROOF = Proof(
    slug="h-denseunet",
    question="At the same cost, does the fusion of a 2-D and a 3-D network segment better than the 2-D network alone?",
    data="one real brain segmentation at 2 mm, bundled; intensities are SIMULATED from its labels; trained on one "
    "hemisphere, tested on the other",
    baseline="a wider 2-D network of the same cost, slice by slice, its rate chosen by the same rule",
    bands={"quick": (_GAIN,), "full": (_GAIN,), "gpu": (_GAIN,)},
    run=run,
    plot=plot,
)
