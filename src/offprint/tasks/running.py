"""The one training run: safe checkpoints, an exact resume, averaged weights, a lost loss, the loop itself."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from offprint.data.images import EpochSampler, ImageSplits, Seeded, Subset
from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import read_file
from offprint.tasks.folder import RunFolder
from offprint.tasks.recipe import Recipe, build_optimizer
from offprint.tasks.settings import Run


class NonFiniteLoss(OffprintError):
    """The loss became NaN or infinite; training stopped."""


class SafeCheckpointIO(CheckpointIO):
    """Checkpoints written whole or not at all, and read without executing anything from them."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path, storage_options=None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        atomic_write(path, buffer.getvalue())

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return read_file(path)

    def remove_checkpoint(self, path) -> None:
        Path(path).unlink(missing_ok=True)


class RecipeTask(L.LightningModule):
    """A module trained by a recipe, in which everything random in a step follows from the seed and the step's number.

    Args:
        model: what is trained.
        recipe: how.
        seed: of the run.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, seed: int = 0):
        super().__init__()
        self.model, self.recipe, self.seed = model, recipe, seed
        self.last_good = ""

    def on_train_batch_start(self, batch, batch_idx) -> None:
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 9_973 + self.global_rank)

    def check_loss(self, loss: Tensor) -> None:
        """Stop at a loss that is not a number, naming the checkpoint that is left."""
        if torch.isfinite(loss):
            return
        kept = (
            f"the last good checkpoint is {self.last_good}"
            if self.last_good
            else "no epoch had ended, so nothing was kept"
        )
        raise NonFiniteLoss(
            f"the loss became {float(loss)} at step {self.global_step} (epoch {self.current_epoch}); {kept}. "
            "Lower lr, raise warmup_epochs, set clip_grad, or train at precision 32"
        )

    def configure_optimizers(self):
        images = self.trainer.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        steps = max(1, int(self.trainer.estimated_stepping_batches) // self.recipe.epochs)
        optimizer = build_optimizer(self.model, self.recipe, images)
        rates = self.recipe.learning_rates(steps, images)
        top = self.recipe.scaled(images)[0]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[min(step, len(rates) - 1)] / top)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WeightAverage(Callback):
    """Exponential moving average of the weights (and copies of the buffers), used for validation and kept in checkpoints.

    Args:
        decay: share of the old average kept each step; the first steps use ``min(decay, (1 + n) / (10 + n))``.
    """

    def __init__(self, decay: float):
        self.decay, self.steps, self.average, self._held = decay, 0, None, None

    def on_fit_start(self, trainer, module) -> None:
        if self.average is None:
            self.average = {k: v.detach().clone() for k, v in module.model.state_dict().items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return  # the optimizer has not stepped
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in module.model.state_dict().items():
            kept = self.average[name] = self.average[name].to(value.device)
            if value.is_floating_point():
                kept.lerp_(value.to(kept.dtype), 1 - decay)
            else:
                kept.copy_(value)

    def on_validation_start(self, trainer, module) -> None:
        if self.average is not None and self.steps:
            self._held = {k: v.detach().clone() for k, v in module.model.state_dict().items()}
            module.model.load_state_dict(self.average)

    def on_validation_end(self, trainer, module) -> None:
        if self._held is not None:
            module.model.load_state_dict(self._held)
            self._held = None

    def state_dict(self) -> dict:
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.average = state["steps"], state["average"]


class ImageData(L.LightningDataModule):
    """Loaders over :class:`~offprint.data.images.ImageSplits` whose order and augmentation depend on (seed, epoch) alone."""

    def __init__(
        self, splits: ImageSplits, train_transform, eval_transform, batch_size: int, workers: int = 0, seed: int = 0
    ):
        super().__init__()
        train = Subset(splits.train, range(len(splits.train)), train_transform)
        self.train = Seeded(train, seed)
        self.val = Subset(splits.val, range(len(splits.val)), eval_transform)
        self.batch_size, self.workers, self.seed = batch_size, workers, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        sampler = EpochSampler(
            len(self.train), trainer.current_epoch, self.seed, trainer.global_rank, trainer.world_size
        )
        full = len(sampler) >= self.batch_size
        return DataLoader(self.train, self.batch_size, sampler=sampler, num_workers=self.workers, drop_last=full)

    def val_dataloader(self) -> DataLoader:
        world, rank = self.trainer.world_size, self.trainer.global_rank
        val = self.val if world == 1 else torch.utils.data.Subset(self.val, range(rank, len(self.val), world))
        return DataLoader(val, self.batch_size, num_workers=self.workers)


class _LastGood(Callback):
    """Tells the task which checkpoint was written last, for its message when the loss is lost."""

    def __init__(self, last: Path):
        self.last = str(last)

    def on_train_epoch_end(self, trainer, module) -> None:
        module.last_good = self.last


def _bar():
    """Lightning's Rich bar, which counts epochs from 1."""
    from lightning.pytorch.callbacks import RichProgressBar

    class Bar(RichProgressBar):
        def _get_train_description(self, current_epoch: int) -> str:
            last = self.trainer.max_epochs
            text = f"Epoch {current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
            return text.ljust(len(self.validation_description))

    return Bar()


