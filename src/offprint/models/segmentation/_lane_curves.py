"""From probability maps to lanes: points of each lane at fixed rows of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offprint.errors import OffprintError


@dataclass(frozen=True)
class LaneRows:
    """At which rows of a picture a benchmark asks for lanes, and how they are read off a map.

    Attributes:
        size: (height, width) of the benchmark's pictures.
        gap: rows between two points.
        points: of a lane, from the bottom up.
        from_bottom: the first point is the last row and rows of the map are counted from its end (CULane); otherwise the first lies one
            gap above the bottom and rows are scaled (TuSimple).
        threshold: probability above which a point is there.
        keep_absent: rows without a point are listed with x = -1.
    """

    size: tuple[int, int]
    gap: int
    points: int
    from_bottom: bool
    threshold: float = 0.3
    keep_absent: bool = False

    def rows(self) -> list[int]:
        """y of each point in the picture."""
        first = self.size[0] - (1 if self.from_bottom else self.gap)
        return [first - self.gap * i for i in range(self.points)]

    def places(self, height: int) -> list[int]:
        """Row of each point in a map of this height."""
        if self.from_bottom:
            return [int(height - i * self.gap / self.size[0] * height - 1) for i in range(self.points)]
        return [int(y * height / self.size[0]) for y in self.rows()]

    def of(self, size: tuple[int, int]) -> LaneRows:
        """The same number of points over the same share of a picture of another size."""
        gap = max(1, round(self.gap * size[0] / self.size[0]))
        points = min(self.points, (size[0] - (1 if self.from_bottom else gap)) // gap + 1)
        return LaneRows(size, gap, points, self.from_bottom, self.threshold, self.keep_absent)


CULANE = LaneRows((590, 1640), 20, 18, True)
TUSIMPLE = LaneRows((720, 1280), 10, 56, False, keep_absent=True)


def lanes_by_number(
    probabilities: Tensor, exists: Sequence[float] | Tensor, rows: LaneRows = CULANE
) -> dict[int, Tensor]:
    """Lanes that are there, by number from 0, each (n, 2) points (x, y); arguments as :func:`maps_to_lanes`."""
    flags = torch.as_tensor(exists).flatten().tolist()
    if probabilities.ndim != 3 or len(probabilities) != len(flags) + 1:
        raise OffprintError(
            f"expected maps (lanes + 1, H, W) and a flag per lane, got maps {tuple(probabilities.shape)} and {len(flags)} flags"
        )
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise OffprintError("expected probabilities from 0 to 1, got other values; give the softmax of the logits")
    height, width = probabilities.shape[1:]
    wanted = [i for i, flag in enumerate(flags) if flag > 0.5]
    if not wanted:
        return {}
    maps = F.avg_pool2d(F.pad(probabilities[1:][wanted][None], (4, 4, 4, 4), mode="replicate"), 9, 1)[0]
    places = torch.tensor(rows.places(height), device=maps.device)
    ys = torch.tensor(rows.rows(), dtype=torch.float64)
    if int(places.min()) < 0:
        raise OffprintError(
            f"{rows.points} points {rows.gap} rows apart do not fit into {rows.size[0]} rows; give fewer"
        )
    found = {}
    for number, lane in zip(wanted, maps[:, places], strict=True):
        value, at = (v.cpu() for v in lane.max(1))
        x = torch.where(value > rows.threshold, (at.double() / width * rows.size[1]).floor(), 0.0)
        there = x > 0  # 0 stands for a row without a point
        if int(there.sum()) < 2:
            continue
        points = torch.stack([torch.where(there, x, -1.0), ys], 1)
        found[number] = points if rows.keep_absent else points[there]
    return found


def maps_to_lanes(probabilities: Tensor, exists: Sequence[float] | Tensor, rows: LaneRows = CULANE) -> list[Tensor]:
    """Lanes of one picture from its maps: each map is smoothed by a 9x9 mean, and its largest value taken in each row.

    Args:
        probabilities: softmax of the logits (lanes + 1, H, W), map 0 the background's. Not the logits: a threshold on those means nothing.
        exists: probability of each lane; those above one half are read.
        rows: at which rows: :data:`CULANE`, :data:`TUSIMPLE`, or ``CULANE.of(size)``.

    Returns:
        A tensor (n, 2) float64 of points (x, y) in the picture for each lane, from the bottom up. Lanes of fewer than two points are left out.
        Without any lane the list is empty.

    Raises:
        OffprintError: not probabilities, or not a flag for each map but the first.
    """
    return list(lanes_by_number(probabilities, exists, rows).values())
