"""Training on brain scans: pre-training without labels, and fine-tuning on few; for what comes after see ``brain_use``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    Scans,
)
from offprint.data.images import EpochSampler, Seeded
from offprint.models.graphs.fmri_ssl import STAGIN
from offprint.tasks.brain_recipe import BrainRecipe
from offprint.tasks.brain_use import (
    batches,
)
from offprint.tasks.contract import Trained, train
from offprint.tasks.folder import read_about
from offprint.tasks.running import RecipeTask


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
        out = self.model(batch[0], whole=True, generator=held_out_draw(self.seed, batch_idx))
        for name, value in out._asdict().items():
            self.log(f"val_{name}", value, prog_bar=name == "loss", sync_dist=True, batch_size=len(batch[0]))


def held_out_draw(seed: int, index: int) -> torch.Generator:
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
