"""Inner products of given pairs of rows, and their gradients, without gathering the rows.

Seen as a sparse B x M matrix with n entries a row, the pairs' scores are one sampled product, and the gradient for either side
is one sparse product. Memory is O(B n) where gathered rows take O(B n d). On a CPU, in single or double precision.
"""

from __future__ import annotations

import warnings

import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor


def _starts(index: Tensor) -> Tensor:
    """Where each row begins when ``index`` (B, n) is read as the columns of a CSR matrix."""
    return torch.arange(0, index.numel() + 1, index.shape[1], dtype=index.dtype)


def sampled_products(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """``out[b, j] = rows[b] · table[index[b, j]]``.

    Args:
        rows: (B, d), contiguous.
        table: (M, d), contiguous.
        index: (B, n) int32, contiguous; a row may name an entry twice.

    Returns:
        (B, n).
    """
    if index.shape[1] >= len(
        table
    ):  # PyTorch takes no pattern of more entries than the matrix has, and all products are fewer
        return (rows @ table.t()).gather(1, index.long())
    shape, values = (len(rows), len(table)), rows.new_zeros(index.numel())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(_starts(index), index.view(-1), values, shape, check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, rows, table.t(), beta=0.0).values().view(index.shape)


def _product(starts: Tensor, columns: Tensor, values: Tensor, table: Tensor) -> Tensor:
    """CSR times dense; a sum of bags is the fastest form of it that PyTorch has on a CPU."""
    return F.embedding_bag(columns, table, starts, mode="sum", per_sample_weights=values, include_last_offset=True)


def transposed_product(starts: Tensor, columns: Tensor, values: Tensor, width: int, dense: Tensor) -> Tensor:
    """The transpose of a CSR matrix (B, width) times a dense one (B, d): (width, d).

    SciPy transposes by counting, which is several times faster than PyTorch's sort.
    """
    parts = (values.detach().numpy(), columns.numpy(), starts.numpy())
    turned = sp.csr_matrix(parts, shape=(len(starts) - 1, width)).tocsc()
    return _product(*(torch.from_numpy(part) for part in (turned.indptr, turned.indices, turned.data)), dense)


def sampled_gradients(grad: Tensor, rows: Tensor, table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What a gradient (B, n) of :func:`sampled_products` is for ``rows`` (B, d) and for ``table`` (M, d)."""
    matrix = (_starts(index), index.view(-1), grad.reshape(-1))
    return _product(*matrix, table), transposed_product(*matrix, len(table), rows)
