"""``offprint measure smoothing --model dagnn --model gcn --data Cora``: what a model does, in figures."""

from __future__ import annotations

import warnings
from pathlib import Path

import typer
from rich.table import Table

from offprint.cli.console import bar, out

measure = typer.Typer(no_args_is_help=True, help="Measure what a model does.")


@measure.callback()
def _tools() -> None:
    """Keeps the tool's name on the command line while there is one tool only."""


def _numbers(text: str, option: str) -> list[int]:
    """``"2,5,10"`` as whole numbers."""
    from offprint.errors import OffprintError

    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise OffprintError(f"{option} {text}: give whole numbers separated by commas, such as 2,5,10")
    return list(dict.fromkeys(found))


@measure.command()
def smoothing(
    model: list[str] = typer.Option(
        ["dagnn", "gcn"], "--model", "-m",
        help="dagnn, gcn, sage, gat, gin, appnp, sgc, or your own as module:function (features, classes, depth) -> module; may be repeated.",
    ),
    data: str = typer.Option(
        "Cora", "--data", "-d", help="Cora, CiteSeer, PubMed, Amazon_Photo, ..., Class/name of torch_geometric.datasets, or your own: "
        "FILE.npz or FILE.pt (edge_index, x, y), or a folder of edges.csv, features.csv and labels.csv.",
    ),
    depths: str = typer.Option("2,5,10,20,50", help="Hops or layers, separated by commas."),
    seeds: str = typer.Option("0", help="One run each, separated by commas."),
    epochs: int = typer.Option(200, help="Of each run, at most."),
    output: Path = typer.Option(None, "--out", help="JSON file of all runs, with a plot (.png) beside it; also what resuming reads. Default smoothing_DATA.json."),
    resume: bool = typer.Option(True, help="Go on from the file if there is one."),
) -> None:  # fmt: skip
    """Accuracy and smoothness of node representations against depth: does a graph model over-smooth?"""
    # what torch and torch_geometric say of their own beta features is not about the user's run
    warnings.filterwarnings("ignore", "Sparse (CSR tensor support|invariant checks)")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
    wanted, runs = _numbers(depths, "--depths"), _numbers(seeds, "--seeds")
    models = list(dict.fromkeys(model))
    from offprint.data.own_graphs import open_graph
    from offprint.tasks.smoothing import averages, draw, kind, sweep

    for name in models:
        kind(name)  # a wrong name is said before anything is read
    graph = open_graph(data, normalize=True)
    file = output or Path(
        f"smoothing_{Path(data).stem if Path(data).exists() else data.replace('/', '_').lower()}.json"
    )
    with bar() as progress:
        task = progress.add_task("", total=len(models) * len(wanted) * len(runs))
        started = False

        def advance(text: str) -> None:
            nonlocal started
            progress.update(task, description=text, advance=1 if started else 0)
            started = True

        result = sweep(
            models, graph, wanted, runs, data=data, epochs=epochs, file=file, resume=resume, progress=advance
        )
    out.print(_table(result, averages))
    picture = _plot(file.with_suffix(".png"), result, draw)
    out.print(f"split: {result['split']}\n{file}, {picture}", highlight=False, soft_wrap=True)


def _table(result, averages) -> Table:
    accuracy, smooth = averages(result, "accuracy"), averages(result, "smoothness")
    table = Table(title=f"{result['data']}: accuracy and smoothness (0: all nodes the same) against depth",
                  title_justify="left", header_style="bold")  # fmt: skip
    for column in ("model", "depth", "test accuracy (%)", "smoothness"):
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for name in accuracy:
        for i, (depth, mean, spread) in enumerate(accuracy[name]):
            value = f"{mean:.1f}" + (f" ± {spread:.1f}" if spread else "")
            last = i == len(accuracy[name]) - 1
            table.add_row("" if i else name, str(depth), value, f"{smooth[name][i][1]:.4f}", end_section=last)
    return table


def _plot(file: Path, result, draw) -> Path:
    import io

    from matplotlib.figure import Figure

    from offprint.files import atomic_write

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    draw(result, figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return atomic_write(file, buffer.getvalue())
