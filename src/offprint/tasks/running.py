"""What every training run on pictures shares: a folder that resumes exactly, safe checkpoints, a lost loss, the loop itself."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader

from offprint.data.images import EpochSampler, ImageSplits, Seeded, Subset
from offprint.errors import OffprintError
from offprint.files import atomic_write, local_path
from offprint.models.checkpoint import read_file
from offprint.tasks.recipe import Recipe, build_optimizer


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


def open_folder(out: str | Path, file: str, settings: dict[str, Any], resume: bool) -> Path:
    """Make the folder of a run ready, and write its settings to ``file`` there.

    Returns:
        The path of its newest checkpoint, which is there when the run goes on.

    Raises:
        OffprintError: the folder holds a run with other settings.
    """
    folder = local_path(out, "the folder of a run").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    last = folder / "last.ckpt"
    if resume and last.exists():
        before = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
        changed = [k for k in settings if settings[k] != before.get(k)]
        if changed:
            raise OffprintError(
                f"{folder} holds a run with another {', '.join(changed)}; resume it with the same settings, "
                "choose another --out, or pass --no-resume to start over"
            )
    else:
        last.unlink(missing_ok=True)
    atomic_write(folder / file, json.dumps(settings, indent=1))
    return last


def train(
    task: RecipeTask,
    data: ImageData,
    last: Path,
    callbacks: Sequence[Callback] = (),
    *,
    precision: str = "32-true",
    devices: int | str = 1,
    accelerator: str = "auto",
    accumulate: int = 1,
    logger: str = "csv",
    progress: bool = True,
) -> L.Trainer:
    """Train by the task's recipe, from the checkpoint ``last`` on where there is one; it is written after every epoch.

    Args:
        callbacks: besides those of every run.
        precision, devices, accelerator, accumulate: Lightning's.
        logger: ``csv``, ``tensorboard``, ``both`` or ``none``.
        progress: show a progress bar.

    Raises:
        KeyboardInterrupt: the run was interrupted.
    """
    chosen = [*callbacks, _LastGood(last), ModelCheckpoint(last.parent, "last", enable_version_counter=False)]
    if progress:
        from lightning.pytorch.callbacks import RichProgressBar

        chosen.append(RichProgressBar())
    trainer = L.Trainer(
        max_epochs=task.recipe.epochs,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=task.recipe.clip_grad or None,
        callbacks=chosen,
        logger=_loggers(logger, last.parent),
        plugins=[SafeCheckpointIO()],
        default_root_dir=last.parent,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=10,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*(does not have many workers|Checkpoint directory|weights_only|litlogger).*"
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=str(last) if last.exists() else None)
        except SystemExit:  # Lightning's answer to Ctrl-C
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise
    return trainer


def _loggers(which: str, folder: Path):
    from lightning.pytorch.loggers import CSVLogger

    if which not in ("csv", "tensorboard", "both", "none"):
        raise OffprintError(f"logger={which!r}; choose csv, tensorboard, both or none")
    made: list = [CSVLogger(folder, name="logs", version="")] if which in ("csv", "both") else []
    if which in ("tensorboard", "both"):
        from offprint.errors import need

        need("tensorboard", "logging", "TensorBoard logging")
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(folder, name="logs", version=""))
    return made or False
