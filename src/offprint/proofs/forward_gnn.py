"""ForwardGNN on Cora: learning layer by layer against backpropagation, with three operators and on links, and memory against depth.

Four layers of 128. A layer learns for as many epochs as backpropagation trains all layers, so that the work of both is alike: one
pass through each layer per epoch. Runs are paired by the paper's five splits (64/16/20) and their seeds; the rate of each arm is
chosen on the validation part of one more run, from the same grid. Weight decay is the paper's 5e-4 but for the two forward-forward
forms, where virtual nodes never leave their start with it (see below), and links, whose top-down form has none in the paper.

"Matches or beats" has no sign to judge but the second half: an interval above zero beats, one that holds zero is undecided and may
well be a match, one below zero falls short. Memory is counted, not sampled (every split gives the same): what a training step
of 8 layers keeps over one of 2 layers, single forward less backpropagation.

Earlier figures, at two layers and the paper's rate of 1e-3 for all: GCN +1.0 (five splits), SAGE -2.4 and GAT -3.8 (two splits;
-0.4 and -2.4 at four layers), virtual nodes over appended labels -33 points (one split: 38.6 % against 71.6 %, whereas a rate of
1e-2 without decay gives 86 %), top-down on links -5.8 points (two splits), memory 1.00 times against 4.2 times from 2 to 16 layers.
Depth, rates and decay follow from those looks.

Read with care: in the first run of this setting virtual nodes reach 20 % and appended labels 60 % after 40 epochs a layer, so that
both are far from trained, and the -40 points between them are about the length of the training. The setting was left as declared;
mode ``gpu`` trains for 1000 epochs.
"""

from __future__ import annotations

import torch

from offprint.data.graphs import load_graph
from offprint.methods.training._forward_data import node_parts
from offprint.methods.training._forward_steps import PROCEDURES, Nodes
from offprint.methods.training.forward_gnn import fit
from offprint.models.graphs.forward_gnn import ForwardGNN
from offprint.models.info import peak_memory
from offprint.proofs import Effect, Proof, kit

SEED = 10100  # the paper's, plus 3 per run
LAYERS, DEPTHS = 4, (2, 8)
# figure: (arm, baseline) as (method, operator), weight decay, share of the epochs
PAIRS = {
    "cora_gain": (("sf", "gcn"), ("backprop", "gcn"), 5e-4, 1.0),
    "cora_sage_gain": (("sf", "sage"), ("backprop", "sage"), 5e-4, 1.0),
    "cora_gat_gain": (("sf", "gat"), ("backprop", "gat"), 5e-4, 1.0),
    "cora_vn_over_la": (("ff_vn", "gcn"), ("ff_la", "gcn"), 0.0, 0.8),
    "cora_link_topdown_gain": (("link_fl_topdown", "gcn"), ("link_fl", "gcn"), 0.0, 0.6),
}
SIZES = {  # mode: which pairs, epochs, splits, rates
    "quick": (("cora_gain",), 10, (0, 1), (1e-2,)),
    "full": (tuple(PAIRS), 50, (0, 1, 2, 3, 4), (3e-3, 1e-2)),
    "gpu": (tuple(PAIRS), 1000, (0, 1, 2, 3, 4), (3e-4, 1e-3, 3e-3, 1e-2)),
}


def _megabytes(method: str, depth: int, split: int) -> float:
    """Peak of training the last layer (all layers, by backpropagation) for two steps on Cora: outputs, gradients, Adam's
    state and whatever is kept of the frozen input; the graph, its features and the weights lie outside."""
    graph = load_graph("Cora", normalize=True)
    y, (train, val, _), classes = node_parts(graph, None, split)
    torch.manual_seed(SEED + 3 * split)
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


def _arm(method: str, operator: str, decay: float, epochs: int, device) -> kit.Arm:
    graph = load_graph("Cora", normalize=True)

    def run(seed: int, rate: float, part: str) -> float:
        """The seed is the number of the split; that of the run on which the rate is chosen draws anew on split 0."""
        split = seed if seed < 5 else 0
        report = fit(
            graph, method, operator, LAYERS, split=split, epochs=epochs, lr=rate, weight_decay=decay,
            seed=SEED + 3 * seed, device=device,
        ).report  # fmt: skip
        return report[part][-1]

    return kit.Arm(f"{method} {operator}", run)


