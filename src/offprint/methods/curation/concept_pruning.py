r"""Effective pruning of web-scale datasets based on complexity of concept clusters (ICLR 2024; arXiv 2401.04578).

Which part of a large collection is worth training on? Embed every example and divide by the norm. Remove semantic
near-duplicates. Cluster by spherical k-means. Give each cluster j a budget that grows with its complexity, the spread of its
members times the distance to its neighbours,

.. math:: C_j = d^{\mathrm{intra}}_j\, d^{\mathrm{inter}}_j, \qquad P_j = \mathrm{softmax}(C_j / \tau), \qquad
          \min_N \sum_j (N_j - P_j N)^2 \;\text{ s.t. }\; \textstyle\sum_j N_j = N,\; l_j \le N_j \le M_j,

where :math:`d^{\mathrm{intra}}_j` is the mean cosine distance of the members to their centroid, :math:`d^{\mathrm{inter}}_j` the
mean distance of the centroid to its l nearest others, and :math:`M_j` the cluster's size. In each cluster keep the
:math:`N_j` examples farthest from the centroid (the hard ones). This generalises SSP-Pruning (Sorscher et al. 2022), which
makes one global cut by distance.

The quadratic programme has the exact solution :math:`N_j = \mathrm{clip}(P_j N - t,\ l_j,\ M_j)` with one scalar t (Karush-
Kuhn-Tucker), found by bisection and rounded by largest remainders, so that the total is exactly N.

In memory: :func:`density_based_pruning` and the baselines :func:`ssp_pruning`, :func:`semdedup` (Abbas et al. 2023),
:func:`random_pruning`, :func:`clip_score_pruning`. Over Parquet files of any size, in constant memory, locally or on Ray, the
same, by :func:`offprint.methods.curation.parquet.prune_parquet`; :class:`KeptIds` is a filter for shards from what it wrote. Far from the centroid there are also
outliers: deduplicate, and filter noise, before pruning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, unknown
from offprint.methods.curation._kmeans import (
    assign,
    chunks,
    fit,
    pair_distance,
    spherical_kmeans,
    unit_rows,
)
from offprint.methods.curation._select import check_mode, choose, random_keys, sort_keys, target
from offprint.methods.curation._tables import KeptIds

COMPLEXITIES = ("dintra*dinter", "dintra", "dinter", "clustersize", "uniform")
METHODS = ("dbp", "ssp", "semdedup", "random", "clip-score")
VARIANTS: dict[str, dict[str, Any]] = {  # the paper's settings, as arguments of prune_parquet
    "dbp_laion": {"method": "dbp", "k": 500, "num_neighbors": 20, "temperature": 0.1, "balance": 0.0, "keep_mode": "hard"},
    "dbp_datacomp_medium": {"method": "dbp", "k": 100, "num_neighbors": 20, "temperature": 0.1, "balance": 0.0, "keep_mode": "hard"},
    "ssp": {"method": "ssp", "k": 500, "balance": 0.5, "keep_mode": "hard"},
    "semdedup": {"method": "semdedup", "dedup_clusters": 50_000, "dedup_keep": "hard"},
}  # fmt: skip
ROWS_PER_DEDUP_CLUSTER = 8_800  # the paper's 50,000 clusters of 440 million


# -- budgets --------------------------------------------------------------------------------------------------------------
@dataclass
class Allocation:
    """Budgets of the clusters: ``budgets`` are integers that sum to what was asked, ``real_valued`` the exact optimum."""

    probabilities: np.ndarray
    lower: np.ndarray
    real_valued: np.ndarray
    budgets: np.ndarray


def allocate_budgets(complexity, sizes, keep: int, *, temperature: float = 0.1, balance: float = 0.0) -> Allocation:
    """How many examples each cluster keeps.

    Args:
        complexity: (k,) of the clusters.
        sizes: (k,) examples of the clusters.
        keep: examples to keep in all.
        temperature: of the softmax; small ones fill the complex clusters to the last example.
        balance: 0, or the share of an even split (keep / k) that every cluster is guaranteed.

    Raises:
        OffprintError: keep is not between the sum of the lower bounds and the sum of the sizes.
    """
    complexity, sizes = np.asarray(complexity, np.float64), np.asarray(sizes, np.int64)
    if complexity.shape != sizes.shape or sizes.ndim != 1:
        raise OffprintError(f"complexity {complexity.shape} and sizes {sizes.shape} must be vectors of one length")
    if not 0 <= balance <= 1 or not temperature > 0:
        raise OffprintError(f"balance lies in [0, 1] and temperature above 0; {balance} and {temperature} were given")
    least = int(keep / len(sizes) * balance) if balance > 0 else 1
    lower = np.clip(np.minimum(least, sizes - 1), 0, None)
    if not lower.sum() <= keep <= sizes.sum():
        raise OffprintError(
            f"{keep} of {sizes.sum()} examples cannot be kept: {len(sizes)} clusters keep at least {lower.sum()}; "
            "choose another number, or fewer clusters"
        )
    weights = np.exp((complexity - complexity.max()) / temperature)
    share = weights / weights.sum()
    wanted = share * keep
    low, high = (
        (wanted - sizes).min() - 1,
        (wanted - lower).max() + 1,
    )  # t where all are full, and where all are at least
    for _ in range(200):
        middle = (low + high) / 2
        if np.clip(wanted - middle, lower, sizes).sum() > keep:
            low = middle
        else:
            high = middle
    real = np.clip(wanted - high, lower, sizes)
    return Allocation(share, lower, real, _largest_remainder(real, sizes, keep))


def _largest_remainder(real: np.ndarray, sizes: np.ndarray, total: int) -> np.ndarray:
    """Integers next to ``real`` that sum to ``total``: rounded down, and up where most was lost."""
    whole = np.floor(real + 1e-9).astype(np.int64)
    order = np.argsort(-np.where(whole < sizes, real - whole, -np.inf), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return whole


# -- complexity -------------------------------------------------------------------------------------------------------
def neighbour_distance(centroids: np.ndarray, num_neighbors: int = 20) -> np.ndarray:
    """d_inter: the mean of 1 - cosine from each centroid to its nearest others (as many as there are, if fewer)."""
    exact, k = centroids.astype(np.float64), len(centroids)
    count = min(num_neighbors, k - 1)
    if count < 1:
        return np.full(k, np.nan)
    out = np.empty(k)
    for start in range(0, k, 1024):
        away = 1 - exact[start : start + 1024] @ exact.T
        away[np.arange(len(away)), np.arange(start, start + len(away))] = np.inf
        out[start : start + 1024] = np.partition(away, count - 1, axis=1)[:, :count].mean(1)
    return out


def cluster_complexity(sizes: np.ndarray, d_intra: np.ndarray, d_inter: np.ndarray, kind: str) -> np.ndarray:
    """Complexity of each cluster; one that cannot be computed (an empty cluster) gets the mean of the others."""
    if kind not in COMPLEXITIES:
        raise unknown("complexity", kind, COMPLEXITIES)
    value = {
        "dintra*dinter": d_intra * d_inter, "dintra": d_intra, "dinter": d_inter,
        "clustersize": sizes.astype(np.float64), "uniform": np.ones(len(sizes)),
    }[kind]  # fmt: skip
    known = np.isfinite(value)
    return np.where(known, value, value[known].mean() if known.any() else 1.0)


Part = tuple[int, np.ndarray, np.ndarray]  # first row, labels (below 0: removed), distances


def statistics(parts: Iterable[Part], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and d_intra (k,)."""
    sizes, total = np.zeros(k, np.int64), np.zeros(k)
    for _, labels, distance in parts:
        there = labels >= 0
        sizes += np.bincount(labels[there], minlength=k)
        total += np.bincount(labels[there], weights=distance[there].astype(np.float64), minlength=k)
    return sizes, np.divide(total, sizes, out=np.full(k, np.nan), where=sizes > 0)


