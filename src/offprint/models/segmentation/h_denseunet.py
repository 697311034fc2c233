r"""H-DenseUNet (Li et al. 2018; IEEE TMI 37(12), arXiv 1709.07330), liver and tumours from CT: slices first, then the volume.

A DenseNet-161 with a decoder segments each slice i from the three slices i-1, i, i+1 (edges repeat). Its logits c, stacked into a
volume, join the image V as the input of a slim network in three dimensions, and the last features of both are fused (Sec. II-D):

.. math:: f_{3d} = F_{3d}([V, 250\, c_{2d}]), \qquad y = W\, \mathrm{ReLU}(\mathrm{BN}(K * (f_{3d} + f_{2d}))).

All convolutions of the encoders stand behind "BSR": BatchNorm, a second affine map of its own (Caffe's Scale), ReLU.

The paper draws U-Net connections, which add an encoder's map before each convolution of the 2-D decoder. The code that the released
weights were trained with has none (its author confirms it), so ``unet_connections`` is False for ``h_denseunet_released`` and
``denseunet161_2d_released``, and True for the two networks as the paper has them. In three dimensions neither has any.

Volumes are (B, C, H, W, D), the slices last. The author's files are Keras HDF5; :func:`read_keras` opens one, and the reader takes the
names of Keras flat or nested, in their layouts or in PyTorch's. A file of the 2-D network, also torchvision's DenseNet-161, starts the
2-D branch of a hybrid; the report says what was left as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, DataError, OffprintError, need, unknown
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn import reparam

_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, Any] = {2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX: dict[int, Any] = {2: F.max_pool2d, 3: F.max_pool3d}
ENCODER_EPS, DECODER_EPS = 1.1e-5, 1e-3
LOGIT_SCALE = 250.0  # of the 2-D logits beside intensities of some hundred Hounsfield units


# -- blocks -----------------------------------------------------------------------------------------------------------
class Scale(nn.Module):
    """Factor and summand of each channel; :class:`BSR` applies them together with the norm's own."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))


class BSR(nn.Module):
    """BatchNorm, Scale, ReLU. The two affine maps are one, so that the map is passed once."""

    def __init__(self, dim: int, ndim: int):
        super().__init__()
        self.norm, self.scale = _NORM[ndim](dim, eps=ENCODER_EPS), Scale(dim)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the norm and the scale together."""
        gamma = self.scale.weight
        return self.norm.weight * gamma, self.norm.bias * gamma + self.scale.bias

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        weight, bias = self.affine()
        mean, var = norm.running_mean, norm.running_var
        return F.relu_(F.batch_norm(x, mean, var, weight, bias, norm.training, norm.momentum, norm.eps))


class DenseLayer(nn.Module):
    """BSR, 1x1 convolution to four times the growth, BSR, 3x3 convolution to the growth."""

    def __init__(self, dim: int, growth: int, ndim: int):
        super().__init__()
        conv = _CONV[ndim]
        self.bsr1, self.conv1 = BSR(dim, ndim), conv(dim, 4 * growth, 1, bias=False)
        self.bsr2: BSR | None = BSR(4 * growth, ndim)
        self.conv2 = conv(4 * growth, growth, 3, padding=1, bias=False)

    def merge(self) -> None:
        """Fold the second BSR's norm and scale into the convolution before it."""
        if self.bsr2 is None:
            return
        if self.training:
            raise OffprintError("the layer is in training mode; call eval() before it is merged")
        weight, bias = self.bsr2.affine()
        norm = self.bsr2.norm
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
        kernel, shift = reparam.fold(self.conv1.weight, None, norm)
        self.conv1.weight, self.conv1.bias = nn.Parameter(kernel), nn.Parameter(shift)
        self.bsr2 = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the new channels (B, growth, ...)."""
        y = self.conv1(self.bsr1(x))
        return self.conv2(F.relu_(y) if self.bsr2 is None else self.bsr2(y))


class Transition(nn.Module):
    """BSR, 1x1 convolution to half the channels, average pool."""

    def __init__(self, dim: int, ndim: int):
        super().__init__()
        self.bsr, self.conv = BSR(dim, ndim), _CONV[ndim](dim, dim // 2, 1, bias=False)
        self.ndim, self.pool_first = ndim, False

    def merge(self) -> None:
        """Pool before the convolution: the average of a linear map is the map of the average, at a quarter of the products."""
        self.pool_first = True

    def forward(self, x: Tensor) -> Tensor:
        pool, sides, x = _POOL[self.ndim], (2, 2, 1)[: self.ndim], self.bsr(x)
        return self.conv(pool(x, sides)) if self.pool_first else pool(self.conv(x), sides)


class Up(nn.Module):
    """Nearest enlargement, what a U-Net connection adds, 3x3 convolution, BatchNorm, ReLU."""

    fold_pairs = (("conv", "norm"),)

    def __init__(self, dim_in: int, dim: int, factor: tuple[int, ...], drop_rate: float = 0.0):
        super().__init__()
        ndim = len(factor)
        self.conv, self.norm = _CONV[ndim](dim_in, dim, 3, padding=1), _NORM[ndim](dim, eps=DECODER_EPS)
        self.factor, self.drop_rate = tuple(float(f) for f in factor), drop_rate

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        x = self.conv(x if skip is None else x + skip)
        return F.relu_(self.norm(F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x))


def _glorot(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _halvings(ndim: int) -> list[tuple[int, ...]]:
    """Factors of the five enlargements: slices are halved by the stem alone."""
    return [(2, 2)] * 5 if ndim == 2 else [(2, 2, 1)] * 3 + [(2, 2, 2)] * 2


# -- names of files ---------------------------------------------------------------------------------------------------
_KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _layer(name: str) -> tuple[str, str, bool]:
    """Layer and tensor of a name: Keras' path (``denseu161/conv1/kernel:0``, nested or not) or PyTorch's; whether the layout is Keras'."""
    if "/" not in name:
        layer, _, kind = name.rpartition(".")
        return layer, kind, False
    *path, last = name.removesuffix(":0").split("/")
    for kind in ("moving_mean", "moving_variance", "kernel", "gamma", "beta", "bias"):
        if last == kind:
            return path[-1], _KINDS.get(kind, kind), True
        if last.endswith(f"_{kind}"):  # of the Scale layers
            return last.removesuffix(f"_{kind}"), _KINDS.get(kind, kind), True
    raise KeyError(name)


