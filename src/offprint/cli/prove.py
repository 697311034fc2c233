"""``offprint prove``: run papers' experiments here and enter them in the ledger."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from offprint.cli.console import bar, errors, out


def prove(
    slugs: list[str] = typer.Argument(None, help="Papers; or --all."),
    every: bool = typer.Option(False, "--all", help="Every paper that has a proof."),
    quick: bool = typer.Option(True, "--quick/--full", help="Seconds each, or minutes each."),
    report: Path = typer.Option(None, help="Also write the HTML report to this file."),
) -> None:
    """Run proofs with a progress bar; exit code 1 when a figure lies outside its declared band."""
    from offprint import ledger as room
    from offprint import proofs
    from offprint.errors import OffprintError

    if not slugs and not every:
        raise OffprintError(f"name papers, or pass --all; proofs exist for: {', '.join(proofs.available())}")
    chosen = proofs.available() if every else proofs.names(slugs)
    book = room.Ledger()
    book.check_writable()
    verdicts = []
    with bar() as progress:
        whole = progress.add_task("proofs", total=len(chosen))
        for slug in chosen:
            progress.update(whole, description=f"[bold]{slug}[/]")
            task = progress.add_task("", total=None)

            def advance(total: int | None = None, text: str = "", task=task) -> None:
                if total is not None:
                    progress.update(task, total=total)
                else:
                    progress.update(task, description=text, advance=1)

            verdicts.append(proofs.prove(slug, quick, ledger=book, progress=advance))
            progress.remove_task(task)
            progress.advance(whole)
    out.print(_table(verdicts))
    missed = [v.slug for v in verdicts if not v.ok]
    if report is not None:
        from offprint.report import write_report

        out.print(f"report: {write_report(report, book)}", highlight=False, soft_wrap=True)
    if missed:
        errors.print(f"[red]outside the declared band:[/] {', '.join(missed)}")
        raise typer.Exit(1)


def _table(verdicts) -> Table:
    from offprint import catalog

    table = Table(title="claim beside measurement", title_justify="left", header_style="bold")
    for column in ("paper", "the paper says", "measured here", "declared band", "verdict", "s"):
        table.add_column(column, overflow="fold")
    for verdict in verdicts:
        linked = {c.evidence.proof.figure: c for c in catalog.paper(verdict.slug).claims if c.evidence.proof}
        about = next(iter(linked.values()), None)  # beside the first figure where none of them is the claim's own
        for i, band in enumerate(verdict.bands):
            claim = linked.get(band["figure"]) or (
                about if i == 0 and not any(b["figure"] in linked for b in verdict.bands) else None
            )
            said = ""
            if claim is not None:
                said = claim.statement or f"{claim.metric} {claim.value:g} {claim.unit} ({claim.data})"
            value = "missing" if band["value"] is None else f"{band['value']:.4g} {band['unit']}"
            table.add_row(
                verdict.slug if i == 0 else "", said, f"{band['figure']} = {value}", band["text"],
                "[green]inside[/]" if band["ok"] else "[red]outside[/]", f"{verdict.seconds:.0f}" if i == 0 else "",
                end_section=i == len(verdict.bands) - 1,
            )  # fmt: skip
    return table
