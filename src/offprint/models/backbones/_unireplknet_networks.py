"""UniRepLKNet behind the inputs of :mod:`offprint.models.backbones._unireplknet_inputs`: one network for other data than images.

Each class here turns its input into a map, runs the image backbone unchanged, and reads the last map or its mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbones.unireplknet import VARIANTS, UniRepLKNet, default_kernels
from offprint.models.registry import register

SIDE = 192  # of the map of the paper's series, 48 steps of 4 rows


def last_map(size: str, in_chans: int, last_kernel: int = 13, **options: Any) -> UniRepLKNet:
    """The backbone of a size, giving its last map alone; ``last_kernel`` is that of stage 4."""
    row = {**VARIANTS[f"unireplknet_{size}"], **options}
    row.setdefault("kernel_sizes", (*default_kernels(row["depths"])[:-1], last_kernel))
    network = UniRepLKNet(in_chans, 0, **row)
    network.as_features((len(row["depths"]) - 1,))
    return network


class WindowNorm(nn.Module):
    """Every window of a series normalised by its own mean and spread, and forecasts brought back (reversible instance norm).

    Args:
        variables: series.
        eps: added to the variance.
    """

    def __init__(self, variables: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.affine_weight = nn.Parameter(torch.ones(variables))
        self.affine_bias = nn.Parameter(torch.zeros(variables))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Windows (B, M, L), normalised over L, and the (mean, spread) to go back with."""
        mean = x.mean(-1, keepdim=True).detach()
        std = (x.var(-1, keepdim=True, unbiased=False) + self.eps).sqrt().detach()
        return (x - mean) / std * self.affine_weight[:, None] + self.affine_bias[:, None], (mean, std)

    def back(self, y: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
        """Forecasts (B, M, H) in the units of the windows."""
        mean, std = scale
        return (y - self.affine_bias[:, None]) / (self.affine_weight[:, None] + 1e-10) * std + mean


class UniRepLKNetSeries(nn.Module):
    """Forecasts of series by the image network, for series of one's own (Sec. 3.4 without the stations' frame).

    Every step is embedded by a circular convolution over time into ``rows`` rows of a square map, one step after the other, as the
    paper does with 48 steps of 4 rows of 192. The last map, averaged along its rows, is read by one linear layer.

    Args:
        variables: series M.
        context: steps L that are read.
        horizon: steps H that are forecast.
        size: of the backbone, as in ``unireplknet_SIZE``.
        rows: of the map per step; its side is ``rows * context``. Default as many as keep it within 192, 1 to 8.
        **options: of the backbone (``depths``, ``dims``, ``kernel_sizes``, ``drop_path_rate``, ``deploy``, ...).
    """

    native = "offprint"

    def __init__(
        self,
        variables: int = 7,
        context: int = 48,
        horizon: int = 24,
        size: str = "s",
        rows: int | None = None,
        **options: Any,
    ):
        super().__init__()
        for name, value in (("variables", variables), ("context", context), ("horizon", horizon)):
            if value < 1:
                raise OffprintError(f"{name}={value}; give 1 or more")
        rows = min(8, max(1, SIDE // context)) if rows is None else rows
        self.variables, self.context, self.horizon, self.side = variables, context, horizon, rows * context
        self.backbone = last_map(size, 1, 11, **options)
        if self.side < self.backbone.minimum:
            raise OffprintError(
                f"{context} steps of {rows} rows make a map of {self.side} on a side; the network needs "
                f"{self.backbone.minimum}: give a context of {-(-self.backbone.minimum // 8)} steps or more"
            )
        self.revin = WindowNorm(variables)
        self.embedding = nn.Conv1d(
            variables, rows * self.side, 3, padding=1, padding_mode="circular" if context > 1 else "zeros", bias=False
        )
        bands = self.side
        for _ in range(5):  # convolutions of stride 2
            bands = -(-bands // 2)
        self.head = nn.Linear(self.backbone.num_features * bands, variables * horizon)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Series (B, M, L) to their next steps (B, M, H)."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.variables, self.context):
            raise OffprintError(
                f"expected series of shape (B, {self.variables}, {self.context}), got {tuple(x.shape)}; build the model with "
                "variables= and context= of your series"
            )
        x, scale = self.revin(x)
        steps = self.embedding(x).transpose(1, 2)
        (features,) = self.backbone(steps.reshape(len(x), 1, self.side, self.side))
        y = self.head(features.mean(3).flatten(1)).view(len(x), self.variables, self.horizon)
        return self.revin.back(y, scale)

    def example_input(self, batch: int = 1) -> Tensor:
        """Random series."""
        like = next(self.parameters())
        draw = torch.Generator().manual_seed(0)
        return torch.randn(batch, self.variables, self.context, generator=draw).to(like)


register(
    paper="unireplknet",
    kind="signal",
    build=UniRepLKNetSeries,
    variants={f"unireplknet_{size}_series": {"size": size} for size in ("a", "f", "p", "n", "t", "s")},
    input_size=None,
    task="forecasting",
    recipe={"lr": 5e-4, "batch_size": 32, "epochs": 10, "patience": 3},
)
