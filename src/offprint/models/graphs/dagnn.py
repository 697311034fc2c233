r"""Towards Deeper Graph Neural Networks (Liu, Gao, Ji; KDD 2020; arXiv 2007.09296).

Stacking graph convolutions entangles two things, transforming features and passing them on, and it is the entanglement
that makes deep graph networks hard to train. DAGNN takes them apart (Eq. 8). An MLP turns features into class scores,

.. math:: Z = \mathrm{MLP}(X) \in \mathbb{R}^{n \times C},

the scores are passed along the graph without parameters, with :math:`\hat A = \tilde D^{-1/2}(A + I)\tilde D^{-1/2}`,

.. math:: H_k = \hat A^k Z, \qquad k = 0, \dots, K,

and a gate shared by all nodes and hops decides, node by node, how much each hop counts:

.. math:: s_{ik} = \sigma(w^\top H_{k,i} + b), \qquad X^{\mathrm{out}}_i = \sum_{k=0}^{K} s_{ik} H_{k,i}.

The output is the log-softmax over classes. Features may be a sparse CSR matrix, which is what makes a run on citation graphs
take seconds: nearly all the work of a dense run is the first layer reading zeros.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.registry import register
from offprint.nn.graph import NormalizedAdjacency, sparse_dropout, sparse_linear


class Prop(nn.Module):
    """K hops, gated (Eq. 8).

    Args:
        num_classes: C.
        hops: K.
    """

    def __init__(self, num_classes: int, hops: int):
        super().__init__()
        self.hops = hops
        self.proj = nn.Linear(num_classes, 1)

    def hop_scores(self, z: Tensor, adjacency) -> Tensor:
        """(n, K+1, C): the scores after 0 .. K hops."""
        hops = [z]
        for _ in range(self.hops):
            hops.append(adjacency.matmul(hops[-1]))
        return torch.stack(hops, 1)

    def forward(self, z: Tensor, adjacency) -> Tensor:
        """Scores (n, C) to gated sums (n, C)."""
        hops = self.hop_scores(z, adjacency)
        gates = torch.sigmoid(self.proj(hops))
        return (gates * hops).sum(1)


class DAGNN(nn.Module):
    """Node classifier.

    Args:
        in_features: F, features per node.
        num_classes: C.
        hidden: width of the MLP.
        hops: K.
        dropout: before each linear layer (with ``batch_norm``: only before the second).
        batch_norm: the form used on ogbn-arxiv.

    Input: ``x`` (n, F), dense or sparse CSR, and ``edge_index`` (2, E) with both directions of every edge; self loops are
    added where they are missing, and kept where they are there. Output: log-probabilities (n, C). Nothing belongs to a graph,
    so a trained model reads nodes it has not seen, and other graphs with the same features. Of a directed graph, a node hears
    from the sources of the edges that point at it.
    """

    native = "authors"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: int = 64,
        hops: int = 10,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ):
        super().__init__()
        self.in_features, self.num_classes, self.dropout = in_features, num_classes, dropout
        self.lin1 = nn.Linear(in_features, hidden)
        self.bn = nn.BatchNorm1d(hidden) if batch_norm else None
        self.lin2 = nn.Linear(hidden, num_classes)
        self.prop = Prop(num_classes, hops)
        self.adjacency = NormalizedAdjacency()

    def reset_parameters(self) -> None:
        """Draw all weights anew, as before each run of the paper's protocol."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()

    def check_input(self, x: Tensor, edge_index: Tensor) -> None:
        """Refuse features or edges of the wrong shape."""
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise OffprintError(
                f"expected node features of shape (n, {self.in_features}), got {tuple(x.shape)}; "
                "build the model with in_features= of your graph"
            )
        if edge_index.ndim != 2 or edge_index.shape[0] != 2:
            raise OffprintError(f"expected edge_index of shape (2, E), got {tuple(edge_index.shape)}")

    def scores(self, x: Tensor) -> Tensor:
        """The MLP's class scores (n, C), before propagation."""
        if self.bn is None:
            x = sparse_dropout(x, self.dropout, self.training)
        h = sparse_linear(x, self.lin1.weight, self.lin1.bias)
        h = F.relu(h if self.bn is None else self.bn(h))
        return self.lin2(F.dropout(h, self.dropout, self.training))

    def representations(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """(n, C): the gated sums, before the softmax."""
        if not torch.compiler.is_compiling():
            self.check_input(x, edge_index)
        return self.prop(self.scores(x), self.adjacency(edge_index, x.shape[0], edge_weight, self.lin2.weight.dtype))

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        """Log-probabilities (n, C)."""
        return F.log_softmax(self.representations(x, edge_index, edge_weight), -1)

    @torch.no_grad()
    def gates(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(n, K+1): how much each node relies on each hop."""
        adjacency = self.adjacency(edge_index, x.shape[0], dtype=self.lin2.weight.dtype)
        return torch.sigmoid(self.prop.proj(self.prop.hop_scores(self.scores(x), adjacency))).squeeze(-1)


_ROWS = {  # F, C, K, dropout
    "cora": (1433, 7, 10, 0.8),
    "citeseer": (3703, 6, 10, 0.5),
    "pubmed": (500, 3, 20, 0.8),
    "coauthor_cs": (6805, 15, 5, 0.8),
    "coauthor_physics": (8415, 5, 5, 0.8),
    "amazon_computers": (767, 10, 5, 0.5),
    "amazon_photo": (745, 8, 5, 0.5),
}
VARIANTS: dict[str, dict] = {
    f"dagnn_{name}": {"in_features": f, "num_classes": c, "hidden": 64, "hops": k, "dropout": p}
    for name, (f, c, k, p) in _ROWS.items()
} | {
    "dagnn_arxiv": {
        "in_features": 128,
        "num_classes": 40,
        "hidden": 256,
        "hops": 16,
        "dropout": 0.2,
        "batch_norm": True,
    }
}
RECIPE = {"lr": 0.01, "weight_decay": 0.005, "epochs": 1000, "patience": 100}
RECIPES = {
    "dagnn_citeseer": {"weight_decay": 0.02},
    "dagnn_coauthor_cs": {"weight_decay": 0.0},
    "dagnn_coauthor_physics": {"weight_decay": 0.0},
    "dagnn_amazon_computers": {"weight_decay": 0.00005, "epochs": 3000, "patience": 300},
    "dagnn_amazon_photo": {"weight_decay": 0.0005},
    "dagnn_arxiv": {"lr": 0.005, "weight_decay": 0.0, "patience": 0},
}
register(paper="dagnn", kind="graph", task="nodes", build=DAGNN, variants=VARIANTS, input_size=None, recipe=RECIPE,
         exceptions={"training": RECIPES})  # fmt: skip