_ROOTS = {
    "dense167classifer": "plane.out", "3dclassifer": "volume.out", "fianl_conv": "fusion.conv",
    "final_bn": "fusion.norm", "2d3dclassifer": "out",
}  # fmt: skip
_PLACES = (
    (r"^(conv1|line0)$", r"\1"),
    (r"^conv1_(bn|scale)$", r"bsr1.\1"),
    (r"^conv5_blk_(bn|scale)$", r"bsr5.\1"),
    (r"^conv_up(\d)$", r"up.\1.conv"),
    (r"^bn_up(\d)$", r"up.\1.norm"),
)


def _inside(layer: str) -> str:
    """Our name of a Keras layer inside a branch."""
    if found := re.fullmatch(r"conv(\d)_(\d+)_x([12])(?:_(bn|scale))?", layer):
        stage, number, half, kind = found.groups()
        return f"blocks.{int(stage) - 2}.{int(number) - 1}.{f'bsr{half}.{kind}' if kind else f'conv{half}'}"
    if found := re.fullmatch(r"conv([234])_blk(?:_(bn|scale))?", layer):
        stage, kind = found.groups()
        return f"transitions.{int(stage) - 2}.{f'bsr.{kind}' if kind else 'conv'}"
    for pattern, ours in _PLACES:
        if re.search(pattern, layer):
            return re.sub(pattern, ours, layer)
    raise KeyError(layer)


def _from_keras(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names of the hybrid; the 2-D network's are those of ``plane``."""
    out = {}
    for name, value in state.items():
        layer, kind, keras = _layer(name)
        if keras and kind == "weight" and value.ndim > 2:  # (H, W[, D], in, out)
            value = value.permute(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2)).contiguous()
        if layer in _ROOTS:
            ours = _ROOTS[layer]
        else:
            ours = f"volume.{_inside(layer[2:])}" if layer.startswith("3d") else f"plane.{_inside(layer)}"
        out[f"{re.sub(r'[.]bn$', '.norm', ours)}.{kind}"] = value
    return out