@dataclass
class Report:
    """What pruning did to each cluster.

    Attributes:
        total, duplicates, count: rows given, removed as near-duplicates, kept.
        sizes, d_intra, d_inter, complexity, budgets: (k,) per cluster; ``budgets`` is how many were kept. Without entries for
            methods that make no clusters.
        centroids: (k, d).
    """

    total: int
    duplicates: int
    count: int
    sizes: np.ndarray
    d_intra: np.ndarray
    d_inter: np.ndarray
    complexity: np.ndarray
    budgets: np.ndarray
    centroids: np.ndarray

    def clusters(self) -> list[dict[str, Any]]:
        """One row per cluster, the most complex first; ``None`` where there is nothing to measure (an empty cluster)."""
        order = np.argsort(-self.complexity, kind="stable")
        columns = {"d_intra": self.d_intra, "d_inter": self.d_inter, "complexity": self.complexity}
        return [
            {"cluster": int(j), "size": int(self.sizes[j]), "kept": int(self.budgets[j])}
            | {name: float(values[j]) if np.isfinite(values[j]) else None for name, values in columns.items()}
            for j in order
        ]


@dataclass
class PruningResult(Report):
    """A :class:`Report`, and of each example: ``kept`` row numbers (ascending), ``assignment`` (-1: a removed duplicate) and
    ``distance`` to its centroid."""

    kept: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray


