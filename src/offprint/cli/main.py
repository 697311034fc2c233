"""Gathers the verbs, and turns the library's errors into one readable line and exit code 2."""

from __future__ import annotations

import importlib
import sys

import typer

from offprint.cli.console import errors
from offprint.errors import MissingExtra, OffprintError

VERBS = (
    "papers",
    "show",
    "models",
    "info",
    "train",
    "evaluate",
    "predict",
    "upscale",
    "export",
    "prove",
    "report",
)
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
                  help="Sixty machine-learning papers, each one a working part.")  # fmt: skip


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        import offprint

        typer.echo(f"offprint {offprint.__version__}")
        raise typer.Exit()


for verb in VERBS:
    app.command(verb)(getattr(importlib.import_module(f"offprint.cli.{verb}"), verb))


def main() -> None:
    """Entry point of the ``offprint`` command."""
    try:
        app()
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted[/]; what was finished is kept")
        sys.exit(130)
    except MissingExtra as error:
        errors.print(f"[red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(2)
    except (OffprintError, OSError) as error:
        errors.print("[red]error:[/]", end=" ")
        errors.print(str(error), highlight=False, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