def _whole(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    out = _from_keras(state)
    if not any(n.startswith(("volume.", "fusion.")) for n in out):
        raise ValueError("a file of the 2-D network")
    return out


def _plane(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    out = _from_keras(state)
    if any(not n.startswith("plane.") for n in out):
        raise ValueError("a file of more than the 2-D network")
    return out


def _bare(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Into a 2-D network: a file of it, or the 2-D branch of a hybrid's."""
    out = _from_keras(state)
    return {n.removeprefix("plane."): v for n, v in out.items() if n.startswith("plane.")}


def _encoder(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    out = _bare(state, model)
    if any(n.startswith(("up.", "out.")) for n in out):
        raise ValueError("a file with a decoder")
    return out


_TORCHVISION = (
    (r"^features\.conv0\.", "conv1."),
    (r"^features\.norm0\.", "bsr1.norm."),
    (r"^features\.norm5\.", "bsr5.norm."),
    (r"^features\.denseblock1\.", "blocks.0."), (r"^features\.denseblock2\.", "blocks.1."),
    (r"^features\.denseblock3\.", "blocks.2."), (r"^features\.denseblock4\.", "blocks.3."),
    *((rf"^(blocks\.\d)\.denselayer{i}\.", rf"\1.{i - 1}.") for i in range(1, 37)),
    (r"\.norm\.?([12])\.", r".bsr\1.norm."), (r"\.conv\.([12])\.", r".conv\1."),
    *((rf"^features\.transition{i}\.norm\.", f"transitions.{i - 1}.bsr.norm.") for i in (1, 2, 3)),
    *((rf"^features\.transition{i}\.conv\.", f"transitions.{i - 1}.conv.") for i in (1, 2, 3)),
)  # fmt: skip
_OF_ENCODER = r"(conv1|bsr1|bsr5|blocks|transitions)\."
_UNSCALED = rf"^{_OF_ENCODER}(?!.*scale)"  # torchvision's has no Scale layers: they stay the identity
_IGNORED = r"^classifier\.|^fc6?[./]|/fc6?/"


def _shifted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return {f"plane.{n}": v for n, v in state.items()}


def _own_plane(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    if any(n.startswith(("plane.", "volume.", "features.")) for n in state):
        raise ValueError("not a file of the 2-D network")
    return _shifted(state, model)


_DIALECTS_2D = (
    Dialect("keras", reshape=_bare),
    Dialect("keras-imagenet", ignore=_IGNORED, reshape=_encoder, part=rf"^{_OF_ENCODER}"),
    Dialect("torchvision", _TORCHVISION, ignore=_IGNORED, part=_UNSCALED),
)
_DIALECTS_HYBRID = (
    Dialect("keras", reshape=_whole),
    Dialect("keras-2d", ignore=_IGNORED, reshape=_plane, part=r"^plane\."),
    Dialect("offprint-2d", reshape=_own_plane, part=r"^plane\."),
    Dialect(
        "torchvision", _TORCHVISION, ignore=_IGNORED, reshape=_shifted, part=_UNSCALED.replace("^", r"^plane\.", 1)
    ),
)


# -- the networks -----------------------------------------------------------------------------------------------------
class DenseUNet(nn.Module):
    """Slices (B, in_chans, H, W) to logits (B, num_classes, H, W); with ``ndim=3`` the network for volumes (B, C, H, W, D).

    Args:
        in_chans: 3 are the slices before, of, and after the one that is segmented.
        num_classes: outputs: background, liver, tumour.
        unet_connections: add the encoder's maps in the decoder (the paper, and the author's ``denseunet.py``).
        layers: of the dense blocks.
        growth: channels that a layer adds.
        stem: channels of the first convolution.
        up: channels of the decoder; ``()`` for those of the encoder's maps, then twice the stem's, then 64.
        drop_rate: of the last map but one, in training.
        ndim: 2 or 3.

    Sides must be multiples of 32, the number of slices one of 4.
    """

    native, classifier, input_layers = "offprint", "out", ("conv1",)
    dialects = _DIALECTS_2D
    takes_slices = True  # a volume can be given slice by slice, each with its neighbours
    size_multiple = 32

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 3,
        unet_connections: bool = True,
        layers: tuple[int, ...] = (6, 12, 36, 24),
        growth: int = 48,
        stem: int = 96,
        up: tuple[int, ...] = (),
        drop_rate: float = 0.3,
        ndim: int = 2,
    ):
        super().__init__()
        if ndim not in (2, 3) or len(layers) != 4:
            raise OffprintError(
                f"ndim={ndim}, layers={tuple(layers)}; there are networks of 2 and 3 dimensions, with four blocks"
            )
        if ndim == 3 and unet_connections:
            raise OffprintError("the network for volumes has no U-Net connections; its widths do not allow a sum")
        self.in_chans, self.num_classes, self.ndim, self.unet_connections = (
            in_chans,
            num_classes,
            ndim,
            unet_connections,
        )
        conv, dim = _CONV[ndim], stem
        self.conv1, self.bsr1 = conv(in_chans, stem, 7, 2, 3, bias=False), BSR(stem, ndim)
        self.blocks, self.transitions, widths = nn.ModuleList(), nn.ModuleList(), []
        for i, count in enumerate(layers):
            self.blocks.append(nn.ModuleList(DenseLayer(dim + growth * j, growth, ndim) for j in range(count)))
            dim += growth * count
            widths.append(dim)
            if i < 3:
                self.transitions.append(Transition(dim, ndim))
                dim //= 2
        self.bsr5 = BSR(dim, ndim)
        self.line0 = conv(widths[2], dim, 1) if unet_connections else None
        dims = [dim, *(up or (widths[1], widths[0], stem, stem, 64))]
        drops = (0.0,) * 4 + (drop_rate,)
        self.up = nn.ModuleList(
            Up(a, b, f, d) for a, b, f, d in zip(dims[:-1], dims[1:], _halvings(ndim), drops, strict=True)
        )
        self.num_features = dims[-1]
        self.out = conv(dims[-1], num_classes, 1)
        self.apply(_glorot)
        if ndim == 2:
            for layer in (*(block.conv for block in self.up), self.out):  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, std=0.05)  # type: ignore[arg-type]

    def check_input(self, x: Tensor) -> None:
        """Refuse other channels, and sides that do not halve five times."""
        steps = (32, 32, 4)[: self.ndim]
        if x.ndim != self.ndim + 2 or x.shape[1] != self.in_chans:
            sides = ", ".join("HWD"[: self.ndim])
            raise OffprintError(f"expected (B, {self.in_chans}, {sides}), got {tuple(x.shape)}")
        if any(s % step or not s for s, step in zip(x.shape[2:], steps, strict=True)):
            near = tuple(max(1, math.ceil(s / step)) * step for s, step in zip(x.shape[2:], steps, strict=True))
            raise OffprintError(
                f"sides must be multiples of {steps}, got {tuple(x.shape[2:])}; pad to {near}, or call predict_volume"
            )

    def features(self, x: Tensor) -> Tensor:
        """The last map (B, 64, ...), in the size of the input."""
        x = self.bsr1(self.conv1(x))
        maps = [x]
        x = _MAX[self.ndim](x, 3, 2, 1)
        for i, block in enumerate(self.blocks):
            for layer in block:  # type: ignore[attr-defined]
                x = torch.cat([x, layer(x)], 1)
            if i < 3:
                maps.append(x)
                x = self.transitions[i](x)
        x = self.bsr5(x)
        skips: list[Tensor | None] = [None] * 5
        if self.line0 is not None:
            skips = [self.line0(maps[3]), maps[2], maps[1], maps[0], None]
        for block, skip in zip(self.up, skips, strict=True):
            x = block(x, skip)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        return self.out(self.features(x))

    def example_input(self, batch: int = 1) -> Tensor:
        """Random slices of 64 x 64, or volumes of 64 x 64 x 8."""
        return torch.randn(batch, self.in_chans, *(64, 64, 8)[: self.ndim]).to(self.conv1.weight)

    def volume_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """What the paper trains with: :func:`weighted_cross_entropy`."""
        return weighted_cross_entropy(logits, target, _class_weights(self.num_classes))


class Fusion(nn.Module):
    """3x3x3 convolution, dropout, BatchNorm, ReLU of the sum of both branches' features."""

    fold_pairs = (("conv", "norm"),)

    def __init__(self, dim: int):
        super().__init__()
        self.conv, self.norm = nn.Conv3d(dim, dim, 3, padding=1), nn.BatchNorm3d(dim, eps=DECODER_EPS)
        self.drop_rate = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(F.dropout(self.conv(x), self.drop_rate, self.training)))


STAGES = {  # what is held still: (parameters of the 2-D branch, statistics of these modules), and the head's dropout
    "training": (True, r"^plane\.", 0.1),
    "finetuning": (False, r"^plane\.|^volume\.(blocks|transitions)\.", 0.3),
}


class HDenseUNet(nn.Module):
    """Volumes (B, in_chans, H, W, D) to logits (B, num_classes, H, W, D): 2-D network, 3-D network, hybrid feature fusion.

    Args:
        in_chans: 1 for CT; of several modalities each has its three slices.
        num_classes: background, liver, tumour.
        unet_connections: in the 2-D branch; the released weights have none.
        plane, volume: layers, growth, stem and up of the branches, where they are not the paper's.

    The author's code takes one volume at a time; here a batch is as good.
    """

    native, classifier, input_layers = "offprint", "out", ("plane.conv1", "volume.conv1")
    dialects = _DIALECTS_HYBRID
    size_multiple = (32, 32, 4)

    def __init__(
        self,
        in_chans: int = 1,
        num_classes: int = 3,
        unet_connections: bool = False,
        plane: Mapping[str, Any] | None = None,
        volume: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.in_chans, self.num_classes = in_chans, num_classes
        own = {"layers": (3, 4, 12, 8), "growth": 32, "up": (504, 224, 192, 96, 64)}
        self.plane = DenseUNet(3 * in_chans, num_classes, unet_connections, drop_rate=0.0, **(plane or {}))
        self.volume = DenseUNet(
            in_chans + num_classes, num_classes, False, drop_rate=0.0, ndim=3, **{**own, **(volume or {})}
        )
        if self.plane.num_features != self.volume.num_features:
            raise OffprintError(
                f"the branches end with {self.plane.num_features} and {self.volume.num_features} channels, which are added; give them the same up[-1]"
            )
        self.fusion = Fusion(self.volume.num_features)
        self.out = nn.Conv3d(self.volume.num_features, num_classes, 1)
        self.apply(_glorot)
        self.still = re.compile(r"(?!)")

    def to(self, *args: Any, **kwargs: Any) -> HDenseUNet:
        """As of any module; of the two formats with the channels last each branch takes the one of its dimensions."""
        memory_format = kwargs.pop("memory_format", None)
        if args or kwargs:
            super().to(*args, **kwargs)
        if memory_format in (torch.channels_last, torch.channels_last_3d):
            self.plane.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for part in (self.volume, self.fusion, self.out):
                part.to(memory_format=torch.channels_last_3d)
        elif memory_format is not None:
            super().to(memory_format=memory_format)
        return self

    def set_stage(self, stage: str) -> None:
        """Train as the paper does after the 2-D network: ``training`` holds the 2-D branch still, ``finetuning`` trains all of it.

        In the first the 2-D branch has its own statistics; in the second the dense layers and transitions of the 3-D branch too.
        """
        if stage not in STAGES:
            raise unknown("stage of h-denseunet", stage, STAGES)
        frozen, still, self.fusion.drop_rate = STAGES[stage]
        self.plane.requires_grad_(not frozen)
        self.volume.out.requires_grad_(False)  # no output depends on it
        self.still = re.compile(still)
        self.train(self.training)

    def train(self, mode: bool = True) -> HDenseUNet:
        super().train(mode)
        for name, module in self.named_modules() if mode else ():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) and self.still.search(name):
                module.eval()
        return self

    def check_input(self, x: Tensor) -> None:
        """Refuse what is no volume of whole slices that both branches can take."""
        if x.ndim != 5 or x.shape[1] != self.in_chans:
            raise OffprintError(f"expected (B, {self.in_chans}, H, W, D), the slices last, got {tuple(x.shape)}")
        if any(s % step or not s for s, step in zip(x.shape[2:], self.size_multiple, strict=True)):
            near = tuple(max(1, math.ceil(s / n)) * n for s, n in zip(x.shape[2:], self.size_multiple, strict=True))
            raise OffprintError(
                f"sides must be multiples of {self.size_multiple}, got {tuple(x.shape[2:])}; pad to {near}, or call predict_volume"
            )

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stacked 2-D logits (B, K, H, W, D), and the last features of both branches (B, 64, H, W, D)."""
        b, _, _, _, depth = x.shape
        at = slice_triplets(depth).to(x.device)
        slices = x.movedim(-1, 1)[:, at].flatten(2, 3).flatten(0, 1)  # (B D, 3 C, H, W)
        flat = self.plane.features(slices)
        logits = self.plane.out(flat)
        logits, flat = (v.unflatten(0, (b, depth)).movedim(1, -1) for v in (logits, flat))
        return logits, flat, self.volume.features(torch.cat([x, LOGIT_SCALE * logits], 1))

    def forward_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the fusion, of the slices, and of the 3-D branch, each (B, K, H, W, D)."""
        logits, flat, deep = self.branches(x)
        return self.out(self.fusion(deep + flat)), logits, self.volume.out(deep)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the fusion."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        _, flat, deep = self.branches(x)
        return self.out(self.fusion(deep + flat))

    def example_input(self, batch: int = 1) -> Tensor:
        """Random volumes of 64 x 64 x 8."""
        return torch.randn(batch, self.in_chans, 64, 64, 8).to(self.fusion.conv.weight)

    def volume_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """What the paper trains with: :func:`weighted_cross_entropy`."""
        return weighted_cross_entropy(logits, target, _class_weights(self.num_classes))


def read_keras(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a Keras HDF5 file, or of nested groups of arrays, by their path (``denseu161/conv1/kernel:0``).

    Give the result to :func:`offprint.load_weights`; the reader looks through groups of any depth.

    Raises:
        MissingExtra: h5py is not installed.
        CheckpointError: no such file, or none with tensors in it.
    """
    if not isinstance(source, Mapping):
        h5py = need("h5py", "medical", "reading Keras weights")
        try:
            with h5py.File(source, "r") as file:
                return read_keras(_groups(file))
        except OSError as error:
            raise CheckpointError(f"cannot read the Keras file {source}: {error}") from error
    out: dict[str, Tensor] = {}

    def walk(group: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for name, value in group.items():
            if isinstance(value, Mapping):
                walk(value, (*path, name))
            else:
                out["/".join((*path, name))] = torch.as_tensor(np.asarray(value))

    walk(source.get("model_weights", source), ())
    if not out:
        raise CheckpointError(
            "the Keras file holds no tensors; save the model's weights (save_weights), not its structure"
        )
    return out


def _groups(group: Any) -> dict[str, Any]:
    return {k: _groups(v) if hasattr(v, "keys") else np.asarray(v) for k, v in group.items()}


# -- the recipe's pieces ----------------------------------------------------------------------------------------------
CLASS_WEIGHTS = (0.78, 0.65, 8.57)  # background, liver, tumour
HU, HU_MEAN = (-200.0, 250.0), 48.0


def _class_weights(classes: int) -> tuple[float, ...]:
    """The paper's weights for its three classes, equal ones for others."""
    return CLASS_WEIGHTS if classes == len(CLASS_WEIGHTS) else (1.0,) * classes


def normalize_hu(volume: Tensor) -> Tensor:
    """Hounsfield units cut to -200 to 250, less their mean 48, as float; nothing is divided."""
    return volume.float().clamp(*HU) - HU_MEAN


def slice_triplets(depth: int) -> Tensor:
    """Indices (depth, 3) of the slices before, of, and after each slice; at the ends the slice itself stands for the missing one."""
    if depth < 1:
        raise OffprintError(f"a volume of {depth} slices; it needs one")
    return (torch.arange(depth)[:, None] + torch.tensor([-1, 0, 1])).clamp(0, depth - 1)


def weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Sequence[float] = CLASS_WEIGHTS) -> Tensor:
    """Cross-entropy with a weight of the true class, divided by the number of voxels (not by the weights).

    Args:
        logits: (B, K, H, W), or (B, K, H, W, D), of which the first and the last slice are left out.
        target: classes (B, H, W) or (B, H, W, D).
        weights: of the classes.
    """
    if len(weights) != logits.shape[1] or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise OffprintError(
            f"logits {tuple(logits.shape)}, classes {tuple(target.shape)}, {len(weights)} weights; expected one class per place, one "
            "weight per class"
        )
    if logits.ndim == 5:
        if logits.shape[-1] < 3:
            raise OffprintError(f"{logits.shape[-1]} slices; without the first and the last none is left")
        logits, target = logits[..., 1:-1], target[..., 1:-1]
    log_p = logits.log_softmax(1).clamp(min=math.log(1e-10)).gather(1, target[:, None])[:, 0]
    return -(log_p * logits.new_tensor(weights)[target]).mean()


def liver_crop(
    labels: Tensor, side: int = 224, depth: int = 8, stretch: float = 1.0, tumour: bool = True
) -> tuple[slice, ...]:
    """Where the paper cuts a training sample: around a random liver voxel, or, every second time, a tumour voxel inside the liver's box.

    Args:
        labels: (H, W, D): 0 background, 1 liver, 2 tumour.
        side, depth: of the sample, in pixels and slices.
        stretch: the crop is ``side * stretch`` pixels, to be resized back; drawn from 0.8 to 1.2 in training.
        tumour: whether tumour voxels may be chosen.

    Returns:
        Slices of the three axes; the crop begins no earlier than 0 and ends no later than the volume.

    Raises:
        DataError: there is no liver.
    """
    liver = (labels > 0).nonzero()
    if not len(liver):
        raise DataError("no voxel is labelled liver or tumour, so nothing can be cropped around")
    low, high = liver.amin(0) - 3, liver.amax(0) + 3
    wanted = (labels == 2).nonzero() if tumour and bool(torch.rand(()) < 0.5) else liver[:0]
    wanted = wanted if len(wanted) else (labels == 1).nonzero()
    wanted = wanted if len(wanted) else liver
    centre = wanted[int(torch.randint(len(wanted), ()))]
    sides, out = (round(side * stretch), round(side * stretch), depth), []
    for axis, (size, whole) in enumerate(zip(sides, labels.shape, strict=True)):
        size = min(size, whole)
        first, last = int(low[axis]) + size // 2, int(high[axis]) - (size - size // 2)
        at = min(max(int(centre[axis]), first), last)  # the upper bound wins where the crop is larger than the liver
        start = min(max(at - size // 2, 0), whole - size)
        out.append(slice(start, start + size))
    return tuple(out)


def z_windows(depth: int, low: int, high: int, window: int = 8) -> tuple[list[int], list[int]]:
    """Where the windows of slices begin, and how many of them score each slice (their own first and last slice they do not).

    From five slices below the mask's first to ten above its last, in steps of a quarter of a window; near the end a window is
    moved back.

    Args:
        depth: slices of the scan.
        low, high: first and last slice of the prior mask.
        window: slices of a window.
    """
    if window < 4 or depth < window:
        raise OffprintError(
            f"a window of {window} slices in a scan of {depth}; windows have four or more, and the scan as many"
        )
    step, right = window // 4, min(depth, high + 10) - window
    left = max(0, min(low - 5, right))
    starts = [min(a, depth - window) for a in range(left, max(right, 0) + step, step)]
    counts = [0] * depth
    for a in starts:
        for i in range(a + 1, a + window - 1):
            counts[i] += 1
    return starts, counts


@torch.no_grad()
def predict_volume(
    model: DenseUNet | HDenseUNet, volume: Tensor, prior: Tensor | None = None, window: int = 8
) -> Tensor:
    """Probabilities of a scan of any size, slice by slice with a 2-D network, in windows of slices with the hybrid.

    Args:
        model: in evaluation mode.
        volume: (H, W, D) or (C, H, W, D), normalised.
        prior: mask (H, W, D) of where the liver may be: other slices are left at 0. Without one all slices are segmented.
        window: slices of a window of the hybrid, a multiple of 4; the inner ones are averaged where windows overlap, so the
            first and the last slice of the scan stay 0.

    Returns:
        (K, H, W, D); 0 in every class where nothing was segmented.
    """
    x = volume[None] if volume.ndim == 3 else volume
    if x.ndim != 4 or (prior is not None and prior.shape != x.shape[1:]):
        raise OffprintError(f"expected a scan (H, W, D) and a mask of its size, got {tuple(volume.shape)}"
                            + ("" if prior is None else f" and {tuple(prior.shape)}"))  # fmt: skip
    if not torch.isfinite(x).all():
        raise DataError("the scan holds values that are not finite; repair it, or cut it to its body")
    _, height, width, depth = x.shape
    low, high = 0, depth - 1
    if prior is not None:
        there = prior.bool().any(0).any(0).nonzero()
        if not len(there):
            return x.new_zeros(model.num_classes, height, width, depth)
        low, high = int(there[0]), int(there[-1])
    x = F.pad(x.movedim(-1, 0), (0, -width % 32, 0, -height % 32)).movedim(0, -1)
    out = x.new_zeros(model.num_classes, height, width, depth)
    if isinstance(model, DenseUNet):
        at = slice_triplets(depth)
        for i in range(max(0, low), high + 1):
            slices = x[..., at[i]].movedim(-1, 0).flatten(0, 1)[None]
            out[..., i] = model(slices).softmax(1)[0, :, :height, :width]
        return out
    short = max(0, window - depth)
    if short:  # a scan of few slices is repeated at its end
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], short)], -1)
    starts, counts = z_windows(depth + short, low, high if prior is not None else depth + short - 1, window)
    total = out.new_zeros(*out.shape[:-1], depth + short)
    for a in starts:
        p = model(x[None, ..., a : a + window]).softmax(1)[0, :, :height, :width]
        total[..., a + 1 : a + window - 1] += p[..., 1:-1]
    total /= x.new_tensor(counts) + 1e-4
    return total[..., :depth]


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest component (26 neighbours) of a mask; the mask itself where it is empty."""
    from scipy.ndimage import generate_binary_structure, label

    parts, count = label(mask, generate_binary_structure(3, 3))
    return mask if not count else parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())


def liver_region(prior: Any) -> np.ndarray:
    """Where tumours are kept: the prior mask (H, W, D) dilated twice, its largest component, holes filled."""
    from scipy.ndimage import binary_dilation, binary_fill_holes

    return binary_fill_holes(_largest(binary_dilation(np.asarray(prior, bool), iterations=2)))


def postprocess(
    liver: Any, tumour: Any, prior: Any = None, liver_threshold: float = 0.5, tumour_threshold: float = 0.9
) -> np.ndarray:
    """Labels (H, W, D) from probabilities as the paper's test takes them; the thresholds are no argmax.

    A tumour counts as liver; of the liver its largest component stays, holes filled; tumours are kept inside
    :func:`liver_region`, holes filled.

    Args:
        liver, tumour: probabilities (H, W, D).
        prior: mask of the liver from another model; without one the liver that was found takes its place.
        liver_threshold, tumour_threshold: at or above which a voxel belongs to each.

    Returns:
        uint8: 0 background, 1 liver, 2 tumour.
    """
    from scipy.ndimage import binary_fill_holes

    lesion = np.asarray(tumour) >= tumour_threshold
    organ = _largest((np.asarray(liver) >= liver_threshold) | lesion)
    region = liver_region(organ if prior is None else prior)
    lesion = binary_fill_holes(lesion & region)
    out = binary_fill_holes(organ).astype(np.uint8)
    out[lesion] = 2
    return out


def lits_dice(predictions: Sequence[Any], truths: Sequence[Any]) -> dict[str, Any]:
    """Dice of the LiTS challenge for one class: the mean over cases, and that of all voxels together.

    A case without the class in truth and prediction counts 1, one without it in the truth alone 0: a single false voxel in a
    healthy case costs a whole case. The global figure is not touched by such cases.

    Args:
        predictions, truths: a mask of each case, of like shapes.
    """
    if len(predictions) != len(truths) or not len(truths):
        raise OffprintError(f"{len(predictions)} predictions and {len(truths)} truths; give one mask of each case")
    rows, both, sizes = [], 0, 0
    for i, (said, true) in enumerate(zip(predictions, truths, strict=True)):
        a, b = np.asarray(said, bool), np.asarray(true, bool)
        if a.shape != b.shape:
            raise OffprintError(f"case {i}: the prediction is {a.shape}, the truth {b.shape}")
        hit, size = int((a & b).sum()), int(a.sum() + b.sum())
        rows.append(2 * hit / size if size else 1.0)
        both, sizes = both + hit, sizes + size
    return {"dice_per_case": sum(rows) / len(rows), "dice_global": 2 * both / sizes if sizes else 1.0, "per_case": rows}


VARIANTS_2D: dict[str, dict[str, Any]] = {
    "denseunet161_2d": {},
    "denseunet161_2d_released": {"unet_connections": False},
}
VARIANTS: dict[str, dict[str, Any]] = {"h_denseunet_released": {}, "h_denseunet": {"unet_connections": True}}
CT = {"intensity": HU, "offset": HU_MEAN}
_SGD = {"optimizer": "nesterov", "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0,
        "data": "LiTS, 131 training volumes"}  # fmt: skip
# an epoch of the authors' is 27,386 samples of slices, a sixth of that of volumes
RECIPE_2D = {**_SGD, "batch_size": 40, "epochs": 50, "start": "ImageNet (densenet161)"}
_3D = {**_SGD, "batch_size": 1, "loss": "own", "turn": True, "scale_intensity": 0.0, "shift_intensity": 0.0}
RECIPES = {
    "training": {**_3D, "epochs": 50, "start": "training of denseunet161_2d_released"},
    "finetuning": {**_3D, "epochs": 50, "start": "training"},
}
_PICTURES = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "interpolation": "bicubic", **CT}
register(paper="h-denseunet", kind="segmentation", task="segmentation", build=DenseUNet, variants=VARIANTS_2D,
         input_size=(3, 224, 224), preprocessing=_PICTURES, recipe=RECIPE_2D)  # fmt: skip
register(paper="h-denseunet", kind="segmentation", task="volumes", build=HDenseUNet, variants=VARIANTS,
         input_size=(1, 224, 224, 8), preprocessing=CT, recipes=RECIPES)  # fmt: skip
