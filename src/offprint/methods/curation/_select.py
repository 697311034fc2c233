"""Which rows stay: how many, in what order, and the choice itself in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from numbers import Integral

import numpy as np

from offprint.errors import OffprintError, unknown

MODES = ("hard", "easy", "random")


def target(total: int, keep: int | float | None, fraction: float | None = None) -> int:
    """The number of examples to keep, from a fraction in (0, 1] or a whole number from 1 to ``total``."""
    if (fraction is None) == (keep is None):
        raise OffprintError("give either the fraction to keep or keep=, not both")
    asked = fraction if keep is None else keep
    if not isinstance(asked, Integral) or fraction is not None:
        if not 0 < asked <= 1:
            raise OffprintError(
                f"the fraction to keep lies above 0 and up to 1; {asked} was given (a number of rows is a whole number, as keep=100)"
            )
        asked = max(1, int(total * asked + 1e-6))
    if not 1 <= asked <= total:
        raise OffprintError(f"keep={asked} of {total} examples is impossible; choose 1 to {total}")
    return int(asked)


def check_mode(mode: str) -> str:
    if mode not in MODES:
        raise unknown("way to keep examples", mode, MODES)
    return mode


def sort_keys(rows: np.ndarray, distance: np.ndarray, mode: str, seed: int = 0) -> np.ndarray:
    """A uint32 per row; the smallest is kept first. Distances are at least 0, so their bits are in the order of their values."""
    if check_mode(mode) == "random":
        return random_keys(rows, seed)
    bits = np.ascontiguousarray(distance, np.float32).view(np.uint32)
    return ~bits if mode == "hard" else bits


def select(parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], budgets) -> Iterator[np.ndarray]:
    """Which rows have the ``budgets[j]`` smallest keys of their group j; of equal keys, those that come first.

    The threshold of each group is found byte by byte from histograms (radix selection), so that memory grows with the number
    of groups only, not of rows.

    Args:
        parts: gives all rows, piece by piece and each time anew: groups (below 0: never chosen) and uint32 keys.
        budgets: (k,), at most the size of each group.

    Yields:
        Booleans, piece by piece.
    """
    budgets = np.asarray(budgets, np.int64)
    k = len(budgets)
    threshold, left = np.zeros(k, np.uint32), budgets.copy()
    for shift in (24, 16, 8, 0):
        histogram = np.zeros(k * 256, np.int64)
        for groups, keys in parts():
            use = groups >= 0
            if shift < 24:
                use &= (keys >> np.uint32(shift + 8)) == threshold[groups]
            digit = (keys[use] >> np.uint32(shift)) & np.uint32(255)
            histogram += np.bincount(groups[use].astype(np.int64) * 256 + digit, minlength=k * 256)
        running = histogram.reshape(k, 256).cumsum(1)
        digit = (running >= np.maximum(left, 1)[:, None]).argmax(1)
        left = left - np.where(digit > 0, running[np.arange(k), digit - 1], 0)
        threshold = (threshold << np.uint32(8)) | digit.astype(np.uint32)
    left = np.where(budgets > 0, left, 0)
    for groups, keys in parts():
        there = (groups >= 0) & (budgets[groups] > 0)
        chosen = there & (keys < threshold[groups])
        ties = np.flatnonzero(there & (keys == threshold[groups]))
        ties = ties[np.argsort(groups[ties], kind="stable")]
        names, starts, counts = np.unique(groups[ties], return_index=True, return_counts=True)
        rank = np.arange(len(ties)) - np.repeat(starts, counts)
        chosen[ties[rank < left[groups[ties]]]] = True
        left[names] -= np.minimum(left[names], counts)
        yield chosen


def choose(labels: np.ndarray, keys: np.ndarray, budgets) -> np.ndarray:
    """:func:`select` of rows in memory."""
    return next(select(lambda: [(labels, keys)], budgets))


def random_keys(rows: np.ndarray, seed: int) -> np.ndarray:
    """A pseudo-random uint32 per row number, the same however the rows are cut up (splitmix64)."""
    with np.errstate(over="ignore"):
        z = (rows.astype(np.uint64) + np.uint64(seed & 0xFFFFFFFF) * np.uint64(0x632BE59BD9B4E019)) + np.uint64(1)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
