"""Training by ForwardGNN (arXiv 2403.11004): each layer of a graph network by a loss of its own, no gradient between layers.

>>> from offprint.data.graphs import load_graph
>>> from offprint.methods.training.forward_gnn import fit
>>> run = fit(load_graph("Cora", normalize=True), method="sf", operator="gcn", layers=3, split=0)
>>> run.report["test"]                                   # accuracy with 1, 2 and 3 layers
>>> run.predict(graph, nodes)                            # classes
>>> run.save("cora.safetensors"); TrainedGNN.load("cora.safetensors")

The forms and what they compute are in :mod:`offprint.models.graphs.forward_gnn`; the steps of training in ``_forward_steps``.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offprint.errors import CheckpointError, OffprintError, unknown
from offprint.files import atomic_write, local_path
from offprint.methods.training._forward_data import (
    fingerprint,
    link_parts,
    link_split,
    node_parts,
    node_split,
    warn_directed,
)
from offprint.methods.training._forward_steps import (
    PROCEDURES,
    Links,
    Nodes,
    Procedure,
    Step,
    draw_wrong_classes,
    forward_forward_loss,
    roc_auc,
)
from offprint.models.checkpoint import load_weights, read_file
from offprint.models.graphs.forward_gnn import METHODS, ForwardGNN, check_graph
from offprint.nn.message_flow import operator as known_operator
from offprint.nn.precision import wide

__all__ = [
    "METHODS",
    "PROCEDURES",
    "Links",
    "Nodes",
    "Procedure",
    "Step",
    "TrainedGNN",
    "draw_wrong_classes",
    "fit",
    "forward_forward_loss",
    "link_split",
    "node_split",
    "roc_auc",
]
SAVE_EVERY = 10.0  # seconds between two states of an unfinished run


@dataclass
class TrainedGNN:
    """A trained stack with what it needs to predict.

    Attributes:
        model: the layers, and the virtual nodes' features.
        nodes, classes: the labelled nodes of the graph and their classes, which predictions read (node forms).
        report: settings, figures per depth (``val``, ``test``), epochs and losses per stage.
    """

    model: ForwardGNN
    nodes: Tensor
    classes: Tensor
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return self.model.form.task

    def layer_scores(self, graph, wanted: Tensor) -> Tensor:
        """What each layer adds: (L, m, C) for nodes (m,), (L, m) for pairs (2, m)."""
        n = graph.num_nodes
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < n:
            raise OffprintError(f"node {int(wanted.max())} was asked for; the graph has nodes 0 to {n - 1}")
        if self.task == "link":
            if wanted.ndim != 2 or wanted.shape[0] != 2:
                raise OffprintError(f"expected pairs of shape (2, m), got {tuple(wanted.shape)}")
            return self.model.contributions(graph.x, graph.edge_index, wanted)
        if len(self.nodes) and int(self.nodes.max()) >= n:
            raise OffprintError(
                f"the model was trained on a graph with a labelled node {int(self.nodes.max())}; this one has {n} nodes. "
                "Give the same graph, or that graph with nodes added after its own"
            )
        ask = lambda some: self.model.contributions(graph.x, graph.edge_index, some, self.nodes, self.classes)  # noqa: E731
        labelled = torch.isin(wanted, self.nodes)
        if not self.model.method.startswith("ff_") or not labelled.any() or labelled.all():
            return ask(wanted)
        # a labelled node that is asked about is told a candidate class; the others should still be told its own
        free, own = ask(wanted[~labelled]), ask(wanted[labelled])
        out = free.new_empty(len(free), len(wanted), free.shape[2])
        out[:, ~labelled], out[:, labelled] = free, own
        return out

    def scores(self, graph, wanted: Tensor | None = None, depth: int | None = None) -> Tensor:
        """(m, C) per node (default all), or (m,) per pair, by the first ``depth`` layers (default all)."""
        if wanted is None:
            if self.task == "link":
                raise OffprintError("a link predictor scores pairs; give them as (2, m)")
            wanted = torch.arange(graph.num_nodes, device=graph.x.device)
        return self._at(self.layer_scores(graph, wanted), depth)

    def _at(self, added: Tensor, depth: int | None) -> Tensor:
        depth = len(added) if depth is None else depth
        if not 1 <= depth <= len(added):
            raise OffprintError(f"depth={depth}; this model can be read off at depth 1 to {len(added)}")
        return added[:depth].sum(0) if self.task == "node" else added[:depth].mean(0)

    def predict(self, graph, wanted: Tensor | None = None, depth: int | None = None) -> Tensor:
        """Classes (m,) of nodes, or scores (m,) of pairs (higher: more likely an edge)."""
        found = self.scores(graph, wanted, depth)
        return found.argmax(1) if self.task == "node" else found

    def evaluate(self, graph, wanted: Tensor, truth: Tensor) -> list[float]:
        """Per depth, in percent: accuracy on nodes with classes, or area under the ROC curve on pairs with 0/1 labels."""
        added = self.layer_scores(graph, wanted)
        found = (self._at(added, d + 1) for d in range(len(added)))
        if self.task == "link":
            return [100 * roc_auc(score, truth) for score in found]
        return [100 * float((score.argmax(1) == truth).double().mean()) for score in found]

    def save(self, path: str | Path) -> Path:
        """One safetensors file: weights, virtual features, labelled nodes, and the report."""
        from safetensors.torch import save

        tensors = {f"model.{k}": v.detach().cpu().contiguous().clone() for k, v in self.model.state_dict().items()}
        tensors |= {"nodes": self.nodes.cpu().clone(), "classes": self.classes.cpu().clone()}
        about = {"model": self.model.settings, "report": self.report}
        return atomic_write(path, save(tensors, {"forward_gnn": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> TrainedGNN:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: another file, or a damaged one.
        """
        from safetensors import SafetensorError, safe_open

        tensors = read_file(path)
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("forward_gnn", "null"))
        except (SafetensorError, json.JSONDecodeError):
            about = None
        if about is None or "nodes" not in tensors:
            raise CheckpointError(
                f"{path} is not a model saved by TrainedGNN.save; weights alone load with load_weights"
            )
        state = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        model = ForwardGNN(**about["model"]).to(next(iter(state.values())).dtype)
        load_weights(model, state)
        return cls(model.eval(), tensors["nodes"], tensors["classes"], about["report"])