def describe(
    parts: Iterable[Part], centroids: np.ndarray, num_neighbors: int = 20, complexity: str = COMPLEXITIES[0]
) -> dict[str, np.ndarray]:
    """The fields of a :class:`Report` that follow from the clusters."""
    sizes, d_intra = statistics(parts, len(centroids))
    d_inter = neighbour_distance(centroids, num_neighbors)
    value = cluster_complexity(sizes, d_intra, d_inter, complexity)
    return {"sizes": sizes, "d_intra": d_intra, "d_inter": d_inter, "complexity": value, "centroids": centroids}


# -- the methods --------------------------------------------------------------------------------------------------------
def density_based_pruning(
    embeddings,
    fraction: float | None = None,
    *,
    keep: int | float | None = None,
    k: int | None = None,
    num_neighbors: int = 20,
    temperature: float = 0.1,
    balance: float = 0.0,
    keep_mode: str = "hard",
    complexity: str = "dintra*dinter",
    eps: float | None = None,
    dedup_clusters: int | None = None,
    dedup_keep: str = "hard",
    centroids=None,
    iterations: int = 100,
    sample: int | None = None,
    seed: int = 1234,
) -> PruningResult:
    """Density-Based Pruning.

    Args:
        embeddings: (n, d), one vector per example; normalised here.
        fraction: share of the n examples to keep, in (0, 1].
        keep: in place of ``fraction``: a number of examples (int) or a share (float).
        k: clusters; default 500 as on LAION (100 on DataComp Medium), but no more than one for every 20 rows. Ignored where
            ``centroids`` are given.
        num_neighbors: nearest centroids in d_inter (l).
        temperature: tau of the softmax; 0.1 in the paper (its script's default is 0.5).
        balance: 0 (paper), or the share of an even split each cluster is guaranteed.
        keep_mode: ``"hard"`` (far from the centroid), ``"easy"`` or ``"random"`` within a cluster.
        complexity: ``"dintra*dinter"``, or the alternatives ``"dintra"``, ``"dinter"``, ``"clustersize"``, ``"uniform"``.
        eps: first remove near-duplicates of cosine above 1 - eps (see :func:`semdedup`); ``None`` leaves them in.
        dedup_clusters, dedup_keep: ``clusters`` and ``keep_mode`` of :func:`semdedup`.
        centroids: (k, d) found before; ``None`` fits them.
        iterations, seed: of k-means.
        sample: rows that k-means is fitted on; default 256 per centroid.

    Raises:
        OffprintError: a fraction outside (0, 1], k above the number of rows, a budget that cannot be met.
        DataError: rows that cannot be used (named).
    """
    unit = unit_rows(embeddings)
    total, wanted = len(unit), target(len(unit), keep, fraction)
    check_mode(keep_mode)
    rows = np.arange(total)
    check_eps(eps)
    if eps is not None:
        count = dedup_count(total) if dedup_clusters is None else dedup_clusters
        first = fit(unit, count, iterations=iterations, seed=seed, sample=sample)
        rows = _compare(unit, eps, None, first, dedup_keep, seed).kept
        enough(wanted, len(rows), total)
        unit = unit[rows]
    centroids = _centroids(unit, k, centroids, iterations, sample, seed)
    labels, distance = np.full(total, -1, np.int32), np.zeros(total, np.float32)
    labels[rows], distance[rows] = assign(unit, centroids)
    report = describe(chunks(labels, distance), centroids, num_neighbors, complexity)
    budgets = allocate_budgets(
        report["complexity"], report["sizes"], wanted, temperature=temperature, balance=balance
    ).budgets
    kept = np.flatnonzero(choose(labels, sort_keys(np.arange(total), distance, keep_mode, seed), budgets))
    return PruningResult(
        total=total, duplicates=total - len(rows), count=len(kept), kept=kept, assignment=labels, distance=distance,
        budgets=budgets, **report,
    )  # fmt: skip


