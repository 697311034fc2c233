"""``offprint methods``: what can act on a training, and what each of them lets one choose."""

from __future__ import annotations

import inspect

import typer
from rich.table import Table

from offprint.cli.console import out, say


def methods(name: str = typer.Argument(None, help="A method whose options are wanted.")) -> None:
    """List the methods that act on a training, or what one of them changes, excludes and lets you choose."""
    from offprint import api
    from offprint.methods.registry import KINDS, excluded, offers

    known = api.methods()
    if name is None:
        table = Table(header_style="bold")
        for column in ("method", "kind", "changes", "not with"):
            table.add_column(column, overflow="fold")
        for method in known.values():
            others = [o.name for o in known.values() if o is not method and excluded(method, o)]
            table.add_row(method.name, method.kind, method.changes, ", ".join(others))
        out.print(table)
        say("offprint train --model M --data D --method NAME --method NAME:KEY=VALUE,...")
        return
    method = api.method(name)
    say(f"{method.name} ({method.kind}: {KINDS[method.kind]}; paper {method.paper})")
    say(inspect.cleandoc(method.__doc__ or "").partition("\n\nArgs:")[0])
    say(f"changes {method.changes}")
    if method.task:
        say(f"its task is {method.task}: offprint tasks {method.task}")
    for other in known.values():
        if other is not method and (why := excluded(method, other)):
            say(f"not with {other.name}: {why}")
    options = offers(method)
    if not options:
        return
    table = Table(title=f"--method {name}:KEY=VALUE,...", title_justify="left", header_style="bold")
    for column in ("option", "default", ""):
        table.add_column(column, overflow="fold")
    for choice in options.values():
        table.add_row(choice.name, "" if choice.default is None else str(choice.default), choice.help)
    out.print(table)
