"""Graph convolutions over a message-flow block: from the nodes of a graph to just the rows that are asked for.

A loss on a few nodes needs the outputs of those nodes only, and several graphs over the same nodes can be passed through one
layer at once. A :class:`Block` holds what such a pass reads of the graph, made once; :class:`GCN`, :class:`SAGE` and
:class:`GAT` compute what torch_geometric's ``GCNConv``, ``SAGEConv`` and ``GATConv`` compute in their defaults, under the same
parameter names. Features may be dense (n, F), sparse (an :class:`~offprint.nn.graph.Adjacency` of shape (n, F)), or a tuple of
such parts side by side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.nn.graph import Adjacency, gcn_norm
from offprint.nn.precision import wide_dtype


class Projectable(Protocol):
    """Features of another make, which know their product with a weight."""

    def project(self, weight: Tensor) -> Tensor: ...


Features = Tensor | Adjacency | tuple | Projectable


def sparse_matrix(row: Tensor, column: Tensor, value: Tensor, shape: tuple[int, int]) -> Adjacency:
    """A fixed matrix in CSR with its transpose; entries given twice are added."""
    made = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        for index, size in ((torch.stack([row, column]), shape), (torch.stack([column, row]), shape[::-1])):
            made.append(torch.sparse_coo_tensor(index, value, size, check_invariants=False).coalesce().to_sparse_csr())
    return Adjacency(*made)


def compact(x: Tensor, density: float = 0.15) -> Features:
    """Features as CSR where they are mostly zeros and wide, else as they are."""
    if x.shape[1] < 64 or x.numel() == 0 or float(x.count_nonzero()) > density * x.numel():
        return x
    row, column = x.nonzero(as_tuple=True)
    return sparse_matrix(row, column, x[row, column], tuple(x.shape))


def project(x: Features, weight: Tensor) -> Tensor:
    """``x`` times the transpose of ``weight`` (H, F)."""
    if isinstance(x, tuple):
        parts = weight.split([(p if isinstance(p, Tensor) else p.matrix).shape[1] for p in x], 1)
        return sum(project(p, w) for p, w in zip(x, parts, strict=True))  # type: ignore[return-value]
    if isinstance(x, Adjacency):
        return x.matmul(weight.t())
    return F.linear(x, weight) if isinstance(x, Tensor) else x.project(weight)


class Block:
    """Who sends to whom, for chosen rows of one or several graphs over n nodes.

    Args:
        graphs: one ``edge_index`` (2, E), source over target, per graph.
        n: nodes of each graph.
        rows: (m,) nodes whose outputs are wanted, the same for each graph; default all.
        disjoint: each graph reads its own n rows of the input (k * n rows in all); else all graphs read the same n rows.

    A pass through the block turns (n or k * n, F) into (k * m, F'), graph by graph.
    """

    def __init__(self, graphs: Sequence[Tensor], n: int, rows: Tensor | None = None, disjoint: bool = False):
        self.graphs, self.n, self.disjoint = list(graphs), n, disjoint
        device = self.graphs[0].device
        self.rows = torch.arange(n, device=device) if rows is None else rows
        k = len(self.graphs)
        self.shape = (k * len(self.rows), k * n if disjoint else n)
        offsets = torch.arange(k, device=device).repeat_interleave(len(self.rows)) * (n if disjoint else 0)
        self.targets = self.rows.repeat(k) + offsets
        self._kept: dict[tuple[str, torch.dtype], Adjacency] = {}

    def _entries(self, make: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Row, source and value of every message that reaches a wanted row."""
        place = torch.full((self.n,), -1, device=self.rows.device).index_put_(
            (self.rows,), torch.arange(len(self.rows), device=self.rows.device)
        )
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        done: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for i, edges in enumerate(self.graphs):
            if id(edges) not in done:
                (source, target), value = make(edges)
                row = place[target]
                kept = row >= 0
                done[id(edges)] = row[kept], source[kept], value[kept]
            row, source, value = done[id(edges)]
            found.append((row + i * len(self.rows), source + (i * self.n if self.disjoint else 0), value))
        row, source, value = (torch.cat(part) for part in zip(*found, strict=True))
        return row, source, value

    def normalized(self, dtype: torch.dtype = torch.float32) -> Adjacency:
        """Rows of D^(-1/2) (A + I) D^(-1/2), for features of this precision; made once for each."""
        return self._matrix("normalized", dtype, lambda edges, kind: gcn_norm(edges, self.n, dtype=kind))

    def mean(self, dtype: torch.dtype = torch.float32) -> Adjacency:
        """Rows of the matrix that averages over incoming neighbours; a node without any gets zeros."""

        def shares(edges: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
            return edges, torch.bincount(edges[1], minlength=self.n).to(kind).reciprocal()[edges[1]]

        return self._matrix("mean", dtype, shares)

    def _matrix(self, name: str, dtype: torch.dtype, make: Callable[..., tuple[Tensor, Tensor]]) -> Adjacency:
        key = name, wide_dtype(dtype)
        if key not in self._kept:
            self._kept[key] = sparse_matrix(*self._entries(lambda edges: make(edges, key[1])), self.shape)
        return self._kept[key]

    @cached_property
    def looped(self) -> _Edges:
        """Single messages with exactly one self loop per node, for attention."""

        def loops(edges: Tensor) -> tuple[Tensor, Tensor]:
            own = torch.arange(self.n, device=edges.device).expand(2, -1)
            edges = torch.cat([edges[:, edges[0] != edges[1]], own], 1)
            return edges, torch.ones_like(edges[0])

        row, source, _ = self._entries(loops)
        return _Edges(row, source, self.shape)


class _Edges:
    """Messages sorted by row, and the order that sorts them by source."""

    def __init__(self, row: Tensor, source: Tensor, shape: tuple[int, int]):
        order = row.argsort(stable=True)
        self.row, self.source, self.shape = row[order], source[order], shape
        self.by_source = self.source.argsort(stable=True)
        self.row_start = self._starts(self.row, shape[0])
        self.source_start = self._starts(self.source[self.by_source], shape[1])

    @staticmethod
    def _starts(index: Tensor, n: int) -> Tensor:
        return F.pad(torch.bincount(index, minlength=n).cumsum(0), (1, 0))

    def matrix(self, value: Tensor) -> Tensor:
        return torch.sparse_csr_tensor(self.row_start, self.source, value, self.shape, check_invariants=False)

    def transposed(self, value: Tensor) -> Tensor:
        columns = self.row[self.by_source]
        size = self.shape[::-1]
        return torch.sparse_csr_tensor(self.source_start, columns, value[self.by_source], size, check_invariants=False)

    def softmax(self, score: Tensor) -> Tensor:
        """Over the messages of each row, (E, heads)."""
        index = self.row[:, None].expand_as(score)
        top = score.new_full((self.shape[0], score.shape[1]), -math.inf)
        top = top.scatter_reduce(0, index, score.detach(), "amax")
        value = (score - top[self.row]).exp()
        return value / (score.new_zeros(top.shape).index_add(0, self.row, value) + 1e-16)[self.row]


class _Weighted(torch.autograd.Function):
    """Sums of messages weighted per edge and head; keeps no message for the backward pass."""

    @staticmethod
    def forward(ctx, weight: Tensor, x: Tensor, edges: _Edges) -> Tensor:
        ctx.save_for_backward(weight, x)
        ctx.edges = edges
        heads = [edges.matrix(weight[:, h].contiguous()) @ x[:, h].contiguous() for h in range(x.shape[1])]
        return torch.cat(heads, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, x = ctx.saved_tensors
        edges, g = ctx.edges, grad.view(len(grad), *x.shape[1:])
        grad_weight = (x[edges.source] * g[edges.row]).sum(-1)
        heads = [edges.transposed(weight[:, h].contiguous()) @ g[:, h].contiguous() for h in range(x.shape[1])]
        return grad_weight, torch.stack(heads, 1), None


def _glorot(tensor: Tensor) -> None:
    bound = math.sqrt(6.0 / (tensor.shape[-2] + tensor.shape[-1]))
    nn.init.uniform_(tensor, -bound, bound)


class GCN(nn.Module):
    r"""Kipf and Welling's convolution, :math:`\hat A X W^\top + b`: (n, F) to (m, H)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        _glorot(self.lin.weight)

    def forward(self, x: Features, block: Block) -> Tensor:
        h = project(x, self.lin.weight)
        return block.normalized(h.dtype).matmul(h) + self.bias

    def frozen(self, x: Features, block: Block) -> Callable[[], Tensor]:
        """The layer on an input that will not change: dense inputs are passed along the graph here, once."""
        if not isinstance(x, Tensor):
            return lambda: self(x, block)
        passed = block.normalized(x.dtype).matmul(x)
        return lambda: F.linear(passed, self.lin.weight, self.bias)


class SAGE(nn.Module):
    r"""GraphSAGE with mean: :math:`\bar A X W_l^\top + b + X W_r^\top`, (n, F) to (m, H)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.lin_l = nn.Linear(in_channels, out_channels)
        self.lin_r = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Features, block: Block) -> Tensor:
        h = project(x, self.lin_l.weight)
        mean = block.mean(h.dtype).matmul(h) + self.lin_l.bias
        return mean + project(x, self.lin_r.weight)[block.targets]

    def frozen(self, x: Features, block: Block) -> Callable[[], Tensor]:
        """As :meth:`GCN.frozen`."""
        if not isinstance(x, Tensor):
            return lambda: self(x, block)
        passed, own = block.mean(x.dtype).matmul(x), x[block.targets]
        return lambda: self.lin_l(passed) + self.lin_r(own)


class GAT(nn.Module):
    """Graph attention with heads of H / heads channels, concatenated: (n, F) to (m, H)."""

    def __init__(self, in_channels: int, out_channels: int, heads: int = 4):
        super().__init__()
        self.heads = heads
        if out_channels % self.heads:
            raise OffprintError(f"gat has {self.heads} heads; {out_channels} channels cannot be shared among them")
        shape = (1, self.heads, out_channels // self.heads)
        self.lin = nn.Linear(in_channels, out_channels, bias=False)
        self.att_src, self.att_dst = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        for tensor in (self.lin.weight, self.att_src, self.att_dst):
            _glorot(tensor)

    def forward(self, x: Features, block: Block) -> Tensor:
        edges = block.looped
        h = project(x, self.lin.weight).unflatten(1, (self.heads, -1))
        sent, received = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        score = F.leaky_relu(sent[edges.source] + received[block.targets[edges.row]], 0.2)
        return _Weighted.apply(edges.softmax(score), h, edges) + self.bias

    def frozen(self, x: Features, block: Block) -> Callable[[], Tensor]:
        """As :meth:`GCN.frozen`; attention changes with the weights, so that nothing but the block is kept."""
        return lambda: self(x, block)


OPERATORS: dict[str, Callable[..., nn.Module]] = {"gcn": GCN, "sage": SAGE, "gat": GAT}


def operator(name: str) -> Callable[..., nn.Module]:
    """The convolution of this name; an unknown one is refused."""
    key = str(name).lower()
    if key not in OPERATORS:
        raise unknown("graph operator", name, OPERATORS)
    return OPERATORS[key]