@dataclass(frozen=True)
class Fitted:
    """What a run left.

    Attributes:
        trainer: Lightning's, after the last epoch.
        state: the weights that count: those of the best epoch where the task has a goal, averaged where the recipe averages.
        epoch: of these weights, from 1.
        best: the goal's value at that epoch.
        averaged: whether they are the moving average.
        logged: the last values of everything that was logged.
    """

    trainer: L.Trainer
    state: dict[str, Tensor]
    epoch: int
    best: float | None
    averaged: bool
    logged: dict[str, float]

    @property
    def which(self) -> str:
        """The weights in words."""
        kind = "averaged weights" if self.averaged else "weights"
        return f"{kind} of epoch {self.epoch}" + (", the best" if self.best is not None else "")


def fit(
    module: RecipeTask,
    data: L.LightningDataModule,
    folder: RunFolder,
    run: Run,
    callbacks: Sequence[Callback] = (),
    *,
    goal: str = "",
    mode: str = "max",
    every: int = 1,
) -> Fitted:
    """Train by the module's recipe, from the folder's newest checkpoint on where there is one.

    Args:
        callbacks: besides those of every run.
        goal, mode: the logged value that says which epoch's weights to keep, and whether more of it is better (``max``) or less
            (``min``); ``""`` keeps the last. ``run.patience`` watches it.
        every: epochs between two checkpoints.

    Raises:
        KeyboardInterrupt: the run was interrupted.
        NonFiniteLoss: the last good checkpoint stays.
    """
    recipe, last = module.recipe, folder.last
    chosen: list[Callback] = [*callbacks, _LastGood(last)]
    if decay := getattr(recipe, "ema_decay", 0.0):
        chosen.append(WeightAverage(decay))
    keep = None
    if goal:
        keep = ModelCheckpoint(last.parent, "best", monitor=goal, mode=mode, enable_version_counter=False)
        chosen.append(keep)
    if goal and run.patience:
        chosen.append(EarlyStopping(goal, mode=mode, patience=run.patience))
    chosen.append(
        ModelCheckpoint(
            last.parent, "last", enable_version_counter=False, every_n_epochs=every, save_on_train_epoch_end=None
        )
    )
    if run.progress:
        chosen.append(_bar())
    trainer = L.Trainer(
        max_epochs=recipe.epochs,
        accelerator=run.accelerator,
        devices=run.devices,
        strategy=run.strategy,
        num_nodes=run.num_nodes,
        precision=run.precision,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=getattr(recipe, "clip_grad", 0.0) or None,
        callbacks=chosen,
        logger=_loggers(run.logger, last.parent),
        plugins=[SafeCheckpointIO()],
        default_root_dir=last.parent,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=run.progress,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*(does not have many workers|Checkpoint directory|weights_only|litlogger).*"
        )
        try:
            trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.exists() else None)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    best = keep.best_model_path if keep is not None else ""
    held = read_file(best or last)
    averaged = next((v["average"] for k, v in held.get("callbacks", {}).items() if k.startswith("WeightAverage")), None)
    weights = {k.removeprefix("model."): v for k, v in held["state_dict"].items() if k.startswith("model.")}
    score = keep.best_model_score if keep is not None else None
    return Fitted(
        trainer, averaged or weights, int(held["epoch"]) + 1, None if score is None else float(score), bool(averaged),
        {k: float(v) for k, v in trainer.callback_metrics.items()},
    )  # fmt: skip


def _loggers(which: str, folder: Path):
    from lightning.pytorch.loggers import CSVLogger

    made: list = [CSVLogger(folder, name="logs", version="")] if which in ("csv", "both") else []
    if which in ("tensorboard", "both"):
        from offprint.errors import need

        need("tensorboard", "logging", "TensorBoard logging")
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(folder, name="logs", version=""))
    return made or False
