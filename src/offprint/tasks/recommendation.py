"""From interactions to a trained recommender, its evaluation, and recommendations; for any model that keeps to :class:`Recommender`."""

from __future__ import annotations

import csv
import dataclasses
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from offprint.data.draws import Triples
from offprint.data.interactions import Interactions, load_interactions
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import local_path
from offprint.models.checkpoint import load_weights, save_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entries, entry
from offprint.tasks.contract import Job, Ready, Task, register_task, train
from offprint.tasks.ranking import evaluate_ranking, popularity, top_items
from offprint.tasks.results import Figures, Result, bars
from offprint.tasks.running import Fitted, RecipeTask


class Recommender(Protocol):
    """What a model offers to be trained and asked here, besides being a module built with ``num_users`` and ``num_items``.

    ``sampling`` holds the arguments of :class:`~offprint.data.draws.Triples` (by, negatives, reject).
    """

    num_users: int
    num_items: int
    sampling: Mapping[str, Any]

    def set_interactions(self, train: sp.csr_matrix) -> None:
        """Derive from the training matrix (N, M) what the model needs; called once, before all else."""

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """The loss of a batch: rows (B,), (B,), and (B,) or (B, negatives), int64."""

    def final_embeddings(self) -> tuple[Tensor, Tensor]:
        """(N, d) and (M, d) whose inner products rank the items, without gradients."""

    def fold_in(self, items: sp.csr_matrix) -> Tensor:
        """(B, d): embeddings of B new users who have these items (B, M), without training."""


@dataclass(frozen=True)
class RecommenderRecipe:
    """How a recommender is trained: Adam at a constant rate.

    Attributes:
        epochs, lr, batch_size: as they are called.
        eval_every: epochs between two tests on the test part (0: none in training).
        eval_each_from: from this epoch on, a test after each one (0: never).
        patience: stop after so many tests without a better Recall at the first of ``top``, and keep the best (0: never, keep
            the last). This chooses the epoch on the test part, as the papers do.
        top: cut-offs of the metrics.
    """

    epochs: int = 100
    lr: float = 1e-3
    batch_size: int = 2048
    eval_every: int = 10
    eval_each_from: int = 0
    patience: int = 0
    top: tuple[int, ...] = (20,)
    clip_grad: float = 0.0

    @classmethod
    def of(cls, model: str, **overrides: Any) -> RecommenderRecipe:
        """A model's own recipe with these fields changed; a model that is no recommender is refused."""
        if not hasattr(entry(model).build, "fold_in"):
            raise OffprintError(f"{model} is not a recommender; choose among {', '.join(recommenders())}")
        fields = {f.name for f in dataclasses.fields(cls)}
        given = {**entry(model).recipe, **overrides}
        for name in given:
            if name not in fields:
                raise unknown("field of the recipe", name, fields)
        for name in fields & set(given) - {"top"}:
            if isinstance(given[name], bool) or not isinstance(given[name], int | float):
                raise OffprintError(f"{name}={given[name]!r} is not a number")
        recipe = cls(**given)
        if recipe.epochs < 1 or recipe.batch_size < 1 or not recipe.lr > 0:
            raise OffprintError("epochs and batch_size must be 1 or more, and lr above 0")
        return recipe


class Recommendation(RecipeTask):
    """Trains a :class:`Recommender`."""

    def training_step(self, batch, batch_idx) -> Tensor:
        loss = self.model.loss(*batch)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=1)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.model.parameters(), self.recipe.lr, fused=True)


class _Epoch(IterableDataset):
    def __init__(self, size: int, batches: Iterable[tuple[np.ndarray, ...]]):
        self.size, self.batches = size, batches

    def __len__(self) -> int:
        return self.size

    def __iter__(self):
        return (tuple(map(torch.from_numpy, batch)) for batch in self.batches)


class TripleData(L.LightningDataModule):
    """Batches that depend on the seed and the epoch alone."""

    def __init__(self, sampler: Triples, seed: int):
        super().__init__()
        self.sampler, self.seed, self.batch_size = sampler, seed, sampler.batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            _Epoch(*self.sampler.epoch(1_000_003 * self.seed, self.trainer.current_epoch)), batch_size=None
        )


