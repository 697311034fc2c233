"""Objects in one picture of any size, in the picture's own pixels: resized for the network, in tiles where it is large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from offprint.errors import OffprintError

IOU = 0.5  # of two boxes of one class, from different tiles, that overlap more than this, one stays
Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large a picture is shown to the network.

    Attributes:
        short: pixels of its short side, 0 for the picture's own.
        longest: most pixels of its long side.
        squash: both sides become ``short``, whatever the shape.
        multiple: of which the padded sides are.
    """

    short: int = 800
    longest: int = 1333
    squash: bool = False
    multiple: int = 32

    def of(self, height: int, width: int, factor: float = 1.0) -> tuple[int, int]:
        """(height, width) for a picture; ``factor`` multiplies it."""
        if self.squash:
            return max(1, round(self.short * factor)), max(1, round(self.short * factor))
        scale = (self.short * factor / min(height, width)) if self.short else factor
        if self.longest:
            scale = min(scale, self.longest * max(factor, 1.0) / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def pad_to(image: Tensor, height: int, width: int) -> Tensor:
    """Zeros to the right and below."""
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def batch(images: Sequence[Tensor], multiple: int) -> Tensor:
    """Normalised images (C, H, W) of any sizes as (B, C, H, W), padded with zeros to a multiple."""
    height, width = (-(-max(i.shape[k] for i in images) // multiple) * multiple for k in (-2, -1))
    return torch.stack([pad_to(i, height, width) for i in images])


@torch.no_grad()
def detected(
    model: nn.Module, picture: Tensor, normalise: Normalise, sizes: Sizes, **options: Any
) -> dict[str, Tensor]:
    """Objects in one picture (3, H, W) uint8: boxes in its own pixels, scores, labels, and masks (N, m, m) of the boxes.

    Args:
        model: a detector.
        normalise: from a picture to what the network takes.
        sizes: how large it is shown.
        **options: of the head's ``detect``.
    """
    device = next(model.parameters()).device
    height, width = picture.shape[-2:]
    tall, wide = sizes.of(height, width)
    shown = normalise(resized(picture, (tall, wide)))
    found = model.detect(batch([shown], sizes.multiple).to(device), **options)[0]  # type: ignore[operator]
    scale = found["boxes"].new_tensor([width / wide, height / tall] * 2)
    limit = found["boxes"].new_tensor([width, height] * 2)
    boxes = (found["boxes"] * scale).clamp(min=0).minimum(limit)
    whole = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)  # what lay in the padding is gone
    return {k: (boxes if k == "boxes" else v)[whole] for k, v in found.items()}


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture (C, H, W) uint8 at another size."""
    from torchvision.transforms.v2 import functional

    return picture if tuple(picture.shape[-2:]) == size else functional.resize(picture, list(size), antialias=True)


def starts(side: int, tile: int, step: int) -> list[int]:
    """Where tiles begin: every ``step`` pixels, the last at the edge."""
    return (
        [min(step * i, side - tile) for i in range(math.ceil(max(side - tile, 0) / step) + 1)] if side > tile else [0]
    )


@torch.no_grad()
def detected_in_tiles(
    model: nn.Module,
    picture: Tensor,
    normalise: Normalise,
    sizes: Sizes,
    tile: int,
    overlap: float,
    limit: int,
    **options: Any,
) -> dict[str, Tensor]:
    """The same of a large picture, tile by tile; memory follows the tile.

    Boxes of all tiles go through one suppression. One that a tile's edge has cut is left out where another tile's box of its class
    holds most of it.

    Args:
        tile: side in pixels of the picture; a smaller picture is read whole.
        overlap: share of a tile that the next one covers again; objects up to this large are whole in one of them.
        limit: most objects of the picture.
    """
    if not 0 <= overlap < 1:
        raise OffprintError(f"overlap={overlap}; tiles overlap by a share from 0 to below 1")
    height, width = picture.shape[-2:]
    if max(height, width) <= tile:
        return detected(model, picture, normalise, sizes, limit=limit, **options)
    step = max(1, round(tile * (1 - overlap)))
    parts, cuts = [], []
    for top in starts(height, tile, step):
        for left in starts(width, tile, step):
            view = picture[:, top : top + tile, left : left + tile]
            found = detected(model, view, normalise, sizes, limit=limit, **options)
            inner = [left > 0, top > 0, left + tile < width, top + tile < height]
            sides = found["boxes"].new_tensor([0, 0, view.shape[-1], view.shape[-2]])
            near = (found["boxes"] - sides).abs() < 2
            cuts.append((near & near.new_tensor(inner)).any(1))
            shift = found["boxes"].new_tensor([left, top, left, top])
            parts.append({**found, "boxes": found["boxes"] + shift})
    merged = {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    cut = torch.cat(cuts)
    order = merged["scores"] + (~cut).to(merged["scores"].dtype)  # what an edge has cut gives way to what is whole
    keep = batched_nms(merged["boxes"], order, merged["labels"], IOU)
    keep = keep[merged["scores"][keep].argsort(descending=True, stable=True)]
    merged, cut = {k: v[keep] for k, v in merged.items()}, cut[keep]
    whole = ~_held(merged["boxes"], merged["labels"], cut)
    return {k: v[whole][:limit] for k, v in merged.items()}


def _held(boxes: Tensor, labels: Tensor, cut: Tensor, share: float = 0.7) -> Tensor:
    """Which of the cut boxes lie for the most part inside a larger one of their class."""
    held = torch.zeros_like(cut)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for i in cut.nonzero()[:, 0].tolist():
        low, high = torch.maximum(boxes[:, :2], boxes[i, :2]), torch.minimum(boxes[:, 2:], boxes[i, 2:])
        inside = (high - low).clamp(min=0).prod(1)
        others = (labels == labels[i]) & (area > area[i])
        held[i] = bool((others & (inside > share * area[i])).any())
    return held
