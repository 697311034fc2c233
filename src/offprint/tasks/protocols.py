"""The protocols of claims that our code runs: which data, which figures, which test-time steps, and who runs them.

A runner measures everything that one run gives (top-1 and top-5, PSNR and SSIM, recall and NDCG), since the metrics of a run stand
or fall together. :func:`runnable` is what the evidence level ``equal`` asks; :func:`measure` is what ``offprint reproduce`` calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from offprint.errors import OffprintError
from offprint.models.registry import Entry, Weights, entry


class Asked(Protocol):
    """A claim's protocol, as the catalogue states it."""

    @property
    def data(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def input(self) -> int: ...
    @property
    def crop(self) -> float: ...
    @property
    def steps(self) -> str: ...
    @property
    def scale(self) -> int: ...
    @property
    def seeds(self) -> int: ...


@dataclass
class Job:
    """One measurement to be made.

    Args:
        model: name of the model.
        asked: the protocol.
        source: where the user's copy of the data is; ``None`` for what is bundled or under ``OFFPRINT_DATA``.
        tag: of the released weights; ``None`` for the first.
        checkpoint: a weight file instead.
        truth: a file of ground-truth labels that lies elsewhere.
        limit: only so many items (the measurement is partial).
        runs: only so many of the protocol's independent runs (partial as well).
        batch_size, workers, device: of the computation.
        out: folder for runs that train.
        progress: called with ``total=n`` once and ``text=...`` per step.
        part: keeps the result of a unit of work, so that an interrupted measurement goes on.
        say: called with a line about what was found in the data.
    """

    model: str
    asked: Asked
    source: str | None = None
    tag: str | None = None
    checkpoint: str | None = None
    truth: str | None = None
    limit: int | None = None
    runs: int | None = None
    batch_size: int = 64
    workers: int = 0
    device: str = "cpu"
    out: Path = Path("runs/reproduce")
    progress: Callable[..., None] = lambda **_: None
    part: Callable[[str, Callable[[], Any]], Any] = lambda key, compute: compute()
    say: Callable[[str], None] = lambda text: None

    @property
    def entry(self) -> Entry:
        return entry(self.model)


@dataclass
class Measured:
    """What a run gave.

    Args:
        metrics: name → (value, its sampling error: one standard error).
        items: pictures, nodes or users that were judged.
        data_digest: of the data.
        seeds: independent runs.
        partial: not the whole protocol, so that it proves nothing.
        notes: what was noticed.
    """

    metrics: dict[str, tuple[float, float]]
    items: int
    data_digest: str
    seeds: int = 1
    partial: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Runner:
    """Who runs the protocols on a data set.

    Args:
        module, function: where; imported when used.
        kinds: of models.
        metrics: names of the figures it gives.
        steps: test-time steps it knows; ``""`` is one plain view.
        trains: a run trains by the model's recipe, so that no weights are needed.
        takes: what a model must have to be run.
    """

    module: str
    function: str
    kinds: tuple[str, ...]
    metrics: tuple[str, ...]
    steps: tuple[str, ...] = ("",)
    trains: bool = False
    takes: str = "forward"

    @property
    def modules(self) -> list[str]:
        return [f"offprint.tasks.{self.module}"]


_IMAGES = Runner("_imagenet", "run", ("backbone",), ("top1", "top5", "top1_error", "top5_error"),
                 ("", "flip", "10-crop", "144-crop"), takes="forward_features")  # fmt: skip
_REAL = Runner("_imagenet", "run", ("backbone",), ("top1",), ("", "flip"), takes="forward_features")
_ENLARGED = Runner("_enlargement", "run", ("signal",), ("psnr_y", "ssim_y"))
_NODES = Runner("_graph_runs", "nodes", ("graph",), ("accuracy",), trains=True)
_RANKED = Runner(
    "_graph_runs", "ranking", ("graph",), ("recall@20", "ndcg@20", "precision@20"), trains=True, takes="fold_in"
)
RUNNERS: dict[str, Runner] = {
    "imagenet-1k": _IMAGES, "imagenet-v2": _IMAGES, "imagenet-real": _REAL,
    **dict.fromkeys(("set5", "set14", "b100", "urban100", "manga109"), _ENLARGED),
    **dict.fromkeys(("cora", "citeseer", "pubmed", "amazon_computers", "amazon_photo", "coauthor_cs", "coauthor_physics"), _NODES),
    **dict.fromkeys(("gowalla", "yelp2018", "amazon-book", "lastfm", "electronics"), _RANKED),
}  # fmt: skip


def stated(weights: Weights, data: str, metric: str) -> float | None:
    """What the publisher of these weights states for a metric on a data set; an error is what an accuracy leaves of 100 %."""
    found = weights.metrics.get(data, {})
    if metric in found:
        return found[metric]
    accuracy = found.get(metric.removesuffix("_error")) if metric.endswith("_error") else None
    return None if accuracy is None else round(100 - accuracy, 6)


def why_not(model: str, asked: Asked) -> str:
    """Why a protocol cannot be run for a model, in words; empty where it can."""
    runner, spec = RUNNERS.get(asked.data), entry(model)
    if runner is None:
        return f"nothing here evaluates on {asked.data}; there are: {', '.join(RUNNERS)}"
    if spec.kind not in runner.kinds or not hasattr(spec.build, runner.takes):
        return f"{model} is not a model that is evaluated on {asked.data}"
    if asked.metric not in runner.metrics:
        return f"{asked.metric} is not measured on {asked.data}; {', '.join(runner.metrics)} are"
    if asked.steps not in runner.steps:
        return f"the test-time step {asked.steps} is not built for {asked.data}"
    return ""


def runnable(model: str, asked: Asked) -> bool:
    """Whether our code runs this protocol for this model."""
    return not why_not(model, asked)


def measure(job: Job) -> Measured:
    """Run a protocol.

    Raises:
        OffprintError: it cannot be run, or what was given does not fit (weights, data): said before any work.
        DataError: the data is not what the protocol is about.
    """
    reason = why_not(job.model, job.asked)
    if reason:
        raise OffprintError(reason)
    runner = RUNNERS[job.asked.data]
    if not runner.trains and job.checkpoint is None and not job.entry.weights:
        raise OffprintError(f"{job.model} has no released weights; pass --checkpoint FILE")
    return getattr(importlib.import_module(runner.modules[0]), runner.function)(job)


def network(job: Job):
    """The model with its weights, in evaluation mode on its device."""
    from offprint.models.factory import create_model

    if job.checkpoint is not None:
        model = create_model(job.model, checkpoint_path=job.checkpoint)
    else:
        model = create_model(job.model, pretrained=job.tag or True)
    return model.eval().to(job.device)
