"""``offprint prune EMBEDDINGS.parquet --keep 0.3``: which rows of a collection are worth training on."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, errors, out


def prune(
    source: list[str] = typer.Argument(
        ..., help="Parquet files, or folders of them; s3://, gs://, hf:// and https:// too."
    ),
    keep: str = typer.Option(None, help="Share of the rows (0.3) or number of rows (1000)."),
    output: Path = typer.Option(None, "--out", help="Parquet file of the kept rows; default SOURCE_kept.parquet."),
    column: str = typer.Option("embedding", help="The column of embeddings."),
    ids: str = typer.Option(None, help="A column of ids, copied first."),
    columns: str = typer.Option(
        "all", help="The table's own columns to keep: all, none, or names with commas between."
    ),
    copy: list[str] = typer.Option([], hidden=True, help="The old name of --columns; may be repeated."),
    on_error: str = typer.Option(
        "stop", help="Rows without a usable embedding (null, NaN, zeros): stop, or skip, which counts them."
    ),
    ids_out: Path = typer.Option(None, help="Also write the kept ids to this text file, one a line (needs --ids)."),
    report: Path = typer.Option(None, help="Also write what happened to each cluster to this .csv or .json file."),
    method: str = typer.Option(None, help="dbp (default), ssp, semdedup, random or clip-score."),
    variant: str = typer.Option(
        None, help="The paper's settings to start from: dbp_laion, dbp_datacomp_medium, ssp, semdedup."
    ),
    text_column: str = typer.Option(None, help="Embeddings of the texts, for clip-score."),
    clusters: int = typer.Option(None, "--clusters", "-k", help="Default 500, at most one per 20 rows."),
    neighbors: int = typer.Option(None, help="Nearest centroids in the distance between clusters."),
    temperature: float = typer.Option(None, help="Of the softmax over complexities."),
    balance: float = typer.Option(None, help="Share of an even split that every cluster is guaranteed."),
    keep_mode: str = typer.Option(None, help="hard (far from the centroid), easy or random."),
    complexity: str = typer.Option(None, help="dintra*dinter, dintra, dinter, clustersize or uniform."),
    eps: float = typer.Option(None, help="First remove near-duplicates of cosine above 1 - eps."),
    dedup_clusters: int = typer.Option(None, help="Clusters in which duplicates are looked for."),
    dedup_keep: str = typer.Option(None, help="Which duplicate stays: hard, easy or random."),
    iterations: int = typer.Option(None, help="Of k-means, on a sample."),
    refine: int = typer.Option(None, help="Further iterations of k-means over all rows."),
    seed: int = typer.Option(None, help="Of everything random."),
    engine: str = typer.Option("local", help="local, or ray."),
    state: Path = typer.Option(None, help="Folder for finished passes; default OUT.state."),
    keep_state: bool = typer.Option(False, help="Leave it, so that another budget needs no new clustering."),
    resume: bool = typer.Option(True, help="Go on from a run that was interrupted."),
) -> None:
    """Density-Based Pruning (or a baseline) of embeddings, in memory that does not grow with the number of rows."""
    from offprint.errors import OffprintError, unknown
    from offprint.methods.curation.concept_pruning import VARIANTS
    from offprint.methods.curation.parquet import prune_parquet

    if variant is not None and variant not in VARIANTS:
        raise unknown("variant", variant, VARIANTS)
    if ids_out is not None and ids is None:
        raise OffprintError("--ids-out needs --ids COLUMN, the column of ids")
    if report is not None and report.suffix not in (".csv", ".json"):
        raise OffprintError(f"--report {report}: give a file that ends in .csv or .json")
    given = {
        "method": method, "k": clusters, "num_neighbors": neighbors, "temperature": temperature, "balance": balance,
        "keep_mode": keep_mode, "complexity": complexity, "eps": eps, "dedup_clusters": dedup_clusters,
        "dedup_keep": dedup_keep, "iterations": iterations, "refine": refine, "seed": seed,
    }  # fmt: skip
    options = (VARIANTS[variant] if variant else {}) | {
        name: value for name, value in given.items() if value is not None
    }
    file = output or _beside(source[0])
    with bar() as progress:
        task, now = progress.add_task("counting", total=None), ""

        def advance(name: str, done: int, total: int) -> None:
            nonlocal now
            if name != now:
                now = name
                progress.reset(task)
            progress.update(task, description=name, completed=done, total=total)

        result = prune_parquet(
            source, file, _number(keep), column=column, text_column=text_column, id_column=ids,
            columns=_columns(columns, copy), on_error=on_error, engine=engine, state=state, keep_state=keep_state, resume=resume,
            progress=advance, **options,
        )  # fmt: skip
    if ids_out is not None:
        _write_ids(file, str(ids), ids_out)
    if report is not None:
        _write_report(result, report)
    removed = f", {result.duplicates:,} near-duplicates removed" if result.duplicates else ""
    out.print(f"{file}: {result.count:,} of {result.total:,} rows{removed}", highlight=False, soft_wrap=True)
    if result.left_out:
        why = ", ".join(f"{count:,} {reason}" for reason, count in result.left_out.items())
        out.print(
            f"left out: {sum(result.left_out.values()):,} rows without a usable embedding ({why})", highlight=False
        )


def _columns(columns: str, copy: list[str]) -> str | list[str]:
    """What --columns asks for, or --copy, its old name."""
    if copy:
        errors.print(
            "[yellow]--copy is now --columns all, none or NAME,NAME; the old name goes with the next version[/]"
        )
        return "all" if "*" in copy else copy
    if columns in ("all", "none", "*"):
        return columns
    return [name.strip() for name in columns.split(",") if name.strip()]


def _beside(source: str) -> Path:
    from offprint.errors import OffprintError
    from offprint.files import local_path, scheme

    if scheme(source) not in ("", "file"):
        raise OffprintError(f"{source} is not on this machine; say where the kept rows go with --out")
    return (path := local_path(source)).with_name(f"{path.stem}_kept.parquet")


def _number(keep: str | None) -> int | float | None:
    """A whole number is a number of rows, anything else a share."""
    from offprint.errors import OffprintError

    if keep is None:
        return None
    try:
        return int(keep) if keep.isdigit() else float(keep)
    except ValueError:
        raise OffprintError(f"--keep {keep}: give a share such as 0.3, or a number of rows such as 1000") from None


def _write_ids(kept: Path, ids: str, file: Path) -> None:
    import pyarrow.parquet as pq

    part = file.with_name(f".{file.name}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            for batch in pq.ParquetFile(kept).iter_batches(columns=[ids]):
                stream.writelines(f"{name}\n" for name in batch.column(0).to_pylist())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _write_report(result, file: Path) -> None:
    import csv
    import io
    import json

    from offprint.files import atomic_write

    rows = result.clusters()
    if file.suffix == ".json":
        whole = {"total": result.total, "duplicates": result.duplicates, "kept": result.count, "clusters": rows}
        atomic_write(file, json.dumps(whole, indent=1))
        return
    text = io.StringIO()
    table = csv.DictWriter(text, ["cluster", "size", "kept", "d_intra", "d_inter", "complexity"])
    table.writeheader()
    table.writerows(rows)
    atomic_write(file, text.getvalue())