def enough(wanted: int, left: int, total: int) -> None:
    """Refuse a budget that deduplication has left too few examples for."""
    if wanted > left:
        raise DataError(f"only {left} of {total} examples are left after deduplication, {wanted} were to be kept; "
                        "choose a smaller fraction or a smaller eps")  # fmt: skip


@dataclass
class Deduplication:
    """What :func:`semdedup` found.

    Attributes:
        kept: surviving row numbers, ascending.
        eps: threshold used.
        order: every row, by cluster and then in the order of comparison.
        similarity: for each entry of ``order``, its largest cosine with an earlier one of the same cluster (0 for the first).
        assignment, distance: cluster and distance of each row.
    """

    kept: np.ndarray
    eps: float
    order: np.ndarray
    similarity: np.ndarray
    assignment: np.ndarray
    distance: np.ndarray


def earlier_similarity(unit: np.ndarray, block: int = 1024) -> np.ndarray:
    """For each row its largest cosine with any row before it, at least 0; block by block, without the whole matrix."""
    out = np.zeros(len(unit), np.float32)
    for start in range(0, len(unit), block):
        x = unit[start : start + block]
        for other in range(0, start + 1, block):
            cosine = x @ unit[other : other + block].T
            if other == start:
                cosine[np.triu_indices(len(x))] = 0
            out[start : start + block] = np.maximum(out[start : start + block], cosine.max(1))
    return out


def semdedup(
    embeddings,
    eps: float | None = None,
    *,
    fraction: float | None = None,
    clusters: int | None = None,
    keep_mode: str = "hard",
    centroids=None,
    iterations: int = 100,
    sample: int | None = None,
    seed: int = 1234,
) -> Deduplication:
    """SemDeDup: inside each cluster remove an example whose cosine with an earlier one exceeds 1 - eps.

    Earlier means farther from the centroid (``"hard"``), nearer (``"easy"``) or at random. A removed example still removes
    others; duplicates that fell into different clusters survive.

    Args:
        embeddings: (n, d).
        eps: distance below which two examples are duplicates, 0 to 1.
        fraction: in place of ``eps``: the share to keep, from which eps follows (a few more are kept where similarities tie).
        clusters: default one per 8,800 examples, as 50,000 for LAION's 440 million.
        keep_mode, centroids, iterations, sample, seed: as in :func:`density_based_pruning`.
    """
    if (eps is None) == (fraction is None):
        raise OffprintError("give either eps or the fraction to keep, not both")
    check_eps(eps)
    unit = unit_rows(embeddings)
    count = dedup_count(len(unit)) if clusters is None else clusters
    return _compare(unit, eps, fraction, _centroids(unit, count, centroids, iterations, sample, seed), keep_mode, seed)


def _centroids(unit: np.ndarray, k: int, given, iterations: int, sample: int | None, seed: int) -> np.ndarray:
    """The centroids given, made unit, or new ones."""
    return fit(unit, k, iterations=iterations, seed=seed, sample=sample) if given is None else unit_rows(given)