def fit(
    graph,
    method: str = "sf",
    operator: str = "gcn",
    layers: int = 4,
    *,
    hidden: int = 128,
    split: int | None = None,
    masks: tuple[Tensor, Tensor, Tensor] | None = None,
    epochs: int = 1000,
    patience: int = 100,
    lr: float = 1e-3,
    weight_decay: float | None = None,
    temperature: float = 1.0,
    theta: float = 2.0,
    num_negatives: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
    device: str | torch.device = "cpu",
) -> TrainedGNN:
    """Train a node classifier or link predictor, layer by layer; every default is the paper's.

    Args:
        graph: ``torch_geometric.data.Data`` with ``x`` (row-normalised in the paper), ``edge_index`` and, for nodes, ``y``. For
            links also the three ``Data`` of ``RandomLinkSplit``; validation then reads the training part's messages.
        method: ``ff_la``, ``ff_vn``, ``sf``, ``sf_top2loss``, ``sf_top2input``; ``link_fl``, ``link_ff``, ``link_fl_topdown``;
            ``backprop``, ``link_backprop`` for comparison.
        operator: ``gcn``, ``sage`` or ``gat``.
        layers: depth.
        hidden: width.
        split: 0 to 4, one of the paper's splits; default the graph's own masks, or else the paper's split 0.
        masks: (train, val, test) of nodes instead.
        epochs: per layer, or in all where layers learn together.
        patience: validations (one every second epoch) without a better one, after which a layer is done.
        lr, weight_decay: Adam's; the decay is 5e-4, and 0 for ``link_fl_topdown``.
        temperature: of the logits, in training and in prediction (``sf`` forms).
        theta: threshold of goodness (``ff`` forms).
        num_negatives: wrong classes per training node, at most C - 1.
        seed: of weights, virtual features and wrong classes.
        out: folder for the model, the report, and the state from which an interrupted call goes on with the same result.
        resume: go on from there; else start over.
        progress: show a progress bar.
        device: where to compute.

    Raises:
        DataError: a graph or split that cannot be learned from.
        OffprintError: an unknown method or operator, a setting out of range, or a loss that is lost.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    known_operator(operator)
    for name, value, low in (("epochs", epochs, 1), ("patience", patience, 1), ("num_negatives", num_negatives, 1)):
        if value < low:
            raise OffprintError(f"{name}={value}; at least {low} is needed")
    if not (lr > 0 and math.isfinite(lr)):
        raise OffprintError(f"lr={lr}; a positive number is needed")
    weight_decay = (0.0 if method == "link_fl_topdown" else 5e-4) if weight_decay is None else weight_decay
    problem, test, classes, labelled, test_graph = _problem(graph, method, split, masks, seed, num_negatives, device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = problem.x.shape[1], hidden, layers, classes
        model = ForwardGNN(*sizes, operator.lower(), method, theta, temperature).to(device, problem.x.dtype)
    settings = {**model.settings, "epochs": epochs, "patience": patience, "lr": lr, "weight_decay": weight_decay,
                "num_negatives": num_negatives, "seed": seed,
                "data": fingerprint(problem.x, problem.edge_index, *test, *labelled, problem.val)}  # fmt: skip
    folder = _Folder(out, settings, resume)
    if (done := folder.finished()) is not None:
        return done
    procedure = PROCEDURES[method](model, problem, lr=lr, weight_decay=weight_decay)
    began = time.perf_counter()
    with _bar(progress) as show:
        stages = _run(procedure, epochs, patience, folder, show)
    told = labelled if method.startswith("ff_") else (problem.train, problem.y[problem.train]) if labelled else labelled
    run = TrainedGNN(model.eval(), *(told or (torch.zeros(0, dtype=torch.long),) * 2))
    # forward-forward sees the validation labels when testing, the other forms do not; validation itself never does
    checked = TrainedGNN(model, *((problem.train, problem.y[problem.train]) if labelled else (run.nodes, run.classes)))
    truth = problem.val_label if isinstance(problem, Links) else problem.y[problem.val]
    run.report = {
        "task": run.task, "metric": "accuracy" if run.task == "node" else "ROC-AUC", "settings": settings,
        "val": checked.evaluate(test_graph[0], problem.val, truth), "test": run.evaluate(test_graph[1], *test),
        "stages": stages, "seconds": round(time.perf_counter() - began, 2),
    }  # fmt: skip
    folder.finish(run)
    return run


def _problem(graph, method: str, split, masks, seed: int, num_negatives: int, device):
    """What is trained on, what is tested on, the classes, the labelled nodes, and the graphs of validation and test."""
    from torch_geometric.data import Data

    if METHODS[method].task == "link":
        if isinstance(graph, Sequence):
            if len(graph) != 3:
                raise OffprintError(f"expected a graph, or its train, val and test parts; got {len(graph)} parts")
            parts = tuple(graph)
        else:
            check_graph(graph.x, graph.edge_index)
            parts = link_split(graph, split or 0)
        messages, pairs, labels = zip(*link_parts(parts), strict=True)
        x = wide(parts[0].x.to(device))
        warn_directed(messages[0], len(x))
        edges = messages[0].to(device)
        positive, negative = pairs[0][:, labels[0] == 1].to(device), pairs[0][:, labels[0] == 0].to(device)
        problem = Links(x, edges, positive, negative, pairs[1].to(device), labels[1].to(device))
        graphs = Data(x=x, edge_index=edges), Data(x=x, edge_index=messages[2].to(device))
        return problem, (pairs[2].to(device), labels[2].to(device)), 2, (), graphs
    check_graph(graph.x, graph.edge_index)
    y, (train, val, test), classes = node_parts(graph, masks, split)
    warn_directed(graph.edge_index, graph.num_nodes)
    wrong = draw_wrong_classes(y[train].cpu(), classes, num_negatives, torch.Generator().manual_seed(seed))
    x, edges, y = wide(graph.x.to(device)), graph.edge_index.to(device), y.to(device)
    train, val, test = train.to(device), val.to(device), test.to(device)
    problem = Nodes(x, edges, y, train, val, wrong.to(device))
    told = torch.cat([train, val])
    whole = Data(x=x, edge_index=edges)
    return problem, (test, y[test]), classes, (told, y[told]), (whole, whole)


def _run(procedure: Procedure, epochs: int, patience: int, folder: _Folder, show) -> list[dict[str, Any]]:
    """All stages, each until its epochs or its patience are spent, from the state of an interrupted run on."""
    model, kept = procedure.model, folder.read()
    first, reports = 0, []
    if kept is not None:
        model.load_state_dict(kept["model"])
        first, reports = kept["stage"], kept["reports"]
        for stage in range(first):
            procedure.open(stage)
            procedure.close(stage)
    for stage in range(first, procedure.stages):
        procedure.open(stage)
        learning = procedure.layers(stage)
        losses: list[float] = []
        best, best_state, worse = -math.inf, None, 0
        if kept is not None and kept["epoch"]:
            losses, best, best_state, worse = kept["losses"], kept["best"], kept["best_state"], kept["worse"]
            for optimizer, state in zip(procedure.optimizers, kept["optimizers"], strict=True):
                optimizer.load_state_dict(state)
            if kept["states"]:
                procedure.states[1 : 1 + len(kept["states"])] = kept["states"]
        kept = None
        for epoch in range(len(losses), epochs):
            steps = procedure.step(stage)
            losses.append(sum(s.loss for s in steps) / len(steps))
            if not math.isfinite(losses[-1]):
                raise OffprintError(
                    f"the loss became {losses[-1]} in epoch {epoch + 1} of layer {stage + 1}; lower lr={procedure.lr:g}"
                )
            if epoch % 2:
                value = procedure.validate(stage)
                worse += 1
                if value > best:
                    best, worse = value, 0
                    best_state = [{k: v.detach().clone() for k, v in m.state_dict().items()} for m in learning]
            show(stage, procedure.stages, epoch + 1, epochs, best)
            if worse >= patience:
                break
            if folder.due():
                folder.write(
                    stage=stage, epoch=epoch + 1, losses=losses, best=best, best_state=best_state, worse=worse,
                    reports=reports, model=model.state_dict(), optimizers=[o.state_dict() for o in procedure.optimizers],
                    states=[s for s in procedure.states[1:]],
                )  # fmt: skip
        if best_state is not None:
            for module, state in zip(learning, best_state, strict=True):
                module.load_state_dict(state)
        procedure.close(stage)
        reports.append({"epochs": len(losses), "best_val": 100 * best if best_state else None, "loss": losses[-1]})
        folder.write(stage=stage + 1, epoch=0, reports=reports, model=model.state_dict())
    return reports


class _Folder:
    """The folder of a run: its settings, the state of an unfinished run, the model and the report of a finished one."""

    def __init__(self, out: str | Path | None, settings: dict[str, Any], resume: bool):
        self.path, self.last = (local_path(out, "the folder of a run") if out is not None else None), time.monotonic()
        if self.path is None:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "settings.json"
        settings = json.loads(json.dumps(settings))
        if resume and file.is_file():
            before = json.loads(file.read_text())
            changed = [k for k in settings if settings[k] != before.get(k)]
            if changed:
                raise OffprintError(
                    f"{self.path} holds a run with another {', '.join(changed)}; go on with the same settings and data, choose "
                    "another folder, or start over with resume=False (--no-resume)"
                )
        else:
            for name in ("state.pt", "model.safetensors", "report.json"):
                (self.path / name).unlink(missing_ok=True)
        atomic_write(file, json.dumps(settings, indent=1))

    def due(self) -> bool:
        return self.path is not None and time.monotonic() - self.last >= SAVE_EVERY

    def write(self, **state) -> None:
        if self.path is not None:
            buffer = io.BytesIO()
            torch.save(state, buffer)
            atomic_write(self.path / "state.pt", buffer.getvalue())
            self.last = time.monotonic()

    def read(self) -> dict | None:
        file = None if self.path is None else self.path / "state.pt"
        return read_file(file) if file is not None and file.is_file() else None

    def finished(self) -> TrainedGNN | None:
        file = None if self.path is None else self.path / "model.safetensors"
        return TrainedGNN.load(file) if file is not None and file.is_file() else None

    def finish(self, run: TrainedGNN) -> None:
        if self.path is not None:
            atomic_write(self.path / "report.json", json.dumps(run.report, indent=1))
            run.save(self.path / "model.safetensors")
            (self.path / "state.pt").unlink(missing_ok=True)


@contextmanager
def _bar(wanted: bool):
    """A bar on standard error over the epochs of all stages, or nothing."""
    if not wanted:
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    with Progress(
        *Progress.get_default_columns()[:2], TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task("training", total=None)

        def show(stage: int, stages: int, epoch: int, epochs: int, best: float) -> None:
            text = f"layer {stage + 1} of {stages}" if stages > 1 else "all layers"
            text += f", epoch {epoch}" + (f", best validation {100 * best:.2f} %" if best > -math.inf else "")
            bar.update(task, total=stages * epochs, completed=stage * epochs + epoch, description=text)

        yield show
