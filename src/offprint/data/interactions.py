"""Who used what: implicit feedback read from files, checked, split, and drawn from in training.

A table of (user, item[, time, weight]) becomes an :class:`Interactions`: two sparse 0/1 matrices, users by items, one to
train on and one to be tested on, with the ids as they were given.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from offprint.data import samples
from offprint.data.home import data_dir
from offprint.errors import DataError, OffprintError, need, unknown
from offprint.files import atomic_write

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
_NAMES = {  # what columns are called in the wild, without capitals and signs
    "user": ("user", "userid", "uid", "visitorid", "customerid"),
    "item": ("item", "itemid", "iid", "movieid", "productid", "artistid", "asin"),
    "time": ("time", "timestamp", "date", "datetime", "unixreviewtime"),
    "weight": ("weight", "rating", "count", "plays", "value", "overall"),
}
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


# -- files -----------------------------------------------------------------------------------------------------------
class _Pairs:
    """Grows while files are read; ids become numbers in the order in which they come, and are put in order at the end."""

    def __init__(self):
        self.users: dict = {}
        self.items: dict = {}
        self.rows: list[np.ndarray] = []  # of (2, n) codes
        self.times: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.notes: list[str] = []
        self.numbered = False  # ids number the rows of the authors' tables

    def add(self, users: Sequence, items: Sequence, times: Sequence | None, weights: Sequence | None) -> None:
        code, column = self.users, self.items
        self.rows.append(
            np.array([[code.setdefault(u, len(code)) for u in users], [column.setdefault(i, len(column)) for i in items]],
                     dtype=np.int64).reshape(2, -1)
        )  # fmt: skip
        if times is not None:
            self.times.append(np.asarray(times, dtype=np.float64))
        if weights is not None:
            self.weights.append(np.asarray(weights, dtype=np.float64))

    @property
    def count(self) -> int:
        return sum(r.shape[1] for r in self.rows)


def _open(path: Path):
    """A text stream of a file, unpacked where its name says so."""
    import gzip

    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _kind(path: Path) -> str:
    """``csv``, ``tsv``, ``txt`` or ``parquet``: the suffix under any compression."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in (".xz", ".gz"):
        suffixes.pop()
    kind = suffixes[-1].lstrip(".") if suffixes else ""
    return {"pq": "parquet", "data": "tsv", "tab": "tsv"}.get(kind, kind)


def _read(path: Path, pairs: _Pairs, columns: Mapping[str, str] | None) -> None:
    """One file into ``pairs``, by its suffix and first line."""
    if not path.is_file():
        raise DataError(f"no file of interactions at {path}")
    kind = _kind(path)
    if kind not in ("csv", "tsv", "txt", "parquet"):
        raise DataError(f"{path}: expected a .csv, .tsv, .txt (also .xz, .gz) or .parquet file, or a folder of train.txt and test.txt")  # fmt: skip
    before = pairs.count
    try:
        if kind == "parquet":
            _read_parquet(path, pairs, columns)
        else:
            with _open(path) as stream:
                first = next((line for line in stream if line.strip()), "")
            if "\0" in first:
                raise DataError(f"{path} is not a text file")
            with _open(path) as stream:
                if kind == "txt" and not any(c in first for c in "\t,;"):
                    _read_lists(path, stream, pairs)
                else:
                    _read_table(path, stream, first, pairs, columns)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if pairs.count == before:
        raise DataError(f"{path} holds no interactions")


def _numbers(tokens: list[str], path: Path, line: int) -> list[int]:
    try:
        found = [int(t) for t in tokens]
    except ValueError:
        wrong = next(t for t in tokens if not t.lstrip("-").isdigit())
        raise DataError(
            f"{path}, line {line}: {wrong!r} is not a number; a line is a user's number and the numbers of its items"
        ) from None
    if min(found) < 0:
        raise DataError(f"{path}, line {line}: {min(found)} is negative; users and items are numbered from 0")
    return found


