"""What both versions of Swin share as data: sizes, recipes by stage, and the released weights of the first."""

from __future__ import annotations

from typing import Any

from offprint.models.registry import Weights
from offprint.models.released import SQUASH, timm, top, torchvision

SIZES = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
RECIPE = {  # appendix A2.1
    "optimizer": "adamw",
    "lr": 5e-4,
    "reference_batch": 512,
    "weight_decay": 0.05,
    "epochs": 300,
    "warmup_epochs": 20,
    "warmup_lr": 5e-7,
    "min_lr": 5e-6,
    "clip_grad": 5.0,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup": 0.8,
    "cutmix": 1.0,
    "random_erasing": 0.25,
    "label_smoothing": 0.1,
    "interpolation": "bicubic",
    "data": "imagenet-1k",
}
DROP_PATH = {"tiny": 0.2, "small": 0.3, "base": 0.5, "large": 0.2}
# the other stages, of the authors' configurations; all three rates follow the batch, and are stated for 512 images
PRETRAINING = {
    **RECIPE, "lr": 1.25e-4, "warmup_lr": 1.25e-7, "min_lr": 1.25e-6, "epochs": 90, "warmup_epochs": 5,
    "drop_path_rate": 0.2, "data": "imagenet-22k",
}  # fmt: skip
FINETUNING = {
    **RECIPE, "lr": 2e-5, "warmup_lr": 2e-8, "min_lr": 2e-7, "epochs": 30, "warmup_epochs": 5, "weight_decay": 1e-8,
    "drop_path_rate": 0.2, "start": "pretraining",
}  # fmt: skip
AT_384 = {"input_size": 384, "crop_pct": 1.0, "crop_mode": "squash"}
SIMMIM = {  # pre-training on masked images; the rate falls to a tenth after seven eighths of the epochs
    "optimizer": "adamw", "lr": 1e-4, "reference_batch": 512, "weight_decay": 0.05, "epochs": 800, "batch_size": 128,
    "schedule": "step", "decay_rate": 0.1, "warmup_epochs": 10, "warmup_lr": 5e-7, "clip_grad": 5.0,
    "crop_scale": (0.67, 1.0), "drop_path_rate": 0.0, "interpolation": "bicubic", "data": "imagenet-1k",
}  # fmt: skip
SIMMIM_AS_STATED = {"decay_epochs": 700, "input_size": 192}  # of 800 epochs
SIMMIM_FINETUNING = {
    **RECIPE, "lr": 1.25e-3, "warmup_lr": 2.5e-7, "min_lr": 2.5e-7, "epochs": 100, "warmup_epochs": 20, "layer_decay": 0.8,
    "drop_path_rate": 0.1, "input_size": 224, "start": "simmim",
}  # fmt: skip


def input_sizes(variants: dict[str, dict]) -> dict[str, tuple[int, ...]]:
    """Input shape of each variant that names an ``img_size``."""
    return {name: (3, row["img_size"], row["img_size"]) for name, row in variants.items() if "img_size" in row}


def drop_paths(variants: dict[str, dict]) -> dict[str, dict]:
    """The recipe's stochastic depth by the size in a variant's name."""
    return {name: {"drop_path_rate": rate} for name in variants for size, rate in DROP_PATH.items() if size in name}


def released(
    file: str, release: str, size: int, one: float | None = None, five: float | None = None, **more: Any
) -> Weights:
    """A checkpoint of the authors' storage: file, release, side of the picture, and their top-1 and top-5."""
    return Weights(
        f"https://github.com/SwinTransformer/storage/releases/download/{release}/{file}.pth", "authors", "authors", "MIT",
        input_size=(3, size, size), preprocessing=SQUASH if size == 384 else None, metrics=top(one, five),
        metrics_source="microsoft/Swin-Transformer@2cb103f MODELHUB.md" if one else "", **more,
    )  # fmt: skip


