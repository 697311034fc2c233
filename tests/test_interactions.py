"""Interactions: files read as they are, what is wrong in them named, splits, draws."""

import lzma

import numpy as np
import pytest
import scipy.sparse as sp

from offprint.data.draws import Seen, Triples, sample_negatives
from offprint.data.interactions import Interactions, from_pairs, hold_out, load_interactions
from offprint.errors import DataError, OffprintError


def pairs(matrix, data):
    return {(data.user_ids[u], data.item_ids[i]) for u, i in zip(*matrix.nonzero(), strict=True)}


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


# -- reading ---------------------------------------------------------------------------------------------------------
def test_bundled_sets_are_the_papers():
    data = load_interactions("lastfm")
    assert (data.num_users, data.num_items, data.train.nnz, data.test.nnz) == (1892, 4489, 42135, 10533)
    assert data.user_ids[0] == 1 and data.item_ids[-1] == 4489  # the files count from 1, and keep numbers nobody has
    assert (data.train.data == 1).all() and data.train.has_sorted_indices
    assert any("14 users have no training interactions" in note for note in data.notes)


def test_gowalla():
    data = load_interactions("gowalla")
    assert (data.num_users, data.num_items, data.train.nnz, data.test.nnz) == (29858, 40981, 810128, 217242)
    assert np.diff(data.train.indptr).min() >= 8 and (np.diff(data.test.indptr) > 0).all() and data.notes == ()


def test_csv_keeps_ids_and_finds_columns(tmp_path):
    path = write(tmp_path, "x.csv", '\ufeffUser ID,movieId,rating\n007,b,1\n7,"a,c",2\n\n007,a,3\n')
    data = load_interactions(path, split="none")
    assert data.user_ids == ["007", "7"] and data.item_ids == ["a", "a,c", "b"]
    assert pairs(data.train, data) == {("007", "b"), ("7", "a,c"), ("007", "a")}
    assert data.user_index("007") == 0 and data.user_index(7) == 1
    tabs = write(tmp_path, "x.tsv", "item\twho\n5\t10\n4\t9\n")
    data = load_interactions(tabs, split="none", columns={"user": "who"})
    assert data.user_ids == [9, 10] and data.item_ids == [4, 5] and data.train.toarray().tolist() == [[1, 0], [0, 1]]


