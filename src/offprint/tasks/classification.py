"""Image classification end to end: data, recipe, training that resumes exactly, evaluation, prediction."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from offprint.data.images import ImageSplits, Subset, check_labels, open_images
from offprint.data.transforms import evaluation_transform, training_transform
from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.models.checkpoint import read_file, save_weights
from offprint.models.factory import create_model
from offprint.models.registry import entry
from offprint.tasks.recipe import Recipe
from offprint.tasks.running import ImageData, RecipeTask, open_folder, train


class Classification(RecipeTask):
    """Cross-entropy training of any image model by a recipe.

    Args:
        model: images (B, C, H, W) → logits (B, num_classes).
        recipe: how to train.
        num_classes: of the data.
        seed: everything random in a step follows from it and the step's number.
    """

    def __init__(self, model: torch.nn.Module, recipe: Recipe, num_classes: int, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.num_classes = num_classes
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        mixers = [v2.MixUp(alpha=recipe.mixup, num_classes=num_classes)] if recipe.mixup else []
        mixers += [v2.CutMix(alpha=recipe.cutmix, num_classes=num_classes)] if recipe.cutmix else []
        self.mix = v2.RandomChoice(mixers) if mixers else None

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def on_train_start(self) -> None:
        told = getattr(self.model, "set_training_steps", None)  # a model whose regularisation grows over training
        if callable(told):
            told(int(self.trainer.estimated_stepping_batches) * self.trainer.accumulate_grad_batches)

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
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy.update(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True, batch_size=len(labels))
        self.log("val_accuracy", self.accuracy, prog_bar=True)


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
    settings = {"model": model, "data": str(data), "seed": seed, "classes": splits.classes, "input_size": size,
                "options": options, "recipe": dataclasses.asdict(recipe), "preprocessing": dict(spec.preprocessing)}  # fmt: skip
    last = open_folder(out, "settings.json", settings, resume)
    folder = last.parent
    task = Classification(network, recipe, classes, seed)
    module = ImageData(
        splits,
        training_transform(size, spec.preprocessing, recipe, channels),
        evaluation_transform(size, spec.preprocessing, channels),
        batch, workers, seed,
    )  # fmt: skip
    keep = ModelCheckpoint(folder, "best", monitor="val_accuracy", mode="max", enable_version_counter=False)
    chosen: list[Callback] = [keep, *callbacks]
    if recipe.ema_decay:
        chosen.append(WeightAverage(recipe.ema_decay))
    if patience:
        chosen.append(EarlyStopping("val_accuracy", mode="max", patience=patience))
    trainer = train(
        task, module, last, chosen, precision=precision, devices=devices, accelerator=accelerator, accumulate=accumulate,
        logger=logger, progress=progress,
    )  # fmt: skip
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


def trained_model(where: str | Path, checkpoint: str | None = None, pretrained: bool = False):
    """A model for prediction: the folder of a training run, or a model name with weights.

    Returns:
        (model in evaluation mode, evaluation transform, class names or ``None``)
    """
    folder = Path(where)
    if (folder / "settings.json").is_file():
        settings = json.loads((folder / "settings.json").read_text())
        spec, classes = entry(settings["model"]), settings["classes"]
        preprocessing = settings["preprocessing"]
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
        preprocessing = spec.preprocessing
        if not pretrained and not checkpoint:
            raise OffprintError(
                f"{where} has random weights; add --pretrained or --checkpoint FILE, or give the folder of a run"
            )
        model = create_model(str(where), pretrained=pretrained, checkpoint_path=checkpoint)
        size = (spec.input_size or (3, 224, 224))[-1]
        if pretrained:  # as the publisher of these weights evaluates them
            release = spec.release(pretrained)
            size, preprocessing = (release.input_size or (3, size, size))[-1], release.preprocessing or preprocessing
        if getattr(model, "num_classes", 0) == 1000:
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            classes = list(_IMAGENET_CATEGORIES)
    return model.eval(), evaluation_transform(size, preprocessing, getattr(model, "in_chans", 3)), classes


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
