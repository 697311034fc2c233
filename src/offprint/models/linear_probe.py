"""A linear probe: one linear layer on the pooled last map of a backbone that stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from offprint.models.parts import Maps, last, register_part


class LinearProbe(nn.Module):
    """Mean over the last map, linear layer; how much of a task a frozen representation already holds.

    Args:
        before: the maps that come in.
        num_classes: outputs.
    """

    classifier = "linear"
    frozen = True

    def __init__(self, before: Maps, num_classes: int = 1000):
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(before.channels[-1], num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
        """Logits (B, num_classes)."""
        return self.linear(maps[-1].mean((2, 3)))


register_part("linear_probe", "head", LinearProbe, task="classification", takes=last(1))
