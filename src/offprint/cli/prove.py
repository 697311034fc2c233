"""``offprint prove``: run papers' experiments here and enter them in the ledger."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from offprint.cli.console import bar, errors, out


def prove(
    slugs: list[str] = typer.Argument(None, help="Papers; or --all."),
    every: bool = typer.Option(False, "--all", help="Every paper that has a proof."),
    quick: bool = typer.Option(True, "--quick/--full", help="Seconds each, or minutes each."),
    device: str = typer.Option("cpu", help="gpu: the larger setting, on the accelerator."),
    report: Path = typer.Option(None, help="Also write the HTML report to this file."),
) -> None:
    """Run proofs with a progress bar; exit code 1 when a measurement speaks against the paper or is missing."""
    from offprint import ledger as room
    from offprint import proofs
    from offprint.errors import OffprintError

    if not slugs and not every:
        raise OffprintError(f"name papers, or pass --all; proofs exist for: {', '.join(proofs.available())}")
    chosen = proofs.available() if every else proofs.names(slugs)
    if device not in ("cpu", "gpu"):
        raise OffprintError(f"--device {device}: give cpu or gpu")
    mode = "gpu" if device == "gpu" else "quick" if quick else "full"
    if mode == "gpu":
        proofs.accelerator()
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

            verdicts.append(proofs.prove(slug, mode=mode, ledger=book, progress=advance))
            progress.remove_task(task)
            progress.advance(whole)
    out.print(_table(verdicts))
    missed = [v.slug for v in verdicts if any(b["verdict"] in ("contradicted", "missing") for b in v.bands)]
    if report is not None:
        from offprint.report import write_report

        out.print(f"report: {write_report(report, book)}", highlight=False, soft_wrap=True)
    if missed:
        errors.print(f"[red]against the paper, or missing:[/] {', '.join(missed)}")
        raise typer.Exit(1)


COLOURS = {"holds": "green", "shown": "dim", "undecided": "yellow", "contradicted": "red", "missing": "red"}


def _table(verdicts) -> Table:
    """A paper's judged figures below each other: what is asked of each, what came out, and the summary."""
    from offprint import proofs

    table = Table(title="claim beside measurement", title_justify="left", header_style="bold")
    table.add_column("paper", no_wrap=True)
    table.add_column("asked, and measured here", overflow="fold", ratio=1)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        told = [verdict.question, f"[dim]{escape(verdict.text)}, {verdict.seconds:.0f} s[/]"]
        table.add_row(verdict.slug, "\n".join(told), "")
        for i, band in enumerate(verdict.bands):
            said = f"{_name(band['figure'])}: [bold]{escape(proofs.shown(band))}[/] [dim](declared: {band['text']})[/]"
            colour = COLOURS[band["verdict"]]
            last = i == len(verdict.bands) - 1
            table.add_row("", said, f"[{colour}]{band['verdict']}[/]", end_section=last)
    return table


def _name(figure: str) -> str:
    return figure.replace("_", " ")
