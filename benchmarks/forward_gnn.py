"""ForwardGNN's training epochs against the same procedures in plain torch_geometric operators: no caching, dense features, all
rows in every pass; the same weights, draws and losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

from benchmarks.compare import Row, peak_memory, race
from offprint.data.graphs import load_graph
from offprint.errors import OffprintError
from offprint.methods.training.forward_gnn import PROCEDURES, Links, Nodes, draw_wrong_classes, link_split, node_split
from offprint.models.graphs.forward_gnn import ForwardGNN, class_columns, link_classes

MAKE = {
    "gcn": lambda a, b: GCNConv(a, b),
    "sage": lambda a, b: SAGEConv(a, b),
    "gat": lambda a, b: GATConv(a, b // 4, 4),
}
STEPS = 5


def _unit(x: Tensor) -> Tensor:
    return x / (x.norm(dim=1, keepdim=True) + 1e-8)


class _Plain:
    """One layer's epoch, written as a training loop over torch_geometric layers would be."""

    def __init__(self, model: ForwardGNN, problem):
        self.model, self.p = model, problem
        self.layers = []
        for layer in model.trained:
            conv = layer.gnn_layer.gnn
            out, width = (conv.lin_r if hasattr(conv, "lin_r") else conv.lin).weight.shape
            peer = MAKE[model.settings["operator"]](width, out)
            peer.load_state_dict(conv.state_dict())
            self.layers.append(peer)
        self.optimizers = [torch.optim.Adam(layer.parameters(), 1e-3, weight_decay=5e-4) for layer in self.layers]
        p, n, c = problem, len(problem.x), model.num_classes
        if isinstance(p, Links):
            self.sets = [(p.x, p.edge_index)]
            return
        told = [p.y[p.train]] if model.method == "sf" else [p.y[p.train], *p.wrong]
        if model.method == "ff_la":
            self.sets = [(torch.cat([p.x, class_columns(n, c, p.train, k)], 1), p.edge_index) for k in told]
        else:
            x = torch.cat([p.x, model.virtual])
            self.sets = [(x, link_classes(p.edge_index, n, p.train, k)) for k in told]

    def outputs(self, stage: int) -> list[Tensor]:
        return [F.relu(self.layers[stage](_unit(x), edges)) for x, edges in self.sets]

    def loss(self, stage: int) -> Tensor:
        p, outputs, theta = self.p, self.outputs(stage), self.model.theta
        if isinstance(p, Links):
            score = [(outputs[0][a] * outputs[0][b]).sum(1) for a, b in (p.positive, p.negative)]
            target = torch.cat([torch.ones_like(score[0]), torch.zeros_like(score[1])])
            return F.binary_cross_entropy_with_logits(torch.cat(score), target)
        if self.model.method == "sf":
            return F.cross_entropy(outputs[0][p.train] @ outputs[0][len(p.x) :].t(), p.y[p.train])
        goodness = [y[p.train].square().sum(1) - theta for y in outputs]
        return F.softplus(-goodness[0]).mean() + torch.stack([F.softplus(g).mean() for g in goodness[1:]]).mean()

    def step(self, stage: int) -> float:
        loss = self.loss(stage)
        self.optimizers[stage].zero_grad()
        loss.backward()
        self.optimizers[stage].step()
        return float(loss)

    @torch.no_grad()
    def close(self, stage: int) -> None:
        made = self.outputs(stage)
        shared = self.model.method == "ff_vn"
        self.sets = [(made[0] if shared else y, edges) for y, (_, edges) in zip(made, self.sets, strict=True)]


def _problem(name: str, method: str, seed: int = 10100):
    graph = load_graph(name, normalize=True)
    classes = int(graph.y.max()) + 1
    if method.startswith("link"):
        part = link_split(graph)[0]
        label = part.edge_label.bool()
        pairs = part.edge_label_index
        return Links(graph.x, part.edge_index, pairs[:, label], pairs[:, ~label], pairs, label), 2
    train, val, _ = (mask.nonzero().flatten() for mask in node_split(graph.num_nodes))
    wrong = draw_wrong_classes(graph.y[train], classes, 100, torch.Generator().manual_seed(seed))
    return Nodes(graph.x, graph.edge_index, graph.y, train, val, wrong), classes


def _pair(name: str, method: str, operator: str, hidden: int) -> tuple[Callable, Callable]:
    """A layer's epochs of both sides, one run each; their losses must agree first."""
    problem, classes = _problem(name, method)

    def ours() -> list[float]:
        torch.manual_seed(0)
        model = ForwardGNN(problem.x.shape[1], hidden, 2, classes, operator, method)
        procedure, losses = PROCEDURES[method](model, problem), []
        for stage in range(2):
            procedure.open(stage)
            losses += [procedure.step(stage)[0].loss for _ in range(STEPS)]
            procedure.close(stage)
        return losses

    def theirs() -> list[float]:
        torch.manual_seed(0)
        plain, losses = _Plain(ForwardGNN(problem.x.shape[1], hidden, 2, classes, operator, method), problem), []
        for stage in range(2):
            losses += [plain.step(stage) for _ in range(STEPS)]
            plain.close(stage)
        return losses

    return ours, theirs


def rows(hidden: int = 128, seconds: float = 6.0, names: tuple[str, ...] = ("Cora", "CiteSeer")) -> Iterator[Row]:
    for name in names:
        for method, operator in (
            ("sf", "gcn"),
            ("sf", "sage"),
            ("sf", "gat"),
            ("ff_la", "gcn"),
            ("ff_vn", "gcn"),
            ("link_fl", "gcn"),
        ):
            ours, theirs = _pair(name, method, operator, hidden)
            off = max(abs(a - b) / abs(b) for a, b in zip(ours(), theirs(), strict=True))
            if off > 1e-4:
                raise OffprintError(f"the losses of {method} over {operator} differ by {off:.1e} on {name}")
            used = peak_memory(ours), peak_memory(theirs)
            a, b = race(ours, theirs, seconds, rounds=3)
            what = f"{method} over {operator}, two layers of {hidden}, {STEPS} epochs each, with preparation, {name}"
            yield Row("forward-gnn", what, "plain torch_geometric", a, b, used, note=f"losses agree to {off:.0e}")