def _read_lists(path: Path, stream, pairs: _Pairs) -> None:
    """The authors' format: a line is a user and that user's items, all numbers of rows."""
    pairs.numbered = True
    empty = 0
    for number, line in enumerate(stream, 1):
        tokens = line.split()
        if not tokens:
            continue
        user, *items = _numbers(tokens, path, number)
        empty += not items
        pairs.users.setdefault(user, len(pairs.users))
        pairs.add([user] * len(items), items, None, None)
    if empty:
        pairs.notes.append(f"{path.name}: {empty:,} users have no items")


def _found_columns(path: Path, having: Sequence[str], columns: Mapping[str, str] | None) -> dict[str, int]:
    """Where user, item, time and weight are among the columns of a table."""
    plain = ["".join(c for c in name.lower() if c.isalnum()) for name in having]
    found = {}
    for role, names in _NAMES.items():
        wanted = (columns or {}).get(role)
        if wanted is not None:
            if wanted not in having:
                raise unknown(f"column of {path}", wanted, having)
            found[role] = having.index(wanted)
        else:
            at = next((plain.index(n) for n in names if n in plain), None)
            if at is not None and at not in found.values():
                found[role] = at
    for role in columns or {}:
        if role not in _NAMES:
            raise unknown("role of a column", role, _NAMES)
    missing = [r for r in ("user", "item") if r not in found]
    if missing:
        raise DataError(
            f"{path} has no column named {' and '.join(missing)}; its columns: {', '.join(having)}. Rename them, or pass "
            'columns={"user": ..., "item": ...} (--columns user=...,item=...)'
        )
    return found


def _moment(text: str) -> float:
    """Seconds: a number, or a date as ISO 8601 writes it."""
    from datetime import datetime

    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()


def _check_weight(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise DataError(f"{where}: the weight {value} is not a number; mend or remove the line")
    if value < 0:
        raise DataError(f"{where}: the weight {value:g} is negative; weights say how much an item was used, 0 or more")
    return value


def _read_table(path: Path, stream, first: str, pairs: _Pairs, columns: Mapping[str, str] | None) -> None:
    """CSV or TSV with a header, or numbers alone: user, item and columns that are not used (the LastFM files)."""
    mark = max("\t,;", key=first.count)
    reader = csv.reader(stream, delimiter=mark)
    tokens = next(csv.reader([first], delimiter=mark))
    bare = all(t.strip().lstrip("-").isdigit() for t in tokens[:2]) and len(tokens) >= 2
    if bare:
        if columns:
            raise DataError(f"{path} has no header, so its columns have no names")
        found, pairs.numbered = {"user": 0, "item": 1}, True
        if len(tokens) > 2:
            pairs.notes.append("no header: the first two columns are user and item, the others are not used")
    else:
        found = _found_columns(path, [t.strip() for t in tokens], columns)
    width, header = len(tokens), not bare
    block: dict[str, list] = {role: [] for role in found}

    def flush() -> None:
        pairs.add(block["user"], block["item"], block.get("time"), block.get("weight"))
        for values in block.values():
            values.clear()

    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}") from error
        if row is None:
            break
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        if header:
            header = False
            continue
        where = f"{path}, line {reader.line_num}"
        if len(row) != width:
            raise DataError(
                f"{where}: {len(row)} fields, expected {width} ({mark!r} between them): {mark.join(row)[:80]!r}"
            )
        if bare:
            ids = _numbers([row[0], row[1]], path, reader.line_num)
        else:
            ids = [row[found["user"]].strip(), row[found["item"]].strip()]
            if not all(ids):
                raise DataError(f"{where}: the {'user' if not ids[0] else 'item'} is empty")
        block["user"].append(ids[0])
        block["item"].append(ids[1])
        for role, read in (("time", _moment), ("weight", float)):
            if role in found:
                text = row[found[role]]
                try:
                    value = read(text)
                except ValueError:
                    what = "a number" if role == "weight" else "a number or an ISO 8601 date"
                    raise DataError(f"{where}: the {role} {text!r} is not {what}") from None
                block[role].append(_check_weight(value, where) if role == "weight" else value)
        if len(block["user"]) >= 100_000:
            flush()
    flush()


