"""What a step of tune mode keeps and takes beside one of eval mode, and what fine-tuning in the four modes comes to.

**A step.** ResNet-50, MobileNetV2 and ResNet-18 of torchvision with random weights, forward and backward on 8 random pictures of 224 pixels: bytes
that autograd keeps (parameters excluded) and seconds, eval and tune in turns. A pair is one pair of turns; what is judged is the share that tune
saves of eval's, in percent. The abstract says less memory and less time of all its architectures, so each network is judged; before this file
was written, ResNet-18 was seen to take longer in tune mode on one core. The small batch, where tune keeps more, is shown beside them.

**Fine-tuning.** A network of five convolutions with norms learns the digits 0 to 4, then gets a new classifier and learns 5 to 9 by SGD with
momentum in each mode, from the same weights with the same batches; in all modes but train the norms stay frozen. Rates are chosen for each mode by the
same rule on held-out digits. Deploy is also run at the rate chosen for eval, which is what the paper says of it: that the change of
mode alone makes the same recipe train worse. Eval and tune are the same training but for rounding; both curves are shown.
"""

from __future__ import annotations

import copy
import statistics
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.methods.training.tune_mode import in_mode, measure_modes
from offprint.proofs import Effect, Proof, kit

NETWORKS = ("resnet50", "mobilenet_v2", "resnet18")
MODES = ("train", "eval", "tune", "deploy")
SIZES = {  # mode: pictures and their side, of a small batch too; turns; steps before and after; seeds; rates
    "quick": ((2, 64), (1, 32), 2, 40, 10, (0, 1), (0.03,)),
    "full": ((8, 224), (4, 128), 5, 300, 60, (0, 1, 2, 3, 4), (0.01, 0.03, 0.1)),
    "gpu": ((64, 224), (2, 128), 20, 1000, 300, tuple(range(10)), (0.003, 0.01, 0.03, 0.1)),
}
BATCH = 64


def _steps(name: str, size: tuple[int, int], turns: int, device) -> dict[str, dict[str, list[float]]]:
    """mode → mebibytes and seconds of each turn."""
    import torchvision

    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).to(device)
    x = torch.randn(size[0], 3, size[1], size[1], device=device)
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(turns + 1):  # the first warms up
        order = ("eval", "tune") if turn % 2 else ("tune", "eval")
        for mode, row in measure_modes(net, x, order).items():
            for key, value in row.items() if turn else ():
                found.setdefault(mode, {}).setdefault(key, []).append(value)
    return found


def _saved(found: dict[str, dict[str, list[float]]], key: str) -> dict:
    """Percent of eval's that tune saves, turn by turn."""
    return kit.paired(
        [100 * (1 - t / e) for t, e in zip(found["tune"][key], found["eval"][key], strict=True)],
        [0.0] * len(found["tune"][key]),
    )


