r"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al.; ICCV 2021; arXiv 2103.14030).

Tokens are 4x4 patches, and attention stays inside windows of MxM of them, so that its cost is linear in the image. Every
second block displaces the windows by half their size, which lets neighbours talk (Eq. 3, Fig. 2):

.. math:: \hat z = \mathrm{(S)W\text{-}MSA}(\mathrm{LN}(z)) + z, \qquad z' = \mathrm{MLP}(\mathrm{LN}(\hat z)) + \hat z,

.. math:: \mathrm{Attention}(Q, K, V) = \mathrm{softmax}(QK^\top / \sqrt d + B)\,V,

with a bias B learnt for each relative position (Eq. 4). Displacing is a cyclic roll, and a mask keeps tokens apart that only
the roll brought together (Fig. 4). Between the four stages 2x2 tokens are merged and the width doubles. Swin-MLP (appendix)
has the same skeleton with one learnt MxM by MxM matrix per head in place of attention.

Every LayerNorm has eps 1e-5; the classifier normalises before pooling. Parameter names are those of the authors' code. The
network, its dense form and Swin-MLP stand in one file because they are one skeleton; recipes and released weights are in
``_swin_tables``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone, sides_of
from offprint.models.backbones._swin_tables import (
    AT_384,
    FINETUNING,
    MLP_WEIGHTS,
    PRETRAINING,
    RECIPE,
    SIMMIM,
    SIMMIM_AS_STATED,
    SIMMIM_FINETUNING,
    SIZES,
    WEIGHTS,
    drop_paths,
    input_sizes,
)
from offprint.models.checkpoint import Dialect
from offprint.models.registry import register
from offprint.nn import DropPath, LayerNorm2d, MaskedTokens, drop_path_rates
from offprint.nn.positions import resample_table, resize_positions
from offprint.nn.relative_bias import RelativeBias
from offprint.nn.windows import Windows, attend, join, split, windows


# -- blocks ----------------------------------------------------------------------------------------------------------
class WindowAttention(RelativeBias):
    """Attention inside windows with a bias from a table of relative positions (Eq. 4).

    Args:
        dim: channels C.
        window: M.
        heads: attention heads.
    """

    def __init__(self, dim: int, window: int, heads: int):
        super().__init__(window, heads)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def set_window(self, window: int) -> None:
        """Change M; the table is resampled bicubically."""
        if window != self.window:
            table = resample_table(self.relative_position_bias_table.detach(), 2 * window - 1)
            self.window, self.relative_position_bias_table, self._bias = window, nn.Parameter(table), None

    def table(self) -> Tensor:
        """The learnt table."""
        return self.relative_position_bias_table

    def sources(self) -> tuple[nn.Parameter, ...]:
        """The table."""
        return (self.relative_position_bias_table,)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B * windows, M², C) to the same; ``mask`` (windows, M², M²) is added to the logits."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v, self.bias(), mask))


class SpatialMLP(nn.Module):
    """One M² x M² matrix and bias per head, the token mixing of Swin-MLP; shaped as the grouped convolution of the files."""

    def __init__(self, dim: int, window: int, heads: int):
        super().__init__()
        self.window, self.heads = 0, heads
        self.set_window(window)

    def set_window(self, window: int) -> None:
        """Change M; a matrix over other tokens is another matrix, so the weights start anew."""
        if window != self.window:
            self.window, tokens = window, window**2
            self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.heads * tokens, tokens, 1), std=0.02))
            self.bias = nn.Parameter(torch.zeros(self.heads * tokens))

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        """(B * windows, M², C) to the same."""
        n, t, c = x.shape
        y = x.view(n, t, self.heads, -1).permute(2, 1, 0, 3).reshape(self.heads, t, -1)
        y = torch.baddbmm(self.bias.view(self.heads, t, 1), self.weight.view(self.heads, t, t), y)
        return y.view(self.heads, t, n, -1).permute(2, 1, 0, 3).reshape(n, t, c)