def _read_parquet(path: Path, pairs: _Pairs, columns: Mapping[str, str] | None) -> None:
    pq = need("pyarrow.parquet", "curation", "reading Parquet files")
    import pyarrow as pa

    try:
        file = pq.ParquetFile(path)
        found = _found_columns(path, file.schema_arrow.names, columns)
        names = {role: file.schema_arrow.names[at] for role, at in found.items()}
        row = 0
        for batch in file.iter_batches(columns=list(names.values())):
            values = {}
            for role, name in names.items():
                column = batch.column(name)
                if column.null_count:
                    at = next(i for i, v in enumerate(column.is_null().to_pylist()) if v)
                    raise DataError(f"{path}, row {row + at + 1}: the {role} is missing")
                if role == "time" and not pa.types.is_floating(column.type) and not pa.types.is_integer(column.type):
                    column = column.cast(pa.timestamp("us")).cast(pa.int64())
                values[role] = column.to_pylist()
            for at, value in enumerate(values.get("weight", ())):
                _check_weight(float(value), f"{path}, row {row + at + 1}")
            pairs.add(values["user"], values["item"], values.get("time"), values.get("weight"))
            row += batch.num_rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


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


# -- from pairs to interactions --------------------------------------------------------------------------------------
def _split(users, items, times, shape, how: str, fraction: float, seed: int) -> np.ndarray:
    """Which of the pairs are test pairs; every user keeps at least one to train on (but for the temporal split)."""
    draw = np.random.default_rng(seed)
    count = np.bincount(users, minlength=shape[0])
    if how == "temporal":
        if times is None:
            raise DataError("a temporal split needs a column of times; choose random or leave-one-out")
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
    pairs: _Pairs,
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
                "a user needs two or more to be tested); use more data, or split none"
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
        _check_weight(float(value), f"interaction {at + 1}")
    _check_split(split, fraction)
    pairs = _Pairs()
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
            folder of ``train.txt`` and ``test.txt``; or one file: CSV or TSV with a header, Parquet, the authors'
            ``user item item ...`` lines, or bare columns of numbers of which the first two are user and item.
        test: a file of test interactions, so that nothing is split.
        split: ``random`` (a ``fraction`` of each user's items), ``leave-one-out`` (each user's latest, or a random one where
            there are no times), ``temporal`` (the latest ``fraction`` of all), or ``none``.
        fraction, seed: of the split. Data sets with a test part of their own are not split.
        min_weight: count only interactions of at least this weight (say ratings of 4); default: all above 0.
        columns: names of the columns where they are unusual, ``{"user": ..., "item": ..., "time": ..., "weight": ...}``.
        root: instead of ``OFFPRINT_DATA``.

    Raises:
        DataError: a malformed line (the file and the line are named), a negative weight, a split without a test part.
    """
    _check_split(split, fraction)
    name, path = str(source), Path(source)
    files: tuple[Path, ...]
    if name in SETS and test is None and not path.is_file():
        files = _named(name, root)
    elif path.is_dir():
        kinds = [(a, b) for a, b in (("train", "test"), ("data1", "test1"))]
        names = {p.name: p for p in sorted(path.iterdir())}
        files = next(
            ((names[a + e], names[b + e]) for a, b in kinds for e in (".txt", ".txt.xz", ".csv", ".parquet") if {a + e, b + e} <= set(names)),
            (),
        )  # fmt: skip
        if not files:
            raise DataError(f"{path} has no train.txt and test.txt (or .txt.xz, .csv, .parquet)")
        name = path.name
    elif not path.exists() and not path.suffix:
        raise unknown("set of interactions (and no such file)", name, SETS)
    else:
        files, name = ((path, Path(test)) if test is not None else (path,)), path.name
    pairs = _Pairs()
    _read(files[0], pairs, columns)
    count, had = None, (bool(pairs.times), bool(pairs.weights))
    if len(files) > 1:
        count = pairs.count
        _read(files[1], pairs, columns)
        for what, before, columns_ in (("times", had[0], pairs.times), ("weights", had[1], pairs.weights)):
            if columns_ and sum(map(len, columns_)) != pairs.count:
                raise DataError(f"{files[0 if not before else 1]} has no {what} and the other file has; give both or neither")  # fmt: skip
    return build(pairs, name, train_count=count, split=split, fraction=fraction, seed=seed, min_weight=min_weight)


# -- sampling --------------------------------------------------------------------------------------------------------
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
