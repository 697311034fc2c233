r"""Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach (IEEE TIP 2024; arXiv 2401.05633).

A transformer block whose attention is a large depth-wise convolution that gates a value branch (Fig. 3),

.. math:: \mathrm{ConvMod}(x) = W_o\big(\mathrm{DW}_{9\times9}(\mathrm{GELU}(W_a y)) \odot W_v y\big), \qquad y = \mathrm{LN}(x),

and whose feed-forward part keeps edges (Fig. 4): beside a depth-wise 3x3 convolution it learns scales of fixed Sobel and
Laplacian filters,

.. math:: e = K_{pos} * y + \sum_b \big((s_b \odot M_b) * y + \beta_b\big), \qquad z = y + \mathrm{GELU}(e).

All four convolutions are linear in :math:`y` and padded alike, so they are one: :meth:`CFSR.merge` adds the branches to
:math:`K_{pos}` and drops them. The released files are in that merged form.

Two of the authors' fixed filters have an entry in the wrong place (the first row of Sobel-x and of the Laplacian). They
are kept as they are: a file in training form depends on them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.registry import Weights, register
from offprint.nn import LayerNorm2d

MASKS = {
    "sobel_x": ((0, 1, -1), (2, 0, -2), (1, 0, -1)),
    "sobel_y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "laplacian": ((1, 0, 0), (1, -4, 1), (0, 1, 0)),
}


def merge_edge_branches(
    weight: Tensor,
    bias: Tensor,
    scales: dict[str, Tensor],
    biases: dict[str, Tensor],
    masks: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """One depth-wise kernel and bias that equal the convolution and its edge branches (Sec. III-C).

    Args:
        weight, bias: of the depth-wise 3x3 convolution, (C, 1, 3, 3) and (C,).
        scales, biases: branch name → (C, 1, 1, 1) and (C,).
        masks: branch name → filters; default the paper's code's.

    Returns:
        Merged weight and bias.
    """
    for name, scale in scales.items():
        mask = weight.new_tensor(MASKS[name]) if masks is None else masks[name]
        weight = weight + scale * mask
        bias = bias + biases[name]
    return weight, bias


class LargeKernel(nn.Module):
    """A depth-wise convolution under the name the released files use."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.lkb_reparam = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lkb_reparam(x)


