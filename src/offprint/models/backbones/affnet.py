r"""AFFNet: Adaptive Frequency Filters As Efficient Global Token Mixers (Huang, Zhang, Lan, Zha, Lu, Guo; ICCV 2023; arXiv
2307.14008).

A product of spectra is a convolution as large as the map. AFFNet multiplies the spectrum of its map by a mask that is computed from
that very spectrum, at :math:`O(N \log N)` for :math:`N` places:

.. math:: X = \mathcal F(x), \qquad y = \mathcal F^{-1}\big(S_\lambda(M(X)) \odot X\big) + x,

where :math:`M` is a perceptron of two layers over the channels of each frequency, in 8 groups. It is complex: with
:math:`w = w_0 + i\,w_1` and the activation and the soft threshold :math:`S_\lambda` on real and imaginary parts apart,

.. math:: M(X) = \phi(X w^{(1)} + b^{(1)})\, w^{(2)} + b^{(2)},

which in real numbers reads as the sums and differences of products of the authors' code. Padding is periodic, and since the mask sees
the phase, the mixer does not commute with shifts.

The network is MobileViT's: inverted residuals, and in the last three layers a stage of AFF blocks in place of transformers. A block is
an inverted residual, then the filter, each behind a channel norm, and one skip around both: the convolutions come first, which is
not the order of the paper's figure but that of its code. The activation and the norm are set in configuration files that were
not published with the code; CVNets' settings for this family are the defaults here.

Pictures are RGB in [0, 1], without mean and deviation. Parameter names are those of the authors' code, but for the last layer (``head``,
there ``classifier.fc``). Their weights lie in shared folders without addresses of single files, so that ``pretrained=True`` has
nothing to load: fetch a file by hand and pass ``checkpoint_path=``. The segmentation head of the paper stands in
:mod:`offprint.models.segmentation.deeplabv3`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn import make_divisible
from offprint.nn.precision import wide, wide_dtype
from offprint.nn.windows import keep

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "prelu": nn.PReLU}
NORMS = ("layer_norm_2d", "layer_norm")
GROUPS = 8  # of the perceptron in the filter


def _activation(name: str, channels: int) -> nn.Module:
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return nn.PReLU(channels, 0.1) if name == "prelu" else ACTIVATIONS[name]()


class ConvNormAct(nn.Module):
    """Convolution without bias that keeps the size (at stride 1), BatchNorm, and an activation where one is named."""

    def __init__(self, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1, dilation: int = 1, activation: str = ""):  # fmt: skip
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        conv = nn.Conv2d(cin, cout, kernel, stride, padding, dilation, groups, bias=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=nn.BatchNorm2d(cout))
        if activation:
            layers["act"] = _activation(activation, cout)
        self.block = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; the input is added where the shapes agree.

    Args:
        cin, cout: channels.
        stride, dilation: of the depth-wise convolution.
        ratio: of the expanded width to ``cin``.
        activation: of the first two layers.
    """

    def __init__(self, cin: int, cout: int, stride: int = 1, ratio: float = 2, dilation: int = 1, activation: str = "silu"):  # fmt: skip
        super().__init__()
        hidden = make_divisible(cin * ratio)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if ratio != 1:
            layers["exp_1x1"] = ConvNormAct(cin, hidden, activation=activation)
        layers["conv_3x3"] = ConvNormAct(hidden, hidden, 3, stride, hidden, dilation, activation)
        layers["red_1x1"] = ConvNormAct(hidden, cout)
        self.block = nn.Sequential(layers)
        self.add = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.add else self.block(x)


