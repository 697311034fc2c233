"""Training on brain scans: pre-training without labels, and fine-tuning on few; for what comes after see ``brain_use``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from offprint.data.brain_series import Labels, Scans, make_labels, open_series, read_labels, split_scans
from offprint.data.images import EpochSampler, Seeded
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.checkpoint import read_file, save_weights
from offprint.models.factory import create_model
from offprint.models.graphs.fmri_ssl import STAGIN, SpatioTemporalMAE
from offprint.models.registry import entry
from offprint.tasks.brain_use import (
    ABOUT,
    SHARED,
    batches,
    csv_text,
    describe,
    digest,
    each,
    head_of,
    load_encoder,
    mark_of,
    rows_of,
    stack,
)
from offprint.tasks.running import RecipeTask, open_folder, train


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


def pretrain(
    source: Any,
    out: str | Path,
    *,
    model: str = "brain_mae",
    overrides: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    val_fraction: float = 0.1,
    resume: bool = True,
    precision: str = "32-true",
    devices: int | str = 1,
    accelerator: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    seed: int = 0,
    logger: str = "csv",
    progress: bool = True,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Pre-train the encoder on scans without labels.

    Args:
        source: what :func:`offprint.data.brain_series.open_series` takes.
        out: folder for checkpoints, logs, ``model.safetensors`` (the encoder), ``brain.json`` and ``summary.json``.
        model: name of the masked autoencoder.
        overrides: fields of :class:`BrainRecipe`.
        model_options: arguments of the model; the number of regions is the scans'.
        val_fraction: share of the scans that reconstruction is measured on.
        resume: go on from ``out/last.ckpt`` when it is there; the result is that of an uninterrupted run.
        precision, devices, accelerator, accumulate, workers, logger: Lightning's and the loader's.
        seed: of everything random.

    Returns:
        The losses on held-out scans (``loss`` and its parts; ``None`` without held-out scans), ``epochs``, ``scans``,
        ``weights`` and ``data`` (what the source says of itself).

    Raises:
        NonFiniteLoss: the last good checkpoint stays.
    """
    recipe = BrainRecipe.of(model, **(overrides or {}))
    options = {**entry(model).kwargs, **(model_options or {})}
    scans = open_series(source, window=options.get("window", 50))
    options["num_regions"] = scans.num_regions
    options["length"] = part_length(scans, options.get("length", 600))
    torch.manual_seed(seed)
    network = create_model(model, **options)
    if not isinstance(network, SpatioTemporalMAE):
        raise OffprintError(f"{model} is no masked autoencoder of scans; choose brain_mae")
    held = round(val_fraction * len(scans))
    order = np.random.default_rng(seed).permutation(len(scans)).tolist()
    if not 0 <= held < len(scans):
        raise OffprintError(f"val_fraction={val_fraction} leaves none of {len(scans)} scans to train on")
    shown, hidden = scans.take(sorted(order[held:])), scans.take(sorted(order[:held]))
    settings = {
        "model": "encoder", "pretrained_by": model, "options": options, "recipe": dataclasses.asdict(recipe), "seed": seed,
        "scans": len(scans), "digest": digest(scans), "val_fraction": val_fraction, "data": scans.about,
    }  # fmt: skip
    last = open_folder(out, ABOUT, settings, resume)
    data = ScanData(
        (shown, torch.zeros(len(shown))), (hidden, torch.zeros(held)) if held else None, options["length"],
        min(recipe.batch_size, len(shown)), workers, seed,
    )  # fmt: skip
    trainer = train(
        BrainPretraining(network, recipe, seed), data, last, callbacks, precision=precision, devices=devices,
        accelerator=accelerator, accumulate=accumulate, logger=logger, progress=progress,
    )  # fmt: skip
    _restore(network, last)
    weights = save_weights(network.encoder, last.parent / "model.safetensors")
    summary = {**_reconstruction(network, hidden, recipe.batch_size, seed), "epochs": trainer.current_epoch,
               "scans": len(scans), "weights": str(weights), "data": scans.about}  # fmt: skip
    atomic_write(last.parent / "summary.json", json.dumps(summary, indent=1))
    return summary


