"""Node classification, full batch: the protocol of DAGNN's experiments, for any graph model, on one graph or across graphs."""

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
from offprint.models.checkpoint import load_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.results import Figures, Result, bars
from offprint.tasks.running import Fitted, RecipeTask


@dataclass(frozen=True)
class NodeResult:
    """What a run kept: figures in percent at the epoch with the lowest validation loss."""

    test_accuracy: float
    val_accuracy: float
    val_loss: float
    epochs: int


def fit_node_classifier(
    model: nn.Module,
    graph,
    *,
    lr: float = 0.01,
    weight_decay: float = 0.005,
    epochs: int = 1000,
    patience: int = 100,
    sparse: bool = True,
    masks: tuple[Tensor, Tensor, Tensor] | None = None,
    train_graph=None,
    progress=None,
) -> NodeResult:
    """Train with Adam on the whole graph and keep the test accuracy of the best epoch.

    The best epoch is the one with the strictly lowest validation loss so far. From the second half of the epochs on,
    training stops when the validation loss exceeds the mean of the ``patience`` losses before it (0: never).

    Args:
        model: ``model(x, edge_index)`` gives log-probabilities (n, C).
        graph: ``torch_geometric.data.Data`` with ``x``, ``y``, ``edge_index`` and masks.
        lr, weight_decay: Adam's; the decay acts on all parameters.
        epochs, patience: the stop rule's.
        sparse: hand the features over as CSR.
        masks: (train, val, test) instead of the graphs' own.
        train_graph: learn on this graph instead (inductive): on one without the nodes to be judged (:func:`without`), or on
            another. The train mask is then over its nodes, and its own where it has one.
        progress: called with no arguments after each epoch.

    Raises:
        DataError: no masks, an empty part, nodes without a label in one, labels outside the model's classes, features that are
            not finite.
    """
    learn = graph if train_graph is None else train_graph
    if masks is None:
        places = ((learn, "train_mask"), (graph, "val_mask"), (graph, "test_mask"))
        if any(place.get(mask) is None for place, mask in places):
            raise DataError(
                "the graph has no train, val and test masks; pass masks= (see offprint.data.graphs.split_of and random_split)"
            )
        masks = (learn.train_mask, graph.val_mask, graph.test_mask)
    classes = getattr(model, "num_classes", None)
    train = _part("train", learn, masks[0], classes)
    val, test = _part("val", graph, masks[1], classes), _part("test", graph, masks[2], classes)
    for given in (graph,) if learn is graph else (learn, graph):
        check_graph(given)
    x, y, edges = (graph.x.to_sparse_csr() if sparse else graph.x), graph.y, graph.edge_index
    if learn is graph:
        x_learn, y_learn, edges_learn = x, y, edges
    else:
        x_learn, y_learn, edges_learn = (learn.x.to_sparse_csr() if sparse else learn.x), learn.y, learn.edge_index
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    best, history = NodeResult(0.0, 0.0, float("inf"), 0), []
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = F.nll_loss(model(x_learn, edges_learn)[train], y_learn[train])
        if not torch.isfinite(loss):
            raise OffprintError(f"the loss became {float(loss)} in epoch {epoch}; lower lr={lr:g}")
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            out = model(x, edges)
            val_loss = float(F.nll_loss(out[val], y[val]))
            if val_loss < best.val_loss:
                hit = out.argmax(1) == y
                best = NodeResult(
                    100 * float(hit[test].float().mean()), 100 * float(hit[val].float().mean()), val_loss, epoch
                )
        history.append(val_loss)
        if progress:
            progress()
        if patience and epoch > epochs // 2 and len(history) > patience:
            if val_loss > sum(history[-patience - 1 : -1]) / patience:
                break
    return NodeResult(best.test_accuracy, best.val_accuracy, best.val_loss, len(history))


def _part(name: str, graph, mask: Tensor, classes: int | None) -> Tensor:
    """The numbers of a part's nodes, after all that could be wrong with their labels."""
    if graph.y is None:
        raise DataError("the graph has no labels (y)")
    if graph.y.ndim != 1 or graph.y.is_floating_point() or graph.y.is_complex():
        raise DataError(
            f"expected one whole number per node as label, got {tuple(graph.y.shape)} of {graph.y.dtype}; "
            "give y of shape (n,) and type int64"
        )
    if mask.ndim != 1 or len(mask) != graph.num_nodes:
        raise DataError(
            f"the {name} mask has shape {tuple(mask.shape)} for {graph.num_nodes} nodes; of several splits choose one column"
        )
    nodes = mask.nonzero().flatten()
    if len(nodes) == 0:
        raise DataError(f"the {name} part of the split is empty")
    labels = graph.y[nodes]
    if int(labels.min()) < 0:
        node = int(nodes[labels.argmin()])
        raise DataError(f"node {node} of the {name} part has no label ({int(labels.min())}); leave it out of the mask")
    if classes is not None and int(labels.max()) >= classes:
        raise DataError(f"labels of the {name} part run up to {int(labels.max())}, the model has {classes} classes")
    return nodes


def without(graph, nodes: Tensor):
    """The graph without these nodes (mask (n,)) and their edges: what an inductive run may learn from.

    Returns:
        ``Data`` with the other nodes in their order; masks and labels follow.
    """
    return graph.subgraph(~nodes)


@torch.no_grad()
def predict_nodes(model: nn.Module, graph) -> Tensor:
    """Log-probabilities (n, C) of a graph's nodes, which the model need not have seen.

    Raises:
        DataError: features that are not finite, or edges that point outside.
    """
    check_graph(graph)
    before = model.training
    try:
        return model.eval()(graph.x, graph.edge_index)
    finally:
        model.train(before)


# --- the task


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
            _part(name, job.data, job.data[f"{name}_mask"], job.model_options["num_classes"])

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        return network

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

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], checkpoint_path=str(folder / "model.safetensors"), **options)
        return Ready(self, model.eval(), about["model"], about, folder)

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
