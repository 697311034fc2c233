"""What pruning does to Parquet files, pass by pass: the state folder, the passes over all rows, and their distribution by Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, need
from offprint.files import atomic_write
from offprint.methods.curation._kmeans import (
    BLOCK,
    CHUNK,
    DIMENSION,
    GOOD,
    INFINITE,
    MISSING,
    ZERO,
    assign,
    cluster_count,
    member_sums,
    renormalise,
    sample_rows,
    sample_size,
    spherical_kmeans,
)
from offprint.methods.curation._select import select, sort_keys
from offprint.methods.curation._tables import Nearest, Pair, batches, check_codes, unit_batches, vectors
from offprint.methods.curation.concept_pruning import Part, dedup_count, earlier_similarity, survivors

WRITE_BYTES = 1 << 25  # copied columns that are held before they are written
REASONS = {MISSING: "missing", INFINITE: "not finite", ZERO: "all zeros"}
Progress = Callable[[str, int, int], None]


# -- what is kept between passes --------------------------------------------------------------------------------------
class Work:
    """The state folder: finished arrays under their names, unfinished ones as ``NAME.part``."""

    names = ("plan.json", "centroids.npy", "refined-*.npy", "dedup_centroids.npy", "labels", "distance", "dedup_labels",
             "dedup_distance", "codes", "dedup_vectors", "dedup_rows", "dedup_similarity", "similarity", "first", "chosen")  # fmt: skip

    def __init__(self, folder: Path, plan: str | None, resume: bool):
        self.folder = folder
        marker = folder / "plan.json"
        if folder.exists() and not marker.exists() and any(folder.iterdir()):
            raise OffprintError(f"{folder} is not a state folder of pruning; name an empty or a new one with state=")
        if not resume or plan is None or not marker.exists() or marker.read_text() != plan:
            self.clear()
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(marker, plan or "{}")

    def path(self, name: str) -> Path:
        return self.folder / name

    def has(self, *names: str) -> bool:
        return all(self.path(n).exists() for n in names)

    def save(self, name: str, array: np.ndarray) -> np.ndarray:
        with self.path(name + ".part").open("wb") as stream:
            np.save(stream, array)
        self.finish(name)
        return array

    def finish(self, *names: str) -> None:
        for name in names:
            os.replace(self.path(name + ".part"), self.path(name))

    def clear(self) -> None:
        """Remove our own files, and the folder if nothing else is in it."""
        for name in self.names:
            for path in (*self.folder.glob(name), *self.folder.glob(name + ".part")):
                path.unlink()
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def read(self, name: str, kind, start: int, count: int) -> np.ndarray:
        return np.fromfile(self.path(name), kind, count, offset=start * np.dtype(kind).itemsize)


# -- passes -----------------------------------------------------------------------------------------------------------
@dataclass
class Job:
    """What every pass needs to know."""

    dataset: Any
    counts: list[int]
    column: str
    dim: int
    work: Work
    engine: str
    seed: int
    iterations: int
    sample: int | None
    progress: Progress
    skip: bool = False  # leave out rows that cannot be used
    eps: float | None = None  # set once near-duplicates are known

    @property
    def total(self) -> int:
        return sum(self.counts)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first row, rows), at most CHUNK at a time."""
        return ((start, min(CHUNK, self.total - start)) for start in range(0, self.total, CHUNK))

    def sort_out(self, columns: Sequence[str]) -> None:
        """Write one byte per row: its code (0: good). Rows of another dimension are refused: they are not gaps, but another encoder's."""
        if self.work.has("codes"):
            return
        with self.work.path("codes.part").open("wb") as stream:
            for first, batch in batches(self.dataset, columns):
                codes = np.max([vectors(batch, column, self.dim)[1] for column in columns], 0)
                check_codes(np.where(codes == DIMENSION, codes, GOOD), first, self.dim)
                codes.astype(np.uint8).tofile(stream)
                self.progress("check", first + len(codes), self.total)
        self.work.finish("codes")

    def usable(self, first: int, count: int) -> np.ndarray:
        """Which rows have an embedding."""
        return self.work.read("codes", np.uint8, first, count) == GOOD if self.skip else np.ones(count, bool)

    @cached_property
    def left_out(self) -> dict[str, int]:
        """How many rows cannot be used, by why."""
        counts = np.zeros(1 + max(*REASONS, DIMENSION), np.int64)
        for first, count in self.chunks() if self.skip else ():
            counts += np.bincount(self.work.read("codes", np.uint8, first, count), minlength=len(counts))
        return {why: int(counts[code]) for code, why in REASONS.items() if counts[code]}

    @property
    def useful(self) -> int:
        """How many rows have an embedding."""
        return self.total - sum(self.left_out.values())

    def alive(self, first: int, count: int) -> np.ndarray:
        """Which rows have an embedding and are not near-duplicates."""
        usable = self.usable(first, count)
        if self.eps is None:
            return usable
        return usable & survivors(self.work.read("similarity", np.float32, first, count), self.eps)

    def parts(self, labels: str = "labels", distance: str = "distance") -> Iterator[Part]:
        for first, count in self.chunks():
            yield first, *(self.work.read(n, k, first, count) for n, k in ((labels, np.int32), (distance, np.float32)))

    def ones(self) -> Iterator[Part]:
        """Every row that is alive in one group, at no distance."""
        for first, count in self.chunks():
            yield first, np.where(self.alive(first, count), 0, -1), np.zeros(count, np.float32)

    def fit(self, name: str, k: int | None, left: int | None = None) -> np.ndarray:
        """Centroids from a sample of the rows that are alive, as :func:`._kmeans.fit` draws it."""
        if self.work.has(name):
            return np.load(self.work.path(name))
        left = self.useful if left is None else left
        k = cluster_count(k, left)
        rows = self._numbers(sample_rows(left, sample_size(k, self.sample), self.seed))
        chosen = np.empty((len(rows), self.dim), np.float32)
        for first, unit in unit_batches(self.dataset, self.column, self.dim, rows, skip=self.skip):
            low, high = np.searchsorted(rows, (first, first + len(unit)))
            chosen[low:high] = unit[rows[low:high] - first]
            self.progress("sample", first + len(unit), self.total)
        return self.work.save(name, spherical_kmeans(chosen, k, iterations=self.iterations, seed=self.seed))

    def _numbers(self, ranks: np.ndarray) -> np.ndarray:
        """Row numbers of the rows of these ranks among those alive."""
        if self.eps is None and not self.skip:
            return ranks
        found, seen = [], 0
        for first, count in self.chunks():
            rows = np.flatnonzero(self.alive(first, count))
            low, high = np.searchsorted(ranks, (seen, seen + len(rows)))
            found.append(first + rows[ranks[low:high] - seen])
            seen += len(rows)
        return np.concatenate(found)

    def refine(self, centroids: np.ndarray, passes: int) -> np.ndarray:
        """Iterations of spherical k-means over every row that is alive."""
        for i in range(passes):
            name = f"refined-{i}.npy"
            if self.work.has(name):
                centroids = np.load(self.work.path(name))
                continue
            sums = np.zeros((len(centroids), self.dim))
            for first, unit in unit_batches(self.dataset, self.column, self.dim, skip=self.skip):
                labels = np.where(self.alive(first, len(unit)), assign(unit, centroids)[0], -1)
                sums += member_sums(unit, labels, len(centroids))
                self.progress(f"refine {i + 1}", first + len(unit), self.total)
            centroids = self.work.save(name, renormalise(sums, centroids))
        return centroids

    def each(self, function: Nearest | Pair, labels: str = "labels", distance: str = "distance") -> None:
        """Write the label and the distance of every row; a dead row gets -1 and 0. Goes on where a killed pass stopped.

        On Ray it goes on from the last file that was finished.
        """
        if self.work.has(labels, distance):
            return
        paths = [self.work.path(f"{n}.part") for n in (labels, distance)]
        done = min(p.stat().st_size for p in paths) // 4 if all(p.exists() for p in paths) else 0
        if self.engine == "ray":
            ends = np.cumsum([0, *self.counts])
            file = int(np.searchsorted(ends, done, side="right")) - 1
            done = int(ends[file])
            source = _on_ray(self.dataset, file, function) if done < self.total else ()
        else:
            source = (function(batch) for _, batch in batches(self.dataset, function.columns, done))
        with paths[0].open("ab") as one, paths[1].open("ab") as two:
            for stream in (one, two):
                stream.truncate(4 * done)
            for found, away in source:
                if not self.skip:
                    check_codes(np.where(found < 0, -found, GOOD), done, self.dim)
                alive = self.alive(done, len(found))
                np.where(alive, found, -1).astype(np.int32).tofile(one)
                np.where(alive, away, 0).astype(np.float32).tofile(two)
                done += len(found)
                self.progress("assign", done, self.total)
        if done != self.total:
            raise DataError(f"{done} rows were read where {self.total} were counted; the files changed, start again")
        self.work.finish(labels, distance)

    def compare(self, clusters: int | None, mode: str) -> None:
        """Write each row's largest cosine with an earlier one of its cluster. Memory: the largest cluster; disk: the vectors once."""
        work = self.work
        if work.has("similarity"):
            return
        centroids = self.fit("dedup_centroids.npy", dedup_count(self.useful) if clusters is None else clusters)
        self.each(Nearest(self.column, self.dim, centroids), "dedup_labels", "dedup_distance")
        sizes = np.zeros(len(centroids), np.int64)
        for _, labels, _ in self.parts("dedup_labels", "dedup_distance"):
            sizes += np.bincount(labels[labels >= 0], minlength=len(sizes))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        if not work.has("dedup_vectors", "dedup_rows"):
            self._gather(ends[:-1].copy())
        far = np.memmap(work.path("dedup_distance"), np.float32, "r")
        with work.path("dedup_similarity.part").open("ab") as stream:
            begin = int(np.searchsorted(ends, stream.tell() // 4, side="right")) - 1
            stream.truncate(4 * int(ends[begin]))
            for j in range(begin, len(sizes)):
                rows = work.read("dedup_rows", np.int64, ends[j], sizes[j])
                unit = work.read("dedup_vectors", np.float32, ends[j] * self.dim, sizes[j] * self.dim)
                order = np.lexsort((rows, sort_keys(rows, far[rows], mode, self.seed)))
                found = np.empty(len(rows), np.float32)
                found[order] = earlier_similarity(unit.reshape(-1, self.dim)[order])
                found.tofile(stream)
                self.progress("compare", int(ends[j + 1]), self.total)
        work.finish("dedup_similarity")
        whole = np.memmap(work.path("similarity.part"), np.float32, "w+", shape=(self.total,))
        for first, count in self.chunks():
            rows = work.read("dedup_rows", np.int64, first, count)
            whole[rows] = work.read("dedup_similarity", np.float32, first, count)
        whole.flush()
        work.finish("similarity")
        for name in ("dedup_vectors", "dedup_rows", "dedup_similarity"):
            work.path(name).unlink()

    def _gather(self, place: np.ndarray) -> None:
        """Write the vectors cluster by cluster; ``place`` is where each cluster begins."""
        names = ("dedup_vectors", "dedup_rows")
        files = [os.open(self.work.path(n + ".part"), os.O_RDWR | os.O_CREAT | os.O_TRUNC) for n in names]
        try:
            for first, unit in unit_batches(self.dataset, self.column, self.dim, skip=self.skip):
                labels = self.work.read("dedup_labels", np.int32, first, len(unit))
                order = np.argsort(labels, kind="stable")
                found, starts = np.unique(labels[order], return_index=True)
                for j, run in zip(found, np.split(order, starts[1:]), strict=True):
                    if j < 0:
                        continue
                    os.pwrite(files[0], unit[run].tobytes(), int(place[j]) * self.dim * 4)
                    os.pwrite(files[1], (first + run).astype(np.int64).tobytes(), int(place[j]) * 8)
                    place[j] += len(run)
                self.progress("gather", first + len(unit), self.total)
        finally:
            for file in files:
                os.close(file)
        self.work.finish(*names)

    def choose(self, parts: Callable[[], Iterator[Part]], budgets, mode: str, name: str = "chosen") -> int:
        """Write one byte per row, 1 where it is kept."""

        def keyed() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for first, labels, distance in parts():
                yield labels, sort_keys(np.arange(first, first + len(labels)), distance, mode, self.seed)

        return self.mark(select(keyed, budgets), name)

    def mark(self, flags: Iterable[np.ndarray], name: str = "chosen") -> int:
        """Write flags as one byte per row; how many are set."""
        count = 0
        with self.work.path(name + ".part").open("wb") as stream:
            for flag in flags:
                flag.astype(np.uint8).tofile(stream)
                count += int(flag.sum())
        self.work.finish(name)
        return count

    def choose_ssp(self, least: np.ndarray, wanted: int, mode: str) -> None:
        """Each cluster's guaranteed rows first, the rest by one global cut."""
        self.choose(self.parts, least, mode, "first")

        def others() -> Iterator[Part]:
            for first, labels, distance in self.parts():
                taken = self.work.read("first", np.uint8, first, len(labels)) > 0
                yield first, np.where(taken | (labels < 0), -1, 0), distance

        self.choose(others, [wanted - int(least.sum())], mode)
        pieces = ([self.work.read(n, np.uint8, *chunk) for n in ("first", "chosen")] for chunk in self.chunks())
        self.mark((a | b) > 0 for a, b in pieces)

    def write(self, out: Path, copied: Sequence[str], made: dict[str, tuple[str, Any] | None], count: int) -> None:
        """Write the kept rows to a neighbour of ``out``, then rename it.

        ``made`` says what comes after the copied columns: name to (file, kind), or to ``None`` for the number of the row.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [self.dataset.schema.field(c) for c in copied]
        fields += [
            pa.field(name, pa.int64() if how is None else pa.from_numpy_dtype(how[1])) for name, how in made.items()
        ]
        schema = pa.schema(fields)
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        written = 0
        try:
            with pq.ParquetWriter(part, schema) as writer:
                held: list = []
                for first, rows, arrays in self._kept(copied):
                    own = [
                        first + rows if how is None else self.work.read(*how, first, rows[-1] + 1)[rows]
                        for how in made.values()
                    ]
                    held.append(pa.record_batch([*arrays, *map(pa.array, own)], schema=schema))
                    written += len(rows)
                    if sum(b.nbytes for b in held) >= WRITE_BYTES:
                        writer.write_table(pa.Table.from_batches(held, schema))
                        held = []
                    self.progress("write", written, count)
                writer.write_table(pa.Table.from_batches(held, schema))
            os.replace(part, out)
        finally:
            part.unlink(missing_ok=True)

    def _kept(self, copied: Sequence[str]):
        """(first row, positions kept from there, their copied columns) in order, where any is kept."""
        import pyarrow as pa

        pieces = batches(self.dataset, copied) if copied else ((first, None) for first, _ in self.chunks())
        for first, batch in pieces:
            count = min(CHUNK, self.total - first) if batch is None else batch.num_rows
            rows = np.flatnonzero(self.work.read("chosen", np.uint8, first, count))
            if len(rows):
                taken = batch.take(pa.array(rows)) if batch is not None else None
                yield first, rows, [taken.column(c) for c in copied]


# -- Ray --------------------------------------------------------------------------------------------------------------
def _as_table(batch, function: Nearest | Pair):
    """On a worker."""
    import pyarrow as pa

    return pa.table(dict(zip(("label", "distance"), function(batch), strict=True)))


def _on_ray(dataset, file: int, function: Nearest | Pair) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a function gives for the rows of the files from number ``file`` on, in their order, computed by Ray Data."""
    ray = need("ray", "curation", 'engine="ray"')
    need("ray.data", "curation", 'engine="ray"')
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        rows = ray.data.read_parquet(list(dataset.files)[file:], columns=function.columns)
        found = rows.map_batches(_as_table, batch_format="pyarrow", batch_size=BLOCK, fn_kwargs={"function": function})
        for batch in found.iter_batches(batch_format="numpy", batch_size=None):
            yield batch["label"], batch["distance"]
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if started:
            ray.shutdown()
