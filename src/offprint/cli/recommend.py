"""``offprint recommend``: from a file of interactions to recommendations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import typer

from offprint.cli._moved import has, moved, positional
from offprint.cli._options import LOOSE
from offprint.cli.console import bar, out

recommend = typer.Typer(no_args_is_help=True, help="Ask a trained recommender.")
Folder = typer.Argument(help="The folder of a run: offprint train --model lightgcn --data INTERACTIONS.")


@recommend.command(context_settings=LOOSE)
def fit(ctx: typer.Context) -> None:
    """The older name of 'offprint train' for recommenders."""
    interactions, rest = positional(ctx.args, "recommend fit", "a file of interactions, or a name")
    model = [] if has(rest, "--model", "-m") else ["--model", "lightgcn"]
    out_ = [] if has(rest, "--out") else ["--out", "runs/recommend"]
    moved("recommend fit", ["train", *model, "--data", interactions, *out_, *rest])


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


@recommend.command(context_settings=LOOSE)
def evaluate(ctx: typer.Context) -> None:
    """The older name of 'offprint evaluate' for recommenders."""
    moved("recommend evaluate", ["evaluate", *ctx.args])
