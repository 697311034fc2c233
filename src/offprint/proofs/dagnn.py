"""DAGNN by the paper's protocol on Cora and CiteSeer, beside a two-layer and a deep GCN."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.graphs import load_graph
from offprint.models.graphs.dagnn import DAGNN, RECIPE, RECIPES, VARIANTS
from offprint.nn.graph import NormalizedAdjacency, sparse_dropout, sparse_linear
from offprint.proofs import Band, Proof
from offprint.tasks.nodes import fit_node_classifier


class _GCN(nn.Module):
    """Graph convolutions (Kipf and Welling 2017), in which depth entangles transforming and passing on."""

    def __init__(self, in_features: int, num_classes: int, depth: int = 2, hidden: int = 64, dropout: float = 0.5):
        super().__init__()
        widths = [in_features, *[hidden] * (depth - 1), num_classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout, self.adjacency = dropout, NormalizedAdjacency()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        adjacency = self.adjacency(edge_index, x.shape[0])
        h = sparse_dropout(x, self.dropout, self.training)
        for i, layer in enumerate(self.layers):
            h = adjacency.matmul(sparse_linear(h, layer.weight, layer.bias) if i == 0 else layer(h))
            if i + 1 < len(self.layers):
                h = F.dropout(F.relu(h), self.dropout, self.training)
        return F.log_softmax(h, -1)


def _dagnn(name: str, seed: int, hops: int | None = None, epochs: int | None = None) -> float:
    graph = load_graph(name, normalize=True)
    key = f"dagnn_{name.lower()}"
    recipe = {**RECIPE, **RECIPES.get(key, {})}
    torch.manual_seed(seed)
    model = DAGNN(**{**VARIANTS[key], **({"hops": hops} if hops else {})})
    run = fit_node_classifier(
        model,
        graph,
        lr=recipe["lr"],
        weight_decay=recipe["weight_decay"],
        epochs=epochs or recipe["epochs"],
        patience=recipe["patience"],
    )
    return run.test_accuracy


def _gcn(name: str, seed: int, depth: int = 2, epochs: int = 200) -> float:
    graph = load_graph(name, normalize=True)
    torch.manual_seed(seed)
    model = _GCN(graph.num_features, int(graph.y.max()) + 1, depth)
    return fit_node_classifier(model, graph, weight_decay=5e-4, epochs=epochs, patience=10).test_accuracy


DEPTHS = (2, 10, 50, 100)


def run(ctx) -> dict:
    seeds = (0,) if ctx.quick else (0, 1, 2, 3, 4)
    names = ("Cora",) if ctx.quick else ("Cora", "CiteSeer")
    depths = () if ctx.quick else DEPTHS
    ctx.total(2 * len(seeds) * len(names) + 2 * len(depths))
    table: dict[str, list[float]] = {}
    for name in names:
        for method, function in (("DAGNN", _dagnn), ("GCN", _gcn)):
            table[f"{method} {name}"] = []
            for seed in seeds:
                ctx.step(f"{method} on {name}, seed {seed}")
                epochs = {"epochs": 300} if ctx.quick and method == "DAGNN" else {}
                value = ctx.part(f"{method}-{name}-{seed}", lambda f=function, n=name, s=seed, e=epochs: f(n, s, **e))
                table[f"{method} {name}"].append(value)
    sweep: dict[str, list[float]] = {"DAGNN": [], "GCN": []}
    for depth in depths:
        ctx.step(f"DAGNN with {depth} hops")
        sweep["DAGNN"].append(ctx.part(f"depth-dagnn-{depth}", lambda d=depth: _dagnn("Cora", 0, d, 200)))
        ctx.step(f"GCN with {depth} layers")
        sweep["GCN"].append(ctx.part(f"depth-gcn-{depth}", lambda d=depth: _gcn("Cora", 0, d, 60 if d > 10 else 200)))
    figures: dict = {"accuracies": table, "depths": list(depths), "sweep": sweep}
    for name in names:
        low = name.lower()
        figures[f"{low}_accuracy_mean"] = statistics.fmean(table[f"DAGNN {name}"])
        figures[f"{low}_accuracy_std"] = statistics.stdev(table[f"DAGNN {name}"]) if len(seeds) > 1 else 0.0
        figures[f"{low}_gain_over_gcn"] = figures[f"{low}_accuracy_mean"] - statistics.fmean(table[f"GCN {name}"])
    if depths:
        figures["accuracy_k50"] = sweep["DAGNN"][DEPTHS.index(50)]
        figures["gain_at_depth_50"] = sweep["DAGNN"][DEPTHS.index(50)] - sweep["GCN"][DEPTHS.index(50)]
    return figures


def plot(figures: dict, figure) -> None:
    wide = bool(figures["depths"])
    axes = figure.subplots(1, 2) if wide else [figure.subplots()]
    for i, (label, values) in enumerate(figures["accuracies"].items()):
        axes[0].bar(i, statistics.fmean(values), color="#d9822b" if label.startswith("DAGNN") else "#b9c6d6")
        axes[0].plot([i] * len(values), values, "k.", markersize=5)
    axes[0].set_xticks(range(len(figures["accuracies"])), list(figures["accuracies"]), rotation=15)
    axes[0].set_ylim(60, 90)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].set_title("public split")
    if wide:
        for label, values in figures["sweep"].items():
            axes[1].plot(
                figures["depths"], values, "o-", label=label, color="#d9822b" if label == "DAGNN" else "#7488a0"
            )
        axes[1].set_xscale("log")
        axes[1].set_xlabel("hops, or layers")
        axes[1].set_title("Cora: accuracy against depth")
        axes[1].legend()


PROOF = Proof(
    slug="dagnn",
    question="Does DAGNN reach the paper's accuracy by the paper's protocol, and hold it where a deep GCN collapses?",
    data="Cora and CiteSeer, Planetoid's public split, bundled",
    baseline="two-layer GCN with the usual recipe, and GCNs of the same depth",
    bands={
        "quick": (
            Band("cora_accuracy_mean", 82.5, 86.0, "%", "one seed of 300 epochs; the paper's mean is 84.4"),
            Band("cora_gain_over_gcn", 0.0, 8.0, "points"),
        ),
        "full": (
            Band("cora_accuracy_mean", 83.4, 85.2, "%", "84.4 in the paper, over 100 runs"),
            Band("citeseer_accuracy_mean", 72.0, 74.6, "%", "73.3 in the paper, over 100 runs"),
            Band("cora_gain_over_gcn", 0.0, 8.0, "points"),
            Band("accuracy_k50", 80.0, 90.0, "%", "accuracy holds up to dozens of hops"),
            Band("gain_at_depth_50", 20.0, 90.0, "points", "a GCN of that depth over-smooths"),
        ),
    },
    run=run,
    plot=plot,
)
