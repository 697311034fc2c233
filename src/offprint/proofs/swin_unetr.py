"""Shifted against unshifted windows: Swin UNETR on a real anatomy with simulated intensities.

Two networks with the same weights at the start, the same crops and the same cost; in one, every second block displaces its
windows. The rate of each is chosen from the same grid on new images of the training hemisphere; the score is the mean Dice of four tissues on the
other hemisphere.

Earlier figures, three seeds, one rate, 80 steps of two crops: 71.9 % with and 72.6 % without, a gain of -0.7 points that a band from -2 let
pass. Here the gain itself is judged. That the network segments at all is shown and not judged.

The full setting was 36 steps of one crop, about 14 minutes of one core; it was never completed at that size and no figure of it
was seen. It is 16 steps of two crops (a batch of two costs less than one: torch has no fast convolution for one small volume),
about 3.5 minutes of one core.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.volumes import TISSUES, brain_labels, simulate_t1, tissue_classes
from offprint.errors import need
from offprint.models.segmentation.swin_unetr import SwinUNETR
from offprint.nn.dice import dice_loss
from offprint.proofs import Effect, Proof, kit

CROP = (32, 32, 64)
SIZES = {  # mode: steps, crops per step, feature size, judged seeds, rates
    "quick": (1, 1, 12, (0,), (4e-3,)),
    "full": (16, 2, 12, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (3000, 4, 24, (0, 1, 2, 3, 4), (5e-4, 1e-3, 2e-3, 4e-3)),
}


def _hemispheres() -> tuple[Tensor, Tensor]:
    """Training and test anatomy: one hemisphere, and the other one mirrored; (36, 72, 80) each."""
    labels = brain_labels()[:72, :72, :80]
    return labels[:36], labels[36:].flip(0)


def _example(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A random crop of 32x32x64 voxels: its simulated image (1, ...) and its tissues (4, ...)."""
    at = [int(torch.randint(n - s + 1, (1,), generator=generator)) for n, s in zip(labels.shape, CROP, strict=True)]
    crop = labels[tuple(slice(a, a + s) for a, s in zip(at, CROP, strict=True))]
    return simulate_t1(crop, generator)[None], tissue_classes(crop).float()


def _arm(name: str, shift: bool, mode: str, device) -> kit.Arm:
    steps, batch, width, _, _ = SIZES[mode]
    metrics = need("monai.metrics", "medical", "the Dice of the swin-unetr proof")

    def network() -> SwinUNETR:
        return SwinUNETR(1, len(TISSUES), feature_size=width, shift=shift, window_size=3)

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        model = network().to(device=device, memory_format=torch.channels_last_3d).train()
        train, test = _hemispheres()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            images, targets = zip(*(_example(train, generator) for _ in range(batch)), strict=True)
            logits, target = model(torch.stack(images).to(device)), torch.stack(targets).to(device)
            loss = dice_loss(logits, target) + F.binary_cross_entropy_with_logits(logits, target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        metric = metrics.DiceMetric(include_background=True, reduction="mean_batch")
        with torch.no_grad():
            for top in (0, 72 - 64):
                place = (test if part == "test" else train)[2:34, top : top + 64, 8:72]
                image = simulate_t1(place, torch.Generator().manual_seed(99))[None, None].to(device)
                metric((torch.sigmoid(model(image)) > 0.5).float().cpu(), tissue_classes(place)[None].float())
        tissues = dict(zip(TISSUES, (100 * v for v in metric.aggregate().tolist()), strict=True))
        return {"score": sum(tissues.values()) / len(tissues), **tissues}

    return kit.Arm(name, run, kit.macs(network(), 1, 1, *CROP))


def run(ctx) -> dict:
    _, _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(2, seeds, rates))
    arms = [_arm("unshifted", False, ctx.mode, ctx.device), _arm("shifted", True, ctx.mode, ctx.device)]
    found = kit.compare(ctx, arms, seeds=seeds, rates=rates)
    return {
        **found.figures("dice"),
        "gain_of_shifting": found.effect("shifted"),
        "tissues": {name: {t: kit.interval(found.metrics[t][name])["mean"] for t in TISSUES} for name in found.scores},
        "data_digest": kit.digest(brain_labels()),
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="windows", ylabel="mean Dice on the other hemisphere (%)")
    for side, name, colour in ((-0.2, "unshifted", "#b9c6d6"), (0.2, "shifted", "#d9822b")):
        values = list(figures["tissues"][name].values())
        right.bar([i + side for i in range(len(values))], values, 0.4, color=colour, label=name)
    right.set_xticks(range(len(TISSUES)), [t.replace(" ", "\n") for t in TISSUES], fontsize=7)
    right.legend()


_GAIN = Effect("gain_of_shifting", unit="points", why="displaced windows let neighbouring windows speak (Eq. 1)")
PROOF = Proof(
    slug="swin-unetr",
    question="Is a network with displaced windows better than the same one whose windows all stay in place?",
    data="one real brain segmentation at 2 mm, bundled; intensities are SIMULATED from its labels; trained on one "
    "hemisphere, tested on the other",
    baseline="the same network with no window displaced, from the same start, its rate chosen by the same rule",
    bands={"quick": (_GAIN,), "full": (_GAIN,)},
    run=run,
    plot=plot,
)
