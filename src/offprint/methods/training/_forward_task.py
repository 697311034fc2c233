"""The task of ForwardGNN: nodes or links of a graph, by networks whose layers learn one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from offprint.errors import DataError, OffprintError, unknown
from offprint.methods.training._forward_data import link_parts, link_split, node_parts
from offprint.methods.training.forward_gnn import METHODS, TrainedGNN, fit
from offprint.models.registry import Entry
from offprint.tasks.contract import Job, Ready, Task, Trained, register_task
from offprint.tasks.node_classification import node_numbers, open_graph_source
from offprint.tasks.results import Figures, Result, bars


@dataclass(frozen=True)
class ForwardRecipe:
    """Adam per layer, at most ``epochs`` each (in all, where layers learn together), until ``patience`` validations bring nothing."""

    lr: float = 1e-3
    weight_decay: float = 5e-4
    epochs: int = 1000
    patience: int = 100

    @classmethod
    def of(cls, spec: Entry, overrides: Mapping[str, Any]) -> ForwardRecipe:
        """A model's own recipe with these fields changed."""
        known = [f.name for f in fields(cls)]
        for name in overrides:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        return cls(**{**spec.recipe, **overrides})


@dataclass
class GraphPredictions(Result):
    """Classes of nodes, with a score for each class; or scores of pairs of nodes (higher: more likely an edge)."""

    def draw(self, path: str | Path) -> Path:
        """How many nodes each class gets, or how the scores are spread."""
        if self.rows and "class" in self.rows[0]:
            counts: dict[str, float] = {}
            for row in self.rows:
                counts[str(row["class"])] = counts.get(str(row["class"]), 0) + 1
            return bars(path, dict(sorted(counts.items())), "nodes per class")
        return bars(path, {f"{r['source']}-{r['target']}": r["score"] for r in self.rows[:40]}, "score")


@dataclass
class DepthFigures(Figures):
    """A figure per depth, in percent."""

    metric: str = "accuracy"

    def line(self) -> str:
        return f"test {self.metric}: {per_depth(list(self.figures.values()))}"


