"""UniRepLKNet behind the inputs of :mod:`offprint.models.backbones._unireplknet_inputs`: one network for other data than images.

Each class here turns its input into a map, runs the image backbone unchanged, and reads the last map or its mean.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbones._unireplknet_inputs import (
    FRAMES,
    FUSION_RENAMES,
    MEL_BINS,
    SAMPLE_RATE,
    PointProjection,
    audio_fbank,
    audio_spectrogram,
    audio_to_map,
    video_to_map,
)
from offprint.models.backbones.unireplknet import VARIANTS, UniRepLKNet, default_kernels
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register

SIDE = 192  # of the map of the paper's series, 48 steps of 4 rows


def network(size: str, in_chans: int, num_classes: int = 0, last_kernel: int = 13, **options: Any) -> UniRepLKNet:
    """The backbone of a size; ``last_kernel`` is that of stage 4, ``options`` are its own."""
    if f"unireplknet_{size}" not in VARIANTS:
        raise unknown("size of UniRepLKNet", size, [name.removeprefix("unireplknet_") for name in VARIANTS])
    row = {**VARIANTS[f"unireplknet_{size}"], **options}
    if row.get("kernel_sizes") is None:
        row["kernel_sizes"] = (*default_kernels(row["depths"])[:-1], last_kernel)
    return UniRepLKNet(in_chans, num_classes, **row)


def last_map(size: str, in_chans: int, last_kernel: int = 13, **options: Any) -> UniRepLKNet:
    """The backbone of a size, giving a list of its last map alone."""
    made = network(size, in_chans, 0, last_kernel, **options)
    made.as_features((-1,))
    return made


class UniRepLKNetAudio(nn.Module):
    """Sounds by their spectrograms: the backbone on one channel, LayerNorm and a linear layer on its pooled features.

    The authors train it with a binary cross-entropy on each class, on waveforms mixed by
    :func:`~offprint.models.backbones._unireplknet_inputs.mix_waveforms`, with ``mask_fbank`` before the normalisation and
    ``jitter_spectrogram`` behind it.

    Args:
        num_classes: 35 in Speech Commands V2.
        size: of the backbone, as in ``unireplknet_SIZE``.
        **options: of the backbone.
    """

    native = "offprint"
    classifier = "mlp_head.1"

    def __init__(self, num_classes: int = 35, size: str = "s", **options: Any):
        super().__init__()
        self.num_classes = num_classes
        self.backbone = network(size, 1, **options)
        self.mlp_head = nn.Sequential(
            nn.LayerNorm(self.backbone.num_features), nn.Linear(self.backbone.num_features, num_classes)
        )

    @staticmethod
    def listen(waveform: Tensor, sample_rate: int = SAMPLE_RATE) -> Tensor:
        """Waveforms (B, samples) at 16 kHz to normalised spectrograms (B, 128, 128) of their first 1.3 s."""
        return audio_spectrogram(audio_fbank(waveform, MEL_BINS, sample_rate))

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Normalised spectrograms (B, time, mel) to logits (B, num_classes)."""
        return self.mlp_head(self.backbone(audio_to_map(spectrogram)))

    def example_input(self, batch: int = 1) -> Tensor:
        """Random spectrograms."""
        return _random(self, batch, FRAMES, MEL_BINS)


class UniRepLKNetVideo(nn.Module):
    """Clips read as larger images: 16 frames (B, 3, 16, H, W) as (B, 3, 4 H, 4 W); the stage-4 kernels are 11.

    The paper tests with the mean over 5 segments of a film and 3 crops of each.

    Args:
        num_classes: 400 in Kinetics-400.
        size: of the backbone, as in ``unireplknet_SIZE``.
        in_chans: channels of a frame.
        **options: of the backbone.
    """

    native = "offprint"
    classifier = "backbone.head"

    def __init__(self, num_classes: int = 400, size: str = "b", in_chans: int = 3, **options: Any):
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.backbone = network(size, in_chans, num_classes, 11, **options)

    def forward(self, video: Tensor) -> Tensor:
        """Clips (B, C, T, H, W), T a square number, to logits (B, num_classes)."""
        return self.backbone(video_to_map(video))


class _PointHead(nn.Module):
    """The maps of all views of a cloud, mean over places, LayerNorm, and a linear layer."""

    def __init__(self, width: int, num_views: int, num_classes: int):
        super().__init__()
        self.num_views = num_views
        self.norm = nn.LayerNorm(width * num_views)
        self.cls_head = nn.Linear(width * num_views, num_classes)

    def forward(self, maps: Tensor) -> Tensor:
        """(B V, C, h, w) to logits (B, num_classes)."""
        return self.cls_head(self.norm(maps.mean((2, 3)).unflatten(0, (-1, self.num_views)).flatten(1)))


