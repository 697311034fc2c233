"""Polygons: filled pixel by pixel, repaired, overlapped, boxed.

Points are (x, y) in pixels, y downwards; a polygon is an array (n, 2), its last point joined to the first. Shapely, which measures
overlaps, is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offprint.errors import need

ONE = 1 << 16  # fixed point of the crossings of edges with rows


def fill(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Pixels inside polygons or on their outlines: (H, W) bool, pixel for pixel what OpenCV's ``fillPoly`` fills inside the map.

    Several polygons are one figure by the even-odd rule: what lies inside two of them stays empty, outlines excepted. Inside is what lies
    between two crossings of a row with edges; outlines are drawn after Bresenham, from the left end of an edge.

    Args:
        polygons: whole numbers (n, 2). Where they leave the map, OpenCV rounds the ends of what it has cut; here nothing is moved.
        size: (H, W).
    """
    height, width = size
    start = [np.asarray(p, np.int64).reshape(-1, 2) for p in polygons if len(p)]
    if not start or not height or not width:
        return np.zeros(size, bool)
    a, b = np.concatenate(start), np.concatenate([np.roll(p, -1, 0) for p in start])
    top, bottom = max(int(a[:, 1].min()), 0), min(int(a[:, 1].max()), height - 1) + 1
    left, right = max(int(a[:, 0].min()), 0), min(int(a[:, 0].max()), width - 1) + 1
    out = np.zeros(size, bool)
    if top >= bottom or left >= right:
        return out
    change = np.zeros((bottom - top, right - left + 1), np.int32)
    down = np.where((a[:, 1] < b[:, 1])[:, None], np.hstack([a, b]), np.hstack([b, a]))
    x0, y0, x1, y1 = down[down[:, 1] < down[:, 3]].T[..., None]
    if len(y0):
        rows = np.arange(top, bottom)[None]
        rise, run = y1 - y0, (x1 - x0) * ONE
        slope = np.sign(run) * (np.abs(run) // rise)  # divided as in C: towards zero
        crossing = np.where((y0 <= rows) & (rows < y1), x0 * ONE + slope * (rows - y0), np.iinfo(np.int64).max)
        crossing.sort(0)
        enter, leave = crossing[0 : len(crossing) // 2 * 2 : 2], crossing[1::2]
        first, last = np.clip(-(-enter // ONE), left, right), np.clip(leave // ONE + 1, left, right)
        pair, row = np.nonzero((leave < np.iinfo(np.int64).max) & (first < last))
        np.add.at(change, (row, first[pair, row] - left), 1)
        np.add.at(change, (row, last[pair, row] - left), -1)
    out[top:bottom, left:right] = change.cumsum(1)[:, :-1] > 0
    x, y = _outline(a, b)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    out[y[inside], x[inside]] = True
    return out


def _outline(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the lines from a to b, (n, 2) each: one a step along the longer axis, halves going to the side of the left end."""
    a, b = (np.where((a[:, :1] <= b[:, :1]), *pair) for pair in ((a, b), (b, a)))
    d = b - a
    steps = np.abs(d).max(1)
    which = np.repeat(np.arange(len(a)), steps + 1)
    i = np.arange(len(which)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    n = np.maximum(steps[which], 1)[:, None]
    moved = np.abs(d)[which] * i[:, None]
    x, y = (a[which] + np.sign(d)[which] * -((n - 2 * moved) // (2 * n))).T
    return x, y


def without_repeats(polygon: np.ndarray) -> np.ndarray:
    """The polygon without points that equal the one before them."""
    points = np.asarray(polygon).reshape(-1, 2)
    return points[(points != np.roll(points, 1, 0)).any(1)]


def regions(polygons: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """Shapely's polygons: those that cross themselves by a buffer of zero, or its convex hull where that falls into pieces."""
    return regions_and_simple(polygons)[0]


def regions_and_simple(polygons: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """:func:`regions`, and which of the polygons are their own, crossing themselves nowhere."""
    shapely = need("shapely", "detection", "overlap of polygons")
    made = (
        shapely.polygons(polygons)
        if isinstance(polygons, np.ndarray) and polygons.dtype != object
        else np.array([shapely.polygons(np.asarray(p, float).reshape(-1, 2)) for p in polygons], object)
    )
    simple = shapely.is_valid(made)
    if not simple.all():
        mended = shapely.buffer(made[~simple], 0)
        pieces = shapely.get_type_id(mended) != 3
        mended[pieces] = shapely.convex_hull(mended[pieces])
        made[~simple] = mended
    return made, simple


def areas(polygons: np.ndarray) -> np.ndarray:
    """Signed areas (...) of polygons (..., n, 2); positive where the points run clockwise as seen, y being downwards."""
    after = np.roll(polygons, -1, -2)
    return (polygons[..., 0] * after[..., 1] - after[..., 0] * polygons[..., 1]).sum(-1) / 2


def least_overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """A lower bound (m,) of intersection over union of a simple polygon (n, 2) with simple ones (m, n, 2) of as many points.

    Moving each point of the one to its fellow of the other, edges sweep an area S. A place that lies in one alone has been swept, so that the
    symmetric difference is at most S, and the overlap at least :math:`(A + B - S) / (A + B + S)`. -1 where the two run in opposite directions.
    """
    one, others = one.astype(float), others.astype(float)
    moved, edge = others - one, np.roll(one, -1, 0) - one
    ahead = np.roll(moved, -1, 1)
    # of each edge the triangles (a, a', b) and (a', b', b)
    first = np.abs(edge[..., 0] * moved[..., 1] - edge[..., 1] * moved[..., 0])
    side = moved - edge
    second = np.abs(ahead[..., 0] * side[..., 1] - ahead[..., 1] * side[..., 0])
    swept = (first + second).sum(1) / 2
    a, b = areas(one), areas(others)
    both = np.abs(a) + np.abs(b)
    return np.where((a * b > 0), (both - swept) / np.maximum(both + swept, 1e-12), -1.0)


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of :func:`regions`, broadcast; 1 where both are empty, as between two of no area."""
    shapely = need("shapely", "detection", "overlap of polygons")
    shared = shapely.area(shapely.intersection(one, other))
    union = shapely.area(one) + shapely.area(other) - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 1.0)


def smallest_box(polygon: np.ndarray) -> np.ndarray:
    """Corners (4, 2) of the rectangle of least area around points; the leftmost corner first, then the topmost."""
    points = np.unique(np.asarray(polygon, float).reshape(-1, 2), axis=0)
    if len(points) > 2:
        shapely = need("shapely", "detection", "boxes around polygons")
        hull = shapely.convex_hull(shapely.multipoints(points))
        points = shapely.get_coordinates(hull)
    edges = np.roll(points, -1, 0) - points
    lengths = np.hypot(*edges.T)
    along = edges[lengths > 0] / lengths[lengths > 0, None]
    if not len(along):
        return np.repeat(points[:1], 4, 0)
    across = np.stack([-along[:, 1], along[:, 0]], 1)
    u, v = points @ along.T, points @ across.T
    best = int((np.ptp(u, 0) * np.ptp(v, 0)).argmin())
    low, high = np.array([u[:, best].min(), v[:, best].min()]), np.array([u[:, best].max(), v[:, best].max()])
    axes = np.stack([along[best], across[best]])
    corners = np.array([(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]) @ axes
    first = np.lexsort((corners[:, 1].round(9), corners[:, 0].round(9)))[0]
    return np.roll(corners, -first, 0)
