"""RotNet's turned views and one step of its pretext, against turning by a table of affine grids and against a loop over images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.compare import Row, race
from offprint.methods.training.rotnet import NIN, features, rotate_four


def rows(batch: int = 128, side: int = 32, scale: float = 0.25, seconds: float = 4.0) -> Iterator[Row]:
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side)

    def one_by_one() -> torch.Tensor:
        return torch.stack([torch.rot90(image, k, (1, 2)) for image in images for k in range(4)])

    def turned() -> torch.Tensor:
        return rotate_four(images)[0]

    assert torch.equal(turned(), one_by_one())
    yield Row(
        "rotnet",
        f"four views of {batch} images of {side} px",
        "a loop over images and turns",
        *race(turned, one_by_one, seconds),
    )

    net, labels = NIN(scale=scale), torch.arange(4).repeat(batch)

    def together() -> None:
        net.zero_grad()
        F.cross_entropy(net(rotate_four(images)[0]), labels).backward()

    def four_passes() -> None:
        net.zero_grad()
        for k in range(4):
            turn = torch.full((batch,), k)
            (F.cross_entropy(net(torch.rot90(images, k, (2, 3)).contiguous()), turn) / 4).backward()

    took = race(together, four_passes, seconds)
    note = "BatchNorm sees all views at once only in one batch: the passes are not the same training"
    yield Row(
        "rotnet",
        "loss and gradients of the four views in one batch",
        "a pass for each turn",
        *took,
        required=0.0,
        note=note,
    )

    frozen = NIN(scale=scale).eval()
    with torch.inference_mode():
        took = race(
            lambda: features(frozen, images, ["conv1", "conv2"]),
            lambda: [features(frozen, images, n) for n in ("conv1", "conv2")],
            seconds,
        )
    yield Row("rotnet", "maps of two layers for their probes", "a forward pass for each layer", *took)
