"""What proofs share: arms × seeds to a paired interval, cost matched, the rate chosen for each arm by the same rule, one loop.

A comparison of arms is fair when they differ in the paper's idea alone. :func:`compare` therefore runs every arm on the same
seeds, chooses each arm's learning rate from the same grid by the same validation score, refuses arms whose costs differ by more
than 5 %, and gives each difference to the baseline as a 95 % interval of Student's t over the paired seeds.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError

COST = 0.05  # by how much the costs of two arms may differ
PILOT = 1000  # the seeds on which rates are chosen: not among those that are judged


# -- intervals ----------------------------------------------------------------------------------------------------------
def interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean of independent runs with its interval of Student's t: ``{"mean", "low", "high", "std", "n"}``.

    With one run the interval is infinite, written as a very wide one so that it stays a number.
    """
    from scipy.stats import t

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return {"mean": mean, "low": mean - 1e9, "high": mean + 1e9, "std": 0.0, "n": n}
    std = statistics.stdev(values)
    half = float(t.ppf(0.5 + level / 2, n - 1)) * std / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "std": std, "n": n}


def paired(arm: Sequence[float], baseline: Sequence[float], cost_ratio: float | None = None) -> dict[str, Any]:
    """The difference ``arm - baseline`` run by run (same seed, same data): what an ``Effect`` judges.

    Args:
        arm, baseline: one value per seed, in the same order.
        cost_ratio: cost of the arm over that of the baseline; ``None`` where cost is not what is compared.
    """
    if len(arm) != len(baseline) or not arm:
        raise OffprintError(
            f"paired runs are needed, got {len(arm)} and {len(baseline)} values; run both on the same seeds"
        )
    found = interval([a - b for a, b in zip(arm, baseline, strict=True)])
    return {**found, **({} if cost_ratio is None else {"cost_ratio": cost_ratio})}


def match_cost(costs: Mapping[str, float], tolerance: float = COST) -> None:
    """Refuse arms whose costs differ by more than ``tolerance`` from the first one's.

    Raises:
        OffprintError: names every arm's cost.
    """
    first = next(iter(costs.values()))
    if any(abs(cost / first - 1) > tolerance for cost in costs.values()):
        rows = ", ".join(f"{name} {cost:,.4g} ({cost / first:.3f})" for name, cost in costs.items())
        raise OffprintError(
            f"the arms' costs differ by more than {tolerance:.0%}: {rows}; change widths or steps until they match"
        )


def digest(*arrays: Any) -> str:
    """16 hexadecimal digits of the data a proof ran on (tensors, arrays or text, in this order)."""
    whole = hashlib.sha256()
    for array in arrays:
        if isinstance(array, Tensor):
            array = array.detach().cpu().contiguous().numpy()
        whole.update(
            array.encode() if isinstance(array, str) else str((array.dtype, array.shape)).encode() + array.tobytes()
        )
    return whole.hexdigest()[:16]


# -- arms × seeds -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Args:
        name: shown in tables and plots.
        run: ``run(seed, rate, part) -> score``: train from ``seed`` at ``rate`` and score on ``part``, ``"val"`` (rates are chosen
            by it) or ``"test"``. The same seed means the same data order and, as far as shapes agree, the same start in all arms.
            Where one training gives several figures, a mapping metric → score, the first of which rates are chosen by.
        cost: what one training step costs (multiply-adds); ``None`` in every arm where they share it by construction.
    """

    name: str
    run: Callable[[int, float, str], float | Mapping[str, float]]
    cost: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Scores, chosen rates and costs of all arms; differences to the baseline.

    ``metrics`` holds metric → arm → values where the arms' ``run`` gives mappings; ``scores`` is the first of these.
    """

    scores: dict[str, list[float]]
    rates: dict[str, float]
    pilots: dict[str, dict[str, float]]
    costs: dict[str, float | None]
    baseline: str
    metrics: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def effect(self, arm: str, baseline: str | None = None, metric: str | None = None) -> dict[str, Any]:
        """The paired difference of ``arm`` to ``baseline``, in ``metric`` or else in the scores."""
        base = baseline or self.baseline
        table = self.metrics[metric] if metric else self.scores
        one, two = self.costs[arm], self.costs[base]
        return paired(table[arm], table[base], one / two if one and two else None)

    def figures(self, name: str = "score", prefix: str = "") -> dict[str, Any]:
        """For ``run`` to return: each arm's mean with its interval, and the table for the plot.

        Args:
            name: what the scores are.
            prefix: of the table's names, where a proof makes more than one comparison.
        """
        return {
            **{f"{name}_{slug(arm)}": interval(values) for arm, values in self.scores.items()},
            f"{prefix}arms": self.scores, f"{prefix}rates": self.rates, f"{prefix}pilots": self.pilots,
            f"{prefix}costs": self.costs,
        }  # fmt: skip


