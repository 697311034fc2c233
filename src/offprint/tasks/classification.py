"""Image classification end to end: data, recipe, training that resumes exactly, evaluation, prediction."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from offprint.data.images import EpochSampler, ImageSplits, Seeded, Subset, check_labels, open_images
from offprint.data.transforms import evaluation_transform, training_transform
from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import read_file, save_weights
from offprint.models.registry import create_model, entry
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


class Classification(L.LightningModule):
    """Cross-entropy training of any image model by a recipe.

    Args:
        model: images (B, C, H, W) → logits (B, num_classes).
        recipe: how to train.
        num_classes: of the data.
        seed: everything random in a step follows from it and the step's number.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, num_classes: int, seed: int = 0):
        super().__init__()
        self.model, self.recipe, self.num_classes, self.seed = model, recipe, num_classes, seed
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=num_classes)] if recipe.mixup else []
        mixers += [v2.CutMix(alpha=recipe.cutmix, num_classes=num_classes)] if recipe.cutmix else []
        self.mix = v2.RandomChoice(mixers) if mixers else None
        self.last_good = ""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def on_train_start(self) -> None:
        told = getattr(self.model, "set_training_steps", None)  # a model whose regularisation grows over training
        if callable(told):
            told(int(self.trainer.estimated_stepping_batches) * self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch, batch_idx) -> None:
        torch.manual_seed((self.seed * 1_000_003 + self.global_step) * 9_973 + self.global_rank)

    def training_step(self, batch, batch_idx) -> Tensor:
        images, labels = batch
        if self.mix is not None:
            images, labels = self.mix(images, labels)
        output = self.model(images)
        loss = F.cross_entropy(
            output[0] if isinstance(output, tuple) else output, labels, label_smoothing=self.recipe.label_smoothing
        )
        if isinstance(output, tuple):  # a side classifier's logits (Inception, NASNet)
            side = F.cross_entropy(output[1], labels, label_smoothing=self.recipe.label_smoothing)
            loss = loss + self.model.aux_weight * side
        if not torch.isfinite(loss):
            kept = (
                f"the last good checkpoint is {self.last_good}"
                if self.last_good
                else "no epoch had ended, so nothing was kept"
            )
            raise NonFiniteLoss(
                f"the loss became {float(loss)} at step {self.global_step} (epoch {self.current_epoch}); {kept}. "
                "Lower lr, raise warmup_epochs, set clip_grad, or train at precision 32"
            )
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy.update(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True, batch_size=len(labels))
        self.log("val_accuracy", self.accuracy, prog_bar=True)

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

    def on_train_epoch_end(self, trainer, module) -> None:
        module.last_good = str(Path(trainer.checkpoint_callback.dirpath) / "last.ckpt")


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


