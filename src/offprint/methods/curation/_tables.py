"""Embeddings in Parquet files: read batch by batch, checked row by row, and the kept ids as a filter for shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from offprint.errors import DataError, need
from offprint.files import fetched, filesystem, local_path, scheme
from offprint.methods.curation._kmeans import BLOCK, DIMENSION, GOOD, MISSING, assign, normalise, pair_distance, refuse


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turn Arrow's errors into ours."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{what} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def open_dataset(source):
    """A file, a folder (its ``.parquet`` files at any depth), several of them, an Arrow table or dataset, as a dataset."""
    need("pyarrow", "curation", "reading Parquet")
    import pyarrow as pa
    import pyarrow.dataset as ds

    if isinstance(source, ds.Dataset):
        return source
    if isinstance(source, pa.Table):
        return ds.dataset(source)
    files: list[str] = []
    for path in [source] if isinstance(source, str | os.PathLike) else source:
        if scheme(path) not in ("", "file"):
            files += map(str, _remote(path))
            continue
        path = local_path(path)
        if not path.exists():
            raise DataError(f"there is no Parquet file or folder at {str(path)!r}")
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not found:
            raise DataError(f"the folder {str(path)!r} holds no .parquet files")
        files += map(str, found)
    if not files:
        raise DataError("no Parquet files were given")
    with _readable(", ".join(files[:3]) + (", ..." if len(files) > 3 else "")):
        return ds.dataset(files, format="parquet")


def _remote(address: str | os.PathLike) -> list[Path]:
    """The Parquet file of an address, or all that lie in the folder there, fetched."""
    system, path = filesystem(str(address), "the table")
    if path.endswith((".parquet", ".pq")):
        return [fetched(str(address), "the table")]
    found = sorted(system.glob(f"{path.rstrip('/')}/**/*.parquet"))
    if not found:
        raise DataError(f"there are no .parquet files at {address}")
    return [fetched(system.unstrip_protocol(f), "the table") for f in found]


def count_rows(dataset) -> list[int]:
    """Rows of each file, in order."""
    counts = []
    for fragment in dataset.get_fragments():
        with _readable(getattr(fragment, "path", "the table")):
            counts.append(fragment.count_rows())
    return counts


def _pieces(dataset, columns: Sequence[str]):
    """The row groups of a dataset in order: (where, rows, function that gives their record batches).

    A Parquet file is decoded page by page where its columns have the types of the whole, so that even a single huge row group
    does not have to fit into memory.
    """
    import pyarrow.parquet as pq

    for fragment in dataset.get_fragments():
        where = getattr(fragment, "path", "the table")
        options = {"schema": dataset.schema, "columns": list(columns), "batch_size": BLOCK, "use_threads": False}
        if not hasattr(fragment, "split_by_row_group"):
            yield where, fragment.count_rows(), partial(fragment.to_batches, **options)
            continue
        types = {field.name: field.type for field in fragment.physical_schema}
        plain = all(types.get(c) == dataset.schema.field(c).type for c in columns)
        file = pq.ParquetFile(fragment.open(), buffer_size=1 << 20, pre_buffer=False) if plain else None
        for piece in fragment.split_by_row_group():
            count, groups = sum(g.num_rows for g in piece.row_groups), [g.id for g in piece.row_groups]
            if file is None:
                yield where, count, partial(piece.to_batches, **options)
            else:
                read = partial(file.iter_batches, row_groups=groups, columns=list(columns), use_threads=False)
                yield where, count, partial(read, BLOCK)


def batches(dataset, columns: Sequence[str], start: int = 0, wanted: np.ndarray | None = None):
    """(first row, record batch) in order, from row ``start`` on; row groups without any of the ``wanted`` rows are passed over."""
    row = 0
    for where, count, read in _pieces(dataset, columns):
        use = row + count > start
        if wanted is not None:
            low, high = np.searchsorted(wanted, (row, row + count))
            use = use and high > low
        if use:
            at = row
            with _readable(where):
                for batch in read():
                    skip = min(max(start - at, 0), batch.num_rows)
                    if batch.num_rows > skip:
                        yield at + skip, batch.slice(skip)
                    at += batch.num_rows
        row += count


def check_column(dataset, column: str, skip: bool = False) -> int:
    """The dimensions of a column of vectors; refuses one that is missing or holds something else.

    Args:
        skip: rows without a vector may come first.
    """
    import pyarrow as pa

    names = dataset.schema.names
    if column not in names:
        raise DataError(f"there is no column {column!r} in the table; its columns: {', '.join(names) or 'none'}")
    kind = dataset.schema.field(column).type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"column {column!r} holds {kind}, not vectors of numbers; name the embeddings with column=")
    if pa.types.is_fixed_size_list(kind):
        dim = kind.list_size
    else:
        values = (value for _, batch in batches(dataset, [column]) for value in batch.column(0))
        first = next((value for value in values if value.is_valid or not skip), None)
        if first is None:
            raise DataError(f"column {column!r} holds no vector at all, in no row")
        if not first.is_valid:
            raise refuse(MISSING, 0, 0)
        dim = len(first)
    if dim == 0:
        raise DataError(f"the vectors of column {column!r} have no dimensions")
    return dim


def vectors(batch, column: str, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """A column of a batch as unit rows (n, dim) float32, and a code per row (0: good)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = batch.column(column)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    lengths = pc.fill_null(pc.list_value_length(array), -1).to_numpy(zero_copy_only=False)
    codes = np.where(lengths == dim, GOOD, np.where(lengths < 0, MISSING, DIMENSION)).astype(np.int32)
    good = codes == GOOD
    values = (array if good.all() else array.filter(pa.array(good))).flatten().to_numpy(zero_copy_only=False)
    if good.all():
        return normalise(values.reshape(-1, dim))
    unit = np.zeros((len(codes), dim), np.float32)
    unit[good], codes[good] = normalise(values.reshape(-1, dim))
    return unit, codes


