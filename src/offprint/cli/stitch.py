"""``offprint stitch``: two trained transformers become one network whose cost is chosen at run time (SN-Net v2)."""

from __future__ import annotations

import contextlib
from pathlib import Path

import typer

from offprint.cli import _options as cli
from offprint.cli.console import bar, out, parse_overrides, quiet_lightning, say
from offprint.tasks.settings import Run


def _stitch(
    small: str = typer.Argument(..., help="The smaller transformer: the folder of a run, or a name with --pretrained."),
    large: str = typer.Argument(..., help="The larger one."),
    data: str = typer.Option(
        ..., "--data", "-d", help="A folder of class folders, a name (cifar10, ...), or sample:NAME."
    ),
    output: cli.Out = Path("runs/stitch"),
    pretrained: bool = typer.Option(False, help="Released weights, for models given by name."),
    version: int = typer.Option(2, help="2: both ways, low-rank stitches; 1: small to large only."),
    rank: int = typer.Option(64, help="Of the trained change of a stitch (version 2)."),
    images: int = typer.Option(100, help="Pictures on which the stitches start by least squares."),
    evaluate: str = typer.Option("all", help="all stitches, or front: one of each group of like cost."),
    budget: float = typer.Option(None, help="Say which stitch is best for so many billion multiply-adds."),
    set_: cli.Set = [],  # noqa: B006
    epochs: int = typer.Option(None, help="Short for --set epochs=N."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X."),
    *,
    run: Run,
) -> None:
    """Stitch two transformers, train all ways through them together, and draw accuracy against cost."""
    from offprint.methods.training.stitching import CURVE, TABLE, stitch

    quiet_lightning()
    short = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = {**parse_overrides(set_), **{k: v for k, v in short.items() if v is not None}}
    advance = _Bars()
    done, curve = stitch(
        small, large, data, output, pretrained=pretrained, version=version, lora_r=rank, images=images, recipe=recipe, evaluate=evaluate,
        say=say, progress=advance, run=run,
    )  # fmt: skip
    if not done.leader:
        return
    for row in curve.front():
        out.print(
            f"stitch {row['stitch']:>3}  {row['gmacs']:8.4g} G  {row['top1']:6.2f} %  {row['way']}", highlight=False
        )
    if budget is not None and budget < curve.rows[0]["gmacs"]:
        say(f"no stitch costs at most {budget:g} G; the cheapest has {curve.rows[0]['gmacs']:.4g} G")
    elif budget is not None:
        best = curve.best(budget)
        say(
            f"within {budget:g} G: stitch {best['stitch']} ({best['top1']:.2f} % at {best['gmacs']:.4g} G); "
            f"model.set_stitch({best['stitch']})"
        )
    say(f"{output / TABLE}, {output / CURVE}; weights: {done.weights}")


class _Bars:
    """A bar for each piece of work that says its total, closed when it is done: training has one of its own in between."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()

    def __call__(self, total: int | None = None, text: str = "") -> None:
        if total is not None:
            self._open.close()
            self._left = total
            self._bar = self._open.enter_context(bar())
            self._task = self._bar.add_task("stitches", total=total)
            return
        self._bar.update(self._task, advance=1, description=text)
        self._left -= 1
        if not self._left:
            self._open.close()


stitch = cli.with_run(_stitch)
