"""What attention adds to the logits of each pair of tokens of a window, from a table of their relative positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offprint.nn.windows import gather_bias


class RelativeBias(nn.Module):
    """Base of attention in square windows with a bias of relative positions.

    A subclass writes :meth:`table`, and :meth:`sources`, the parameters that the table follows from. In evaluation without
    gradients the bias is gathered once and kept until one of those changes.

    Args:
        window: M, tokens of a window's side.
        heads: attention heads.
    """

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.window, self.heads = window, heads
        self._bias: tuple | None = None

    def table(self) -> Tensor:
        """The bias ((2M - 1)², heads) of every offset, rows first."""
        raise TypeError(f"{type(self).__name__} must define table")

    def sources(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the table is made from."""
        raise TypeError(f"{type(self).__name__} must define sources")

    def bias(self) -> Tensor:
        """The bias (heads, M², M²)."""
        sides = (self.window, self.window)
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return gather_bias(self.table(), sides)
        weights = self.sources()
        # tensors lent for a functional call, or without data or count of their changes
        if any(type(w) is not nn.Parameter or w.is_meta or w.is_inference() for w in weights):
            return gather_bias(self.table(), sides)
        state = [(id(w), w._version, w.data_ptr(), torch.is_autocast_enabled(w.device.type)) for w in weights]
        if self._bias is None or self._bias[0] != state:
            self._bias = (state, gather_bias(self.table(), sides))
        return self._bias[1]

    def train(self, mode: bool = True) -> RelativeBias:
        self._bias = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> RelativeBias:
        self._bias = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bias": None}
