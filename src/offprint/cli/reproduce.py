"""``offprint reproduce``: run claims' own protocols on one's own copy of the data."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from offprint.cli.console import bar, errors, out

COLOURS = {"reproduced": "green", "contradicted": "red"}


def reproduce(
    name: str = typer.Argument(help="A paper, or a model."),
    data: str = typer.Option(
        None, "--data", "-d", help="Your copy of the data; default what is bundled or under OFFPRINT_DATA."
    ),
    claim: str = typer.Option(None, help="Only this claim; ids are shown by 'offprint show NAME --json'."),
    weights: str = typer.Option(None, help="Tag of the released weights; see 'offprint weights MODEL'."),
    checkpoint: str = typer.Option(None, help="A weight file instead of released weights."),
    truth: str = typer.Option(None, help="Ground-truth labels that lie elsewhere (ImageNet, ReaL)."),
    limit: int = typer.Option(None, help="So many items only: marked partial, never counts."),
    runs: int = typer.Option(None, help="So many of the protocol's runs only: partial too."),
    batch_size: int = typer.Option(64),
    workers: int = typer.Option(0, help="Loader processes."),
    device: str = typer.Option(None, help="cpu, cuda, ...; default the accelerator where there is one."),
    output: Path = typer.Option(Path("runs/reproduce"), "--out", help="Folder of runs that train."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Print claims beside what is measured here; exit code 1 where a measurement contradicts its claim."""
    from offprint.reproduction import reproduce as run

    with bar() as progress:
        task = progress.add_task(name, total=None)

        def advance(total: int | None = None, text: str = "") -> None:
            if total is not None:
                progress.reset(task, total=total)
            else:
                progress.update(task, advance=1, description=text)

        def say(text: str) -> None:
            progress.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

        rows = run(name, data, claim=claim, weights=weights, checkpoint=checkpoint, truth=truth, limit=limit, runs=runs,
                   batch_size=batch_size, workers=workers, device=device, out=output, progress=advance, say=say)  # fmt: skip
    if as_json:
        print(json.dumps([
            {"claim": r.claim.id, "model": r.claim.model, "claimed": r.claim.value, "measured": r.value, "error": r.error,
             "partial": r.partial, "level": r.evidence.level, "basis": r.evidence.basis, "notes": r.notes, "reason": r.reason}
            for r in rows
        ], indent=1))  # fmt: skip
    else:
        out.print(_table(rows))
    measured = [r for r in rows if r.value is not None]
    if any(r.partial for r in measured):
        errors.print("[yellow]partial: only a part of the protocol was run, so nothing of it counts as evidence[/]")
    if any(not r.partial and r.evidence.level == "contradicted" for r in measured):
        raise typer.Exit(1)


def _table(rows) -> Table:
    table = Table(title="claim beside measurement", title_justify="left", header_style="bold")
    for column, settings in (
        ("claim", {}),
        ("claimed", {"no_wrap": True}),
        ("measured", {"no_wrap": True}),
        ("evidence", {}),
    ):
        table.add_column(column, overflow="fold", **settings)
    for r in rows:
        where = f"{r.claim.id}\n[dim]{escape(r.claim.data)}, {escape(r.claim.metric)}[/]"
        if r.value is None:
            table.add_row(where, r.claim.said, "", f"[dim]not measured: {escape(r.reason)}[/]")
            continue
        digits = r.claim.digits + 2
        shown = f"{r.value:.{digits}f}" + (f" ± {r.error:.2g}" if r.error else "") + f" {r.claim.unit}".rstrip()
        level = "partial" if r.partial else r.evidence.level
        colour = COLOURS.get(level, "yellow")
        told = f"[{colour}]{level}[/]"
        if r.partial or level == "contradicted":
            told += f"\n[dim]{escape('; '.join(r.notes) if r.partial else r.evidence.basis)}[/]"
        table.add_row(where, r.claim.said, shown, told)
    return table
