r"""Swin UNETR (Hatamizadeh et al. 2022; arXiv 2201.01266), a U-shaped network for volumes.

A Swin transformer in three dimensions encodes the volume at strides 2 to 32 (Fig. 1). In each stage two blocks attend inside
windows of 7x7x7 tokens, the second in windows displaced by half their size (Eq. 1),

.. math:: \hat z = \mathrm{(S)W\text{-}MSA}(\mathrm{LN}(z)) + z, \qquad z' = \mathrm{MLP}(\mathrm{LN}(\hat z)) + \hat z,

.. math:: \mathrm{Attention}(Q, K, V) = \mathrm{softmax}(QK^\top / \sqrt d + B)\,V,

with a learnt bias B for each relative position, and ends by merging 2x2x2 cells. Each of the five maps passes a residual block
of convolutions and joins the decoder, which doubles the resolution with transposed convolutions up to the input's.

Three orders of the merged cell are in use. ``legacy`` takes two octants twice and two never; it is what all published weights
were trained with, and the default. ``fixed`` is MONAI's since 1.5 and ``mergingv2`` the binary order. Names are MONAI's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from offprint.errors import OffprintError, unknown
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.nn import DropPath, cosine_schedule, drop_path_rates
from offprint.nn.sliding import sliding_window
from offprint.nn.windows import attend, join, relative_position_index, split, windows

ORDERS = {
    "legacy": ("000", "100", "010", "001", "101", "010", "001", "111"),
    "fixed": ("000", "100", "010", "001", "110", "101", "011", "111"),
    "mergingv2": ("000", "001", "010", "011", "100", "101", "110", "111"),
}
PLANE = ("00", "10", "01", "11")
_CONV = {2: nn.Conv2d, 3: nn.Conv3d}
_UP = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


# -- windows ---------------------------------------------------------------------------------------------------------
def _clamp(sides: tuple[int, ...], window: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift per axis: an axis no longer than the window becomes one window and is not shifted."""
    size = tuple(min(s, window) for s in sides)
    return size, tuple(0 if s <= window else window // 2 for s in sides)


class WindowAttention(nn.Module):
    """Attention inside windows with a relative position bias.

    For a clamped window the bias is that of the first n tokens of a full one, in raster order. Geometrically that is not the
    smaller window, but it is what the published weights were trained with.
    """

    def __init__(self, dim: int, heads: int, window: int, spatial_dims: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** spatial_dims, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index((window,) * spatial_dims))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, windows, tokens, C) to the same."""
        b, windows, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b * windows, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index[:n, :n].reshape(-1)]
        bias = bias.t().reshape(self.heads, n, n)
        return self.proj(attend(q, k, v, bias, mask)).view(b, windows, n, c)


class MLP(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.gelu(self.linear1(x)))


class SwinBlock(nn.Module):
    """Eq. 1: attention in plain (``shifted=False``) or displaced windows, then the MLP."""

    def __init__(self, dim: int, heads: int, window: int, spatial_dims: int, shifted: bool, drop_path: float):
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window, spatial_dims)
        self.mlp = MLP(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *sides, C) to the same. Zeros added after the norm take part in attention, as in the weights' training."""
        window, shift = _clamp(tuple(x.shape[1:-1]), self.window)
        cut = windows(x.shape[1:-1], window, shift if self.shifted else (0,) * len(window), x.device, x.dtype)
        x = x + self.drop_path(join(self.attn(split(self.norm1(x), cut), cut.mask), cut))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """2x2x2 cells onto the channels, norm, linear to twice the channels."""

    def __init__(self, dim: int, spatial_dims: int, order: str):
        super().__init__()
        self.order = PLANE if spatial_dims == 2 else ORDERS[order]
        cells = 2**spatial_dims * dim
        self.reduction = nn.Linear(cells, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(cells)

    def forward(self, x: Tensor) -> Tensor:
        odd = [s % 2 for s in x.shape[1:-1]]
        if any(odd):
            x = F.pad(x, (0, 0, *itertools.chain.from_iterable((0, p) for p in reversed(odd))))
        cells = [x[(slice(None), *(slice(int(o), None, 2) for o in offset))] for offset in self.order]
        return self.reduction(self.norm(torch.cat(cells, -1)))


class Stage(nn.Module):
    """Two Swin blocks and a merging; channels first in and out."""

    def __init__(
        self, dim: int, depth: int, heads: int, window: int, spatial_dims: int, order: str, rates, shift: bool
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, spatial_dims, shift and i % 2 == 1, rates[i]) for i in range(depth)
        )
        self.downsample = PatchMerging(dim, spatial_dims, order)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        again = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = recompute(block, x, use_reentrant=False) if again else block(x)
        return self.downsample(x).movedim(-1, 1)


