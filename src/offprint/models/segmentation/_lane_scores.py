"""How lanes are judged: CULane's F1 of drawn curves, TuSimple's accuracy of points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from offprint.errors import OffprintError

Lane = Any  # (n, 2) points (x, y): an array, a tensor or a list
SAMPLES = 50  # of the spline, per segment


# -- CULane -----------------------------------------------------------------------------------------------------------
def _points(lane: Lane) -> np.ndarray:
    points = np.asarray(lane, dtype=np.float64)
    if points.size == 0:
        return points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise OffprintError(f"a lane is a list of finite points (x, y); got an array of shape {points.shape}")
    return points


def spline(lane: Lane) -> np.ndarray:
    """A lane as a natural cubic spline over its chord length: 50 samples of each segment, and the last point; (m, 2).

    Two points give a straight line, fewer none. A point that repeats the one before it counts once.
    """
    points = _points(lane)
    if len(points) > 1:
        points = points[np.r_[True, (np.diff(points, axis=0) != 0).any(1)]]
    if len(points) < 2:
        return np.zeros((0, 2))
    at = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    share = np.arange(SAMPLES) / SAMPLES
    where = np.r_[(at[:-1, None] + share * np.diff(at)[:, None]).ravel(), at[-1]]
    if len(points) == 2:
        return points[0] + (where / at[-1])[:, None] * (points[1] - points[0])
    from scipy.interpolate import CubicSpline

    return CubicSpline(at, points, bc_type="natural")(where)


def draw_lane(points: np.ndarray, size: tuple[int, int], width: int) -> np.ndarray:
    """A bool mask (H, W) of a curve through points (m, 2), drawn with a round pen: all pixels within half its width of the curve.

    Corners are rounded to whole pixels first, as in the benchmark's tool.
    """
    mask = np.zeros((size[0], size[1] + 1), np.int32)
    corners = np.rint(points)
    if not len(corners):
        return mask[:, :-1].astype(bool)
    steps = np.diff(corners, axis=0)
    counts = np.maximum(1, 2 * np.ceil(np.abs(steps).max(1))).astype(
        int
    )  # at most half a pixel from one pen to the next
    first = np.repeat(np.arange(len(steps)), counts)
    share = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) / counts[first]
    centres = np.unique(np.r_[corners[first] + share[:, None] * steps[first], corners[-1:]], axis=0)
    radius = width / 2
    reach = np.arange(-int(radius) - 1, int(radius) + 2)
    ys = np.floor(centres[:, 1])[:, None] + reach
    half = radius**2 - (ys - centres[:, 1:]) ** 2
    inside = (half >= 0) & (ys >= 0) & (ys < size[0])
    half = np.sqrt(np.maximum(half, 0))
    left = np.clip(np.ceil(centres[:, :1] - half), 0, size[1]).astype(int)
    right = np.clip(np.floor(centres[:, :1] + half) + 1, 0, size[1]).astype(int)
    inside &= right > left
    rows = ys[inside].astype(int)
    np.add.at(mask, (rows, left[inside]), 1)
    np.add.at(mask, (rows, right[inside]), -1)
    return mask.cumsum(1)[:, :-1] > 0


@dataclass(frozen=True)
class CulaneCounts:
    """Lanes found, invented and missed; counts of pictures add up with ``+``.

    Attributes:
        tp, fp, fn: counts.
        iou: (true lanes, predicted lanes) of one picture; ``None`` in a sum.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: np.ndarray | None = field(default=None, compare=False, repr=False)

    def __add__(self, other: CulaneCounts) -> CulaneCounts:
        return CulaneCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float | None:
        """``None`` where nothing was predicted."""
        return self.tp / (self.tp + self.fp) if self.tp + self.fp else None

    @property
    def recall(self) -> float | None:
        """``None`` where there is no true lane: pictures of crossroads count by ``fp`` alone."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f1(self) -> float:
        """2PR / (P + R), which is 2 tp / (2 tp + fp + fn); 0 where nothing was found."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0


def culane_f1(
    truth: Sequence[Lane], prediction: Sequence[Lane], threshold: float = 0.5, width: int = 30,
    size: tuple[int, int] = (590, 1640),
) -> CulaneCounts:  # fmt: skip
    """CULane's count of one picture: lanes are drawn, paired one to one for the largest total overlap, and a pair above the threshold counts.

    Args:
        truth, prediction: lanes, each a list of points (x, y) in the picture's pixels. One of fewer than two points overlaps nothing and counts.
        threshold: IoU that a pair must exceed; 0.3 is reported beside 0.5.
        width: of the pen, in pixels.
        size: (height, width) of the picture.

    Returns:
        Counts with precision, recall and F1; no predictions (a missing file) are an empty list.
    """
    from scipy.optimize import linear_sum_assignment

    drawn = [[draw_lane(spline(lane), size, width) for lane in side] for side in (truth, prediction)]
    iou = np.zeros((len(truth), len(prediction)))
    for i, a in enumerate(drawn[0]):
        for j, b in enumerate(drawn[1]):
            both = int((a & b).sum())
            iou[i, j] = both / (int(a.sum()) + int(b.sum()) - both) if both else 0.0
    tp = int((iou[linear_sum_assignment(-iou)] > threshold).sum()) if iou.size else 0
    return CulaneCounts(tp, len(prediction) - tp, len(truth) - tp, iou)


