"""What each change of the skips is worth: cross attention as released, the encoder's maps as the paper has them, against plain Swin-Unet.

Three slim networks at 64 px on slices of a real brain segmentation, whose intensities are simulated: one hemisphere to learn from, the other
one to be tested on. They have the same blocks and, where shapes agree, the same start; the skips alone differ. The score is the mean
Dice of four tissues; the rate of each arm is chosen from the same grid on new images of the training hemisphere.

Beside the effects stand two figures that are no bands: by how much the released form of spatial attention changes the logits (not at
all), and the paper's form with the same weights.

Skin images are not bundled, so nothing is said about ISIC or PH2; all networks start from random weights, while the paper's start from
ImageNet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.data.volumes import TISSUES, brain_labels, simulate_t1, tissue_classes
from offprint.models.segmentation.att_swin_unet import AttSwinUNet
from offprint.proofs import Effect, Proof, kit

SIDE = 64
SLIM = {
    "img_size": SIDE,
    "window_size": 4,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 4, 8),
    "in_chans": 1,
    "drop_path_rate": 0.0,
}
ARMS = {
    "plain": {"mode": "swin"},
    "cross": {"mode": "cross_contextual_attention"},
    "maps": {"mode": "swin", "spatial_attention": "add"},
}
SIZES = {  # mode: steps, slices per step, embed_dim, judged seeds, rates
    "quick": (2, 2, 32, (0,), (1e-3,)),
    "full": (70, 8, 32, (0, 1, 2, 3, 4), (1e-3, 3e-3)),
    "gpu": (2000, 32, 48, (0, 1, 2, 3, 4), (3e-4, 1e-3, 3e-3)),
}


def _hemispheres() -> tuple[Tensor, Tensor]:
    """Labels of one hemisphere, and of the other one mirrored: sagittal slices, (36, 72, 80) each."""
    labels = brain_labels()[:72, :72, :80]
    return labels[:36], labels[36:].flip(0)


def _slices(labels: Tensor, at: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Simulated images (N, 1, 64, 64) of these slices, cut at random places, and their tissues (N, T, 64, 64)."""
    images, tissues = [], []
    for i in at:
        top, left = (int(torch.randint(n - SIDE + 1, (1,), generator=generator)) for n in labels.shape[1:])
        crop = labels[i : i + 1, top : top + SIDE, left : left + SIDE]
        images.append(simulate_t1(crop, generator))
        tissues.append(tissue_classes(crop)[:, 0].float())
    return torch.stack(images), torch.stack(tissues)


def _network(width: int, arm: str) -> AttSwinUNet:
    return AttSwinUNet(embed_dim=width, num_classes=len(TISSUES), **{**SLIM, **ARMS[arm]})  # type: ignore[arg-type]


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps, batch, width, _, _ = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        model = kit.fan_in_(_network(width, name)).to(device).train()
        train, test = _hemispheres()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            at = torch.randint(4, 34, (batch,), generator=generator).tolist()
            images, target = (v.to(device) for v in _slices(train, at, generator))
            loss = F.binary_cross_entropy_with_logits(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        images, target = _slices(
            test if part == "test" else train, list(range(4, 34)), torch.Generator().manual_seed(99)
        )
        model.eval()
        with torch.no_grad():
            told = torch.cat([model(x.to(device)).sigmoid().cpu() > 0.5 for x in images.split(10)]).float()
        both, sizes = (told * target).sum((0, 2, 3)), told.sum((0, 2, 3)) + target.sum((0, 2, 3))
        dice = dict(zip(TISSUES, (100 * 2 * both / sizes).tolist(), strict=True))
        return {"score": sum(dice.values()) / len(dice), **dice}

    return kit.Arm(name, run, kit.macs(_network(width, name), 1, 1, SIDE, SIDE))


def _changes() -> dict[str, float]:
    """Largest change of the logits by spatial attention, as released and as the paper has it, with the same weights."""
    torch.manual_seed(0)
    base = {**SLIM, "embed_dim": 16, "num_classes": 1}
    plain = kit.fan_in_(AttSwinUNet(**base)).eval()  # type: ignore[arg-type]
    x, found = torch.randn(1, 1, SIDE, SIDE), {}
    with torch.no_grad():
        for name, how in (("released", True), ("paper", "add")):
            other = AttSwinUNet(**base, spatial_attention=how).eval()  # type: ignore[arg-type]
            other.load_state_dict(plain.state_dict())
            found[f"logits_changed_by_spatial_attention_{name}"] = float((other(x) - plain(x)).abs().max())
    return found


def run(ctx) -> dict:
    _, _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates)
    return {
        **found.figures("dice"),
        "gain_of_cross_attention": found.effect("cross"),
        "gain_of_spatial_attention": found.effect("maps"),
        **_changes(),
        "tissues": {name: {t: kit.interval(found.metrics[t][name])["mean"] for t in TISSUES} for name in found.scores},
        "data_digest": kit.digest(brain_labels()),
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="skips", ylabel="mean Dice on the other hemisphere (%)")
    names = list(figures["tissues"])
    for i, name in enumerate(names):
        values = list(figures["tissues"][name].values())
        places = [k + 0.27 * (i - 1) for k in range(len(values))]
        right.bar(places, values, 0.27, label=name, color=("#b9c6d6", "#d9822b", "#3b6ea5")[i])
    right.set_xticks(range(len(TISSUES)), [t.replace(" ", "\n") for t in TISSUES], fontsize=7)
    right.legend(fontsize=7)


_BANDS = (
    Effect(
        "gain_of_cross_attention", unit="points", why="decoder and encoder exchange their means before they are joined"
    ),
    Effect(
        "gain_of_spatial_attention", unit="points", why="the decoder looks where the encoder did (the paper's form)"
    ),
)
PROOF = Proof(
    slug="att-swin-unet",
    question="Does each change of the skips segment better than plain concatenation, all else the same?",
    data="slices of one real brain segmentation at 2 mm, bundled; intensities are SIMULATED from its labels; trained on one "
    "hemisphere, tested on the other",
    baseline="Swin-Unet: the same network with plain concatenation, from the same start, its rate chosen by the same rule",
    bands={"quick": _BANDS, "full": _BANDS, "gpu": _BANDS},
    run=run,
    plot=plot,
)
