"""Unit vectors and spherical k-means, block by block: results do not depend on how the rows were cut into blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from offprint.errors import DataError, OffprintError

BLOCK = 4096  # rows read and normalised at a time
TILE = 512  # rows multiplied with the centroids at a time, so that their products stay in the cache
CHUNK = 1 << 16  # rows of labels and distances looked at at a time
ROUNDING = 1e-5  # float32 products of unit rows that differ by less may stand in the wrong order
SETTLED = 0.1  # share of rows that change their cluster below which bounds pay
FAR_SHARES = (0.0, 1 / 32, 1 / 8, 3 / 8)
PER_CENTROID = 256  # rows per centroid that k-means is fitted on, as faiss does
GOOD, MISSING, DIMENSION, INFINITE, ZERO = range(5)


def refuse(code: int, row: int, dim: int, found: int | None = None) -> DataError:
    """The error for a row that cannot be used."""
    what = {
        MISSING: "is missing (null); fill it in or leave the row out",
        DIMENSION: f"has {'another number of' if found is None else found} dimensions, the first row has {dim}; "
        "embed every row with the same encoder",
        INFINITE: "holds NaN or infinite values; embed it again or leave the row out",
        ZERO: "is all zeros, which has no direction; embed it again or leave the row out",
    }[code]
    return DataError(f"the embedding in row {row} {what}")


def normalise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) of any float kind divided by their L2 norms, float32; and a code per row (0: good)."""
    wide = rows.astype(np.float64)
    norm = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    codes = np.zeros(len(wide), np.int8)
    if not np.isfinite(norm).all():
        codes[~np.isfinite(wide).all(1)] = INFINITE
        wide[codes != GOOD] = norm[codes != GOOD] = 0
    codes[(norm == 0) & (codes == GOOD)] = ZERO
    return (wide / np.where(norm > 0, norm, 1)[:, None]).astype(np.float32), codes


def unit_rows(embeddings) -> np.ndarray:
    """A matrix of embeddings with every row of length 1.

    Args:
        embeddings: (n, d): numpy array, torch tensor, list of vectors, or Arrow column of vectors.

    Raises:
        DataError: no rows, rows of different length, or a row (named) that is missing, not finite or all zeros.
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().cpu().float().numpy()
    elif hasattr(embeddings, "to_pylist"):
        embeddings = embeddings.to_pylist()
    if not isinstance(embeddings, np.ndarray):
        embeddings = list(embeddings)
        dim = next((len(v) for v in embeddings if v is not None), 0)
        for row, vector in enumerate(embeddings):
            if vector is None or len(vector) != dim:
                raise refuse(
                    MISSING if vector is None else DIMENSION, row, dim, None if vector is None else len(vector)
                )
        embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.size == 0:
        raise DataError("the table of embeddings is empty; there is nothing to choose from")
    if embeddings.ndim != 2:
        raise DataError(f"embeddings (rows, dimensions) expected, an array of shape {embeddings.shape} was given")
    out = np.empty(embeddings.shape, np.float32)
    for start in range(0, len(out), TILE):
        out[start : start + TILE], codes = normalise(embeddings[start : start + TILE])
        if codes.any():
            row = int(np.argmax(codes != GOOD))
            raise refuse(int(codes[row]), start + row, out.shape[1])
    return out


def chunks(labels: np.ndarray, distance: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Labels and distances in memory, as (first row, labels, distances) of at most :data:`CHUNK` rows."""
    for start in range(0, len(labels), CHUNK):
        yield start, labels[start : start + CHUNK], distance[start : start + CHUNK]


