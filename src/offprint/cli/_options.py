"""How verbs read their options: those of every run from one dataclass, those of a task from what its functions declare."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from offprint.cli.console import parse_overrides
from offprint.errors import OffprintError, unknown

LOOSE = {"allow_extra_args": True, "ignore_unknown_options": True}  # the task's own options are read here, not by Typer

Out = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
Set = Annotated[
    list[str], typer.Option("--set", "-s", help="A field of the recipe, e.g. --set lr=1e-3; may be repeated.")
]
ModelOption = Annotated[
    list[str], typer.Option("--option", "-o", help="Argument of the model, name=value; may be repeated.")
]
Pretrained = Annotated[bool, typer.Option(help="Released weights, with a model name.")]
Checkpoint = Annotated[str | None, typer.Option(help="Weight file, with a model name.")]
Task = Annotated[str | None, typer.Option("--task", help="Where a model serves several; see 'offprint tasks'.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
ShowRecipe = Annotated[bool, typer.Option(help="Print the recipe as it would be used, and stop.")]
_SHORT = {"k": ("top_k", "top")}  # one letter → the choice it stands for


def with_run(function: Callable) -> Callable:
    """A verb that takes all settings of a run besides its own options; it is called with them as one ``run``."""
    from offprint.tasks.settings import Run

    hints = typing.get_type_hints(Run)
    fields = [f for f in dataclasses.fields(Run) if f.name != "progress"]
    told = typing.get_type_hints(function, include_extras=True)
    own = [
        p.replace(annotation=told[p.name]) for p in inspect.signature(function).parameters.values() if p.name != "run"
    ]
    annotations = {p.name: p.annotation for p in own}
    added = []
    for field in fields:
        kind = hints[field.name]
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        plain = kind if isinstance(kind, type) else (str if str in options else options[0])
        default = str(field.default) if plain is str and field.default is not None else field.default
        annotation = Annotated[plain | None if default is None else plain, typer.Option(help=field.metadata["help"])]
        added.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
        annotations[field.name] = annotation

    def verb(**given: Any) -> Any:
        settings = {f.name: given.pop(f.name) for f in fields}
        return function(**given, run=Run(**settings))

    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    verb.__signature__ = inspect.Signature([*keyword, *added])  # type: ignore[attr-defined]
    verb.__annotations__ = annotations
    verb.__doc__, verb.__name__ = function.__doc__, function.__name__
    return verb


def split_words(
    words: Sequence[str], choices: Mapping[str, Any], verb: str, task: str, fields: Mapping[str, Any] | None = None
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """The words of a command line that Typer does not know: (those that are no options, a task's choices, fields of its recipe).

    Args:
        words: as given.
        choices: name → :class:`~offprint.tasks.contract.Choice`.
        verb, task: for messages.
        fields: name → default, of the recipe; ``--name value`` is short for ``--set name=value``.

    Raises:
        OffprintError: an option that neither has, or one without its value.
    """
    plain: list[str] = []
    chosen: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    fields = fields or {}
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-") or word == "-" or word.lstrip("-")[:1].isdigit():
            plain.append(word)
            continue
        name, sign, value = word.lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--"):
            name = next((full for full in _SHORT.get(name, ()) if full in choices), name)
        negated = name.removeprefix("no_") if name.startswith("no_") else ""
        if negated in choices and choices[negated].kind is bool:
            chosen[negated] = False
            continue
        if name in choices and choices[name].kind is bool and not sign:
            chosen[name] = True
            continue
        if name not in choices and name not in fields:
            known = [k.replace("_", "-") for k in (*choices, *fields)]
            raise unknown(
                f"option of {verb} for the task {task}", f"--{name.replace('_', '-')}", [f"--{k}" for k in known]
            )
        if not sign:
            if not queue:
                raise OffprintError(f"--{name.replace('_', '-')} needs a value")
            value = queue.pop(0)
        if name in choices:
            read = choices[name].read(value)
            chosen[name] = (*chosen.get(name, ()), read) if choices[name].many else read
        else:
            recipe |= parse_overrides([f"{name}={value}"])
    return plain, chosen, recipe


def advancing(progress, title: str) -> Callable[..., None]:
    """A function for tasks to tell their progress: ``total=n`` once, then ``text=...`` per step."""
    row = progress.add_task(title, total=None)

    def advance(total: int | None = None, text: str = "") -> None:
        if total is not None:
            progress.reset(row, total=total)
        else:
            progress.update(row, advance=1, description=text or title)

    return advance