def test_parquet_gives_what_csv_gives(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    days = np.array([f"2026-01-0{d}" for d in (1, 2, 3, 4)], dtype="datetime64[us]")
    pq.write_table(pa.table({"user": [1, 1, 2, 2], "item": ["a", "b", "a", "c"], "time": days}), tmp_path / "x.parquet")
    csv = write(tmp_path, "x.csv", "user,item,time\n1,a,2026-01-01\n1,b,2026-01-02\n2,a,2026-01-03\n2,c,2026-01-04\n")
    a, b = (load_interactions(p, split="temporal", fraction=0.5) for p in (tmp_path / "x.parquet", csv))
    assert a.user_ids == b.user_ids == [1, 2] and pairs(a.test, a) == pairs(b.test, b) == {(2, "a"), (2, "c")}
    pq.write_table(pa.table({"user": [1, None], "item": ["a", "b"]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"y.parquet, row 2: the user is missing"):
        load_interactions(tmp_path / "y.parquet")
    (tmp_path / "z.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        load_interactions(tmp_path / "z.parquet")


def test_the_authors_lines_and_folders(tmp_path, monkeypatch):
    folder = tmp_path / "recommendation" / "electronics"
    folder.mkdir(parents=True)
    with lzma.open(folder / "train.txt.xz", "wt") as stream:
        stream.write("0 1 2\n1 0\n3 2\n4\n")
    with lzma.open(folder / "test.txt.xz", "wt") as stream:
        stream.write("0 5\n")
    data = load_interactions(folder)
    assert data.train.shape == (5, 6) and data.user_ids == [0, 1, 2, 3, 4] and pairs(data.test, data) == {(0, 5)}
    assert any("2 users have no training" in n for n in data.notes) and any("3 items have no" in n for n in data.notes)
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    assert load_interactions("electronics").train.nnz == 4
    with pytest.raises(DataError, match=r"put its train.txt and test.txt \(from github.com/xue-pai/UltraGCN"):
        load_interactions("amazoncds")
    far = write(tmp_path, "far.txt", "5 100000000 3\n9 3\n")  # ids, not numbers of rows
    data = load_interactions(far, split="none")
    assert data.user_ids == [5, 9] and data.item_ids == [3, 100000000]


def test_duplicates_and_weights_are_said(tmp_path):
    path = write(tmp_path, "x.csv", "user,item,time,weight\na,x,1,1\na,x,9,1\na,y,5,0\na,z,3,2\n")
    data = load_interactions(path, split="leave-one-out")
    assert (
        "1 repeated interactions were merged" in data.notes and "1 interactions of weight 0 were left out" in data.notes
    )
    assert pairs(data.test, data) == {("a", "x")}  # of the repeated pair the latest counts, and it is the latest of all
    data = load_interactions(path, split="none", min_weight=2)
    assert pairs(data.train, data) == {("a", "z")}
    with pytest.raises(DataError, match="needs a column of weights"):
        load_interactions(write(tmp_path, "y.csv", "user,item\na,x\n"), min_weight=1)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.csv", "user,item\na,b\nc\n", "x.csv, line 3: 1 fields, expected 2"),
        ("x.csv", "user,item\na,\n", "x.csv, line 2: the item is empty"),
        ("x.csv", "user,item,weight\na,b,1\na,c,-2\n", "line 3: the weight -2 is negative"),
        ("x.csv", "user,item,weight\na,b,nan\n", "line 2: the weight nan is not a number"),
        ("x.csv", "user,item,weight\na,b,much\n", "line 2: the weight 'much' is not a number"),
        ("x.csv", "user,item,time\na,b,soon\n", "line 2: the time 'soon' is not a number or an ISO 8601 date"),
        ("x.csv", "who,what\na,b\n", "no column named user and item; its columns: who, what"),
        ("x.csv", "user,item\n", "holds no interactions"),
        ("x.csv", "", "no column named user and item|holds no interactions"),
        ("x.txt", "0 1 2\n1 two 3\n", "x.txt, line 2: 'two' is not a number"),
        ("x.txt", "0 1 -2\n", "line 1: -2 is negative"),
        ("x.tsv", "1\t2\t3\n1\tx\t3\n", "line 2: 'x' is not a number"),
        ("x.json", "{}", "expected a .csv"),
    ],
)
def test_malformed_files(tmp_path, name, text, says):
    with pytest.raises(DataError, match=says):
        load_interactions(write(tmp_path, name, text))


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"user,item\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load_interactions(tmp_path / "x.csv")
    (tmp_path / "x.txt.xz").write_bytes(b"0 1 2")
    with pytest.raises(DataError, match="damaged"):
        load_interactions(tmp_path / "x.txt.xz")
    with pytest.raises(DataError, match="no file of interactions at"):
        load_interactions(tmp_path / "none.csv")
    with pytest.raises(OffprintError, match="nearest: gowalla"):
        load_interactions("gowala")
    with pytest.raises(DataError, match="has no train.txt and test.txt"):
        load_interactions(tmp_path)
    one = write(tmp_path, "a.csv", "user,item,time\na,b,1\n")
    with pytest.raises(DataError, match="b.csv has no times"):
        load_interactions(one, test=write(tmp_path, "b.csv", "user,item\na,b\n"))


# -- splits ----------------------------------------------------------------------------------------------------------
def random_pairs(seed=0, users=40, items=30, count=400):
    draw = np.random.default_rng(seed)
    return draw.integers(0, users, count).tolist(), draw.integers(0, items, count).tolist(), draw.random(count)


def test_random_split():
    users, items, _ = random_pairs()
    data = from_pairs(users, items, fraction=0.25, seed=3)
    train, test = np.diff(data.train.indptr), np.diff(data.test.indptr)
    assert train.min() >= 1 and data.train.multiply(data.test).nnz == 0
    assert (np.abs(test - 0.25 * (train + test)) <= 0.5).all()
    assert pairs(data.train, data) | pairs(data.test, data) == set(zip(users, items, strict=True))
    again, other = from_pairs(users, items, fraction=0.25, seed=3), from_pairs(users, items, fraction=0.25, seed=4)
    assert (data.test != again.test).nnz == 0 and (data.test != other.test).nnz > 0


def test_leave_one_out_and_temporal_splits():
    users, items, times = random_pairs()
    latest = {}
    for u, i, t in zip(users, items, times, strict=True):
        latest[u] = max(latest.get(u, (0, 0)), (t, i))
    data = from_pairs(users, items, time=times, split="leave-one-out")
    assert pairs(data.test, data) == {(u, i) for u, (_, i) in latest.items()}
    assert from_pairs(users, items, split="leave-one-out").test.nnz == len(set(users))  # without times, a random one
    data = from_pairs(users, items, time=times, split="temporal", fraction=0.3)
    last = {(u, i): t for t, u, i in sorted(zip(times, users, items, strict=True))}
    assert min(last[p] for p in pairs(data.test, data)) > max(last[p] for p in pairs(data.train, data))
    assert abs(data.test.nnz / len(last) - 0.3) < 0.02


def test_splits_that_cannot_be():
    with pytest.raises(DataError, match="leaves the test part empty"):
        from_pairs(["a", "b"], ["x", "y"], split="leave-one-out")
    with pytest.raises(DataError, match="needs a column of times"):
        from_pairs(["a", "a"], ["x", "y"], split="temporal")
    with pytest.raises(DataError, match="leaves nothing to train on"):
        from_pairs(["a", "a"], ["x", "y"], time=[1, 1], split="temporal")
    with pytest.raises(OffprintError, match="unknown split 'rondom'; nearest: random"):
        from_pairs(["a"], ["x"], split="rondom")
    with pytest.raises(DataError, match="between 0 and 1"):
        from_pairs(["a"], ["x"], fraction=1.5)
    with pytest.raises(DataError, match="2 users and 1 items"):
        from_pairs(["a", "b"], ["x"])
    with pytest.raises(DataError, match="interaction 2: the weight -1 is negative"):
        from_pairs(["a", "b"], ["x", "y"], weight=[1, -1])
    with pytest.raises(DataError, match="no interactions were given"):
        from_pairs([], [])


def test_save_and_load(tmp_path):
    data = from_pairs(["é", "b,\n", "é", "b,\n"], [1, 2, 3, 1], fraction=0.5, name="odd")
    data.save(tmp_path / "x.npz")
    again = Interactions.load(tmp_path / "x.npz")
    assert (
        list(again.user_ids) == list(data.user_ids) and list(again.item_ids) == [1, 2, 3] and again.notes == data.notes
    )
    assert (again.train != data.train).nnz == (again.test != data.test).nnz == 0
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:80])
    with pytest.raises(DataError, match="y.npz does not hold interactions"):
        Interactions.load(tmp_path / "y.npz")
    with pytest.raises(DataError, match="no interactions at"):
        Interactions.load(tmp_path / "z.npz")
    with pytest.raises(OffprintError, match="unknown item of odd '9'"):
        again.item_index(9)
    with pytest.raises(DataError, match="at least one item"):
        again.items_of([])