IN22K = {"num_classes": 21841, "class_map": "imagenet-22k-ms"}
_NEW = ("v1.0.8", "_22kto1k_finetune")  # release of the files from ImageNet-22K, and how the tuned one ends
_OLD = ("v1.0.0", "_22kto1k")
# model: side, release and ending; top-1 and top-5 from ImageNet-1K and 22K by the authors, then by timm; torchvision's file,
# side of the resized picture, top-1 and top-5
_RELEASED: dict[str, tuple] = {
    "swin_tiny_patch4_window7_224": (224, _NEW, (81.2, 95.5), (80.9, 96.0), (81.376, 95.544), (80.968, 96.014),
                                     ("swin_t-704ceda3", 232, 81.474, 95.776)),
    "swin_small_patch4_window7_224": (224, _NEW, (83.2, 96.2), (83.2, 97.0), (83.208, 96.316), (83.298, 96.964),
                                      ("swin_s-5e29d889", 246, 83.196, 96.360)),
    "swin_base_patch4_window7_224": (224, _OLD, (83.5, 96.5), (85.2, 97.5), (83.606, 96.452), (85.272, 97.564),
                                     ("swin_b-68c6b09e", 238, 83.582, 96.640)),
    "swin_base_patch4_window12_384": (384, _OLD, (84.5, 97.0), (86.4, 98.0), (84.476, 96.892), (86.438, 98.066), ()),
    "swin_large_patch4_window7_224": (224, _OLD, (), (86.3, 97.9), (), (86.312, 97.902), ()),
    "swin_large_patch4_window12_384": (384, _OLD, (), (87.3, 98.2), (), (87.132, 98.234), ()),
}  # fmt: skip


def _all(name: str) -> dict[str, Weights]:
    side, (release, ending), plain, from22k, timm_plain, timm_from22k, other = _RELEASED[name]
    crop = {"crop": 0.9 if side == 224 else 1.0, "licence": "MIT"}
    found = {"in1k": released(name, "v1.0.0", side, *plain)} if plain else {}
    found |= {
        "in22k_ft_in1k": released(name + ending, release, side, *from22k),
        "in22k": released(f"{name}_22k", release, side, **IN22K),
    }
    found |= {"timm_ms_in1k": timm(f"{name}.ms_in1k", side, *timm_plain, **crop)} if timm_plain else {}
    found |= {
        "timm_ms_in22k_ft_in1k": timm(f"{name}.ms_in22k_ft_in1k", side, *timm_from22k, **crop),
        "timm_ms_in22k": timm(f"{name}.ms_in22k", side, **crop, **IN22K),
    }
    return found | ({"torchvision_v1": torchvision(other[0], 224, *other[1:])} if other else {})


def with_short_names(weights: dict[str, dict[str, Weights]], short: dict[str, str]) -> dict[str, dict[str, Weights]]:
    """The table with the short names' rows, which are those of the long names they stand for."""
    return weights | {name: weights[long] for name, long in short.items()}


WEIGHTS = {name: _all(name) for name in _RELEASED}
WEIGHTS["swin_tiny_c24_patch4_window8_256"] = {
    "in1k": released("swin_tiny_c24_patch4_window8_256", "v1.0.5", 256, 81.6, 95.7)
}
WEIGHTS = with_short_names(
    WEIGHTS,
    {f"swin_{size}": f"swin_{size}_patch4_window7_224" for size in SIZES}
    | {"swin_tiny_c24": "swin_tiny_c24_patch4_window8_256"},
)
_MLP_FIGURES = {
    "swin_mlp_tiny_c24": ("_patch4_window8_256", 79.4, 94.6),
    "swin_mlp_tiny_c12": ("_patch4_window8_256", 79.6, 94.7),
    "swin_mlp_tiny_c6": ("_patch4_window8_256", 79.7, 94.9),
    "swin_mlp_base": ("_patch4_window7_224", 81.3, 95.3),
}
MLP_WEIGHTS = with_short_names(
    {n + end: {"in1k": released(n + end, "v1.0.5", int(end[-3:]), *row)} for n, (end, *row) in _MLP_FIGURES.items()},
    {name: name + end for name, (end, *_) in _MLP_FIGURES.items()},
)
