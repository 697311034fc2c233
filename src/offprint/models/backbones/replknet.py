r"""RepLKNet: Scaling Up Your Kernels to 31x31 (Ding, Zhang, Han, Ding; CVPR 2022; arXiv 2203.06717), the network with which Scaling Up
Your Kernels: Large Kernel Design in ConvNets towards Universal Representations (TPAMI 2025; arXiv 2410.08049) begins.

Few very large depth-wise kernels in place of many small ones. A stage alternates two residual blocks,

.. math:: x \leftarrow x + W_2\,\mathrm{ReLU}\big(\mathrm{DW}_{K\times K}(\mathrm{ReLU}(W_1\,\mathrm{BN}(x)))\big), \qquad
          x \leftarrow x + V_2\,\mathrm{GELU}\big(V_1\,\mathrm{BN}(x)\big),

with a BatchNorm (eps 1e-5) behind every convolution and :math:`V_1` four times as wide as the map. K is 31, 29, 27 and 13 in the four
stages. In training a 5x5 depth-wise convolution with a BatchNorm of its own runs beside the large one, without which the
largest kernels do worse; for inference both become one kernel,

.. math:: w = \tfrac{\gamma_K}{\sigma_K} w_K + \mathrm{pad}\big(\tfrac{\gamma_5}{\sigma_5} w_5\big), \qquad
          b = \sum_{i \in \{K, 5\}} \beta_i - \tfrac{\gamma_i}{\sigma_i} \mu_i .

The guidelines of the paper and its measurements stand in :mod:`offprint.methods.understanding.large_kernel_design`. Parameter names are
those of the authors' code, in training and merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbone import Backbone
from offprint.models.registry import IMAGENET, Weights, register
from offprint.models.released import SQUASH, top
from offprint.nn import DropPath, Pointwise, drop_path_rates, reparam
from offprint.nn.large_kernel import LargeKernelConv2d


def _conv_bn(cin: int, cout: int, kernel: int = 1, stride: int = 1, relu: bool = False) -> nn.Sequential:
    """1x1 convolution, or a depth-wise one where channels stay and the kernel is wider; BatchNorm; ReLU where wanted."""
    groups = cin if kernel > 1 and cin == cout else 1
    conv = (
        Pointwise(cin, cout)
        if kernel == 1
        else nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    )
    layers: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(cout)}
    return _named(layers | ({"nonlinear": nn.ReLU()} if relu else {}))


def _named(layers: dict[str, nn.Module]) -> nn.Sequential:
    out = nn.Sequential()
    for name, layer in layers.items():
        out.add_module(name, layer)
    return out


def _check_merge(module: nn.Module) -> None:
    if module.training:
        raise OffprintError(
            f"{type(module).__name__} is in training mode, where each branch is normalised by the statistics of its batch and "
            "cannot be merged; finish training, call .eval(), and merge then"
        )


class ReparamLargeKernel(nn.Module):
    """A large depth-wise kernel with a small one beside it, or the one kernel that they merge into.

    Args:
        dim: channels.
        kernel_size: odd side K of the large kernel.
        small_kernel: odd side of the small one; ``None`` for none.
        deploy: the merged form, one convolution with a bias.
    """

    def __init__(self, dim: int, kernel_size: int, small_kernel: int | None = 5, deploy: bool = False):
        super().__init__()
        sides = (kernel_size,) if small_kernel is None else (kernel_size, small_kernel)
        if any(side < 1 or side % 2 == 0 for side in sides) or sides[-1] > kernel_size:
            raise OffprintError(
                f"kernel_size={kernel_size} with small_kernel={small_kernel}; both sides must be odd, so that the kernels have a "
                "middle, and the small one no larger than the large one (None: no small one)"
            )
        if deploy:
            self.lkb_reparam = LargeKernelConv2d(dim, kernel_size)
            return
        large = LargeKernelConv2d(dim, kernel_size, bias=False)
        self.lkb_origin = _named({"conv": large, "bn": nn.BatchNorm2d(dim)})
        self.small_conv = None if small_kernel is None else _conv_bn(dim, dim, small_kernel)

    @property
    def merged(self) -> bool:
        """Whether one convolution is left."""
        return hasattr(self, "lkb_reparam")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to a map of the same shape; the kernel may be wider than the map."""
        if self.merged:
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        return y if self.small_conv is None else y + self.small_conv(x)

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The one kernel (dim, 1, K, K) and bias (dim,) that compute what the branches do in evaluation mode."""
        if self.merged:
            return self.lkb_reparam.weight, self.lkb_reparam.bias
        conv = self.lkb_origin.conv
        weight, bias = reparam.fold(conv.weight.double(), None, self.lkb_origin.bn)
        if self.small_conv is not None:
            small, shift = reparam.fold(self.small_conv.conv.weight.double(), None, self.small_conv.bn)
            weight, bias = weight + reparam.centred(small, tuple(weight.shape[2:])), bias + shift
        return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Merge in place; what is merged stays as it is.

        Raises:
            OffprintError: the module is in training mode.
        """
        if self.merged:
            return
        _check_merge(self)
        weight, bias = self.kernel()
        one = LargeKernelConv2d(weight.shape[0], weight.shape[-1])
        one.weight, one.bias = nn.Parameter(weight), nn.Parameter(bias)
        del self.lkb_origin, self.small_conv
        self.lkb_reparam = one.eval()