class _Tests(Callback):
    """Measures the model on the test part every so often, remembers the figures, keeps the best, stops when it is time."""

    def __init__(self, data: Interactions, recipe: RecommenderRecipe, best: Path):
        self.data, self.recipe, self.best = data, recipe, best
        self.history: list[dict] = []
        self.loss: float | None = None
        self.goal = f"recall@{recipe.top[0]}"

    def due(self, epoch: int) -> bool:
        every, each = self.recipe.eval_every, self.recipe.eval_each_from
        if not self.data.test.nnz or not every:
            return False
        return epoch % every == 0 or (each > 0 and epoch >= each) or epoch == self.recipe.epochs

    def _over(self) -> bool:
        """Whether patience has run out."""
        scores = [row[self.goal] for row in self.history]
        return (
            bool(self.recipe.patience and scores)
            and len(scores) - 1 - scores.index(max(scores)) >= self.recipe.patience
        )

    def on_train_start(self, trainer, module) -> None:
        trainer.should_stop = self._over()

    def on_train_epoch_end(self, trainer, module) -> None:
        epoch = trainer.current_epoch + 1
        self.loss = float(trainer.callback_metrics["train_loss_epoch"])
        if not self.due(epoch):
            return
        found = evaluate_ranking(*module.model.final_embeddings(), self.data.train, self.data.test, self.recipe.top)
        self.history.append({"epoch": epoch, "loss": self.loss, **found})
        module.log(self.goal, found[self.goal], prog_bar=True)
        if self.recipe.patience and found[self.goal] > max((row[self.goal] for row in self.history[:-1]), default=-1.0):
            save_weights(module.model, self.best)
        trainer.should_stop = self._over()

    def state_dict(self) -> dict:
        return {"history": self.history, "loss": self.loss}

    def load_state_dict(self, state: dict) -> None:
        self.history, self.loss = state["history"], state["loss"]


def recommenders() -> list[str]:
    """Names of the models that can be trained here."""
    return sorted(n for n, e in entries().items() if hasattr(e.build, "fold_in"))


def _build(model: str, data: Interactions, options: Mapping[str, Any]):
    try:
        return create_model(model, **{**options, "num_users": data.num_users, "num_items": data.num_items})
    except TypeError as error:
        raise OffprintError(f"an argument of {model} is of the wrong kind: {error}") from error


def _digest(data: Interactions) -> int:
    """Of the matrices and ids, so that a run is not gone on with on other data."""
    value = zlib.crc32(json.dumps([list(data.user_ids), list(data.item_ids)]).encode())
    for matrix in (data.train, data.test):
        for part in (matrix.indptr, matrix.indices):
            value = zlib.crc32(part.astype(np.int64).tobytes(), value)
    return value


@dataclass
class Recommendations(Result):
    """What to offer users. Each row: ``user`` and ``items``, a list of ``item`` and ``score``, best first."""

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"user": row["user"], "rank": rank, **found}
            for row in self.rows
            for rank, found in enumerate(row["items"], 1)
        ]

    def draw(self, path: str | Path) -> Path:
        """Bars of the scores."""
        return bars(path, {f"{r['user']}: {r['item']}": float(r["score"]) for r in self.flat()[:40]})


