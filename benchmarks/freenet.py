"""FreeNet over a whole scene, against a classifier of patches around every pixel of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

import offprint
from benchmarks.compare import Row, race


def patches(image: torch.Tensor, net: nn.Module, side: int = 9, batch: int = 1024) -> torch.Tensor:
    """Logits of every pixel from the patch around it."""
    reach = side // 2
    padded = nn.functional.pad(image, (reach,) * 4)
    windows = padded[0].unfold(1, side, 1).unfold(2, side, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return torch.cat([net(part) for part in windows.split(batch)])


def rows() -> Iterator[Row]:
    bands, classes, height, width = 103, 9, 96, 96
    torch.manual_seed(0)
    whole = offprint.create_model("freenet_pavia").eval()
    # a small patch network of the usual kind: three convolutions and a linear layer
    small = nn.Sequential(
        nn.Conv2d(bands, 96, 3), nn.ReLU(), nn.Conv2d(96, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(128 * 9, classes),
    ).eval()  # fmt: skip
    image = torch.randn(1, bands, height, width)
    with torch.inference_mode():
        found = race(lambda: whole(image), lambda: patches(image, small))
    yield Row(
        "freenet",
        f"a class for each of {height} x {width} pixels",
        "patches of 9 x 9 around every pixel",
        *found,
        required=10.0,
    )
