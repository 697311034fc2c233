"""One network for five alphabets of Omniglot, from five specialists: with and without their outputs, separate layers, self-paced scales.

Verticals are alphabets, classes their characters (136 in all); of each character 13 drawings are learnt from, 2 choose rates, 5 are the
test, by other people than those that were learnt from. A specialist of the same body learns each alphabet with the sigmoid loss. Four
students begin alike: on labels with layers over everything; on the specialists' outputs (+D); with a second layer per vertical (+SC); with a
scale per vertical (+S). Their rate is chosen from the same grid; the score is the mean over alphabets of the accuracy within the alphabet,
as the paper ranks only a vertical's own classes. The specialists' outputs are made once for each picture, so that a step costs the same.

Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.characters import DRAWERS, omniglot
from offprint.methods.training.knowledge_concentration import (
    SelfPacedScaling,
    StructurallyConnectedHead,
    summed_sigmoid_loss,
    teacher_probabilities,
)
from offprint.proofs import Effect, Proof, kit

ARMS = {  # name: distilled, head, self-paced
    "FC-FC": (False, "fc96-fc32", False),
    "FC-FC + D": (True, "fc96-fc32", False),
    "FC-SC + D": (True, "fc96-sc32", False),
    "FC-SC + D + S": (True, "fc96-sc32", True),
}
SIZES = {  # mode: epochs, channels, judged seeds, rates
    "quick": (1, 8, (0,), (3e-3,)),
    "full": (12, 24, (0, 1, 2, 3, 4), (2e-3, 6e-3)),
    "gpu": (200, 64, (0, 1, 2, 3, 4), (3e-4, 1e-3, 3e-3)),
}
BATCH = 64


@cache
def _data() -> tuple[dict[str, tuple[Tensor, Tensor]], list[int]]:
    """Pictures (N, 1, 28, 28) and labels of each part, and the classes of each alphabet."""
    images, labels, drawer, alphabets = omniglot()
    x = (torch.from_numpy(images)[:, None].float() / 255 - 0.1) / 0.25
    y, who = torch.from_numpy(labels), torch.from_numpy(drawer)
    ends = {"train": (0, DRAWERS - 7), "val": (DRAWERS - 7, DRAWERS - 5), "test": (DRAWERS - 5, DRAWERS)}
    parts = {name: (x[(who >= a) & (who < b)], y[(who >= a) & (who < b)]) for name, (a, b) in ends.items()}
    return parts, [alphabets.count(name) for name in dict.fromkeys(alphabets)]


class _Net(nn.Module):
    """Four convolutions, a mean over places, a head."""

    def __init__(self, channels: int, head: nn.Module):
        super().__init__()
        widths = [1, channels, channels, 2 * channels, 2 * channels]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if i < 3 else []
        self.body, self.head = nn.Sequential(*layers, nn.Flatten()), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _width(channels: int) -> int:
    return 2 * channels * 9  # a map of 3 x 3


def _bounds(sizes: list[int]) -> list[tuple[int, int]]:
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))


def _fit(net: nn.Module, x: Tensor, target: Tensor, epochs: int, rate: float, seed: int) -> None:
    """AdamW with a one-cycle rate on the summed sigmoid loss; order and shifts follow from the seed."""
    draw = torch.Generator().manual_seed(seed)
    scale = [p for n, p in net.named_parameters() if n.endswith("gamma")]
    rest = [p for n, p in net.named_parameters() if not n.endswith("gamma")]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": scale, "weight_decay": 0.0}], rate, weight_decay=1e-2)
    steps = max(1, len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=draw)
        for k in range(steps):
            chosen = order[k * BATCH : (k + 1) * BATCH]
            loss = summed_sigmoid_loss(net(x[chosen]), target[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    net.eval()


def _within(scores: Tensor, labels: Tensor, sizes: list[int]) -> float:
    """Mean over alphabets of the accuracy (%) within the alphabet."""
    found = []
    for a, b in _bounds(sizes):
        mine = (labels >= a) & (labels < b)
        found.append(100 * float((scores[mine][:, a:b].argmax(1) + a == labels[mine]).float().mean()))
    return sum(found) / len(found)


_specialists: dict[tuple, tuple[Tensor, dict[str, float]]] = {}


def _taught(mode: str, seed: int, device) -> tuple[Tensor, dict[str, float]]:
    """Targets (N, 136) of the training pictures from specialists trained from this seed, and their own accuracy on val and test."""
    if (mode, seed) not in _specialists:
        epochs, channels, _, rates = SIZES[mode]
        parts, sizes = _data()
        x, y = parts["train"]
        targets, right = torch.zeros(len(x), sum(sizes)), {"val": 0.0, "test": 0.0}
        for v, (a, b) in enumerate(_bounds(sizes)):
            torch.manual_seed(seed * 100 + v)
            net = _Net(channels, nn.Linear(_width(channels), b - a)).to(device)
            nn.init.constant_(net.head.bias, -torch.tensor(b - a - 1.0).log().item())  # type: ignore[arg-type]
            mine = ((y >= a) & (y < b)).nonzero()[:, 0]
            _fit(net, x[mine].to(device), F.one_hot(y[mine] - a, b - a).float().to(device), epochs, rates[-1], seed)
            with torch.no_grad():
                classes, values = teacher_probabilities(net(x[mine].to(device)).cpu())
                targets[mine[:, None], classes + a] = values
                for part in right:
                    px, py = parts[part]
                    own = (py >= a) & (py < b)
                    said = net(px[own].to(device)).cpu().argmax(1) + a
                    right[part] += 100 * float((said == py[own]).float().mean()) / len(sizes)
        _specialists[mode, seed] = targets, right
    return _specialists[mode, seed]


def _student(name: str, mode: str) -> _Net:
    _, channels, _, _ = SIZES[mode]
    _, kind, paced = ARMS[name]
    _, sizes = _data()
    head = StructurallyConnectedHead(_width(channels), sizes, kind, scaling=SelfPacedScaling(sizes) if paced else None)
    if not paced:
        head.start_at_prior()
    return _Net(channels, head)


def _arm(name: str, mode: str, device) -> kit.Arm:
    epochs, _, _, _ = SIZES[mode]
    distilled, _, _ = ARMS[name]

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        parts, sizes = _data()
        x, y = parts["train"]
        taught, specialists = _taught(mode, seed, device)
        target = taught if distilled else F.one_hot(y, sum(sizes)).float()
        torch.manual_seed(seed)
        net = _student(name, mode).to(device)
        _fit(net, x.to(device), target.to(device), epochs, rate, seed)
        px, py = parts[part]
        with torch.no_grad():
            scores = torch.cat([net(b.to(device)).cpu() for b in px.split(256)])
        return {"accuracy": _within(scores, py, sizes), "specialists": specialists[part]}

    return kit.Arm(name, run, kit.macs(_student(name, mode), 1, 1, 28, 28))


def run(ctx) -> dict:
    _, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    found = kit.compare(ctx, [_arm(name, ctx.mode, ctx.device) for name in ARMS], seeds=seeds, rates=rates)
    heads = {n: sum(p.numel() for p in _student(n, ctx.mode).head.parameters()) for n in ARMS}
    parts, _ = _data()
    return {
        **found.figures("accuracy"),
        "accuracy_specialists": kit.interval(found.metrics["specialists"]["FC-FC"]),
        "gain_of_distillation": found.effect("FC-FC + D"),
        "gain_of_separate_layers": found.effect("FC-SC + D", "FC-FC + D"),
        "gain_of_scaling": found.effect("FC-SC + D + S", "FC-SC + D"),
        **{f"head_weights_{kit.slug(n)}": count for n, count in heads.items()},
        "data_digest": kit.digest(*(t for pair in parts.values() for t in pair)),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures, figure.subplots(), title="Five alphabets in one network", ylabel="accuracy within the alphabet (%)"
    )


_EFFECTS = (
    Effect("gain_of_distillation", unit="points", why="distillation adds about 4 points to FC4096-FC512"),
    Effect("gain_of_separate_layers", unit="points", why="FC4096-SC512 is the paper's best head"),
    Effect("gain_of_scaling", unit="points", why="the best single model has self-paced scaling"),
)
PROOF = Proof(
    slug="knowledge-concentration",
    question="Does a network for many verticals gain from its specialists' outputs, from layers per vertical, and from self-paced scales?",
    data="five alphabets of Omniglot, bundled: 136 characters, people of their own for the test",
    baseline="the same network on labels, with layers over everything; each part is added to the one before",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