class _Bottleneck(nn.Module):
    """What both kinds of block share: a BatchNorm before the first 1x1 convolution, which merging takes into it."""

    norm_name: str
    pw1: nn.Sequential

    @torch.no_grad()
    def merge(self) -> None:
        """For :func:`offprint.deploy`: the BatchNorm before the first convolution goes into it; doing it again changes nothing.

        Raises:
            OffprintError: the block is in training mode.
        """
        norm, conv = getattr(self, self.norm_name), self.pw1.conv
        if not isinstance(norm, nn.BatchNorm2d):
            return
        _check_merge(self)
        weight, bias = reparam.fold_before(norm, conv.weight, conv.bias)
        conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
        setattr(self, self.norm_name, nn.Identity())


class RepLKBlock(_Bottleneck):
    """BatchNorm, 1x1, ReLU, large depth-wise kernel, ReLU, 1x1, residual.

    Args:
        dim: channels of the map.
        dw_dim: channels of the depth-wise convolutions.
        kernel_size, small_kernel, deploy: see :class:`ReparamLargeKernel`.
        drop_path: probability of dropping the branch.
        shortcut: add the input (the guideline; without it only the ablation builds it).
    """

    norm_name = "prelkb_bn"

    def __init__(
        self,
        dim: int,
        dw_dim: int,
        kernel_size: int,
        small_kernel: int | None = 5,
        drop_path: float = 0.0,
        deploy: bool = False,
        shortcut: bool = True,
    ):
        super().__init__()
        self.prelkb_bn = nn.BatchNorm2d(dim)
        self.pw1 = _conv_bn(dim, dw_dim, relu=True)
        self.large_kernel = ReparamLargeKernel(dw_dim, kernel_size, small_kernel, deploy)
        self.pw2 = _conv_bn(dw_dim, dim)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to a map of the same shape."""
        y = self.drop_path(self.pw2(F.relu(self.large_kernel(self.pw1(self.prelkb_bn(x))))))
        return x + y if self.shortcut else y


class ConvFFN(_Bottleneck):
    """BatchNorm, 1x1 to ``hidden`` channels, GELU, 1x1 back, residual."""

    norm_name = "preffn_bn"

    def __init__(self, dim: int, hidden: int, drop_path: float = 0.0):
        super().__init__()
        self.preffn_bn = nn.BatchNorm2d(dim)
        self.pw1 = _conv_bn(dim, hidden)
        self.pw2 = _conv_bn(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) to a map of the same shape."""
        return x + self.drop_path(self.pw2(F.gelu(self.pw1(self.preffn_bn(x)))))


