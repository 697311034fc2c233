"""``offprint evaluate``: figures of a trained or released model, whatever its task."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from offprint.cli import _options as cli
from offprint.cli.console import bar, out, say


def evaluate(
    words: list[str] = typer.Argument(
        metavar="MODEL [OPTIONS OF THE TASK]", help="The folder of a run, or a model name."
    ),
    data: str = typer.Option(None, "--data", "-d", help="As for train; default the data of the run."),
    task: cli.Task = None,
    checkpoint: cli.Checkpoint = None,
    pretrained: cli.Pretrained = False,
    output: Path = typer.Option(
        None, "--out", help="Write the figures (.json, .csv) or a picture of them (.png, .svg) too."
    ),
    as_json: cli.Json = False,
) -> None:
    """Measure a model on data; 'offprint tasks NAME' lists what else can be chosen."""
    from offprint.api import evaluate, find
    from offprint.tasks.contract import choices

    model, rest = words[0], words[1:]
    if model.startswith("-"):
        raise typer.BadParameter("give the folder of a run or a model name first, then options")
    ready = find(model, pretrained, checkpoint, task=task)
    plain, options, _ = cli.split_words(rest, choices(ready.task.evaluate), "evaluate", ready.task.name)
    if plain:
        raise typer.BadParameter(f"unexpected {' '.join(plain)!r}; data are given with --data")
    with bar() as progress:
        found = evaluate(ready, data, progress=cli.advancing(progress, "evaluating"), **options)
    if output is not None:
        found.save(output)
    if as_json:
        print(json.dumps(found.plain()))
        return
    for note in found.notes:
        say(note, style="dim")
    if found.beside:
        width = max(map(len, (ready.name, *found.beside)))
        for label, row in ((ready.name, found.figures), *found.beside.items()):
            shown = {k: v for k, v in row.items() if k in found.figures}
            say(f"{label:>{width}}  " + type(found).of(shown, units=found.units).line())
    else:
        say(found.line())
    if output is not None:
        out.print(f"{output}", highlight=False, soft_wrap=True)


evaluate.settings = cli.LOOSE  # type: ignore[attr-defined]