def test_holding_out_a_part_of_the_training_part():
    data = load_interactions("lastfm")
    part = hold_out(data, 0.1, seed=3)
    assert (part.num_users, part.num_items) == (data.num_users, data.num_items) and part.user_ids == data.user_ids
    assert part.train.nnz + part.test.nnz == data.train.nnz and part.train.multiply(part.test).nnz == 0
    assert (part.train + part.test != data.train).nnz == 0  # nothing of the test part, nothing lost
    had, left, out = (np.diff(m.indptr) for m in (data.train, part.train, part.test))
    assert (out == np.minimum((0.1 * had + 0.5).astype(int), np.maximum(had - 1, 0))).all() and (
        left[had > 0] > 0
    ).all()
    same, other = hold_out(data, 0.1, seed=3), hold_out(data, 0.1, seed=4)
    assert (same.test != part.test).nnz == 0 and (other.test != part.test).nnz > 0
    with pytest.raises(DataError, match="between 0 and 1"):
        hold_out(data, 1.0)
    with pytest.raises(DataError, match="take a larger fraction"):
        hold_out(from_pairs([1, 1, 2], [1, 2, 1], split="none"), 0.1)


# -- draws -----------------------------------------------------------------------------------------------------------
def matrix(lists, width):
    rows = np.repeat(np.arange(len(lists)), [len(x) for x in lists])
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, sum(lists, []))), shape=(len(lists), width))