class ForwardLearning(Task):
    """Node classifiers and link predictors without backpropagation between layers."""

    name = "forward-learning"
    does = "learns the nodes or links of a graph layer by layer"
    own_loop = True

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> ForwardRecipe:
        return ForwardRecipe.of(spec, overrides or {})

    def open(
        self, source: Any, *, seed: int = 0, split: str = "0", normalize: bool = True, undirected: bool = False
    ) -> tuple[Any, int | None]:
        """Open a graph.

        Args:
            source: Cora, CiteSeer, PubMed, Amazon_Photo, ...; your own: FILE.npz or FILE.pt with edge_index (2, E), x (n, F), y (n,) and,
                if there are any, train_mask, val_mask, test_mask; a folder of edges.csv, features.csv and labels.csv; a graph object.
            split: 0 to 4, one of the paper's; public for the graph's own masks.
            normalize: make each row of features sum to one, as in the paper.
            undirected: add the opposite of every edge.
        """
        if split not in ("public", "0", "1", "2", "3", "4"):
            raise OffprintError(f"--split {split}: give 0, 1, 2, 3 or 4, or public for the graph's own masks")
        found = open_graph_source(source, normalize=normalize, undirected=undirected)
        return found, None if split == "public" else int(split)

    def prepare(
        self,
        job: Job,
        *,
        operator: str = "gcn",
        layers: int = 4,
        hidden: int = 128,
        temperature: float = 1.0,
        theta: float = 2.0,
        num_negatives: int = 100,
    ) -> None:
        """Settle the network.

        Args:
            operator: gcn, sage or gat.
            layers: depth.
            hidden: width.
            temperature: of the logits, in training and in prediction.
            theta: threshold of the goodness.
            num_negatives: wrong classes per training node, at most C - 1.
        """
        own = {
            "operator": job.entry.kwargs.get("operator", operator),
            "layers": job.entry.kwargs.get("num_layers", layers),
        }
        given = {"operator": operator, "layers": layers, "hidden": hidden, "temperature": temperature, "theta": theta,
                 "num_negatives": num_negatives}  # fmt: skip
        job.settled = {**given, **{k: v for k, v in own.items() if k not in job.options}}

    def train(self, job: Job) -> Trained:
        if job.pretrained or job.checkpoint:
            raise OffprintError(f"{job.model} learns from random weights; leave --pretrained and --checkpoint out")
        known = ("operator", "layers", "hidden", "temperature", "theta", "num_negatives")
        job.how = self.recipe(job.entry, job.stage, job.recipe)
        self.prepare(job, **{k: v for k, v in job.options.items() if k in known})
        job.data = self.open(job.source, seed=job.run.seed, **{k: v for k, v in job.options.items() if k not in known})
        graph, split = job.data
        method = job.entry.kwargs["method"]
        _check_split(graph, split, METHODS[method].task)
        patience = job.how.patience if job.run.patience is None else job.run.patience
        about = {
            "task": self.name,
            "model": job.model,
            "source": str(job.source)[:300],
            "data_options": dict(job.options),
        }
        run = fit(
            graph, method, split=split, epochs=job.how.epochs, patience=patience, lr=job.how.lr, weight_decay=job.how.weight_decay,
            seed=job.run.seed, out=job.out, resume=job.run.resume, progress=job.run.progress, device=_device(job.run.accelerator),
            about=about, **job.settled,
        )  # fmt: skip
        figures = {**run.report, "weights": str(Path(job.out).absolute() / "model.safetensors")}
        return Trained(Path(job.out).absolute(), job.model, self.name, figures, self.lines(figures, Path(job.out)))

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        trained = ", ".join(str(stage["epochs"]) for stage in figures["stages"])
        return [
            f"test {figures['metric']}: {per_depth(figures['test'])}",
            f"validation: {per_depth(figures['val'])}",
            f"epochs: {trained}; {figures['seconds']:.0f} s; model: {folder / 'model.safetensors'}",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        run = TrainedGNN.load(folder / "model.safetensors")
        return Ready(self, run.model, about.get("model", "forward_sf"), {**about, "run": run}, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        if not checkpoint:
            raise OffprintError(f"{name} has no released weights; give the folder of a run")
        run = TrainedGNN.load(checkpoint)
        return Ready(self, run.model, name, {"run": run})

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        split: str | None = None,
        normalize: bool = True,
        undirected: bool = False,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """The test figure of a split per depth, in percent: accuracy of nodes, area under the ROC curve of links.

        Args:
            split: 0 to 4, or public; default that of the run.
            normalize: make each row of features sum to one.
            undirected: add the opposite of every edge.
        """
        run, kept = ready.about["run"], ready.about.get("data_options", {})
        source = ready.about.get("source") if data is None else data
        if source is None:
            raise OffprintError("no graph to evaluate on; give --data")
        split = split or kept.get("split", "0")
        graph, part = self.open(
            source, split=split, normalize=normalize, undirected=undirected or kept.get("undirected", False)
        )
        _check_split(graph, part, run.task)
        if run.task == "link":
            edges, pairs, label = link_parts(link_split(graph, part or 0))[2]
            graph = copy(graph)
            graph.edge_index = edges
            figures = run.evaluate(graph, pairs, label)
        else:
            y, (_, _, test), _ = node_parts(graph, None, part)
            figures = run.evaluate(graph, test, y[test])
        return DepthFigures.of({f"depth_{d}": v for d, v in enumerate(figures, 1)}, metric=run.report["metric"])

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        nodes: str | None = None,
        pairs: str | None = None,
        depth: int | None = None,
        normalize: bool = True,
        undirected: bool = False,
        progress: Callable[..., None] | None = None,
    ) -> GraphPredictions:
        """Classes and scores of nodes, or scores of pairs.

        Args:
            inputs: a graph, as for training.
            nodes: node numbers with commas between; default all.
            pairs: CSV of two columns of node numbers (link predictors).
            depth: read off at this depth; default all layers.
            normalize: make each row of features sum to one.
            undirected: add the opposite of every edge.
        """
        run = ready.about["run"]
        source = inputs[0] if isinstance(inputs, list | tuple) else inputs
        graph = open_graph_source(source, normalize=normalize, undirected=undirected)
        if run.task == "link":
            if pairs is None:
                raise OffprintError("this model scores pairs; give --pairs FILE.csv with two columns of node numbers")
            wanted = read_pairs(Path(pairs))
            score = run.scores(graph, wanted, depth)
            return GraphPredictions([
                {"source": a, "target": b, "score": float(f"{s:.6g}")}
                for (a, b), s in zip(wanted.t().tolist(), score.tolist(), strict=True)
            ])  # fmt: skip
        wanted = node_numbers(nodes, graph.num_nodes)
        score = run.scores(graph, wanted, depth)
        return GraphPredictions([
            {"node": node, "class": int(values.argmax()), **{f"score_{c}": float(f"{v:.6g}") for c, v in enumerate(values.tolist())}}
            for node, values in zip(wanted.tolist(), score, strict=True)
        ])  # fmt: skip


def _device(accelerator: str) -> str:
    if accelerator in ("auto", "cpu"):
        return "cpu"
    return {"gpu": "cuda"}.get(accelerator, accelerator)


def _check_split(graph, split: int | None, task: str) -> None:
    if split is None and (task == "link" or getattr(graph, "train_mask", None) is None):
        what = "link prediction" if task == "link" else "this graph"
        raise DataError(f"{what} has no public split; give --split 0, 1, 2, 3 or 4")


def per_depth(figures: list[float]) -> str:
    """A figure, or one per depth, in words."""
    if len(figures) == 1:
        return f"{figures[0]:.2f} %"
    return ", ".join(f"{value:.2f} % with {depth}" for depth, value in enumerate(figures, 1)) + " layers"


def read_pairs(file: Path) -> torch.Tensor:
    """(2, m) from a CSV of two columns of node numbers, with a header or without."""
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        cells = [part.strip() for part in line.split(",")]
        if not line.strip() or (number == 1 and not cells[0].lstrip("-").isdigit()):
            continue  # an empty line, or the header
        if len(cells) < 2 or not all(part.isdigit() for part in cells[:2]):
            raise DataError(f"{file}, line {number}: expected two node numbers, got {line!r}")
        found.append((int(cells[0]), int(cells[1])))
    if not found:
        raise DataError(f"{file} holds no pairs")
    return torch.tensor(found).t().contiguous()


register_task(ForwardLearning())