def _count(pair: tuple, **options: Any) -> CulaneCounts:
    return culane_f1(*pair, **options)


def culane_total(
    pictures: Mapping[str, Iterable[tuple[Sequence[Lane], Sequence[Lane]]]], workers: int = 1, **options: Any
) -> dict[str, CulaneCounts]:
    """Counts of each category, and under ``total`` their sum: the total F1 is that of the summed counts, not a mean of F1.

    Args:
        pictures: category → (true lanes, predicted lanes) of each picture.
        workers: processes that share the pictures.
        **options: of :func:`culane_f1`.
    """
    if "total" in pictures:
        raise OffprintError("'total' is the sum of the categories; give that category another name")
    one, found = partial(_count, **options), {}
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for name, pairs in pictures.items():
            counted = pool.map(one, pairs, chunksize=16) if pool else map(one, pairs)
            found[name] = sum(counted, CulaneCounts())
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    return {**found, "total": sum(found.values(), CulaneCounts())}


# -- TuSimple ---------------------------------------------------------------------------------------------------------
NEAR, MATCHED, MOST_MS, ABSENT = 20.0, 0.85, 200.0, -100.0


@dataclass(frozen=True)
class TusimpleScore:
    """TuSimple's figures of one picture, or their mean over several.

    Attributes:
        accuracy, fp, fn: shares from 0 to 1.
        thresholds: px of each true lane.
        line_accuracy: (true lanes, predicted lanes) share of right points.
    """

    accuracy: float
    fp: float
    fn: float
    thresholds: np.ndarray | None = field(default=None, compare=False, repr=False)
    line_accuracy: np.ndarray | None = field(default=None, compare=False, repr=False)


def _by_row(lanes: Sequence[Sequence[float]], rows: np.ndarray, whose: str) -> np.ndarray:
    for i, lane in enumerate(lanes):
        if len(lane) != len(rows):
            raise OffprintError(
                f"{whose} lane {i} has {len(lane)} values and there are {len(rows)} h_samples; give x for every row, -2 where the lane is not"
            )
    return np.asarray([list(map(float, lane)) for lane in lanes]).reshape(len(lanes), len(rows))


def tusimple_accuracy(
    h_samples: Sequence[float],
    truth: Sequence[Sequence[float]],
    prediction: Sequence[Sequence[float]],
    run_time: float = 0.0,
) -> TusimpleScore:
    """TuSimple's accuracy, false positives and false negatives of one picture.

    A point is right within 20 px / cos(angle) of the true one, the angle being that of the true lane's least-squares line; rows where
    both are absent are right too. A true lane is matched where its best prediction is right in 85 % of the rows. Of more than four true
    lanes the worst is left out and one miss forgiven. More than two lanes too many, or more than 200 ms, give (0, 0, 1).

    Args:
        h_samples: rows.
        truth, prediction: x of each lane at each row, negative where it is absent.
        run_time: of the prediction, in ms.

    Raises:
        OffprintError: a lane has not a value for each row.
    """
    rows = np.asarray(list(map(float, h_samples)))
    true, said = _by_row(truth, rows, "true"), _by_row(prediction, rows, "predicted")
    thresholds = np.array([NEAR / np.cos(_angle(lane, rows)) for lane in true])
    a, b = (np.where(v >= 0, v, ABSENT) for v in (true, said))
    right = (
        (np.abs(a[:, None] - b[None]) < thresholds[:, None, None]).mean(2) if len(rows) else np.zeros((len(a), len(b)))
    )
    if run_time > MOST_MS or len(said) > len(true) + 2:
        return TusimpleScore(0.0, 0.0, 1.0, thresholds, right)
    best = right.max(1, initial=0.0)
    matched, count = int((best >= MATCHED).sum()), len(true)
    missed, total = count - matched, float(best.sum())
    if count > 4:
        missed, total = missed - (missed > 0), total - float(best.min())
    counted = max(min(4, count), 1)
    fp = (len(said) - matched) / len(said) if len(said) else 0.0
    return TusimpleScore(total / counted, fp, missed / counted, thresholds, right)


def _angle(lane: np.ndarray, rows: np.ndarray) -> float:
    """Of a lane's least-squares line x(y) against the vertical; 0 with fewer than two points."""
    there = lane >= 0
    y, x = rows[there], lane[there]
    if len(x) < 2 or not (y != y[0]).any():
        return 0.0
    y, x = y - y.mean(), x - x.mean()
    return float(np.arctan((y * x).sum() / (y * y).sum()))


def tusimple_total(scores: Iterable[TusimpleScore]) -> TusimpleScore:
    """The mean over pictures.

    Raises:
        OffprintError: there are none.
    """
    rows = [(s.accuracy, s.fp, s.fn) for s in scores]
    if not rows:
        raise OffprintError("not one picture was scored")
    return TusimpleScore(*(float(v) for v in np.mean(rows, 0)))
