"""How the libraries that release many checkpoints name, license and evaluate them: one function per publisher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from offprint.models.registry import IMAGENET, Weights

SQUASH = {**IMAGENET, "crop_pct": 1.0, "crop_mode": "squash"}  # 384 pixels in ConvNeXt's and Swin's evaluation
TIMM_RESULTS = "huggingface/pytorch-image-models@0173a13 results/results-imagenet.csv"


def top(one: float | None, five: float | None = None, data: str = "imagenet-1k") -> dict[str, dict[str, float]]:
    """Top-1 and top-5 accuracy in %; ``None`` for what is not stated."""
    stated = {name: value for name, value in (("top1", one), ("top5", five)) if value is not None}
    return {data: stated} if stated else {}


def hashed(url: str) -> str:
    """The first digits of the SHA-256 that PyTorch's convention puts at the end of a file's name: ``NAME-0123abcd.pth``."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", url)
    return found[1] if found else ""


def timm(
    name: str,
    size: int,
    one: float | None = None,
    five: float | None = None,
    *,
    crop: float = 0.875,
    mode: str = "center",
    dialect: str = "timm",
    licence: str = "Apache-2.0",
    preprocessing: Mapping[str, Any] = IMAGENET,
    **more: Any,
) -> Weights:
    """A checkpoint of timm on the hub: its ``MODEL.TAG``, the side and crop of its test, and its figures."""
    return Weights(
        f"hf:timm/{name}/model.safetensors", "timm", dialect, licence,
        input_size=(3, size, size), preprocessing={**preprocessing, "crop_pct": crop, "crop_mode": mode},
        metrics=top(one, five), metrics_source=TIMM_RESULTS if one else "", **more,
    )  # fmt: skip


def torchvision(file: str, size: int, resize: int, one: float, five: float, interpolation: str = "bicubic") -> Weights:
    """A checkpoint of torchvision: its file, side of the crop and of the resized picture, and its figures."""
    url = f"https://download.pytorch.org/models/{file}.pth"
    return Weights(
        url, "torchvision", "torchvision", "BSD-3-Clause", hashed(url),
        input_size=(3, size, size),
        preprocessing={**IMAGENET, "interpolation": interpolation, "crop_pct": size / resize, "crop_mode": "center"},
        metrics=top(one, five), metrics_source="torchvision 0.29 meta of the weights",
    )  # fmt: skip


def cadene(file: str, size: int, resize: int, one: float, five: float, **more: Any) -> Weights:
    """A checkpoint of Cadene's pretrained-models.pytorch, ported from TensorFlow's."""
    url = f"http://data.lip6.fr/cadene/pretrainedmodels/{file}.pth"
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    return Weights(
        url, "cadene", "cadene", "BSD-3-Clause", hashed(url),
        input_size=(3, size, size), preprocessing={**half, "crop_pct": size / resize, "crop_mode": "center"},
        metrics=top(one, five), metrics_source="Cadene/pretrained-models.pytorch README, our porting", **more,
    )  # fmt: skip