class RecommendationTask(Task):
    """Recommenders on interactions of users with items, all items ranked."""

    name = "recommendation"
    does = "recommends items to users"
    made = ("best.safetensors", "interactions.npz")

    def recipe(
        self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None
    ) -> RecommenderRecipe:
        return RecommenderRecipe.of(spec.name, **(overrides or {}))

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        test: str | None = None,
        split: str = "random",
        fraction: float = 0.2,
        min_weight: float | None = None,
        columns: str | None = None,
    ) -> Interactions:
        """Open interactions.

        Args:
            source: a CSV, TSV, RecBole .inter, MovieLens .dat or .data, or Parquet table of user, item[, weight, time]; lines of "user
                item item ..."; a folder of train.txt and test.txt; gowalla, lastfm (bundled), yelp2018, amazon-book, amazoncds or electronics; or
                :class:`~offprint.data.interactions.Interactions`.
            test: a file of test interactions; nothing is split then.
            split: random, leave-one-out, temporal or none.
            fraction: of the test part (random, temporal).
            min_weight: count interactions of at least this weight; default above 0.
            columns: unusual column names, or numbers from 1 where there is no header, as user=NAME,item=NAME,time=NAME,weight=NAME.
        """
        if isinstance(source, Interactions):
            return source
        names = None
        if columns:
            names = dict(part.split("=", 1) for part in columns.split(",") if "=" in part)
            if len(names) != len(columns.split(",")):
                raise OffprintError(f"columns={columns!r}; give user=NAME,item=NAME[,time=NAME][,weight=NAME]")
        return load_interactions(
            source, test=test, split=split, fraction=fraction, seed=seed, min_weight=min_weight, columns=names
        )

    def digest(self, data: Interactions) -> Any:
        return _digest(data)

    def build(self, job: Job):
        network = _build(job.model, job.data, job.model_options)
        if job.pretrained:
            raise OffprintError(f"{job.model} has tables of its own data set; start from a file with --checkpoint")
        if job.checkpoint:
            load_weights(network, job.checkpoint)
        network.set_interactions(job.data.train)
        return network

    def about(self, job: Job) -> dict[str, Any]:
        return {"data": job.data.name}

    def greeting(self, job: Job) -> Sequence[str]:
        return [str(job.data), *(f"  {note}" for note in job.data.notes)]

    def module(self, job: Job) -> Recommendation:
        if job.folder.writes and not job.folder.last.exists():
            job.data.save(job.folder / "interactions.npz")
        return Recommendation(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> TripleData:
        return TripleData(Triples(job.data.train, job.how.batch_size, **job.network.sampling), job.run.seed)

    def callbacks(self, job: Job) -> Sequence[Callback]:
        job.settled["tests"] = _Tests(job.data, job.how, job.folder / "best.safetensors")
        return (job.settled["tests"],)

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        tests, best = job.settled["tests"], job.folder / "best.safetensors"
        if job.how.patience and best.is_file():
            load_weights(job.network, best)
        return {
            "model": job.model, "user": str(job.data.user_ids[0]), "data": str(job.data), "asked": job.how.epochs,
            "stopped": fitted.trainer.current_epoch < job.how.epochs, "loss": tests.loss, "history": tests.history,
            "best": max(tests.history, key=lambda row: row[tests.goal], default=None),
        }  # fmt: skip

    def done(self, job: Job, before: dict[str, Any]) -> dict[str, Any] | None:
        if before.get("stopped") or before.get("asked") == job.how.epochs:
            return before
        return super().done(job, before)

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        loss = "" if figures["loss"] is None else f", loss {figures['loss']:.4f}"
        said = [f"{figures['epochs']} epochs{loss}; weights: {folder / 'model.safetensors'}"]
        best, last = figures["best"], (figures["history"] or [None])[-1]
        if last is not None:
            said.append(f"last test, epoch {last['epoch']}: {_line(last)}")
            if best != last:
                said.append(f"best test (chosen on the test part), epoch {best['epoch']}: {_line(best)}")
        user = figures.get("user", "ID")
        return [*said, f"next: offprint recommend query {folder} --user {user}"]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        held = trained_recommender(folder)
        return Ready(self, held.model, held.name, {**about, "trained": held}, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        raise OffprintError(
            f"{name} is used with the interactions it knows; give the folder of a run (offprint train --model {name} --data ...)"
        )

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        top: tuple[int, ...] = (20,),
        all_users: bool = False,
        ranking: str = "scores",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Recall, precision, NDCG and hit rate, all items ranked; beside them what popularity alone gives.

        Args:
            top: cut-off; may be repeated.
            all_users: divide by all users, not only by those with test items.
            ranking: scores, or sigmoid as the authors of LightGCN rank.
        """
        held = ready.about["trained"]
        known = held.data if data is None else _as_test(held.data, self.open(data, split="none"))
        advance = _counter(progress)
        found = evaluate_ranking(
            *held.embeddings, known.train, known.test, top, all_users=all_users, ranking=ranking, progress=advance
        )
        plain = evaluate_ranking(
            *popularity(known.train), known.train, known.test, top, all_users=all_users, progress=advance
        )
        return Figures.of(found, beside={"popularity": plain}, notes=[f"{known}; means over {found['users']:,} users"])

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        top: int = 20,
        progress: Callable[..., None] | None = None,
    ) -> Recommendations:
        """The best items that users do not have yet.

        Args:
            inputs: ids of users.
            top: how many items each.
        """
        held = ready.about["trained"]
        users = [inputs] if isinstance(inputs, str | int) else list(inputs)
        rows = [(user, held.recommend(user, top=top)) for user in users]
        return Recommendations([{"user": u, "items": [{"item": i, "score": s} for i, s in found]} for u, found in rows])


def _counter(progress: Callable[..., None] | None) -> Callable[[int, int], None] | None:
    """A progress of (done, total) that tells one of steps."""
    if progress is None:
        return None
    state = {"total": 0, "done": 0}

    def advance(done: int, total: int) -> None:
        if total != state["total"]:
            state.update(total=total, done=0)
            progress(total=total)
        for _ in range(done - state["done"]):
            progress(text="ranking")
        state["done"] = done

    return advance


def _as_test(known: Interactions, given: Interactions) -> Interactions:
    """The same users and items with these interactions as the test part; who is not known is left out.

    Raises:
        DataError: nobody and nothing is known.
    """
    users = {name: i for i, name in enumerate(known.user_ids)}
    items = {name: i for i, name in enumerate(known.item_ids)}
    rows, columns = (given.train + given.test).nonzero()
    pairs = [
        (users[given.user_ids[u]], items[given.item_ids[i]])
        for u, i in zip(rows.tolist(), columns.tolist(), strict=True)
        if given.user_ids[u] in users and given.item_ids[i] in items
    ]
    if not pairs:
        raise DataError(f"none of {given} is known to the model, which was trained on {known}")
    u, i = np.array(pairs).T
    test = sp.csr_matrix((np.ones(len(u), np.float32), (u, i)), shape=known.train.shape)
    test = (test - test.multiply(known.train > 0)).tocsr()
    test.eliminate_zeros()
    return dataclasses.replace(known, test=test)


def _line(row: Mapping[str, Any]) -> str:
    return "   ".join(f"{name} {value:.4f}" for name, value in row.items() if "@" in name)


def train_recommender(
    model: str,
    data: Interactions,
    out: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Any]:
    """:func:`offprint.train` for recommendation, with a plain dictionary of figures.

    Args:
        model: name of a model (``lightgcn``, ``ultragcn``); its table sizes come from the data.
        data, out, model_options, checkpoint, callbacks: as there.
        overrides: fields of :class:`RecommenderRecipe`.
        **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        ``epochs``, ``loss``, ``history`` (a row per test), ``best`` (its best row), ``weights`` (path), ``stopped``.
    """
    RecommenderRecipe.of(model, **(overrides or {}))
    return dict(train(
        model, data, out, task="recommendation", recipe=overrides, model_options=model_options, checkpoint=checkpoint,
        callbacks=callbacks, **settings,
    ))  # fmt: skip


@dataclass
class Trained:
    """A trained recommender with the interactions it knows."""

    model: Any
    data: Interactions
    name: str

    @cached_property
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of users (N, d) and items (M, d)."""
        return self.model.final_embeddings()

    @cached_property
    def _known(self) -> np.ndarray:
        return np.diff(self.data.train.indptr) > 0

    @cached_property
    def owned(self) -> sp.csr_matrix:
        """(N, M): all that users have, what was held out for the test included; none of it is recommended."""
        both = self.data.train.maximum(self.data.test).tocsr()
        both.sort_indices()
        return both

    @property
    def complete(self) -> int:
        """How many of the known users have every item, so that nothing is left to recommend to them."""
        return int((self._known & (np.diff(self.owned.indptr) == self.data.num_items)).sum())

    def recommend(self, user=None, *, items: Iterable | None = None, top: int = 20) -> list[tuple[Any, float]]:
        """The best items that a user does not have, or that a new user who has ``items`` does not: ids and scores, best first.

        Whoever has every item gets an empty list.

        Raises:
            OffprintError: an unknown id; a user without training interactions.
        """
        _check_top(top)
        if (user is None) == (items is None):
            raise OffprintError("give a user, or the items of a new user")
        if user is not None:
            row = self.data.user_index(user)
            if not self._known[row]:
                raise DataError(
                    f"user {user} has no training interactions, so nothing is known of it; give items of it"
                )
            seen, users = self.owned[row], self.embeddings[0][row : row + 1]
        else:
            seen = self.data.items_of(items)  # type: ignore[arg-type]
            users = self.model.fold_in(seen)
            if not users.any():
                raise DataError("none of these items has training interactions, so they say nothing; give others")
        _, scores, best = next(top_items(users, self.embeddings[1], seen, top))
        return [(self.data.item_ids[i], s) for i, s in zip(best[0].tolist(), scores[0].tolist(), strict=True) if i >= 0]

    def recommend_all(
        self, path: str | Path, top: int = 20, progress: Callable[[int, int], None] | None = None
    ) -> tuple[int, int]:
        """Write user, rank, item, score of all users to a CSV file, streamed, whole or not at all; :attr:`complete` have no row.

        Returns:
            Users written, and users passed over because they have no training interactions.
        """
        _check_top(top)
        rows, path = np.nonzero(self._known)[0], local_path(path, "the table of recommendations")
        path.parent.mkdir(parents=True, exist_ok=True)
        part, done = path.with_name(f".{path.name}.part"), 0
        try:
            with part.open("w", newline="", encoding="utf-8") as stream:
                table = csv.writer(stream)
                table.writerow(["user", "rank", "item", "score"])
                for users, scores, best in top_items(*self.embeddings, self.owned, top, rows=rows):
                    for u, s, b in zip(users.tolist(), scores.tolist(), best.tolist(), strict=True):
                        name = self.data.user_ids[u]
                        table.writerows(
                            (name, rank, self.data.item_ids[i], f"{v:.6g}")
                            for rank, (v, i) in enumerate(zip(s, b, strict=True), 1)
                            if i >= 0
                        )
                    done += len(users)
                    if progress:
                        progress(done, len(rows))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return len(rows), self.data.num_users - len(rows)

    def evaluate(
        self, top: Sequence[int] = (20,), *, all_users: bool = False, ranking: str = "scores", progress=None
    ) -> dict[str, float]:
        """:func:`~offprint.tasks.ranking.evaluate_ranking` on the test part."""
        data = self.data
        return evaluate_ranking(
            *self.embeddings, data.train, data.test, top, all_users=all_users, ranking=ranking, progress=progress
        )


def _check_top(top: int) -> None:
    if top < 1:
        raise OffprintError(f"top={top}: ask for one item or more")


def trained_recommender(folder: str | Path) -> Trained:
    """The recommender of a folder that :func:`train_recommender` wrote.

    Raises:
        OffprintError: another folder, or a run that has not finished.
    """
    folder = Path(folder)
    if not (folder / "settings.json").is_file() or not (folder / "interactions.npz").is_file():
        raise OffprintError(
            f"{folder} is not the folder of a recommender; make one with offprint recommend fit --out {folder}"
        )
    if not (folder / "model.safetensors").is_file():
        raise OffprintError(f"{folder} holds a run that has not finished; the same fit command goes on with it")
    settings = json.loads((folder / "settings.json").read_text())
    data = Interactions.load(folder / "interactions.npz")
    model = _build(settings["model"], data, settings["options"]).eval()
    load_weights(model, folder / "model.safetensors")
    model.set_interactions(data.train)
    return Trained(model, data, settings["model"])


register_task(RecommendationTask())
