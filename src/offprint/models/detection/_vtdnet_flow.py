"""Optical flow between two frames: cost volumes over a pyramid (PWC-Net, Sun et al., CVPR 2018), learnt without labels (UFlow)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import DataError


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Maps (B, C, H, W) of the next frame, read at p + flow(p); zero outside.

    Args:
        flow: (B, 2, H, W), x and y in pixels of the map.
    """
    height, width = x.shape[-2:]
    column = torch.arange(width, device=x.device, dtype=flow.dtype)
    row = torch.arange(height, device=x.device, dtype=flow.dtype)[:, None]
    grid = torch.stack([(2 * (column + flow[:, 0]) + 1) / width - 1, (2 * (row + flow[:, 1]) + 1) / height - 1], -1)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)


def cost_volume(first: Tensor, second: Tensor, radius: int = 4) -> Tensor:
    """(B, (2 r + 1)^2, H, W): mean product of each place of one map (B, C, H, W) with those around it in another, by row then column."""
    side, (height, width) = 2 * radius + 1, first.shape[-2:]
    around = F.pad(second, (radius,) * 4)
    views = [around[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    return torch.stack([(first * view).mean(1) for view in views], 1)


class FlowDecoder(nn.Module):
    """The maps of two frames, coarse to fine, to the flow between them.

    At every level the second map is warped by the flow so far, its cost volume with the first is read by convolutions beside the first map and
    the flow, and what they say is added.

    Args:
        channels: of the maps; all levels share one decoder, as all maps have one width.
        radius: of the cost volume.
        widths: of the convolutions.
    """

    def __init__(self, channels: int, radius: int = 4, widths: tuple[int, ...] = (128, 96, 64, 32)):
        super().__init__()
        self.radius = radius
        self.squeeze = nn.Conv2d(channels, 32, 1)
        before, layers = (2 * radius + 1) ** 2 + 32 + 2, []
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.LeakyReLU(0.1)]
            before = width
        self.layers, self.out = nn.Sequential(*layers), nn.Conv2d(before, 2, 3, padding=1)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, first: Sequence[Tensor], second: Sequence[Tensor], stride: int = 4) -> Tensor:
        """(B, 2, H, W) in pixels of the image, from maps fine to coarse whose finest has this stride."""
        flow: Tensor | None = None
        for one, two in zip(reversed(first), reversed(second), strict=True):
            if flow is None:
                flow = one.new_zeros(len(one), 2, *one.shape[-2:])
            else:
                ratio = flow.new_tensor([one.shape[-1] / flow.shape[-1], one.shape[-2] / flow.shape[-2]])
                flow = (
                    F.interpolate(flow, size=one.shape[-2:], mode="bilinear", align_corners=False)
                    * ratio[:, None, None]
                )
            cost = F.leaky_relu(cost_volume(_unit(one), _unit(warp(two, flow)), self.radius) * one.shape[1], 0.1)
            flow = flow + self.out(self.layers(torch.cat([cost, self.squeeze(one), flow], 1)))
        assert flow is not None
        return F.interpolate(flow, scale_factor=stride, mode="bilinear", align_corners=False) * stride


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=1)


def census(image: Tensor, radius: int = 3) -> Tensor:
    """(B, (2 r + 1)^2, H, W): the soft sign of each neighbour's difference in brightness; nothing of it changes with exposure."""
    grey = image.mean(1, keepdim=True)
    height, width = grey.shape[-2:]
    padded = F.pad(grey, (radius,) * 4, mode="replicate")
    side = 2 * radius + 1
    views = [padded[:, :, i : i + height, j : j + width] for i in range(side) for j in range(side)]
    gap = torch.cat(views, 1) - grey
    return gap / (0.81 / 255**2 + gap.square()).sqrt()


def flow_losses(first: Tensor, second: Tensor, flow: Tensor, smoothness: float = 2.0, edge: float = 10.0) -> Tensor:
    """(B,) of unlabelled pairs: the census difference of a frame and the warped next one, and the flow's changes away from edges.

    Args:
        first, second: (B, 3, H, W) in [0, 1].
        flow: (B, 2, H, W) in pixels.
        smoothness: weight of the second term; the flow is taken in hundredths of the picture's width.
        edge: how fast its weight falls with the picture's gradient.
    """
    inside = warp(torch.ones_like(first[:, :1]), flow.detach())
    gap = (census(first) - census(warp(second, flow))).square()
    distance = (gap / (0.1 + gap)).mean(1, keepdim=True)
    photometric = ((distance + 1e-6) ** 0.45 * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
    scaled = flow / first.shape[-1]
    smooth = flow.new_zeros(len(flow))
    for axis in (-1, -2):
        weight = torch.exp(-edge * first.diff(dim=axis).abs().mean(1, keepdim=True))
        smooth = smooth + (weight * (scaled.diff(dim=axis).square() + 1e-6).sqrt()).mean((1, 2, 3))
    return photometric + smoothness * smooth


def flow_proxy_iou(masks: Tensor, next_masks: Tensor, flow: Tensor) -> Tensor:
    """(N,) overlap of objects with those of the next frame brought back by the flow: what stands in for an error where no flow is known.

    Args:
        masks, next_masks: (N, H, W) of the same objects in a frame and in the next.
        flow: (2, H, W), x and y in pixels; the next masks are read at the nearest pixel to p + flow(p), empty outside.

    Raises:
        DataError: shapes that differ.
    """
    if masks.shape != next_masks.shape or flow.shape != (2, *masks.shape[1:]):
        raise DataError(
            f"masks {tuple(masks.shape)} and {tuple(next_masks.shape)}, flow {tuple(flow.shape)}; expected (N, H, W) twice and (2, H, W)"
        )
    height, width = masks.shape[1:]
    column = (torch.arange(width, device=flow.device) + flow[0]).round().long()
    row = (torch.arange(height, device=flow.device)[:, None] + flow[1]).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    moved = next_masks.bool()[:, row.clamp(0, height - 1), column.clamp(0, width - 1)] & inside
    both, either = (moved & masks.bool()).sum((1, 2)), (moved | masks.bool()).sum((1, 2))
    return both.double() / either.clamp(min=1)
