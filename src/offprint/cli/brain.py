"""``offprint brain``: parcellated fMRI series to pre-trained encoders, fine-tuned models, embeddings and predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from offprint.cli import _training as cli
from offprint.cli.console import bar, out, parse_overrides, quiet_lightning

brain = typer.Typer(no_args_is_help=True, help="Time series of brain regions: pre-train, fine-tune, embed, predict.")

Series = Annotated[
    Path,
    typer.Argument(
        help="A folder of .npy, .csv or .tsv files (frames x regions), one per subject; or one .npy or .npz of all."
    ),
]
Weights = Annotated[Path, typer.Option("--weights", "-w", help="Folder of a run, or a weight file in STAGIN's names.")]
Rate = Annotated[float | None, typer.Option(help="Short for --set lr=X; the top of the cycle moves along.")]
Fields = Annotated[
    list[str], typer.Option("--set", "-s", help="A field of the recipe, e.g. --set max_lr=2e-3; may be repeated.")
]


@brain.command()
def pretrain(
    series: Series,
    output: cli.Out = Path("runs/brain-pretrain"),
    window: int = typer.Option(None, help="Frames per window; default 50."),
    stride: int = typer.Option(None, help="Frames between windows; default 3."),
    set_: Fields = [],  # noqa: B006 (Typer reads the default, nobody changes it)
    option: cli.ModelOption = [],  # noqa: B006
    epochs: cli.Epochs = None,
    batch_size: cli.BatchSize = None,
    lr: Rate = None,
    val_fraction: float = typer.Option(0.1, help="Share of the scans that reconstruction is measured on."),
    resume: cli.Resume = True,
    precision: cli.Precision = "32-true",
    devices: cli.Devices = "1",
    accelerator: cli.Accelerator = "auto",
    accumulate: cli.Accumulate = 1,
    workers: cli.Workers = 0,
    seed: cli.Seed = 0,
    logger: cli.Logger = "csv",
    show_recipe: cli.ShowRecipe = False,
) -> None:
    """Pre-train the encoder on scans without labels, by rebuilding hidden regions, edges and windows."""
    from offprint.tasks import brain as task

    overrides = _overrides(set_, epochs, batch_size, lr)
    if show_recipe:
        out.print(dataclasses.asdict(task.BrainRecipe.of("brain_mae", **overrides)))
        return
    quiet_lightning()
    summary = task.pretrain(
        series, output, overrides=overrides, model_options=_options(option, window, stride), val_fraction=val_fraction,
        resume=resume, precision=precision, devices=cli.device_count(devices), accelerator=accelerator,
        accumulate=accumulate, workers=workers, seed=seed, logger=logger,
    )  # fmt: skip
    if summary["loss"] is not None:
        _say(
            f"{summary['scans']} scans, {summary['epochs']} epochs; on held-out scans the loss is {summary['loss']:.4f} "
            f"(hidden regions {summary['spatial_node']:.4f}, edges {summary['spatial_edge']:.4f}; windows between others "
            f"{summary['temporal_node']:.4f}, {summary['temporal_edge']:.4f})"
        )
    _about(summary["data"])
    _say(
        f"weights: {summary['weights']}\nnext: offprint brain finetune {series} --labels labels.csv --target ... --weights {output}"
    )


@brain.command()
def finetune(
    series: Series,
    labels: Path = typer.Option(..., help="CSV or TSV with a column of subjects and the target's."),
    target: str = typer.Option(..., help="Column to predict: words or a few whole numbers are classes, else a number."),
    weights: Path = typer.Option(None, "--weights", "-w", help="A pre-training run, or a weight file; default none."),
    kind: str = typer.Option("auto", help="classification, regression or auto."),
    output: cli.Out = Path("runs/brain-finetune"),
    readout: str = typer.Option("sero", help="Over regions: sero, garo or mean."),
    window: int = typer.Option(None, help="Frames per window; default that of the weights, else 50."),
    stride: int = typer.Option(None, help="Frames between windows; default that of the weights, else 3."),
    folds: int = typer.Option(5, help="One part in so many is held out; 1 trains on all."),
    fold: int = typer.Option(0, help="Which part is held out."),
    cross_validate: bool = typer.Option(False, help="Hold out each part in turn."),
    missing: str = typer.Option("stop", help="A scan without a label: stop or skip."),
    set_: Fields = [],  # noqa: B006
    option: cli.ModelOption = [],  # noqa: B006
    epochs: cli.Epochs = None,
    batch_size: cli.BatchSize = None,
    lr: Rate = None,
    resume: cli.Resume = True,
    precision: cli.Precision = "32-true",
    devices: cli.Devices = "1",
    accelerator: cli.Accelerator = "auto",
    accumulate: cli.Accumulate = 1,
    workers: cli.Workers = 0,
    seed: cli.Seed = 0,
    logger: cli.Logger = "csv",
    show_recipe: cli.ShowRecipe = False,
) -> None:
    """Fine-tune on labelled scans, and measure on held-out ones."""
    from offprint.tasks import brain as task

    overrides = _overrides(set_, epochs, batch_size, lr)
    if show_recipe:
        out.print(dataclasses.asdict(task.BrainRecipe.of("stagin", **overrides)))
        return
    quiet_lightning()
    summary = task.finetune(
        series, labels, output, target=target, weights=weights, kind=kind, missing=missing, overrides=overrides,
        model_options={"readout": readout, **_options(option, window, stride)}, folds=folds,
        fold=None if cross_validate else fold, resume=resume, precision=precision, devices=cli.device_count(devices),
        accelerator=accelerator, accumulate=accumulate, workers=workers, seed=seed, logger=logger,
    )  # fmt: skip
    spread = summary["spread"]
    figures = [
        f"{name.replace('_', ' ')} {value:.2f}" + (f" ± {spread[name]:.2f}" if spread else "")
        for name, value in summary["metrics"].items()
    ]
    runs = summary["folds"]
    if figures:
        _say(f"{target}: {', '.join(figures)} on {sum(r['tested_on'] for r in runs)} held-out scans")
        _say("each fold trained on " + ", ".join(str(r["trained_on"]) for r in runs) + " scans")
    _about(summary["data"])
    _say(
        f"weights: {summary['weights']}\nnext: offprint brain predict SERIES --weights {Path(summary['weights']).parent} --out predictions.csv"
    )


@brain.command()
def embed(
    series: Series,
    weights: Weights,
    output: Path = typer.Option(Path("embeddings.csv"), "--out", help="CSV of one line per scan."),
    option: cli.ModelOption = [],  # noqa: B006
    batch_size: int = typer.Option(4, help="Scans at once."),
    resume: bool = typer.Option(True, help="Go on from an interrupted call."),
) -> None:
    """Write one vector per scan."""
    _table("embeddings", series, weights, output, option, batch_size, resume)


@brain.command()
def predict(
    series: Series,
    weights: Weights,
    output: Path = typer.Option(Path("predictions.csv"), "--out", help="CSV of one line per scan."),
    batch_size: int = typer.Option(4, help="Scans at once."),
    resume: bool = typer.Option(True, help="Go on from an interrupted call."),
) -> None:
    """Predict the target of a fine-tuned model for scans."""
    _table("predictions", series, weights, output, [], batch_size, resume)


@brain.command()
def attention(
    series: Series,
    weights: Weights,
    output: Path = typer.Option(Path("attention.npz"), "--out", help="NPZ: ID/regions and ID/time of every scan."),
    option: cli.ModelOption = [],  # noqa: B006
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
    _say(f"{output}: {len(found)} scans; regions that count most, from 0 (mean weight): {listed}")


@brain.command()
def simulate(
    output: Path = typer.Option(Path("simulated"), "--out", help="Folder of the simulated scans and labels."),
    subjects: int = typer.Option(200, help="Scans."),
    regions: int = typer.Option(24, help="Regions."),
    frames: int = typer.Option(200, help="Frames per scan."),
    networks: int = typer.Option(4, help="Networks of regions in each state."),
    seed: cli.Seed = 0,
) -> None:
    """Write SIMULATED scans, to try the other verbs: a covariance that switches between two states, coupled by class."""
    from offprint.data.brain_series import simulate_scans, write_simulated

    made = simulate_scans(subjects, regions, frames, networks=networks, seed=seed)
    series, labels = write_simulated(made, output)
    _about(made.about)
    _say(f"{series}: {subjects} scans of {frames} frames x {regions} regions\n{labels}: class (a, b) and coupling of each\n"
         f"next: offprint brain pretrain {series} --window 30 --out {output / 'pretrained'}")  # fmt: skip


def _table(
    what: str, series: Path, weights: Path, output: Path, option: list[str], batch_size: int, resume: bool
) -> None:
    from offprint.tasks import brain_use as use

    with bar() as progress:
        row = progress.add_task(what, total=None)
        made = use.write_table(
            series, weights, output, what=what, batch_size=batch_size, resume=resume,
            progress=lambda done, total: progress.update(row, completed=done, total=total), **parse_overrides(option),
        )  # fmt: skip
    _about(made["data"])
    if made["trained_on"] and made["trained_on"] != made["data"]:
        _say(f"the weights were trained on data that are {made['trained_on']}")
    _say(f"{output}: {made['rows']} scans, {made['columns']} columns")


def _overrides(pairs: list[str], epochs: int | None, batch_size: int | None, lr: float | None) -> dict:
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    return parse_overrides(pairs) | {name: value for name, value in given.items() if value is not None}


def _options(pairs: list[str], window: int | None, stride: int | None) -> dict:
    given = {"window": window, "stride": stride}
    return parse_overrides(pairs) | {name: value for name, value in given.items() if value is not None}


def _about(text: str) -> None:
    if text:
        _say(f"the scans are {text}")


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
