"""ForwardGNN's single forward against backpropagation through the same layers: accuracy, and memory of a step against depth."""

from __future__ import annotations

import statistics

import torch

from offprint.data.graphs import load_graph
from offprint.methods.training._forward_data import node_parts
from offprint.methods.training._forward_steps import PROCEDURES, Nodes
from offprint.methods.training.forward_gnn import fit
from offprint.models.graphs.forward_gnn import ForwardGNN
from offprint.models.info import peak_memory
from offprint.proofs import Band, Proof

SEED = 10100  # the paper's, plus 3 per run
DEPTHS = (1, 2, 4, 8, 16)
JOBS = {  # graph, operator, methods, number of splits
    "quick": (("Cora", "gcn", ("sf", "backprop"), 1),),
    "full": (
        ("Cora", "gcn", ("sf", "backprop"), 5),
        ("CiteSeer", "gcn", ("sf", "backprop"), 5),
        ("Cora", "sage", ("sf", "backprop"), 2),
        ("Cora", "gat", ("sf", "backprop"), 2),
        ("Cora", "gcn", ("ff_vn", "ff_la", "sf_top2loss", "sf_top2input"), 1),
        ("Cora", "gcn", ("link_fl", "link_fl_topdown", "link_backprop"), 2),
    ),
}


def _megabytes(method: str, depth: int) -> float:
    """Peak of training the last layer (all layers, by backpropagation) for two steps on Cora: outputs, gradients, Adam's
    state and whatever is kept of the frozen input; the graph, its features and the weights lie outside."""
    graph = load_graph("Cora", normalize=True)
    y, (train, val, _), classes = node_parts(graph, None, 0)
    torch.manual_seed(SEED)
    model = ForwardGNN(graph.num_features, 128, depth, classes, method=method)
    procedure = PROCEDURES[method](model, Nodes(graph.x, graph.edge_index, y, train, val))
    for stage in range(procedure.stages - 1):
        procedure.open(stage)
        procedure.close(stage)
    last = procedure.stages - 1
    procedure.open(last)  # the graph's matrices are made outside of what is counted
    procedure.step(last)

    def two_steps():
        procedure.open(last)
        procedure.step(last)
        procedure.step(last)

    return peak_memory(two_steps) / 1e6


def _figures(name: str, method: str, operator: str, split: int) -> list[float]:
    """Test figures per depth of one run: two layers of 128, at most 200 epochs per layer."""
    graph = load_graph(name, normalize=True)
    return fit(graph, method, operator, 2, split=split, epochs=200, seed=SEED + 3 * split).report["test"]


