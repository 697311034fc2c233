"""Pruning of Parquet files in constant memory, by passes whose results are kept until the work is done.

The passes of Density-Based Pruning: fit centroids on a sample; assign every row (label and distance, 8 bytes a row, on disk);
take the statistics of the clusters and their budgets; select; write the rows that are kept. With ``eps`` a deduplication comes
first. What a pass has finished lies in the state folder, so a run that was killed goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, unknown
from offprint.files import local_path
from offprint.methods.curation._kmeans import unit_rows
from offprint.methods.curation._passes import Job, Progress, Work
from offprint.methods.curation._select import check_mode, target
from offprint.methods.curation._tables import Nearest, Pair, check_column, count_rows, open_dataset
from offprint.methods.curation.concept_pruning import (
    COMPLEXITIES,
    METHODS,
    Part,
    Report,
    allocate_budgets,
    check_eps,
    describe,
    enough,
    guaranteed,
)

ENGINES = ("local", "ray")


@dataclass
class ParquetReport(Report):
    """A :class:`~offprint.methods.curation.concept_pruning.Report`; ``out``, the file of the kept rows; and ``left_out``, how many rows
    had no usable embedding, by why (``missing``, ``not finite``, ``all zeros``)."""

    out: Path
    left_out: dict[str, int] = field(default_factory=dict)


def prune_parquet(
    source,
    out: str | Path,
    keep: int | float | None = None,
    *,
    method: str = "dbp",
    column: str = "embedding",
    text_column: str | None = None,
    id_column: str | None = None,
    columns: str | Sequence[str] | None = None,
    on_error: str = "stop",
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
        id_column, columns: columns to copy: ``"all"`` (or ``"*"``), ``"none"``, or names. Default all the table's own; with an
            ``id_column`` that alone, which makes a list of ids. Where the table has a column called like one that is computed and all
            are copied, the computed one is called ``pruning_row`` and so on.
        on_error: rows without a usable embedding: ``"stop"`` refuses them, naming the first; ``"skip"`` leaves out those that are
            missing (null), not finite or all zeros, and counts them. ``keep`` as a share is then of the others.
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
        ("engine", engine, ENGINES), ("method", method, METHODS), ("complexity", complexity, COMPLEXITIES),
        ("way to treat rows that cannot be used", on_error, ("stop", "skip")),
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
    skip = on_error == "skip"
    dim = check_column(dataset, column, skip)
    if text_column is not None and check_column(dataset, text_column, skip) != dim:
        raise OffprintError(f"columns {column!r} and {text_column!r} must be embedded in one space of one dimension")
    made: dict[str, tuple[str, Any]] = {"cluster": ("labels", np.int32), "distance": ("distance", np.float32)}
    if method in ("semdedup", "random", "clip-score"):
        made = {"semdedup": {"similarity": ("similarity", np.float32)}, "random": {},
                "clip-score": {"distance": made["distance"]}}[method]  # fmt: skip
    copied, named = _copied(dataset, id_column, columns, ("row", *made))
    wanted = target(sum(counts), keep) if keep is not None else 0
    if any(out.resolve() == f.resolve() for f in files):
        raise OffprintError(f"{out} is one of the input files; write the kept rows elsewhere")
    if centroids is not None:
        centroids = unit_rows(centroids)
        if centroids.shape[1] != dim:
            raise OffprintError(f"embeddings have {dim} dimensions, the centroids {centroids.shape[1]}")
    passes = [
        on_error,
        column,
        text_column,
        k,
        eps,
        dedup_clusters,
        dedup_keep,
        iterations,
        refine,
        sample,
        seed,
        engine,
        dim,
    ]
    digest = None if centroids is None else hashlib.sha256(centroids.tobytes()).hexdigest()
    stamps = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    work = Work(
        folder,
        json.dumps({"passes": passes, "centroids": digest, "files": stamps}) if files else None,
        resume,
    )
    job = Job(dataset, counts, column, dim, work, engine, seed, iterations, sample, progress or (lambda *_: None), skip)
    if skip:
        job.sort_out([column] if text_column is None else [column, text_column])
        if not job.useful:
            raise DataError(
                f"not one of the {job.total:,} rows has an embedding that can be used ({_said(job.left_out)})"
            )
        wanted = target(job.useful, keep) if keep is not None else 0

    left = job.useful
    if method == "semdedup" or eps is not None:
        job.compare(dedup_clusters, dedup_keep)
        if eps is None:
            eps = _eps(job, wanted)
        job.eps = eps
        left = job.mark(job.alive(*chunk) for chunk in job.chunks())
        if keep is not None:
            enough(wanted, left, job.useful)
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
    job.write(out, copied, {name: made.get(key) for key, name in named.items()}, wanted)
    left_out = job.left_out
    if not keep_state:
        work.clear()
    removed = job.useful - left
    return ParquetReport(
        total=job.total, duplicates=removed, count=wanted, out=out, left_out=left_out, **report
    )  # fmt: skip


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in counts.items())


def _eps(job: Job, wanted: int) -> float:
    """The eps of :func:`~offprint.methods.curation.concept_pruning.semdedup` that keeps the ``wanted`` least similar rows."""

    def parts() -> Iterator[Part]:
        for first, count in job.chunks():
            yield (
                first,
                np.where(job.usable(first, count), 0, -1),
                job.work.read("similarity", np.float32, first, count),
            )

    job.choose(parts, [wanted], "easy")
    highest = max(
        float(np.max(similarity, where=job.work.read("chosen", np.uint8, first, len(similarity)) > 0, initial=0))
        for first, _, similarity in parts()
    )
    return 1 - highest


def _copied(
    dataset, id_column: str | None, columns: str | Sequence[str] | None, made: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The columns to copy, ids first; and what each computed column is called."""
    names = dataset.schema.names
    if columns is None:
        columns = "none" if id_column else "all"
    whole = columns in ("all", "*") and (columns == "*" or columns not in names)
    others = (
        list(names) if whole else [] if columns == "none" else [columns] if isinstance(columns, str) else list(columns)
    )
    copied = [*([id_column] if id_column and id_column not in others else []), *others]
    for name in copied:
        if name not in names:
            raise DataError(f"there is no column {name!r} in the table; its columns: {', '.join(names) or 'none'}")
        if name in made and not whole:
            raise OffprintError(
                f"the table has a column {name!r} like the one that is written; name columns without it"
            )
    return copied, {name: name if name not in copied else _free(f"pruning_{name}", names) for name in made}


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, with underscores after it until it is nobody's."""
    while name in taken:
        name += "_"
    return name