class PositionNorm(nn.Module):
    """Per place over the channels: (x - mean) / (std + eps), the standard deviation biased and eps outside the root."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), eps

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(wide(x), dim=1, keepdim=True, correction=0)
        y = ((x - mean) / (std + self.eps)).to(x.dtype)
        return torch.addcmul(self.bias[:, None, None], y, self.weight[:, None, None])


def channel_norm(name: str, channels: int) -> nn.Module:
    """``layer_norm_2d``: over channels and places together; ``layer_norm``: :class:`PositionNorm`. Both hold the same tensors."""
    if name not in NORMS:
        raise unknown("channel norm", name, NORMS)
    return nn.GroupNorm(1, channels) if name == "layer_norm_2d" else PositionNorm(channels)


class DFT:
    """The two-dimensional real Fourier transform (ortho) of a map of fixed size and its inverse, in real matrix products.

    What ``torch.fft.rfft2`` and ``irfft2`` give, for runtimes without complex numbers. Spectra are pairs (real, imaginary).

    Args:
        height, width: of the map.
        like: whose device and precision (float32 at least) the tables have.
    """

    def __init__(self, height: int, width: int, like: Tensor):
        if not (type(height) is int and type(width) is int):
            raise OffprintError(
                "a filter of frequencies is exported for one size of the image, and height or width was left free; leave them out "
                "of dynamic= (--dynamic batch) and export one file per size"
            )
        dtype = wide_dtype(like.dtype)
        key = ("affnet", height, width, like.device, dtype)
        self.rows, self.forth, self.back = keep(
            key, lambda: tuple(torch.from_numpy(t).to(like.device, dtype) for t in _tables(height, width))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, H, W) to its spectrum (B, C, H, W // 2 + 1)."""
        real, imaginary = (x @ self.forth).chunk(2, -1)
        cos, sin = self.rows
        return cos @ real + sin @ imaginary, cos @ imaginary - sin @ real

    def inverse(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """The map (B, C, H, W) of a spectrum; the imaginary part of a real frequency counts for nothing."""
        cos, sin = self.rows
        return torch.cat([cos @ real - sin @ imaginary, cos @ imaginary + sin @ real], -1) @ self.back


def _tables(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(2, H, H) cosine and sine of the rows; (W, 2 F) and (2 F, W): along the columns, and back from half of the frequencies."""

    def angles(places: int, frequencies: int) -> np.ndarray:
        return 2 * np.pi / places * (np.outer(np.arange(places), np.arange(frequencies)) % places)

    rows, columns = angles(height, height), angles(width, width // 2 + 1)
    twice = np.full(columns.shape[1], 2.0)  # every frequency stands for itself and its mirror image, but these
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    cos, sin = np.cos(columns), np.sin(columns)
    forth = np.concatenate([cos, -sin], 1) / math.sqrt(width)
    back = np.concatenate([cos * twice, -sin * twice], 1).T / math.sqrt(width)
    return np.stack([np.cos(rows), np.sin(rows)]) / math.sqrt(height), forth, np.ascontiguousarray(back)


class AdaptiveFrequencyFilter(nn.Module):
    """The token mixer: the map's spectrum times a mask computed from it, plus the map.

    Transform and products run in float32 at least, whatever the precision of the map, which the output has again.

    Args:
        dim: channels; divisible by the groups.
        num_blocks: groups of the perceptron.
        sparsity_threshold: of the soft threshold on the mask.
        activation: between the perceptron's layers, on real and imaginary parts.
    """

    def __init__(self, dim: int, num_blocks: int = GROUPS, sparsity_threshold: float = 0.01, activation: str = "silu"):
        super().__init__()
        if num_blocks < 1 or dim % num_blocks:
            raise OffprintError(
                f"{dim} channels cannot be cut into {num_blocks} groups; choose a multiple of {num_blocks}"
            )
        if sparsity_threshold < 0:
            raise OffprintError(f"sparsity_threshold={sparsity_threshold}; a soft threshold is 0 or more")
        self.groups, self.threshold = num_blocks, sparsity_threshold
        size = dim // num_blocks
        self.w1, self.w2 = (nn.Parameter(0.02 * torch.randn(2, num_blocks, size, size)) for _ in range(2))
        self.b1, self.b2 = (nn.Parameter(0.02 * torch.randn(2, num_blocks, size)) for _ in range(2))
        self.act, self.act2 = _activation(activation, 1), _activation(activation, 1)  # real and imaginary parts
        self.matrices = False  # DFT matrices and real numbers instead of the FFT, outside an export as well

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, dim, H, W) of any size to the same shape."""
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            y = self._real(wide(x)) if self.matrices or torch.compiler.is_exporting() else self._complex(wide(x))
        return y.to(x.dtype) + x

    def mask(self, spectrum: Tensor) -> Tensor:
        """The complex mask of a spectrum (B, dim, H, F), of the same shape."""
        parts = torch.view_as_real(spectrum).unflatten(1, (self.groups, -1)).flatten(3, 4)
        pair = self._perceptron(parts.movedim(-1, 2).flatten(2, 3))
        return torch.complex(*(part.reshape(spectrum.shape) for part in pair.chunk(2, 2)))

    def _perceptron(self, pair: Tensor) -> Tensor:
        """Both layers on (B, groups, 2 * size, places), the real parts of a group before its imaginary ones."""
        for weight, bias, end in ((self.w1, self.b1, False), (self.w2, self.b2, True)):
            real, imaginary = wide(weight).mT
            rows = torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
            shift = wide(bias).movedim(0, 1).flatten(1)[..., None]
            pair = rows @ pair + shift
            pair = self._shrink(pair) if end else self._activate(pair)
        return pair

    def _activate(self, pair: Tensor) -> Tensor:
        """The activation on real and imaginary parts; one without a slope of its own takes both at once."""
        if not isinstance(self.act, nn.PReLU):
            return self.act(pair)
        real, imaginary = pair.chunk(2, 2)
        return torch.cat([self.act(real), self.act2(imaginary)], 2)

    def _shrink(self, x: Tensor) -> Tensor:
        return F.softshrink(x, self.threshold) if self.threshold else x

    def _complex(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x.contiguous(), norm="ortho")
        return torch.fft.irfft2(self.mask(spectrum) * spectrum, s=x.shape[-2:], norm="ortho")

    def _real(self, x: Tensor) -> Tensor:
        dft = DFT(*x.shape[-2:], x)
        real, imaginary = dft.forward(x)
        parts = (part.unflatten(1, (self.groups, -1)).flatten(3) for part in (real, imaginary))
        pair = self._perceptron(torch.cat(list(parts), 2))
        mask_r, mask_i = (part.reshape(real.shape) for part in pair.chunk(2, 2))
        return dft.inverse(mask_r * real - mask_i * imaginary, mask_r * imaginary + mask_i * real)


class AFFBlock(nn.Module):
    """Norm, inverted residual (with its own skip), norm, filter (with its own skip), and one skip around all of it.

    Args:
        dim: channels.
        norm: of :data:`NORMS`.
        activation: of :data:`ACTIVATIONS`.
    """

    def __init__(self, dim: int, norm: str, activation: str):
        super().__init__()
        self.norm1 = channel_norm(norm, dim)
        self.filter = AdaptiveFrequencyFilter(dim, activation=activation)
        self.norm2 = channel_norm(norm, dim)
        self.mlp = InvertedResidual(dim, dim, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.filter(self.norm2(self.mlp(self.norm1(x))))


class AFFStage(nn.Module):
    """Blocks, a norm, a 1x1 convolution, and a second one over the input and what came of it.

    Args:
        dim: channels.
        depth: blocks.
        fusion: whether there is the last convolution; without it the first one's output is the stage's.
        norm, activation: of the blocks.
    """

    def __init__(self, dim: int, depth: int, fusion: bool, norm: str, activation: str):
        super().__init__()
        blocks = (AFFBlock(dim, norm, activation) for _ in range(depth))
        self.global_rep = nn.Sequential(*blocks, channel_norm(norm, dim))
        self.conv_proj = ConvNormAct(dim, dim)
        self.fusion = ConvNormAct(2 * dim, dim, activation=activation) if fusion else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_proj(self.global_rep(x))
        return y if self.fusion is None else self.fusion(torch.cat([x, y], 1))


class AFFNet(Backbone):
    """Stem, two layers of inverted residuals, three that end in a stage of AFF blocks, a 1x1 convolution, the classifier.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        dims: channels of the five layers.
        ratio: of the inverted residuals between the stages.
        depths: inverted residuals of layers 1 and 2, AFF blocks of layers 3, 4 and 5.
        fusion: whether the stages of layers 3, 4 and 5 end in the convolution over input and output.
        norm: of the AFF blocks: ``"layer_norm_2d"`` or ``"layer_norm"``.
        activation: ``"silu"``, ``"relu"``, or ``"prelu"`` (a slope per channel, and one for each part inside a filter).
        output_stride: 32, 16 or 8: where the strides end.
        drop_rate: dropout before the classifier.

    Any image of 32 pixels and more works. Exported programs and :meth:`use_matrices` compute the Fourier transforms as products with
    matrices, in real numbers and for one size of the image.
    """

    head_modules = ("conv_1x1_exp", "head")
    input_layers = ("conv_1.block.conv",)
    native = "offprint"
    dialects = (Dialect("authors", ((r"^classifier\.fc\.", "head."),)),)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        dims: tuple[int, ...] = (32, 64, 128, 256, 320),
        ratio: float = 4,
        depths: tuple[int, ...] = (1, 3, 2, 4, 3),
        fusion: tuple[bool, ...] = (True, True, True),
        norm: str = "layer_norm_2d",
        activation: str = "silu",
        output_stride: int = 32,
        drop_rate: float = 0.0,
    ):
        super().__init__(drop_rate)
        if not len(dims) == len(depths) == len(fusion) + 2:
            raise OffprintError(
                f"dims {dims} and depths {depths} must name the five layers, and fusion {fusion} the last three of them"
            )
        if output_stride not in (8, 16, 32):
            raise OffprintError(f"output_stride={output_stride}; choose 32, 16 or 8")
        self.in_chans, self.num_classes = in_chans, num_classes
        channels, stride, dilation = 16, 2, 1
        self.conv_1 = ConvNormAct(in_chans, channels, 3, 2, activation=activation)
        self.pyramid_reductions: list[int] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            step, rate = 1 if i == 0 else 2, dilation
            if stride * step > output_stride:
                step, dilation = 1, 2 * dilation  # this layer still sees the old rate
            stride *= step
            layers: list[nn.Module] = [InvertedResidual(channels, dim, step, ratio, rate, activation)]
            if i < 2:
                layers += [InvertedResidual(dim, dim, 1, ratio, 1, activation) for _ in range(depth - 1)]
            else:
                layers.append(AFFStage(dim, depth, fusion[i - 2], norm, activation))
            setattr(self, f"layer_{i + 1}", nn.Sequential(*layers))
            self.pyramid_reductions.append(stride)
            channels = dim
        self.pyramid_channels = list(dims)
        self.pyramid_modules = [f"layer_{i + 1}" for i in range(len(dims))]
        self.num_features = min(4 * channels, 960)
        self.conv_1x1_exp = ConvNormAct(channels, self.num_features, activation=activation)
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:  # convolutions keep torch's own start: the authors' initialiser does not reach them
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def use_matrices(self, enable: bool = True) -> None:
        """Compute the filters' transforms as real matrix products, as an exported program does, or as FFTs again."""
        for module in self.modules():
            if isinstance(module, AdaptiveFrequencyFilter):
                module.matrices = enable

    def depth_groups(self) -> list[list[str]]:
        """Stem, each inverted residual, each AFF block; what ends a stage goes with its last block."""
        groups = [["conv_1"]]
        for layer in self.pyramid_modules:
            for name, module in self.get_submodule(layer).named_children():
                if isinstance(module, AFFStage):
                    *blocks, norm = (f"{layer}.{name}.global_rep.{k}" for k in range(len(module.global_rep)))
                    groups += [[block] for block in blocks]
                    ends = ("conv_proj", "fusion") if module.fusion is not None else ("conv_proj",)
                    groups[-1] += [norm, *(f"{layer}.{name}.{end}" for end in ends)]
                else:
                    groups.append([f"{layer}.{name}"])
        if self.whole:
            groups[-1].append("conv_1x1_exp")
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The maps of the five layers: strides 2 to 32, or to ``output_stride``."""
        x = self.conv_1(x)
        for name in self.pyramid_modules:
            x = self.run(self.get_submodule(name), x)
            yield x

    def finish(self, x: Tensor) -> Tensor:
        """The last 1x1 convolution."""
        return self.conv_1x1_exp(x)


_BARE = (True, False, False)  # the two larger networks end the stages of layers 4 and 5 without fusion
VARIANTS = {
    "affnet_et": {"dims": (32, 48, 64, 104, 144), "ratio": 2},
    "affnet_t": {"dims": (32, 48, 96, 160, 192)},
    "affnet": {},
    "affnet_base": {"dims": (64, 128, 256, 512, 640), "fusion": _BARE},
    "affnet_large": {"dims": (64, 128, 256, 512, 768), "depths": (2, 6, 4, 18, 6), "fusion": _BARE},
}
RECIPE = {  # from memory: the configuration files lie beside the weights; the sampler of several sizes is left out
    "optimizer": "adamw",
    "lr": 3e-3,
    "reference_batch": 1024,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "auto_augment": "randaugment",
    "mixup": 0.2,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.9995,
    "drop_rate": 0.1,
    "data": "imagenet-1k",
}
register(
    paper="affnet",
    kind="backbone",
    build=AFFNet,
    variants=VARIANTS,
    input_size=(3, 256, 256),
    preprocessing={"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "crop_pct": 256 / 288},
    recipe=RECIPE,
)