class ConvMod(nn.Module):
    """Convolution in the place of attention (Fig. 3)."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.a = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.GELU(), LargeKernel(dim, kernel))
        self.v = nn.Conv2d(dim, dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.proj(self.a(y) * self.v(y))


class EFN(nn.Module):
    """Edge-preserving feed-forward network (Fig. 4).

    Args:
        dim: channels C.
        ratio: hidden channels are ``ratio * dim``.
        deploy: only the merged convolution.
    """

    def __init__(self, dim: int, ratio: int, deploy: bool = False):
        super().__init__()
        hidden = dim * ratio
        self.norm = LayerNorm2d(dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.pos = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.deploy = deploy
        if not deploy:
            for name, mask in MASKS.items():
                self.register_parameter(f"scale_{name}", nn.Parameter(1e-3 * torch.randn(hidden, 1, 1, 1)))
                self.register_parameter(f"{name}_bias", nn.Parameter(1e-3 * torch.randn(hidden)))
                fixed = torch.tensor(mask, dtype=torch.get_default_dtype()).expand(hidden, 1, 3, 3).clone()
                self.register_parameter(f"mask_{name}", nn.Parameter(fixed, requires_grad=False))

    def kernel(self) -> tuple[Tensor, Tensor]:
        """The kernel and bias of this form."""
        if self.deploy:
            return self.pos.weight, self.pos.bias
        pick = lambda pattern: {name: getattr(self, pattern.format(name)) for name in MASKS}  # noqa: E731
        return merge_edge_branches(self.pos.weight, self.pos.bias, pick("scale_{}"), pick("{}_bias"), pick("mask_{}"))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.fc1(self.norm(x)))
        weight, bias = self.kernel()
        return self.fc2(y + F.gelu(F.conv2d(y, weight, bias, padding=1, groups=y.shape[1])))

    @torch.no_grad()
    def merge(self) -> None:
        """Fold the branches into the convolution; merging again changes nothing."""
        if self.deploy:
            return
        weight, bias = self.kernel()
        self.pos.weight.copy_(weight)
        self.pos.bias.copy_(bias)
        self.drop_branches()

    def drop_branches(self) -> None:
        """Remove the branches without adding them."""
        for name in MASKS if not self.deploy else ():
            for attribute in (f"scale_{name}", f"{name}_bias", f"mask_{name}"):
                delattr(self, attribute)
        self.deploy = True


class Block(nn.Module):
    """ConvMod and EFN, each with a learnt scale on its branch."""

    def __init__(self, dim: int, kernel: int, ratio: int, deploy: bool):
        super().__init__()
        self.attn = ConvMod(dim, kernel)
        self.mlp = EFN(dim, ratio, deploy)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-6))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.attn(x)
        return x + self.layer_scale_2[:, None, None] * self.mlp(x)


class Stage(nn.Module):
    """Blocks, then a 1x1 convolution with a shortcut of its own."""

    def __init__(self, dim: int, depth: int, kernel: int, ratio: int, deploy: bool):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, kernel, ratio, deploy) for _ in range(depth))
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.conv(x) + x


class CFSR(nn.Module):
    """Super-resolution network: images (B, C, H, W) in [0, 1] to (B, C, sH, sW), not clamped.

    Args:
        scale: s, the enlargement; 1 restores at the same size (a convolution to the image, added to the input).
        in_chans: image channels; the fixed mean is that of RGB photographs, and 0 for other numbers.
        embed_dim, depths, dw_size, mlp_ratio: width, blocks per stage, kernel of ConvMod, hidden ratio (an integer).
        img_range: images are multiplied by this.
        deploy: build the merged form. A file in either form loads into either: a merged file turns the model into its merged
            form, a file in training form is merged on the way.
    """

    native = "authors"
    input_layers = ("conv_first",)
    optional_state = r"\.mask_(sobel_x|sobel_y|laplacian)$"

    def __init__(
        self,
        scale: int = 2,
        in_chans: int = 3,
        embed_dim: int = 48,
        depths: tuple[int, ...] = (6, 6),
        dw_size: int = 9,
        mlp_ratio: int = 2,
        img_range: float = 1.0,
        deploy: bool = False,
    ):
        super().__init__()
        if not isinstance(mlp_ratio, int):
            raise OffprintError(f"mlp_ratio={mlp_ratio!r} multiplies a number of channels; give an integer")
        if scale not in (1, 2, 3, 4):
            raise OffprintError(f"scale={scale!r}; choose 2, 3 or 4, or 1 to restore at the same size")
        self.scale, self.in_chans, self.img_range = scale, in_chans, img_range
        mean = (0.4488, 0.4371, 0.4040) if in_chans == 3 else (0.0,) * in_chans
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.layers = nn.ModuleList(Stage(embed_dim, depth, dw_size, mlp_ratio, deploy) for depth in depths)
        self.norm = LayerNorm2d(embed_dim)
        self.conv_after_body = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)
        if scale == 1:
            self.conv_last = nn.Conv2d(embed_dim, in_chans, 3, padding=1)
        else:
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, in_chans * scale**2, 3, padding=1), nn.PixelShuffle(scale)
            )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (x.ndim != 4 or x.shape[1] != self.in_chans):
            raise OffprintError(f"expected images of shape (B, {self.in_chans}, H, W), got {tuple(x.shape)}")
        x = (x - self.mean) * self.img_range
        shallow = self.conv_first(x)
        deep = shallow
        for layer in self.layers:
            deep = layer(deep)
        deep = self.conv_after_body(self.norm(deep)) + shallow
        out = x + self.conv_last(deep) if self.scale == 1 else self.upsample(deep)
        return out / self.img_range + self.mean

    def example_input(self, batch: int = 1) -> Tensor:
        """A random image."""
        reference = self.conv_first.weight
        return torch.rand(batch, self.in_chans, 48, 40, device=reference.device, dtype=reference.dtype)

    def merge(self) -> None:
        """The deployed form: every edge branch folded into its convolution."""
        for module in self.modules():
            if isinstance(module, EFN):
                module.merge()

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Bring model and file to one form: whichever of them is merged, both are afterwards."""
        multi = any(".mlp.scale_sobel_x" in name for name in state)
        efns = {name: m for name, m in self.named_modules() if isinstance(m, EFN)}
        if not multi:
            for module in efns.values():
                module.drop_branches()
            return state
        for name, module in efns.items():
            if module.deploy and f"{name}.scale_sobel_x" in state:
                scales = {b: state.pop(f"{name}.scale_{b}") for b in MASKS}
                biases = {b: state.pop(f"{name}.{b}_bias") for b in MASKS}
                masks = {b: state.pop(f"{name}.mask_{b}", None) for b in MASKS}
                given = None if any(m is None for m in masks.values()) else masks
                pos = f"{name}.pos"
                state[f"{pos}.weight"], state[f"{pos}.bias"] = merge_edge_branches(
                    state[f"{pos}.weight"], state[f"{pos}.bias"], scales, biases, given
                )
        return state


_DIGESTS = {
    2: "e6440c1a70af2cfa16c51287593f681438c8f307a81f90367a24e42086522f2c",
    3: "d501ce105b52550be501b327785d6fde27ca3534531f33aa0d530750ec41eb40",
    4: "59c779a61c72238aed87683a908248d6e9e3cdb78a29a71da196d20092b6f2f6",
}
_FIGURES = {  # scale: PSNR and SSIM on Y (dB, 1), the repository's README; it states those of x4 only
    4: {"set5": (32.33, 0.8964), "set14": (28.73, 0.7842), "b100": (27.63, 0.7381), "urban100": (26.21, 0.7897),
        "manga109": (30.72, 0.9111)}
}  # fmt: skip
VARIANTS = {f"cfsr_x{s}": {"scale": s} for s in (2, 3, 4)}
WEIGHTS = {
    f"cfsr_x{s}": {
        "released": Weights(
            f"https://raw.githubusercontent.com/Aitical/CFSR/ec9b237/model_zoo/CFSR_x{s}.pth",
            "authors",
            "authors",
            "none stated",
            _DIGESTS[s],
            metrics={d: {"psnr_y": psnr, "ssim_y": ssim} for d, (psnr, ssim) in _FIGURES.get(s, {}).items()},
            metrics_source="Aitical/CFSR README" if s in _FIGURES else "",
        )
    }
    for s in (2, 3, 4)
}
# L1, Adam, one cosine and averaged weights; the authors published no training settings of their own
RECIPE = {
    "optimizer": "adam", "lr": 5e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "min_lr": 1e-6, "warmup_epochs": 0, "batch_size": 16,
    "ema_decay": 0.999,
}  # fmt: skip
register(
    paper="cfsr",
    kind="signal",
    task="restoration",
    build=CFSR,
    variants=VARIANTS,
    input_size=None,
    preprocessing={},
    weights=WEIGHTS,
    recipe=RECIPE,
)
