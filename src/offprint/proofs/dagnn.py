"""DAGNN by the paper's protocol on Cora and CiteSeer, and at depth 50 against a GCN of depth 50.

Three things are measured. (1) The paper's figures on Planetoid's public split, by the paper's recipe and stop rule, over fewer runs
than its 100; a band is the paper's mean and printed spread. (2) DAGNN against a two-layer GCN, each by its own published recipe,
on the same seeds. (3) DAGNN against a GCN of equal depth: the same epochs, the rate of each chosen by validation accuracy from
the same grid. Depth is what is equal there, not cost: a GCN of 50 layers of 64 costs far more than 50 hops of 7 class scores.

Amazon Photo and Coauthor CS are measured in the mode ``gpu`` only, over the paper's 100 splits; two splits, as an earlier version
had them (92.03 and 93.04), are not the paper's protocol.

Earlier figures: Cora 84.36 and CiteSeer 73.26 over five seeds (bands 83.4 to 85.2 and 72.0 to 74.6, now narrowed to the paper's
spread), gains over the GCN of 2.4 and 1.7 points, at depth 50 with one seed and one rate 83.8 % against 19.2 %, and smoothness
0.53 against 0.09.
"""

from __future__ import annotations

import torch

from offprint.data.graphs import load_graph, local, split_of
from offprint.models.graphs.dagnn import DAGNN, RECIPE, RECIPES, VARIANTS
from offprint.nn.graph import GCN, smoothness
from offprint.proofs import Band, Effect, Proof, kit
from offprint.tasks.nodes import fit_node_classifier
from offprint.tasks.smoothing import kind

PAPER = {  # mean and spread of 100 runs (Tables 2 and 3)
    "Cora": (84.4, 0.5), "CiteSeer": (73.3, 0.6), "Amazon_Photo": (92.0, 0.8), "Coauthor_CS": (92.8, 0.9),
}  # fmt: skip
SIZES = {  # mode: graphs with a public split, their seeds, epochs; depths, their seeds, epochs, rates; graphs with random splits
    "quick": (("Cora",), range(2), 40, (10,), range(2), 15, (1e-2,), ()),
    "full": (("Cora", "CiteSeer"), range(5), 0, (10, 50), range(5), 60, (3e-3, 1e-2), ()),
    "gpu": (("Cora", "CiteSeer"), range(100), 0, (2, 5, 10, 20, 50, 100), range(10), 200, (1e-3, 3e-3, 1e-2),
            ("Amazon_Photo", "Coauthor_CS")),
}  # fmt: skip


def _graph(name: str, device):
    return load_graph(name, normalize=True).to(device)


def _dagnn(name: str, seed: int, epochs: int, device, masks=None) -> float:
    """By the paper's recipe; ``epochs`` 0 is the recipe's."""
    graph, key = _graph(name, device), f"dagnn_{name.lower()}"
    recipe = {**RECIPE, **RECIPES.get(key, {}), **({"epochs": epochs} if epochs else {})}
    torch.manual_seed(seed)
    model = DAGNN(**VARIANTS[key]).to(device)
    return fit_node_classifier(model, graph, masks=masks, **recipe).test_accuracy


def _random_split(name: str, seed: int, device) -> float:
    masks, _ = split_of(load_graph(name), seed)
    return _dagnn(name, seed, 0, device, tuple(m.to(device) for m in masks))


def _gcn(name: str, seed: int, epochs: int, device) -> float:
    """Two layers by the usual recipe; ``epochs`` 0 is the recipe's."""
    graph = _graph(name, device)
    torch.manual_seed(seed)
    model = GCN(graph.num_features, int(graph.y.max()) + 1, 2).to(device)
    return fit_node_classifier(model, graph, weight_decay=5e-4, epochs=epochs or 200, patience=10).test_accuracy


def _deep(model: str, depth: int, epochs: int, device):
    """A run on Cora at a depth: accuracy, and smoothness of the representations (0: all nodes the same)."""
    chosen, graph = kind(model, "Cora"), _graph("Cora", device)

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        net = chosen.build(graph.num_features, int(graph.y.max()) + 1, depth).to(device)
        found = fit_node_classifier(
            net, graph, lr=rate, weight_decay=chosen.weight_decay, epochs=epochs, sparse=chosen.sparse
        )
        with torch.no_grad():
            values = net.eval().representations(graph.x, graph.edge_index)
        return {
            "score": found.val_accuracy if part == "val" else found.test_accuracy,
            "smoothness": float(smoothness(values)),
        }

    return run


