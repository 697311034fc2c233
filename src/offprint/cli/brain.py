"""``offprint brain``: parcellated fMRI series to pre-trained encoders, fine-tuned models, embeddings and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offprint.cli._moved import has, moved, positional, renamed
from offprint.cli._options import LOOSE, ModelOption
from offprint.cli.console import bar, parse_overrides, say

brain = typer.Typer(no_args_is_help=True, help="Time series of brain regions: simulate, embed, look at attention.")

Series = Annotated[
    Path,
    typer.Argument(
        help="A folder of .npy, .csv or .tsv files (frames x regions), one per subject; or one .npy or .npz of all."
    ),
]
Weights = Annotated[Path, typer.Option("--weights", "-w", help="Folder of a run, or a weight file in STAGIN's names.")]


def _moved(old: str, model: str, folder: str, words: list[str]) -> None:
    series, rest = positional(words, f"brain {old}", "a folder or file of scans")
    out_ = [] if has(rest, "--out") else ["--out", folder]
    rest = renamed(rest, {"--weights": "--checkpoint", "-w": "--checkpoint"})
    moved(f"brain {old}", ["train", "--model", model, "--data", series, *out_, *rest])


@brain.command(context_settings=LOOSE)
def pretrain(ctx: typer.Context) -> None:
    """The older name of 'offprint train --model brain_mae'."""
    _moved("pretrain", "brain_mae", "runs/brain-pretrain", ctx.args)


@brain.command(context_settings=LOOSE)
def finetune(ctx: typer.Context) -> None:
    """The older name of 'offprint train --model stagin'."""
    _moved("finetune", "stagin", "runs/brain-finetune", ctx.args)


@brain.command()
def embed(
    series: Series,
    weights: Weights,
    output: Path = typer.Option(Path("embeddings.csv"), "--out", help="CSV of one line per scan."),
    option: ModelOption = [],  # noqa: B006
    batch_size: int = typer.Option(4, help="Scans at once."),
    resume: bool = typer.Option(True, help="Go on from an interrupted call."),
) -> None:
    """Write one vector per scan."""
    from offprint.tasks import brain_use as use

    with bar() as progress:
        row = progress.add_task("embeddings", total=None)
        made = use.write_table(
            series, weights, output, what="embeddings", batch_size=batch_size, resume=resume,
            progress=lambda done, total: progress.update(row, completed=done, total=total), **parse_overrides(option),
        )  # fmt: skip
    _about(made["data"])
    if made["trained_on"] and made["trained_on"] != made["data"]:
        say(f"the weights were trained on data that are {made['trained_on']}")
    say(f"{output}: {made['rows']} scans, {made['columns']} columns")


@brain.command(context_settings=LOOSE)
def predict(ctx: typer.Context) -> None:
    """The older name of 'offprint predict' for scans."""
    series, rest = positional(ctx.args, "brain predict", "a folder or file of scans")
    out_ = [] if has(rest, "--out") else ["--out", "predictions.csv"]
    moved("brain predict", ["predict", series, *renamed(rest, {"--weights": "--model", "-w": "--model"}), *out_])


@brain.command()
def attention(
    series: Series,
    weights: Weights,
    output: Path = typer.Option(Path("attention.npz"), "--out", help="NPZ: ID/regions and ID/time of every scan."),
    option: ModelOption = [],  # noqa: B006
    top: int = typer.Option(10, help="Regions to print."),
) -> None:
    """Write what a fine-tuned model looks at, over regions (layers x windows x regions) and time (layers x windows x windows)."""
    import io

    import numpy as np

    from offprint.data.brain_series import open_series
    from offprint.files import atomic_write
    from offprint.tasks import brain_use as use

    scans = open_series(series)
    found = use.attention(scans, weights, **parse_overrides(option))
    buffer = io.BytesIO()
    arrays = {
        f"{name}/{part}": x for name, pair in found.items() for part, x in zip(("regions", "time"), pair, strict=True)
    }
    np.savez_compressed(buffer, **arrays, **({"about": np.array(scans.about)} if scans.about else {}))
    atomic_write(output, buffer.getvalue())
    mean = np.mean([regions.mean((0, 1)) for regions, _ in found.values()], 0)
    listed = ", ".join(f"{i} ({mean[i]:.3f})" for i in np.argsort(-mean)[:top])
    _about(scans.about)
    say(f"{output}: {len(found)} scans; regions that count most, from 0 (mean weight): {listed}")


@brain.command()
def simulate(
    output: Path = typer.Option(Path("simulated"), "--out", help="Folder of the simulated scans and labels."),
    subjects: int = typer.Option(200, help="Scans."),
    regions: int = typer.Option(24, help="Regions."),
    frames: int = typer.Option(200, help="Frames per scan."),
    networks: int = typer.Option(4, help="Networks of regions in each state."),
    seed: int = typer.Option(0, help="Of everything random."),
) -> None:
    """Write SIMULATED scans, to try the other verbs: a covariance that switches between two states, coupled by class."""
    from offprint.data.brain_series import simulate_scans, write_simulated

    made = simulate_scans(subjects, regions, frames, networks=networks, seed=seed)
    series, labels = write_simulated(made, output)
    _about(made.about)
    say(f"{series}: {subjects} scans of {frames} frames x {regions} regions\n{labels}: class (a, b) and coupling of each\n"
         f"next: offprint train --model brain_mae --data {series} --window 30 --out {output / 'pretrained'}")  # fmt: skip


def _about(text: str) -> None:
    if text:
        say(f"the scans are {text}")
