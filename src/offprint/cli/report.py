"""``offprint report``: the ledger as one HTML page."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import out


def report(output: Path = typer.Option(Path("report.html"), "--out", "-o", help="Where to write the page.")) -> None:
    """Write a self-contained page: papers, claims beside measurements beside evidence, and each proof's plot."""
    from offprint.report import write_report

    out.print(f"report: {write_report(output)}", highlight=False, soft_wrap=True)
