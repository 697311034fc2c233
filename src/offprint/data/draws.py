"""Pairs drawn from interactions in training: positives of users, and items that they do not have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from offprint.errors import DataError, unknown


class Seen:
    """Whether users have items: a sorted list of the pairs, asked by bisection.

    Args:
        matrix: (N, M) CSR with sorted indices.
    """

    def __init__(self, matrix: sp.csr_matrix):
        self.width = matrix.shape[1]
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
        self.keys = rows * self.width + matrix.indices

    def __call__(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        if not len(self.keys):
            return np.zeros(np.broadcast(users, items).shape, dtype=bool)
        wanted = users * np.int64(self.width) + items
        at = np.searchsorted(self.keys, wanted)
        return self.keys[np.minimum(at, len(self.keys) - 1)] == wanted


def sample_negatives(
    users: np.ndarray,
    num_items: int,
    draw: np.random.Generator,
    *,
    count: int | None = None,
    seen: Seen | None = None,
    usable: np.ndarray | None = None,
) -> np.ndarray:
    """Items drawn uniformly for each of B users: (B,), or (B, count).

    Args:
        seen: redraw what a user has, all at once and in ascending place, until nothing is left to redraw.
        usable: (B,) bool, users to redraw for; those who have all items must be left out.
    """
    items = draw.integers(0, num_items, len(users) if count is None else (len(users), count))
    if seen is None:
        return items
    flat, owner = items.reshape(-1), users if count is None else np.repeat(users, count)
    bad = seen(owner, flat)
    if usable is not None:
        bad &= usable if count is None else np.repeat(usable, count)
    bad = np.nonzero(bad)[0]
    while len(bad):
        flat[bad] = draw.integers(0, num_items, len(bad))
        bad = bad[seen(owner[bad], flat[bad])]
    return items


class Triples:
    """Batches of (users, positives, negatives) for an epoch, as int64 arrays; a seed and the epoch's number say which.

    Args:
        train: (N, M) CSR.
        batch_size: B; the last batch of an epoch is short.
        by: ``"user"``: as many draws as there are pairs, each a uniform user and a uniform item of it (LightGCN);
            ``"pair"``: every pair once, in a random order (UltraGCN).
        negatives: per pair: 1 gives (B,), more give (B, negatives). With ``by="pair"`` they are drawn batch by batch.
        reject: negatives are never training items of their user; users who have every item are then left out.
    """

    def __init__(
        self, train: sp.csr_matrix, batch_size: int, *, by: str = "user", negatives: int = 1, reject: bool = True
    ):
        if by not in ("user", "pair"):
            raise unknown("way to sample", by, ("user", "pair"))
        if train.nnz == 0:
            raise DataError("there are no training interactions to draw from")
        self.train, self.batch_size, self.by = train, batch_size, by
        self.count = None if negatives == 1 else negatives
        self.seen = Seen(train) if reject else None
        degree = np.diff(train.indptr)
        self.usable = (degree > 0) & (degree < train.shape[1]) if reject else degree > 0
        if not self.usable.any():
            raise DataError("every user has all items: there is no negative to draw")
        self.degree, self.start = degree, train.indptr[:-1].astype(np.int64)
        self._pairs = None
        if by == "pair":
            rows = np.repeat(np.arange(train.shape[0], dtype=np.int64), degree)
            kept = self.usable[rows]
            self._pairs = rows[kept], train.indices[kept].astype(np.int64)

    def _drawn(self, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
        total, (num_users, num_items) = self.train.nnz, self.train.shape
        users = draw.integers(0, num_users, total)
        place = draw.random(total)
        kept = self.usable[users]
        negatives = sample_negatives(users, num_items, draw, count=self.count, seen=self.seen, usable=kept)
        users, place, negatives = users[kept], place[kept], negatives[kept]
        positives = self.train.indices[self.start[users] + (place * self.degree[users]).astype(np.int64)]
        return users, positives.astype(np.int64), negatives

    def epoch(self, seed: int, number: int) -> tuple[int, Iterator[tuple[np.ndarray, ...]]]:
        """How many batches epoch ``number`` (from 0) has, and the batches. Everything is drawn from ``seed + number``."""
        draw, size = np.random.default_rng(seed + number), self.batch_size
        if self.by == "user":
            columns = self._drawn(draw)
            total = len(columns[0])
            return -(-total // size), (tuple(c[s : s + size] for c in columns) for s in range(0, total, size))
        users, items = self._pairs  # type: ignore[misc]
        order = draw.permutation(len(users))

        def batches():
            for s in range(0, len(order), size):
                chosen = order[s : s + size]
                u = users[chosen]
                yield u, items[chosen], sample_negatives(u, self.train.shape[1], draw, count=self.count, seen=self.seen)

        return -(-len(order) // size), batches()
