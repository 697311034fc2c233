"""``offprint concentrate``: many specialists become one network over all their classes."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.table import Table

from offprint.cli import _options as cli
from offprint.cli.console import out, parse_overrides, quiet_lightning, say
from offprint.tasks.settings import Run


def _concentrate(
    teacher: list[str] = typer.Option(..., "--teacher", "-t", help="Folder of a specialist's run; give two or more."),
    student: str = typer.Option(..., "--student", "-m", help="A backbone, or the folder of a run to start from."),
    data: str = typer.Option(
        None, "--data", "-d", help="Pictures of all classes; default those the teachers were trained on."
    ),
    output: cli.Out = Path("runs/concentrate"),
    head: str = typer.Option("fc4096-sc512", help="Hidden layers, fc for one over all, sc for one per vertical."),
    shared: int = typer.Option(0, help="Units of the second layer that all verticals share."),
    scale: str = typer.Option("vertical", help="Self-paced scaling: vertical, class or none."),
    top_k: int = typer.Option(100, help="Probabilities kept of a teacher."),
    outputs: str = typer.Option(
        "sigmoid", help="Of the teachers: sigmoid (method specialist), or softmax (trained as usual)."
    ),
    hard_weight: float = typer.Option(0.0, help="Weight of the labels' own loss beside."),
    overlap: str = typer.Option("stop", help="A class of two teachers: stop, or max."),
    set_: cli.Set = [],  # noqa: B006
    option: cli.ModelOption = [],  # noqa: B006
    checkpoint: str = typer.Option(None, help="Start the student from this weight file."),
    epochs: int = typer.Option(None, help="Short for --set epochs=N."),
    batch_size: int = typer.Option(None, help="Short for --set batch_size=N."),
    lr: float = typer.Option(None, help="Short for --set lr=X."),
    *,
    run: Run,
) -> None:
    """Train one network on the classes of many specialists, from their outputs; each vertical is judged beside its teacher."""
    from offprint.methods.training.knowledge_concentration import concentrate

    quiet_lightning()
    short = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = {**parse_overrides(set_), **{k: v for k, v in short.items() if v is not None}}
    method = {"head": head, "shared": shared, "scale": scale, "top_k": top_k, "outputs": outputs, "hard_weight": hard_weight, "overlap": overlap}  # fmt: skip
    done, rows = concentrate(
        teacher, student, data, output, method=method, recipe=recipe, model_options=parse_overrides(option), checkpoint=checkpoint,
        say=say, run=run,
    )  # fmt: skip
    if not done.leader:
        return
    table = Table("vertical", "classes", "student %", "teacher %", "student AP", "teacher AP", header_style="bold")
    for row in rows:
        figures = (row["student_accuracy"], row["teacher_accuracy"], row["student_ap"], row["teacher_ap"])
        table.add_row(row["vertical"], str(row["classes"]), *(f"{value:.2f}" for value in figures))
    out.print(table)
    for line in done.lines:
        say(line)


concentrate = cli.with_run(_concentrate)
