"""``offprint papers``: the catalogue as a table."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.table import Table

from offprint.cli.console import out


def papers(
    kind: str = typer.Option(None, help="Only this kind (backbone, segmentation, graph, training, ...)."),
    search: str = typer.Option(None, help="Only papers whose title, summary, task or slug holds these words."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """List the papers: what each is, and how many of its claims have which evidence."""
    from offprint import catalog
    from offprint.catalog import evidence

    found = catalog.papers(kind=kind, search=search)
    if as_json:
        print(json.dumps([{**asdict(p), "built": p.built} for p in found], indent=1))
        return
    table = Table(title=f"{len(found)} papers", title_justify="left", header_style="bold")
    for column in ("slug", "title", "kind", "claims"):
        table.add_column(column, overflow="fold")
    for p in found:
        levels = ", ".join(f"{n} {name}" for name, n in evidence.counts(p).items()) if p.built else "[dim]planned[/]"
        table.add_row(p.slug, f"{p.title} [dim]({p.year}, {p.task})[/]", p.kind, levels)
    out.print(table)