@cache
def _digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Digits at 16 pixels: 0 to 4 to learn first, 5 to 9 (as classes 0 to 4) to fine-tune on, to choose rates by, and to test."""
    whole = kit.digits(5000, 1000, 2000)
    parts = {name: (F.avg_pool2d(x, 2), y) for name, (x, y) in
             {"train": whole.train, "val": whole.val, "test": whole.test}.items()}  # fmt: skip
    first = parts["train"][1] < 5
    late = {name: (x[y >= 5], y[y >= 5] - 5) for name, (x, y) in parts.items()}
    return {
        "first": (parts["train"][0][first], parts["train"][1][first]),
        "train": late["train"],
        "val": late["val"],
        "test": late["test"],
    }


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for cin, cout, stride in ((1, 16, 1), (16, 24, 2), (24, 24, 1), (24, 32, 2), (32, 32, 1)):
        layers += [nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def _learn(net: nn.Module, data: tuple[Tensor, Tensor], steps: int, rate: float, seed: int, device) -> list[float]:
    """Train as the network's modes are set; the loss of each step."""
    x, y = (t.to(device) for t in data)
    draw = torch.Generator().manual_seed(seed)
    optimizer, losses = torch.optim.SGD(net.parameters(), rate, momentum=0.9), []
    for _ in range(steps):
        index = torch.randint(len(x), (BATCH,), generator=draw).to(device)
        loss = F.cross_entropy(net(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def run(ctx) -> dict:
    large, small, turns, before, after, seeds, rates = SIZES[ctx.mode]
    ctx.total(2 * len(NETWORKS) + kit.steps(len(MODES), seeds, rates) + len(seeds) + len(MODES))
    figures: dict = {}
    table: dict[str, dict[str, float]] = {}
    for name in NETWORKS:
        for what, size in (("", large), (" small batch", small)):
            ctx.step(f"{name}, {size[0]} x {size[1]} px")
            n = turns if not what else 1
            found = ctx.part(f"{name}{what}", lambda name=name, size=size, n=n: _steps(name, size, n, ctx.device))
            table[name + what] = {
                f"{mode} {key}": statistics.median(v) for mode, row in found.items() for key, v in row.items()
            }
            if not what:
                figures[f"memory_saved_{name}"], figures[f"time_saved_{name}"] = (
                    _saved(found, "mebibytes"),
                    _saved(found, "seconds"),
                )
            else:
                figures[f"memory_saved_{name}_small_batch"] = _saved(found, "mebibytes")["mean"]
    digits = _digits()

    @cache
    def start(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = _network().to(ctx.device)
        _learn(net, digits["first"], before, 0.05, seed, ctx.device)
        net[-1].reset_parameters()  # type: ignore[operator]
        return net

    def fine_tune(mode: str, seed: int, rate: float) -> tuple[nn.Module, list[float]]:
        net = in_mode(copy.deepcopy(start(seed)), mode)
        return net, _learn(net, digits["train"], after, rate, 10_000 + seed, ctx.device)

    def score(mode: str, seed: int, rate: float, part: str) -> float:
        x, y = (t.to(ctx.device) for t in digits[part])
        return kit.accuracy(fine_tune(mode, seed, rate)[0], (x, y), len(x))

    arms = [kit.Arm(mode, lambda seed, rate, part, mode=mode: score(mode, seed, rate, part)) for mode in MODES]
    compared = kit.compare(ctx, arms, seeds=seeds, rates=rates, baseline="eval")
    rate, same, curves = compared.rates["eval"], [], {}
    for seed in seeds:
        ctx.step(f"deploy at eval's rate: seed {seed}")
        same.append(ctx.part(f"same-{seed}", lambda seed=seed: score("deploy", seed, rate, "test")))
    for mode in MODES:
        ctx.step(f"losses in {mode}")
        curves[mode] = ctx.part(f"losses-{mode}", lambda mode=mode: fine_tune(mode, seeds[0], rate)[1])
    return {
        **figures, **compared.figures("accuracy"), "table": table, "curves": curves,
        "deploy_at_the_rate_of_eval": kit.paired(same, compared.scores["eval"]),
        "deploy_at_its_own_rate": compared.effect("deploy"),
        "gain_over_train": compared.effect("tune", "train"),
        "tune_over_eval": compared.effect("tune"),
        "data_digest": kit.digest(*(t for pair in digits.values() for t in pair)),
    }  # fmt: skip


def plot(figures: dict, figure) -> None:
    left, middle, right = figure.subplots(1, 3)
    for i, row in enumerate(figures["table"].values()):
        for shift, mode, colour in ((-0.2, "eval", "#b9c6d6"), (0.2, "tune", "#d9822b")):
            left.bar(i + shift, row[f"{mode} mebibytes"], 0.4, color=colour, label=mode if i == 0 else None)
    left.set_xticks(range(len(figures["table"])), list(figures["table"]), rotation=30, fontsize=6)
    left.set_ylabel("kept for the backward pass (MiB)")
    left.legend()
    for mode, losses in figures["curves"].items():
        middle.plot(losses, "--" if mode == "tune" else "-", label=mode)
    middle.set_xlabel("step of fine-tuning")
    middle.set_ylabel("loss")
    middle.legend()
    kit.bars(figures, right, title="fine-tuned in each mode", baseline="eval")


_EFFECTS = (
    *(Effect(f"memory_saved_{name}", unit="% of eval", why="less memory (abstract)") for name in NETWORKS),
    *(Effect(f"time_saved_{name}", unit="% of eval", why="less time (abstract)") for name in NETWORKS),
    Effect("deploy_at_the_rate_of_eval", "below", "points", "deploy mode is efficient but trains unstably (abstract)"),
    Effect("gain_over_train", unit="points", why="tune is above train on all three sets (Table 3)"),
)
PROOF = Proof(
    slug="tune-mode",
    question="Does tune mode keep and take less than eval mode, and does fine-tuning in it do as well as in train mode, and better than in deploy?",
    data="random pictures for memory and time; MNIST, 5,000 digits (0 to 4 first, 5 to 9 to fine-tune on), 1,000 held out, 2,000 to test, bundled",
    baseline="eval mode in turns with tune mode; for accuracy train mode, and eval mode for deploy: same weights, batches, steps and rule for the rate",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
