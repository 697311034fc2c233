r"""A ConvNet for the 2020s (Liu, Mao, Wu, Feichtenhofer, Darrell, Xie; CVPR 2022; arXiv 2201.03545).

A ResNet-50 is changed one decision at a time towards the design of a Swin transformer, without attention: stage ratio
3:3:9:3, a 4x4 "patchify" stem, depth-wise 7x7 convolutions moved to the top of an inverted bottleneck, GELU once and
LayerNorm once per block, separate downsampling layers. For a map :math:`x` of width :math:`C` a block is

.. math:: x \leftarrow x + \gamma \odot W_2\, \mathrm{GELU}\big(W_1\, \mathrm{LN}(\mathrm{DW}_{7\times7}(x))\big),
          \qquad W_1 \in \mathbb{R}^{4C \times C},\ W_2 \in \mathbb{R}^{C \times 4C},

with a learnt per-channel scale :math:`\gamma` (initially :math:`10^{-6}`) and stochastic depth on the branch (Fig. 4).
The isotropic form (Sec. 3.3 "isotropic", Table 2) keeps one width and one resolution, like a ViT.

Every LayerNorm has eps 1e-6. The classifier normalises after pooling. Parameter names are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import Dialect
from offprint.models.registry import IMAGENET, Weights, register
from offprint.models.released import SQUASH, timm, top, torchvision
from offprint.nn import DepthwiseConv2d, DropPath, LayerNorm2d, MaskedTokens, drop_path_rates


class Block(nn.Module):
    """Depth-wise 7x7 convolution, LayerNorm, inverted bottleneck, layer scale, residual (Fig. 4 right).

    Args:
        dim: channels C.
        drop_path: probability of dropping the branch.
        layer_scale_init_value: initial gamma; 0 or less leaves gamma out.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, layer_scale_init_value: float = 1e-6):
        super().__init__()
        self.dwconv = DepthwiseConv2d(dim, 7)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value)) if layer_scale_init_value > 0 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map of the same shape."""
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        y = self.drop_path(y.permute(0, 3, 1, 2))
        if self.gamma is None:
            return x + y
        return torch.addcmul(x, y, self.gamma[:, None, None].to(x.dtype))

    @torch.no_grad()
    def merge(self) -> None:
        """For :func:`offprint.deploy`: the layer scale into the layer before it."""
        if self.gamma is not None:
            self.pwconv2.weight.mul_(self.gamma[:, None])
            self.pwconv2.bias.mul_(self.gamma)
            self.gamma = None


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm of vectors (B, C), or of every place of a map (B, C, H, W)."""
    return norm(x) if x.ndim == 2 else norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtFrame(Backbone):
    """Everything of ConvNeXt but its blocks: patchify stem, separate downsampling layers, classifier, norms of the dense form.

    A subclass has ``downsample_layers``, ``stages``, ``norm`` and ``head`` from :meth:`frame`.
    """

    input_layers = ("downsample_layers.0.0",)
    blocks_per_layer = 3  # of stage 3, for layer-wise rates: 12 layers in S to XL, 6 in T (appendix A.2)
    optional_state = r"^norm\d\."  # the pyramid's own norms: no classification checkpoint holds them

    def frame(
        self, in_chans: int, num_classes: int, dims: Sequence[int], stages: Iterable[nn.Module], head_init_scale: float
    ) -> None:
        """Build around ``stages``, one module for each width of ``dims``, and initialise (normal, std 0.02, truncated)."""
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dims[-1]
        self.pyramid_channels = list(dims)
        self.pyramid_reductions = [4 * 2**i for i in range(len(dims))]
        self.pyramid_modules = [f"stages.{i}" for i in range(len(dims))]
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, 4), LayerNorm2d(dims[0]))]
        )
        for a, b in zip(dims[:-1], dims[1:], strict=True):
            self.downsample_layers.append(nn.Sequential(LayerNorm2d(a), nn.Conv2d(a, b, 2, 2)))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.apply(_init)
        if num_classes:
            self.head.weight.data.mul_(head_init_scale)
            self.head.bias.data.mul_(head_init_scale)

    def as_features(self, out_indices=None):
        """The dense form of the downstream experiments (Sec. 3.4): each returned map has a LayerNorm of its own."""
        super().as_features(out_indices)
        for i in self.out_indices:
            setattr(self, f"norm{i}", LayerNorm2d(self.pyramid_channels[i]))
        return self

    def depth_groups(self) -> list[list[str]]:
        """Stem, stage 1, stage 2, every ``blocks_per_layer`` blocks of stage 3, stage 4; downsampling goes with what follows it."""
        groups = [["downsample_layers.0"]]
        for i, stage in enumerate(self.stages):
            parts = [f"stages.{i}.{j}" for j in range(len(stage))]
            span = self.blocks_per_layer if i == 2 else len(parts)
            for start in range(0, len(parts), span):
                groups.append(parts[start : start + span])
                if i and not start:
                    groups[-1].insert(0, f"downsample_layers.{i}")
        return groups

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The map of every stage."""
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = self.run(stage, downsample(x))
            yield x

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """A map through its own norm where the model is a feature extractor."""
        return getattr(self, f"norm{index}")(x) if hasattr(self, f"norm{index}") else x

    def pooled(self, x: Tensor) -> Tensor:
        """Mean over the map, then norm."""
        return normalised(self.norm, self.pool(x))


class ConvNeXt(MaskedTokens, ConvNeXtFrame):
    """The hierarchical network of Table 9: four stages at strides 4, 8, 16 and 32.

    Args:
        in_chans: image channels.
        num_classes: outputs of the classifier; 0 returns the pooled, normalised features.
        depths: blocks per stage.
        dims: channels per stage.
        drop_path_rate: stochastic depth of the last block; earlier blocks rise linearly to it from 0.
        layer_scale_init_value: initial gamma of every block; 0 for none.
        head_init_scale: factor on the classifier's initial weights (0.001 when fine-tuning).

    Any image of 32 pixels and more works; rows and columns that do not fill a patch are dropped.
    """

    dialects = (
        Dialect(
            "timm",
            (
                (r"^stem\.", "downsample_layers.0."),
                (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
                (r"\.blocks\.(\d+)\.conv_dw\.", r".\1.dwconv."),
                (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
                (r"\.mlp\.fc([12])\.", r".pwconv\1."),
                (r"^head\.norm\.", "norm."),
                (r"^head\.fc\.", "head."),
            ),
            reshape=lambda state, model: {k: _flat(k, v) for k, v in state.items()},
        ),
        Dialect(
            "torchvision",
            (
                (r"^features\.0\.", "downsample_layers.0."),
                (r"^features\.([246])\.(\d)\.(?=weight|bias)", lambda m: f"downsample_layers.{int(m[1]) // 2}.{m[2]}."),
                (r"^features\.([1357])\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.{m[2]}."),
                (r"\.block\.0\.", ".dwconv."),
                (r"\.block\.2\.", ".norm."),
                (r"\.block\.3\.", ".pwconv1."),
                (r"\.block\.5\.", ".pwconv2."),
                (r"\.layer_scale$", ".gamma"),
                (r"^classifier\.0\.", "norm."),
                (r"^classifier\.2\.", "head."),
            ),
            reshape=lambda state, model: {k: _flat(k, v) for k, v in state.items()},
        ),
    )
    optional_state = (
        r"^norm\d\.|^mask_token$|^decoder\."  # the pyramid's own norms, and what only masked pre-training needs
    )
    undecayed = "mask_token"
    patch_size = 4

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
        head_init_scale: float = 1.0,
    ):
        super().__init__()
        if len(depths) != len(dims):
            raise OffprintError(f"depths {tuple(depths)} and dims {tuple(dims)} must name the same number of stages")
        self.register_parameter("mask_token", None)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages = (
            nn.Sequential(*(Block(dim, next(rates), layer_scale_init_value) for _ in range(depth)))
            for depth, dim in zip(depths, dims, strict=True)
        )
        self.frame(in_chans, num_classes, dims, stages, head_init_scale)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map (B, C, H/32, W/32), before pooling and the final norm.

        Args:
            mask: (B, H/4, W/4), 1 for patches to hide (see :class:`~offprint.nn.MaskedTokens`).
        """
        return self._last(self.walk(x, mask))

    def walk(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The map of every stage."""
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages, strict=True)):
            x = downsample(x)
            if i == 0 and mask is not None:
                x = self.hide(x.permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
            x = self.run(stage, x)
            yield x


class ConvNeXtIsotropic(MaskedTokens, Backbone):
    """One width and one resolution throughout, stride 16 (Table 2).

    Args:
        in_chans, num_classes, drop_path_rate, head_init_scale: as in :class:`ConvNeXt`.
        depth: blocks.
        dim: channels.
        layer_scale_init_value: 0 (no gamma) by default; the released large model has gamma, and its file is recognised.
    """

    input_layers = ("stem",)
    optional_state = r"^mask_token$|^decoder\."
    undecayed = "mask_token"
    minimum = patch_size = 16

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depth: int = 18,
        dim: int = 384,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 0.0,
        head_init_scale: float = 1.0,
    ):
        super().__init__()
        self.in_chans, self.num_classes, self.num_features = in_chans, num_classes, dim
        self.pyramid_channels, self.pyramid_reductions, self.pyramid_modules = [dim], [16], [f"blocks.{depth - 1}"]
        self.register_parameter("mask_token", None)
        self.stem = nn.Conv2d(in_chans, dim, 16, 16)
        self.blocks = nn.ModuleList(
            Block(dim, p, layer_scale_init_value) for p in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.apply(_init)
        if num_classes:
            self.head.weight.data.mul_(head_init_scale)
            self.head.bias.data.mul_(head_init_scale)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Grow a layer scale when the file has one and the model was built without (the released large model)."""
        if "blocks.0.gamma" in state and self.blocks[0].gamma is None:
            for block in self.blocks:
                block.gamma = nn.Parameter(torch.ones_like(block.norm.weight))
        return state

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The map (B, C, H/16, W/16); ``mask`` (B, H/16, W/16) is 1 for patches to hide."""
        return self._last(self.walk(x, mask))

    def walk(self, x: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """The one map."""
        x = self.stem(x)
        if mask is not None:
            x = self.hide(x.permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
        yield self.run(self.blocks, x)

    def depth_groups(self) -> list[list[str]]:
        """Stem, and each block."""
        return [["stem"], *([f"blocks.{i}"] for i in range(len(self.blocks)))]

    pooled = ConvNeXtFrame.pooled


def layer_decay_groups(
    names: list[str], *, layer_decay: float = 0.8, weight_decay: float = 0.05, depths: tuple[int, ...] = (3, 3, 27, 3)
) -> list[dict]:
    """What fine-tuning does to each of these parameters: ``[{"name", "layer", "lr_scale", "weight_decay"}, ...]``.

    Args:
        names: of parameters of a ConvNeXt with these ``depths``.
        layer_decay: factor between neighbouring layers (Sec. 3.2, appendix A.2).
        weight_decay: of what is decayed.
    """
    from offprint.models.layer_decay import layer_decay_groups as grouped

    with torch.device("meta"):
        model = ConvNeXt(depths=depths)
    of = {id(p): group for group in grouped(model, 1.0, weight_decay, layer_decay) for p in group["params"]}
    rows = [(name, of[id(model.get_parameter(name))]) for name in names]
    return [{"name": name, **{k: row[k] for k in ("layer", "lr_scale", "weight_decay")}} for name, row in rows]


def _flat(name: str, value: Tensor) -> Tensor:
    """(C, 1, 1) layer scales and 1x1-convolution weights as the vectors and matrices they are."""
    if name.endswith("gamma"):
        return value.flatten()
    return value.flatten(1) if ".pwconv" in name and value.ndim == 4 else value


_SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
VARIANTS = {f"convnext_{size}": {"depths": depths, "dims": dims} for size, (depths, dims) in _SIZES.items()}
ISOTROPIC = {
    "convnext_isotropic_small": {"depth": 18, "dim": 384},
    "convnext_isotropic_base": {"depth": 18, "dim": 768},
    "convnext_isotropic_large": {"depth": 36, "dim": 1024},
}


def _authors(
    file: str, one: float | None = None, five: float | None = None, *, size: int = 224, classes: int | None = None
) -> Weights:
    """A checkpoint of the authors: its file, their figures, the side of the picture, and the classes of an ImageNet-22K head."""
    return Weights(
        f"https://dl.fbaipublicfiles.com/convnext/{file}.pth", "authors", "authors", "MIT", num_classes=classes,
        input_size=(3, size, size), preprocessing=SQUASH if size == 384 else None, metrics=top(one, five),
        metrics_source="facebookresearch/ConvNeXt@048efce README" if one else "", class_map="imagenet-22k" if classes else "",
        average="ema" if file.endswith("_ema") else "",
    )  # fmt: skip


# size: top-1 (and top-5) of the authors' files: trained at 224, tuned at 384, from ImageNet-22K at 224, and at 384
_AUTHORS: dict[str, tuple[tuple[float, ...], ...]] = {
    "tiny": ((82.1,), (), (82.9,), (84.1,)),
    "small": ((83.1,), (), (84.6,), (85.8,)),
    "base": ((83.8,), (85.1,), (85.820, 97.868), (86.8,)),
    "large": ((84.3,), (85.5,), (86.6,), (87.5,)),
    "xlarge": ((), (), (87.0,), (87.8,)),
}
_TIMM = {  # size: top-1 and top-5 of timm's copies fb_in1k (at 288), fb_in22k_ft_in1k (at 288), fb_in22k_ft_in1k_384
    "tiny": ((82.698, 96.144), (78.898, 94.674), (84.088, 97.144)),
    "small": ((83.700, 96.808), (85.262, 97.682), (85.778, 97.890)),
    "base": ((84.428, 96.968), (86.274, 98.092), (86.796, 98.264)),
    "large": ((84.846, 97.214), (87.026, 98.204), (87.472, 98.386)),
    "xlarge": ((), (87.330, 98.328), (87.752, 98.556)),
}
_IN12K = {"tiny": ((84.450, 97.340), (85.122, 97.606)), "small": ((85.330, 97.546), (86.182, 97.922))}  # at 288 and 384
_TORCHVISION = {  # size: file, side of the resized picture, top-1, top-5
    "tiny": ("convnext_tiny-983f1562", 236, 82.520, 96.146),
    "small": ("convnext_small-0c510722", 230, 83.616, 96.650),
    "base": ("convnext_base-6075fbad", 232, 84.062, 96.870),
    "large": ("convnext_large-ea097f82", 232, 84.414, 96.976),
}
_CLIP = {**IMAGENET, "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_FROM_CLIP = {  # timm's ConvNeXt-B from image-text pre-training: side, top-1, top-5
    "clip_laion2b_augreg_ft_in1k": (256, 86.158, 97.680),
    "clip_laion2b_augreg_ft_in12k_in1k": (256, 86.370, 97.984),
    "clip_laion2b_augreg_ft_in12k_in1k_384": (384, 87.134, 98.222),
    "clip_laiona_augreg_ft_in1k_384": (384, 86.502, 97.968),
}


def _released(size: str) -> dict[str, Weights]:
    name, big = f"convnext_{size}", "_ema" if size == "xlarge" else ""
    plain, fine, from22k, from22k_fine = _AUTHORS[size]
    found = {"in1k": _authors(f"{name}_1k_224_ema", *plain)} if plain else {}
    found |= {"in1k_384": _authors(f"{name}_1k_384", *fine, size=384)} if fine else {}
    found |= {
        "in22k_ft_in1k": _authors(f"{name}_22k_1k_224{big}", *from22k),
        "in22k_ft_in1k_384": _authors(f"{name}_22k_1k_384{big}", *from22k_fine, size=384),
        "in22k": _authors(f"{name}_22k_224", classes=21841),
    }
    plain, from22k, from22k_fine = _TIMM[size]
    found |= {"timm_fb_in1k": timm(f"{name}.fb_in1k", 288, *plain, crop=1.0)} if plain else {}
    found |= {
        "timm_fb_in22k_ft_in1k": timm(f"{name}.fb_in22k_ft_in1k", 288, *from22k, crop=1.0),
        "timm_fb_in22k_ft_in1k_384": timm(f"{name}.fb_in22k_ft_in1k_384", 384, *from22k_fine, crop=1.0, mode="squash"),
        "timm_fb_in22k": timm(f"{name}.fb_in22k", 224, num_classes=21841, class_map="imagenet-22k"),
    }
    if size in _IN12K:
        at288, at384 = _IN12K[size]
        found |= {
            "timm_in12k_ft_in1k": timm(f"{name}.in12k_ft_in1k", 288, *at288, crop=1.0),
            "timm_in12k_ft_in1k_384": timm(f"{name}.in12k_ft_in1k_384", 384, *at384, crop=1.0, mode="squash"),
            "timm_in12k": timm(f"{name}.in12k", 224, crop=0.95, num_classes=11821, class_map="imagenet-12k"),
        }
    for tag, (side, one, five) in _FROM_CLIP.items() if size == "base" else ():
        mode = "squash" if tag.endswith("in12k_in1k_384") else "center"
        found[f"timm_{tag}"] = timm(f"{name}.{tag}", side, one, five, crop=1.0, mode=mode, preprocessing=_CLIP)
    if size in _TORCHVISION:
        file, resize, one, five = _TORCHVISION[size]
        found["torchvision_v1"] = torchvision(file, 224, resize, one, five, "bilinear")
    return found


WEIGHTS = {f"convnext_{size}": _released(size) for size in _SIZES}
RECIPE = {  # appendix A.1
    "optimizer": "adamw",
    "lr": 4e-3,
    "reference_batch": 4096,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
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
# stages of the authors' TRAINING.md; only what it names a model for is given to that model
PRETRAINING = {**RECIPE, "epochs": 90, "warmup_epochs": 5, "ema_decay": 0.0, "data": "imagenet-22k"}
_FINE = {
    **RECIPE, "lr": 5e-5, "reference_batch": 512, "epochs": 30, "warmup_epochs": 0, "weight_decay": 1e-8, "mixup": 0.0,
    "cutmix": 0.0, "ema_decay": 0.0, "head_init_scale": 0.001,
}  # fmt: skip
FINETUNING = {**_FINE, "layer_decay": 0.8, "start": "pretraining"}
AT_384 = {"input_size": 384, "crop_pct": 1.0, "crop_mode": "squash"}
FINETUNING_384 = {**_FINE, **AT_384, "layer_decay": 0.7, "start": "training"}
_DROP_PATH = {  # by stage and size
    "training": {"tiny": 0.1, "small": 0.4, "base": 0.5, "large": 0.5, "xlarge": 0.5},
    "pretraining": {"tiny": 0.0, "small": 0.0, "base": 0.1, "large": 0.1, "xlarge": 0.2},
    "finetuning": {"base": 0.2, "large": 0.3, "xlarge": 0.4},
    "finetuning_384": {"base": 0.8, "large": 0.95},  # of the model trained on ImageNet-1K
    "finetuning_22k_384": {"base": 0.2, "large": 0.3, "xlarge": 0.4},
}
_COMMON = {
    "finetuning": FINETUNING,
    "finetuning_384": FINETUNING_384,
    "finetuning_22k_384": {**FINETUNING, **AT_384},
}
_STAGES = {
    stage: {f"convnext_{size}": {**_COMMON.get(stage, {}), "drop_path_rate": rate} for size, rate in rates.items()}
    for stage, rates in _DROP_PATH.items()
}
for _stage in ("finetuning", "finetuning_22k_384"):
    _STAGES[_stage]["convnext_xlarge"]["ema_decay"] = 0.9999
register(
    paper="convnext",
    kind="backbone",
    build=ConvNeXt,
    variants=VARIANTS,
    weights=WEIGHTS,
    recipes={"training": RECIPE, "pretraining": PRETRAINING},
    exceptions=_STAGES,
)
register(
    paper="convnext",
    kind="backbone",
    build=ConvNeXtIsotropic,
    variants=ISOTROPIC,
    weights={
        f"convnext_isotropic_{size}": {"in1k": _authors(f"convnext_iso_{size}_1k_224_ema", one)}
        for size, one in (("small", 78.7), ("base", 82.0), ("large", 82.6))
    },
    recipe={**RECIPE, "warmup_epochs": 50},
    exceptions={
        "training": {
            f"convnext_isotropic_{size}": {"drop_path_rate": rate}
            for size, rate in (("small", 0.1), ("base", 0.2), ("large", 0.5))
        }
    },
)