def _restore(network: nn.Module, last: Path) -> None:
    state = read_file(last)["state_dict"]
    network.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    network.to("cpu").eval()


@torch.no_grad()
def _reconstruction(network: SpatioTemporalMAE, scans: Scans, size: int, seed: int) -> dict[str, float | None]:
    """Losses on whole scans, the mean over scans."""
    sums: dict[str, float | None] = dict.fromkeys(
        ("loss", "spatial_node", "spatial_edge", "temporal_node", "temporal_edge")
    )
    for index, group in enumerate(batches(scans, size) if len(scans) else []):
        out = network(stack(scans, group), whole=True, generator=_generator(seed, index))
        for name, value in out._asdict().items():
            sums[name] = (sums[name] or 0.0) + float(value) * len(group) / len(scans)
    return sums


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
    overrides: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    folds: int = 5,
    fold: int | None = 0,
    resume: bool = True,
    precision: str = "32-true",
    devices: int | str = 1,
    accelerator: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    seed: int = 0,
    logger: str = "csv",
    progress: bool = True,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Fine-tune on labelled scans: classes by cross entropy, numbers by mean squared error.

    Args:
        source: what :func:`offprint.data.brain_series.open_series` takes.
        labels: a CSV or TSV table (see :func:`offprint.data.brain_series.read_labels`), or one value per scan in their order.
        out: folder of the run; with ``fold=None`` it gets one folder per fold.
        target: column of the table.
        weights: a pre-training run, or a weight file; ``None`` starts from random weights. The encoder's size, window, stride
            and sparsity are taken from it.
        kind: ``classification``, ``regression`` or ``auto``.
        missing: scans without a label: ``stop`` or ``skip``.
        model: name of the model, whose options ``model_options`` overrides.
        overrides: fields of :class:`BrainRecipe`.
        folds: one part in so many is held out for testing, classes spread evenly; 1 trains on all and tests nothing.
        fold: which part is held out; ``None`` for each in turn.
        resume, precision, devices, accelerator, accumulate, workers, seed, logger: as in :func:`pretrain`.

    Returns:
        ``metrics`` on held-out scans (accuracy, balanced accuracy, and AUROC of two classes; or MAE, r and R²): means over the
        folds, with ``spread`` (their standard deviations) when there are several; ``folds``, ``weights``, ``scans``, ``data``.
    """
    recipe = BrainRecipe.of(model, **(overrides or {}))
    before = describe(weights) if weights is not None else {}
    options = {**entry(model).kwargs, **{k: v for k, v in before.get("options", {}).items() if k in SHARED}}
    options |= model_options or {}
    scans = open_series(source, window=options.get("window", 50))
    if before and before["options"]["num_regions"] != scans.num_regions:
        raise DataError(
            f"{weights} was trained on {before['options']['num_regions']} regions, the scans have {scans.num_regions}; "
            "use scans of the same parcellation"
        )
    options["num_regions"] = scans.num_regions
    options["length"] = part_length(scans, options.get("length", 600))
    if isinstance(labels, str | Path):
        made, having = read_labels(labels, target, scans.ids, kind=kind, missing=missing)
        scans = scans.take(having)
    else:
        made = labels if isinstance(labels, Labels) else make_labels(list(labels), target, kind)
        if len(made.values) != len(scans):
            raise DataError(f"{len(made.values)} labels were given for {len(scans)} scans; expected one each")
    options["num_classes"] = max(1, len(made.classes))
    if folds == 1 and fold is None:
        fold = 0
    runs = []
    for k in range(folds) if fold is None else [fold]:
        if folds == 1:
            shown, hidden = list(range(len(scans))), []
        else:
            shown, hidden = split_scans(made, len(scans), folds, k, seed)
        run = _Run(scans, made, shown, hidden, options, recipe, before, weights, model, seed, kind=(folds, k))
        folder = Path(out) / f"fold-{k}" if fold is None else Path(out)
        runs.append(
            run(folder, resume, callbacks, workers, precision=precision, devices=devices, accelerator=accelerator,
                accumulate=accumulate, logger=logger, progress=progress)
        )  # fmt: skip
    names = runs[0]["metrics"]
    summary = {
        "target": made.name,
        "classes": list(made.classes),
        "metrics": {n: float(np.mean([r["metrics"][n] for r in runs])) for n in names},
        "spread": {n: float(np.std([r["metrics"][n] for r in runs], ddof=1)) for n in names} if len(runs) > 1 else {},
        "folds": runs,
        "weights": runs[0]["weights"],
        "scans": len(scans),
        "data": scans.about,
    }
    atomic_write(Path(out) / "summary.json", json.dumps(summary, indent=1))
    return summary


@dataclass
class _Run:
    """One fold of a fine-tuning."""

    scans: Scans
    labels: Labels
    shown: list[int]
    hidden: list[int]
    options: dict[str, Any]
    recipe: BrainRecipe
    before: dict[str, Any]
    weights: Any
    model: str
    seed: int
    kind: tuple[int, int]

    def __call__(self, folder: Path, resume: bool, callbacks, workers: int, **how) -> dict[str, Any]:
        labels, values = self.labels, self.labels.values
        mean, std = (
            (0.0, 1.0) if labels.classes else (float(values[self.shown].mean()), float(values[self.shown].std()) or 1.0)
        )
        torch.manual_seed(self.seed)
        network = create_model(self.model, **self.options)
        if not isinstance(network, STAGIN):
            raise OffprintError(f"{self.model} is no classifier of scans; choose stagin")
        if self.weights is not None:
            load_encoder(network, self.weights)
        settings = {
            "model": self.model, "options": self.options, "recipe": dataclasses.asdict(self.recipe), "seed": self.seed,
            "target": labels.name, "classes": list(labels.classes), "scale": [mean, std], "folds": self.kind[0],
            "fold": self.kind[1], "scans": len(self.scans), "digest": digest(self.scans, labels), "data": self.scans.about,
            "started_from": self.before.get("sha256", ""), "started_from_data": self.before.get("data", ""),
        }  # fmt: skip
        last = open_folder(folder, ABOUT, settings, resume)
        goals = torch.from_numpy(values) if labels.classes else torch.from_numpy((values - mean) / std).float()
        shown, hidden = self.scans.take(self.shown), self.scans.take(self.hidden)
        data = ScanData(
            (shown, goals[self.shown]), (hidden, goals[self.hidden]) if self.hidden else None, self.options["length"],
            min(self.recipe.batch_size, len(shown)), workers, self.seed,
        )  # fmt: skip
        task = BrainFineTuning(network, self.recipe, len(labels.classes), self.seed)
        trainer = train(task, data, last, callbacks, **how)
        _restore(network, last)
        weights = save_weights(network, last.parent / "model.safetensors")
        metrics: dict[str, float] = {}
        if self.hidden:
            logits = torch.cat([x for _, x in each(network, hidden, self.recipe.batch_size, network.__call__)])
            order = [i for group in batches(hidden, self.recipe.batch_size) for i in group]
            truth = values[self.hidden][order]
            metrics = score(logits, truth, labels.classes, (mean, std))
            rows = rows_of([hidden.ids[i] for i in order], logits, labels.classes, (mean, std))
            written = [labels.classes[t] if labels.classes else f"{t:g}" for t in truth]
            mark = mark_of(self.scans)
            head = [*head_of(labels.name, labels.classes), "truth", *["source"] * len(mark)]
            table = csv_text([head, *([*row, t, *mark] for row, t in zip(rows, written, strict=True))])
            atomic_write(last.parent / "held_out.csv", table)
        return {"metrics": metrics, "epochs": trainer.current_epoch, "weights": str(weights), "trained_on": len(shown),
                "tested_on": len(hidden)}  # fmt: skip


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
