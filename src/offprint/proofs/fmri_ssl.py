"""Pre-training against none with few labels, on SIMULATED scans: no recording of a brain is bundled.

Both arms are the same model with the same labels, steps and order; one starts from an encoder that was pre-trained on the pool
without labels, one from random weights. The rate of each is chosen on scans of the pool that it was not given labels of, from the
same grid. A seed draws the labelled scans, all weights and the pre-training. Pre-training is the idea and its cost is left to it.

The simulation (a covariance that switches between two states) and its strength were chosen after two pilots, before which no
difference between the classes could be learnt at all; whatever is found here holds for these scans only.

Earlier figures, one pre-trained encoder for all draws and one rate for both: +24.7, +18.0 and +12.1 points with 5, 10 and 20
labelled scans per class. That reconstruction gets better is what training does, and is shown without being judged.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.brain_series import open_series, simulate_scans
from offprint.models.graphs.fmri_ssl import STAGIN, SpatioTemporalMAE
from offprint.proofs import Effect, Proof, kit
from offprint.tasks.brain_recipe import BrainRecipe

TEST = 200
SIZES = {  # scans without labels, their frames and regions, the windows, epochs of both stages, seeds, rates, labels per class
    "quick": {"pool": 96, "frames": 110, "regions": 16, "window": 20, "stride": 10, "pretrain": 3, "finetune": 4,
              "seeds": (0, 1), "rates": (1e-3,), "labels": (10,)},
    "full": {"pool": 200, "frames": 150, "regions": 20, "window": 25, "stride": 5, "pretrain": 10, "finetune": 20,
             "seeds": (0, 1, 2, 3, 4), "rates": (5e-4, 1e-3), "labels": (5, 10, 20)},
    "gpu": {"pool": 2000, "frames": 400, "regions": 100, "window": 50, "stride": 5, "pretrain": 30, "finetune": 40,
            "seeds": tuple(range(10)), "rates": (2e-4, 5e-4, 1e-3), "labels": (5, 10, 20, 50)},
}  # fmt: skip
PRETRAINING, FINETUNING = BrainRecipe(lr=1e-3, max_lr=2e-3, batch_size=16), BrainRecipe(batch_size=5)


def _train(model: nn.Module, count: int, loss, recipe: BrainRecipe, epochs: int, seed: int) -> None:
    """``loss(index)`` of batches of ``count`` scans, by the recipe."""
    generator = torch.Generator().manual_seed(seed)
    optimizer, cycle = recipe.optimizer(model, epochs * -(-count // recipe.batch_size))
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(count, generator=generator).split(recipe.batch_size):
            optimizer.zero_grad()
            loss(index).backward()
            optimizer.step()
            cycle.step()
    model.eval()


class _Experiment:
    """Scans, half of each class; the last :data:`TEST` are for testing only, the first are the pool of both stages."""

    def __init__(
        self, pool: int, frames: int, regions: int, window: int, stride: int, pretrain: int, finetune: int, device, **_
    ):
        made = simulate_scans(pool + TEST, regions, frames, coupling=(0.1, 0.7), stay=0.97, variability=0.3)
        series = torch.from_numpy(np.stack(open_series(made.series).series)).to(device)
        classes = torch.from_numpy(made.classes).to(device)
        self.digest = kit.digest(series, classes)
        self.pool, self.test = series[:pool], series[pool:]
        self.pool_classes, self.test_classes = classes[:pool], classes[pool:]
        self.epochs, self.device = (pretrain, finetune), device
        self.options = {"num_regions": regions, "hidden_dim": 32, "num_layers": 2, "window": window, "stride": stride,
                        "length": None}  # fmt: skip
        self.encoder = cache(self._encoder)

    def autoencoder(self, seed: int) -> SpatioTemporalMAE:
        torch.manual_seed(seed)
        return SpatioTemporalMAE(**self.options, num_windows=12).to(self.device)

    def _encoder(self, seed: int) -> SpatioTemporalMAE:
        model = self.autoencoder(seed)
        _train(model, len(self.pool), lambda i: model(self.pool[i]).loss, PRETRAINING, self.epochs[0], seed)
        return model

    @torch.no_grad()
    def reconstruction(self, model: SpatioTemporalMAE) -> float:
        """Loss on the test scans, with the same windows, regions and edges hidden from every model."""
        model = copy.deepcopy(model).train()  # batch statistics: before training there are no running ones to judge by
        return float(model(self.test, generator=torch.Generator().manual_seed(1)).loss)

    def accuracy(self, pretrained: bool, labels: int, seed: int, rate: float, part: str) -> float:
        """Of a model trained on ``labels`` scans per class: on the test scans, or on the pool's other scans."""
        draw, classes = np.random.default_rng(seed), self.pool_classes.cpu().numpy()
        order = [draw.permutation(np.flatnonzero(classes == c)) for c in (0, 1)]
        chosen, others = (np.concatenate([o[cut] for o in order]) for cut in (slice(labels), slice(labels, None)))
        x, y = self.pool[chosen], self.pool_classes[chosen]
        start = self.encoder(seed) if pretrained else None
        torch.manual_seed(seed)
        model = STAGIN(**self.options).to(self.device)
        if start is not None:
            model.load_state_dict({**model.state_dict(), **start.encoder.state_dict()})

        def loss(index: Tensor) -> Tensor:
            return F.cross_entropy(model(x[index]), y[index])

        recipe = dataclasses.replace(FINETUNING, lr=rate, max_lr=2 * rate)
        _train(model, len(x), loss, recipe, self.epochs[1], seed)
        scans, answers = (
            (self.pool[others], self.pool_classes[others]) if part == "val" else (self.test, self.test_classes)
        )
        with torch.no_grad():
            hit = torch.cat([model(some).argmax(1) for some in scans.split(50)]) == answers
        return 100 * float(hit.float().mean())


