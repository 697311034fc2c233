"""Picture in, normalised tensor out: the transforms of training and evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torchvision.transforms import InterpolationMode, v2

from offprint.errors import DataError


def evaluation_transform(size: int, preprocessing: Mapping[str, Any], channels: int = 3):
    """Resize the short side, centre crop, normalise; or warp the picture to the square.

    Args:
        size: output height and width in pixels.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct``, and ``crop_mode``: ``center`` or ``squash``. Without the
            last the picture is warped at 384 pixels and above and where nothing is cropped, as ConvNeXt's authors do.
        channels: 3, or 1 for grey pictures.
    """
    mode = InterpolationMode(preprocessing.get("interpolation", "bicubic"))
    crop = preprocessing.get("crop_pct", 0.875)
    plain = "squash" if size >= 384 or crop >= 1.0 else "center"
    whole = preprocessing.get("crop_mode", plain) == "squash" or size < 64
    resize = [v2.Resize((size, size), mode)] if whole else [v2.Resize(int(size / crop), mode), v2.CenterCrop(size)]
    return v2.Compose([*resize, *_tensor(preprocessing, channels)])


def _tensor(preprocessing, channels: int) -> list:
    mean, std = (list(preprocessing.get(k, d)) for k, d in (("mean", (0.0,) * 3), ("std", (1.0,) * 3)))
    grey = [v2.Grayscale(1)] if channels == 1 else []
    if channels == 1:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    elif channels != 3:
        raise DataError(f"pictures have 1 or 3 channels; the model takes {channels}, so give it tensors of your own")
    return [*grey, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]


def training_transform(size: int, preprocessing: Mapping[str, Any], recipe, channels: int = 3):
    """The recipe's augmentation: crop, flip, colour or policy, normalise, erase."""
    mode = InterpolationMode(preprocessing.get("interpolation", "bicubic"))
    steps: list = []
    if not recipe.crop_scale:  # the whole short side, shifted a little (Touvron et al. 2022, Sec. 3)
        steps += [v2.Resize(size, mode), v2.RandomCrop(size, padding=4, padding_mode="reflect")]
    elif size >= 64:
        steps.append(v2.RandomResizedCrop(size, tuple(recipe.crop_scale), interpolation=mode))
    else:  # small pictures are padded and shifted, as on CIFAR
        steps += [v2.Resize((size, size), mode), v2.RandomCrop(size, padding=max(2, size // 8), padding_mode="reflect")]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip())
    policy = recipe.auto_augment
    if policy.startswith("rand-"):
        found = dict(re.findall(r"-([mn])(\d+)", policy))
        steps.append(v2.RandAugment(int(found.get("n", 2)), min(30, 3 * int(found.get("m", 9)))))
    elif policy == "randaugment":
        steps.append(v2.RandAugment())
    elif policy == "trivial":
        steps.append(v2.TrivialAugmentWide())
    elif policy == "three":  # one of three (Touvron et al. 2022, Sec. 3.2)
        blur = v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))
        steps.append(v2.RandomChoice([v2.RandomGrayscale(1.0), v2.RandomSolarize(128, 1.0), blur]))
    elif policy:
        raise DataError(f"auto_augment={policy!r}; choose '', 'randaugment', 'trivial', 'three' or 'rand-m9-n2'")
    if recipe.color_jitter and policy in ("", "three"):
        steps.append(v2.ColorJitter(*[recipe.color_jitter] * 3))
    steps += _tensor(preprocessing, channels)
    if recipe.random_erasing:
        steps.append(v2.RandomErasing(recipe.random_erasing, value="random"))
    return v2.Compose(steps)
