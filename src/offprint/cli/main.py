"""Gathers the verbs, and turns the library's errors into one readable line and exit code 2."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer
from typer.core import TyperGroup

import offprint.cli
from offprint.cli.console import errors, plain_notes
from offprint.errors import MissingExtra, OffprintError


class _Verbs(TyperGroup):
    """The group of verbs, with a word on Ctrl-C before Click ends the process."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            errors.print("[yellow]interrupted[/]; what was finished is kept, and the same command goes on from there")
            raise typer.Exit(130) from None


app = typer.Typer(cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
                  help="Sixty machine-learning papers, each one a working part.")  # fmt: skip


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        typer.echo(f"offprint {offprint.__version__}")
        raise typer.Exit()


def _verbs() -> list[str]:
    """The files of this folder that are verbs: those that define a function, or a Typer application, of their own name."""
    return sorted(
        m.name
        for m in pkgutil.iter_modules(offprint.cli.__path__)
        if m.name not in ("main", "console") and not m.name.startswith("_")
    )


for verb in _verbs():
    found = getattr(importlib.import_module(f"offprint.cli.{verb}"), verb)
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=verb)
    else:
        app.command(verb, context_settings=getattr(found, "settings", None))(found)


def main() -> None:
    """Entry point of the ``offprint`` command."""
    plain_notes()
    try:
        app()
    except MissingExtra as error:
        errors.print(f"[red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(2)
    except (OffprintError, OSError) as error:
        errors.print("[red]error:[/]", end=" ")
        errors.print(str(error), highlight=False, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
