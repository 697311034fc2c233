"""``offprint pretrain``: short for ``offprint train --task pretraining``."""

from __future__ import annotations

import typer

from offprint.cli import _options as cli
from offprint.cli._moved import run


def pretrain(ctx: typer.Context) -> None:
    """Pre-train a model on pictures without labels: short for 'offprint train --task pretraining', and takes all it takes.

    A method that is a pre-training task of its own (see 'offprint methods') takes that task's place: --method NAME.
    """
    task = [] if _brings_a_task(ctx.args) else ["--task", "pretraining"]
    run(["train", *task, "--stage", "pretraining", *_out(ctx.args), *ctx.args])


def _brings_a_task(words: list[str]) -> bool:
    from offprint import api

    given = [w.partition("=")[2] for w in words if w.startswith("--method=")]
    given += [after for word, after in zip(words, words[1:], strict=False) if word == "--method"]
    known = api.methods() if given else {}
    return any(known[name].task for name in (word.partition(":")[0] for word in given) if name in known)


def _out(words: list[str]) -> list[str]:
    return [] if any(w == "--out" or w.startswith("--out=") for w in words) else ["--out", "runs/pretrain"]


pretrain.settings = cli.LOOSE  # type: ignore[attr-defined]