class UniRepLKNetPoints(nn.Module):
    """Point clouds by images of several views, coloured by learnt features: the released ModelNet40 network.

    Args:
        num_classes: 40 in ModelNet40.
        size: of the backbone, as in ``unireplknet_SIZE``.
        img_size, num_views, local_size, fusion: see :class:`PointProjection`.
        **options: of the backbone.
    """

    native = "offprint"
    classifier = "cls_head.cls_head"
    dialects = (Dialect("authors", FUSION_RENAMES, ignore=r"^views$|^base_model\.(norm|head)\."),)
    optional_state = r"^base_model\.norm\d\."

    def __init__(
        self,
        num_classes: int = 40,
        size: str = "s",
        img_size: int = 224,
        num_views: int = 4,
        local_size: int = 32,
        fusion: bool = True,
        **options: Any,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.enc = PointProjection(img_size, num_views, local_size, fusion=fusion)
        self.base_model = last_map(size, 3, **options)
        self.cls_head = _PointHead(self.base_model.num_features, num_views, num_classes)

    def forward(self, points: Tensor) -> Tensor:
        """Clouds (B, N, 3) to logits (B, num_classes)."""
        (maps,) = self.base_model(self.enc(points))
        return self.cls_head(maps)

    def example_input(self, batch: int = 1) -> Tensor:
        """Random points in a box."""
        return _random(self, batch, max(256, self.enc.local_size), 3)


def _random(model: nn.Module, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()))


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
        (features,) = self.backbone(steps.reshape(x.shape[0], 1, self.side, self.side))
        y = self.head(features.mean(3).flatten(1)).view(x.shape[0], self.variables, self.horizon)
        return self.revin.back(y, scale)

    def example_input(self, batch: int = 1) -> Tensor:
        """Random series."""
        return _random(self, batch, self.variables, self.context)


class StationEncoder(nn.Module):
    """The encoder of the paper's global forecasts: each weather station's 48 hours as a map of 192 on a side.

    It stands in Corrformer's frame, whose one-layer decoder reads the tokens it gives; that decoder, its decomposition by moving
    averages and its 350 stations in 7 groups of 50 are Corrformer's own and not here. Series are normalised by
    :class:`WindowNorm` before, and what the frame forecasts goes back through it.

    Args:
        variables: of a station; 11.
        time_features: of an hour; 4.
        width: of a step's embedding; with 48 steps 768 fill the map.
        steps: hours that are read.
        size: of the backbone, as in ``unireplknet_SIZE``.
        **options: of the backbone.
    """

    native = "offprint"

    def __init__(
        self,
        variables: int = 11,
        time_features: int = 4,
        width: int = 768,
        steps: int = 48,
        size: str = "s",
        **options: Any,
    ):
        super().__init__()
        self.side = math.isqrt(steps * width)
        if self.side**2 != steps * width:
            raise OffprintError(
                f"{steps} steps of width {width} fill no square map; give steps * width a square, such as 48 * 768"
            )
        self.steps, self.width = steps, width
        self.value = nn.Conv1d(variables, width, 3, padding=1, padding_mode="circular", bias=False)
        self.time = nn.Linear(time_features, width, bias=False)
        self.place = nn.Linear(3, width)
        self.backbone = last_map(size, 1, 11, **options)
        if self.backbone.num_features != width:
            raise OffprintError(
                f"the last map has {self.backbone.num_features} channels, the tokens need {width}; choose size or width so that "
                "they agree"
            )

    def forward(self, series: Tensor, time: Tensor, place: Tensor) -> Tensor:
        """Tokens for the decoder, (stations, side^2 / 1024, width).

        Args:
            series: (stations, steps, variables), normalised.
            time: (stations, steps, time_features).
            place: (stations, 3), latitude, longitude and height, standardised over the stations.
        """
        if tuple(series.shape[1:]) != (self.steps, self.value.in_channels):
            raise OffprintError(
                f"expected series of shape (stations, {self.steps}, {self.value.in_channels}), got {tuple(series.shape)}"
            )
        embedded = self.value(series.transpose(1, 2)).transpose(1, 2) + self.time(time) + self.place(place)[:, None]
        (maps,) = self.backbone(embedded.reshape(series.shape[0], 1, self.side, self.side))
        return maps.reshape(series.shape[0], -1, self.width)  # the memory is read anew: a token is no place of the map


# Speech Commands: lr * 0.85 per epoch from the 5th on
_AUDIO = {
    "optimizer": "adam", "lr": 2.5e-4, "betas": (0.95, 0.999), "weight_decay": 5e-7, "batch_size": 128, "epochs": 100,
    "schedule": "step", "decay_rate": 0.85, "warmup_epochs": 0, "drop_path_rate": 0.4, "data": "speech-commands-v2",
}  # fmt: skip
_VIDEO = {
    "optimizer": "adamw",
    "lr": 4e-3,
    "weight_decay": 0.05,
    "epochs": 90,
    "drop_path_rate": 0.4,
    "data": "kinetics-400",
}
register(
    paper="unireplknet",
    kind="signal",
    build=UniRepLKNetAudio,
    variants={"unireplknet_s_audio": {}},
    input_size=None,
    recipe=_AUDIO,
)
register(
    paper="unireplknet",
    kind="signal",
    build=UniRepLKNetVideo,
    variants={"unireplknet_b_video": {}},
    input_size=(3, 16, 224, 224),
    recipe=_VIDEO,
)
register(
    paper="unireplknet",
    kind="signal",
    build=UniRepLKNetPoints,
    variants={"unireplknet_s_points": {}},
    input_size=None,
)
register(
    paper="unireplknet",
    kind="signal",
    build=UniRepLKNetSeries,
    variants={f"unireplknet_{size}_series": {"size": size} for size in ("a", "f", "p", "n", "t", "s")},
    input_size=None,
    task="forecasting",
    recipe={"lr": 5e-4, "batch_size": 32, "epochs": 10, "patience": 3},
)