def slug(name: str) -> str:
    """A name as it stands in figures: ``"order 3"`` → ``"order_3"``."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).lower().split())


def compare(
    ctx, arms: Sequence[Arm], *, seeds: Sequence[int], rates: Sequence[float], pilots: int = 1, baseline: str | None = None,
    lower_is_better: bool = False,
) -> Comparison:  # fmt: skip
    """Choose each arm's rate, run every arm on every seed, resume where an interrupted proof stopped.

    The rate of an arm is the one of ``rates`` with the best mean validation score over ``pilots`` seeds that are not judged; a
    single rate is taken as it is.

    Args:
        ctx: the proof's context; progress steps are declared by :func:`steps` beforehand.
        arms: at least two, the baseline first unless ``baseline`` names it.
        seeds: the paired seeds (five or more for an effect that can hold).
        rates: the grid of learning rates, the same for all arms.
        pilots: seeds that a rate is chosen on.
        lower_is_better: scores are errors or losses.

    Raises:
        OffprintError: fewer than two arms, or costs that differ by more than 5 %.
    """
    if len(arms) < 2 or len({a.name for a in arms}) != len(arms):
        raise OffprintError(f"a comparison needs two arms of different names, got {[a.name for a in arms]}")
    costs = {a.name: a.cost for a in arms}
    if any(c is not None for c in costs.values()):
        if any(c is None for c in costs.values()):
            raise OffprintError(f"give every arm a cost, or none: {costs}")
        match_cost({k: float(c) for k, c in costs.items() if c is not None})
    chosen: dict[str, float] = {}
    tried: dict[str, dict[str, float]] = {}
    found: dict[str, list[Any]] = {}
    for arm in arms:
        tried[arm.name] = {}
        for rate in rates if len(rates) > 1 else ():
            values = []
            for k in range(pilots):
                ctx.step(f"{arm.name}: rate {rate:g}, pilot {k + 1}")
                score = ctx.part(
                    f"pilot-{arm.name}-{rate:g}-{k}", lambda a=arm, r=rate, k=k: a.run(PILOT + k, r, "val")
                )
                values.append(next(iter(score.values())) if isinstance(score, Mapping) else score)
            tried[arm.name][f"{rate:g}"] = statistics.fmean(values)
        best = min if lower_is_better else max
        chosen[arm.name] = best(rates, key=lambda r, t=tried[arm.name]: t[f"{r:g}"]) if len(rates) > 1 else rates[0]  # type: ignore[misc]
        found[arm.name] = []
        for seed in seeds:
            ctx.step(f"{arm.name}: seed {seed}")
            rate = chosen[arm.name]
            found[arm.name].append(ctx.part(f"{arm.name}-{seed}", lambda a=arm, r=rate, s=seed: a.run(s, r, "test")))
    one = found[arms[0].name][0]
    metrics = (
        {m: {a: [v[m] for v in rows] for a, rows in found.items()} for m in one} if isinstance(one, Mapping) else {}
    )
    scores = next(iter(metrics.values())) if metrics else found
    return Comparison(scores, chosen, tried, costs, baseline or arms[0].name, metrics)


def steps(arms: int, seeds: Sequence[int], rates: Sequence[float], pilots: int = 1) -> int:
    """How many progress steps :func:`compare` takes."""
    return arms * (len(seeds) + (len(rates) * pilots if len(rates) > 1 else 0))


# -- images -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Images:
    """Normalised images (N, C, H, W) and labels for training, for choosing rates, and for the test."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def digest(self) -> str:
        return digest(*self.train, *self.val, *self.test)

    def to(self, device) -> Images:
        return Images(*(tuple(t.to(device) for t in pair) for pair in (self.train, self.val, self.test)))  # type: ignore[arg-type]


