"""``offprint search nasnet``: let a paper's search look for an architecture."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, out

search = typer.Typer(no_args_is_help=True, help="Search an architecture by a paper's method.")


@search.callback()
def _methods() -> None:
    """Keeps the method's name on the command line while there is one method only."""


@search.command()
def nasnet(
    output: Path = typer.Option(Path("genotype.json"), "--out", help="JSON file of the best cells."),
    evaluations: int = typer.Option(100, "--evaluations", "-n", help="Samples to draw; more of them extend a search."),
    strategy: str = typer.Option("ppo", help="ppo (the controller), or random (the baseline)."),
    data: str = typer.Option(
        "sample:cifar10", "--data", "-d", help="A folder of class folders, mnist, cifar10, ..., or a bundled sample."
    ),
    cells: int = typer.Option(2, help="Normal cells per resolution of the child network."),
    filters: int = typer.Option(8, help="Width of the child network."),
    epochs: int = typer.Option(2, help="Epochs the child trains."),
    lr: float = typer.Option(0.1, help="Its learning rate."),
    size: int = typer.Option(32, help="Side of its images in pixels."),
    images: int = typer.Option(5000, help="Images to use at most; a tenth of them is held out for the reward."),
    blocks: int = typer.Option(5, help="Blocks per cell."),
    batch: int = typer.Option(20, help="Samples per update of the controller."),
    seed: int = typer.Option(0, help="Of everything random."),
    state: Path = typer.Option(None, help="File to go on from; default OUT with .state."),
    resume: bool = typer.Option(True, help="Go on from the state if there is one."),
) -> None:
    """Search NASNet's cells: a recurrent controller learns to write cells whose child networks do well."""
    from offprint.methods.search.nasnet_search import SearchSpace
    from offprint.methods.search.nasnet_search import search as run
    from offprint.tasks.proxy import ProxyAccuracy

    evaluate = ProxyAccuracy(
        data, num_cells=cells, filters=filters, epochs=epochs, lr=lr, size=size, images=images, seed=seed
    )
    file = state or output.with_suffix(".state")
    if not resume:
        file.unlink(missing_ok=True)
    with bar() as progress:
        task = progress.add_task("searching", total=evaluations)

        def advance(done: int, total: int, best: float, mean: float) -> None:
            text = f"best {100 * best:.1f} %, last {batch}: {100 * mean:.1f} %"
            progress.update(task, completed=done, total=total, description=text)

        result = run(
            evaluate, evaluations=evaluations, strategy=strategy, space=SearchSpace(blocks), batch=batch, seed=seed,
            state=file, about=evaluate.about, progress=advance,
        )  # fmt: skip
    result.save(output, strategy=strategy, seed=seed, proxy=evaluate.about)
    out.print(
        f"{output}: accuracy {100 * result.reward:.1f} % of a child network after {len(result.rewards)} evaluations; "
        f'build from it with create_model("nasnet_a_cifar", genotype="{output}")',
        highlight=False, soft_wrap=True,
    )  # fmt: skip
