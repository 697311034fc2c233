"""Training on brain scans: pre-training without labels, and fine-tuning on few; for what comes after see ``brain_use``."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from offprint.data.brain_series import (
    Labels,
    Scans,
    check_series,
    make_labels,
    open_series,
    read_labels,
    split_scans,
)
from offprint.data.images import EpochSampler, Seeded
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.checkpoint import save_weights
from offprint.models.factory import create_model
from offprint.models.graphs.fmri_ssl import STAGIN
from offprint.models.registry import Entry, entry
from offprint.tasks.brain_use import (
    SHARED,
    batches,
    csv_text,
    describe,
    digest,
    each,
    fitting,
    head_of,
    load_encoder,
    load_run,
    mark_of,
    rows_of,
    stack,
    write_table,
)
from offprint.tasks.contract import Job, Ready, Task, Trained, register_task, train
from offprint.tasks.folder import WEIGHTS, read_about
from offprint.tasks.results import Figures, Result, canvas, finish
from offprint.tasks.running import Fitted, RecipeTask


@dataclass(frozen=True)
class BrainRecipe:
    """STAGIN's recipe: Adam and one cycle of the rate, ``lr`` → ``max_lr`` within the share ``rise`` of the steps → ``lr / final_div``.

    ``orthogonality`` weights the term that keeps regions apart (fine-tuning only); ``clip_grad`` 0 clips nothing.
    """

    lr: float = 5e-4
    max_lr: float = 1e-3
    rise: float = 0.2
    final_div: float = 1000.0
    weight_decay: float = 0.0
    epochs: int = 30
    batch_size: int = 3
    clip_grad: float = 0.0
    orthogonality: float = 1e-5

    def __post_init__(self):
        for name in ("lr", "max_lr", "final_div", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must be above 0")
        for name in ("weight_decay", "clip_grad", "orthogonality"):
            if not getattr(self, name) >= 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must not be negative")
        if not 0 < self.rise < 1:
            raise OffprintError(f"recipe: rise={self.rise!r}; it is a share of the steps between 0 and 1")
        if self.max_lr < self.lr:
            raise OffprintError(
                f"recipe: max_lr={self.max_lr:g} lies below lr={self.lr:g}; the rate rises from lr to max_lr"
            )

    @classmethod
    def of(cls, model: str, **overrides: Any) -> BrainRecipe:
        """The recipe of a model with fields overridden; ``lr`` alone moves ``max_lr`` along.

        Raises:
            OffprintError: an override names no field.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in overrides:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        fields = {**entry(model).recipe, **overrides}
        if "lr" in overrides and "max_lr" not in overrides:
            fields["max_lr"] = overrides["lr"] * cls.max_lr / cls.lr
        return cls(**fields)

    def optimizer(self, model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any]:
        """Adam and its schedule, to be stepped after each of ``steps`` batches."""
        adam = torch.optim.Adam(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            adam, self.max_lr, total_steps=max(2, steps), pct_start=self.rise, div_factor=self.max_lr / self.lr,
            final_div_factor=self.final_div,
        )  # fmt: skip
        return adam, cycle


class _Parts(Dataset):
    """(series, first frame, target) of scans; the first frame is drawn so that ``length`` frames fit (0 with no length)."""

    def __init__(self, scans: Scans, targets: Tensor, length: int | None):
        self.scans, self.targets, self.length = scans, targets, length

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        series = torch.from_numpy(self.scans.series[i])
        start = int(torch.randint(len(series) - self.length, ())) if self.length else 0
        return series, start, self.targets[i]


def _pad(items: list) -> tuple[Tensor, Tensor, Tensor]:
    """Scans of different length side by side: zeros follow the shorter ones, and no window reaches them."""
    series = nn.utils.rnn.pad_sequence([x for x, _, _ in items], batch_first=True)
    return series, torch.tensor([s for _, s, _ in items]), torch.stack([y for _, _, y in items])


