"""VTDNet, rebuilt, on drawn driving scenes: its training scheme (CPF) against training all at once, and what ten tasks in one network cost.

BDD100K cannot be bundled; the scenes are drawn here (road, lane lines, cars that move, a figure), and say nothing of photographs. A training video keeps the labels of
three of ten tasks. Both arms are the same network; the steps of CPF are a curriculum (the tasks with full labels, then all), pseudo-labels of its own for the semantic map, and
the decoders alone at the end, at a tenth of the rate. A pseudo-labelled step counts as 4/3 of a step (the labeller's forward pass), every other as one, so that both arms cost the same or CPF less. The
score is the mean of the scores (%) on held-out videos, all of whose labels are kept; rates are chosen on other videos.

Single-task networks (the same class with one task) show parameters and multiply-adds against the one network: the sum of ten against the one, at the small
network's sizes and at one resolution, so the paper's "20 %" is not this figure. Three of them are trained, at two widths, for as many steps each as the one network; of these
three tasks' scores the VTDA of the one and of the single networks is told, without a verdict.

Setting and bands were fixed before the first full run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from offprint.data.drawn_driving import drawn
from offprint.data.driving import DrivingFrames
from offprint.models.detection.vtdnet import FULL_TASKS, TASKS, Tracker, VTDNet, vtda
from offprint.models.registry import IMAGENET
from offprint.proofs import Effect, Proof, kit
from offprint.tasks._driving_frames import Pairs, joined
from offprint.tasks.contract import Ready
from offprint.tasks.driving import Driving, DrivingRecipe, DrivingTask, scored

NET = {
    "backbone": "resnet18", "width": 32, "task_width": 16, "pixel_width": 32, "window": 4, "hidden": 64, "mask_width": 16, "pose_width": 16,
    "pose_layers": 2, "embed": 32, "proposals": (200, 60, 200, 40), "regions": 32, "tokens": 16,
}  # fmt: skip
SIZES: dict[str, Any] = {  # mode: steps, batch, videos to learn from, judged videos, (height, width), seeds, rates
    "quick": (4, 2, 4, 1, (64, 96), (0,), (1e-3,)),
    "full": (48, 2, 80, 8, (64, 96), (0, 1, 2, 3, 4), (5e-4, 2e-3)),
    "gpu": (6000, 4, 600, 60, (96, 160), (0, 1, 2, 3, 4), (5e-4, 2e-3)),
}
STAGES = (  # of CPF: share of the steps, recipe, what a step costs
    (0.35, {"tasks": FULL_TASKS}, 1.0),
    (0.35, {}, 1.0),
    (0.2, {"pseudo": ("semantic",), "pseudo_threshold": 0.6}, 4 / 3),
    (0.1, {"decoders_only": True}, 1.0),
)
SINGLES = {"tagging": ("tagging_weather", "tagging_scene"), "semantic": ("semantic",), "detection": ("detection",)}


@cache
def _data(mode: str) -> tuple[DrivingFrames, DrivingFrames]:
    """Videos to learn from with those that rates are chosen on, and those that are judged."""
    _, _, videos, held, size, _, _ = SIZES[mode]
    return drawn(videos, held, size=size, seed=1), drawn(1, held, size=size, seed=2)


def _train(net: VTDNet, mode: str, stages: Sequence[tuple[int, dict]], seed: int, rate: float, device) -> VTDNet:
    """Steps of one stage after the other, the rate of each falling; decoders alone at a tenth of it."""
    _, batch, _, _, _, _, _ = SIZES[mode]
    draw = torch.Generator().manual_seed(seed + 1)
    for steps, fields in stages:
        recipe = DrivingRecipe(**fields)
        module = Driving(net, recipe, seed, IMAGENET).to(device)
        pairs = Pairs(
            [f for f in _data(mode)[0].train if set(recipe.tasks or TASKS) & set(f.labels)], recipe.tasks, (), 0, True
        )
        net.train()
        module.on_train_epoch_start()
        learnt = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learnt, rate * (0.1 if recipe.decoders_only else 1), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, optimizer.param_groups[0]["lr"], total_steps=max(2, steps)
        )
        for _ in range(steps):
            raw, targets, which, other, others = joined(
                [pairs[i] for i in torch.randint(len(pairs), (batch,), generator=draw).tolist()]
            )
            loss, _, _ = module.losses((raw.to(device), targets, which, other.to(device), others))
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
            torch.nn.utils.clip_grad_norm_(learnt, 5.0)
            optimizer.step()
            schedule.step()
        net.requires_grad_(True)
    return net.eval()


def _scores(net: VTDNet, mode: str, part: str) -> dict[str, float]:
    chosen, judged = _data(mode)
    frames = sorted((chosen if part == "val" else judged).val, key=lambda f: (f.video, f.index))
    ready = Ready(DrivingTask(), net, "", {"preprocessing": dict(IMAGENET)})
    found = scored(ready, frames, Tracker())
    found.pop("detection_ap50", None)
    return found


def _cpf(steps: int) -> list[tuple[int, dict]]:
    """The stages with their steps, which cost no more than ``steps``."""
    return [(int(share * steps / cost), fields) for share, fields, cost in STAGES]


def _cost(stages: Sequence[tuple[int, dict]]) -> float:
    return sum(n * (4 / 3 if fields.get("pseudo") else 1.0) for n, fields in stages)


def _arm(name: str, mode: str, device) -> kit.Arm:
    steps = SIZES[mode][0]
    stages = _cpf(steps)
    if name != "CPF":
        stages = [(round(_cost(stages)), {})]

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        scores = _scores(_train(VTDNet(**NET).to(device), mode, stages, seed, rate, device), mode, part)
        return {"mean": sum(scores.values()) / len(scores), **scores}

    return kit.Arm(name, run, _cost(stages))


def _macs(net: VTDNet, size: tuple[int, int]) -> int:
    """Multiply-adds of every output of a frame, with a reference where the flow is among them."""
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.zeros(1, 3, *size)
    with FlopCounterMode(display=False) as counter:
        net.eval().detect(x, x, score_threshold=0.0)
    return counter.get_total_flops() // 2


def _sums(mode: str) -> dict[str, float]:
    """The one network against the sum of ten: parameters and multiply-adds."""
    torch.manual_seed(0)
    nets = [VTDNet(**NET), *(VTDNet(tasks=(t,), **NET) for t in TASKS)]
    count, cost = [sum(p.numel() for p in n.parameters()) for n in nets], [_macs(n, SIZES[mode][4]) for n in nets]
    return {
        "parameters": count[0], "parameters_of_ten": sum(count[1:]), "share_of_parameters": count[0] / sum(count[1:]),
        "macs": cost[0], "macs_of_ten": sum(cost[1:]), "share_of_macs": cost[0] / sum(cost[1:]),
    }  # fmt: skip


def _singles(mode: str, rate: float, device) -> dict[str, list[float]]:
    """Score → of single-task networks of two widths."""
    found: dict[str, list[float]] = {name: [] for names in SINGLES.values() for name in names}
    for width in (NET["width"], 2 * int(NET["width"])):  # type: ignore[call-overload]
        for task, names in SINGLES.items():
            torch.manual_seed(0)
            net = VTDNet(tasks=(task,), **{**NET, "width": width}).to(device)  # type: ignore[arg-type]
            scores = _scores(_train(net, mode, [(SIZES[mode][0], {"tasks": (task,)})], 0, rate, device), mode, "test")
            for name in names:
                found[name].append(scores[name])
    return found


def run(ctx) -> dict:
    _, _, _, _, _, seeds, rates = SIZES[ctx.mode]
    names = ("all at once", "CPF")
    ctx.total(kit.steps(2, seeds, rates) + 2)
    found = kit.compare(ctx, [_arm(n, ctx.mode, ctx.device) for n in names], seeds=seeds, rates=rates)
    ctx.step("parameters and multiply-adds")
    sums = _sums(ctx.mode)
    ctx.step("single-task networks")
    singles = ctx.part("singles", lambda: _singles(ctx.mode, found.rates["all at once"], ctx.device))
    groups = {"classification": SINGLES["tagging"], "segmentation": ("semantic",), "localization": ("detection",)}
    mean = lambda v: sum(v) / len(v)  # noqa: E731
    table = {n: {k: mean(found.metrics[k][n]) for k in singles} for n in names} | {
        "single tasks": {k: mean(v) for k, v in singles.items()}
    }
    return {
        **found.figures("score"), "gain_of_cpf": found.effect("CPF"), **sums,
        **{f"vtda_of_three_{kit.slug(n)}": vtda(row, singles, groups).total for n, row in table.items()},
        **{f"{k}_{kit.slug(n)}": v for n, row in table.items() for k, v in row.items()},
        "data_digest": _data(ctx.mode)[0].digest + _data(ctx.mode)[1].digest,
    }  # fmt: skip


def plot(figures: dict, figure) -> None:
    kit.bars(
        {**figures, "costs": {}},
        figure.subplots(),
        title="Ten driving tasks on drawn scenes",
        ylabel="mean of the scores (%)",
    )


_EFFECTS = (
    Effect(
        "gain_of_cpf", unit="points", why="the paper trains by curriculum, pseudo-labels and fine-tuning (from memory)"
    ),
)
PROOF = Proof(
    slug="vtdnet",
    question="At the same cost, is one network of ten tasks better for training by curriculum, pseudo-labels and fine-tuning?",
    data="driving scenes that are drawn here, of whose ten labels a training video keeps three",
    baseline="the same network trained on all tasks at once, as many steps, the rate chosen by the same rule",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
