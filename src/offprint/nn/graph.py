"""Sparse pieces that graph models share: the normalised adjacency, and layers that read sparse features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.nn.precision import wide, wide_dtype
from offprint.nn.sampled import transposed_product


class _Symmetric(torch.autograd.Function):
    """Product with a matrix whose transpose is at hand, so that the backward pass is one sparse product too."""

    @staticmethod
    def forward(ctx, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, None, ctx.transposed @ grad


class Adjacency:
    """A fixed sparse matrix and its transpose, in CSR."""

    def __init__(self, matrix: Tensor, transposed: Tensor):
        self.matrix, self.transposed = matrix, transposed

    def matmul(self, x: Tensor) -> Tensor:
        """(n, n) times (n, C), in at least float32; the result has the precision of ``x``."""
        return _Symmetric.apply(self.matrix, self.transposed, wide(x)).to(x.dtype)


def _csr(index: Tensor, value: Tensor, n: int) -> Tensor:
    return torch.sparse_coo_tensor(index, value, (n, n), check_invariants=False).coalesce().to_sparse_csr()


def gcn_norm(
    edge_index: Tensor, n: int, weight: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Edges and weights of D^(-1/2) (A + I) D^(-1/2): existing self loops are kept, missing ones get weight 1.

    Args:
        edge_index: (2, E), source over target.
        n: nodes.
        weight: (E,); default ones.
        dtype: of the result.

    Returns:
        (2, E') and (E',); the degree is summed over targets.
    """
    row, col = edge_index
    weight = torch.ones(len(row), dtype=dtype, device=row.device) if weight is None else weight.to(dtype)
    looped = torch.zeros(n, dtype=torch.bool, device=row.device)
    looped[row[row == col]] = True
    extra = (~looped).nonzero().flatten()
    row, col = torch.cat([row, extra]), torch.cat([col, extra])
    weight = torch.cat([weight, weight.new_ones(len(extra))])
    degree = weight.new_zeros(n).scatter_add_(0, col, weight)
    scale = degree.pow(-0.5).masked_fill_(degree == 0, 0.0)
    return torch.stack([row, col]), scale[row] * weight * scale[col]


class NormalizedAdjacency(nn.Module):
    """Makes the normalised adjacency of a graph, and keeps those of the last two graphs (one learnt on, one judged on)."""

    def __init__(self):
        super().__init__()
        self._kept: tuple[tuple, ...] | None = None

    def forward(
        self, edge_index: Tensor, n: int, weight: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Adjacency:
        """The matrix (n, n) for features of this ``dtype``, in at least float32; arguments as in :func:`gcn_norm`."""
        dtype = wide_dtype(dtype)
        key = (edge_index.data_ptr(), edge_index._version, tuple(edge_index.shape), n, dtype, edge_index.device,
               None if weight is None else (weight.data_ptr(), weight._version))  # fmt: skip
        for entry in self._kept or ():
            if entry[0] == key:
                return entry[1]
        index, value = gcn_norm(edge_index, n, weight, dtype)
        made = Adjacency(_csr(index.flip(0), value, n), _csr(index, value, n))
        # the tensors are held with the key: while they live, their addresses cannot be given to others
        self._kept = ((key, made, edge_index, weight), *(self._kept or ())[:1])
        return made

    def __getstate__(self):
        return {**self.__dict__, "_kept": None}

    def __deepcopy__(self, memo):
        return type(self)()


def sparse_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Dropout of dense features, or of the stored values of CSR features (zeros stay zeros: the same distribution)."""
    if not training or p == 0.0:
        return x
    if x.layout != torch.sparse_csr:
        return F.dropout(x, p, training)
    values = F.dropout(x.values(), p, training)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x,) = ctx.saved_tensors
        if x.device.type != "cpu" or x.dtype != grad.dtype:
            return None, (x.t().to_sparse_csr() @ grad).t()
        matrix = (x.crow_indices(), x.col_indices(), x.values())
        return None, transposed_product(*matrix, x.shape[1], grad.contiguous()).t()


def sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` for dense or sparse CSR ``x`` (n, F) and ``weight`` (H, F)."""
    if x.layout != torch.sparse_csr:
        return F.linear(x, weight, bias)
    out = _SparseLinear.apply(x, weight)
    return out if bias is None else out + bias


class GCN(nn.Module):
    """Graph convolutions (Kipf and Welling 2017), in which depth entangles transforming and passing on: a baseline.

    Args:
        in_features, num_classes: F and C.
        depth: layers.
        hidden: width between them.
        dropout: before each layer.

    Input and output as DAGNN's: (n, F), dense or CSR, and (2, E), to log-probabilities (n, C).
    """

    def __init__(self, in_features: int, num_classes: int, depth: int = 2, hidden: int = 64, dropout: float = 0.5):
        super().__init__()
        self.num_classes = num_classes
        widths = [in_features, *[hidden] * (depth - 1), num_classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout, self.adjacency = dropout, NormalizedAdjacency()

    def representations(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(n, C): the last layer's output."""
        adjacency = self.adjacency(edge_index, x.shape[0], dtype=self.layers[0].weight.dtype)
        h = sparse_dropout(x, self.dropout, self.training)
        for i, layer in enumerate(self.layers):
            h = adjacency.matmul(sparse_linear(h, layer.weight, layer.bias) if i == 0 else layer(h))
            if i + 1 < len(self.layers):
                h = F.dropout(F.relu(h), self.dropout, self.training)
        return h

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Log-probabilities (n, C)."""
        return F.log_softmax(self.representations(x, edge_index), -1)


@torch.no_grad()
def smoothness(x: Tensor, block: int = 1024) -> float:
    """How far apart nodes are: the mean over all pairs of ½ ‖x_i/‖x_i‖ - x_j/‖x_j‖‖ (DAGNN, Eq. 2 to 4).

    From 0 (every node says the same: over-smoothed) to 1. A row of zeros counts as the zero vector.

    Args:
        x: representations (n, C), at least two rows.
        block: rows compared with all others at once; the memory is ``block`` times n.
    """
    n = len(x)
    if n < 2:
        raise OffprintError(f"smoothness compares nodes; {n} was given")
    x = F.normalize(x.double(), dim=1)
    square = x.pow(2).sum(1)
    total = 0.0
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        gap = torch.addmm(square[None], x[rows], x.t(), alpha=-2.0).add_(square[rows, None])
        gap[torch.arange(rows.stop - start), torch.arange(start, rows.stop)] = 0.0
        total += float(gap.clamp_(min=0).sqrt_().sum())
    return 0.5 * total / (n * (n - 1))
