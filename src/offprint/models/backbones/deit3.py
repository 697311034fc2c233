r"""DeiT III: Revenge of the ViT (Touvron, Cord, Jégou; ECCV 2022; arXiv 2204.07118): the anchors of stitched transformers.

A plain vision transformer with layer scale. Patches are embedded by one convolution, positions are added to them **before** the class
token is put in front (it has no position of its own), and every block is

.. math:: x \leftarrow x + \gamma_1 \odot \mathrm{Attention}(\mathrm{LN}(x)), \qquad x \leftarrow x + \gamma_2 \odot \mathrm{MLP}(\mathrm{LN}(x)),

with :math:`\gamma` starting at 1e-4 and one rate of stochastic depth in all blocks. The classifier reads the class token after the
last norm. Parameter names are those of the authors' code; timm's differ in the layer scale (``ls1.gamma``, there ``gamma_1`` here).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone, sides_of
from offprint.models.checkpoint import Dialect
from offprint.models.registry import Weights, register
from offprint.models.released import timm, top
from offprint.nn.vit import PatchEmbed, ViTBlock, resample_positions


class Tokens(NamedTuple):
    """Tokens (B, 1 + h * w, C), the class token first, and the sides (h, w) of their map."""

    x: Tensor
    grid: tuple[int, int]

    @property
    def map(self) -> Tensor:
        """The tokens of the patches as a map (B, C, h, w)."""
        return self.x[:, 1:].transpose(1, 2).unflatten(2, self.grid)


_TAPS = {12: (4, 7, 9, 11), 24: (9, 14, 19, 23)}  # of the authors' dense tasks


def map_blocks(depth: int) -> tuple[int, ...]:
    """Blocks (from 0) after which a plain transformer gives a map to a dense head: the last one, and up to three before it."""
    return _TAPS.get(depth) or tuple(sorted({max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4)}))


class DeiT3(Backbone):
    """A plain vision transformer with layer scale.

    Args:
        in_chans, num_classes: channels of the image, outputs of the classifier.
        img_size: side (or height and width) of the images whose grid the table of positions has; for others it is resampled at
            every call, or once by :meth:`set_input_size`. Sides that are no multiple of the patch are padded with zeros.
        patch_size: side of a patch in pixels.
        embed_dim, depth, num_heads, mlp_ratio: of the blocks.
        layer_scale_init_value: start of layer scale.
        drop_path_rate: of every block alike.
        drop_rate: dropout before the classifier.

    :meth:`forward_features` gives tokens (B, 1 + h * w, C), as timm's transformers do. Maps (``features_only``) are those after the
    blocks of :func:`map_blocks`, all of the stride of a patch, without a norm and without the class token.
    """

    head_modules = ("norm", "head")
    classifier = "head"
    input_layers = ("patch_embed.proj",)
    minimum = 16
    undecayed = r"(^|\.)(pos_embed|cls_token)$"
    dialects = (Dialect("timm", ((r"\.ls([12])\.gamma$", r".gamma_\1"),)),)

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        layer_scale_init_value: float = 1e-4,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
    ):
        super().__init__(drop_rate)
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, embed_dim
        self.grid = self._grid_of(sides_of(img_size), patch_size)
        self.minimum = patch_size
        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1], embed_dim))
        self.blocks = nn.ModuleList(
            ViTBlock(embed_dim, num_heads, mlp_ratio, layer_scale_init_value, drop_path_rate) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, 1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.taps = map_blocks(depth)
        self.pyramid_channels = [embed_dim] * len(self.taps)
        self.pyramid_reductions = [patch_size] * len(self.taps)
        self.pyramid_modules = [f"blocks.{i}" for i in self.taps]
        self.apply(self._start)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    @staticmethod
    def _start(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    @staticmethod
    def _grid_of(sides: tuple[int, int], patch: int) -> tuple[int, int]:
        return -(-sides[0] // patch), -(-sides[1] // patch)

    # -- forward ------------------------------------------------------------------------------------------------------
    def embed(self, x: Tensor) -> Tokens:
        """Patches with their positions, and the class token in front of them."""
        x = self.patch_embed(x)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2) + resample_positions(self.pos_embed, self.grid, grid)
        return Tokens(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1), grid)

    def walk(self, x: Tensor) -> Iterator[Tokens]:  # type: ignore[override]
        x, grid = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = self.run([block], x)
            if i in self.taps:
                yield Tokens(x, grid)

    def finish(self, x: Tokens) -> Tensor:  # type: ignore[override]
        return self.norm(x.x)

    def tap(self, x: Tokens, index: int, norm: bool = False) -> Tensor:  # type: ignore[override]
        last = norm and self.whole and index == len(self.pyramid_channels) - 1
        return Tokens(self.norm(x.x), x.grid).map if last else x.map

    def pooled(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.global_pool else x

    def depth_groups(self) -> list[list[str]]:
        return [["cls_token", "pos_embed", "patch_embed"], *([f"blocks.{i}"] for i in range(len(self.blocks)))]

    # -- the input ----------------------------------------------------------------------------------------------------
    def map_size(self, height: int, width: int) -> tuple[int, int]:
        return self._grid_of((height, width), self.patch_embed.patch_size)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Resample the table of positions to the patches of such images."""
        sides = self._sides(img_size)
        new = self._grid_of(sides, self.patch_embed.patch_size)
        table = resample_positions(self.pos_embed.data, self.grid, new)
        self.pos_embed, self.grid = nn.Parameter(table.contiguous()), new
        self._remember(img_size=sides)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample a table of positions that was stored for images of another size (a square of patches)."""
        return adapt_positions(state, "pos_embed", self)


def adapt_positions(state: dict[str, Tensor], name: str, model: DeiT3) -> dict[str, Tensor]:
    """A state whose table of positions has the model's grid.

    Raises:
        OffprintError: the table is of another grid that is no square.
    """
    table = state.get(name)
    wanted = model.grid[0] * model.grid[1]
    if table is None or table.ndim != 3 or table.shape[1] == wanted or table.shape[2] != model.pos_embed.shape[2]:
        return state
    side = round(table.shape[1] ** 0.5)
    if side * side != table.shape[1]:
        raise OffprintError(
            f"{name} has {table.shape[1]} positions, which is no square of patches; build the model with the img_size of this file, "
            "load it, and call set_input_size"
        )
    return {**state, name: resample_positions(table, (side, side), model.grid)}


_SIZES = {
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "medium": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
VARIANTS = {
    f"deit3_{size}_patch{patch}_{side}": {**_SIZES[size], "patch_size": patch, "img_size": side}
    for size, patch, side in (
        ("small", 16, 224), ("small", 16, 384), ("medium", 16, 224), ("base", 16, 224), ("base", 16, 384), ("large", 16, 224),
        ("large", 16, 384), ("huge", 14, 224),
    )
}  # fmt: skip
_FIGURES = {  # timm's top-1 and top-5 on ImageNet: after 22k, on 1k alone
    "deit3_small_patch16_224": ((83.074, 96.776), (81.370, 95.456)),
    "deit3_small_patch16_384": ((84.824, 97.488), (83.430, 96.674)),
    "deit3_medium_patch16_224": ((84.552, 97.188), (83.086, 96.296)),
    "deit3_base_patch16_224": ((85.700, 97.746), (83.786, 96.588)),
    "deit3_base_patch16_384": ((86.738, 98.114), (85.072, 97.252)),
    "deit3_large_patch16_224": ((86.982, 98.236), (84.776, 97.038)),
    "deit3_large_patch16_384": ((87.720, 98.512), (85.812, 97.598)),
    "deit3_huge_patch14_224": ((87.186, 98.260), (85.224, 97.360)),
}
_AUTHORS = "https://dl.fbaipublicfiles.com/deit/deit_3_{}_{}_{}.pth"


def _released(name: str) -> dict[str, Weights]:
    size, side = name.split("_")[1], VARIANTS[name]["img_size"]
    after, alone = _FIGURES[name]
    crop = 1.0 if side == 384 else 0.9
    files = {"fb_in22k_ft_in1k": "21k_v1" if size == "huge" else "21k", "fb_in1k": "1k"}
    own = {
        f"{tag}_authors": Weights(
            _AUTHORS.format(size, side, file), "authors", "authors", "Apache-2.0", metrics=top(None),
            input_size=(3, side, side),
        )
        for tag, file in files.items()
    }  # fmt: skip
    return {
        **own,
        "fb_in22k_ft_in1k": timm(f"{name}.fb_in22k_ft_in1k", side, *after, crop=1.0),
        "fb_in1k": timm(f"{name}.fb_in1k", side, *alone, crop=crop),
    }


register(
    paper="sn-net-v2",
    kind="backbone",
    build=DeiT3,
    variants=VARIANTS,
    input_sizes={name: (3, row["img_size"], row["img_size"]) for name, row in VARIANTS.items()},  # type: ignore[misc]
    weights={name: _released(name) for name in VARIANTS},
)