class ScanData(L.LightningDataModule):
    """Loaders whose order and parts depend on (seed, epoch) alone; held-out scans are used whole."""

    def __init__(
        self, train: tuple[Scans, Tensor], val: tuple[Scans, Tensor] | None, length: int | None, batch_size: int,
        workers: int = 0, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.train, self.val = Seeded(_Parts(*train, length), seed), val
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        t = self.trainer
        sampler = EpochSampler(len(self.train), t.current_epoch, self.seed, t.global_rank, t.world_size)
        return DataLoader(self.train, self.batch_size, sampler=sampler, num_workers=self.workers, collate_fn=_pad)

    def val_dataloader(self) -> DataLoader | list:
        if self.val is None:
            return []
        scans, targets = self.val
        mine = batches(scans, self.batch_size)[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(_Parts(scans, targets, None), batch_sampler=mine, collate_fn=_pad)


class _BrainTask(RecipeTask):
    def configure_optimizers(self):
        optimizer, cycle = self.recipe.optimizer(self.model, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


class BrainPretraining(_BrainTask):
    """Spatio-temporal masked pre-training; labels are not looked at."""

    def training_step(self, batch, batch_idx) -> Tensor:
        series, start, _ = batch
        out = self.model(series, start)
        self.check_loss(out.loss)
        self.log("train_loss", out.loss, prog_bar=True, batch_size=len(series))
        return out.loss

    def validation_step(self, batch, batch_idx) -> None:
        out = self.model(batch[0], whole=True, generator=_generator(self.seed, batch_idx))
        for name, value in out._asdict().items():
            self.log(f"val_{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=len(batch[0]))


def _generator(seed: int, index: int) -> torch.Generator:
    """The same windows, regions and edges in every epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


class BrainFineTuning(_BrainTask):
    """Classification (cross entropy) or regression (mean squared error) of scans, with STAGIN's orthogonality term."""

    def __init__(self, model: STAGIN, recipe: BrainRecipe, classes: int, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.classes = classes

    def loss(self, logit: Tensor, y: Tensor) -> Tensor:
        """Of logits (B, classes), or (B, 1), and targets (B,)."""
        return F.cross_entropy(logit, y) if self.classes else F.mse_loss(logit.squeeze(-1), y.to(logit.dtype))

    def training_step(self, batch, batch_idx) -> Tensor:
        series, start, y = batch
        if self.recipe.orthogonality:
            out = self.model.details(series, start)
            loss = self.loss(out.logit, y) + self.recipe.orthogonality * out.orthogonality
        else:
            loss = self.loss(self.model(series, start), y)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(series))
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        series, _, y = batch
        logit = self.model(series, whole=True)
        self.log("val_loss", self.loss(logit, y), prog_bar=True, sync_dist=True, batch_size=len(y))
        if self.classes:
            hit = 100 * (logit.argmax(1) == y).float().mean()
            self.log("val_accuracy", hit, prog_bar=True, sync_dist=True, batch_size=len(y))


def part_length(scans: Scans, length: int | None) -> int | None:
    """Frames of each scan that a training step uses: ``length``, or fewer where the shortest scan has no more.

    ``None`` (all frames) only where all scans are equally long.
    """
    alike = len({len(x) for x in scans.series}) == 1
    if alike and (length is None or length >= scans.shortest):
        return None
    return min(length or scans.shortest, scans.shortest - 1)


def _length(options: Mapping[str, Any]) -> int | None:
    """Frames of each scan that a model reads in a step, as its arguments or their default say."""
    return options.get("length", 600)


class _Scans(Task):
    """What both stages share: scans, the arguments of a model that follow from them, STAGIN's recipe."""

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> BrainRecipe:
        return BrainRecipe.of(spec.name, **(overrides or {}))

    def settle(self, job: Job, scans: Scans, before: Mapping[str, Any]) -> None:
        """The model's arguments: its own, those of the weights it starts from, those of the scans, and what was asked for."""
        options = {**job.entry.kwargs, **{k: v for k, v in before.get("options", {}).items() if k in SHARED}}
        options |= job.model_options
        check_series(dict(zip(scans.ids, scans.series, strict=True)), options.get("window", 50))
        if before and before["options"]["num_regions"] != scans.num_regions:
            raise DataError(
                f"{job.checkpoint} was trained on {before['options']['num_regions']} regions, the scans have {scans.num_regions}; "
                "use scans of the same parcellation"
            )
        options["num_regions"] = scans.num_regions
        options["length"] = part_length(scans, _length(options))
        job.model_options = options

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        labels: str | None = None,
        target: str | None = None,
        batch_size: int = 4,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Figures on labelled scans.

        Args:
            labels: CSV or TSV with a column of subjects and the target's.
            target: column to predict; default that of the run.
            batch_size: scans at once.
        """
        raise OffprintError(
            f"{ready.folder} is a pre-trained encoder, which predicts nothing; fine-tune it: "
            f"offprint train --model {ready.folder} --task connectivity --data SERIES --labels FILE --target COLUMN"
        )


class ConnectivityPretraining(_Scans):
    """Spatio-temporal masked pre-training on scans without labels."""

    name = "connectivity-pretraining"
    does = "pre-trains on brain scans without labels"

    def open(self, source: Any, *, seed: int = 0) -> Scans:
        """Open scans.

        Args:
            source: a folder of .npy, .csv or .tsv files (frames x regions), one per subject; one .npy or .npz of all; or arrays.
        """
        return source if isinstance(source, Scans) else open_series(source)

    def digest(self, data: Scans) -> str:
        return digest(data)

    def prepare(
        self, job: Job, *, val_fraction: float = 0.1, window: int | None = None, stride: int | None = None
    ) -> None:
        """Hold scans out, and settle the windows.

        Args:
            val_fraction: share of the scans that reconstruction is measured on.
            window: frames per window; default 50.
            stride: frames between windows; default 3.
        """
        scans = job.data
        job.model_options |= {k: v for k, v in (("window", window), ("stride", stride)) if v is not None}
        self.settle(job, scans, {})
        held = round(val_fraction * len(scans))
        if not 0 <= held < len(scans):
            raise OffprintError(f"val_fraction={val_fraction} leaves none of {len(scans)} scans to train on")
        order = np.random.default_rng(job.run.seed).permutation(len(scans)).tolist()
        shown, hidden = scans.take(sorted(order[held:])), scans.take(sorted(order[:held]))
        job.settled = {"val_fraction": val_fraction, "shown": shown, "hidden": hidden}

    def build(self, job: Job) -> nn.Module:
        if job.pretrained or job.checkpoint:
            raise OffprintError(f"{job.model} starts from random weights; leave --pretrained and --checkpoint out")
        return create_model(job.model, **job.model_options)

    def about(self, job: Job) -> dict[str, Any]:
        return {"val_fraction": job.settled["val_fraction"], "scans": len(job.data), "data": job.data.about}

    def module(self, job: Job) -> BrainPretraining:
        return BrainPretraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> ScanData:
        shown, hidden = job.settled["shown"], job.settled["hidden"]
        return ScanData(
            (shown, torch.zeros(len(shown))), (hidden, torch.zeros(len(hidden))) if len(hidden) else None,
            job.model_options["length"], min(job.how.batch_size, len(shown)), job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        losses = _reconstruction(job.network, job.settled["hidden"], job.how.batch_size, job.run.seed)
        return {**losses, "scans": len(job.data), "data": job.data.about}

    def save(self, job: Job) -> None:
        save_weights(job.network.encoder, job.folder / WEIGHTS)

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        said = []
        if figures["loss"] is not None:
            said.append(
                f"{figures['scans']} scans, {figures['epochs']} epochs; on held-out scans the loss is {figures['loss']:.4f} "
                f"(hidden regions {figures['spatial_node']:.4f}, edges {figures['spatial_edge']:.4f}; windows between others "
                f"{figures['temporal_node']:.4f}, {figures['temporal_edge']:.4f})"
            )
        said += [f"the scans are {figures['data']}"] if figures["data"] else []
        next_ = f"next: offprint train --model {folder} --task connectivity --data SERIES --labels labels.csv --target COLUMN"
        return [*said, f"weights: {folder / WEIGHTS}", next_]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        model, spec = load_run(folder)
        return Ready(self, model, about["model"], spec, folder)

    def predict(self, ready: Ready, inputs: Any, *, progress: Callable[..., None] | None = None) -> Result:
        """A pre-trained encoder gives vectors: ``offprint brain embed``."""
        self.evaluate(ready)
        raise AssertionError


@torch.no_grad()
def _reconstruction(network: nn.Module, scans: Scans, size: int, seed: int) -> dict[str, float | None]:
    """Losses on whole scans, the mean over scans."""
    sums: dict[str, float | None] = dict.fromkeys(
        ("loss", "spatial_node", "spatial_edge", "temporal_node", "temporal_edge")
    )
    for index, group in enumerate(batches(scans, size) if len(scans) else []):
        out = network(stack(scans, group), whole=True, generator=_generator(seed, index))
        for name, value in out._asdict().items():
            sums[name] = (sums[name] or 0.0) + float(value) * len(group) / len(scans)
    return sums


@dataclass
class Labelled:
    """Labelled scans: those that are shown and those that are held out."""

    scans: Scans
    labels: Labels
    shown: list[int]
    hidden: list[int]
    fold: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Mean and spread of the shown targets, where they are numbers."""
        if self.labels.classes:
            return 0.0, 1.0
        values = self.labels.values[self.shown]
        return float(values.mean()), float(values.std()) or 1.0

    @property
    def goals(self) -> Tensor:
        """What the model learns to say."""
        values, (mean, std) = self.labels.values, self.scale
        return torch.from_numpy(values) if self.labels.classes else torch.from_numpy((values - mean) / std).float()


@dataclass
class ScanPredictions(Result):
    """Predicted classes or values of scans. Each row: ``subject``, the target, and per class a probability."""

    target: str = "label"

    def draw(self, path: str | Path) -> Path:
        """How the predictions are spread."""
        figure, axes = canvas(6, 4)
        values = [row[self.target] for row in self.rows]
        if all(isinstance(v, int | float) for v in values):
            axes.hist(values, bins=20, color="#3b6ea5")
        else:
            names = sorted(set(values))
            axes.bar(names, [values.count(n) for n in names], color="#3b6ea5")
        axes.set_xlabel(self.target)
        axes.set_ylabel("scans")
        return finish(figure, path)


class Connectivity(_Scans):
    """Classes or values of brain scans, by classifiers that start from a pre-trained encoder or from nothing."""

    name = "connectivity"
    does = "predicts from brain scans"
    made = ("held_out.csv",)

    def inherit(self, about: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if about["task"] == self.name:
            return super().inherit(about)
        return "stagin", {}

    def open(
        self,
        source: Any,
        *,
        seed: int = 0,
        labels: str | None = None,
        target: str = "label",
        kind: str = "auto",
        missing: str = "stop",
        folds: int = 5,
        fold: int = 0,
    ) -> Labelled:
        """Open labelled scans.

        Args:
            source: a folder of .npy, .csv or .tsv files (frames x regions), one per subject; one .npy or .npz of all; or arrays.
            labels: CSV or TSV with a column of subjects and the target's; or one value per scan in their order.
            target: column to predict: words or a few whole numbers are classes, else a number.
            kind: classification, regression or auto.
            missing: a scan without a label: stop or skip.
            folds: one part in so many is held out, classes spread evenly; 1 trains on all and tests nothing.
            fold: which part is held out.
        """
        scans = source if isinstance(source, Scans) else open_series(source)
        if labels is None:
            raise OffprintError(
                "no labels were given; give --labels FILE.csv with a column of subjects and --target COLUMN"
            )
        if isinstance(labels, str | Path):
            made, having = read_labels(labels, target, scans.ids, kind=kind, missing=missing)
            scans = scans.take(having)
        else:
            made = labels if isinstance(labels, Labels) else make_labels(list(labels), target, kind)
            if len(made.values) != len(scans):
                raise DataError(f"{len(made.values)} labels were given for {len(scans)} scans; expected one each")
        parts = (list(range(len(scans))), []) if folds == 1 else split_scans(made, len(scans), folds, fold, seed)
        return Labelled(scans, made, *parts, (folds, fold))

    def digest(self, data: Labelled) -> str:
        return digest(data.scans, data.labels)

    def train(self, job: Job) -> Trained:
        if not job.options.get("cross_validate"):
            return super().train(job)
        runs = []
        for k in range(int(job.options.get("folds", 5))):
            options = {**job.options, "cross_validate": False, "fold": k}
            part = replace(job, out=job.out / f"fold-{k}", options=options, model_options=dict(job.model_options))
            runs.append(super().train(part))
        figures = over_folds(runs)
        if runs[0].leader:
            atomic_write(job.out / "summary.json", json.dumps(figures, indent=1))
        return Trained(
            job.out.absolute(), job.model, self.name, figures, self.lines(figures, Path(job.out)), runs[0].leader
        )

    def prepare(
        self,
        job: Job,
        *,
        readout: str | None = None,
        window: int | None = None,
        stride: int | None = None,
        cross_validate: bool = False,
    ) -> None:
        """Settle the model.

        Args:
            cross_validate: hold out each part in turn.
            readout: over regions: sero, garo or mean.
            window: frames per window; default that of the weights, else 50.
            stride: frames between windows; default that of the weights, else 3.
        """
        given = {"readout": readout, "window": window, "stride": stride}
        job.model_options |= {k: v for k, v in given.items() if v is not None}
        before = describe(job.checkpoint) if job.checkpoint is not None else {}
        self.settle(job, job.data.scans, before)
        job.model_options["num_classes"] = max(1, len(job.data.labels.classes))
        job.settled = {"before": before}

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, **job.model_options)
        if job.pretrained:
            raise OffprintError(f"{job.model} has no released weights; start from a run or a file with --checkpoint")
        if job.checkpoint is not None:
            load_encoder(network, job.checkpoint)
        return network

    def about(self, job: Job) -> dict[str, Any]:
        data, before = job.data, job.settled["before"]
        return {
            "target": data.labels.name, "classes": list(data.labels.classes), "scale": list(data.scale), "folds": data.fold[0],
            "fold": data.fold[1], "scans": len(data.scans), "data": data.scans.about,
            "started_from": before.get("sha256", ""), "started_from_data": before.get("data", ""),
        }  # fmt: skip

    def module(self, job: Job) -> BrainFineTuning:
        return BrainFineTuning(job.network, job.how, len(job.data.labels.classes), job.run.seed)

    def loaders(self, job: Job) -> ScanData:
        data, goals = job.data, job.data.goals
        shown, hidden = data.scans.take(data.shown), data.scans.take(data.hidden)
        return ScanData(
            (shown, goals[data.shown]), (hidden, goals[data.hidden]) if data.hidden else None, job.model_options["length"],
            min(job.how.batch_size, len(shown)), job.run.workers, job.run.seed,
        )  # fmt: skip

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        data, size, metrics = job.data, job.how.batch_size, {}
        labels = data.labels
        if data.hidden:
            hidden = data.scans.take(data.hidden)
            logits = torch.cat([x for _, x in each(job.network, hidden, size, job.network.__call__)])
            order = [i for group in batches(hidden, size) for i in group]
            truth = labels.values[data.hidden][order]
            metrics = score(logits, truth, labels.classes, data.scale)
            rows = rows_of([hidden.ids[i] for i in order], logits, labels.classes, data.scale)
            written = [labels.classes[t] if labels.classes else f"{t:g}" for t in truth]
            mark = mark_of(data.scans)
            head = [*head_of(labels.name, labels.classes), "truth", *["source"] * len(mark)]
            table = csv_text([head, *([*row, t, *mark] for row, t in zip(rows, written, strict=True))])
            atomic_write(job.folder / "held_out.csv", table)
        return {"metrics": metrics, "trained_on": len(data.shown), "tested_on": len(data.hidden), "target": labels.name,
                "data": data.scans.about}  # fmt: skip

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        spread, runs = figures.get("spread") or {}, figures.get("folds") or [figures]
        named = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}" + (f" ± {spread[name]:.2f}" if spread else "")
            for name, value in figures["metrics"].items()
        )
        said = [f"{figures['target']}: {named} on {sum(r['tested_on'] for r in runs)} held-out scans"] if named else []
        said.append(f"{'each fold ' if spread else ''}trained on {', '.join(str(r['trained_on']) for r in runs)} scans")
        said += [f"the scans are {figures['data']}"] if figures["data"] else []
        run = folder / Path(figures["weights"]).parent.name if spread else folder
        return [
            *said,
            f"weights: {run / WEIGHTS}",
            f"next: offprint predict SERIES --model {run} --out predictions.csv",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        model, spec = load_run(folder)
        return Ready(self, model, about["model"], spec, folder)

    def _said(self, ready: Ready, source: Any, size: int, progress) -> tuple[Scans, list[int], Tensor]:
        if "scale" not in ready.about:
            raise OffprintError(f"{ready.folder} is not the folder of a fine-tuning, so its outputs have no names")
        scans = fitting(source, ready.model, ready.folder)
        if progress:
            progress(total=len(scans))
        order, found = [], []
        for group, logits in each(ready.model, scans, size, ready.model.__call__):
            order += group
            found.append(logits)
            for _ in group if progress else ():
                progress(text="scans")
        back = torch.tensor(order).argsort()
        return scans, order, torch.cat(found)[back]

    def predict_to(self, ready: Ready, inputs: Any, path: Path | None = None, **options: Any) -> Result:
        if path is None or Path(path).suffix != ".csv" or ready.folder is None or "scale" not in ready.about:
            return super().predict_to(ready, inputs, path, **options)
        advance, state = options.get("progress"), {"done": 0}

        def told(done: int, total: int) -> None:
            if advance is None:
                return
            if not state["done"]:
                advance(total=total)
            for _ in range(done - state["done"]):
                advance(text="scans")
            state["done"] = done

        source = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
        size = options.get("batch_size", 4)
        made = write_table(source, ready.folder, path, what="predictions", batch_size=size, progress=told)
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows: list[dict[str, Any]] = list(csv.DictReader(stream))
        notes = [f"the scans are {made['data']}"] if made["data"] else []
        if made["trained_on"] and made["trained_on"] != made["data"]:
            notes.append(f"the weights were trained on data that are {made['trained_on']}")
        return ScanPredictions(rows, notes, ready.about["target"])

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        labels: str | None = None,
        target: str | None = None,
        batch_size: int = 4,
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Figures on labelled scans: accuracies and AUROC in percent; or mean absolute error, r and R².

        Args:
            labels: CSV or TSV with a column of subjects and the target's.
            target: column to predict; default that of the run.
            batch_size: scans at once.
        """
        if data is None or labels is None:
            raise OffprintError("evaluating takes scans and their labels; give --data SERIES and --labels FILE.csv")
        scans, _, logits = self._said(ready, data, batch_size, progress)
        classes = ready.about["classes"]
        made, having = read_labels(
            labels, target or ready.about["target"], scans.ids, kind="classification" if classes else "regression"
        )
        truth = made.values
        if classes:
            odd = sorted(set(made.classes) - set(classes))
            if odd:
                raise DataError(
                    f"{labels} has the classes {', '.join(odd)}, which the model was not trained on ({', '.join(classes)})"
                )
            truth = np.array([classes.index(made.classes[v]) for v in made.values])
        figures = score(logits[having], truth, classes, tuple(ready.about["scale"]))
        return Figures.of({**figures, "scans": len(having)})

    def predict(
        self, ready: Ready, inputs: Any, *, batch_size: int = 4, progress: Callable[..., None] | None = None
    ) -> ScanPredictions:
        """Classes or values of scans.

        Args:
            inputs: scans, as for training.
            batch_size: scans at once.
        """
        source = (
            inputs[0] if isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], str | Path) else inputs
        )
        scans, _, logits = self._said(ready, source, batch_size, progress)
        classes, target = ready.about["classes"], ready.about["target"]
        mean, std = ready.about["scale"]
        rows = []
        for name, row in zip(scans.ids, logits, strict=True):
            if classes:
                p = row.softmax(0)
                rows.append({"subject": name, target: classes[int(p.argmax())],
                             **{f"p_{c}": round(float(v), 6) for c, v in zip(classes, p, strict=True)}})  # fmt: skip
            else:
                rows.append({"subject": name, target: float(row.squeeze(-1)) * std + mean})
        return ScanPredictions(rows, [f"the scans are {scans.about}"] if scans.about else [], target)


def pretrain(
    source: Any,
    out: str | Path,
    *,
    model: str = "brain_mae",
    overrides: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    val_fraction: float = 0.1,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Any]:
    """:func:`offprint.train` for pre-training on scans, with a plain dictionary of figures.

    Args:
        source: what :func:`offprint.data.brain_series.open_series` takes.
        out: folder of the run; ``model.safetensors`` is the encoder.
        model: name of the masked autoencoder.
        overrides: fields of :class:`BrainRecipe`.
        model_options: arguments of the model; the number of regions is the scans'.
        val_fraction: share of the scans that reconstruction is measured on.
        **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        The losses on held-out scans (``loss`` and its parts; ``None`` without held-out scans), ``epochs``, ``scans``,
        ``weights`` and ``data`` (what the source says of itself).
    """
    return dict(train(
        model, source, out, task="connectivity-pretraining", recipe=overrides, options={"val_fraction": val_fraction},
        model_options=model_options, callbacks=callbacks, **settings,
    ))  # fmt: skip


def finetune(
    source: Any,
    labels: Any,
    out: str | Path,
    *,
    target: str = "label",
    weights: str | Path | None = None,
    kind: str = "auto",
    missing: str = "stop",
    model: str = "stagin",
    overrides: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    folds: int = 5,
    fold: int | None = 0,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Any]:
    """:func:`offprint.train` for labelled scans, over one part held out or over each in turn.

    Args:
        source, labels, target, kind, missing, folds: see :meth:`Connectivity.open`.
        out: folder of the run; with ``fold=None`` it gets one folder per fold.
        weights: a pre-training run, or a weight file; ``None`` starts from random weights. The encoder's size, window, stride
            and sparsity are taken from it.
        model: name of the model, whose options ``model_options`` overrides.
        overrides: fields of :class:`BrainRecipe`.
        fold: which part is held out; ``None`` for each in turn.
        **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        ``metrics`` on held-out scans (accuracy, balanced accuracy, and AUROC of two classes; or MAE, r and R²): means over the
        folds, with ``spread`` (their standard deviations) when there are several; ``folds``, ``weights``, ``scans``, ``data``.
    """
    options = {"labels": labels, "target": target, "kind": kind, "missing": missing, "folds": folds,
               "fold": fold or 0, "cross_validate": fold is None and folds > 1}  # fmt: skip
    done = train(
        model, source, Path(out), task="connectivity", recipe=overrides, options=options, model_options=model_options,
        checkpoint=None if weights is None else str(weights), callbacks=callbacks, **settings,
    )  # fmt: skip
    return dict(done) if "spread" in done else over_folds([done])


def over_folds(runs: Sequence[Trained]) -> dict[str, Any]:
    """Figures of the parts that were held out, their means, and how far they spread where there are several."""
    names, about = runs[0]["metrics"], read_about(runs[0].folder)
    return {
        "target": about["target"], "classes": about["classes"],
        "metrics": {n: float(np.mean([r["metrics"][n] for r in runs])) for n in names},
        "spread": {n: float(np.std([r["metrics"][n] for r in runs], ddof=1)) for n in names} if len(runs) > 1 else {},
        "folds": [dict(r) for r in runs], "weights": runs[0]["weights"], "epochs": runs[0]["epochs"], "scans": about["scans"],
        "data": about["data"],
    }  # fmt: skip


def score(logits: Tensor, truth: np.ndarray, classes: Sequence[str], scale: tuple[float, float]) -> dict[str, float]:
    """Figures of predictions: accuracies and AUROC in percent; or mean absolute error (in the target's unit), r and R²."""
    if classes:
        y = torch.from_numpy(np.asarray(truth))
        hit = (logits.argmax(1) == y).double()
        figures = {
            "accuracy": 100 * float(hit.mean()),
            "balanced_accuracy": 100 * float(torch.stack([hit[y == c].mean() for c in y.unique()]).mean()),
        }
        if len(classes) == 2 and len(y.unique()) == 2:
            margin = logits[:, 1] - logits[:, 0]
            pairs = margin[y == 1][:, None] - margin[y == 0][None]
            figures["auroc"] = 100 * float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())
        return figures
    guess, truth = logits.squeeze(-1).double().numpy() * scale[1] + scale[0], np.asarray(truth, dtype=np.float64)
    spread = float(((truth - truth.mean()) ** 2).sum())
    steady = guess.std() == 0 or spread == 0
    return {
        "mae": float(np.abs(guess - truth).mean()),
        "r": 0.0 if steady else float(np.corrcoef(guess, truth)[0, 1]),
        "r2": 1 - float(((guess - truth) ** 2).sum()) / spread if spread else 0.0,
    }


register_task(ConnectivityPretraining())
register_task(Connectivity())
