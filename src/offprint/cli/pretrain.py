"""``offprint pretrain``: short for ``offprint train --task pretraining``."""

from __future__ import annotations

import typer

from offprint.cli import _options as cli
from offprint.cli._moved import run


def pretrain(ctx: typer.Context) -> None:
    """Pre-train a model on pictures without labels: short for 'offprint train --task pretraining', and takes all it takes."""
    run(["train", "--task", "pretraining", "--stage", "pretraining", *_out(ctx.args), *ctx.args])


def _out(words: list[str]) -> list[str]:
    return [] if any(w == "--out" or w.startswith("--out=") for w in words) else ["--out", "runs/pretrain"]


pretrain.settings = cli.LOOSE  # type: ignore[attr-defined]