def test_triples_by_user():
    train = matrix([[0, 2], [1], [], [0, 1, 2, 3, 4], [3, 4]], 5)  # nobody can be drawn for users 2 and 3
    sampler = Triples(train, 4)
    count, batches = sampler.epoch(0, 5)
    batches = list(batches)
    users, positives, negatives = (np.concatenate(c) for c in zip(*batches, strict=True))
    assert count == len(batches) and {len(b[0]) for b in batches[:-1]} <= {4} and set(users) <= {0, 1, 4}
    seen = Seen(train)
    many = [b for e in range(200) for b in sampler.epoch(0, e)[1]]
    users, positives, negatives = (np.concatenate(c) for c in zip(*many, strict=True))
    assert seen(users, positives).all() and not seen(users, negatives).any()
    counts = np.bincount(users)[[0, 1, 4]]
    assert counts.max() < 1.25 * counts.min()  # uniform over users, whatever they have
    assert [x.tolist() for x in next(sampler.epoch(0, 5)[1])] == [x.tolist() for x in batches[0]]


def test_triples_by_pair():
    train = matrix([[0, 2], [1], [], [0, 1, 2, 3, 4], [3, 4]], 5)
    count, batches = Triples(train, 4, by="pair", negatives=7, reject=False).epoch(3, 0)
    batches = list(batches)
    assert count == len(batches) == 3 and [b[2].shape for b in batches] == [(4, 7), (4, 7), (2, 7)]
    drawn = sorted((u, i) for b in batches for u, i in zip(b[0], b[1], strict=True))
    assert drawn == sorted(zip(*train.nonzero(), strict=True))
    sifted = list(Triples(train, 4, by="pair", negatives=7).epoch(3, 0)[1])
    assert not any(Seen(train)(b[0][:, None], b[2]).any() for b in sifted) and sum(len(b[0]) for b in sifted) == 5
    wide = list(Triples(train, 4, negatives=3).epoch(0, 0)[1])
    assert wide[0][2].shape == (4, 3) and not any(Seen(train)(b[0][:, None], b[2]).any() for b in wide)


def test_draws_that_cannot_be():
    with pytest.raises(DataError, match="every user has all items"):
        Triples(matrix([[0, 1], []], 2), 4)
    with pytest.raises(DataError, match="no training interactions"):
        Triples(matrix([[], []], 2), 4)
    with pytest.raises(OffprintError, match="unknown way to sample"):
        Triples(matrix([[0]], 2), 4, by="item")
    draw = np.random.default_rng(0)
    assert sample_negatives(np.zeros(3, np.int64), 10, draw, count=2).shape == (3, 2)
    assert not Seen(matrix([[], []], 2))(np.array([0]), np.array([1])).any()