class MLP(nn.Module):
    """Linear to four times the channels, GELU, linear back."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Eq. 3: mixing inside windows, then the MLP, each normalised before and added to its input."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float, name: str = "attn"):
        super().__init__()
        self.name = name
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        setattr(self, name, mixer)
        self.mlp = MLP(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    @property
    def mixer(self) -> nn.Module:
        """The layer that mixes the tokens of a window."""
        return getattr(self, self.name)

    def mix(self, x: Tensor, cut: Windows) -> Tensor:
        """The mixer on a map (B, H, W, C), window by window."""
        y = split(x, cut)
        return join(self.mixer(y.flatten(0, 1), cut.mask).view_as(y), cut)

    def forward(self, x: Tensor, cut: Windows) -> Tensor:
        """(B, H, W, C) to the same; ``cut`` says where the windows lie."""
        x = x + self.drop_path(self.mix(self.norm1(x), cut))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MLPBlock(Block):
    """A block of Swin-MLP. Windows are displaced by padding, without a roll: there is one more of them a side."""

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float):
        super().__init__(dim, mixer, drop_path, "spatial_mlp")

    def mix(self, x: Tensor, cut: Windows) -> Tensor:
        (h, w), m = cut.sides, cut.window[0]
        top, left = (m - s if s else 0 for s in cut.shift)
        if any(cut.shift):
            x = F.pad(x, (0, 0, left, cut.shift[1], top, cut.shift[0]))
        y = super().mix(x, windows(tuple(x.shape[1:3]), cut.window, (0, 0)))
        return y[:, top : top + h, left : left + w]


class PatchEmbed(nn.Module):
    """Patches to tokens: a convolution whose stride is its kernel, and a norm."""

    def __init__(self, in_chans: int, dim: int, patch: int, norm: bool):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H/p, W/p, C)."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2x2 tokens side by side (upper left, lower left, upper right, lower right), norm, linear to twice the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    @staticmethod
    def cells(x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, 4C); odd sides are padded with zeros."""
        h, w = x.shape[1:3]
        if h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        b, h, w, c = x.shape
        return x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, h // 2, w // 2, 4 * c)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.cells(x)))


