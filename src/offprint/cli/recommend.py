"""``offprint recommend``: from a file of interactions to recommendations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import typer

from offprint.cli import _training as cli
from offprint.cli.console import bar, out, parse_overrides, quiet_lightning

recommend = typer.Typer(no_args_is_help=True, help="Train a recommender on your interactions, ask it, measure it.")
Folder = typer.Argument(help="The folder that offprint recommend fit wrote.")


@recommend.command()
def fit(
    interactions: str = typer.Argument(
        help="CSV, TSV, RecBole .inter, MovieLens .dat or .data, or Parquet of user, item[, weight, time]; lines of 'user item "
        "item ...'; a folder of train.txt and test.txt; or gowalla, lastfm (bundled), yelp2018, amazon-book, amazoncds, "
        "electronics."
    ),
    model: str = typer.Option("lightgcn", "--model", "-m", help="lightgcn, ultragcn, or a variant of one."),
    output: cli.Out = Path("runs/recommend"),
    test: str = typer.Option(None, help="A file of test interactions; nothing is split then."),
    split: str = typer.Option("random", help="random, leave-one-out, temporal or none."),
    fraction: float = typer.Option(0.2, help="Of the test part (random, temporal)."),
    min_weight: float = typer.Option(None, help="Count interactions of at least this weight; default: above 0."),
    columns: str = typer.Option(
        None,
        help="Unusual column names, or numbers from 1 where there is no header: user=NAME,item=NAME,time=NAME,weight=NAME.",
    ),
    epochs: cli.Epochs = None,
    batch_size: int = typer.Option(None, help="Pairs per step."),
    lr: float = typer.Option(None, help="Rate of Adam."),
    eval_every: int = typer.Option(None, help="Epochs between tests; 0 for none."),
    patience: int = typer.Option(
        None, help="Stop after so many tests without a better recall, and keep the best epoch."
    ),
    set_: cli.Set = [],  # noqa: B006 (Typer reads the default, nobody changes it)
    option: cli.ModelOption = [],  # noqa: B006
    checkpoint: str = typer.Option(None, help="Weights to start from, in any dialect of the model."),
    resume: cli.Resume = True,
    accelerator: cli.Accelerator = "auto",
    seed: cli.Seed = 0,
    logger: cli.Logger = "csv",
) -> None:
    """Train a recommender; a run that was interrupted goes on where it was."""
    from offprint.data.interactions import load_interactions
    from offprint.tasks.recommendation import train_recommender

    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "eval_every": eval_every, "patience": patience}
    overrides = parse_overrides(set_) | {k: v for k, v in given.items() if v is not None}
    names = parse_overrides(columns.split(",")) if columns else None
    data = load_interactions(
        interactions, test=test, split=split, fraction=fraction, seed=seed, min_weight=min_weight,
        columns={k: str(v) for k, v in names.items()} if names else None,
    )  # fmt: skip
    out.print(str(data), highlight=False, soft_wrap=True)
    for note in data.notes:
        out.print(f"  {note}", highlight=False, soft_wrap=True)
    quiet_lightning()
    summary = train_recommender(
        model, data, output, overrides=overrides, model_options=parse_overrides(option), checkpoint=checkpoint,
        resume=resume, seed=seed, accelerator=accelerator, logger=logger,
    )  # fmt: skip
    best, last = summary["best"], (summary["history"] or [None])[-1]
    out.print(
        f"{summary['epochs']} epochs, loss {summary['loss']:.4f}; weights: {summary['weights']}",
        highlight=False,
        soft_wrap=True,
    )
    for label, row in (("last test", last), ("best test (chosen on the test part)", best)):
        if row is not None and (label == "last test" or row != last):
            out.print(f"{label}, epoch {row['epoch']}: {_line(row)}", highlight=False, soft_wrap=True)
    out.print(f"next: offprint recommend query {output} --user {data.user_ids[0]}", highlight=False, soft_wrap=True)


@recommend.command()
def query(
    model: Path = Folder,
    user: list[str] = typer.Option([], "--user", "-u", help="Id of a user; may be repeated."),
    items: str = typer.Option(
        None, help="Ids of the items of a new user, with commas between; an id with a comma in it in double quotes."
    ),
    top: int = typer.Option(20, "--top", "-k", help="How many."),
    table: Path = typer.Option(None, "--csv", help="Write the recommendations of all users to this file."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """The best items that a user does not have yet."""
    from offprint.errors import OffprintError
    from offprint.tasks.recommendation import trained_recommender

    if sum((bool(user), items is not None, table is not None)) != 1:
        raise OffprintError("give one of --user ID, --items ID,ID,... (a new user) and --csv FILE (all users)")
    trained = trained_recommender(model)
    if table is not None:
        with bar() as progress:
            task = progress.add_task("ranking", total=None)
            done, without = trained.recommend_all(
                table, top, lambda now, total: progress.update(task, completed=now, total=total)
            )
        passed = f"; {without:,} users have no training interactions and were passed over" if without else ""
        passed += f"; {trained.complete:,} users have every item and got none" if trained.complete else ""
        out.print(f"{table}: {done:,} users{passed}", highlight=False, soft_wrap=True)
        return
    asked: list[tuple[str, dict]] = [(name, {"user": name}) for name in user]
    if items is not None:
        names = [name.strip() for name in next(csv.reader([items], skipinitialspace=True)) if name.strip()]
        asked = [("new user", {"items": names})]
    found = [(name, trained.recommend(**how, top=top)) for name, how in asked]
    if as_json:
        print(json.dumps([{"user": n, "items": [{"item": i, "score": s} for i, s in rows]} for n, rows in found]))
        return
    for name, rows in found:
        said = "" if rows else f" has all {trained.data.num_items:,} items; nothing is left to recommend"
        out.print(f"{name}:{said}", highlight=False, soft_wrap=True)
        for rank, (item, score) in enumerate(rows, 1):
            out.print(f"{rank:4}  {item}  {score:.4f}", highlight=False, markup=False, soft_wrap=True)


@recommend.command()
def evaluate(
    model: Path = Folder,
    top: list[int] = typer.Option([20], "--top", "-k", help="Cut-off; may be repeated."),
    all_users: bool = typer.Option(False, help="Divide by all users, not only by those with test items."),
    as_json: bool = typer.Option(False, "--json", help="Machine-readable output."),
) -> None:
    """Recall, precision, NDCG and hit rate on the test part, all items ranked; beside it, what popularity alone gives."""
    from offprint.tasks.ranking import evaluate_ranking
    from offprint.tasks.recommendation import popularity, trained_recommender

    trained = trained_recommender(model)
    with bar() as progress:
        task = progress.add_task("ranking", total=None)

        def advance(now: int, total: int) -> None:
            progress.update(task, completed=now, total=total)

        found = trained.evaluate(top, all_users=all_users, progress=advance)
        data = trained.data
        plain = evaluate_ranking(
            *popularity(data.train), data.train, data.test, top, all_users=all_users, progress=advance
        )
    if as_json:
        print(json.dumps({"model": found, "popularity": plain}))
        return
    out.print(f"{data}; means over {found['users']:,} users", highlight=False, soft_wrap=True)
    for label, row in ((trained.name, found), ("popularity", plain)):
        out.print(f"{label:>16}  {_line(row)}", highlight=False, soft_wrap=True)


def _line(row: dict) -> str:
    return "   ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)
