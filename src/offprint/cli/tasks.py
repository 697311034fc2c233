"""``offprint tasks``: what models can be trained and used for, and what each task lets one choose."""

from __future__ import annotations

import dataclasses

import typer
from rich.table import Table

from offprint.cli.console import out, say


def tasks(name: str = typer.Argument(None, help="A task, or a model whose tasks are wanted.")) -> None:
    """List the tasks, or what one of them lets you choose."""
    from offprint import api
    from offprint.errors import unknown

    known = api.tasks()
    if name is None:
        table = Table(header_style="bold")
        for column in ("task", "what it does", "models"):
            table.add_column(column, overflow="fold")
        for task in known.values():
            able = api.models_of(task.name)
            table.add_row(
                task.name, task.does, f"{len(able)}: {', '.join(able[:3])}" + (", ..." if len(able) > 3 else "")
            )
        out.print(table)
        return
    if name not in known:
        if name not in api.list_models():
            raise unknown("task or model", name, [*known, *api.list_models()])
        say(f"{name} {api.what_it_does(api.entry(name))}")
        return
    task = known[name]
    say(f"{task.name}: {task.does}")
    example = next(iter(api.models_of(name)), None)
    if example is not None:
        _choices("train: data and training", task.offers().values())
        recipe = Table(title=f"train: recipe (of {example})", title_justify="left", header_style="bold")
        recipe.add_column("--set")
        recipe.add_column("default", overflow="fold")
        for key, value in dataclasses.asdict(task.recipe(api.entry(example))).items():
            recipe.add_row(key, str(value))
        out.print(recipe)
    for verb in ("evaluate", "predict"):
        _choices(verb, api.choices(getattr(task, verb)).values())


def _choices(title: str, choices) -> None:
    rows = list(choices)
    if not rows:
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("option", "default", ""):
        table.add_column(column, overflow="fold")
    for choice in rows:
        default = "" if choice.default is None else str(choice.default)
        table.add_row(f"--{choice.name.replace('_', '-')}", default, choice.help)
    out.print(table)