class RepLKNet(Backbone):
    """Stem to stride 4, four stages of block pairs, a strided transition between stages, BatchNorm, pooling, classifier.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the normalised, pooled features.
        kernel_sizes: side of the large kernels of each stage.
        depths: pairs of a large-kernel block and a feed-forward block per stage.
        dims: channels per stage.
        small_kernel: side of the kernel beside the large one; ``None`` for none.
        dw_ratio: channels of the depth-wise convolutions over those of the map.
        drop_path_rate: stochastic depth of the last pair; earlier pairs rise linearly to it from 0.
        norm_intermediate_features: with ``features_only``, a BatchNorm on each map (the authors' XL on COCO and ADE20K). A file that
            has them brings them.
        deploy: the merged form, for checkpoints that were written after merging.
        shortcut: see :class:`RepLKBlock`.

    Any image of 32 pixels and more works, with maps smaller than the kernels too. Files of the training form are for
    ``deploy=False``, merged ones for ``deploy=True``; :func:`offprint.deploy` makes the second from the first.
    """

    input_layers = ("stem.0.conv",)
    optional_state = r"^stages\.\d\.norm\."  # no classification checkpoint holds the norms of the maps

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        depths: Sequence[int] = (2, 2, 18, 2),
        dims: Sequence[int] = (128, 256, 512, 1024),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        drop_path_rate: float = 0.0,
        norm_intermediate_features: bool = False,
        deploy: bool = False,
        shortcut: bool = True,
    ):
        super().__init__()
        if not len(kernel_sizes) == len(depths) == len(dims):
            raise OffprintError(
                f"kernel_sizes {tuple(kernel_sizes)}, depths {tuple(depths)} and dims {tuple(dims)} must name the same number of stages"
            )
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [4 * 2**i for i in range(len(dims))]
        self.pyramid_modules = [f"stages.{i}" for i in range(len(dims))]
        c = dims[0]
        self.stem = nn.ModuleList(
            [
                _conv_bn(in_chans, c, 3, 2, relu=True),
                _conv_bn(c, c, 3, relu=True),
                _conv_bn(c, c, relu=True),
                _conv_bn(c, c, 3, 2, relu=True),
            ]
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        for kernel, depth, dim in zip(kernel_sizes, depths, dims, strict=True):
            stage, blocks = nn.Module(), []
            for rate in (next(rates) for _ in range(depth)):  # one for both halves of a pair
                wide = int(dim * dw_ratio)
                blocks += [
                    RepLKBlock(dim, wide, kernel, small_kernel, rate, deploy, shortcut),
                    ConvFFN(dim, 4 * dim, rate),
                ]
            stage.blocks = nn.ModuleList(blocks)
            self.stages.append(stage)
        self.transitions = nn.ModuleList(
            nn.Sequential(_conv_bn(a, b, relu=True), _conv_bn(b, b, 3, 2, relu=True))
            for a, b in zip(dims[:-1], dims[1:], strict=True)
        )
        self.norm = nn.BatchNorm2d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.norm_intermediate_features = norm_intermediate_features

    def as_features(self, out_indices=None) -> RepLKNet:
        """The maps of the stages, each through a BatchNorm of its own where the model was built so."""
        super().as_features(out_indices)
        if self.norm_intermediate_features:
            self._grow_norms()
        return self

    def _grow_norms(self) -> None:
        for i in self.out_indices or ():
            if not hasattr(self.stages[i], "norm"):
                self.stages[i].norm = nn.BatchNorm2d(self.pyramid_channels[i]).to(self.stem[0].conv.weight)
                self.stages[i].norm.train(self.training)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Grow the norms of the maps where a file has them, and tell files of the other form from damaged ones.

        Raises:
            CheckpointError: the file was merged and the model is not, or the other way round.
        """
        if any(name.startswith("stages.") and ".norm." in name for name in state) and self.out_indices is not None:
            self._remember(norm_intermediate_features=True)
            self._grow_norms()
        merged = any(".lkb_reparam." in name for name in state)
        if any(".large_kernel." in name for name in state) and merged != self.stages[0].blocks[0].large_kernel.merged:
            raise CheckpointError(
                "the file holds a merged network, which has one kernel where the training form has two; build the model with "
                "deploy=True"
                if merged
                else "the file holds the training form, and the model is merged; build it without deploy, load, and call "
                "offprint.deploy(model)"
            )
        return state

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each pair of blocks; a transition goes with what follows it."""
        groups = [[f"stem.{i}" for i in range(len(self.stem))]]
        for i, stage in enumerate(self.stages):
            for k in range(0, len(stage.blocks), 2):
                before = [f"transitions.{i - 1}"] if i and not k else []
                groups.append([*before, f"stages.{i}.blocks.{k}", f"stages.{i}.blocks.{k + 1}"])
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of every stage."""
        x = self.run(self.stem, x)
        for i, stage in enumerate(self.stages):
            if i:
                x = self.transitions[i - 1](x)
            x = self.run(stage.blocks, x)
            yield x

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map through its own norm where it has one; with ``norm`` the classifier's last through the classifier's."""
        own = getattr(self.stages[index], "norm", None)
        if own is not None:
            return own(x)
        return self.norm(x) if norm and self.whole and index == len(self.pyramid_channels) - 1 else x

    def pooled(self, x: Tensor) -> Tensor:
        """BatchNorm, then mean over the map."""
        return self.pool(self.norm(x))


_KERNELS = (31, 29, 27, 13)
VARIANTS: dict[str, dict[str, Any]] = {
    "replknet_31b": {"kernel_sizes": _KERNELS, "dims": (128, 256, 512, 1024)},
    "replknet_31l": {"kernel_sizes": _KERNELS, "dims": (192, 384, 768, 1536)},
    "replknet_xl": {
        "kernel_sizes": (27, 27, 27, 13), "dims": (256, 512, 1024, 2048), "small_kernel": None, "dw_ratio": 1.5,
    },
    "replknet_13": {"kernel_sizes": (13, 13, 13, 13), "dims": (128, 256, 512, 1024)},  # of the study of receptive fields
}  # fmt: skip
_README = "DingXiaoH/RepLKNet-pytorch@b76808a README"
HALF = {**IMAGENET, "mean": (0.5,) * 3, "std": (0.5,) * 3}  # of the XL model


def _authors(file: str, side: int = 224, one: float | None = None, **more: Any) -> Weights:
    """A checkpoint of the authors: its number on their drive, the side of the picture, and their figure."""
    return Weights(
        f"https://drive.usercontent.google.com/download?id={file}&export=download&confirm=t", "authors", "authors", "MIT",
        input_size=(3, side, side), preprocessing=more.pop("preprocessing", SQUASH if side == 384 else None),
        metrics=top(one), metrics_source=_README if one else "", **more,
    )  # fmt: skip


_22K: dict[str, Any] = {"num_classes": 21841, "class_map": "imagenet-22k"}
WEIGHTS = {
    "replknet_31b": {
        "in1k": _authors("1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S", 224, 83.5),
        "in1k_384": _authors("1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN", 384, 84.8),
        "in22k_ft_in1k": _authors("1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s", 224, 85.2),
        "in22k_ft_in1k_384": _authors("1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX", 384, 86.0),
        "in22k": _authors("1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z", **_22K),
    },
    "replknet_31l": {
        "in22k_ft_in1k_384": _authors("1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl", 384, 86.6),
        "in22k": _authors("16jcPsPwo5rko7ojWS9k_W-svHX-iFknY", **_22K),
    },
    "replknet_xl": {
        "megdata73m_ft_in1k_320": _authors("1tPC60El34GntXByIRHb-z-Apm4Y5LX1T", 320, 87.8, preprocessing=HALF),
    },
}
RECIPE = {
    "optimizer": "adamw",
    "lr": 4e-3,
    "reference_batch": 2048,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 10,
    "min_lr": 1e-6,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "ema_decay": 0.9999,
    "interpolation": "bicubic",
    "scaled_with_batch": ("lr",),
    "data": "imagenet-1k",
}
PRETRAINING = {
    **RECIPE, "epochs": 90, "reference_batch": 4096, "warmup_epochs": 5, "drop_path_rate": 0.1, "ema_decay": 0.0,
    "data": "imagenet-22k",
}  # fmt: skip
_FINE = {
    **RECIPE, "lr": 4e-4, "reference_batch": 512, "weight_decay": 1e-8, "epochs": 30, "warmup_epochs": 1, "layer_decay": 0.7,
    "mixup": 0.0, "cutmix": 0.0,
}  # fmt: skip
_AT_384 = {"input_size": 384, "crop_pct": 1.0, "crop_mode": "squash"}
_FROM_22K = {**_FINE, "start": "pretraining"}
_FROM_22K_384 = {**_FROM_22K, **_AT_384, "drop_path_rate": 0.3, "min_lr": 3e-4}
register(
    paper="large-kernel-design",
    kind="backbone",
    build=RepLKNet,
    variants=VARIANTS,
    weights=WEIGHTS,
    input_sizes={"replknet_31l": (3, 384, 384), "replknet_xl": (3, 320, 320)},
    recipe=RECIPE,
    exceptions={
        "training": {"replknet_31b": {"drop_path_rate": 0.5}, "replknet_13": {"epochs": 120}},
        "finetuning_384": {
            "replknet_31b": {
                **_FINE, **_AT_384, "reference_batch": 2048, "drop_path_rate": 0.8, "ema_decay": 0.0, "start": "training",
            },
        },
        "pretraining": {"replknet_31b": PRETRAINING, "replknet_31l": PRETRAINING},
        "finetuning": {"replknet_31b": {**_FROM_22K, "drop_path_rate": 0.2}},
        "finetuning_22k_384": {"replknet_31b": _FROM_22K_384, "replknet_31l": _FROM_22K_384},
    },
)  # fmt: skip