def run(ctx) -> dict:
    size = SIZES[ctx.mode]
    lab = _Experiment(**size, device=ctx.device)
    seeds, rates, labels = size["seeds"], size["rates"], size["labels"]
    ctx.total(1 + len(labels) * kit.steps(2, seeds, rates))
    ctx.step("pre-training on simulated scans without labels")
    losses = ctx.part(
        "reconstruction",
        lambda: [lab.reconstruction(lab.autoencoder(seeds[0])), lab.reconstruction(lab.encoder(seeds[0]))],
    )
    figures: dict = {"reconstruction_fall": 100 * (1 - losses[1] / losses[0])}
    arms: dict[str, list[float]] = {}
    chosen: dict[str, float] = {}
    for count in labels:

        def arm(name: str, count=count) -> kit.Arm:
            def run(seed: int, rate: float, part: str) -> float:
                return lab.accuracy(name == "pre-trained", count, seed, rate, part)

            return kit.Arm(f"{name}, {count}", run)

        scratch, ours = arm("from scratch"), arm("pre-trained")
        found = kit.compare(ctx, [scratch, ours], seeds=seeds, rates=rates)
        figures[f"gain_{count}"] = found.effect(ours.name)
        for made in (scratch, ours):
            figures[f"accuracy_{kit.slug(made.name)}"] = kit.interval(found.scores[made.name])
        arms |= found.scores
        chosen |= found.rates
    spreads = {n: statistics.fmean(statistics.stdev(v) for k, v in arms.items() if k.startswith(n))
               for n in ("from scratch", "pre-trained")}  # fmt: skip
    return {**figures, "spread_from_scratch": spreads["from scratch"], "spread_pre_trained": spreads["pre-trained"],
            "arms": arms, "rates": chosen, "costs": {}, "data_digest": lab.digest}  # fmt: skip


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    for i, (name, values) in enumerate(figures["arms"].items()):
        axis.bar(i, statistics.fmean(values), color="#d9822b" if name.startswith("pre") else "#b9c6d6")
        axis.plot([i] * len(values), values, "k.", markersize=5)
    axis.axhline(50, color="0.5", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(figures["arms"])), [name.replace(", ", "\n") for name in figures["arms"]], fontsize=7)
    axis.set_xlabel("labelled scans per class")
    axis.set_ylim(40, 100)
    axis.set_ylabel("test accuracy (%)")
    axis.set_title("SIMULATED scans (switching covariance), not recordings")


def _gains(mode: str) -> tuple[Effect, ...]:
    why = "the paper: accurate models after fine-tuning"
    return tuple(Effect(f"gain_{count}", unit="points", why=why) for count in SIZES[mode]["labels"])


PROOF = Proof(
    slug="fmri-ssl",
    question="On simulated scans, is a model that was pre-trained without labels better than one from scratch, with few labels?",
    data="SIMULATED scans, no recordings: a covariance that switches between two states, in one of which two networks couple "
    "more strongly in one class",
    baseline="the same model from random weights, the same labels, steps and order, its rate chosen by the same rule",
    bands={mode: _gains(mode) for mode in SIZES},
    run=run,
    plot=plot,
)
