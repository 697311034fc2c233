"""``offprint show SLUG``: everything about one paper."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.markup import escape
from rich.table import Table

from offprint.cli.console import out


def show(slug: str, as_json: bool = typer.Option(False, "--json", help="Machine-readable output.")) -> None:
    """Show a paper: its claims beside their evidence, its models, files, use and proof."""
    from offprint import catalog
    from offprint.catalog import evidence
    from offprint.ledger import Ledger

    paper = catalog.paper(slug)
    measured = Ledger().measurements(paper.slug)
    levels = [evidence.level(c, paper, None, measured) for c in paper.claims]
    names: list[str] = []
    if paper.built:
        from offprint.api import list_models

        names = list_models(paper=paper.slug)
    if as_json:
        body = asdict(paper) | {"built": paper.built, "models": names}
        body["claims"] = [
            asdict(c) | {"level": e.level, "basis": e.basis, "stale": e.stale}
            for c, e in zip(paper.claims, levels, strict=True)
        ]
        print(json.dumps(body, indent=1))
        return
    where = f"arXiv {paper.arxiv}" if paper.arxiv else ""
    out.print(f"[bold]{paper.title}[/]  ({', '.join(x for x in (paper.venue, where) if x)})")
    if paper.authors:
        out.print(", ".join(paper.authors), style="dim")
    out.print(paper.summary)
    if paper.reference.code:
        out.print(f"reference code: {paper.reference.code} ({paper.reference.licence})", style="dim", highlight=False)
    if not paper.built:
        out.print("[yellow]planned[/]: in the catalogue, not built yet")
    table = Table(title="claims", title_justify="left", header_style="bold")
    for column in ("data", "metric", "claimed", "setting", "place", "evidence"):
        table.add_column(column, overflow="fold")
    for claim, e in zip(paper.claims, levels, strict=True):
        told = e.level + (" (stale: the code has changed since)" if e.stale else "")
        place = claim.place + (" (from memory)" if claim.from_memory else "")
        table.add_row(
            claim.data,
            claim.metric,
            claim.said,
            claim.setting,
            place,
            f"{told}\n[dim]{escape(e.basis)}[/]" if e.basis else told,
        )
    out.print(table)
    if paper.built:
        file = paper.module.replace(".", "/") + ".py"
        out.print(f"file: src/{file}", highlight=False)
        if names:
            out.print(f"models: {', '.join(names)}", highlight=False)
            out.print(f'use: offprint.create_model("{names[0]}")', highlight=False, markup=False)
        out.print(f"proof: offprint prove {paper.slug} [--full]", highlight=False, markup=False)
