"""Density-Based Pruning: budgets, selection, deduplication, baselines, Parquet passes (local, Ray, resumed), bad input, the verb."""

import csv
import json
import multiprocessing
import os
import pickle
import signal
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from typer.testing import CliRunner

from offprint.cli import main as command
from offprint.errors import DataError, OffprintError
from offprint.methods.curation import _kmeans, _passes, _tables, concept_pruning
from offprint.methods.curation._select import choose, random_keys, select, sort_keys, target
from offprint.methods.curation.concept_pruning import (
    COMPLEXITIES,
    VARIANTS,
    KeptIds,
    allocate_budgets,
    clip_score_pruning,
    cluster_complexity,
    density_based_pruning,
    neighbour_distance,
    random_pruning,
    semdedup,
    spherical_kmeans,
    ssp_pruning,
)
from offprint.methods.curation.parquet import prune_parquet

N, D = 2503, 12


def points(seed=0, n=N, d=D):
    """Clusters of several densities, and near-duplicates of some rows."""
    draw = np.random.default_rng(seed)
    centres, spread = draw.normal(size=(9, d)), np.linspace(0.1, 0.8, 9)
    which = draw.integers(0, 9, n)
    x = centres[which] + spread[which, None] * draw.normal(size=(n, d))
    x[n - n // 5 :] = x[: n // 5] + 0.01 * draw.normal(size=(n // 5, d))
    return x.astype(np.float32)


X = points()
TEXT = (X + np.random.default_rng(5).normal(size=X.shape)).astype(np.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def table(x=X, lo=0, hi=None, kind=None):
    hi = len(x) if hi is None else hi
    vectors = pa.array(list(x[lo:hi]), kind) if kind else pa.array(list(x[lo:hi]))
    return pa.table({"key": [f"k{i:05}" for i in range(lo, hi)], "embedding": vectors, "text": list(TEXT[lo:hi])})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same rows as one file, and as a folder of files of other sizes, row groups and vector types."""
    folder = tmp_path_factory.mktemp("tables")
    pq.write_table(table(), folder / "one.parquet")
    (folder / "many").mkdir()
    cuts = [0, 1, 700, 700, 1203, N]
    kinds = [None, pa.list_(pa.float32(), D), None, pa.large_list(pa.float64()), pa.list_(pa.float32())]
    for i, kind in enumerate(kinds):
        part = table(lo=cuts[i], hi=cuts[i + 1], kind=kind)
        pq.write_table(part, folder / "many" / f"{i}.parquet", row_group_size=97)
    return folder


def rows_of(path):
    return pq.read_table(path)["row"].to_numpy()


# -- budgets ------------------------------------------------------------------------------------------------------------
problems = st.integers(1, 30).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0, 0.5), min_size=k, max_size=k),
        st.lists(st.integers(0, 60), min_size=k, max_size=k).filter(lambda s: sum(s) > 0),
        st.floats(0, 1),
        st.sampled_from([0.01, 0.1, 0.5, 5.0]),
        st.sampled_from([0.0, 0.3, 1.0]),
    )
)


@given(problems)
@settings(max_examples=200, deadline=None)
def test_budgets_sum_to_what_was_asked_within_their_bounds(problem):
    complexity, sizes, share, temperature, balance = problem
    sizes = np.array(sizes)
    keep = max(1, round(share * sizes.sum()))
    try:
        got = allocate_budgets(complexity, sizes, keep, temperature=temperature, balance=balance)
    except OffprintError as error:
        assert "clusters keep at least" in str(error)
        least = int(keep / len(sizes) * balance) if balance else 1
        assert np.clip(np.minimum(least, sizes - 1), 0, None).sum() > keep
        return
    assert got.budgets.sum() == keep
    assert (got.budgets <= sizes).all() and (got.budgets >= got.lower).all()
    assert (np.abs(got.budgets - got.real_valued) < 1).all()
    assert got.real_valued.sum() == pytest.approx(keep)
    free = (got.real_valued > got.lower + 1e-6) & (
        got.real_valued < sizes - 1e-6
    )  # optimal: one shift for all that are free
    shift = (got.probabilities * keep - got.real_valued)[free]
    assert np.ptp(shift) < 1e-6 if len(shift) else True


def test_budgets_are_the_optimum_of_the_quadratic_programme():
    sizes, complexity, keep = np.array([40, 12, 90, 7, 30]), np.array([0.3, 0.25, 0.05, 0.2, 0.1]), 80
    got = allocate_budgets(complexity, sizes, keep)
    solved = minimize(
        lambda n: ((n - got.probabilities * keep) ** 2).sum(), sizes * keep / sizes.sum(), method="SLSQP",
        bounds=list(zip(got.lower, sizes, strict=True)), constraints={"type": "eq", "fun": lambda n: n.sum() - keep},
        options={"ftol": 1e-12},
    )  # fmt: skip
    np.testing.assert_allclose(got.real_valued, solved.x, atol=1e-4)


def test_complexity():
    sizes, intra, inter = np.array([3, 0, 5]), np.array([0.1, np.nan, 0.3]), np.array([0.5, 0.7, 0.9])
    assert cluster_complexity(sizes, intra, inter, "dintra*dinter") == pytest.approx([0.05, 0.16, 0.27])
    assert cluster_complexity(sizes, intra, inter, "dintra") == pytest.approx([0.1, 0.2, 0.3])
    assert cluster_complexity(sizes, intra, inter, "dinter").tolist() == inter.tolist()
    assert cluster_complexity(sizes, intra, inter, "clustersize").tolist() == [3, 0, 5]
    assert cluster_complexity(sizes, intra, inter, "uniform").tolist() == [1, 1, 1]
    c = unit(np.random.default_rng(0).normal(size=(30, 8)))
    away = 1 - c @ c.T + 9 * np.eye(30)
    np.testing.assert_allclose(neighbour_distance(c, 4), np.sort(away, 1)[:, :4].mean(1))
    np.testing.assert_allclose(neighbour_distance(c, 99), np.sort(away, 1)[:, :29].mean(1))
    assert np.isnan(neighbour_distance(c[:1])).all()


# -- selection ----------------------------------------------------------------------------------------------------------
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_selection_is_a_sort_however_the_rows_are_cut(seed, lengths):
    draw = np.random.default_rng(seed)
    n, k = sum(lengths), 5
    groups = draw.integers(-1, k, n).astype(np.int32)
    keys = draw.choice(np.array([0, 3, 3 + 2**8, 2**20, 2**32 - 1], np.uint32), n)
    sizes = np.bincount(groups[groups >= 0], minlength=k)
    budgets = np.array([draw.integers(0, s + 1) for s in sizes])
    expected = np.zeros(n, bool)
    for j in range(k):
        mine = np.flatnonzero(groups == j)
        expected[mine[np.argsort(keys[mine], kind="stable")[: budgets[j]]]] = True
    cuts = np.cumsum([0, *lengths])
    pieces = [(groups[a:b], keys[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    assert (np.concatenate(list(select(lambda: pieces, budgets))) == expected).all()
    assert (choose(groups, keys, budgets) == expected).all()


def test_sort_keys_order_as_distances_do():
    d = np.array([0, 1e-9, 0.5, 0.5000001, 2], np.float32)
    assert (np.argsort(sort_keys(np.arange(5), d, "easy")) == np.arange(5)).all()
    assert (np.argsort(sort_keys(np.arange(5), d, "hard")) == np.arange(5)[::-1]).all()
    keys = random_keys(np.arange(200_000), 1)
    assert abs(keys.mean() / 2**31 - 1) < 0.01 and (keys != random_keys(np.arange(200_000), 2)).mean() > 0.99


# -- clusters -----------------------------------------------------------------------------------------------------------
def slow_kmeans(x, k, iterations, seed):
    centroids = x[np.random.default_rng(seed).choice(len(x), k, replace=False)].astype(np.float64)
    for _ in range(iterations):
        labels = (x.astype(np.float64) @ centroids.T).argmax(1)
        for j in range(k):
            if (labels == j).any():
                centroids[j] = x[labels == j].sum(0, dtype=np.float64)
                centroids[j] /= np.linalg.norm(centroids[j])
    return centroids


def test_kmeans_against_the_obvious_loop():
    x = _kmeans.unit_rows(X)
    got = spherical_kmeans(x, 7, iterations=15, seed=3)
    np.testing.assert_allclose(got, slow_kmeans(x, 7, 15, 3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_kmeans_refills_empty_clusters():
    x = _kmeans.unit_rows(np.repeat(np.eye(3, dtype=np.float32), 20, 0))
    labels, distance = _kmeans.assign(x, spherical_kmeans(x, 3, seed=0))
    assert sorted(np.bincount(labels)) == [20, 20, 20] and distance.max() < 1e-6
    assert spherical_kmeans(x, 10).shape == (10, 3)  # more clusters than different rows


def test_assignment_does_not_depend_on_the_rows_beside():
    x, c = _kmeans.unit_rows(X), _kmeans.unit_rows(points(3, 40))
    labels, distance = _kmeans.assign(x, c)
    exact = unit(X) @ unit(c).T
    np.testing.assert_allclose(distance, 1 - exact.max(1), atol=1e-6)
    assert (labels == exact.argmax(1)).mean() > 0.999
    for size in (1, 7, 600):
        parts = [_kmeans.assign(x[i : i + size], c) for i in range(0, 1400, size)]
        count = sum(len(p[0]) for p in parts)
        assert (np.concatenate([p[0] for p in parts]) == labels[:count]).all()
        assert (np.concatenate([p[1] for p in parts]) == distance[:count]).all()


def test_sampled_rows():
    rows = _kmeans.sample_rows(1000, 300, 7)
    assert len(set(rows)) == 300 and rows.min() >= 0 and rows.max() < 1000 and (np.diff(rows) > 0).all()
    assert (_kmeans.sample_rows(5, 9, 0) == np.arange(5)).all()
    counts = sum(np.bincount(_kmeans.sample_rows(10, 4, s), minlength=10) for s in range(2000))
    assert counts.min() > 700 and counts.max() < 900


# -- the method against a slow, obvious one ---------------------------------------------------------------------------------
def slow_dedup(x, centroids, eps, mode):
    """Survivors, by the whole matrix of cosines of each cluster."""
    u = unit(x)
    distance = 1 - (u @ unit(centroids).T).max(1)
    labels = (u @ unit(centroids).T).argmax(1)
    kept = []
    for j in range(len(centroids)):
        rows = np.flatnonzero(labels == j)
        rows = rows[np.argsort(distance[rows] * (-1 if mode == "hard" else 1), kind="stable")]
        cosine = np.triu(u[rows] @ u[rows].T, 1)
        kept += rows[(cosine.max(0) if len(rows) else np.empty(0)) <= 1 - eps].tolist()
    return np.array(sorted(kept))


@pytest.mark.parametrize("mode", ["hard", "easy"])
def test_semdedup_against_the_whole_matrix(mode):
    c = _kmeans.unit_rows(points(4, 6))
    for eps in (0.0005, 0.01, 0.2):
        got = semdedup(X, eps, centroids=c, keep_mode=mode)
        assert got.kept.tolist() == slow_dedup(X, c, eps, mode).tolist()
    half = semdedup(X, fraction=0.5, centroids=c)
    assert len(half.kept) == int(N * 0.5) and (half.kept == semdedup(X, half.eps, centroids=c).kept).all()
    assert len(semdedup(X, 0.01, clusters=1, keep_mode="random").kept) < N
    assert (semdedup(X[:1], 0.5).kept == [0]).all()


def test_blocks_of_comparison_agree(monkeypatch):
    x = _kmeans.unit_rows(X[:500])
    whole = np.triu(x @ x.T, 1).max(0)
    for block in (7, 128, 1024):
        np.testing.assert_allclose(concept_pruning.earlier_similarity(x, block), np.maximum(whole, 0), atol=1e-6)


def slow_dbp(x, centroids, keep, mode, temperature=0.1, neighbors=20):
    u, c = unit(x), unit(centroids)
    labels, distance = (u @ c.T).argmax(1), 1 - (u @ c.T).max(1)
    k = len(c)
    intra = np.array([distance[labels == j].mean() if (labels == j).any() else np.nan for j in range(k)])
    inter = np.array([np.sort(np.delete(1 - c @ c[j], j))[:neighbors].mean() for j in range(k)])
    value = np.where(np.isnan(intra), np.nanmean(intra * inter), intra * inter)
    sizes = np.bincount(labels, minlength=k)
    budgets = allocate_budgets(value, sizes, keep, temperature=temperature).budgets
    kept = []
    for j in range(k):
        rows = np.flatnonzero(labels == j)
        kept += rows[np.argsort(distance[rows] * (-1 if mode == "hard" else 1), kind="stable")][: budgets[j]].tolist()
    return sorted(kept), budgets


@pytest.mark.parametrize("mode", ["hard", "easy"])
def test_density_based_pruning_against_the_obvious(mode):
    c = _kmeans.unit_rows(np.concatenate([points(4, 12), -points(4, 12)[:2]]))  # some clusters stay empty
    got = density_based_pruning(X, keep=700, centroids=c, keep_mode=mode, num_neighbors=5)
    kept, budgets = slow_dbp(X, c, 700, mode, neighbors=5)
    assert got.kept.tolist() == kept and got.budgets.tolist() == budgets.tolist()
    assert got.count == len(got.kept) == 700 and got.total == N and got.duplicates == 0
    assert (np.bincount(got.assignment[got.kept], minlength=14) == got.budgets).all()


def test_deduplication_comes_first():
    got = density_based_pruning(X, 0.3, k=10, eps=0.01, dedup_clusters=3)
    left = semdedup(X, 0.01, clusters=3).kept
    again = density_based_pruning(X[left], keep=int(0.3 * N), k=10)
    assert (got.kept == left[again.kept]).all() and got.duplicates == N - len(left)
    assert (got.assignment < 0).sum() == got.duplicates


@pytest.mark.parametrize("complexity", COMPLEXITIES)
def test_other_complexities_modes_and_balance(complexity):
    got = density_based_pruning(X, 0.5, k=8, complexity=complexity, keep_mode="random", balance=0.5)
    assert got.count == N // 2 and (got.budgets >= np.minimum(int(N // 2 / 8 * 0.5), got.sizes - 1)).all()
    rows = got.clusters()
    assert sum(r["kept"] for r in rows) == got.count and sum(r["size"] for r in rows) == N
    assert [r["complexity"] for r in rows] == sorted((r["complexity"] for r in rows), reverse=True)


def test_everything_can_be_kept_and_small_tables_work():
    assert (density_based_pruning(X, 1.0, k=8).kept == np.arange(N)).all()
    assert (density_based_pruning(X[:1], 1.0).kept == [0]).all()
    assert len(density_based_pruning(X[:30], keep=3).kept) == 3
    torch_rows = density_based_pruning(torch.from_numpy(X), 0.2, k=8).kept
    assert (torch_rows == density_based_pruning(X.astype(np.float64), 0.2, k=8).kept).all()
    assert (torch_rows == density_based_pruning(X * 7, 0.2, k=8).kept).all()
    assert (torch_rows == density_based_pruning(pa.array(list(X)), 0.2, k=8).kept).all()


def test_baselines():
    c = _kmeans.unit_rows(points(4, 8))
    labels, distance = _kmeans.assign(_kmeans.unit_rows(X), c)
    order = np.argsort(-distance, kind="stable")
    assert (ssp_pruning(X, keep=500, centroids=c, balance=0) == np.sort(order[:500])).all()
    assert (
        ssp_pruning(X, keep=500, centroids=c, balance=0, keep_mode="easy")
        == np.sort(np.argsort(distance, kind="stable")[:500])
    ).all()
    kept, least = [], int(0.5 * 500 / 8)
    for j in range(8):
        kept += order[labels[order] == j][:least].tolist()
    kept += [i for i in order if i not in set(kept)][: 500 - len(kept)]
    assert ssp_pruning(X, keep=500, centroids=c).tolist() == sorted(kept)
    cosine = (unit(X) * unit(TEXT)).sum(1)
    assert (clip_score_pruning(X, TEXT, 0.1) == np.sort(np.argsort(-cosine, kind="stable")[: N // 10])).all()
    picks = np.concatenate([random_pruning(100, keep=20, seed=s) for s in range(500)])
    assert 60 < np.bincount(picks, minlength=100).min() and np.bincount(picks, minlength=100).max() < 145
    assert len(set(random_pruning(100, 0.2))) == 20


# -- Parquet ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["one.parquet", "many"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_mode": "easy", "balance": 0.5, "complexity": "uniform"},
        {"keep_mode": "random", "eps": 0.01, "dedup_clusters": 4},
        {"eps": 0.01, "dedup_clusters": 3, "dedup_keep": "random", "sample": 700},
    ],
)
def test_files_give_what_memory_gives(files, tmp_path, source, options):
    expected = density_based_pruning(X, keep=600, k=15, **options)
    got = prune_parquet(files / source, tmp_path / "out.parquet", 600, k=15, id_column="key", **options)
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.column_names == ["key", "row", "cluster", "distance"]
    assert (written["row"].to_numpy() == expected.kept).all()
    assert written["key"].to_pylist() == [f"k{i:05}" for i in expected.kept]
    assert (written["cluster"].to_numpy() == expected.assignment[expected.kept]).all()
    assert (written["distance"].to_numpy() == expected.distance[expected.kept]).all()
    assert got.clusters() == expected.clusters() and (got.total, got.duplicates, got.count) == (
        N,
        expected.duplicates,
        600,
    )
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("source", ["one.parquet", "many"])
def test_baselines_from_files(files, tmp_path, source):
    out = tmp_path / "out.parquet"
    left = semdedup(X, 0.01, clusters=3).kept
    got = prune_parquet(files / source, out, 0.2, method="ssp", k=15)
    assert (rows_of(out) == ssp_pruning(X, 0.2, k=15)).all()
    assert (np.bincount(pq.read_table(out)["cluster"], minlength=15) == got.budgets).all()
    prune_parquet(files / source, out, 500, method="ssp", k=15, eps=0.01, dedup_clusters=3, balance=0)
    assert (rows_of(out) == left[ssp_pruning(X[left], keep=500, k=15, balance=0)]).all()
    prune_parquet(files / source, out, 0.2, method="random")
    assert (rows_of(out) == random_pruning(N, 0.2)).all()
    assert pq.read_table(out).column_names == ["key", "embedding", "text", "row"]
    prune_parquet(files / source, out, 100, method="random", eps=0.01, dedup_clusters=3)
    assert set(rows_of(out)) <= set(left) and len(rows_of(out)) == 100
    prune_parquet(files / source, out, 0.2, method="clip-score", text_column="text")
    assert (rows_of(out) == clip_score_pruning(X, TEXT, 0.2)).all()
    for how in ({"eps": 0.01}, {"keep": 0.7}):
        got = prune_parquet(files / source, out, method="semdedup", dedup_clusters=3, **how)
        expected = semdedup(X, how.get("eps"), fraction=how.get("keep"), clusters=3)
        assert (rows_of(out) == expected.kept).all() and got.duplicates == N - len(expected.kept)
        assert got.clusters() == []


def test_sources_and_columns(files, tmp_path):
    out = tmp_path / "out.parquet"
    prune_parquet(files / "one.parquet", out, 300, k=10)
    expected = rows_of(out)
    for source in (table(), [files / "many"], sorted((files / "many").iterdir())):
        prune_parquet(source, out, 300, k=10)
        assert (rows_of(out) == expected).all()
    prune_parquet(files / "many", out, 300, k=10, columns="*")
    written = pq.read_table(out)
    assert written.column_names == ["key", "embedding", "text", "row", "cluster", "distance"]
    np.testing.assert_allclose(np.array(written["text"].to_pylist()), TEXT[expected])
    prune_parquet(files / "many", out, 300, k=10, columns=["text"], id_column="key")
    assert pq.read_table(out).column_names[:2] == ["key", "text"]


@pytest.mark.parametrize(("block", "chunk", "tile"), [(64, 1 << 16, 512), (1000, 130, 33)])
def test_blocks_of_any_size_give_the_same(files, tmp_path, monkeypatch, block, chunk, tile):
    expected = density_based_pruning(X, 0.3, k=15, eps=0.01, dedup_clusters=4)
    for module in (_kmeans, _passes, _tables):
        for name, value in (("BLOCK", block), ("CHUNK", chunk), ("TILE", tile)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    prune_parquet(files / "many", tmp_path / "out.parquet", 0.3, k=15, eps=0.01, dedup_clusters=4, columns=["text"])
    assert (rows_of(tmp_path / "out.parquet") == expected.kept).all()


def test_refining_over_all_rows_is_more_iterations(files, tmp_path):
    got = prune_parquet(files / "many", tmp_path / "o.parquet", 0.3, k=6, sample=N, iterations=2, refine=3)
    np.testing.assert_allclose(got.centroids, slow_kmeans(_kmeans.unit_rows(X), 6, 5, 1234), atol=1e-5)
    near = prune_parquet(
        files / "many", tmp_path / "o.parquet", 0.3, k=6, eps=0.01, dedup_clusters=2, refine=1, sample=400
    )
    left = X[semdedup(X, 0.01, clusters=2, sample=400).kept]
    start = _kmeans.fit(_kmeans.unit_rows(left), 6, iterations=100, seed=1234, sample=400)
    labels, _ = _kmeans.assign(_kmeans.unit_rows(left), start)
    means = [_kmeans.unit_rows(left)[labels == j].sum(0, dtype=np.float64) for j in range(6)]
    np.testing.assert_allclose(near.centroids, unit(means), atol=1e-5)


def test_ray_gives_what_local_gives(files, tmp_path):
    import ray

    options = {"k": 15, "eps": 0.01, "dedup_clusters": 4, "id_column": "key"}
    local, remote = tmp_path / "local.parquet", tmp_path / "ray.parquet"
    prune_parquet(files / "many", local, 600, **options)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        # what a killed run left: the labels of the first file and a part of the next; the finished file is not done again
        work = tmp_path / "state"
        prune_parquet(files / "many", remote, 600, **options, engine="ray", state=work, keep_state=True)
        assert pq.read_table(remote).equals(pq.read_table(local))
        for name in ("labels", "distance"):
            (work / f"{name}.part").write_bytes((work / name).read_bytes()[: 4 * 900])
            (work / name).unlink()
        done = []
        prune_parquet(
            files / "many", remote, 600, **options, engine="ray", state=work,
            progress=lambda name, now, total: done.append(now) if name == "assign" else None,
        )  # fmt: skip
        assert done[0] > 700 and done[-1] == N
        assert pq.read_table(remote).equals(pq.read_table(local))
        bad = tmp_path / "bad.parquet"
        rows = list(X[:500])
        rows[321] = None
        pq.write_table(pa.table({"embedding": pa.array(rows)}), bad)
        with pytest.raises(DataError, match="row 321 is missing"):
            prune_parquet(bad, remote, 0.5, k=5, engine="ray", sample=5)
    finally:
        ray.shutdown()


def _killed(source, out, options, stop_at):
    """In a child process: end without a word in the middle of a pass."""

    def progress(name, done, total):
        if (name, True) == (stop_at[0], done >= stop_at[1]):
            os.kill(os.getpid(), signal.SIGKILL)

    prune_parquet(source, out, 600, progress=progress, **options)


@pytest.mark.parametrize(
    "stop_at", [("sample", 600), ("assign", 900), ("gather", 900), ("compare", 900), ("refine 2", 900), ("write", 200)]
)
def test_goes_on_after_a_kill(files, tmp_path, monkeypatch, stop_at):
    for module in (_kmeans, _passes, _tables):
        monkeypatch.setattr(module, "BLOCK", 128)
    options = {"k": 15, "eps": 0.01, "dedup_clusters": 4, "columns": ["key"], "refine": 3}
    out, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(files / "many", out, options, stop_at))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not out.exists() and (tmp_path / "out.parquet.state").is_dir()
    passes = []
    prune_parquet(files / "many", out, 600, progress=lambda *what: passes.append(what), **options)
    prune_parquet(files / "many", whole, 600, **options)
    assert pq.read_table(out).equals(pq.read_table(whole))
    names = list(dict.fromkeys(name for name, *_ in passes))
    order = ["sample", "assign", "gather", "compare", "refine 1", "refine 2", "refine 3", "write"]
    if stop_at[0] == "compare":
        assert "gather" not in names
    if stop_at[0] == "refine 2":
        assert names[0] == "refine 2"
    if stop_at[0] == "assign":
        assert passes[0][0] == "assign" and passes[0][1] > 900  # not from the first row
    assert [n for n in order if n in names][-1] == "write"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet", "whole.parquet"]


def test_state_is_used_again_only_for_the_same_work(files, tmp_path):
    out, state, passes = tmp_path / "o.parquet", tmp_path / "state", []

    def run(keep=600, source="many", **options):
        passes.clear()
        prune_parquet(
            files / source, out, keep, state=state, keep_state=True, progress=lambda n, *_: passes.append(n),
            **{"k": 15, **options},
        )  # fmt: skip
        return list(dict.fromkeys(passes))

    assert run() == ["sample", "assign", "write"]
    assert run(300, keep_mode="easy", temperature=0.5) == ["write"]
    assert (rows_of(out) == density_based_pruning(X, keep=300, k=15, keep_mode="easy", temperature=0.5).kept).all()
    assert run(300, method="ssp") == ["write"]
    assert run(resume=False) == ["sample", "assign", "write"]
    assert run(k=14) == ["sample", "assign", "write"]
    assert run(k=14, source="one.parquet") == ["sample", "assign", "write"]
    assert (rows_of(out) == density_based_pruning(X, keep=600, k=14).kept).all()
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter.txt").write_text("dear")
    with pytest.raises(OffprintError, match="not a state folder"):
        prune_parquet(files / "many", out, 0.5, state=strange)
    assert (strange / "letter.txt").read_text() == "dear"


def test_an_interrupted_write_leaves_what_was_there(files, tmp_path):
    out = tmp_path / "out.parquet"
    prune_parquet(files / "many", out, 50, k=15)
    before = out.read_bytes()

    def stop(name, *_):
        if name == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_parquet(files / "many", out, 600, k=15, progress=stop)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.parquet", "out.parquet.state"]


def test_kept_ids_filter_shards(files, tmp_path):
    prune_parquet(files / "many", tmp_path / "kept.parquet", 400, k=10, id_column="key")
    keep = pickle.loads(pickle.dumps(KeptIds(tmp_path / "kept.parquet", "key")))
    ids = set(pq.read_table(tmp_path / "kept.parquet")["key"].to_pylist())
    samples = [{"__key__": f"k{i:05}"} for i in range(N)]
    assert {s["__key__"] for s in filter(keep, samples)} == ids and len(keep) == 400
    numbers = KeptIds(tmp_path / "kept.parquet", "row", key="id")
    assert [numbers({"id": r}) for r in rows_of(tmp_path / "kept.parquet")[:3].tolist()] == [True] * 3
    with pytest.raises(DataError, match="no column 'name'"):
        KeptIds(tmp_path / "kept.parquet", "name")


def test_variants_are_arguments(files, tmp_path):
    assert VARIANTS["dbp_laion"]["k"] == 500 and VARIANTS["dbp_datacomp_medium"]["k"] == 100
    big = points(1, 9000)
    pq.write_table(pa.table({"embedding": list(big)}), tmp_path / "in.parquet")
    for name, options in VARIANTS.items():
        small = options | ({"dedup_clusters": 5} if name == "semdedup" else {})
        assert (
            prune_parquet(tmp_path / "in.parquet", tmp_path / f"{name}.parquet", 0.5, iterations=3, **small).count > 0
        )


# -- bad input ----------------------------------------------------------------------------------------------------------
def changed(row, value):
    x = list(X[:100].astype(object))
    x = [np.array(v, np.float32) for v in x]
    x[row] = value
    return x


NAN = np.where(np.arange(D) == 3, np.nan, 1).astype(np.float32)
ROWS = [
    (changed(42, NAN), "row 42 holds NaN or infinite"),
    (changed(42, NAN * np.inf), "row 42 holds NaN or infinite"),
    (changed(42, np.zeros(D, np.float32)), "row 42 is all zeros"),
    (changed(42, np.ones(D + 1, np.float32)), "row 42 has .* dimensions, the first row has 12"),
    (changed(42, None), "row 42 is missing"),
    (changed(0, None), "row 0 is missing"),
    (changed(0, np.ones(0, np.float32)), "dimensions"),
    ([], "empty"),
]


@pytest.mark.parametrize(("rows", "says"), ROWS, ids=lambda x: x if isinstance(x, str) else "")
def test_rows_that_cannot_be_used_are_named(rows, says, tmp_path):
    with pytest.raises(DataError, match=says):
        density_based_pruning(rows, 0.5, k=5)
    pq.write_table(
        pa.table({"embedding": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "in.parquet", row_group_size=30
    )
    for options in ({"method": "dbp", "k": 5, "sample": 5}, {"method": "semdedup", "dedup_clusters": 2}):
        with pytest.raises(DataError, match=says):
            prune_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", 0.5, **options)
    assert not (tmp_path / "out.parquet").exists()


def test_a_null_inside_a_vector_is_not_a_number(tmp_path):
    rows = [[1.0, 2.0], [3.0, None], [5.0, 6.0]]
    pq.write_table(pa.table({"embedding": rows}), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="row 1 holds NaN"):
        prune_parquet(tmp_path / "in.parquet", tmp_path / "out.parquet", 0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": 0.0}, "above 0 and up to 1; 0.0 was given"),
        ({"keep": 1.5}, "above 0 and up to 1; 1.5"),
        ({"keep": -0.1}, "above 0"),
        ({"keep": float("nan")}, "above 0"),
        ({"keep": 0}, "keep=0 of 2503 examples is impossible"),
        ({"keep": N + 1}, "choose 1 to 2503"),
        ({"keep": None}, "say how much to keep"),
        ({"k": 0}, "choose k from 1 to 2503"),
        ({"k": N + 1}, "choose k from 1 to 2503"),
        ({"k": 1200, "keep": 100}, "clusters keep at least"),
        ({"temperature": 0.0}, "temperature above 0"),
        ({"balance": 2.0}, "balance lies in"),
        ({"balance": 2.0, "method": "ssp"}, "balance lies in"),
        ({"keep_mode": "best"}, "unknown way to keep examples 'best'"),
        ({"dedup_keep": "best"}, "unknown way to keep"),
        ({"complexity": "intra"}, "unknown complexity"),
        ({"method": "dpb"}, "unknown method 'dpb'; nearest: dbp"),
        ({"engine": "spark"}, "unknown engine"),
        ({"column": "vectors"}, "no column 'vectors' in the table; its columns: key, embedding, text"),
        ({"column": "key"}, "column 'key' holds string, not vectors"),
        ({"id_column": "id"}, "no column 'id'"),
        ({"columns": ["name"]}, "no column 'name'"),
        ({"eps": 1.5}, "eps lies between"),
        ({"eps": 0.9, "keep": 0.99}, "are left after deduplication"),
        ({"method": "semdedup", "keep": 0.5, "eps": 0.1}, "either by keep or by eps"),
        ({"method": "semdedup", "keep": None}, "either by keep or by eps"),
        ({"method": "clip-score"}, "text_column"),
        ({"text_column": "text"}, "text_column"),
        ({"centroids": np.ones((3, 5))}, "12 dimensions, the centroids 5"),
        ({"centroids": np.zeros((3, D))}, "row 0 is all zeros"),
    ],
)
def test_arguments_that_do_not_fit(files, tmp_path, options, says):
    given = {"keep": 0.5, "k": 10, **options}
    with pytest.raises(OffprintError, match=says):
        prune_parquet(files / "many", tmp_path / "out.parquet", **given)
    assert not (tmp_path / "out.parquet").exists()


def test_files_that_cannot_be_read(files, tmp_path):
    out = tmp_path / "out.parquet"
    with pytest.raises(DataError, match="there is no Parquet file or folder at"):
        prune_parquet(tmp_path / "no.parquet", out, 0.5)
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    with pytest.raises(DataError, match="text.parquet cannot be read as Parquet"):
        prune_parquet(tmp_path / "text.parquet", out, 0.5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .parquet files"):
        prune_parquet(tmp_path / "empty", out, 0.5)
    with pytest.raises(DataError, match="no Parquet files were given"):
        prune_parquet([], out, 0.5)
    whole = (files / "one.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut.parquet cannot be read"):
        prune_parquet([files / "one.parquet", tmp_path / "cut.parquet"], out, 0.5)
    damaged = bytearray(whole)
    damaged[2000:60000] = bytes(58000)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match="damaged.parquet cannot be read"):
        prune_parquet(tmp_path / "damaged.parquet", out, 0.5)
    with pytest.raises(OffprintError, match="is one of the input files"):
        prune_parquet(files / "one.parquet", files / "one.parquet", 0.5)
    with pytest.raises(OffprintError, match="give their paths"):
        prune_parquet(table(), out, 0.5, engine="ray")
    clash = table().rename_columns(["row", "embedding", "text"])
    with pytest.raises(OffprintError, match="has a column 'row'"):
        prune_parquet(clash, out, 0.5, columns=["row"])
    other = pa.table({"embedding": list(X[:9]), "text": [[1.0]] * 9})
    with pytest.raises(OffprintError, match="one dimension"):
        prune_parquet(other, out, 0.5, method="clip-score", text_column="text")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: allocate_budgets([0.1, 0.2], [3], 2), "vectors of one length"),
        (lambda: allocate_budgets([0.1], [3], 4), "4 of 3 examples cannot be kept"),
        (lambda: density_based_pruning(X), "either the fraction to keep or keep="),
        (lambda: density_based_pruning(X, 0.5, keep=3), "not both"),
        (lambda: density_based_pruning(X[0], 0.5), "rows, dimensions"),
        (lambda: density_based_pruning(X, 0.5, k=3, eps=-1), "eps lies between"),
        (lambda: semdedup(X), "either eps or the fraction"),
        (lambda: semdedup(X, 0.1, clusters=N + 1), "choose k from 1"),
        (lambda: ssp_pruning(X, 0.5, balance=-1), "balance lies in"),
        (lambda: clip_score_pruning(X, TEXT[:, :5], 0.5), "pairwise in one space"),
        (lambda: random_pruning(10, keep=11), "choose 1 to 10"),
        (lambda: target(10, np.float32(1.5)), "above 0 and up to 1"),
    ],
)
def test_bad_input_in_memory(call, says):
    with pytest.raises(OffprintError, match=says):
        call()


# -- the verb -----------------------------------------------------------------------------------------------------------
def invoke(*arguments):
    return CliRunner().invoke(command.app, ["prune", *map(str, arguments)])


def test_verb(files, tmp_path):
    out = tmp_path / "kept.parquet"
    result = invoke(
        files / "many", "--keep", "0.3", "--out", out, "--ids", "key", "--ids-out", tmp_path / "ids.txt", "--report",
        tmp_path / "report.csv", "-k", 12, "--eps", 0.01, "--dedup-clusters", 3, "--keep-mode", "easy", "--balance", 0.2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = density_based_pruning(X, 0.3, k=12, eps=0.01, dedup_clusters=3, keep_mode="easy", balance=0.2)
    assert (rows_of(out) == expected.kept).all()
    assert f"{expected.count:,} of {N:,} rows, {expected.duplicates} near-duplicates removed" in result.output
    assert (tmp_path / "ids.txt").read_text().split() == [f"k{i:05}" for i in expected.kept]
    with (tmp_path / "report.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(r["kept"]) for r in rows] == [r["kept"] for r in expected.clusters()]
    assert [float(r["complexity"]) for r in rows] == [r["complexity"] for r in expected.clusters()]


def test_verb_with_variants_and_counts(files, tmp_path):
    report, out = tmp_path / "report.json", tmp_path / "kept.parquet"
    result = invoke(
        files / "one.parquet", "--keep", 700, "--out", out, "--variant", "dbp_datacomp_medium", "--report", report
    )
    assert result.exit_code == 0, result.output
    assert (rows_of(out) == density_based_pruning(X, keep=700, k=100).kept).all()
    kept = json.loads(report.read_text())
    assert kept["kept"] == 700 and len(kept["clusters"]) == 100
    result = invoke(files / "one.parquet", "--method", "semdedup", "--eps", 0.01, "--out", out, "--copy", "*")
    assert result.exit_code == 0 and pq.read_table(out).column_names == [
        "key",
        "embedding",
        "text",
        "row",
        "similarity",
    ]
    result = invoke(
        files / "one.parquet", "--keep", "0.5", "--method", "clip-score", "--text-column", "text", "--out", out
    )
    assert result.exit_code == 0 and (rows_of(out) == clip_score_pruning(X, TEXT, 0.5)).all()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{0}", "--keep", "2.0"), "above 0 and up to 1"),
        (("{0}", "--keep", "many"), "--keep many: give a share such as 0.3"),
        (("{0}",), "say how much to keep"),
        (("{0}", "--keep", "0.3", "--column", "vector"), "no column 'vector'"),
        (("{0}", "--keep", "0.3", "--variant", "dbp"), "unknown variant 'dbp'"),
        (("{0}", "--keep", "0.3", "--method", "dbb"), "unknown method"),
        (("{0}", "--keep", "0.3", "--engine", "dask"), "unknown engine"),
        (("{0}", "--keep", "0.3", "--ids-out", "x.txt"), "--ids-out needs --ids"),
        (("{0}", "--keep", "0.3", "--report", "x.xml"), "ends in .csv or .json"),
        (("{0}.no", "--keep", "0.3"), "there is no Parquet file"),
        (("{1}", "--keep", "0.3"), "cannot be read as Parquet"),
    ],
)
def test_verb_refuses(files, tmp_path, monkeypatch, capsys, arguments, says):
    (tmp_path / "notes.txt").write_text("not Parquet")
    given = [a.format(files / "one.parquet", tmp_path / "notes.txt") for a in arguments]
    monkeypatch.setattr(sys, "argv", ["offprint", "prune", *given, "--out", str(tmp_path / "kept.parquet")])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "kept.parquet").exists()


def test_public_names():
    assert all(hasattr(concept_pruning, name) for name in concept_pruning.__all__)
