"""Image restoration: metrics as the papers take them, enlarging pictures of any size, and a short training loop."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.reading import rgb
from offprint.data.resize import bicubic
from offprint.errors import OffprintError


def luma(image: Tensor) -> Tensor:
    """BT.601 luma (offset 16, range 16 to 235) of RGB images (..., 3, H, W) in [0, 255], not rounded."""
    r, g, b = image.double().unbind(-3)
    return 16.0 + (65.481 * r + 128.553 * g + 24.966 * b) / 255.0


def _pair(a: Tensor, b: Tensor, crop: int, y: bool) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 3:
        raise OffprintError(f"expected two pictures (3, H, W) of one size, got {tuple(a.shape)} and {tuple(b.shape)}")
    if crop:
        a, b = (v[..., crop:-crop, crop:-crop] for v in (a, b))
    return (luma(a)[None], luma(b)[None]) if y else (a.double(), b.double())


def psnr(a: Tensor, b: Tensor, crop: int = 0, y: bool = True) -> float:
    """Peak signal-to-noise ratio in dB of pictures (3, H, W) in [0, 255].

    Args:
        crop: pixels left out at each border (papers use the scale).
        y: on luma; otherwise on all channels.
    """
    a, b = _pair(a, b, crop, y)
    error = float(((a - b) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def ssim(a: Tensor, b: Tensor, crop: int = 0, y: bool = True) -> float:
    """Structural similarity with an 11x11 Gaussian window (sigma 1.5), no padding; arguments as in :func:`psnr`."""
    a, b = _pair(a, b, crop, y)
    axis = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    blur = lambda v: F.conv2d(v[:, None], window[None, None])[:, 0]  # noqa: E731
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    return float((((2 * ma * mb + c1) * (2 * cov + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())


def to_tensor(image) -> Tensor:
    """A PIL picture (upright, sRGB, over white where it is transparent) or (H, W, 3) uint8 array as (3, H, W) in [0, 1]."""
    array = np.array(
        rgb(image)[0] if hasattr(image, "convert") else image
    )  # a copy: Pillow's own memory cannot be written
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


@torch.no_grad()
def enlarge(model: nn.Module, image: Tensor, *, tile: int = 256, overlap: int = 64, progress=None) -> Tensor:
    """Enlarge a picture (C, H, W) in [0, 1] by the model's ``scale``, in tiles when it is larger than one.

    Args:
        tile: side of a tile in input pixels; memory depends on this, not on the picture.
        overlap: pixels around a tile that are computed and thrown away. What a pixel sees beyond that is lost; with the default
            the seams of CFSR lie below a grey level.
        progress: called with ``total=n`` once and ``text=...`` per tile.

    Returns:
        (C, sH, sW) in [0, 1].
    """
    scale = model.scale
    _, h, w = image.shape
    device = next(model.parameters()).device
    starts = [(t, left) for t in range(0, h, tile) for left in range(0, w, tile)]
    if progress:
        progress(total=len(starts))
    out = torch.empty(image.shape[0], h * scale, w * scale)
    for top, left in starts:
        y0, x0 = max(0, top - overlap), max(0, left - overlap)
        y1, x1 = min(h, top + tile + overlap), min(w, left + tile + overlap)
        done = model(image[None, :, y0:y1, x0:x1].to(device))[0].cpu()
        bottom, right = min(h, top + tile), min(w, left + tile)
        part = done[:, (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
        out[:, top * scale : bottom * scale, left * scale : right * scale] = part
        if progress:
            progress(text=f"tile {top}, {left}")
    return out.clamp_(0, 1)


def upscale(model: nn.Module, image, **kwargs):
    """Enlarge a PIL picture (or (H, W, 3) uint8 array); returns a PIL picture. Keywords as in :func:`enlarge`."""
    from PIL import Image

    out = enlarge(model.eval(), to_tensor(image), **kwargs)
    return Image.fromarray((out * 255).round().byte().permute(1, 2, 0).numpy())


def train_restoration(
    model: nn.Module,
    photographs: list[Tensor],
    *,
    steps: int,
    patch: int = 48,
    batch: int = 8,
    lr: float = 5e-4,
    min_lr: float = 1e-6,
    seed: int = 0,
    progress=None,
) -> list[float]:
    """Train on random patches of photographs (3, H, W) in [0, 1], shrunk bicubically: L1, Adam, cosine rate.

    Args:
        patch: side of a low-resolution patch.
        progress: called with no arguments after each step.

    Returns:
        The loss of every step.
    """
    scale = model.scale
    low = [bicubic(p, 1 / scale).clamp(0, 1) for p in (to_multiple(p, scale) for p in photographs)]
    high = [to_multiple(p, scale) for p in photographs]
    if min(min(v.shape[-2:]) for v in low) < patch:
        raise OffprintError(f"a photograph is smaller than a patch of {patch * scale} pixels")
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (1,), generator=generator))  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, min_lr)
    losses = []
    model.train()
    for _ in range(steps):
        xs, ys = [], []
        for _ in range(batch):
            i = draw(len(low))
            top, left = draw(low[i].shape[-2] - patch + 1), draw(low[i].shape[-1] - patch + 1)
            x = low[i][:, top : top + patch, left : left + patch]
            y = high[i][:, top * scale : (top + patch) * scale, left * scale : (left + patch) * scale]
            turn, flip = draw(4), draw(2)
            x, y = (torch.rot90(v, turn, (-2, -1)) for v in (x, y))
            xs.append(x.flip(-1) if flip else x)
            ys.append(y.flip(-1) if flip else y)
        loss = F.l1_loss(model(torch.stack(xs)), torch.stack(ys))
        if not torch.isfinite(loss):
            raise OffprintError(f"the loss became {float(loss)} after {len(losses)} steps; lower lr={lr:g}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress()
    model.eval()
    return losses


def to_multiple(image: Tensor, scale: int) -> Tensor:
    """Cut at the bottom and right to a multiple of the scale."""
    h, w = (n - n % scale for n in image.shape[-2:])
    return image[..., :h, :w]
