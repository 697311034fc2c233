"""CATNet's parts against their formulas as they stand: each sum resized on its own, context convolved at every position, attention on zeros."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from benchmarks.compare import Row, race
from offprint.models.detection.catnet import SCP, DenseFPN, RoIExtractor


def plain_neck(neck: DenseFPN, maps: Sequence[Tensor]) -> list[Tensor]:
    """DenseFPN term by term."""
    level = [conv(x) for conv, x in zip(neck.lateral_convs, maps, strict=True)]
    for conv in neck.extra_convs:
        level.append(conv(level[-1]))
    n = len(level)
    for stage in neck.stages:
        inner: list[Tensor] = []
        for i in range(n):
            total = level[i]
            for j in range(n - i - 1):
                up = F.interpolate(level[n - 1 - j], level[i].shape[-2:], mode="bilinear", align_corners=False)
                total = total + (neck.top_down_atts[i].softmax(0)[j] * up if n - i - 1 > 1 else up)
            inner.append(stage[i](F.relu(total)))  # type: ignore[index]
        after: list[Tensor] = []
        for i in range(n):
            total = level[i] + inner[i]
            for j in range(i):
                down = F.adaptive_max_pool2d(inner[j], level[i].shape[-2:])
                total = total + (neck.bottom_up_atts[i - 2].softmax(0)[j] * down if i > 1 else down)
            after.append(stage[n + i](F.relu(total)))  # type: ignore[index]
        level = after
    return level


def plain_context(scp: SCP, maps: Sequence[Tensor]) -> list[Tensor]:
    """SCP with v at every position."""
    out = []
    for block, x in zip(scp.blocks, maps, strict=True):
        vector = block.v(x).flatten(2) @ block.k(x).flatten(2).softmax(-1).transpose(1, 2)
        out.append(x + block.m(vector[..., None]) * block.a(x).sigmoid())
    return out


def plain_regions(extract: RoIExtractor, maps: Sequence[Tensor], boxes: list[Tensor]) -> Tensor:
    """HRoIE from zeros on."""
    total = maps[0].new_zeros(sum(map(len, boxes)), maps[0].shape[1], extract.size, extract.size)
    for i, stride in enumerate(extract.strides):
        window = roi_align(maps[i], boxes, extract.size, 1 / stride, 0, aligned=True)
        total = total + window * extract.atts[i](torch.cat([total, window], 1)).sigmoid()
    return total


def rows(side: int = 256, regions: int = 100, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    channels = (256, 512, 1024, 2048)
    maps = [torch.randn(1, c, side // 2 ** (2 + i), side // 2 ** (2 + i)) for i, c in enumerate(channels)]
    flat = [torch.randn(1, 256, side // 2 ** (2 + i), side // 2 ** (2 + i)) for i in range(5)]
    corner = torch.rand(regions, 2) * side / 2
    boxes = [torch.cat([corner, corner + 8 + torch.rand(regions, 2) * side / 2], 1)]
    neck, scp, extract = (
        DenseFPN(channels).eval(),
        SCP().eval(),
        RoIExtractor(256, (4, 8, 16, 32), 7, "bottom_up").eval(),
    )
    named = OrderedDict((str(i), m) for i, m in enumerate(flat))
    with torch.inference_mode():
        for what, ours, theirs in (
            (f"DenseFPN, {side} px", partial(neck, maps), partial(plain_neck, neck, maps)),
            (f"SCP, {side} px", partial(scp, flat), partial(plain_context, scp, flat)),
            (f"HRoIE, {regions} regions", partial(extract, named, boxes), partial(plain_regions, extract, flat, boxes)),
        ):
            pairs = zip(ours(), theirs(), strict=True)
            assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in pairs), what
            yield Row("catnet", what, "the formula as it stands", *race(ours, theirs, seconds))
