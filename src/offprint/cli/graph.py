"""``offprint graph fit|predict|evaluate``: ForwardGNN on a graph by name or from an archive."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, out

graph = typer.Typer(
    no_args_is_help=True, help="Train a graph network layer by layer (ForwardGNN), and predict with it."
)
Data = typer.Option(
    ..., "--data", "-d",
    help="Cora, CiteSeer, PubMed, Amazon_Photo, ...; or your own: FILE.npz or FILE.pt with edge_index (2, E), x (n, F), y (n,) and, if "
    "there are any, train_mask, val_mask, test_mask; or a folder of edges.csv, features.csv and labels.csv.",
)  # fmt: skip
Split = typer.Option("0", help="0 to 4: the paper's splits. public: the graph's own masks.")
Undirected = typer.Option(False, "--undirected", help="Add the opposite of every edge.")
Normalize = typer.Option(True, help="Make each row of features sum to one, as in the paper.")
Folder = typer.Argument(..., help="The folder that 'offprint graph fit' wrote, or its model.safetensors.")


def _load(data: str, normalize: bool, undirected: bool):
    import warnings

    warnings.filterwarnings("ignore", ".*torch.jit.script.*deprecated")  # said by torch_geometric when it is imported
    from offprint.data.own_graphs import open_graph

    return open_graph(data, normalize=normalize, undirected=undirected)


def _split(text: str) -> int | None:
    from offprint.errors import OffprintError

    if text == "public":
        return None
    if text not in ("0", "1", "2", "3", "4"):
        raise OffprintError(f"--split {text}: give 0, 1, 2, 3 or 4, or public for the graph's own masks")
    return int(text)


def _masks(found, split: int | None, task: str) -> None:
    from offprint.errors import DataError

    if split is None and (task == "link" or getattr(found, "train_mask", None) is None):
        what = "link prediction" if task == "link" else "this graph"
        raise DataError(f"{what} has no public split; give --split 0, 1, 2, 3 or 4")


def _model(folder: Path):
    from offprint.methods.training.forward_gnn import TrainedGNN

    return TrainedGNN.load(folder / "model.safetensors" if folder.is_dir() else folder)


def _per_depth(figures: list[float]) -> str:
    if len(figures) == 1:
        return f"{figures[0]:.2f} %"
    return ", ".join(f"{value:.2f} % with {depth}" for depth, value in enumerate(figures, 1)) + " layers"


@graph.command()
def fit(
    data: str = Data,
    method: str = typer.Option("sf", "--method", "-m", help="ff_la, ff_vn, sf, sf_top2loss, sf_top2input; link_fl, link_ff, "
                               "link_fl_topdown; backprop, link_backprop to compare with."),
    operator: str = typer.Option("gcn", help="gcn, sage or gat."),
    layers: int = typer.Option(2, "--layers", "-l", help="Depth."),
    hidden: int = typer.Option(128, help="Width."),
    output: Path = typer.Option(Path("runs/graph"), "--out", "-o", help="Folder for the model and its report."),
    split: str = Split,
    epochs: int = typer.Option(1000, help="At most, per layer (in all, where layers learn together)."),
    patience: int = typer.Option(100, help="Validations without a better one after which a layer is done."),
    lr: float = typer.Option(1e-3, help="Adam's learning rate."),
    weight_decay: float = typer.Option(None, help="Default 5e-4; 0 for link_fl_topdown."),
    temperature: float = typer.Option(1.0, help="Of the logits in training."),
    theta: float = typer.Option(2.0, help="Threshold of the goodness."),
    num_negatives: int = typer.Option(100, help="Wrong classes per training node, at most C - 1."),
    normalize: bool = Normalize,
    undirected: bool = Undirected,
    seed: int = typer.Option(0, help="Of everything random."),
    device: str = typer.Option("cpu", help="cpu, cuda, ..."),
    resume: bool = typer.Option(True, help="Go on from a run that was interrupted."),
) -> None:  # fmt: skip
    """Train a node classifier or link predictor; an interrupted run goes on with the same command."""
    from offprint.errors import unknown
    from offprint.methods.training import forward_gnn

    if method not in forward_gnn.METHODS:
        raise unknown("method", method, forward_gnn.METHODS)
    found, part = _load(data, normalize, undirected), _split(split)
    _masks(found, part, forward_gnn.METHODS[method].task)
    run = forward_gnn.fit(
        found, method, operator, layers, hidden=hidden, split=part, epochs=epochs, patience=patience, lr=lr,
        weight_decay=weight_decay, temperature=temperature, theta=theta, num_negatives=num_negatives, seed=seed, out=output,
        resume=resume, progress=True, device=device,
    )  # fmt: skip
    report = run.report
    trained = ", ".join(str(stage["epochs"]) for stage in report["stages"])
    out.print(f"test {report['metric']}: {_per_depth(report['test'])}\n"
              f"validation: {_per_depth(report['val'])}\n"
              f"epochs: {trained}; {report['seconds']:.0f} s; model: {output / 'model.safetensors'}",
              highlight=False, soft_wrap=True)  # fmt: skip


@graph.command()
def predict(
    folder: Path = Folder,
    data: str = Data,
    output: Path = typer.Option(Path("predictions.csv"), "--out", "-o", help="CSV file."),
    nodes: str = typer.Option(None, help="Node numbers, separated by commas; default all."),
    pairs: Path = typer.Option(None, help="CSV of two columns of node numbers (link predictors)."),
    depth: int = typer.Option(None, help="Read off at this depth; default all layers."),
    normalize: bool = Normalize,
    undirected: bool = Undirected,
) -> None:
    """Write a class and a score per class for each node, or a score for each pair (higher: more likely an edge)."""
    import torch

    from offprint.errors import OffprintError
    from offprint.files import atomic_write

    run = _model(folder)
    found = _load(data, normalize, undirected)
    if run.task == "link":
        if pairs is None:
            raise OffprintError("this model scores pairs; give --pairs FILE.csv with two columns of node numbers")
        wanted = _read_pairs(pairs)
        score = run.scores(found, wanted, depth)
        rows = [
            "source,target,score",
            *(f"{a},{b},{s:.6g}" for (a, b), s in zip(wanted.t().tolist(), score.tolist(), strict=True)),
        ]
        kind = "pairs"
    else:
        try:
            wanted = torch.tensor([int(v) for v in nodes.split(",")] if nodes else range(found.num_nodes))
        except ValueError:
            raise OffprintError(f"--nodes {nodes}: give whole numbers separated by commas") from None
        with bar() as progress:
            progress.add_task("predicting", total=None)
            score = run.scores(found, wanted, depth)
        head = ",".join(f"score_{c}" for c in range(score.shape[1]))
        rows = [f"node,class,{head}"]
        for node, values in zip(wanted.tolist(), score, strict=True):
            rows.append(f"{node},{int(values.argmax())}," + ",".join(f"{v:.6g}" for v in values.tolist()))
        kind = "nodes"
    atomic_write(output, "\n".join(rows) + "\n")
    out.print(f"{output}: {len(rows) - 1:,} {kind}", highlight=False, soft_wrap=True)


def _read_pairs(file: Path):
    import torch

    from offprint.errors import DataError

    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        fields = [part.strip() for part in line.split(",")]
        if not line.strip() or (number == 1 and not fields[0].lstrip("-").isdigit()):
            continue  # an empty line, or the header
        if len(fields) < 2 or not all(part.isdigit() for part in fields[:2]):
            raise DataError(f"{file}, line {number}: expected two node numbers, got {line!r}")
        found.append((int(fields[0]), int(fields[1])))
    if not found:
        raise DataError(f"{file} holds no pairs")
    return torch.tensor(found).t().contiguous()


@graph.command()
def evaluate(
    folder: Path = Folder,
    data: str = Data,
    split: str = Split,
    normalize: bool = Normalize,
    undirected: bool = Undirected,
) -> None:
    """Print the test figure of a split per depth, by the model as it was saved."""
    from offprint.methods.training._forward_data import link_parts, link_split, node_parts

    run, found, part = _model(folder), _load(data, normalize, undirected), _split(split)
    _masks(found, part, run.task)
    if run.task == "link":
        edges, pairs, label = link_parts(link_split(found, part or 0))[2]
        found.edge_index = edges
        figures = run.evaluate(found, pairs, label)
    else:
        y, (_, _, test), _ = node_parts(found, None, part)
        figures = run.evaluate(found, test, y[test])
    out.print(f"test {run.report['metric']}: {_per_depth(figures)}", highlight=False, soft_wrap=True)
