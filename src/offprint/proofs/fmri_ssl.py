"""Pre-training against none with few labels, on SIMULATED scans: no recording of a brain is bundled."""

from __future__ import annotations

import copy
import statistics
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.brain_series import open_series, simulate_scans
from offprint.models.graphs.fmri_ssl import STAGIN, SpatioTemporalMAE
from offprint.proofs import Band, Proof
from offprint.tasks.brain import BrainRecipe

TEST = 200
SIZES = {  # scans without labels, their frames and regions, the windows, epochs of both stages, seeds, labels per class
    "quick": {"pool": 96, "frames": 110, "regions": 16, "window": 20, "stride": 6, "pretrain": 10, "finetune": 12,
              "seeds": 2, "labels": (10,), "parts": ()},
    "full": {"pool": 200, "frames": 150, "regions": 20, "window": 25, "stride": 5, "pretrain": 10, "finetune": 20,
             "seeds": 5, "labels": (5, 10, 20), "parts": ("space only", "time only")},
}  # fmt: skip
BALANCE = {"pre-trained": 0.5, "space only": 1.0, "time only": 0.0}
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
        self, pool: int, frames: int, regions: int, window: int, stride: int, pretrain: int, finetune: int, **_
    ):
        made = simulate_scans(pool + TEST, regions, frames, coupling=(0.1, 0.7), stay=0.97, variability=0.3)
        series = torch.from_numpy(np.stack(open_series(made.series).series))
        classes = torch.from_numpy(made.classes)
        self.pool, self.test = series[:pool], series[pool:]
        self.pool_classes, self.test_classes = classes[:pool], classes[pool:]
        self.epochs = pretrain, finetune
        self.options = {"num_regions": regions, "hidden_dim": 32, "num_layers": 2, "window": window, "stride": stride,
                        "length": None}  # fmt: skip
        self.encoder = cache(self._encoder)

    def autoencoder(self, balance: float = 0.5) -> SpatioTemporalMAE:
        torch.manual_seed(0)
        return SpatioTemporalMAE(**self.options, num_windows=12, balance=balance)

    def _encoder(self, balance: float) -> SpatioTemporalMAE:
        model = self.autoencoder(balance)
        _train(model, len(self.pool), lambda i: model(self.pool[i]).loss, PRETRAINING, self.epochs[0], 0)
        return model

    @torch.no_grad()
    def reconstruction(self, model: SpatioTemporalMAE) -> float:
        """Loss on the test scans, with the same windows, regions and edges hidden from every model."""
        model = copy.deepcopy(model).train()  # batch statistics: before training there are no running ones to judge by
        return float(model(self.test, generator=torch.Generator().manual_seed(1)).loss)

    def accuracy(self, start: SpatioTemporalMAE | None, labels: int, seed: int) -> float:
        """Of a model trained on ``labels`` scans per class, on the test scans."""
        draw = np.random.default_rng(seed)
        chosen = [draw.permutation(np.flatnonzero(self.pool_classes.numpy() == c))[:labels] for c in (0, 1)]
        x, y = self.pool[np.concatenate(chosen)], self.pool_classes[np.concatenate(chosen)]
        torch.manual_seed(seed)
        model = STAGIN(**self.options)
        if start is not None:
            model.load_state_dict({**model.state_dict(), **start.encoder.state_dict()})

        def loss(index: Tensor) -> Tensor:
            return F.cross_entropy(model(x[index]), y[index])

        _train(model, len(x), loss, FINETUNING, self.epochs[1], seed)
        with torch.no_grad():
            hit = torch.cat([model(part).argmax(1) for part in self.test.split(50)]) == self.test_classes
        return 100 * float(hit.float().mean())


