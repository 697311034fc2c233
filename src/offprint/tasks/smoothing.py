"""Over-smoothing measured: accuracy and smoothness against depth, for any graph model (the analysis of DAGNN, Sec. 3)."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.graphs import split_of
from offprint.errors import OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.graphs.dagnn import DAGNN, RECIPE, RECIPES, VARIANTS
from offprint.nn.graph import GCN, smoothness
from offprint.tasks.nodes import fit_node_classifier

Builder = Callable[[int, int, int], nn.Module]


class _Logits(nn.Module):
    """A network that gives logits, as one that gives log-probabilities."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def representations(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.network(x, edge_index)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return F.log_softmax(self.representations(x, edge_index), -1)


class _APPNP(nn.Module):
    """An MLP whose scores take ``depth`` steps of personalised PageRank (Gasteiger et al. 2019), teleporting with 0.1."""

    def __init__(self, in_features: int, num_classes: int, depth: int):
        super().__init__()
        from torch_geometric.nn import APPNP

        self.lin1, self.lin2 = nn.Linear(in_features, 64), nn.Linear(64, num_classes)
        self.prop = APPNP(depth, 0.1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = F.relu(self.lin1(F.dropout(x, 0.5, self.training)))
        return self.prop(self.lin2(F.dropout(h, 0.5, self.training)), edge_index)


def _basic(name: str) -> Builder:
    """A stack of torch_geometric's layers, 64 wide, with dropout 0.5."""

    def build(in_features: int, num_classes: int, depth: int) -> nn.Module:
        import torch_geometric.nn as pyg

        return _Logits(getattr(pyg, name)(in_features, 64, depth, num_classes, dropout=0.5))

    return build


def _sgc(in_features: int, num_classes: int, depth: int) -> nn.Module:
    from torch_geometric.nn import SGConv

    return _Logits(SGConv(in_features, num_classes, depth, cached=True))


@dataclass(frozen=True)
class Kind:
    """A model that can be made at any depth.

    Attributes:
        build: (features, classes, depth) → a module from (x, edge_index) to log-probabilities.
        sparse: it reads CSR features.
        weight_decay: Adam's.
        depth: what the depth counts.
    """

    build: Builder
    sparse: bool = False
    weight_decay: float = 5e-4
    depth: str = "layers"


KINDS: Mapping[str, Kind] = {
    "dagnn": Kind(lambda f, c, k: DAGNN(f, c, hops=k), True, RECIPE["weight_decay"], "hops"),
    "gcn": Kind(lambda f, c, k: GCN(f, c, k), True),
    "sage": Kind(_basic("GraphSAGE")),
    "gat": Kind(_basic("GAT")),
    "gin": Kind(_basic("GIN")),
    "appnp": Kind(lambda f, c, k: _Logits(_APPNP(f, c, k)), depth="hops"),
    "sgc": Kind(_sgc, depth="hops"),
}


def kind(model: str, data: str = "") -> Kind:
    """A model by name (:data:`KINDS`), or your own as ``module:function``.

    On a data set of DAGNN's paper, DAGNN takes its dropout and weight decay there.
    """
    module, sign, name = model.partition(":")
    if sign:
        try:
            return Kind(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError) as error:
            raise OffprintError(
                f"--model {model}: {error}; give module:function, a function (features, classes, depth) → module"
            ) from error
    if model not in KINDS:
        raise unknown("graph model", model, KINDS)
    variant = f"dagnn_{data.lower().replace('-', '_')}"
    if model != "dagnn" or variant not in VARIANTS:
        return KINDS[model]
    dropout = VARIANTS[variant]["dropout"]
    decay = RECIPES.get(variant, {}).get("weight_decay", RECIPE["weight_decay"])
    return Kind(lambda f, c, k: DAGNN(f, c, hops=k, dropout=dropout), True, decay, "hops")


def measure(
    chosen: Kind,
    graph,
    depth: int,
    seed: int = 0,
    *,
    epochs: int = 200,
    patience: int = 100,
    lr: float = 0.01,
    masks: tuple[Tensor, Tensor, Tensor] | None = None,
) -> dict:
    """Train at one depth, and measure.

    Returns:
        ``accuracy`` (test, in percent, at the lowest validation loss) and ``smoothness`` of the trained model's
        representations (0: all nodes the same; see :func:`offprint.nn.graph.smoothness`), read before the softmax where the
        model has a method ``representations(x, edge_index)``, else from its output.
    """
    if depth < 1:
        raise OffprintError(f"depth {depth} was given; a depth is at least 1")
    devices = [graph.x.device.index or 0] if graph.x.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        model = chosen.build(graph.num_features, int(graph.y.max()) + 1, depth).to(graph.x.device)
        run = fit_node_classifier(
            model, graph, lr=lr, weight_decay=chosen.weight_decay, epochs=epochs, patience=patience,
            sparse=chosen.sparse, masks=masks,
        )  # fmt: skip
    model.eval()
    with torch.no_grad():
        values = getattr(model, "representations", model)(graph.x, graph.edge_index)
    return {"accuracy": run.test_accuracy, "smoothness": smoothness(values), "epochs": run.epochs}


def sweep(
    models: Iterable[str],
    graph,
    depths: Iterable[int],
    seeds: Iterable[int] = (0,),
    *,
    data: str = "",
    epochs: int = 200,
    file: str | Path | None = None,
    resume: bool = True,
    progress: Callable[[str], None] | None = None,
) -> dict:
    """Every model at every depth with every seed.

    Args:
        models: names, see :func:`kind`.
        graph: ``torch_geometric.data.Data``; its split is :func:`offprint.data.graphs.split_of`'s.
        data: the graph's name, for the paper's settings and the record.
        file: JSON file that is written after each run, and gone on from.
        progress: called with a word before each run.

    Returns:
        ``{"data", "split", "epochs", "rows": [{"model", "depth", "seed", "accuracy", "smoothness", "epochs"}, ...]}``.

    Raises:
        OffprintError: an unknown model, or a file of a run with other settings.
    """
    models, depths, seeds = list(models), list(depths), list(seeds)
    kinds = {name: kind(name, data) for name in models}
    masks, words = split_of(graph)
    about = {"data": data, "split": words, "epochs": epochs, "nodes": graph.num_nodes}
    rows: list[dict] = []
    if file is not None and resume and Path(file).is_file():
        try:
            kept = json.loads(Path(file).read_text(encoding="utf-8"))
            rows, before = kept.pop("rows"), kept
        except (ValueError, KeyError, AttributeError) as error:
            raise OffprintError(f"{file} is not a record of a sweep; choose another file") from error
        if before != about:
            changed = ", ".join(k for k in about if about[k] != before.get(k)) or "layout"
            raise OffprintError(
                f"{file} holds a sweep with another {changed}; choose another file, or pass --no-resume"
            )
    done = {(r["model"], r["depth"], r["seed"]): r for r in rows}
    wanted = [(model, depth, seed) for model in models for depth in depths for seed in seeds]
    for key in wanted:
        model, depth, seed = key
        if progress:
            progress(f"{model}, {depth} {kinds[model].depth}, seed {seed}")
        if key not in done:
            found = measure(kinds[model], graph, depth, seed, epochs=epochs, masks=masks)
            done[key] = {"model": model, "depth": depth, "seed": seed, **found}
            if file is not None:
                atomic_write(file, json.dumps({**about, "rows": list(done.values())}, indent=1) + "\n")
    return {**about, "rows": [done[key] for key in wanted]}


def averages(result: Mapping, value: str) -> dict[str, list[tuple[int, float, float]]]:
    """Model → [(depth, mean, standard deviation over seeds)] of ``accuracy`` or ``smoothness``."""
    table: dict[str, dict[int, list[float]]] = {}
    for row in result["rows"]:
        table.setdefault(row["model"], {}).setdefault(row["depth"], []).append(row[value])
    return {
        model: [(d, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0) for d, v in sorted(rows.items())]
        for model, rows in table.items()
    }


def draw(result: Mapping, figure) -> None:
    """Accuracy and smoothness against depth onto a matplotlib figure."""
    axes = figure.subplots(1, 2)
    for ax, value, label in zip(
        axes, ("accuracy", "smoothness"), ("test accuracy (%)", "smoothness (0: all the same)"), strict=True
    ):
        for model, points in averages(result, value).items():
            depth, mean, spread = zip(*points, strict=True)
            ax.errorbar(depth, mean, yerr=spread, marker="o", capsize=2, label=model)
        ax.set_xscale("log")
        ax.set_xlabel("hops, or layers")
        ax.set_ylabel(label)
    axes[0].legend()
    figure.suptitle(str(result["data"]))
