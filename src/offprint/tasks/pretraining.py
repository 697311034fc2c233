"""Pre-training without labels: pictures, recipe, a run that resumes exactly, and weights that a classifier starts from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from offprint.data.pictures import open_pictures
from offprint.data.transforms import evaluation_transform, training_transform
from offprint.errors import OffprintError, unknown
from offprint.files import atomic_write
from offprint.models.backbones.swin_v2 import SIMMIM_RECIPE, SimMIM, simmim_mask
from offprint.models.checkpoint import read_file, save_weights
from offprint.models.registry import entry
from offprint.tasks.recipe import Recipe
from offprint.tasks.running import ImageData, RecipeTask, open_folder, train

METHODS = ("simmim",)


class MaskedImageModelling(RecipeTask):
    """SimMIM training by a recipe; the labels that data sets give are not looked at.

    Args:
        model: encoder and decoder.
        recipe: how to train.
        mask_unit, mask_ratio: side of the hidden squares in pixels, and the share of them that is hidden.
        seed: everything random in a step follows from it and the step's number.
    """

    def __init__(self, model: SimMIM, recipe: Recipe, mask_unit: int = 32, mask_ratio: float = 0.6, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.mask_unit, self.mask_ratio = mask_unit, mask_ratio

    def mask(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Squares to hide in these images."""
        patch = self.model.encoder.patch_size
        size = tuple(images.shape[-2:])
        return simmim_mask(
            len(images), size, unit=self.mask_unit, patch=patch, ratio=self.mask_ratio, generator=generator
        ).to(images.device)

    def training_step(self, batch, batch_idx) -> Tensor:
        images = batch[0]
        loss = self.model(images, self.mask(images)).loss
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images = batch[0]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + batch_idx)  # the same squares every epoch
        loss = self.model(images, self.mask(images, generator)).loss
        self.log("val_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(images))


def pretrain(
    model: str,
    data: str,
    out: str | Path,
    *,
    method: str = "simmim",
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    overrides: dict[str, Any] | None = None,
    model_options: dict[str, Any] | None = None,
    mask_unit: int = 32,
    mask_ratio: float = 0.6,
    norm_target: int | None = None,
    resume: bool = True,
    precision: str = "32-true",
    devices: int | str = 1,
    accelerator: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    seed: int = 0,
    logger: str = "csv",
    on_error: str = "stop",
    val_fraction: float = 0.05,
    progress: bool = True,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Pre-train a model on pictures without labels.

    Args:
        model: name of a model whose tokens can be hidden (:class:`~offprint.nn.MaskedTokens`).
        data: what :func:`offprint.data.pictures.open_pictures` takes.
        out: folder for checkpoints, logs, ``model.safetensors`` and ``summary.json``.
        method: ``"simmim"``.
        pretrained, checkpoint: start from released weights or from a file.
        overrides: fields of :class:`~offprint.tasks.recipe.Recipe`, over SimMIM's own.
        model_options: arguments of the model.
        mask_unit, mask_ratio: side of the hidden squares in pixels, share of them that is hidden.
        norm_target: side of the neighbourhood that normalises the target; 0 for raw pixels. Default 47 for SwinV2, else raw.
        resume: go on from ``out/last.ckpt`` when it is there; the result is that of an uninterrupted run.
        precision, devices, accelerator, accumulate, workers: Lightning's and the loader's.
        seed: of everything random.
        logger: ``csv``, ``tensorboard``, ``both`` or ``none``.
        on_error: ``stop`` or ``skip`` for pictures that cannot be read.
        val_fraction: share of the pictures the reconstruction is measured on.

    Returns:
        ``loss`` (mean absolute error over hidden pixels of held-out pictures), ``epochs``, ``weights`` (path). The weights
        start a classifier: ``offprint train --checkpoint WEIGHTS``.

    Raises:
        NonFiniteLoss: the last good checkpoint stays.
    """
    if method not in METHODS:
        raise unknown("pre-training method", method, METHODS)
    spec = entry(model)
    v2 = spec.paper == "swin-v2"
    recipe = pretraining_recipe(model, overrides)
    target = (47 if v2 else 0) if norm_target is None else norm_target
    size = recipe.input_size or (spec.input_size or (3, 224, 224))[-1]
    options = dict(model_options or {})
    if recipe.drop_path_rate is not None:
        options.setdefault("drop_path_rate", recipe.drop_path_rate)
    torch.manual_seed(seed)
    if pretrained or checkpoint:
        from offprint.models.checkpoint import load_weights
        from offprint.models.factory import create_model

        encoder = create_model(model, pretrained=pretrained, num_classes=0, **options)
        if checkpoint:
            load_weights(encoder, checkpoint, drop_head=True)
        network = SimMIM(encoder, target or None)
    else:
        network = SimMIM(model, target or None, **options)
    simmim_mask(1, (size, size), unit=mask_unit, patch=network.encoder.patch_size, ratio=mask_ratio)
    if size % network.stride:
        raise OffprintError(
            f"images of {size} pixels do not divide into cells of {network.stride}; choose another --size"
        )
    splits = open_pictures(data, val_fraction=val_fraction, seed=seed, on_error=on_error)
    channels = network.encoder.in_chans
    settings = {"method": method, "model": model, "data": str(data), "seed": seed, "input_size": size, "options": options,
                "mask_unit": mask_unit, "mask_ratio": mask_ratio, "norm_target": target,
                "recipe": dataclasses.asdict(recipe), "preprocessing": dict(spec.preprocessing)}  # fmt: skip
    last = open_folder(out, "pretraining.json", settings, resume)
    folder = last.parent
    task = MaskedImageModelling(network, recipe, mask_unit, mask_ratio, seed)
    module = ImageData(
        splits,
        training_transform(size, spec.preprocessing, recipe, channels),
        evaluation_transform(size, spec.preprocessing, channels),
        min(recipe.batch_size, len(splits.train)), workers, seed,
    )  # fmt: skip
    trainer = train(
        task, module, last, callbacks, precision=precision, devices=devices, accelerator=accelerator, accumulate=accumulate,
        logger=logger, progress=progress,
    )  # fmt: skip
    state = read_file(last)["state_dict"]
    network.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    save_weights(network.encoder, folder / "model.safetensors")
    summary = {"loss": float(trainer.callback_metrics["val_loss"]) if "val_loss" in trainer.callback_metrics else None,
               "epochs": trainer.current_epoch, "weights": str(folder / "model.safetensors")}  # fmt: skip
    if summary["loss"] is None and (folder / "summary.json").is_file():  # the run had ended before
        summary["loss"] = json.loads((folder / "summary.json").read_text())["loss"]
    atomic_write(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def pretraining_recipe(model: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """SimMIM's recipe for a model, with fields overridden; the rate falls after seven eighths of the epochs in use."""
    fields = {**SIMMIM_RECIPE, **(overrides or {})}
    if entry(model).paper != "swin-v2" and "drop_path_rate" not in (overrides or {}):
        fields["drop_path_rate"] = None
    fields.setdefault("decay_epochs", max(1.0, float(fields["epochs"]) * 7 / 8))
    return Recipe.make(fields)
