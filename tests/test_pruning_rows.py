"""Pruning tables as they are: rows without an embedding are left out and counted, and the table keeps its columns."""

import numpy as np
import pytest
from typer.testing import CliRunner

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from offprint.errors import DataError, OffprintError  # noqa: E402
from offprint.methods.curation.parquet import prune_parquet  # noqa: E402

DRAW = np.random.default_rng(0)
N, DIM = 900, 6
ROWS = DRAW.normal(size=(N, DIM)).astype(np.float32) + 4 * DRAW.normal(size=(9, DIM))[np.arange(N) % 9].astype(
    np.float32
)
ROWS[5::9] = ROWS[5] + 1e-4 * DRAW.normal(size=(100, DIM))  # near-duplicates
BAD = {
    0: None,
    17: np.full(DIM, np.nan),
    18: np.zeros(DIM),
    400: None,
    401: np.full(DIM, np.inf),
    899: np.zeros(DIM),
    555: None,
}
GOOD = np.array([i for i in range(N) if i not in BAD])
METHODS = [
    {"method": "dbp", "k": 7, "keep": 0.3}, {"method": "dbp", "k": 7, "keep": 200, "eps": 0.01, "dedup_clusters": 3, "refine": 2},
    {"method": "ssp", "k": 7, "keep": 0.3}, {"method": "semdedup", "eps": 0.01, "dedup_clusters": 3},
    {"method": "semdedup", "keep": 0.5, "dedup_clusters": 3}, {"method": "clip-score", "text_column": "text", "keep": 0.3},
]  # fmt: skip


def write(path, rows, names, kind=None):
    vectors = [None if r is None else [float(v) for v in r] for r in rows]
    kind = kind or pa.list_(pa.float32())
    text = pa.array([[1.0] * DIM] * len(rows), pa.list_(pa.float32()))
    table = pa.table({"name": list(names), "embedding": pa.array(vectors, kind), "text": text})
    pq.write_table(table, path, row_group_size=250)
    return path


@pytest.fixture
def tables(tmp_path):
    """The table with gaps, and the same without the rows that have them."""
    names = [f"n{i}" for i in range(N)]
    rows = [BAD.get(i, ROWS[i]) if i in BAD else ROWS[i] for i in range(N)]
    return write(tmp_path / "gaps.parquet", rows, names), write(
        tmp_path / "clean.parquet", ROWS[GOOD], [names[i] for i in GOOD]
    )


