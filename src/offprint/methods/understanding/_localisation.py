"""What a heat map is worth: pictures, boxes, and scores against where the object is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from torch import Tensor

from offprint.errors import OffprintError

Box = Sequence[float]  # x0, y0, x1, y1 in pixels, the far edges outside


def _map(cam) -> np.ndarray:
    """A single map as a float array (H, W)."""
    cam = np.asarray(cam.detach().cpu() if isinstance(cam, Tensor) else cam, dtype=np.float64)
    if cam.ndim != 2:
        raise OffprintError(f"one map (H, W) expected, an array of shape {cam.shape} was given")
    return cam


def jet(values: np.ndarray) -> np.ndarray:
    """The JET colours of numbers in [0, 1]: (...,) to (..., 3) in [0, 1], in the 256 steps of the usual table."""
    x = 4 * np.floor(255 * np.clip(values, 0, 1)) / 255
    return np.stack([np.clip(np.minimum(x - low, low + 3 - x), 0, 1) for low in (1.5, 0.5, -0.5)], axis=-1)


def overlay(image, cam, image_weight: float = 0.5) -> np.ndarray:
    """The map in JET colours over the image.

    Args:
        image: (H, W, 3) or (3, H, W) in [0, 1].
        cam: (H, W) in [0, 1].
        image_weight: share of the image in the mixture, 0 to 1.

    Returns:
        (H, W, 3) uint8; the mixture divided by its maximum.
    """
    image = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image, dtype=np.float32)
    cam = _map(cam)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[-1] != 3:
        image = image.transpose(1, 2, 0)
    if image.shape != (*cam.shape, 3):
        raise OffprintError(f"an image of the map's size, {(*cam.shape, 3)}, is needed; {image.shape} was given")
    if image.min() < 0 or image.max() > 1:
        raise OffprintError(
            f"an image in [0, 1] is needed, this one spans {image.min():g} to {image.max():g}; undo its normalisation first"
        )
    if not 0 <= image_weight <= 1:
        raise OffprintError(f"image_weight lies between 0 and 1, {image_weight} was given")
    mixed = (1 - image_weight) * jet(cam) + image_weight * image
    return (255 * mixed / max(float(mixed.max()), 1e-12)).astype(np.uint8)


def box_from_map(cam, threshold: float = 0.15) -> tuple[int, int, int, int] | None:
    """The tight box around the largest connected part of the map above a share of its maximum.

    Args:
        cam: (H, W).
        threshold: share of the maximum; 0.15 is Grad-CAM's convention, 0.20 CAM's.

    Returns:
        x0, y0, x1, y1 (far edges outside), or ``None`` for a map without a positive value.
    """
    cam = _map(cam)
    if cam.max() <= 0:
        return None
    parts, count = scipy.ndimage.label(cam >= threshold * cam.max(), structure=np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    ys, xs = np.nonzero(parts == 1 + int(sizes.argmax()))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def box_iou(a: Box | None, b: Box | None) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 where one is ``None``."""
    if a is None or b is None:
        return 0.0
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    return float(wide * high / union) if union > 0 else 0.0


def pointing(cam, box: Box) -> bool:
    """Is the map's peak inside the box? (The pointing game; a map without a peak misses.)"""
    cam = _map(cam)
    y, x = np.unravel_index(int(cam.argmax()), cam.shape)
    return bool(cam.max() > 0 and box[0] <= x < box[2] and box[1] <= y < box[3])


def energy(cam, box: Box) -> float:
    """The share of the map that lies inside the box, 0 to 1."""
    cam = np.maximum(_map(cam), 0)
    x0, y0, x1, y1 = (int(round(v)) for v in box)
    return float(cam[max(y0, 0) : y1, max(x0, 0) : x1].sum() / cam.sum()) if cam.sum() > 0 else 0.0


def localisation(maps, boxes: Sequence[Box], threshold: float = 0.15) -> dict[str, float]:
    """Mean scores of maps against the boxes of their objects.

    Args:
        maps: (N, H, W).
        boxes: N boxes (x0, y0, x1, y1).
        threshold: of :func:`box_from_map`.

    Returns:
        ``pointing`` (share of peaks inside), ``energy`` (share of the map inside), ``iou`` (of the map's box),
        ``correct`` (share with an IoU of at least 0.5).
    """
    if len(maps) != len(boxes) or not len(maps):
        raise OffprintError(f"one box per map is needed; {len(maps)} maps and {len(boxes)} boxes were given")
    ious = [box_iou(box_from_map(m, threshold), b) for m, b in zip(maps, boxes, strict=True)]
    return {
        "pointing": float(np.mean([pointing(m, b) for m, b in zip(maps, boxes, strict=True)])),
        "energy": float(np.mean([energy(m, b) for m, b in zip(maps, boxes, strict=True)])),
        "iou": float(np.mean(ious)),
        "correct": float(np.mean([i >= 0.5 for i in ious])),
    }
