"""Pruning of Parquet files in constant memory, by passes whose results are kept until the work is done.

The passes of Density-Based Pruning: fit centroids on a sample; assign every row (label and distance, 8 bytes a row, on disk);
take the statistics of the clusters and their budgets; select; write the rows that are kept. With ``eps`` a deduplication comes
first. What a pass has finished lies in the state folder, so a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, need, unknown
from offprint.files import atomic_write, local_path
from offprint.methods.curation._kmeans import (
    BLOCK,
    CHUNK,
    GOOD,
    assign,
    cluster_count,
    member_sums,
    renormalise,
    sample_rows,
    sample_size,
    spherical_kmeans,
    unit_rows,
)
from offprint.methods.curation._select import check_mode, select, sort_keys, target
from offprint.methods.curation._tables import (
    Nearest,
    Pair,
    batches,
    check_codes,
    check_column,
    count_rows,
    open_dataset,
    unit_batches,
)
from offprint.methods.curation.concept_pruning import (
    COMPLEXITIES,
    METHODS,
    Part,
    Report,
    allocate_budgets,
    check_eps,
    dedup_count,
    describe,
    earlier_similarity,
    enough,
    guaranteed,
    survivors,
)

ENGINES = ("local", "ray")
WRITE_BYTES = 1 << 25  # copied columns that are held before they are written
Progress = Callable[[str, int, int], None]


@dataclass
class ParquetReport(Report):
    """A :class:`~offprint.methods.curation.concept_pruning.Report`, and ``out``, the file of the kept rows."""

    out: Path


# -- what is kept between passes --------------------------------------------------------------------------------------
class _Work:
    """The state folder: finished arrays under their names, unfinished ones as ``NAME.part``."""

    names = ("plan.json", "centroids.npy", "refined-*.npy", "dedup_centroids.npy", "labels", "distance", "dedup_labels",
             "dedup_distance", "dedup_vectors", "dedup_rows", "dedup_similarity", "similarity", "first", "chosen")  # fmt: skip

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
class _Job:
    """What every pass needs to know."""

    dataset: Any
    counts: list[int]
    column: str
    dim: int
    work: _Work
    engine: str
    seed: int
    iterations: int
    sample: int | None
    progress: Progress
    eps: float | None = None  # set once near-duplicates are known

    @property
    def total(self) -> int:
        return sum(self.counts)

    def chunks(self) -> Iterator[tuple[int, int]]:
        """(first row, rows), at most CHUNK at a time."""
        return ((start, min(CHUNK, self.total - start)) for start in range(0, self.total, CHUNK))

    def alive(self, first: int, count: int) -> np.ndarray:
        """Which rows are not near-duplicates."""
        if self.eps is None:
            return np.ones(count, bool)
        return survivors(self.work.read("similarity", np.float32, first, count), self.eps)

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
        left = self.total if left is None else left
        k = cluster_count(k, left)
        rows = self._numbers(sample_rows(left, sample_size(k, self.sample), self.seed))
        chosen = np.empty((len(rows), self.dim), np.float32)
        for first, unit in unit_batches(self.dataset, self.column, self.dim, rows):
            low, high = np.searchsorted(rows, (first, first + len(unit)))
            chosen[low:high] = unit[rows[low:high] - first]
            self.progress("sample", first + len(unit), self.total)
        return self.work.save(name, spherical_kmeans(chosen, k, iterations=self.iterations, seed=self.seed))

    def _numbers(self, ranks: np.ndarray) -> np.ndarray:
        """Row numbers of the rows of these ranks among those alive."""
        if self.eps is None:
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
            for first, unit in unit_batches(self.dataset, self.column, self.dim):
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
        centroids = self.fit("dedup_centroids.npy", dedup_count(self.total) if clusters is None else clusters)
        self.each(Nearest(self.column, self.dim, centroids), "dedup_labels", "dedup_distance")
        sizes = np.zeros(len(centroids), np.int64)
        for _, labels, _ in self.parts("dedup_labels", "dedup_distance"):
            sizes += np.bincount(labels, minlength=len(sizes))
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
            for first, unit in unit_batches(self.dataset, self.column, self.dim):
                labels = self.work.read("dedup_labels", np.int32, first, len(unit))
                order = np.argsort(labels, kind="stable")
                found, starts = np.unique(labels[order], return_index=True)
                for j, run in zip(found, np.split(order, starts[1:]), strict=True):
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

    def write(self, out: Path, copied: Sequence[str], made: dict[str, tuple[str, Any]], count: int) -> None:
        """Write the kept rows to a neighbour of ``out``, then rename it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [self.dataset.schema.field(c) for c in copied] + [pa.field("row", pa.int64())]
        fields += [pa.field(name, pa.from_numpy_dtype(kind)) for name, (_, kind) in made.items()]
        schema = pa.schema(fields)
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        written = 0
        try:
            with pq.ParquetWriter(part, schema) as writer:
                held: list = []
                for first, rows, arrays in self._kept(copied):
                    own = [self.work.read(file, kind, first, rows[-1] + 1)[rows] for file, kind in made.values()]
                    held.append(pa.record_batch([*arrays, *map(pa.array, (first + rows, *own))], schema=schema))
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


