"""Who used what: implicit feedback read from files, checked, split, and drawn from in training.

A table of (user, item[, time, weight]) becomes an :class:`Interactions`: two sparse 0/1 matrices, users by items, one to
train on and one to be tested on, with the ids as they were given.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from offprint.data import samples
from offprint.data.home import data_dir
from offprint.data.interaction_files import Pairs, check_weight, read_interactions
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write, fetched

BUNDLED = ("gowalla", "lastfm")
SETS = {  # name: where its files come from
    "gowalla": "github.com/gusye1234/LightGCN-PyTorch, data/gowalla",
    "lastfm": "github.com/gusye1234/LightGCN-PyTorch, data/lastfm",
    "yelp2018": "github.com/gusye1234/LightGCN-PyTorch, data/yelp2018",
    "amazon-book": "github.com/gusye1234/LightGCN-PyTorch, data/amazon-book",
    "amazoncds": "github.com/xue-pai/UltraGCN, data",
    "electronics": "github.com/xue-pai/UltraGCN, data",
}
SPLITS = ("random", "leave-one-out", "temporal", "none")
_MOST_GAPS = 4  # ids that number rows may leave this many numbers unused for each one used


@dataclass(frozen=True)
class Interactions:
    """Feedback of N users on M items.

    Attributes:
        train, test: (N, M) CSR float32 of ones; indices ascend within a row. ``test`` may be empty of entries.
        user_ids, item_ids: what each row and column is called: all int, or all str, as in the source.
        name: of the source.
        notes: what reading found worth saying (duplicates merged, users without items, ...), one sentence each.
    """

    train: sp.csr_matrix
    test: sp.csr_matrix
    user_ids: Sequence
    item_ids: Sequence
    name: str = "interactions"
    notes: tuple[str, ...] = ()

    @property
    def num_users(self) -> int:
        return self.train.shape[0]

    @property
    def num_items(self) -> int:
        return self.train.shape[1]

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.num_users:,} users, {self.num_items:,} items, "
            f"{self.train.nnz:,} training and {self.test.nnz:,} test interactions"
        )

    @cached_property
    def _users(self) -> dict:
        return {str(name): row for row, name in enumerate(self.user_ids)}

    @cached_property
    def _items(self) -> dict:
        return {str(name): column for column, name in enumerate(self.item_ids)}

    def user_index(self, name) -> int:
        """The row of a user id (42 and "42" are the same id)."""
        return _look_up("user", name, self._users, self.name)

    def item_index(self, name) -> int:
        """The column of an item id."""
        return _look_up("item", name, self._items, self.name)

    def items_of(self, names: Iterable) -> sp.csr_matrix:
        """(1, M): a row of ones at these items, for folding in a user who has none."""
        columns = sorted({self.item_index(n) for n in names})
        if not columns:
            raise DataError("a new user needs at least one item; give ids of items")
        return _matrix(np.zeros(len(columns), dtype=np.int64), np.array(columns), (1, self.num_items))

    def save(self, path: str | Path) -> Path:
        """Write everything to one ``.npz`` file, whole or not at all."""
        about = {
            "user_ids": list(self.user_ids), "item_ids": list(self.item_ids), "name": self.name, "notes": self.notes
        }  # fmt: skip
        arrays = {"about": np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)}
        for part in ("train", "test"):
            matrix = getattr(self, part)
            arrays |= {f"{part}_indptr": matrix.indptr, f"{part}_indices": matrix.indices}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Interactions:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as f:
                about = json.loads(f["about"].tobytes().decode())
                shape = (len(about["user_ids"]), len(about["item_ids"]))
                parts = [
                    sp.csr_matrix(
                        (np.ones(len(f[f"{p}_indices"]), np.float32), f[f"{p}_indices"], f[f"{p}_indptr"]), shape=shape
                    )
                    for p in ("train", "test")
                ]
        except FileNotFoundError:
            raise DataError(f"no interactions at {path}") from None
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} does not hold interactions that were saved here: {error}") from error
        return cls(*parts, about["user_ids"], about["item_ids"], about["name"], tuple(about["notes"]))


def _look_up(kind: str, name, index: Mapping, source: str) -> int:
    row = index.get(str(name))
    if row is not None:
        return row
    if len(index) <= 100_000:
        raise unknown(f"{kind} of {source}", name, index)
    some = ", ".join(list(index)[:5])
    raise OffprintError(f"unknown {kind} of {source} {str(name)!r}; there are {len(index):,}: {some}, ...")


def _matrix(users: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """A CSR matrix of ones; repeated pairs stay one."""
    matrix = sp.csr_matrix((np.ones(len(users), np.float32), (users, items)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def _order(index: dict, numbered: bool) -> tuple[list, np.ndarray]:
    """Ids in their natural order, and the place there of each code."""
    names = list(index)
    whole = all(isinstance(n, int) and not isinstance(n, bool) or isinstance(n, str) and _is_number(n) for n in names)
    if not whole:
        ids: list = sorted(map(str, names))
        place = {n: p for p, n in enumerate(ids)}
        return ids, np.array([place[str(n)] for n in names], dtype=np.int64)
    codes = np.array([int(n) for n in names], dtype=np.int64)
    if numbered and len(codes) and codes.max() + 1 <= _MOST_GAPS * len(codes):
        first = int(codes.min() > 0)  # LastFM counts from 1
        return list(range(first, int(codes.max()) + 1)), codes - first
    ids = np.unique(codes)
    return ids.tolist(), np.searchsorted(ids, codes)


def _is_number(text: str) -> bool:
    """Whether an id is a whole number written in the one way in which Python would write it (007 is not)."""
    return text.isascii() and text.lstrip("-").isdigit() and str(int(text)) == text and len(text) < 19


def _split(users, items, times, shape, how: str, fraction: float, seed: int) -> np.ndarray:
    """Which of the pairs are test pairs; every user keeps at least one to train on (but for the temporal split)."""
    draw = np.random.default_rng(seed)
    count = np.bincount(users, minlength=shape[0])
    if how == "temporal":
        if times is None:
            raise DataError(
                "a temporal split needs a column of times, and there is none; name it with columns={'time': ...} (--columns time=...), or "
                "split random or leave-one-out"
            )
        order = np.argsort(times, kind="stable")
        cut = times[order[min(len(order) - 1, int(round((1 - fraction) * len(order))))]]
        return times >= cut
    key = draw.random(len(users)) if how == "random" or times is None else times
    order = np.lexsort((key, users))
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    rank = np.empty(len(users), dtype=np.int64)
    rank[order] = np.arange(len(users)) - start[users[order]]
    last = np.minimum(1, count - 1) if how == "leave-one-out" else np.minimum((count * fraction + 0.5).astype(np.int64), count - 1)  # fmt: skip
    return rank >= (count - last)[users]


def build(
    pairs: Pairs,
    name: str,
    *,
    train_count: int | None,
    split: str,
    fraction: float,
    seed: int,
    min_weight: float | None,
) -> Interactions:
    """Merge duplicates, drop what does not count, split."""
    user_ids, user_at = _order(pairs.users, pairs.numbered)
    item_ids, item_at = _order(pairs.items, pairs.numbered)
    shape, notes = (len(user_ids), len(item_ids)), list(dict.fromkeys(pairs.notes))
    codes = np.concatenate(pairs.rows, 1)
    users, items = user_at[codes[0]], item_at[codes[1]]
    times = np.concatenate(pairs.times) if pairs.times else None
    part = np.arange(len(users)) >= (len(users) if train_count is None else train_count)
    if min_weight is not None and not pairs.weights:
        raise DataError(f"min_weight={min_weight:g} needs a column of weights, and {name} has none")
    if pairs.weights:
        enough = np.concatenate(pairs.weights)
        enough = enough > 0 if min_weight is None else enough >= min_weight
        if not enough.all():
            least = "of weight 0" if min_weight is None else f"of a weight below {min_weight:g}"
            notes.append(f"{(~enough).sum():,} interactions {least} were left out")
            users, items, part = users[enough], items[enough], part[enough]
            times = None if times is None else times[enough]
        if not len(users):
            raise DataError(f"{name}: no interaction has a weight that counts")
    key = (users * shape[1] + items) * 2 + part
    if times is None:
        first = np.unique(key, return_index=True)[1]
    else:  # of a repeated pair the latest counts
        order = np.lexsort((times, key))
        first = np.sort(order[np.append(key[order][1:] != key[order][:-1], True)])
    if len(first) < len(key):
        notes.append(f"{len(key) - len(first):,} repeated interactions were merged")
        users, items, part = users[first], items[first], part[first]
        times = None if times is None else times[first]
    if train_count is None:
        part = (
            np.zeros(len(users), bool) if split == "none" else _split(users, items, times, shape, split, fraction, seed)
        )
        if split != "none" and not part.any():
            raise DataError(
                f"{name}: the {split} split leaves the test part empty ({len(users):,} interactions of {shape[0]:,} users; "
                "a user needs two or more to be tested); use more data, or split='none' (--split none)"
            )
        if part.all():
            raise DataError(f"{name}: the {split} split leaves nothing to train on; take a smaller fraction")
    train, test = _matrix(users[~part], items[~part], shape), _matrix(users[part], items[part], shape)
    both = int(train.multiply(test).nnz)
    if both:
        notes.append(f"{both:,} test interactions are training interactions too, and can never be found")
    for what, counts in (("users", np.diff(train.indptr)), ("items", np.bincount(train.indices, minlength=shape[1]))):
        none = int((counts == 0).sum())
        if none:
            notes.append(f"{none:,} {what} have no training interactions")
    return Interactions(train, test, user_ids, item_ids, name, tuple(notes))


def from_pairs(
    users: Sequence, items: Sequence, *, time: Sequence | None = None, weight: Sequence | None = None,
    split: str = "random", fraction: float = 0.2, seed: int = 0, min_weight: float | None = None, name: str = "interactions",
) -> Interactions:  # fmt: skip
    """Interactions of two columns of ids in memory; the other arguments as for :func:`load_interactions`."""
    users, items = list(users), list(items)
    for what, column in (("items", items), ("times", time), ("weights", weight)):
        if column is not None and len(column) != len(users):
            raise DataError(f"{len(users)} users and {len(column)} {what}: the columns must be of one length")
    if not users:
        raise DataError("no interactions were given")
    for at, value in enumerate(weight if weight is not None else ()):
        check_weight(float(value), f"interaction {at + 1}")
    _check_split(split, fraction)
    pairs = Pairs()
    plain = [[v.item() if isinstance(v, np.generic) else v for v in column] for column in (users, items)]
    pairs.add(*plain, time, weight)
    return build(pairs, name, train_count=None, split=split, fraction=fraction, seed=seed, min_weight=min_weight)


def _check_split(split: str, fraction: float) -> None:
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not 0 < fraction < 1:
        raise DataError(f"the test part is a fraction between 0 and 1, not {fraction}")


def hold_out(data: Interactions, fraction: float = 0.1, seed: int = 0) -> Interactions:
    """The training part split once more, for choosing rates and epochs without the test part.

    Args:
        data: its test part is left out.
        fraction: of each user's training items, rounded; every user keeps at least one.

    Returns:
        The same users and items; ``test`` holds what was taken from ``train``.

    Raises:
        DataError: a fraction that is none, or users with too few items for anything to be held out.
    """
    _check_split("random", fraction)
    users, items = data.train.nonzero()
    part = _split(users, items, None, data.train.shape, "random", fraction, seed)
    if not part.any():
        raise DataError(
            f"holding out {fraction:g} of each user's items of {data.name} takes none; take a larger fraction"
        )
    matrices = (_matrix(users[kept], items[kept], data.train.shape) for kept in (~part, part))
    return Interactions(*matrices, data.user_ids, data.item_ids, f"{data.name}, held out", data.notes)


def _named(name: str, root: str | Path | None) -> tuple[Path, Path]:
    """The training and the test file of a data set by name."""
    stems = (("train", "test"), ("data1", "test1"))
    folders = [Path(root or data_dir()) / "recommendation" / name, Path(root or data_dir()) / name]
    for folder in folders:
        for pair in stems:
            for end in (".txt", ".txt.xz"):
                files = [folder / f"{stem}{end}" for stem in pair]
                if all(f.is_file() for f in files):
                    return files[0], files[1]
    if name in BUNDLED:
        return samples.path(f"{name}_train.txt.xz"), samples.path(f"{name}_test.txt.xz")
    raise DataError(
        f"{name} is not on this machine; put its train.txt and test.txt (from {SETS[name]}) into {folders[0]}, "
        "or set OFFPRINT_DATA to a folder that holds recommendation/" + name
    )


def _of_folder(folder: Path) -> tuple[Path, ...]:
    """The training and the test file of a folder, or its one file of interactions (MovieLens', RecBole's)."""
    names = {p.name: p for p in sorted(folder.iterdir())}
    ends = (".txt", ".txt.xz", ".csv", ".tsv", ".inter", ".parquet")
    for a, b in (("train", "test"), ("data1", "test1")):
        for end in ends:
            if {a + end, b + end} <= set(names):
                return names[a + end], names[b + end]
    atomic = [n for n in names if n.endswith(".inter")]
    for name in ("ratings.dat", "u.data", "ratings.csv", *(atomic if len(atomic) == 1 else ())):
        if name in names:
            return (names[name],)
    raise DataError(
        f"{folder} has no train.txt and test.txt (or .txt.xz, .csv, .tsv, .inter, .parquet), and no ratings.dat, u.data, "
        f"ratings.csv or single .inter; it holds {', '.join(list(names)[:6]) or 'nothing'}. Give the file itself"
    )


def load_interactions(
    source: str | Path,
    *,
    test: str | Path | None = None,
    split: str = "random",
    fraction: float = 0.2,
    seed: int = 0,
    min_weight: float | None = None,
    columns: Mapping[str, str] | None = None,
    root: str | Path | None = None,
) -> Interactions:
    """Read interactions.

    Args:
        source: ``gowalla`` or ``lastfm`` (bundled), another name of ``SETS`` with its files under ``OFFPRINT_DATA``; a
            folder of ``train.txt`` and ``test.txt``, or of MovieLens (``ratings.dat``, ``u.data``, ``ratings.csv``) or RecBole
            (``.inter``); or one such file: CSV or TSV with a header or without (user, item, then a rating and a time where the
            fourth column tells the time), Parquet, or the authors' ``user item item ...`` lines. An address is fetched.
        test: a file of test interactions, so that nothing is split.
        split: ``random`` (a ``fraction`` of each user's items), ``leave-one-out`` (each user's latest, or a random one where
            there are no times), ``temporal`` (the latest ``fraction`` of all), or ``none``.
        fraction, seed: of the split. Data sets with a test part of their own are not split.
        min_weight: count only interactions of at least this weight (say ratings of 4); default: all above 0.
        columns: names of the columns where they are unusual, ``{"user": ..., "item": ..., "time": ..., "weight": ...}``; their
            numbers from 1 where the file has no header.
        root: instead of ``OFFPRINT_DATA``.

    Raises:
        DataError: a malformed line (the file and the line are named), a negative weight, a split without a test part.
    """
    _check_split(split, fraction)
    name = str(source)
    path = fetched(source, "the table of interactions")
    test = None if test is None else fetched(test, "the table of test interactions")
    files: tuple[Path, ...]
    if name in SETS and test is None and not path.is_file():
        files = _named(name, root)
    elif path.is_dir():
        files, name = _of_folder(path), path.resolve().name
        if len(files) == 1 and test is not None:
            files = (*files, test)
    elif not path.exists() and not path.suffix:
        raise unknown("set of interactions (and no such file)", name, SETS)
    else:
        files, name = ((path, test) if test is not None else (path,)), path.name
    pairs = Pairs()
    read_interactions(files[0], pairs, columns)
    count, had = None, (bool(pairs.times), bool(pairs.weights))
    if len(files) > 1:
        count = pairs.count
        read_interactions(files[1], pairs, columns)
        for what, before, columns_ in (("times", had[0], pairs.times), ("weights", had[1], pairs.weights)):
            if columns_ and sum(map(len, columns_)) != pairs.count:
                raise DataError(f"{files[0 if not before else 1]} has no {what} and the other file has; give both or neither")  # fmt: skip
    return build(pairs, name, train_count=count, split=split, fraction=fraction, seed=seed, min_weight=min_weight)


def __getattr__(name: str):
    if name in ("Seen", "Triples", "sample_negatives"):
        import warnings

        from offprint.data import draws

        warnings.warn(
            f"offprint.data.interactions.{name} is now offprint.data.draws.{name}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(draws, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