def run(ctx) -> dict:
    rows = JOBS["quick" if ctx.quick else "full"]
    jobs = [
        (name, method, operator, i)
        for name, operator, methods, splits in rows
        for method in methods
        for i in range(splits)
    ]
    ctx.total(len(jobs) + 2 * len(DEPTHS))
    table: dict[str, list[float]] = {}
    for name, method, operator, i in jobs:
        label = f"{name} {operator} {method}"
        ctx.step(f"{label}, split {i}")
        got = ctx.part(f"{label}-{i}", lambda n=name, m=method, o=operator, s=i: _figures(n, m, o, s))
        table.setdefault(label, []).append(got[-1])
    memory: dict[str, list[float]] = {"sf": [], "backprop": []}
    for method, values in memory.items():
        for depth in DEPTHS:
            ctx.step(f"memory of {method}, {depth} layers")
            values.append(ctx.part(f"memory-{method}-{depth}", lambda m=method, d=depth: _megabytes(m, d)))
    figures: dict = {"accuracies": table, "depths": list(DEPTHS), "memory": memory}
    for label, values in table.items():
        name, operator, method = label.split()
        key = "_".join((name.lower(), *([] if operator == "gcn" else [operator]), method))
        figures[f"{key}_{'auc' if method.startswith('link') else 'accuracy'}"] = statistics.fmean(values)
    pairs = {"cora": "cora_{}_accuracy"}
    if not ctx.quick:
        pairs |= {
            "citeseer": "citeseer_{}_accuracy",
            "cora_sage": "cora_sage_{}_accuracy",
            "cora_gat": "cora_gat_{}_accuracy",
        }
        figures["cora_link_gap"] = figures["cora_link_fl_auc"] - figures["cora_link_backprop_auc"]
        figures["cora_link_topdown_gain"] = figures["cora_link_fl_topdown_auc"] - figures["cora_link_fl_auc"]
        figures["cora_vn_over_la"] = figures["cora_ff_vn_accuracy"] - figures["cora_ff_la_accuracy"]
    for key, form in pairs.items():
        figures[f"{key}_gap"] = figures[form.format("sf")] - figures[form.format("backprop")]
    # depth 2 to 16: at depth 1 the layer reads the features themselves, which are wider than any hidden input
    figures["memory_growth_sf"] = memory["sf"][-1] / memory["sf"][1]
    figures["memory_growth_backprop"] = memory["backprop"][-1] / memory["backprop"][1]
    figures["memory_share_at_16"] = memory["sf"][-1] / memory["backprop"][-1]
    return figures


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    labels = list(figures["accuracies"])
    for i, (label, values) in enumerate(figures["accuracies"].items()):
        left.barh(i, statistics.fmean(values), color="#b9c6d6" if label.endswith("backprop") else "#d9822b")
        left.plot(values, [i] * len(values), "k.", markersize=4)
    left.set_yticks(range(len(labels)), labels, fontsize=7)
    left.invert_yaxis()
    left.set_xlim(60, 100)
    left.set_xlabel("test accuracy, or ROC-AUC (%)")
    for label, values in figures["memory"].items():
        right.plot(figures["depths"], values, "o-", label=label, color="#d9822b" if label == "sf" else "#7488a0")
    right.set_xscale("log", base=2)
    right.set_ylim(0, None)
    right.set_xlabel("layers")
    right.set_title("MB of a training step, Cora")
    right.legend()


PROOF = Proof(
    slug="forward-gnn",
    question="Does learning layer by layer, without gradients between layers, reach backpropagation's accuracy at flat memory?",
    data="Cora and CiteSeer (Planetoid, bundled), the paper's own 64/16/20 splits; at most 200 epochs per layer instead of 1000",
    baseline="the same layers trained by backpropagation, same rates, splits and seeds",
    bands={
        "quick": (
            Band("cora_sf_accuracy", 86.5, 91.0, "%", "87 to 90 expected on this split; one seed"),
            Band("cora_gap", -2.0, 4.0, "points", "single forward matches or beats backpropagation"),
            Band("memory_growth_sf", 0.95, 1.05, "times", "flat from 2 to 16 layers"),
            Band("memory_growth_backprop", 2.0, 10.0, "times", "every layer's outputs are kept"),
        ),
        "full": (
            Band("cora_sf_accuracy", 86.5, 90.5, "%", "87 to 90 expected"),
            Band("cora_gap", -1.0, 3.0, "points", "matches or beats, mean of five splits"),
            Band("citeseer_gap", -1.5, 4.0, "points", "matches or beats, mean of five splits"),
            Band("cora_sage_gap", -2.0, 4.0, "points", "two splits"),
            Band("cora_gat_gap", -2.0, 4.0, "points", "two splits"),
            Band(
                "cora_vn_over_la",
                0.0,
                60.0,
                "points",
                "virtual nodes beat appended labels; one split",
            ),
            Band("cora_link_topdown_gain", 0.0, 10.0, "points", "signals from above help links; two splits"),
            Band("cora_link_gap", -3.0, 10.0, "points", "two splits"),
            Band("memory_growth_sf", 0.95, 1.05, "times", "flat from 2 to 16 layers"),
            Band("memory_growth_backprop", 2.0, 10.0, "times", "every layer's outputs are kept"),
        ),
    },
    run=run,
    plot=plot,
)