# -- convolutions ----------------------------------------------------------------------------------------------------
class _Wrapped(nn.Module):
    """A layer under the name ``conv``, as the files have it."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResBlock(nn.Module):
    """conv, norm, LeakyReLU, conv, norm, plus the input (through a 1x1 convolution where channels change), LeakyReLU."""

    def __init__(self, dim_in: int, dim: int, spatial_dims: int):
        super().__init__()
        conv = _CONV[spatial_dims]
        self.conv1 = _Wrapped(conv(dim_in, dim, 3, padding=1, bias=False))
        self.conv2 = _Wrapped(conv(dim, dim, 3, padding=1, bias=False))
        self.conv3 = _Wrapped(conv(dim_in, dim, 1, bias=False)) if dim_in != dim else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(F.instance_norm(self.conv1(x), eps=1e-5), 0.01)
        y = F.instance_norm(self.conv2(y), eps=1e-5)
        x = x if self.conv3 is None else F.instance_norm(self.conv3(x), eps=1e-5)
        return F.leaky_relu(y + x, 0.01)


class Layer(nn.Module):
    """A residual block under the name ``layer``."""

    def __init__(self, dim_in: int, dim: int, spatial_dims: int):
        super().__init__()
        self.layer = ResBlock(dim_in, dim, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class UpBlock(nn.Module):
    """Double the resolution, join the skip connection, residual block."""

    def __init__(self, dim_in: int, dim: int, spatial_dims: int):
        super().__init__()
        self.transp_conv = _Wrapped(_UP[spatial_dims](dim_in, dim, 2, 2, bias=False))
        self.conv_block = ResBlock(2 * dim, dim, spatial_dims)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv_block(torch.cat([self.transp_conv(x), skip], 1))


# -- the model -------------------------------------------------------------------------------------------------------
class SwinEncoder(nn.Module):
    """Five maps of C, 2C, 4C, 8C and 16C channels at strides 2 to 32."""

    def __init__(
        self, in_chans, feature_size, depths, heads, window, spatial_dims, order, drop_path_rate, use_v2, shift
    ):
        super().__init__()
        c = feature_size
        self.patch_embed = nn.Module()
        self.patch_embed.proj = _CONV[spatial_dims](in_chans, c, 2, 2)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for i, (depth, head) in enumerate(zip(depths, heads, strict=True)):
            own = [next(rates) for _ in range(depth)]
            stage = Stage(c * 2**i, depth, head, window, spatial_dims, order, own, shift)
            setattr(self, f"layers{i + 1}", nn.ModuleList([stage]))
            if use_v2:
                setattr(self, f"layers{i + 1}c", nn.ModuleList([Layer(c * 2**i, c * 2**i, spatial_dims)]))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed.proj(x)
        maps = [x]
        for i in range(1, 5):
            before = getattr(self, f"layers{i}c", None)
            x = getattr(self, f"layers{i}")[0](x if before is None else before[0](x))
            maps.append(x)
        return maps


class SwinUNETR(nn.Module):
    """Volumes (B, in_chans, D, H, W) to logits (B, num_classes, D, H, W); with ``spatial_dims=2`` images.

    Args:
        in_chans: modalities, 4 for BraTS.
        num_classes: output channels, 3 overlapping regions for BraTS.
        feature_size: C, a multiple of 12.
        depths, num_heads: blocks and heads per stage.
        window_size: side of a window in tokens.
        downsample: order of merged cells: ``legacy`` (published weights), ``fixed`` or ``mergingv2``.
        use_v2: a residual block before each stage (SwinUNETR-V2).
        drop_path_rate: stochastic depth of the last block.
        spatial_dims: 3 or 2.
        shift: displace the windows of every second block; ``False`` only to show what that is worth.

    Sides must be multiples of 32, and in training at least one of them 64.
    """

    native = "monai"
    classifier = "out.conv.conv"
    input_layers = ("swinViT.patch_embed.proj", "encoder1.layer.conv1.conv", "encoder1.layer.conv3.conv")
    optional_state = r"relative_position_index$"
    dialects = (
        Dialect("monai-ssl", ((r"^(?!swinViT|encoder|decoder|out)", "swinViT."), (r"\.mlp\.fc([12])\.", r".mlp.linear\1.")),
                ignore=r"^(convTrans3d|rotation_head|contrastive_head|conv\.|mask_token|norm\.)", part=r"^swinViT\."),
    )  # fmt: skip

    def __init__(
        self,
        in_chans: int = 4,
        num_classes: int = 3,
        feature_size: int = 48,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        downsample: str = "legacy",
        use_v2: bool = False,
        drop_path_rate: float = 0.0,
        spatial_dims: int = 3,
        shift: bool = True,
    ):
        super().__init__()
        if downsample not in ORDERS:
            raise unknown("order of merging", downsample, ORDERS)
        if spatial_dims not in (2, 3):
            raise OffprintError(f"spatial_dims={spatial_dims}; choose 2 or 3")
        if feature_size % 12:
            raise OffprintError(f"feature_size={feature_size} is not a multiple of 12, which the heads need")
        c, n = feature_size, spatial_dims
        self.in_chans, self.num_classes, self.spatial_dims = in_chans, num_classes, n
        self.swinViT = SwinEncoder(
            in_chans, c, depths, num_heads, window_size, n, downsample, drop_path_rate, use_v2, shift
        )
        self.encoder1, self.encoder2 = Layer(in_chans, c, n), Layer(c, c, n)
        self.encoder3, self.encoder4 = Layer(2 * c, 2 * c, n), Layer(4 * c, 4 * c, n)
        self.encoder10 = Layer(16 * c, 16 * c, n)
        self.decoder5, self.decoder4 = UpBlock(16 * c, 8 * c, n), UpBlock(8 * c, 4 * c, n)
        self.decoder3, self.decoder2 = UpBlock(4 * c, 2 * c, n), UpBlock(2 * c, c, n)
        self.decoder1 = UpBlock(c, c, n)
        self.out = nn.Module()
        self.out.conv = _Wrapped(_CONV[n](c, num_classes, 1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: the Swin blocks' activations are made again in the backward pass."""
        for module in self.swinViT.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    def example_input(self, batch: int = 1) -> Tensor:
        """A random cube (or square) of side 64."""
        weight = self.out.conv.conv.weight
        return torch.randn(batch, self.in_chans, *[64] * self.spatial_dims, device=weight.device, dtype=weight.dtype)

    def check_input(self, x: Tensor) -> None:
        """Refuse sides that are not multiples of 32, and a single bottleneck voxel in training."""
        sides = tuple(x.shape[2:])
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_chans:
            shape = ", ".join("DHW"[-self.spatial_dims :])
            raise OffprintError(f"expected (B, {self.in_chans}, {shape}), got {tuple(x.shape)}")
        if any(s % 32 or not s for s in sides):
            near = tuple(max(32, round(s / 32) * 32) for s in sides)
            raise OffprintError(f"sides must be multiples of 32, got {sides}; crop or pad to {near}, or call segment()")
        if all(s == 32 for s in sides):
            raise OffprintError(
                f"{sides} leaves one voxel at the bottleneck, which cannot be normalised; make one side 64"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        maps = [F.layer_norm(m.movedim(1, -1), m.shape[1:2]).movedim(-1, 1) for m in self.swinViT(x)]
        y = self.decoder5(self.encoder10(maps[4]), maps[3])
        y = self.decoder4(y, self.encoder4(maps[2]))
        y = self.decoder3(y, self.encoder3(maps[1]))
        y = self.decoder2(y, self.encoder2(maps[0]))
        return self.out.conv(self.decoder1(y, self.encoder1(x)))

    @torch.no_grad()
    def segment(
        self, volume: Tensor, roi: int | Sequence[int] = 128, overlap: float = 0.5, sigma: float | None = None
    ) -> Tensor:
        """Logits of a volume of any size, window by window as the paper predicts (overlap 0.5 in validation, 0.6 in tests).

        Args:
            volume: (B, in_chans, D, H, W).
            roi: sides of a window, multiples of 32.
            overlap, sigma: see :func:`~offprint.nn.sliding.sliding_window`.
        """
        roi = (roi,) * self.spatial_dims if isinstance(roi, int) else roi
        return sliding_window(self, volume, roi, overlap, sigma=sigma)


# -- the recipe's pieces ---------------------------------------------------------------------------------------------
def brats_regions(labels: Tensor) -> Tensor:
    """BraTS labels (1 necrosis, 2 oedema, 4 enhancing) to regions (3, ...): tumour core, whole tumour, enhancing.

    Args:
        labels: (D, H, W), or with one channel (1, D, H, W).
    """
    labels = labels[0] if labels.ndim == 4 and labels.shape[0] == 1 else labels
    one, two, four = (labels == v for v in (1, 2, 4))
    return torch.stack([one | four, one | two | four, four])


def brats_labels(logits: Tensor) -> Tensor:
    """Logits (3, ...) back to labels (...): whole tumour painted 2, core 1 over it, enhancing 4 over both."""
    core, whole, enhancing = torch.sigmoid(logits) > 0.5
    labels = torch.zeros_like(core, dtype=torch.long)
    labels[whole], labels[core], labels[enhancing] = 2, 1, 4
    return labels


def normalize_nonzero(image: Tensor) -> Tensor:
    """Per channel, z-score over the voxels that are not zero (population deviation); zeros stay zero. (C, ...) to the same."""
    out = image.clone()
    for channel in out:
        inside = channel != 0
        values = channel[inside]
        if len(values):
            std = values.std(correction=0)
            channel[inside] = (values - values.mean()) / (std if std > 0 else 1)
    return out


def warmup_cosine(base_lr: float, warmup_epochs: int, max_epochs: int) -> list[float]:
    """Learning rate of each epoch: linear from 0 over the warm-up, then a cosine to 0."""
    return cosine_schedule(base_lr, 0.0, max_epochs, warmup_epochs)


_SIZES = {"base": 48, "small": 24, "tiny": 12}
VARIANTS = {f"swin_unetr_{n}": {"feature_size": c} for n, c in _SIZES.items()} | {
    f"swin_unetr_v2_{n}": {"feature_size": c, "use_v2": True, "downsample": "mergingv2"} for n, c in _SIZES.items()
}
_RELEASE = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1"
_CT = {
    "orientation": "RAS",
    "spacing": (1.5, 1.5, 2.0),
    "intensity": (-175.0, 250.0),
}  # mm; HU scaled to 0 to 1, clipped
_BTCV = {"num_classes": 14, "input_size": (1, 96, 96, 96), "preprocessing": _CT}
_PAGE = "Project-MONAI/research-contributions@07c7070 SwinUNETR"


def _btcv(file: str, half: float, most: float) -> Weights:
    """Dice (%) of a model for BTCV's 13 organs, windows overlapping by half, and by 0.7."""
    return Weights(
        f"{_RELEASE}/{file}.pt", "authors", "monai", "Apache-2.0", **_BTCV, class_map="btcv",
        metrics={"btcv": {"dice": half, "dice_overlap_0.7": most}}, metrics_source=f"{_PAGE}/BTCV/README.md",
    )  # fmt: skip


_FOLDS = (88.54, 90.59, 89.81, 89.24, 90.35)  # mean Dice (%) of the three regions on the fold left out
WEIGHTS = {
    "swin_unetr_base": {
        f"brats21_fold{i}": Weights(
            f"{_RELEASE}/fold{i}_f48_ep300_4gpu_dice0_{round(100 * dice)}.zip", "authors", "monai", "Apache-2.0",
            input_size=(4, 128, 128, 128), preprocessing={"normalize": "nonzero voxels of each channel"}, class_map="brats",
            metrics={"brats21": {"dice": dice}}, metrics_source=f"{_PAGE}/BRATS21/README.md",
        )
        for i, dice in enumerate(_FOLDS)
    }
    | {
        "btcv": _btcv("swin_unetr.base_5000ep_f48_lr2e-4_pretrained", 81.86, 82.25),
        "monai_btcv": Weights(
            "https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/"
            "model_swin_unetr_btcv_segmentation_v1.pt", "monai", "monai", "Apache-2.0", **_BTCV, class_map="btcv",
            metrics={"btcv": {"dice": 82.0}}, metrics_source="MONAI model zoo swin_unetr_btcv_segmentation, as 0.82",
        ),
        "ssl": Weights(f"{_RELEASE}/model_swinvit.pt", "authors", "monai-ssl", "Apache-2.0", input_size=(1, 96, 96, 96),
                       preprocessing=_CT),
    },
    "swin_unetr_small": {"btcv": _btcv("swin_unetr.small_5000ep_f24_lr2e-4_pretrained", 79.34, 79.79)},
    "swin_unetr_tiny": {"btcv": _btcv("swin_unetr.tiny_5000ep_f12_lr2e-4_pretrained", 70.35, 72.05)},
}  # fmt: skip
_ADAMW = {
    "optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-5, "warmup_epochs": 50, "min_lr": 0.0, "batch_size": 1,
}  # fmt: skip
RECIPES = {
    "training": {
        **_ADAMW, "epochs": 300, "crop": (128, 128, 128), "normalize": "nonzero", "loss": "dice", "data": "BraTS 2021",
    },
    "btcv": {
        **_ADAMW, "epochs": 5000, "crop": (96, 96, 96), "normalize": "window", **_CT, "loss": "dice+ce", "turn": True,
        "data": "BTCV",
    },
}  # fmt: skip
register(paper="swin-unetr", kind="segmentation", task="volumes", build=SwinUNETR, variants=VARIANTS, input_size=(4, 128, 128, 128),
         preprocessing={}, weights=WEIGHTS, recipes=RECIPES)  # fmt: skip