def run(ctx) -> dict:
    names, seeds, epochs, depths, deep_seeds, deep_epochs, rates, large = SIZES[ctx.mode]
    large = tuple(name for name in large if local(name))
    ctx.total(
        (2 * len(names) + len(large)) * len(seeds) + len(depths) * kit.steps(2, list(deep_seeds), rates),
    )
    device, table, figures = ctx.device, {}, {}
    for name in names:
        for method in ("DAGNN", "GCN"):
            found = table[f"{method} {name}"] = []
            for seed in seeds:
                ctx.step(f"{method} on {name}, seed {seed}")

                def work(name=name, method=method, seed=seed):
                    return _dagnn(name, seed, epochs, device) if method == "DAGNN" else _gcn(name, seed, epochs, device)

                found.append(ctx.part(f"{method}-{name}-{seed}", work))
        low = name.lower()
        figures[f"{low}_accuracy"] = kit.interval(table[f"DAGNN {name}"])
        figures[f"{low}_gain_over_gcn"] = kit.paired(table[f"DAGNN {name}"], table[f"GCN {name}"])
    sweep: dict[str, dict[str, list[float]]] = {"DAGNN": {}, "GCN": {}}
    for depth in depths:
        arms = [
            kit.Arm(f"{model} of depth {depth}", _deep(model.lower(), depth, deep_epochs, device)) for model in sweep
        ]
        found = kit.compare(ctx, arms, seeds=list(deep_seeds), rates=rates, baseline=arms[1].name)
        figures[f"gain_at_depth_{depth}"] = found.effect(arms[0].name)
        figures[f"smoothness_gain_at_depth_{depth}"] = found.effect(arms[0].name, metric="smoothness")
        figures[f"rates_at_depth_{depth}"] = found.rates
        for model, arm in zip(sweep, arms, strict=True):
            sweep[model][str(depth)] = found.scores[arm.name]
            figures[f"{model.lower()}_accuracy_at_depth_{depth}"] = kit.interval(found.scores[arm.name])
    if len(depths) > 1:
        first, last = str(min(depths)), str(max(depths))
        for model, rows in sweep.items():
            figures[f"{model.lower()}_change_from_{first}_to_{last}"] = kit.paired(rows[last], rows[first])
    for name in large:
        values = []
        for seed in seeds:
            ctx.step(f"DAGNN on {name}, split {seed}")
            values.append(ctx.part(f"large-{name}-{seed}", lambda n=name, s=seed: _random_split(n, s, device)))
        figures[f"{name.lower()}_accuracy"] = kit.interval(values)
    data = [load_graph(name) for name in (*names, *large)]
    return {
        **figures, "arms": table, "costs": {}, "sweep": sweep,
        "data_digest": kit.digest(*(value for graph in data for value in (graph.x, graph.edge_index, graph.y))),
    }  # fmt: skip


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    kit.bars(figures, left, title="public split", baseline="GCN Cora")
    left.tick_params(axis="x", rotation=15)
    for model, rows in figures["sweep"].items():
        depths = sorted(rows, key=int)
        color = "#d9822b" if model == "DAGNN" else "#7488a0"
        right.plot(
            [int(d) for d in depths], [kit.interval(rows[d])["mean"] for d in depths], "o-", label=model, color=color
        )
        for depth in depths:
            right.plot([int(depth)] * len(rows[depth]), rows[depth], "k.", markersize=4)
    right.set_xlabel("hops, or layers")
    right.set_title("Cora: accuracy against depth")
    right.legend()


def _band(name: str, why: str, optional: bool = False) -> Band:
    mean, spread = PAPER[name]
    return Band(
        f"{name.lower()}_accuracy",
        mean - spread,
        mean + spread,
        "%",
        f"{mean} ± {spread} in the paper, {why}",
        optional,
    )


_GAIN = "the paper's Table 2: above a GCN"
_FULL = (
    _band("Cora", "public split"),
    _band("CiteSeer", "public split"),
    Effect("cora_gain_over_gcn", unit="points", why=_GAIN),
    Effect("citeseer_gain_over_gcn", unit="points", why=_GAIN),
    Effect("gain_at_depth_50", unit="points", why="accuracy holds up to dozens of hops, where a GCN over-smooths"),
    Effect("smoothness_gain_at_depth_50", why="the nodes of a GCN of that depth are more alike (Sec. 3)"),
)
PROOF = Proof(
    slug="dagnn",
    question="Does DAGNN reach the paper's accuracy by the paper's protocol, and hold it where a GCN of equal depth collapses?",
    data="Cora and CiteSeer, Planetoid's public split, bundled; (gpu) Amazon Photo and Coauthor CS where their files are",
    baseline="two-layer GCN with its usual recipe, and GCNs of the same depth with a rate chosen by the same rule",
    bands={
        "quick": (
            Effect("cora_gain_over_gcn", unit="points", why=_GAIN),
            Effect("gain_at_depth_10", unit="points", why="the same at depth 10"),
        ),
        "full": _FULL,
        "gpu": (*_FULL, *(_band(name, "100 random splits", optional=True) for name in ("Amazon_Photo", "Coauthor_CS"))),
    },
    run=run,
    plot=plot,
)