@pytest.mark.parametrize("options", METHODS, ids=lambda o: f"{o['method']}-{len(o)}")
def test_skipping_keeps_what_the_table_without_the_gaps_keeps(tables, tmp_path, options):
    gaps, clean = tables
    got = prune_parquet(gaps, tmp_path / "a.parquet", on_error="skip", **options)
    expected = prune_parquet(clean, tmp_path / "b.parquet", **options)
    a, b = pq.read_table(got.out), pq.read_table(expected.out)
    assert a["name"].to_pylist() == b["name"].to_pylist() and a.num_rows == got.count == expected.count
    assert (a["row"].to_numpy() == GOOD[b["row"].to_numpy()]).all()
    assert got.left_out == {"missing": 3, "not finite": 2, "all zeros": 2} and expected.left_out == {}
    assert got.total == N and got.duplicates == expected.duplicates
    for one, other in zip(got.clusters(), expected.clusters(), strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # sums over blocks that begin elsewhere


def test_random_rows_are_never_those_with_gaps(tables, tmp_path):
    got = prune_parquet(tables[0], tmp_path / "a.parquet", 1.0, method="random", on_error="skip")
    assert pq.read_table(got.out)["row"].to_pylist() == GOOD.tolist() and got.count == len(GOOD)


def test_stopping_is_still_the_rule(tables, tmp_path):
    with pytest.raises(DataError, match="the embedding in row 0 is missing"):
        prune_parquet(tables[0], tmp_path / "a.parquet", 0.3, k=7)
    with pytest.raises(OffprintError, match="unknown way to treat rows that cannot be used 'ignore'"):
        prune_parquet(tables[0], tmp_path / "a.parquet", 0.3, k=7, on_error="ignore")


def test_what_skipping_does_not_forgive(tables, tmp_path):
    rows = list(ROWS[:50])
    rows[31] = ROWS[31][:3]
    with pytest.raises(DataError, match="row 31 has another number of dimensions"):
        prune_parquet(write(tmp_path / "x.parquet", rows, range(50)), tmp_path / "a.parquet", 0.3, k=2, on_error="skip")
    empty = write(tmp_path / "y.parquet", [np.zeros(DIM), np.full(DIM, np.nan)], "ab", pa.list_(pa.float32(), DIM))
    with pytest.raises(DataError, match=r"not one of the 2 rows has an embedding.*1 not finite, 1 all zeros"):
        prune_parquet(empty, tmp_path / "a.parquet", 1, method="random", on_error="skip")
    with pytest.raises(DataError, match="holds no vector at all"):
        prune_parquet(write(tmp_path / "z.parquet", [None, None], "ab"), tmp_path / "a.parquet", 1, on_error="skip")
    with pytest.raises(OffprintError, match="keep=895 of 893 examples is impossible"):
        prune_parquet(tables[0], tmp_path / "a.parquet", 895, k=7, on_error="skip")


def test_a_killed_run_goes_on(tables, tmp_path):
    options = {"k": 7, "eps": 0.01, "dedup_clusters": 3, "on_error": "skip"}
    whole = prune_parquet(tables[0], tmp_path / "a.parquet", 200, **options)

    def stop(name, done, total):
        if name == "compare":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_parquet(tables[0], tmp_path / "b.parquet", 200, progress=stop, **options)
    passes = []
    prune_parquet(tables[0], tmp_path / "b.parquet", 200, progress=lambda name, *_: passes.append(name), **options)
    assert "check" not in passes and pq.read_table(tmp_path / "b.parquet").equals(pq.read_table(whole.out))


def test_the_tables_own_columns_are_kept(tables, tmp_path):
    clean = tables[1]
    kept = lambda **how: pq.read_table(prune_parquet(clean, tmp_path / "a.parquet", 0.3, k=7, **how).out).column_names  # noqa: E731
    made = ["row", "cluster", "distance"]
    assert kept() == kept(columns="all") == kept(columns="*") == ["name", "embedding", "text", *made]
    assert kept(columns="none") == made and kept(columns=["text"]) == kept(columns="text") == ["text", *made]
    assert kept(id_column="name") == ["name", *made]
    table = pq.read_table(clean)
    rows = pq.read_table(tmp_path / "a.parquet")["row"].to_pylist()
    prune_parquet(clean, tmp_path / "a.parquet", 0.3, k=7)
    assert pq.read_table(tmp_path / "a.parquet").select(["name", "embedding", "text"]).equals(table.take(rows))


def test_a_pruned_table_can_be_pruned(tables, tmp_path):
    once = prune_parquet(tables[1], tmp_path / "a.parquet", 0.5, k=7).out
    twice = pq.read_table(prune_parquet(once, tmp_path / "b.parquet", 0.5, k=3).out)
    computed = ["pruning_row", "pruning_cluster", "pruning_distance"]
    assert twice.column_names == ["name", "embedding", "text", "row", "cluster", "distance", *computed]
    assert twice["row"].to_pylist() == pq.read_table(once)["row"].take(twice["pruning_row"]).to_pylist()
    with pytest.raises(OffprintError, match="has a column 'row' like the one that is written"):
        prune_parquet(once, tmp_path / "c.parquet", 0.5, k=3, columns=["row"])


def test_the_verb(tables, tmp_path):
    from offprint.cli.main import app

    def run(*more):
        given = ["--keep", "0.3", "-k", "7", "--out", str(tmp_path / "v.parquet"), *more]
        return CliRunner().invoke(app, ["prune", str(tables[0]), *given])

    result = run("--on-error", "skip")
    assert result.exit_code == 0, result.exception
    assert "7 rows without a usable embedding (3 missing, 2 not finite, 2 all zeros)" in " ".join(result.output.split())
    assert pq.read_table(tmp_path / "v.parquet").column_names[:3] == ["name", "embedding", "text"]
    for given, expected in (("none", []), ("name,text", ["name", "text"])):
        assert run("--on-error", "skip", "--columns", given).exit_code == 0
        assert pq.read_table(tmp_path / "v.parquet").column_names == [*expected, "row", "cluster", "distance"]
    result = run("--on-error", "skip", "--copy", "text")
    assert "--copy is now --columns" in result.output
    assert pq.read_table(tmp_path / "v.parquet").column_names[0] == "text"
