"""``offprint measure erf replknet_31b --pretrained``, ``offprint measure smoothing -m dagnn -d Cora``: what a model does, in figures."""

from __future__ import annotations

import warnings
from pathlib import Path

import typer
from rich.table import Table

from offprint.cli.console import bar, out, say

measure = typer.Typer(no_args_is_help=True, help="Measure what a model does.")


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


def _json(file: Path, rows) -> Path:
    import json

    from offprint.files import atomic_write

    return atomic_write(file, (json.dumps(rows, indent=1) + "\n").encode())


def _stem(kind: str, models: list[str]) -> Path:
    return Path(f"{kind}_{'_'.join(Path(m).name for m in models)}"[:100])


_MODELS = typer.Argument(help="Model names, or folders of training runs; several are set side by side.")
_PRETRAINED = typer.Option(False, "--pretrained", help="Released weights, with a model name.")
_CHECKPOINT = typer.Option(None, help="Weight file, with one model name.")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _one(models: list[str], checkpoint: str | None) -> None:
    from offprint.errors import OffprintError

    if checkpoint and len(models) > 1:
        raise OffprintError(
            f"--checkpoint is one model's weights, and {len(models)} models were given; measure that one alone"
        )


@measure.command()
def erf(
    model: list[str] = _MODELS,
    data: str = typer.Option(None, "--data", "-d", help="Folder of pictures; default the bundled photographs."),
    images: int = typer.Option(50, help="Pictures to average over: the first, by name."),
    size: int = typer.Option(1024, help="Side that the pictures are warped to, in pixels. Results of different sizes do not compare."),
    layer: str = typer.Option(None, help="Dotted name of the layer to look at; default the last map before the final norm."),
    thresholds: str = typer.Option("0.2,0.3,0.5,0.99", help="Shares of the contributions, separated by commas."),
    pretrained: bool = _PRETRAINED,
    checkpoint: str = _CHECKPOINT,
    output: Path = typer.Option(None, "--out", help="Picture to write, with a .json beside it; default erf_MODEL.png."),
) -> None:  # fmt: skip
    """Effective receptive field: which pixels reach the middle of a model's last map, as a picture and as areas."""
    from matplotlib.figure import Figure

    from offprint.errors import OffprintError
    from offprint.methods.understanding._subjects import open_subject, pictures, prepared
    from offprint.methods.understanding.large_kernel_design import comparable, effective_receptive_field
    from offprint.tasks.results import finish

    try:
        shares = [float(t) for t in thresholds.split(",") if t.strip()]
    except ValueError:
        raise OffprintError(
            f"--thresholds {thresholds}: give shares separated by commas, such as 0.2,0.5,0.99"
        ) from None
    _one(model, checkpoint)
    subjects = [open_subject(m, pretrained, checkpoint, untrained=True) for m in model]
    chosen, what = pictures(data, images)
    found = []
    with bar() as progress:
        task = progress.add_task("", total=len(subjects) * len(chosen))
        for subject in subjects:
            found.append(
                effective_receptive_field(
                    subject.model, prepared(subject, chosen, size), layer=layer, thresholds=shares, name=subject.name,
                    weights=subject.weights, progress=lambda text: progress.update(task, description=text, advance=1),
                )
            )  # fmt: skip
    comparable(found)
    table = Table(title=f"Share of a {size} x {size} picture that holds a share of the contributions; {what}", title_justify="left",
                  header_style="bold")  # fmt: skip
    for column in ("model", "weights", *(f"{t:g}" for t in shares)):
        table.add_column(column, justify="left" if column in ("model", "weights") else "right", overflow="fold")
    for row in found:
        areas = ("-" if a is None else f"{100 * a.ratio:.1f} % ({a.side} px)" for a in row.areas.values())
        table.add_row(row.model, row.weights, *areas)
    out.print(table)
    for row in found:
        if row.weights == "random weights":
            say(f"note: {row.model} has random weights: this is what it starts from, not what it learns; give --pretrained, --checkpoint or a run")  # fmt: skip
        if row.skipped:
            say(f"note: {row.model}: {row.skipped} pictures gave a gradient that is no number and were left out")
    figure = Figure(figsize=(3.2 * len(found), 4.0), layout="constrained")
    for axis, row in zip(figure.subplots(1, len(found), squeeze=False)[0], found, strict=True):
        row.draw(axis)
    file = output or _stem("erf", model).with_suffix(".png")
    written = _json(file.with_suffix(".json"), [{**row.plain(), "pictures": what} for row in found])
    say(f"{finish(figure, file)}, {written}")


@measure.command("shape-bias")
def shape_bias(
    model: list[str] = _MODELS,
    data: Path = typer.Option(..., "--data", "-d", help="Folder of pictures with the shape of one category and the texture of another, named SHAPE3-TEXTURE2.png."),
    pretrained: bool = _PRETRAINED,
    checkpoint: str = _CHECKPOINT,
    output: Path = typer.Option(None, "--out", help="JSON file with each decision; default shape_bias_MODEL.json."),
) -> None:  # fmt: skip
    """Shape bias: of the decisions for the shape or the texture of a picture, the share that are for the shape."""
    from offprint.methods.understanding import large_kernel_design as design
    from offprint.methods.understanding._subjects import open_subject
    from offprint.tasks.pictures import pictures_in

    _one(model, checkpoint)
    files = pictures_in(data)
    named = {name for f in files for name in (design.shape_of(f.name), design.texture_of(f.name))}
    subjects = [open_subject(m, pretrained, checkpoint) for m in model]
    groups = [design.categories_of(s.classes, named, getattr(s.model, "num_classes", 0)) for s in subjects]
    table = Table(title=f"Shape against texture; {data}", title_justify="left", header_style="bold")
    for column in ("model", "weights", "shape bias", "shape", "texture", "pictures", "of conflicting cues"):
        table.add_column(column, justify="left" if column in ("model", "weights") else "right", overflow="fold")
    rows = []
    with bar() as progress:
        task = progress.add_task("", total=len(subjects))
        for subject, categories in zip(subjects, groups, strict=True):
            decisions = design.decide(
                subject.model,
                files,
                subject.transform,
                categories,
                progress=lambda t: progress.update(task, description=t),
            )
            progress.update(task, advance=1)
            found = design.shape_bias(decisions)
            table.add_row(
                subject.name, subject.weights, _share(found.shape_bias), _share(found.fraction_correct_shape),
                _share(found.fraction_correct_texture), str(found.pictures), str(found.conflicts),
            )  # fmt: skip
            rows.append({"model": subject.name, "weights": subject.weights, **found._asdict(),
                         "decisions": [list(row) for row in decisions]})  # fmt: skip
    out.print(table)
    say(str(_json(output or _stem("shape_bias", model).with_suffix(".json"), rows)))