def _split(pairs: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[Sequence[int]]) -> Images:
    """Cut (training, test) images into parts of these sizes, in one order for good.

    Raises:
        OffprintError: fewer images than the parts need.
    """
    out: list[tuple[Tensor, Tensor]] = []
    for (x, y), parts in zip(pairs, sizes, strict=True):
        if sum(parts) > len(x):
            raise OffprintError(
                f"{sum(parts)} images are needed, there are {len(x)}; ask for fewer or set OFFPRINT_DATA"
            )
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: sum(parts)]
        out += list(zip(x[order].split(list(parts)), y[order].split(list(parts)), strict=True))
    return Images(*out)


@cache
def cifar(count: int, val: int = 500, test: int = 1000) -> Images:
    """CIFAR-10, normalised: the bundled sample (5,000 and 1,000 images), or the whole set where more is asked for.

    Args:
        count: training images; ``val`` more, none of them among these, serve to choose rates.
        test: test images.
    """
    from offprint.data.images import open_images
    from offprint.data.pixels import cifar10

    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.2435, 0.2616])
    if count + val > 5000 or test > 1000:
        splits = open_images("cifar10")
        sets: list[Any] = [splits.train, splits.val]
        arrays = [(s.images if hasattr(s, "images") else s.data, s.targets) for s in sets]
    else:
        arrays = [cifar10(train)[:2] for train in (True, False)]
    pairs = []
    for images, labels in arrays:
        x = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
        pairs.append(((x - mean[:, None, None]) / std[:, None, None], torch.as_tensor(labels).long()))
    return _split(pairs, ((count, val), (test,)))


@cache
def digits(count: int, val: int = 500, test: int = 1000, *, channels: int = 1) -> Images:
    """MNIST in the middle of 32 pixels, normalised: the bundled sample (6,000 and 2,000 digits), or all where more is asked for.

    Args:
        count, val, test: as for :func:`cifar`.
        channels: equal copies of the grey image.
    """
    from offprint.data.digits import mnist

    full = count + val > 6000 or test > 2000
    pairs = []
    for train in (True, False):
        images, labels = mnist(train, full)
        x = F.pad(torch.from_numpy(images).float()[:, None] / 255, (2, 2, 2, 2))
        pairs.append((((x - 0.1) / 0.28).expand(-1, channels, -1, -1), torch.as_tensor(labels).long()))
    return _split(pairs, ((count, val), (test,)))


@dataclass(frozen=True)
class Setting:
    """How :func:`fit` trains: AdamW with a one-cycle rate, flips, shifts and label smoothing."""

    epochs: int
    batch: int = 100
    decay: float = 0.05
    smoothing: float = 0.1
    flip: bool = True
    shift: int = 3
    clip: float = 1.0


def accuracy(net: nn.Module, part: tuple[Tensor, Tensor], batch: int = 250) -> float:
    """Share of the images that ``net`` classifies rightly, in percent."""
    net.eval()
    with torch.no_grad():
        right = [(net(x.contiguous(memory_format=torch.channels_last)).argmax(1) == y).float() for x, y in zip(
            part[0].split(batch), part[1].split(batch), strict=True)]  # fmt: skip
    return 100 * float(torch.cat(right).mean())