def train_classifier(
    model: str,
    data: str,
    out: str | Path,
    *,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    overrides: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    resume: bool = True,
    patience: int = 0,
    precision: str = "32-true",
    devices: int | str = 1,
    accelerator: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    seed: int = 0,
    logger: str = "csv",
    on_error: str = "stop",
    val_fraction: float = 0.2,
    progress: bool = True,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Train a model by its paper's recipe.

    Args:
        model: name of a model.
        data: what :func:`offprint.data.images.open_images` takes.
        out: folder for checkpoints, logs, ``model.safetensors`` and ``summary.json``.
        pretrained, checkpoint: start from released weights or from a file (its classifier is replaced if it differs).
        overrides: fields of :class:`~offprint.tasks.recipe.Recipe`.
        model_options: arguments of the model.
        resume: go on from ``out/last.ckpt`` when it is there; the result is that of an uninterrupted run.
        patience: stop after this many epochs without a better validation accuracy (0: never).
        precision: Lightning's, e.g. ``"bf16-mixed"``.
        devices, accelerator, accumulate, workers: Lightning's and the loader's.
        seed: of everything random.
        logger: ``csv``, ``tensorboard``, ``both`` or ``none``.
        on_error: ``stop`` or ``skip`` for pictures that cannot be read.

    Returns:
        ``accuracy`` (%), ``loss``, ``epochs``, ``weights`` (path), ``classes``.

    Raises:
        NonFiniteLoss: the last good checkpoint stays.
    """
    spec = entry(model)
    recipe = Recipe.of(model, **(overrides or {}))
    splits = open_images(data, val_fraction=val_fraction, seed=seed, on_error=on_error)
    classes = len(splits.classes)
    for part in (splits.train, splits.val):
        check_labels(part.targets, classes)
    size = recipe.input_size or (spec.input_size or (3, 224, 224))[-1]
    options = dict(model_options or {})
    for name in ("drop_path_rate", "drop_rate"):
        if getattr(recipe, name) is not None:
            options.setdefault(name, getattr(recipe, name))
    torch.manual_seed(seed)
    network = create_model(model, pretrained=pretrained, num_classes=classes, **options)
    if checkpoint:
        from offprint.models.checkpoint import load_weights

        load_weights(network, checkpoint, drop_head=True)
    channels = getattr(network, "in_chans", 3)
    batch = min(recipe.batch_size, len(splits.train))
    folder = Path(out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model": model, "data": str(data), "seed": seed, "classes": splits.classes, "input_size": size,
                "options": options, "recipe": dataclasses.asdict(recipe), "preprocessing": dict(spec.preprocessing)}  # fmt: skip
    settings = json.loads(json.dumps(settings))
    last = folder / "last.ckpt"
    if resume and last.exists():
        before = json.loads((folder / "settings.json").read_text())
        changed = [k for k in settings if settings[k] != before.get(k)]
        if changed:
            raise OffprintError(
                f"{folder} holds a run with another {', '.join(changed)}; resume it with the same settings, "
                "choose another --out, or pass --no-resume to start over"
            )
    else:
        last.unlink(missing_ok=True)
    atomic_write(folder / "settings.json", json.dumps(settings, indent=1))
    task = Classification(network, recipe, classes, seed)
    module = ImageData(
        splits,
        training_transform(size, spec.preprocessing, recipe, channels),
        evaluation_transform(size, spec.preprocessing, channels),
        batch, workers, seed,
    )  # fmt: skip
    keep = ModelCheckpoint(
        folder, "best", monitor="val_accuracy", mode="max", save_last=True, enable_version_counter=False
    )
    chosen: list[Callback] = [keep, _LastGood(), *callbacks]
    if recipe.ema_decay:
        chosen.append(WeightAverage(recipe.ema_decay))
    if patience:
        chosen.append(EarlyStopping("val_accuracy", mode="max", patience=patience))
    if progress:
        from lightning.pytorch.callbacks import RichProgressBar

        chosen.append(RichProgressBar())
    trainer = L.Trainer(
        max_epochs=recipe.epochs,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=recipe.clip_grad or None,
        callbacks=chosen,
        logger=_loggers(logger, folder),
        plugins=[SafeCheckpointIO()],
        default_root_dir=folder,
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
        fit(trainer, task, module, last)
    best = keep.best_model_path or str(last)
    state = read_file(best)
    weights = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
    averaged = next(
        (v["average"] for k, v in state.get("callbacks", {}).items() if k.startswith("WeightAverage")), None
    )
    network.load_state_dict(averaged or weights)
    save_weights(network, folder / "model.safetensors")
    logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
    summary = {
        "accuracy": 100
        * float(keep.best_model_score if keep.best_model_score is not None else logged.get("val_accuracy", math.nan)),
        "loss": logged.get("val_loss"),
        "epochs": trainer.current_epoch,
        "weights": str(folder / "model.safetensors"),
        "classes": splits.classes,
    }
    atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def fit(trainer: L.Trainer, task: L.LightningModule, data: L.LightningDataModule, last: Path) -> None:
    """Train, from the checkpoint ``last`` on where there is one; an interrupted run ends in KeyboardInterrupt."""
    try:
        trainer.fit(task, datamodule=data, ckpt_path=str(last) if last.exists() else None)
    except SystemExit:  # Lightning's answer to Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


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


def trained_model(where: str | Path, checkpoint: str | None = None, pretrained: bool = False):
    """A model for prediction: the folder of a training run, or a model name with weights.

    Returns:
        (model in evaluation mode, evaluation transform, class names or ``None``)
    """
    folder = Path(where)
    if (folder / "settings.json").is_file():
        settings = json.loads((folder / "settings.json").read_text())
        spec, classes = entry(settings["model"]), settings["classes"]
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise OffprintError(
                f"{folder} holds a run that has not finished; resume it with offprint train --out {folder}"
            )
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["options"].items()}
        model = create_model(settings["model"], num_classes=len(classes), checkpoint_path=str(weights), **options)
        size = settings["input_size"]
    else:
        if os.sep in str(where) or folder.is_dir():
            raise OffprintError(
                f"{where} is not the folder of a training run (no settings.json); give one, or a model name"
            )
        spec, classes = entry(str(where)), None
        if not pretrained and not checkpoint:
            raise OffprintError(
                f"{where} has random weights; add --pretrained or --checkpoint FILE, or give the folder of a run"
            )
        model = create_model(str(where), pretrained=pretrained, checkpoint_path=checkpoint)
        size = (spec.input_size or (3, 224, 224))[-1]
        if getattr(model, "num_classes", 0) == 1000:
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            classes = list(_IMAGENET_CATEGORIES)
    return model.eval(), evaluation_transform(size, spec.preprocessing, getattr(model, "in_chans", 3)), classes


@torch.no_grad()
def evaluate_classifier(
    model, data: ImageSplits, transform, *, batch_size: int = 64, workers: int = 0, progress=None
) -> dict:
    """Top-1 and top-5 accuracy (%) and cross-entropy on the validation part.

    Args:
        progress: called with ``total=n`` once and ``text=...`` per batch.
    """
    loader = DataLoader(Subset(data.val, range(len(data.val)), transform), batch_size, num_workers=workers)
    device = next(model.parameters()).device
    classes = len(data.classes)
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(device)
    loss, count = 0.0, 0
    if progress:
        progress(total=len(loader))
    for images, labels in loader:
        logits = model(images.to(device))
        labels = labels.to(device)
        if logits.shape[1] != classes:
            raise OffprintError(
                f"the model has {logits.shape[1]} classes, the data {classes} ({', '.join(data.classes[:5])}, ...)"
            )
        top1.update(logits, labels)
        top5.update(logits, labels)
        loss, count = loss + float(F.cross_entropy(logits, labels, reduction="sum")), count + len(labels)
        if progress:
            progress(text=f"{count} images")
    return {
        "top1": 100 * float(top1.compute()),
        "top5": 100 * float(top5.compute()),
        "loss": loss / count,
        "images": count,
    }


@torch.no_grad()
def predict_images(model, transform, paths, classes: list[str] | None = None, top_k: int = 5) -> list[dict]:
    """Top-k classes of each picture file: ``[{"image", "predictions": [{"class", "index", "probability"}, ...]}, ...]``."""
    from PIL import Image, UnidentifiedImageError

    rows = []
    device = next(model.parameters()).device
    for path in paths:
        try:
            with Image.open(path) as image:
                tensor = transform(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise OffprintError(f"cannot read the picture {path}: {error}") from error
        probabilities = model(tensor[None].to(device)).softmax(1)[0]
        values, indices = probabilities.topk(min(top_k, len(probabilities)))
        rows.append({
            "image": str(path),
            "predictions": [
                {"class": classes[i] if classes and i < len(classes) else str(i), "index": i, "probability": round(v, 6)}
                for v, i in zip(values.tolist(), indices.tolist(), strict=True)
            ],
        })  # fmt: skip
    return rows
