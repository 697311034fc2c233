"""Excitation of channels, of pixels, of both, or none: FC-DenseNet on slices of a real anatomy with simulated intensities.

Four networks from the same start (what they share), on the same crops, of the same cost within a percent. The rate of each is chosen from the
same grid on new images of the training hemisphere; the score is the mean Dice of four tissues on slices of the other hemisphere.
Judged are the two differences that the paper's tables show everywhere: both excitations against none, and pixels against
channels. An interval that holds zero is a tie, and is called undecided.

Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offprint.data.volumes import TISSUES, brain_labels, simulate_t1, tissue_classes
from offprint.models.segmentation.scse import CombinedLoss, FCDenseNet
from offprint.proofs import Effect, Proof, kit

SIDE, HELD = 64, slice(2, 36, 3)  # of a crop; which slices of the other hemisphere are scored
ARMS = {"none": "none", "cSE": "cse", "sSE": "sse", "scSE": "csse"}
SIZES = {  # mode: steps, crops per step, filters, judged seeds, rates
    "quick": (1, 1, 4, (0,), (4e-3,)),
    "full": (50, 4, 8, (0, 1, 2, 3, 4), (3e-3, 1e-2)),
    "gpu": (2000, 16, 32, (0, 1, 2, 3, 4), (5e-4, 1e-3, 2e-3, 4e-3)),
}


def _hemispheres() -> tuple[Tensor, Tensor]:
    """Training and test anatomy: one hemisphere, and the other one mirrored; (36, 72, 80) each."""
    labels = brain_labels()[:72, :72, :80]
    return labels[:36], labels[36:].flip(0)


def _classes(labels: Tensor) -> Tensor:
    """Labels (...) to 0 for all that is none of the four tissues, and 1 to 4 (...) int64."""
    masks = tissue_classes(labels).long()
    return (masks * torch.arange(1, len(TISSUES) + 1).view(-1, *[1] * labels.ndim)).sum(0)


def _crops(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops of random slices: images (count, 1, 64, 64), simulated anew, and classes."""
    image, target = simulate_t1(labels, generator), _classes(labels)
    images, targets = [], []
    for _ in range(count):
        i, y, x = (int(torch.randint(n, (1,), generator=generator)) for n in (36, 72 - SIDE + 1, 80 - SIDE + 1))
        images.append(image[i, y : y + SIDE, x : x + SIDE])
        targets.append(target[i, y : y + SIDE, x : x + SIDE])
    return torch.stack(images)[:, None], torch.stack(targets)


def _dice(said: Tensor, target: Tensor) -> float:
    """Mean Dice (%) of the tissues over all pixels."""
    rows = []
    for c in range(1, len(TISSUES) + 1):
        a, b = said == c, target == c
        rows.append(2 * float((a & b).sum()) / max(1.0, float(a.sum() + b.sum())))
    return 100 * sum(rows) / len(rows)


def _arm(name: str, kind: str, mode: str, device) -> kit.Arm:
    steps, batch, filters, _, _ = SIZES[mode]

    def network() -> FCDenseNet:
        return FCDenseNet(1, len(TISSUES) + 1, kind, filters)

    def run(seed: int, rate: float, part: str) -> float:
        torch.manual_seed(seed)
        plain, model = FCDenseNet(1, len(TISSUES) + 1, "none", filters), network()
        model.load_state_dict(plain.state_dict(), strict=False)  # what all arms share starts alike
        model.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        train, test = _hemispheres()
        generator, loss_of = torch.Generator().manual_seed(seed), CombinedLoss()
        torch.manual_seed(seed + 1)  # dropout
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            images, target = (t.to(device) for t in _crops(train, batch, generator))
            loss = loss_of(model(images.contiguous(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        place = test if part == "test" else train
        image = simulate_t1(place, torch.Generator().manual_seed(99))[HELD, None].to(device)
        with torch.no_grad():
            said = torch.cat([model(x).argmax(1) for x in image.split(4)])
        return _dice(said.cpu(), _classes(place)[HELD])

    return kit.Arm(name, run, kit.macs(network(), 1, 1, SIDE, SIDE))


def run(ctx) -> dict:
    _, _, filters, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    arms = [_arm(name, kind, ctx.mode, ctx.device) for name, kind in ARMS.items()]
    found = kit.compare(ctx, arms, seeds=seeds, rates=rates)
    sizes = {
        n: sum(p.numel() for p in FCDenseNet(1, len(TISSUES) + 1, k, filters).parameters()) for n, k in ARMS.items()
    }
    return {
        **found.figures("dice"),
        "gain_of_scse": found.effect("scSE"),
        "gain_of_sse": found.effect("sSE"),
        "gain_of_cse": found.effect("cSE"),
        "gain_of_space_over_channel": found.effect("sSE", "cSE"),
        "parameters_added": 100 * (sizes["scSE"] / sizes["none"] - 1),
        "data_digest": kit.digest(brain_labels()),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures, figure.subplots(), title="FC-DenseNet, excitation of", ylabel="mean Dice on the other hemisphere (%)"
    )


_EFFECTS = (
    Effect("gain_of_scse", unit="points", why="scSE is above none in every table"),
    Effect("gain_of_space_over_channel", unit="points", why="spatial excitation gives more than channel excitation"),
)
PROOF = Proof(
    slug="scse",
    question="At the same cost, does a network whose maps are recalibrated segment better than the same one without?",
    data="slices of one real brain segmentation at 2 mm, bundled; intensities are SIMULATED from its labels; trained on one "
    "hemisphere, tested on the other",
    baseline="the same network without excitation, what they share from the same start, its rate chosen by the same rule",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