@measure.command()
def design(model: list[str] = _MODELS) -> None:
    """Which of the guidelines for large-kernel networks a model keeps, read from its convolutions."""
    from offprint.methods.understanding._subjects import open_subject
    from offprint.methods.understanding.large_kernel_design import check_design
    from offprint.tasks.folder import is_run

    colours = {"kept": "green", "broken": "red", "not told": "dim"}
    for name in model:
        found = check_design(open_subject(name, untrained=True).model, name=Path(name).name if is_run(name) else name)
        table = Table(title=f"{found.model}", title_justify="left", header_style="bold")
        for column in ("", "guideline", "", "what shows it"):
            table.add_column(column, overflow="fold")
        for row in found.findings:
            table.add_row(str(row.number), row.guideline, f"[{colours[row.verdict]}]{row.verdict}[/]", row.detail)
        out.print(table)


@measure.command()
def kernels(
    data: str = typer.Option(..., "--data", "-d", help="Pictures with classes: a folder, a name, sample:cifar10."),
    sides: str = typer.Option("3,7,13", "--kernels", help="Odd sides, separated by commas."),
    seeds: str = typer.Option("0", help="Runs of each, separated by commas."),
    epochs: int = typer.Option(10, help="Of each run."),
    size: int = typer.Option(64, help="Side of the pictures, in pixels."),
    resume: bool = typer.Option(True, help="Go on from the runs in --out if there are any."),
    output: Path = typer.Option(Path("runs/kernels"), "--out", help="Folder of the runs."),
) -> None:
    """The guidelines as an ablation: one network trained with each kernel size, without the small kernel beside it, without the shortcut."""
    from offprint.cli.console import quiet_lightning
    from offprint.methods.understanding.large_kernel_design import ablate

    quiet_lightning()
    result = ablate(
        data, output, kernels=_numbers(sides, "--kernels"), seeds=_numbers(seeds, "--seeds"), epochs=epochs, size=size,
        resume=resume, say=say,
    )  # fmt: skip
    table = Table(title=f"{data}, {epochs} epochs at {size} px", title_justify="left", header_style="bold")
    for column in ("kernels", "accuracy (%)", "receptive field (half)", "parameters", "multiply-adds"):
        table.add_column(column, justify="left" if column == "kernels" else "right", overflow="fold")
    for row in result["rows"]:
        spread = f" ({min(row['scores']):.1f} to {max(row['scores']):.1f})" if len(row["scores"]) > 1 else ""
        cost = (f"{row['parameters'] / 1e6:.2f} M", f"{row['macs'] / 1e6:.1f} M")
        table.add_row(row["arm"], f"{row['accuracy']:.1f}{spread}", _share(row["erf"]), *cost)
    out.print(table)
    say(str(output / "ablation.json"))


@measure.command()
def modes(
    model: str = typer.Argument(help="Model name, or torchvision/NAME."),
    batch: int = typer.Option(8, help="Pictures of a step."),
    size: int = typer.Option(224, help="Side of the pictures, in pixels."),
    part: list[str] = typer.Option([], "--part", help="Change only this submodule; may be repeated."),
    rounds: int = typer.Option(3, help="Turns; the best time of each mode counts."),
    output: Path = typer.Option(None, "--out", help="JSON file of the figures and of what was folded."),
) -> None:
    """Memory and time of a fine-tuning step with BatchNorms in train, tune, deploy and eval mode: is tune mode worth it at this batch?"""
    import torch

    from offprint.errors import OffprintError
    from offprint.methods.training._networks import named_network
    from offprint.methods.training.tune_mode import advice, fuse_report, in_mode, measure_modes

    for name, value, least in (("--batch", batch, 2), ("--size", size, 1), ("--rounds", rounds, 1)):
        if value < least:  # train mode normalises by the batch, which one picture may not be
            raise OffprintError(f"{name} {value}: give {least} or more")
    net = named_network(model)
    x = torch.randn(batch, getattr(net, "in_chans", 3), size, size)
    report = fuse_report(in_mode(net, "tune", part, x))
    found = measure_modes(net, x, rounds=rounds, parts=part)
    table = Table(title=f"{model}, {batch} x {size} px", title_justify="left", header_style="bold")
    for column in ("mode", "kept for the backward pass (MiB)", "seconds"):
        table.add_column(column, justify="left" if column == "mode" else "right", overflow="fold")
    for mode, row in found.items():
        table.add_row(mode, f"{row['mebibytes']:.1f}", f"{row['seconds']:.3f}")
    out.print(table)
    for line in (*str(report).splitlines(), advice(found)):
        say(line)
    if output is not None:
        say(str(_json(output, {"modes": found, "fused": report.fused, "left": report.left, "how": report.how})))
