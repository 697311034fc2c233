"""Node classification as a task: a graph by name or of one's own, one step per epoch on all of it, classes of its nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from offprint.data.graphs import check_graph, random_split, split_of
from offprint.errors import DataError, OffprintError, unknown
from offprint.models.registry import Entry
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.nodes import part_of, predict_nodes
from offprint.tasks.results import Figures, Result, bars
from offprint.tasks.running import Fitted, RecipeTask


@dataclass(frozen=True)
class NodeRecipe:
    """Adam on the whole graph at a constant rate.

    Attributes:
        lr, weight_decay: Adam's; the decay acts on all parameters.
        epochs: at most.
        patience: from the second half of the epochs on, stop when the validation loss exceeds the mean of so many before it (0: never).
    """

    lr: float = 0.01
    weight_decay: float = 5e-4
    epochs: int = 1000
    patience: int = 100

    def __post_init__(self):
        if not self.lr > 0 or self.epochs < 1 or self.patience < 0 or not self.weight_decay >= 0:
            raise OffprintError(f"{self}: lr and epochs must be above 0, weight_decay and patience not negative")

    @classmethod
    def of(cls, spec: Entry, overrides: Mapping[str, Any]) -> NodeRecipe:
        """A model's own recipe with these fields changed."""
        known = [f.name for f in fields(cls)]
        for name in overrides:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        return cls(**{**spec.recipe, **overrides})


def open_graph_source(source: Any, *, normalize: bool = True, undirected: bool = False):
    """A graph by name, from files (see :func:`~offprint.data.own_graphs.open_graph`), or as it is given.

    Args:
        source: ``Cora``, ``CiteSeer``, ...; ``.npz``, ``.pt``, or a folder of tables; a networkx graph; ``torch_geometric.data.Data``.
        normalize: make each row of features sum to one; a graph object keeps its own.
        undirected: add the opposite of every edge.
    """
    import warnings

    warnings.filterwarnings("ignore", ".*torch.jit.script.*deprecated")  # said by torch_geometric when it is imported
    from offprint.data.own_graphs import open_graph

    written = isinstance(source, str | Path)
    return open_graph(source, normalize=normalize and written, undirected=undirected)


def graph_digest(graph) -> str:
    """Of the features, labels and edges."""
    whole = hashlib.sha256()
    for part in (graph.x, graph.y, graph.edge_index):
        if part is not None:
            whole.update(str(tuple(part.shape)).encode() + part.contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]


def with_split(graph, split: str, seed: int):
    """The graph with the masks of a split: ``own``, ``random``, or the number of one of the graph's several."""
    from copy import copy

    graph = copy(graph)
    if split == "own":
        if graph.get("train_mask") is None or graph.train_mask.ndim != 1:
            raise DataError(
                "the graph has no masks of its own; give --split random, or its number where it has several"
            )
        return graph
    if split == "random":
        masks = random_split(graph.y, seed)
    elif split.isdigit():
        masks = split_of(graph, int(split))[0]
    else:
        raise OffprintError(f"split={split!r}; give own, random, or a number")
    graph.train_mask, graph.val_mask, graph.test_mask = masks
    return graph


class NodeClassification(RecipeTask):
    """One step per epoch, on the whole graph; the model gives log-probabilities."""

    def __init__(self, model: nn.Module, recipe: NodeRecipe, graph, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.x, self.y, self.edges = graph.x.to_sparse_csr(), graph.y, graph.edge_index
        self.parts = [m.nonzero().flatten() for m in (graph.train_mask, graph.val_mask, graph.test_mask)]

    def on_fit_start(self) -> None:
        self.x, self.y, self.edges = (v.to(self.device) for v in (self.x, self.y, self.edges))

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), lr=self.recipe.lr, weight_decay=self.recipe.weight_decay)

    def training_step(self, batch, batch_idx) -> Tensor:
        train = self.parts[0]
        loss = F.nll_loss(self.model(self.x, self.edges)[train], self.y[train])
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        out = self.model(self.x, self.edges)
        hit = out.argmax(1) == self.y
        self.log("val_loss", F.nll_loss(out[self.parts[1]], self.y[self.parts[1]]), prog_bar=True, batch_size=1)
        for name, part in zip(("val", "test"), self.parts[1:], strict=True):
            self.log(f"{name}_accuracy", 100 * hit[part].float().mean(), prog_bar=name == "val", batch_size=1)


class _OneStep(L.LightningDataModule):
    batch_size = 1

    def train_dataloader(self) -> DataLoader:
        return DataLoader([0], 1)

    val_dataloader = train_dataloader


