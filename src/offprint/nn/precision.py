"""Which precision a computation runs in: that of the features and parameters, and float32 where that is less."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions and whole numbers, else ``dtype``."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """``x`` in at least float32: a computation that half precision cannot carry, and that leaves double as it is."""
    return x.to(wide_dtype(x.dtype))


class ExactTables(nn.Module):
    """A module whose tables are computed once, in double, and held as buffers in the precision of the module.

    Casting a buffer from float32 to float64 would keep the rounding of the former; here the cast is from the exact values. The
    tables are in no state dict: they follow from what the module was made of.
    """

    def __init__(self):
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def keep_table(self, name: str, exact: Tensor, like: Tensor | None = None) -> None:
        """Register ``exact`` (float64) as the buffer ``name``, in the precision and on the device of ``like``."""
        self._exact[name] = exact
        self.register_buffer(name, exact.to(torch.get_default_dtype() if like is None else like), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True):
        before = {name: getattr(self, name).dtype for name in self._exact}
        super()._apply(fn, recurse)
        for name, exact in self._exact.items():
            table = getattr(self, name)
            if table.dtype != before[name] and not table.is_meta:
                setattr(self, name, exact.to(table))
        return self
