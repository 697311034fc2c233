"""Decoding of a photograph of 1280 x 720 pixels against the per-point formulation in Python, with equal polygons; targets against loops."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare import Row, race
from offprint.models.detection.fcenet import (
    STRIDES,
    Decoding,
    Found,
    contours,
    decode_polygons,
    fourier_targets,
)

HOW = Decoding()


def _maps(seed: int = 0) -> list[dict[str, Tensor]]:
    """What a network says of a photograph of the toy set: its targets, blurred by noise."""
    from offprint.data.text_polygons import SAMPLE, open_text

    one = max(open_text(SAMPLE).train, key=lambda p: len(p.polygons))
    draw, levels = torch.Generator().manual_seed(seed), []
    for target in fourier_targets((720, 1280), one.polygons):
        maps = torch.from_numpy(target)
        noise = torch.randn(maps.shape, generator=draw, dtype=torch.float64)
        text, centre = (4 * (2 * maps[i] - 1) + noise[i] / 2 for i in (0, 1))
        levels.append(
            {"cls_res": torch.stack([-text, text, -centre, centre]) / 2, "reg_res": maps[3:] + 0.03 * noise[3:]}
        )
    return levels


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    from shapely.geometry import Polygon

    shapes = []
    for points in (a, b):
        shape = Polygon(points)
        if not shape.is_valid:
            shape = shape.buffer(0)
            shape = shape if shape.geom_type == "Polygon" else shape.convex_hull
        shapes.append(shape)
    union = shapes[0].union(shapes[1]).area
    return shapes[0].intersection(shapes[1]).area / union if union else 1.0


def _nms(polygons: list, scores: list) -> tuple[list, list]:
    """Each polygon against each, one pair at a time."""
    left, kept = sorted(range(len(polygons)), key=lambda i: scores[i]), []
    while left:
        best = left.pop()
        kept.append(best)
        left = [i for i in left if _overlap(polygons[best], polygons[i]) <= HOW.iou_threshold]
    return [polygons[i] for i in kept], [scores[i] for i in kept]


def _plain(levels: list[dict[str, Tensor]]) -> list[Found]:
    """One place after the other: its score, its outline, its polygon."""
    from scipy import ndimage

    polygons, scores = [], []
    for said, stride in zip(levels, STRIDES, strict=True):
        text, centre = (said["cls_res"][i : i + 2].softmax(0)[1].numpy() for i in (0, 2))
        score, c = text**HOW.alpha * centre**HOW.beta, said["reg_res"].numpy()
        half, k = len(c) // 2, (len(c) // 2 - 1) // 2
        blobs, count = ndimage.label(ndimage.binary_fill_holes(score > HOW.score_threshold), np.ones((3, 3)))
        found, values = [], []
        for one in range(1, count + 1):
            here, of_here = [], []
            for y, x in np.argwhere((blobs == one) & (score > 0)):
                z = c[:half, y, x] + 1j * c[half:, y, x]
                z[k] += x + 1j * y
                here.append(contours(z * stride, HOW.points).astype(np.int32))
                of_here.append(float(score[y, x]))
            here, of_here = _nms(here, of_here)
            found, values = found + here, values + of_here
        found, values = _nms(found, values)
        polygons, scores = polygons + found, scores + values
    return [Found(p, s) for p, s in zip(*_nms(polygons, scores), strict=True)]


def rows(seconds: float = 8.0) -> Iterator[Row]:
    levels = _maps()
    ours, theirs = decode_polygons(levels, HOW), _plain(levels)
    if len(ours) != len(theirs) or any((a.polygon != b.polygon).any() for a, b in zip(ours, theirs, strict=True)):
        raise AssertionError(f"the two ways give other polygons ({len(ours)} and {len(theirs)})")
    took = race(partial(decode_polygons, levels, HOW), partial(_plain, levels), seconds)
    yield Row(
        "fcenet", f"decoding of 1280 x 720 px, {len(ours)} words", "point by point in Python", *took, required=3.0
    )