class _Rising(Callback):
    """Stops in the second half of the epochs when the validation loss exceeds the mean of those before it; keeps the best figures."""

    def __init__(self, epochs: int, patience: int):
        self.epochs, self.patience = epochs, patience
        self.history: list[float] = []
        self.best: dict[str, float] = {}

    def _over(self) -> bool:
        n, last = self.patience, self.history
        return bool(n and len(last) > self.epochs // 2 and len(last) > n and last[-1] > sum(last[-n - 1 : -1]) / n)

    def on_train_start(self, trainer, module) -> None:
        trainer.should_stop = self._over()

    def on_validation_end(self, trainer, module) -> None:
        got = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if got["val_loss"] < self.best.get("val_loss", float("inf")):
            self.best = {k: got[k] for k in ("val_loss", "val_accuracy", "test_accuracy")}
        self.history.append(got["val_loss"])
        trainer.should_stop = trainer.should_stop or self._over()

    def state_dict(self) -> dict:
        return {"history": self.history, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        self.history, self.best = state["history"], state["best"]


@dataclass
class NodePredictions(Result):
    """Classes of nodes. Each row: ``node``, ``class`` and ``probability``."""

    def draw(self, path: str | Path) -> Path:
        """How many nodes each class gets."""
        counts: dict[str, float] = {}
        for row in self.rows:
            counts[str(row["class"])] = counts.get(str(row["class"]), 0) + 1
        return bars(path, dict(sorted(counts.items())), "nodes per class")


class NodeTask(Task):
    """Classes of the nodes of one graph, by models that read features and edges."""

    name = "nodes"
    does = "classifies the nodes of a graph"
    goal, mode = "val_loss", "min"

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> NodeRecipe:
        return NodeRecipe.of(spec, overrides or {})

    def open(self, source: Any, *, seed: int = 0, split: str = "own", normalize: bool = True, undirected: bool = False):
        """Open a graph.

        Args:
            source: Cora, CiteSeer, PubMed, Amazon_Photo, ...; your own: FILE.npz or FILE.pt with edge_index (2, E), x (n, F), y (n,) and,
                if there are any, train_mask, val_mask, test_mask; a folder of edges.csv, features.csv and labels.csv; a graph object.
            split: own, random, or the number of one of the graph's several.
            normalize: make each row of features sum to one, as in the papers.
            undirected: add the opposite of every edge.
        """
        graph = open_graph_source(source, normalize=normalize, undirected=undirected)
        graph = with_split(graph, split, seed)
        check_graph(graph)
        return graph

    def digest(self, data) -> str:
        return graph_digest(data)

    def prepare(self, job: Job) -> None:
        classes = int(job.data.y.max()) + 1
        sizes = {"in_features": job.data.num_features, "num_classes": classes}
        job.model_options.update({k: v for k, v in sizes.items() if k not in job.model_options})
        for name in ("train", "val", "test"):
            part_of(name, job.data, job.data[f"{name}_mask"], job.model_options["num_classes"])

    def module(self, job: Job) -> NodeClassification:
        return NodeClassification(job.network, job.how, job.data, job.run.seed)

    def loaders(self, job: Job) -> L.LightningDataModule:
        return _OneStep()

    def callbacks(self, job: Job) -> Sequence[Callback]:
        job.run = job.run.but(patience=0)  # the rule below is the paper's, not Lightning's
        job.settled["rule"] = _Rising(job.how.epochs, job.how.patience)
        return (job.settled["rule"],)

    def every(self, job: Job) -> int:
        return max(1, job.how.epochs // 100)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        rule = job.settled["rule"]
        return {**rule.best, "asked": job.how.epochs, "stopped": fitted.trainer.current_epoch < job.how.epochs}

    def done(self, job: Job, before: dict[str, Any]) -> dict[str, Any] | None:
        if before.get("stopped") and before.get("asked") == job.how.epochs:
            return before
        return super().done(job, before)

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"test accuracy {figures['test_accuracy']:.2f} % where the validation loss was lowest ({figures['weights_are']}; validation "
            f"{figures['val_accuracy']:.2f} %); weights: {folder / 'model.safetensors'}"
        ]

    def _graph(self, ready: Ready, source: Any, split: str | None):
        kept = ready.about.get("data_options", {})
        source = ready.about.get("source") if source is None else source
        if source is None:
            raise OffprintError("no graph to evaluate on; give --data")
        more = {k: kept[k] for k in ("normalize", "undirected") if k in kept}
        return self.open(source, seed=ready.about.get("seed", 0), split=split or kept.get("split", "own"), **more)

    def evaluate(
        self, ready: Ready, data: Any = None, *, split: str | None = None, progress: Callable[..., None] | None = None
    ) -> Figures:
        """Accuracy (%) on the validation and test part of a split.

        Args:
            split: own, random, or a number; default that of the run.
        """
        graph = self._graph(ready, data, split)
        hit = predict_nodes(ready.model, graph).argmax(1) == graph.y
        found = {f"{n}_accuracy": 100 * float(hit[graph[f"{n}_mask"]].float().mean()) for n in ("val", "test")}
        return Figures.of(found | {"nodes": int(graph.test_mask.sum())}, units=dict.fromkeys(found, " %"))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        nodes: str | None = None,
        normalize: bool = True,
        undirected: bool = False,
        progress: Callable[..., None] | None = None,
    ) -> NodePredictions:
        """Classes of the nodes of a graph.

        Args:
            inputs: a graph, as for training.
            nodes: node numbers with commas between; default all.
            normalize: make each row of features sum to one.
            undirected: add the opposite of every edge.
        """
        source = inputs[0] if isinstance(inputs, list | tuple) else inputs
        graph = open_graph_source(source, normalize=normalize, undirected=undirected)
        wanted = node_numbers(nodes, graph.num_nodes)
        best, found = predict_nodes(ready.model, graph)[wanted].exp().max(1)
        return NodePredictions([
            {"node": n, "class": c, "probability": round(p, 6)}
            for n, c, p in zip(wanted.tolist(), found.tolist(), best.tolist(), strict=True)
        ])  # fmt: skip


def node_numbers(text: str | None, n: int) -> Tensor:
    """Node numbers from words with commas between; all where there are none.

    Raises:
        OffprintError: not numbers, or beyond the graph.
    """
    try:
        wanted = torch.tensor([int(v) for v in text.split(",")] if text else range(n))
    except ValueError:
        raise OffprintError(f"--nodes {text}: give whole numbers separated by commas") from None
    if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < n:
        raise OffprintError(
            f"--nodes {text}: node {int(wanted.max())} is not in the graph, which has nodes 0 to {n - 1}"
        )
    return wanted


register_task(NodeTask())