# -- the whole --------------------------------------------------------------------------------------------------------
def prune_parquet(
    source,
    out: str | Path,
    keep: int | float | None = None,
    *,
    method: str = "dbp",
    column: str = "embedding",
    text_column: str | None = None,
    id_column: str | None = None,
    columns: Sequence[str] = (),
    k: int | None = None,
    num_neighbors: int = 20,
    temperature: float = 0.1,
    balance: float | None = None,
    keep_mode: str = "hard",
    complexity: str = COMPLEXITIES[0],
    eps: float | None = None,
    dedup_clusters: int | None = None,
    dedup_keep: str = "hard",
    centroids=None,
    iterations: int = 100,
    refine: int = 0,
    sample: int | None = None,
    seed: int = 1234,
    engine: str = "local",
    state: str | Path | None = None,
    keep_state: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
) -> ParquetReport:
    """Choose rows of Parquet files, in memory that does not grow with their number.

    Chooses exactly the rows that the function of the method in :mod:`offprint.methods.curation.concept_pruning` chooses from the
    same embeddings with the same arguments (``refine=0``).

    Args:
        source: a Parquet file, a folder or a list of them, an Arrow table, or an Arrow dataset.
        out: Parquet file of the kept rows, in their order: the columns asked for, ``row`` (number in the source), and what the
            method computed (``cluster``, ``distance``, ``similarity``). Written whole or not at all.
        keep: share (float in (0, 1]) or number (int) of rows to keep.
        method: ``"dbp"``, ``"ssp"``, ``"semdedup"`` (by ``keep`` or by ``eps``), ``"random"``, or ``"clip-score"``.
        column: the column of embeddings, a list of numbers per row.
        text_column: for ``"clip-score"``, the embeddings of the texts.
        id_column, columns: columns to copy; ``columns="*"`` copies all. For a list of ids, ``id_column`` alone.
        k, num_neighbors, temperature, keep_mode, complexity, centroids, iterations, sample, seed: as in
            :func:`~offprint.methods.curation.concept_pruning.density_based_pruning`. The sample is held in memory.
        balance: default 0 (``"dbp"``) or 0.5 (``"ssp"``).
        eps, dedup_clusters, dedup_keep: deduplicate first. Needs the disk space of the embeddings once more, and the memory of
            the largest of ``dedup_clusters`` clusters.
        refine: further iterations of k-means over all rows, one pass each, after the fit on the sample.
        engine: ``"local"``, or ``"ray"``: the rows are assigned by Ray Data, on the cluster Ray is connected to.
        state: folder for finished passes; default ``OUT.state``. A killed run goes on from it when called again with the same
            arguments on the same files (``resume``); it is removed at the end.
        keep_state: leave the state folder, so that another budget, temperature or way to keep needs no new assignment.
        progress: called with (pass, rows done, rows in all).

    Returns:
        What was done to each cluster.

    Raises:
        DataError: no such file or column, no rows, rows (named) that are missing, of another dimension, not finite or zero.
        OffprintError: arguments that do not fit: a share outside (0, 1], k above the number of rows.
    """
    for kind, given, known in (
        ("engine", engine, ENGINES), ("method", method, METHODS), ("complexity", complexity, COMPLEXITIES)
    ):  # fmt: skip
        if given not in known:
            raise unknown(kind, given, known)
    check_mode(keep_mode), check_mode(dedup_keep), check_eps(eps)
    if (keep is None) != (method == "semdedup" and eps is not None):
        raise OffprintError(
            "semdedup is steered either by keep or by eps" if method == "semdedup" else "say how much to keep: keep=0.3"
        )
    if (text_column is None) != (method != "clip-score"):
        raise OffprintError("text_column names the embeddings of the texts for clip-score, and for that only")
    out = local_path(out, "the table of kept rows")
    folder = local_path(state, "the state folder") if state is not None else out.with_name(out.name + ".state")
    dataset = open_dataset(source)
    files = [Path(f) for f in getattr(dataset, "files", [])]
    if engine == "ray" and not files:
        raise OffprintError('engine="ray" reads Parquet files; give their paths instead of a table in memory')
    counts = count_rows(dataset)
    if sum(counts) == 0:
        raise DataError("the table is empty; there is nothing to choose from")
    dim = check_column(dataset, column)
    if text_column is not None and check_column(dataset, text_column) != dim:
        raise OffprintError(f"columns {column!r} and {text_column!r} must be embedded in one space of one dimension")
    made: dict[str, tuple[str, Any]] = {"cluster": ("labels", np.int32), "distance": ("distance", np.float32)}
    if method in ("semdedup", "random", "clip-score"):
        made = {"semdedup": {"similarity": ("similarity", np.float32)}, "random": {},
                "clip-score": {"distance": made["distance"]}}[method]  # fmt: skip
    copied = _copied(dataset, id_column, columns, ("row", *made))
    wanted = target(sum(counts), keep) if keep is not None else 0
    if any(out.resolve() == f.resolve() for f in files):
        raise OffprintError(f"{out} is one of the input files; write the kept rows elsewhere")
    if centroids is not None:
        centroids = unit_rows(centroids)
        if centroids.shape[1] != dim:
            raise OffprintError(f"embeddings have {dim} dimensions, the centroids {centroids.shape[1]}")
    passes = [column, text_column, k, eps, dedup_clusters, dedup_keep, iterations, refine, sample, seed, engine, dim]
    digest = None if centroids is None else hashlib.sha256(centroids.tobytes()).hexdigest()
    stamps = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    work = _Work(
        folder,
        json.dumps({"passes": passes, "centroids": digest, "files": stamps}) if files else None,
        resume,
    )
    job = _Job(dataset, counts, column, dim, work, engine, seed, iterations, sample, progress or (lambda *_: None))

    left = job.total
    if method == "semdedup" or eps is not None:
        job.compare(dedup_clusters, dedup_keep)
        if eps is None:
            eps = _eps(job, wanted)
        job.eps = eps
        left = job.mark(job.alive(*chunk) for chunk in job.chunks())
        if keep is not None:
            enough(wanted, left, job.total)
    report: dict[str, Any] = dict.fromkeys(("sizes", "d_intra", "d_inter", "complexity", "budgets"), np.empty(0))
    report["centroids"] = np.empty((0, dim), np.float32)
    if method == "semdedup":
        wanted = left
    elif method == "random":
        job.choose(job.ones, [wanted], "random")
    elif method == "clip-score":
        job.each(Pair(column, str(text_column), dim))
        job.choose(job.parts, [wanted], "easy")
    else:
        if centroids is None:
            centroids = job.refine(job.fit("centroids.npy", k, left), refine)
        job.each(Nearest(column, dim, centroids))
        report = describe(job.parts(), centroids, num_neighbors, complexity)
        balance = {"dbp": 0.0, "ssp": 0.5}[method] if balance is None else balance
        if method == "dbp":
            chosen = allocate_budgets(
                report["complexity"], report["sizes"], wanted, temperature=temperature, balance=balance
            )
            report["budgets"] = chosen.budgets
            job.choose(job.parts, chosen.budgets, keep_mode)
        else:
            job.choose_ssp(guaranteed(report["sizes"], wanted, balance), wanted, keep_mode)
            report["budgets"] = np.zeros(len(centroids), np.int64)
            for first, labels, _ in job.parts():
                kept = work.read("chosen", np.uint8, first, len(labels)) > 0
                report["budgets"] += np.bincount(labels[kept], minlength=len(centroids))
    job.write(out, copied, made, wanted)
    if not keep_state:
        work.clear()
    removed = job.total - left
    return ParquetReport(total=job.total, duplicates=removed, count=wanted, out=out, **report)


def _eps(job: _Job, wanted: int) -> float:
    """The eps of :func:`~offprint.methods.curation.concept_pruning.semdedup` that keeps the ``wanted`` least similar rows."""

    def parts() -> Iterator[Part]:
        for first, count in job.chunks():
            yield first, np.zeros(count, np.int32), job.work.read("similarity", np.float32, first, count)

    job.choose(parts, [wanted], "easy")
    highest = max(
        float(np.max(similarity, where=job.work.read("chosen", np.uint8, first, len(similarity)) > 0, initial=0))
        for first, _, similarity in parts()
    )
    return 1 - highest


def _copied(dataset, id_column: str | None, columns: Sequence[str], made: Sequence[str]) -> list[str]:
    """The columns to copy, ids first."""
    names = dataset.schema.names
    others = list(names if columns == "*" else [columns] if isinstance(columns, str) else columns)
    copied = [*([id_column] if id_column and id_column not in others else []), *others]
    for name in copied:
        if name not in names:
            raise DataError(f"there is no column {name!r} in the table; its columns: {', '.join(names) or 'none'}")
        if name in made:
            raise OffprintError(
                f"the table has a column {name!r} like the one that is written; name columns without it"
            )
    return copied