def assign(unit: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The centroid of largest inner product of each row, and 1 minus that product.

    Multiplied in float32; rows whose two best centroids are within rounding are decided in float64, and the distance is
    computed in float64, so that neither depends on the rows beside them.

    Args:
        unit: (n, d), rows of length 1.
        centroids: (k, d), rows of length 1.

    Returns:
        Labels (n,) int32 and distances (n,) float32, at least 0.
    """
    if unit.shape[1] != centroids.shape[1]:
        raise OffprintError(f"embeddings have {unit.shape[1]} dimensions, the centroids {centroids.shape[1]}")
    labels, distance = np.empty(len(unit), np.int32), np.empty(len(unit), np.float32)
    exact = centroids.astype(np.float64)
    for rows, x, scores in _tiles(unit, centroids):
        best, each = scores.argmax(1), np.arange(len(x))
        first = scores[each, best]
        scores[each, best] = -np.inf
        close = np.flatnonzero(first - scores.max(1) < ROUNDING)
        if len(close):
            best[close] = (x[close].astype(np.float64) @ exact.T).argmax(1)
        labels[rows] = best
        cosine = np.einsum("ij,ij->i", x.astype(np.float64), exact[best])
        distance[rows] = np.maximum(1 - cosine, 0)
    return labels, distance


def _tiles(unit: np.ndarray, centroids: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Iterator[tuple]:
    """(place, rows, their inner products with the centroids) of all rows or those numbered, a tile at a time; the products are
    overwritten by the next."""
    across = np.ascontiguousarray(centroids.T)
    products = np.empty((TILE, len(centroids)), np.float32)
    for start in range(0, len(unit) if isinstance(rows, slice) else len(rows), TILE):
        place = slice(start, min(start + TILE, len(unit))) if isinstance(rows, slice) else rows[start : start + TILE]
        x = unit[place]
        yield place, x, np.matmul(x, across, out=products[: len(x)])


def pair_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of each pair of unit rows, float32, at least 0."""
    return np.maximum(1 - np.einsum("ij,ij->i", a.astype(np.float64), b.astype(np.float64)), 0).astype(np.float32)


def sample_rows(count: int, size: int, seed: int) -> np.ndarray:
    """``size`` different row numbers below ``count``, ascending, in memory that grows with ``size`` alone (Floyd)."""
    if size >= count:
        return np.arange(count)
    tops = np.arange(count - size, count)
    chosen: set[int] = set()
    for top, draw in zip(tops.tolist(), np.random.default_rng(seed).integers(0, tops + 1).tolist(), strict=True):
        chosen.add(top if draw in chosen else draw)
    return np.array(sorted(chosen))


def renormalise(sums: np.ndarray, fallback: np.ndarray) -> np.ndarray:
    """Sums of members (k, d) as unit centroids; a sum of length 0 keeps the fallback."""
    norm = np.sqrt(np.einsum("ij,ij->i", sums, sums))
    return np.where(norm[:, None] > 0, sums / np.where(norm > 0, norm, 1)[:, None], fallback).astype(np.float32)


class Bounds:
    """The nearest centroid of every row, most rows looked at only with the centroids that moved far since the last time.

    A centroid that moved by s changes its product with a unit row by s at most (triangle inequality). So a row keeps its centroid
    if the product with it, less that centroid's move, exceeds the bound on all others, raised by the largest move among those left
    out. Rows that this does not decide, by more than rounding, are multiplied with all centroids: labels are those of a full search.

    Attributes:
        worth: keep bounds from the next full search on; not worth their cost while most rows change their cluster.
    """

    def __init__(self, unit: np.ndarray):
        self.unit, self.worth = unit, False
        self.centroids: np.ndarray | None = None  # those the bounds hold for; None: there are no bounds
        self.own, self.others = np.empty(
            (2, len(unit)), np.float32
        )  # at most the product with the own, at least with any other

    def assign(self, centroids: np.ndarray, labels: np.ndarray) -> None:
        """Write the label of every row; ``labels`` holds those of the last time."""
        rows = slice(None) if self.centroids is None else self._undecided(centroids, labels)
        for place, _, scores in _tiles(self.unit, centroids, rows):
            best, each = scores.argmax(1), np.arange(len(scores))
            labels[place] = best
            if self.worth:
                self.own[place] = scores[each, best]
                scores[each, best] = -np.inf
                self.others[place] = scores.max(1)
        if self.worth:
            self.centroids = centroids

    def _undecided(self, centroids: np.ndarray, labels: np.ndarray) -> np.ndarray | slice:
        """The rows that must be multiplied with all centroids; the bounds of the others are brought up to date."""
        move = np.linalg.norm(centroids.astype(np.float64) - self.centroids, axis=1).astype(np.float32)
        order, own, is_far = np.argsort(-move), self.own - move[labels], np.zeros(len(move), bool)
        plans = []
        for share in FAR_SHARES:  # how many centroids are taken as far: more of them cost more and leave less in doubt
            far = order[: int(share * len(order))]
            is_far[far] = True
            still = move[order[len(far)]]
            some = slice(None, None, 16)
            decided = (own[some] > self.others[some] + still) & ~is_far[labels[some]]
            plans.append((1 - (1 - share) * decided.mean(), far, still))
        cost, far, still = min(plans, key=lambda plan: plan[0])
        if cost > 0.8:
            return slice(None)
        self.own, self.others = own, self.others + still
        is_far[:] = False
        is_far[far] = True
        fixed = (own > self.others + ROUNDING) & ~is_far[labels]
        if len(far):
            for place, _, scores in _tiles(self.unit, centroids[far], np.flatnonzero(fixed)):
                self.others[place] = np.maximum(self.others[place], scores.max(1))
            fixed &= own > self.others + ROUNDING
        return np.flatnonzero(~fixed)


def spherical_kmeans(unit: np.ndarray, k: int, *, iterations: int = 100, seed: int = 1234) -> np.ndarray:
    """k-means by inner product, centroids renormalised to unit length in every iteration.

    Starts from k random rows; an empty cluster restarts at the row farthest from its centroid; stops early once no row
    changes its cluster.

    Args:
        unit: (n, d), rows of length 1.
        k: clusters, at most n.
        iterations: at most.
        seed: of the starting rows.

    Returns:
        Centroids (k, d), float32.

    Raises:
        OffprintError: k is less than 1 or more than the rows.
    """
    cluster_count(k, len(unit))
    centroids = unit[np.random.default_rng(seed).choice(len(unit), k, replace=False)]
    labels, sums, bounds = np.full(len(unit), -1, np.int32), np.zeros((k, unit.shape[1])), Bounds(unit)
    for _ in range(iterations):
        before = labels.copy()
        bounds.assign(centroids, labels)
        changed = np.flatnonzero(labels != before)
        if not len(changed):
            break
        bounds.worth = len(changed) < SETTLED * len(unit)
        for start in range(0, len(changed), CHUNK):  # the sums of the members, kept up to date by those that moved
            rows = changed[start : start + CHUNK]
            sums += member_sums(unit, labels[rows], k, rows) - member_sums(unit, before[rows], k, rows)
        moved = renormalise(sums, centroids)
        empty = np.flatnonzero(np.bincount(labels, minlength=k) == 0)
        if len(empty):
            cosine = np.einsum("ij,ij->i", unit, centroids[labels])
            moved[empty] = unit[np.argsort(cosine, kind="stable")[: len(empty)]]
        centroids = moved
    return centroids


def member_sums(unit: np.ndarray, labels: np.ndarray, k: int, rows: np.ndarray | None = None) -> np.ndarray:
    """The sum of each cluster's members, (k, d) float64, of all rows or those numbered; ones labelled below 0 count nowhere."""
    use = np.flatnonzero(labels >= 0)
    if not len(use):
        return np.zeros((k, unit.shape[1]))
    at = use if rows is None else rows[use]
    member = scipy.sparse.csr_matrix((np.ones(len(use), np.float32), (labels[use], at)), (k, len(unit)))
    return (member @ unit).astype(np.float64)


def sample_size(k: int, sample: int | None) -> int:
    """How many rows k-means is fitted on."""
    return max(k, PER_CENTROID * k if sample is None else sample)


def cluster_count(k: int | None, rows: int) -> int:
    """k, if it can be; where none is given 500, as on LAION, but no more than one cluster for every 20 rows.

    Raises:
        OffprintError: k is less than 1 or more than the rows.
    """
    k = max(1, min(500, rows // 20)) if k is None else k
    if not 1 <= k <= rows:
        raise OffprintError(f"k={k} clusters of {rows} rows cannot be made; choose k from 1 to {rows}")
    return k


def fit(unit: np.ndarray, k: int | None, *, iterations: int, seed: int, sample: int | None) -> np.ndarray:
    """Centroids from a sample of the rows (default 256 per centroid)."""
    k = cluster_count(k, len(unit))
    rows = sample_rows(len(unit), sample_size(k, sample), seed)
    return spherical_kmeans(unit if len(rows) == len(unit) else unit[rows], k, iterations=iterations, seed=seed)