def run(ctx) -> dict:
    size = SIZES["quick" if ctx.quick else "full"]
    lab = _Experiment(**size)
    seeds, labels = size["seeds"], size["labels"]
    ctx.total(2 + seeds * (2 * len(labels) + len(size["parts"])))
    ctx.step("untrained autoencoder, simulated scans")
    before = ctx.part("before", lambda: lab.reconstruction(lab.autoencoder()))
    ctx.step("pre-training on simulated scans without labels")
    after = ctx.part("after", lambda: lab.reconstruction(lab.encoder(0.5)))
    table: dict[str, dict[str, list[float]]] = {}
    for count in labels:
        names = ("from scratch", "pre-trained", *(size["parts"] if count == 10 else ()))
        table[str(count)] = {name: [] for name in names}
        for seed in range(seeds):
            for name in names:
                ctx.step(f"{name}, {count} labelled scans per class, draw {seed}")

                def measure(name=name, count=count, seed=seed):
                    return lab.accuracy(lab.encoder(BALANCE[name]) if name in BALANCE else None, count, seed)

                table[str(count)][name].append(ctx.part(f"{name}-{count}-{seed}", measure))
    figures: dict = {"accuracies": table, "reconstruction_fall": 100 * (1 - after / before)}
    for count, rows in table.items():
        scratch, ours = rows["from scratch"], rows["pre-trained"]
        figures[f"accuracy_{count}"] = statistics.fmean(ours)
        figures[f"scratch_accuracy_{count}"] = statistics.fmean(scratch)
        figures[f"gain_{count}"] = figures[f"accuracy_{count}"] - figures[f"scratch_accuracy_{count}"]
        figures[f"spread_{count}"], figures[f"scratch_spread_{count}"] = (
            statistics.stdev(ours),
            statistics.stdev(scratch),
        )
        for part in size["parts"] if count == "10" else ():
            figures[f"gain_{part.replace(' ', '_')}"] = statistics.fmean(rows[part]) - statistics.fmean(scratch)
    if not ctx.quick:
        figures["steadier"] = statistics.fmean(figures[f"scratch_spread_{n}"] - figures[f"spread_{n}"] for n in labels)
    return figures


def plot(figures: dict, figure) -> None:
    axes = figure.subplots()
    table = figures["accuracies"]
    colors = {"from scratch": "#b9c6d6", "pre-trained": "#d9822b", "space only": "#7488a0", "time only": "#4a5a6e"}
    x, ticks, seen = 0.0, [], set()
    for count, rows in table.items():
        ticks.append((x + (len(rows) - 1) / 2, f"{count} labelled scans per class"))
        for name, values in rows.items():
            axes.bar(x, statistics.fmean(values), color=colors[name], label=None if name in seen else name)
            axes.plot([x] * len(values), values, "k.", markersize=5)
            seen.add(name)
            x += 1
        x += 0.7
    axes.axhline(50, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xticks([t for t, _ in ticks], [text for _, text in ticks])
    axes.set_ylim(40, 100)
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("SIMULATED scans (switching covariance), not recordings")
    axes.legend(loc="upper left")


_FALL = Band(
    "reconstruction_fall", 5.0, 100.0, "%", "pre-training learns to rebuild what was hidden, on scans it never saw"
)
PROOF = Proof(
    slug="fmri-ssl",
    question="On simulated scans, is a model that was pre-trained without labels better than one from scratch, with few labels?",
    data="SIMULATED scans, no recordings: a covariance that switches between two states, in one of which two networks couple "
    "more strongly in one class",
    baseline="the same model from random weights, the same labels, steps and order",
    bands={
        "quick": (_FALL, Band("gain_10", 0.0, 50.0, "points", "two draws of 10 labelled scans per class")),
        "full": (
            _FALL,
            *(Band(f"gain_{n}", 0.0, 50.0, "points", "the paper: accurate after fine-tuning") for n in (5, 10, 20)),
            Band("steadier", 0.0, 50.0, "points", "the paper: robust; the mean fall of the deviation over draws"),
        ),
    },
    run=run,
    plot=plot,
)
