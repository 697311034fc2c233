"""``offprint graph``: older names of ``train``, ``predict`` and ``evaluate`` for graph networks trained layer by layer."""

from __future__ import annotations

import typer

from offprint.cli._moved import has, moved, positional, renamed
from offprint.cli._options import LOOSE

graph = typer.Typer(no_args_is_help=True, help="Older names of train, predict and evaluate for ForwardGNN.")


@graph.command(context_settings=LOOSE)
def fit(ctx: typer.Context) -> None:
    """The older name of 'offprint train --model forward_METHOD'."""
    words, method = [], "sf"
    queue = renamed(
        ctx.args, {"-d": "--data", "-l": "--layers", "-o": "--out", "-m": "--method", "--device": "--accelerator"}
    )
    while queue:
        word = queue.pop(0)
        name, sign, value = word.partition("=")
        if name == "--method":
            method = value if sign else queue.pop(0) if queue else ""
        else:
            words.append(word)
    out_ = [] if has(words, "--out") else ["--out", "runs/graph"]
    layers = [] if has(words, "--layers") else ["--layers", "2"]
    moved("graph fit", ["train", "--model", f"forward_{method}", *words, *layers, *out_])


@graph.command(context_settings=LOOSE)
def predict(ctx: typer.Context) -> None:
    """The older name of 'offprint predict GRAPH --model RUN'."""
    folder, rest = positional(ctx.args, "graph predict", "the folder of a run")
    rest = renamed(rest, {"-d": "--data", "-o": "--out"})
    words, data, queue = [], [], list(rest)
    while queue:
        word = queue.pop(0)
        name, sign, value = word.partition("=")
        if name == "--data":
            data = [value if sign else queue.pop(0) if queue else ""]
        else:
            words.append(word)
    out_ = [] if has(words, "--out") else ["--out", "predictions.csv"]
    moved("graph predict", ["predict", *data, "--model", folder, *words, *out_])


@graph.command(context_settings=LOOSE)
def evaluate(ctx: typer.Context) -> None:
    """The older name of 'offprint evaluate RUN --data GRAPH'."""
    moved("graph evaluate", ["evaluate", *ctx.args])
