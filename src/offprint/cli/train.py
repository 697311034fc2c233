"""``offprint train``: any model, by its paper's recipe, on one's own data, a named set or a bundled sample."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli import _options as cli
from offprint.cli.console import out, parse_overrides, quiet_lightning, say
from offprint.tasks.settings import Run


def _train(
    ctx: typer.Context,
    model: str = typer.Option(
        ..., "--model", "-m", help="A name from 'offprint models', or the folder of a run to start from."
    ),
    data: str = typer.Option(
        ...,
        "--data",
        "-d",
        help="What the model's task opens: a folder, a table, a name, or sample:NAME; see 'offprint tasks'.",
    ),
    task: cli.Task = None,
    stage: str = typer.Option(
        "training", help="pretraining, training or finetuning, where the paper has a recipe for it."
    ),
    neck: str = typer.Option(None, help="A neck to set on a backbone; see 'offprint tasks'."),
    head: str = typer.Option(None, help="A head to set on a backbone."),
    method: list[str] = typer.Option(
        [], "--method", help="NAME or NAME:KEY=VALUE,... of 'offprint methods'; may be repeated."
    ),
    output: cli.Out = Path("runs/train"),
    set_: cli.Set = [],  # noqa: B006 (Typer reads the default, nobody changes it)
    option: cli.ModelOption = [],  # noqa: B006
    epochs: int = typer.Option(None, help="Short for --set epochs=N; so for every field of the recipe."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X: the rate as given, whatever the batch."),
    size: int = typer.Option(None, help="Short for --set input_size=N (pixels)."),
    pretrained: bool = typer.Option(False, help="Start from the released weights."),
    checkpoint: str = typer.Option(None, help="Start from this weight file."),
    show_recipe: cli.ShowRecipe = False,
    *,
    run: Run,
) -> None:
    """Train a model; its paper's recipe is the default, and every field can be overridden.

    What the task itself lets you choose (classes, splits, labels, masks, ...) is given the same way: 'offprint tasks NAME' lists it.
    """
    import dataclasses

    from offprint.api import choose_for_training, train

    own, methods = _of_the_task(task, method)
    chosen, start = choose_for_training(model, task, neck, head, methods)
    recipe = chosen.recipe(start, stage, {})
    fields = {f.name: f.default for f in dataclasses.fields(recipe)}
    plain, options, fields_given = cli.split_words(ctx.args, chosen.offers(), "train", chosen.name, fields)
    if plain:
        raise typer.BadParameter(f"unexpected {' '.join(plain)!r}; data are given with --data")
    options = {**own, **options}
    short = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "input_size": size}
    overrides = {**parse_overrides(set_), **fields_given, **{k: v for k, v in short.items() if v is not None}}
    if lr is not None and "reference_batch" in fields:
        overrides.setdefault("reference_batch", 0)
    if show_recipe:
        out.print(dataclasses.asdict(chosen.recipe(start, stage, overrides)))
        return
    quiet_lightning()
    done = train(
        model, data, output, task=task, stage=stage, recipe=overrides, options=options, model_options=parse_overrides(option),
        neck=neck, head=head, pretrained=pretrained, checkpoint=checkpoint,
        methods=methods or None, say=say, run=run,
    )  # fmt: skip
    if done.leader:
        for line in done.lines:
            say(line)


def _of_the_task(task: str | None, given: list[str]) -> tuple[dict[str, str], list[str]]:
    """What of ``--method`` is the choice of that name of a task (``--task pretraining --method simmim``), and what names methods."""
    from offprint import api

    if task is None or "method" not in api.contract.by_name(task).offers():
        return {}, given
    known = api.methods()
    own = [word for word in given if word.partition(":")[0] not in known]
    return ({"method": own[-1]} if own else {}), [word for word in given if word not in own]


train = cli.with_run(_train)
train.settings = cli.LOOSE  # type: ignore[attr-defined]