class Stage(nn.Module):
    """Blocks with plain and displaced windows in turn, then the merging (all stages but the last).

    Args:
        blocks: the blocks.
        downsample: the merging.
        window: M as asked for.
        sides: of the map the stage is built for. A window that covers the shorter side shrinks to it, and is not displaced.
    """

    def __init__(self, blocks: list[Block], downsample: nn.Module | None, window: int, sides: tuple[int, int]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if downsample is not None:
            self.downsample = downsample
        self.sides, self.window, self.covered = sides, min(window, *sides), min(sides) <= window
        self.shifted = True  # False leaves every window in place, which only serves to show what displacing is worth

    def set_window(self, window: int) -> None:
        """Change M of every block."""
        self.window = window
        for block in self.blocks:
            block.mixer.set_window(window)

    def cuts(self, x: Tensor, dense: bool) -> tuple[Windows, Windows]:
        """Plain and displaced windows for a map (B, H, W, C).

        The dense form always displaces, as its authors' code does. Otherwise an axis that one window covers is not displaced.
        """
        m, sides = self.window, tuple(x.shape[1:3])
        shift = tuple(m // 2 if dense or s > m else 0 for s in sides)
        if not self.shifted or (self.covered and not dense and sides == self.sides):
            shift = (0, 0)
        return windows(sides, (m, m), (0, 0)), windows(sides, (m, m), shift, x.device, x.dtype)


# -- the model -------------------------------------------------------------------------------------------------------
def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TIMM = (
    # timm merges at the start of a stage, the authors at the end of the one before
    (r"^layers[._](\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
    (r"^layers_(\d)\.", r"layers.\1."),
    (r"^head\.fc\.", "head."),
)
TORCHVISION = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([1357])\.(\d+)\.", lambda m: f"layers.{int(m[1]) // 2}.blocks.{m[2]}."),
    (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2 - 1}.downsample."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
BUFFERS = r"(relative_position_index|relative_coords_table|attn_mask)$"


class SwinTransformer(MaskedTokens, Backbone):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        img_size: side, or (height, width), in pixels the model is built for. It sets where windows shrink and nothing else: any
            image works, its maps padded to whole windows as in torchvision.
        patch_size: pixels of a patch's side.
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled features.
        embed_dim: channels of the first stage; each merging doubles them.
        depths, num_heads: blocks and heads per stage.
        window_size: M. A map of ``img_size`` with a shorter side than this shrinks the window of its stage.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.
        ape: add a learnt absolute position to each token (the ablation of Table 4); resized bicubically for other images.
        patch_norm: LayerNorm after the patch embedding.

    With ``features_only`` the model is the dense backbone of the authors' detection code: windows never shrink, odd blocks are
    always displaced, image and maps are padded with zeros, and each map has a LayerNorm of its own.
    """

    input_layers = ("patch_embed.proj",)
    optional_state = rf"^norm\d\.|^mask_token$|^decoder\.|{BUFFERS}"  # the decoder is of SimMIMs files
    undecayed = r"absolute_pos_embed|mask_token|relative_position_bias_table"
    dialects: ClassVar[tuple[Dialect, ...]] = (Dialect("timm", TIMM), Dialect("torchvision", TORCHVISION))
    merging: ClassVar[type[nn.Module]] = PatchMerging

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        ape: bool = False,
        patch_norm: bool = True,
    ):
        super().__init__()
        height, width = sides_of(img_size)
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self._check(height, width, patch_size, dims, depths, num_heads, window_size)
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.patch_size, self.window_size, self.dense = patch_size, window_size, False
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [patch_size * 2**i for i in range(len(depths))]
        self.pyramid_modules = [f"layers.{i}.blocks.{depth - 1}" for i, depth in enumerate(depths)]
        self.grid = (height // patch_size, width // patch_size)
        self.register_parameter("mask_token", None)
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, patch_norm)
        if ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        sides = self.grid
        for i, (dim, depth, heads) in enumerate(zip(dims, depths, num_heads, strict=True)):
            window = min(window_size, *sides)
            blocks = [self.block(i, dim, window, heads, next(rates)) for _ in range(depth)]
            merging = self.merging(dim) if i < len(depths) - 1 else None
            self.layers.append(Stage(blocks, merging, window_size, sides))
            sides = tuple(-(-s // 2) for s in sides)
        self.norm = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_init)

    def block(self, stage: int, dim: int, window: int, heads: int, drop_path: float) -> Block:
        """One block of a stage."""
        return Block(dim, WindowAttention(dim, window, heads), drop_path)

    def set_input_size(self, img_size: int | Sequence[int], window_size: int | None = None) -> None:
        """Windows shrink, or grow back, as in a model built for such images; tables of positions are resampled bicubically.

        Args:
            window_size: another M; default the one it was built with.

        Raises:
            OffprintError: an image smaller than a patch.
        """
        height, width = sides_of(img_size)
        m = self.window_size if window_size is None else window_size
        self._check(height, width, self.patch_size, [], [], [], m)
        self.keeps_windows(height, width, m)
        grid, self.window_size = (height // self.patch_size, width // self.patch_size), m
        positions = getattr(self, "absolute_pos_embed", None)
        if positions is not None and grid != self.grid:
            self.absolute_pos_embed = nn.Parameter(resize_positions(positions.detach(), grid, self.grid))
        self.grid = grid
        for stage, sides in zip(self.layers, self._maps(grid), strict=True):
            stage.sides, stage.covered = sides, min(sides) <= m
            stage.set_window(m if self.dense else min(m, *sides))
        self._remember(img_size=(height, width), window_size=m)

    def _maps(self, grid: tuple[int, int]) -> list[tuple[int, int]]:
        """Sides of the map of every stage."""
        return [(-(-grid[0] // 2**i), -(-grid[1] // 2**i)) for i in range(len(self.layers))]

    def keeps_windows(self, height: int, width: int, window: int) -> None:
        """Refuse a change of windows that the weights cannot follow; tables of positions always can."""

    @staticmethod
    def _check(height, width, patch, dims, depths, num_heads, window) -> None:
        if len(depths) != len(num_heads):
            raise OffprintError(
                f"depths {tuple(depths)} and num_heads {tuple(num_heads)} must name the same number of stages"
            )
        for dim, heads in zip(dims, num_heads, strict=True):
            if dim % heads:
                raise OffprintError(f"{dim} channels do not divide into {heads} heads; change embed_dim or num_heads")
        if not isinstance(window, int) or window < 1:
            raise OffprintError(
                f"window_size={window}; windows are squares of at least one token a side: give one number"
            )
        if min(height, width) < patch:
            raise OffprintError(f"img_size {(height, width)} is smaller than a patch of {patch} pixels")

    def as_features(self, out_indices=None) -> SwinTransformer:
        """The dense backbone (see the class)."""
        super().as_features(out_indices)
        self.dense = True
        for stage in self.layers:
            stage.set_window(self.window_size)
        for i in self.out_indices:
            setattr(self, f"norm{i}", LayerNorm2d(self.pyramid_channels[i], eps=1e-5))
        return self

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the tables of a checkpoint with other windows, and absolute positions of another grid.

        A file with a mask token comes from SimMIM pre-training, whose authors resample geometrically.
        """
        own, ready = self.state_dict(), {}
        for name, value in state.items():
            want = own[name].shape if name in own else None
            if name == "absolute_pos_embed" and want is not None:
                value = value.flatten(2).transpose(1, 2) if value.ndim == 4 else value  # the dense code keeps a map
                if value.shape[2:] == want[2:] and value.shape != want:
                    value = resize_positions(value, self.grid)
            elif name.endswith("relative_position_bias_table") and want is not None and value.shape[1:] == want[1:]:
                if value.shape != want:
                    value = resample_table(value, round(want[0] ** 0.5), "mask_token" in state)
            ready[name] = value
        return ready

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images to tokens (B, H, W, C), those under ``mask`` replaced by the mask token, with absolute positions if any."""
        if self.dense:
            h, w = x.shape[-2:]
            if h % self.patch_size or w % self.patch_size:
                x = F.pad(x, (0, -w % self.patch_size, 0, -h % self.patch_size))
        x = self.hide(self.patch_embed(x), mask)
        positions = getattr(self, "absolute_pos_embed", None)
        if positions is not None:
            sides = tuple(x.shape[1:3])
            if sides != self.grid:
                positions = resize_positions(positions, sides, self.grid)
            x = x + positions.view(1, *sides, -1)
        return x

    def depth_groups(self) -> list[list[str]]:
        """Patch embedding and mask token, then each block; a merging goes with the block before it (SimMIM's fine-tuning)."""
        groups = [["patch_embed", "mask_token"]]
        for i, stage in enumerate(self.layers):
            groups += [[f"layers.{i}.blocks.{j}"] for j in range(len(stage.blocks))]
            if hasattr(stage, "downsample"):
                groups[-1].append(f"layers.{i}.downsample")
        return groups

    def walk(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The tokens (B, H, W, C) at the end of each stage, before merging."""
        x = self.embed(x, mask)
        for stage in self.layers:
            cuts = stage.cuts(x, self.dense)
            for j, block in enumerate(stage.blocks):
                x = self.run((block,), x, cuts[j % 2])
            yield x
            if hasattr(stage, "downsample"):
                x = stage.downsample(x)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map (B, C, H/32, W/32), normalised, before pooling.

        Args:
            mask: (B, H/4, W/4), 1 for patches to hide (see :class:`~offprint.nn.MaskedTokens`).
        """
        return self._last(self.walk(x, mask))

    def finish(self, x: Tensor) -> Tensor:
        """The last norm."""
        return self.norm(x).permute(0, 3, 1, 2)

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map (B, C, H, W), through its own norm where the model is a feature extractor."""
        if norm and self.whole and index == len(self.pyramid_channels) - 1:
            return self.finish(x)
        x = x.permute(0, 3, 1, 2)
        return getattr(self, f"norm{index}")(x) if hasattr(self, f"norm{index}") else x


class SwinMLP(SwinTransformer):
    """Swin with a matrix per head in place of attention (appendix); arguments as :class:`SwinTransformer`.

    Its weights belong to one window size. ``features_only`` never shrinks windows; one that ``img_size`` made smaller gets
    fresh weights there.
    """

    undecayed = r"absolute_pos_embed|mask_token"
    dialects = ()

    def keeps_windows(self, height: int, width: int, window: int) -> None:
        """The matrix of a window is of that window alone."""
        sides = self._maps((height // self.patch_size, width // self.patch_size))
        for i, (stage, side) in enumerate(zip(self.layers, sides, strict=True)):
            new, old = window if self.dense else min(window, *side), stage.window
            if new != old:
                least = max(s.window * self.patch_size * 2**j for j, s in enumerate(self.layers))
                raise OffprintError(
                    f"img_size {(height, width)} with window_size={window} makes the windows of stage {i} {new} tokens a side, and "
                    f"the weights of {type(self).__name__} belong to windows of {old}; keep the windows (sides of {least} pixels, or "
                    "any image as it is), or build a model for such images and train it"
                )

    def block(self, stage: int, dim: int, window: int, heads: int, drop_path: float) -> Block:
        return MLPBlock(dim, SpatialMLP(dim, window, heads), drop_path)


def _tiny(heads: int) -> dict:
    return {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": tuple(heads * 2**i for i in range(4)),
            "window_size": 8, "img_size": 256}  # fmt: skip


VARIANTS = {f"swin_{size}": row for size, row in SIZES.items()}
VARIANTS["swin_tiny_c24"] = VARIANTS["swin_tiny_c24_patch4_window8_256"] = _tiny(4)
for _size, _row in SIZES.items():
    VARIANTS[f"swin_{_size}_patch4_window7_224"] = _row
    if _size in ("base", "large"):
        VARIANTS[f"swin_{_size}_patch4_window12_384"] = {**_row, "window_size": 12, "img_size": 384}
MLPS = {f"swin_mlp_tiny_c{c}": _tiny(96 // c) for c in (24, 12, 6)} | {"swin_mlp_base": SIZES["base"]}
MLPS |= {f"swin_mlp_tiny_c{c}_patch4_window8_256": _tiny(96 // c) for c in (24, 12, 6)}
MLPS["swin_mlp_base_patch4_window7_224"] = SIZES["base"]
_AT_224 = {f"swin_{size}{end}": size for size in SIZES for end in ("", "_patch4_window7_224")}
_LARGER = {f"swin_{size}_patch4_window12_384": size for size in ("base", "large")}
register(
    paper="swin", kind="backbone", build=SwinTransformer, variants=VARIANTS, input_sizes=input_sizes(VARIANTS), weights=WEIGHTS,
    recipe=RECIPE, exceptions={
        "training": drop_paths(VARIANTS),
        "pretraining": {n: {**PRETRAINING, **({"drop_path_rate": 0.1} if s == "tiny" else {})} for n, s in _AT_224.items()},
        "finetuning": {n: {**FINETUNING, **({"drop_path_rate": 0.1} if s == "tiny" else {})} for n, s in _AT_224.items()}
        | {name: {**FINETUNING, **AT_384} for name in _LARGER},
        "finetuning_384": {
            "swin_base_patch4_window12_384": {**FINETUNING, **AT_384, "drop_path_rate": 0.5, "start": "training"}
        },
        "simmim": {n: {**SIMMIM, **SIMMIM_AS_STATED} for n, s in _AT_224.items() if s in ("base", "large")},
        "simmim_finetuning": {
            n: {**SIMMIM_FINETUNING, **({"layer_decay": 0.7, "drop_path_rate": 0.2} if s == "large" else {})}
            for n, s in _AT_224.items() if s in ("base", "large")
        },
    },
)  # fmt: skip
register(paper="swin", kind="backbone", build=SwinMLP, variants=MLPS, input_sizes=input_sizes(MLPS),
         weights=MLP_WEIGHTS, recipe=RECIPE, exceptions={"training": drop_paths(MLPS)})  # fmt: skip