def unit_batches(
    dataset, column: str, dim: int, wanted: np.ndarray | None = None, *, skip: bool = False
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, unit rows) in order; with ``skip`` a row that cannot be used is zeros, and otherwise refused."""
    for first, batch in batches(dataset, [column], wanted=wanted):
        unit, codes = vectors(batch, column, dim)
        if not skip:
            check_codes(codes, first, dim)
        yield first, unit


def check_codes(codes: np.ndarray, first: int, dim: int) -> None:
    """Refuse rows that cannot be used, naming the first."""
    if codes.any():
        row = int(np.argmax(codes != GOOD))
        raise refuse(int(codes[row]), first + row, dim)


# -- what is computed from each row, here or on a worker: a label (minus its code for a row that cannot be used), a distance --
class Nearest:
    """The centroid nearest to an embedding, and the distance to it."""

    def __init__(self, column: str, dim: int, centroids: np.ndarray):
        self.columns, self.dim, self.centroids = [column], dim, centroids

    def __call__(self, batch) -> tuple[np.ndarray, np.ndarray]:
        unit, codes = vectors(batch, self.columns[0], self.dim)
        labels, distance = assign(unit, self.centroids)
        return np.where(codes == GOOD, labels, -codes).astype(np.int32), distance


class Pair:
    """Label 0, and the distance between two embeddings of a row."""

    def __init__(self, column: str, other: str, dim: int):
        self.columns, self.dim = [column, other], dim

    def __call__(self, batch) -> tuple[np.ndarray, np.ndarray]:
        (a, bad_a), (b, bad_b) = (vectors(batch, c, self.dim) for c in self.columns)
        return -np.maximum(bad_a, bad_b).astype(np.int32), pair_distance(a, b)


# -- reading with what was kept -------------------------------------------------------------------------------------------
class KeptIds:
    """Was this example kept? A filter for shards while they are read.

    ``webdataset.WebDataset(urls).select(KeptIds("kept.parquet", "key"))`` passes the kept examples on. An id takes 8 bytes of
    memory: the ids' 64-bit digests, sorted (a wrong yes has odds of the number of ids in 2^64).

    Args:
        path: what :func:`~offprint.methods.curation.parquet.prune_parquet` wrote.
        id_column: its column of ids.
        key: the field of a sample that holds its id.
    """

    def __init__(self, path: str | Path, id_column: str, key: str = "__key__"):
        dataset = open_dataset(path)
        if id_column not in dataset.schema.names:
            raise DataError(
                f"there is no column {id_column!r} in {path}; its columns: {', '.join(dataset.schema.names)}"
            )
        self.key = key
        parts = [
            np.fromiter(map(_digest, batch.column(0).to_pylist()), np.uint64, batch.num_rows)
            for _, batch in batches(dataset, [id_column])
        ]
        self.digests = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, name: object) -> bool:
        digest = _digest(name)
        at = int(np.searchsorted(self.digests, np.uint64(digest)))
        return at < len(self.digests) and int(self.digests[at]) == digest

    def __call__(self, sample) -> bool:
        return sample[self.key] in self


def _digest(name: object) -> int:
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "little")
