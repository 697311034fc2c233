"""Density-Based Pruning against the same algorithm written with scikit-learn, and its memory over Parquet files."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.compare import Row, race
from offprint.errors import OffprintError
from offprint.methods.curation.concept_pruning import allocate_budgets, density_based_pruning, neighbour_distance

SEED, ITERATIONS = 1234, 10


def _points(rows: int, dim: int, clusters: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(clusters, dim)).astype(np.float32)
    return centres[draw.integers(0, clusters, rows)] + draw.normal(size=(rows, dim)).astype(np.float32)


def _with_scikit_learn(x: np.ndarray, keep: int, k: int) -> np.ndarray:
    """k-means of the normalised vectors from the same rows for as many iterations, then cluster by cluster."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    unit = normalize(x)
    start = unit[np.random.default_rng(SEED).choice(len(unit), k, replace=False)]
    fitted = KMeans(k, init=start, n_init=1, max_iter=ITERATIONS, tol=0).fit(unit)
    centroids = normalize(fitted.cluster_centers_)
    members = [np.flatnonzero(fitted.labels_ == j) for j in range(k)]
    away = [1 - unit[rows] @ centre for rows, centre in zip(members, centroids, strict=True)]
    intra = np.array([d.mean() for d in away])
    sizes = np.array([len(rows) for rows in members])
    budgets = allocate_budgets(intra * neighbour_distance(centroids), sizes, keep).budgets
    return np.concatenate([r[np.argsort(-d)[:n]] for r, d, n in zip(members, away, budgets, strict=True)])


def _write(path: Path, rows: int, dim: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    kind = pa.list_(pa.float32(), dim)
    with pq.ParquetWriter(path, pa.schema([("embedding", kind)]), compression="none", use_dictionary=False) as writer:
        for _ in range(rows // 50_000):
            values = pa.array(draw.normal(size=50_000 * dim).astype(np.float32))
            writer.write_table(pa.table({"embedding": pa.FixedSizeListArray.from_arrays(values, dim)}))


CHILD = """
import pathlib, re, resource, sys
from offprint.methods.curation.parquet import prune_parquet
prune_parquet(sys.argv[1], sys.argv[2], 0.3, k=100, iterations=5, **eval(sys.argv[3]))
status = pathlib.Path("/proc/self/status")  # ru_maxrss of a child starts at its parent's on Linux
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) if status.exists() else 0
print(1024 * peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _peak(path: Path, options: dict) -> int:
    """Peak resident bytes of a process of its own that prunes a file."""
    call = [sys.executable, "-c", CHILD, str(path), str(path.with_name("out.parquet")), repr(options)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise OffprintError(f"pruning {path} failed: {done.stderr[-500:]}")
    return int(done.stdout)


def rows() -> Iterator[Row]:
    for count, dim, k in ((100_000, 64, 100), (50_000, 384, 500)):
        x, keep = _points(count, dim, k), count // 3
        options = {"keep": keep, "k": k, "sample": count, "iterations": ITERATIONS, "seed": SEED}
        mine, other = density_based_pruning(x, **options).kept, _with_scikit_learn(x, keep, k)
        if not len(mine) == len(other) == keep or len(np.intersect1d(mine, other)) < 0.8 * keep:
            raise OffprintError("the two choices have little in common; a benchmark of them says nothing")
        a, b = race(
            lambda x=x, options=options: density_based_pruning(x, **options),
            lambda x=x, keep=keep, k=k: _with_scikit_learn(x, keep, k),
            12.0, rounds=2,
        )  # fmt: skip
        note = f"{count / a:,.0f} against {count / b:,.0f} rows per second, {ITERATIONS} iterations of k-means"
        yield Row(
            "concept-pruning",
            f"pruning {count:,} x {dim}, {k} clusters",
            "scikit-learn KMeans and a loop",
            a,
            b,
            note=note,
        )
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.parquet", Path(folder) / "large.parquet"
        _write(small, 100_000, 64), _write(large, 1_000_000, 64)
        for name, options in (("", {}), (" with deduplication", {"eps": 0.05})):
            few, many = _peak(small, options), _peak(large, options)
            note = f"peak resident MB: {many / 1e6:.0f} with 1,000,000 rows, {few / 1e6:.0f} with 100,000; flat if the ratio is 1"
            yield Row(
                "concept-pruning", f"peak memory{name}, 1,000,000 x 64 in Parquet (MB, not seconds)", "100,000 rows of the same",
                many / 1e6, few / 1e6, (many, few), required=0.8, note=note, growth=True,
            )  # fmt: skip
