"""How models of brain scans are trained: STAGIN's recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from offprint.errors import OffprintError, unknown
from offprint.models.registry import entry


@dataclass(frozen=True)
class BrainRecipe:
    """STAGIN's recipe: Adam and one cycle of the rate, ``lr`` → ``max_lr`` within the share ``rise`` of the steps → ``lr / final_div``.

    ``orthogonality`` weights the term that keeps regions apart (fine-tuning only); ``clip_grad`` 0 clips nothing.
    """

    lr: float = 5e-4
    max_lr: float = 1e-3
    rise: float = 0.2
    final_div: float = 1000.0
    weight_decay: float = 0.0
    epochs: int = 30
    batch_size: int = 3
    clip_grad: float = 0.0
    orthogonality: float = 1e-5

    def __post_init__(self):
        for name in ("lr", "max_lr", "final_div", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must be above 0")
        for name in ("weight_decay", "clip_grad", "orthogonality"):
            if not getattr(self, name) >= 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must not be negative")
        if not 0 < self.rise < 1:
            raise OffprintError(f"recipe: rise={self.rise!r}; it is a share of the steps between 0 and 1")
        if self.max_lr < self.lr:
            raise OffprintError(
                f"recipe: max_lr={self.max_lr:g} lies below lr={self.lr:g}; the rate rises from lr to max_lr"
            )

    @classmethod
    def of(cls, model: str, **overrides: Any) -> BrainRecipe:
        """The recipe of a model with fields overridden; ``lr`` alone moves ``max_lr`` along.

        Raises:
            OffprintError: an override names no field.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in overrides:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        fields = {**entry(model).recipe, **overrides}
        if "lr" in overrides and "max_lr" not in overrides:
            fields["max_lr"] = overrides["lr"] * cls.max_lr / cls.lr
        return cls(**fields)

    def optimizer(self, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        """Adam and its schedule, to be stepped after each of ``steps`` batches."""
        adam = torch.optim.Adam(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adam, self.max_lr, total_steps=max(2, steps), pct_start=self.rise, div_factor=self.max_lr / self.lr,
            final_div_factor=self.final_div,
        )  # fmt: skip
        return adam, cycle