def fit(
    build: Callable[[], nn.Module], data: Images, setting: Setting, *, seed: int, rate: float, part: str = "test",
    device: torch.device | str = "cpu", after: Callable[[nn.Module], Any] | None = None,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None, watch: Callable[[float], Any] | None = None,
    score: Callable[[nn.Module, tuple[Tensor, Tensor]], float] = accuracy,
) -> float:  # fmt: skip
    """Train what ``build`` makes from ``seed`` and return its score, the accuracy (%), on ``part`` of the data.

    Weights, order and augmentation follow from the one seed; order and augmentation have a generator of their own, so that two
    arms see the same pictures whatever they draw for themselves. A network may return a tuple whose first entry is the logits.

    Args:
        after: called with the trained network in evaluation mode, for whatever else a proof measures.
        loss_of: ``loss_of(net, images, labels)``; by default cross-entropy with the setting's smoothing.
        watch: called with the loss of each step.
        score: ``score(net, (images, labels))`` instead of the accuracy.
    """
    torch.manual_seed(seed)
    net = build().to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    data = data.to(device)
    x, y = data.train
    draw = torch.Generator().manual_seed(seed * 7919 + 1)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate, weight_decay=setting.decay)
    total = setting.epochs * (len(x) // setting.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total)
    for _ in range(setting.epochs):
        order = torch.randperm(len(x), generator=draw)
        for start in range(0, len(x) - setting.batch + 1, setting.batch):
            index = order[start : start + setting.batch]
            flips = torch.rand(len(index), 1, 1, 1, generator=draw) < 0.5
            moves = torch.randint(-setting.shift, setting.shift + 1, (2,), generator=draw).tolist()
            images, labels = x[index.to(x.device)], y[index.to(y.device)]
            if setting.flip:
                images = torch.where(flips.to(x.device), images.flip(-1), images)
            images = torch.roll(images, moves, (-2, -1)).contiguous(memory_format=torch.channels_last)
            if loss_of is not None:
                loss = loss_of(net, images, labels)
            else:
                output = net(images)
                loss = F.cross_entropy(
                    output[0] if isinstance(output, tuple) else output, labels, label_smoothing=setting.smoothing
                )
            if watch is not None:
                watch(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            if setting.clip:
                nn.utils.clip_grad_norm_(net.parameters(), setting.clip)
            optimizer.step()
            schedule.step()
    found = score(net.eval(), data.val if part == "val" else data.test)
    if after is not None:
        after(net.eval())
    return found


def fan_in_(net: nn.Module) -> nn.Module:
    """Start every convolution and linear layer at a standard deviation of 1/sqrt(fan-in), biases at zero, in place.

    The papers' 0.02 is meant for widths of several hundred; at a width of 32 it makes chains of products vanish (gradients of
    1e-13 and less, below Adam's eps), and what is compared then is the start and not the idea.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            fan_in = module.weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def macs(net: nn.Module, *shape: int) -> int:
    """Multiply-adds of one forward pass of an input of ``shape`` (default: one 32-pixel image)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(shape or (1, 3, 32, 32)))
    return counter.get_total_flops() // 2


def bars(
    figures: Mapping[str, Any],
    axis,
    *,
    title: str,
    ylabel: str = "test accuracy (%)",
    baseline: str = "",
    prefix: str = "",
) -> None:
    """Draw the arms of a comparison: a bar per arm, a point per seed, the cost below the name where there is one."""
    table: Mapping[str, list[float]] = figures[f"{prefix}arms"]
    costs = figures.get(f"{prefix}costs") or {}
    first = baseline or next(iter(table))
    for i, (name, values) in enumerate(table.items()):
        axis.bar(i, statistics.fmean(values), color="#b9c6d6" if name == first else "#d9822b")
        axis.plot([i] * len(values), values, "k.", markersize=5)
    axis.set_xticks(range(len(table)), [f"{n}\n{costs[n] / 1e6:.1f} M" if costs.get(n) else n for n in table])
    low, high = min(map(min, table.values())), max(map(max, table.values()))
    axis.set_ylim(max(0.0, low - 2 * (high - low) - 1), high + 0.5 * (high - low) + 1)
    axis.set_ylabel(ylabel)
    axis.set_title(title)