def _compare(unit, eps: float | None, fraction: float | None, centroids, keep_mode: str, seed: int) -> Deduplication:
    """:func:`semdedup` of unit rows in clusters that are known."""
    labels, distance = assign(unit, centroids)
    order = np.lexsort((sort_keys(np.arange(len(unit)), distance, keep_mode, seed), labels))
    edges = np.searchsorted(labels[order], np.arange(len(centroids) + 1))
    similarity = np.zeros(len(unit), np.float32)
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        similarity[start:stop] = earlier_similarity(unit[order[start:stop]])
    if eps is None:
        eps = float(1 - np.sort(similarity)[target(len(unit), None, fraction) - 1])
    return Deduplication(np.sort(order[survivors(similarity, eps)]), eps, order, similarity, labels, distance)


def check_eps(eps: float | None) -> None:
    if eps is not None and not 0 <= eps <= 1:
        raise OffprintError(f"eps lies between 0 (identical) and 1 (at right angles); {eps} was given")


def dedup_count(total: int) -> int:
    """The number of clusters deduplication uses by itself."""
    return max(1, round(total / ROWS_PER_DEDUP_CLUSTER))


def survivors(similarity: np.ndarray, eps: float) -> np.ndarray:
    """Which examples stay: those whose similarity does not exceed 1 - eps."""
    return similarity <= np.float32(1 - eps)


def ssp_pruning(
    embeddings,
    fraction: float | None = None,
    *,
    keep: int | float | None = None,
    k: int | None = None,
    balance: float = 0.5,
    keep_mode: str = "hard",
    centroids=None,
    iterations: int = 100,
    sample: int | None = None,
    seed: int = 1234,
) -> np.ndarray:
    """SSP-Pruning (Sorscher et al. 2022): the examples farthest from their centroids, by one global cut.

    Args:
        balance: each cluster first gets min(size, balance x keep / k) of its own hardest (0.5 is recommended); the rest goes to
            the globally hardest.
        others: as in :func:`density_based_pruning`.

    Returns:
        Row numbers, ascending.
    """
    unit = unit_rows(embeddings)
    wanted = target(len(unit), keep, fraction)
    centroids = _centroids(unit, k, centroids, iterations, sample, seed)
    labels, distance = assign(unit, centroids)
    least = guaranteed(np.bincount(labels, minlength=len(centroids)), wanted, balance)
    keys = sort_keys(np.arange(len(unit)), distance, keep_mode, seed)
    first = choose(labels, keys, least)
    rest = choose(np.where(first, -1, 0), keys, [wanted - int(least.sum())])
    return np.flatnonzero(first | rest)


def guaranteed(sizes: np.ndarray, wanted: int, balance: float) -> np.ndarray:
    """How many examples of each cluster SSP-Pruning keeps before the global cut."""
    if not 0 <= balance <= 1:
        raise OffprintError(f"balance lies in [0, 1]; {balance} was given")
    return np.minimum(sizes, int(balance * wanted / len(sizes)))


def random_pruning(
    total: int, fraction: float | None = None, *, keep: int | float | None = None, seed: int = 1234
) -> np.ndarray:
    """Uniformly random row numbers below ``total``, ascending."""
    keys = random_keys(np.arange(total), seed)
    return np.flatnonzero(choose(np.zeros(total, np.int32), keys, [target(total, keep, fraction)]))


def clip_score_pruning(images, texts, fraction: float | None = None, *, keep: int | float | None = None) -> np.ndarray:
    """The examples whose image and text embeddings (n, d) have the largest cosine; row numbers, ascending."""
    a, b = unit_rows(images), unit_rows(texts)
    if a.shape != b.shape:
        raise OffprintError(f"images {a.shape} and texts {b.shape} must be embedded pairwise in one space")
    wanted = target(len(a), keep, fraction)
    return np.flatnonzero(
        choose(np.zeros(len(a), np.int32), sort_keys(np.arange(len(a)), pair_distance(a, b), "easy"), [wanted])
    )


__all__ = [
    "Allocation",
    "Deduplication",
    "KeptIds",
    "METHODS",
    "PruningResult",
    "Report",
    "VARIANTS",
    "allocate_budgets",
    "clip_score_pruning",
    "cluster_complexity",
    "density_based_pruning",
    "neighbour_distance",
    "random_pruning",
    "semdedup",
    "spherical_kmeans",
    "ssp_pruning",
]
