"""An epoch of DAGNN on Cora and CiteSeer against the plain torch_geometric formulation, the same weights and losses."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from benchmarks.compare import Row, race
from offprint.data.graphs import load_graph
from offprint.errors import OffprintError
from offprint.models.factory import create_model


class _Prop(MessagePassing):
    """Propagation as a torch_geometric layer: edge by edge, normalised in every forward."""

    def __init__(self, classes: int, hops: int):
        super().__init__(aggr="add")
        self.hops, self.proj = hops, nn.Linear(classes, 1)

    def forward(self, x, edge_index):
        edge_index, norm = gcn_norm(edge_index, None, x.size(0), dtype=x.dtype)
        hops = [x]
        for _ in range(self.hops):
            hops.append(self.propagate(edge_index, x=hops[-1], norm=norm))
        stacked = torch.stack(hops, 1)
        return (torch.sigmoid(self.proj(stacked)) * stacked).sum(1)

    def message(self, x_j, norm):
        return norm.view(-1, 1) * x_j


class _Plain(nn.Module):
    def __init__(self, features: int, classes: int, hops: int, dropout: float):
        super().__init__()
        self.lin1, self.lin2, self.prop, self.p = (
            nn.Linear(features, 64),
            nn.Linear(64, classes),
            _Prop(classes, hops),
            dropout,
        )

    def forward(self, x, edge_index):
        x = F.relu(self.lin1(F.dropout(x, self.p, self.training)))
        return F.log_softmax(self.prop(self.lin2(F.dropout(x, self.p, self.training)), edge_index), 1)


def _epoch(model, x, graph):
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.005)

    def run():
        model.train()
        optimizer.zero_grad()
        F.nll_loss(model(x, graph.edge_index)[graph.train_mask], graph.y[graph.train_mask]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            return model(x, graph.edge_index).argmax(1)

    return run


def rows() -> Iterator[Row]:
    for name in ("Cora", "CiteSeer"):
        graph = load_graph(name, normalize=True)
        ours = create_model(f"dagnn_{name.lower()}").eval()
        theirs = _Plain(graph.num_features, ours.num_classes, ours.prop.hops, ours.dropout).eval()
        theirs.load_state_dict(ours.state_dict())
        sparse = graph.x.to_sparse_csr()
        with torch.no_grad():
            off = float((ours(sparse, graph.edge_index) - theirs(graph.x, graph.edge_index)).abs().max())
        if off > 1e-4:
            raise OffprintError(f"the two formulations of DAGNN differ by {off:.1e} on {name}")
        a, b = race(_epoch(ours, sparse, graph), _epoch(theirs, graph.x, graph), seconds=6)
        yield Row("dagnn", f"dagnn_{name.lower()} epoch with evaluation", "plain torch_geometric", a, b)