def run(ctx) -> dict:
    names, epochs, splits, rates = SIZES[ctx.mode]
    ctx.total(len(names) * kit.steps(2, splits, rates) + 2 * len(DEPTHS) * len(splits))
    table: dict[str, list[float]] = {}
    chosen: dict[str, float] = {}
    figures: dict = {}
    for name in names:
        arm, base, decay, share = PAIRS[name]
        arms = [_arm(*pair, decay, round(share * epochs), ctx.device) for pair in (base, arm)]
        found = kit.compare(ctx, arms, seeds=splits, rates=rates)
        figures[name] = found.effect(arms[1].name)
        table |= found.scores
        chosen |= found.rates
    memory = {
        method: [[_counted(ctx, method, depth, split) for depth in DEPTHS] for split in splits]
        for method in ("sf", "backprop")
    }
    added = {method: [high - low for low, high in rows] for method, rows in memory.items()}
    graph = load_graph("Cora")
    return {
        **figures,
        **{f"accuracy_{kit.slug(name)}": kit.interval(values) for name, values in table.items()},
        "memory_growth_gap": kit.paired(added["sf"], added["backprop"]),
        "memory_times_sf": memory["sf"][0][1] / memory["sf"][0][0],
        "memory_times_backprop": memory["backprop"][0][1] / memory["backprop"][0][0],
        "arms": table, "rates": chosen, "costs": {}, "depths": list(DEPTHS),
        "memory": {method: rows[0] for method, rows in memory.items()},
        "data_digest": kit.digest(graph.x, graph.edge_index, graph.y),
    }  # fmt: skip


def _counted(ctx, method: str, depth: int, split: int) -> float:
    ctx.step(f"memory of {method}, {depth} layers")
    return ctx.part(f"memory-{method}-{depth}-{split}", lambda: _megabytes(method, depth, split))


def plot(figures: dict, figure) -> None:
    left, right = figure.subplots(1, 2)
    labels = list(figures["arms"])
    for i, (label, values) in enumerate(figures["arms"].items()):
        left.barh(i, kit.interval(values)["mean"], color="#b9c6d6" if label.startswith("backprop") else "#d9822b")
        left.plot(values, [i] * len(values), "k.", markersize=4)
    left.set_yticks(range(len(labels)), labels, fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("test accuracy, or ROC-AUC (%)")
    for label, values in figures["memory"].items():
        right.plot(figures["depths"], values, "o-", label=label, color="#d9822b" if label == "sf" else "#7488a0")
    right.set_ylim(0, None)
    right.set_xlabel("layers")
    right.set_title("MB of a training step, Cora")
    right.legend()


_BEATS = "single forward matches or beats backpropagation"
_MEMORY = Effect("memory_growth_gap", "below", "MB", "memory does not grow with depth")
PROOF = Proof(
    slug="forward-gnn",
    question="Does learning layer by layer, without gradients between layers, beat backpropagation's accuracy at flat memory?",
    data="Cora (Planetoid, bundled), the paper's own 64/16/20 splits; 50 epochs per layer instead of at most 1000",
    baseline="the same layers trained by backpropagation for as many epochs; appended labels; forward learning without top-down signals",
    bands={
        "quick": (Effect("cora_gain", unit="points", why=_BEATS), _MEMORY),
        "full": (
            Effect("cora_gain", unit="points", why=_BEATS),
            Effect("cora_sage_gain", unit="points", why=_BEATS),
            Effect("cora_gat_gain", unit="points", why=_BEATS),
            Effect("cora_vn_over_la", unit="points", why="virtual nodes beat appended labels"),
            Effect("cora_link_topdown_gain", unit="points", why="signals from above help links"),
            _MEMORY,
        ),
    },
    run=run,
    plot=plot,
)
