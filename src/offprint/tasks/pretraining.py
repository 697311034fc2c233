"""Pre-training without labels: pictures, recipe, a run that resumes exactly, and weights that a classifier starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from offprint.data.images import ImageSplits
from offprint.data.pictures import open_pictures
from offprint.errors import OffprintError, unknown
from offprint.models.backbones.swin_v2 import SIMMIM_RECIPE, SimMIM, simmim_mask
from offprint.models.checkpoint import load_weights, save_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.nn import MaskedTokens
from offprint.tasks.classification import picture_loaders, side_of, start
from offprint.tasks.contract import Job, Ready, Task, register_task, train
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result
from offprint.tasks.running import Fitted, ImageData, RecipeTask

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


class MaskedPretraining(Task):
    """SimMIM: predict the pixels of hidden squares, on pictures without labels."""

    name = "pretraining"
    does = "pre-trains on pictures without labels"

    def fits(self, spec: Entry) -> bool:
        return issubclass(spec.build, MaskedTokens) if isinstance(spec.build, type) else False

    def recipe(self, spec: Entry, stage: str = "pretraining", overrides: Mapping[str, Any] | None = None) -> Recipe:
        return pretraining_recipe(spec.name, dict(overrides or {}))

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.05, on_error: str = "stop") -> ImageSplits:
        """Open pictures; labels are not looked at.

        Args:
            source: a folder of pictures at any depth, a name (``mnist``, ``cifar10``, ...), or a bundled sample (``sample:cifar10``).
            val_fraction: share of the pictures that the reconstruction is measured on.
            on_error: a picture that cannot be read: stop or skip.
        """
        if isinstance(source, ImageSplits):
            return source
        return open_pictures(source, val_fraction=val_fraction, seed=seed, on_error=on_error)

    def prepare(
        self,
        job: Job,
        *,
        method: str = "simmim",
        mask_unit: int = 32,
        mask_ratio: float = 0.6,
        norm_target: int | None = None,
    ) -> None:
        """Settle what is hidden and what is predicted.

        Args:
            method: simmim, to predict the pixels of hidden squares.
            mask_unit: side of a hidden square in pixels.
            mask_ratio: share of the squares that is hidden.
            norm_target: neighbourhood that normalises the target, 0 for none; 47 for SwinV2.
        """
        if method not in METHODS:
            raise unknown("pre-training method", method, METHODS)
        own = int(getattr(job.entry.build, "norm_target", 0))
        job.settled = {"method": method, "mask_unit": mask_unit, "mask_ratio": mask_ratio,
                        "norm_target": own if norm_target is None else norm_target}  # fmt: skip

    def build(self, job: Job) -> SimMIM:
        if job.how.drop_path_rate is not None:
            job.model_options.setdefault("drop_path_rate", job.how.drop_path_rate)
        target = job.settled["norm_target"] or None
        if job.pretrained or job.checkpoint:
            network = SimMIM(start(job, 0), target)
        else:
            network = SimMIM(job.model, target, **job.model_options)
        size, encoder = side_of(job), network.encoder
        unit, ratio = job.settled["mask_unit"], job.settled["mask_ratio"]
        simmim_mask(1, (size, size), unit=unit, patch=encoder.patch_size, ratio=ratio)
        if size % network.stride:
            raise OffprintError(
                f"images of {size} pixels do not divide into cells of {network.stride}; choose another --size"
            )
        return network

    def about(self, job: Job) -> dict[str, Any]:
        return {
            **job.settled,
            "input_size": side_of(job),
            "preprocessing": job.how.pictures(job.entry.preprocessing),
        }

    def module(self, job: Job) -> MaskedImageModelling:
        return MaskedImageModelling(
            job.network, job.how, job.settled["mask_unit"], job.settled["mask_ratio"], job.run.seed
        )

    def loaders(self, job: Job) -> ImageData:
        return picture_loaders(job, job.network.encoder.in_chans)

    def save(self, job: Job) -> None:
        save_weights(job.network.encoder, job.folder / "model.safetensors")

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"loss": fitted.logged.get("val_loss"), "model": job.model}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"hidden pixels off by {figures['loss']:.4f} after {figures['epochs']} epochs; weights: {folder / 'model.safetensors'}",
            f"next: offprint train --model {folder} --task classification --data ...",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], num_classes=0, **options)
        load_weights(model, folder / "model.safetensors")
        return Ready(self, model.eval(), about["model"], about, folder)

    def _no_classifier(self, ready: Ready) -> OffprintError:
        return OffprintError(
            f"{ready.folder or ready.name} is a pre-trained encoder without a classifier; train one on it first: "
            f"offprint train --model {ready.folder or ready.name} --task classification --data DIR"
        )

    def evaluate(self, ready: Ready, data: Any = None, *, progress: Callable[..., None] | None = None) -> Figures:
        raise self._no_classifier(ready)

    def predict(self, ready: Ready, inputs: Any, *, progress: Callable[..., None] | None = None) -> Result:
        raise self._no_classifier(ready)


def pretrain(
    model: str,
    data: Any,
    out: str | Path,
    *,
    method: str = "simmim",
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    mask_unit: int = 32,
    mask_ratio: float = 0.6,
    norm_target: int | None = None,
    on_error: str = "stop",
    val_fraction: float = 0.05,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Any]:
    """:func:`offprint.train` for pre-training, with a plain dictionary of figures.

    Args:
        model, data, out, pretrained, checkpoint, model_options, callbacks: as there.
        overrides: fields of the recipe, over SimMIM's own.
        method, mask_unit, mask_ratio, norm_target: see :meth:`MaskedPretraining.prepare`.
        on_error, val_fraction: see :meth:`MaskedPretraining.open`.
        **settings: see :class:`~offprint.tasks.settings.Run`.

    Returns:
        ``loss`` (mean absolute error over hidden pixels of held-out pictures), ``epochs``, ``weights`` (path). The weights
        start a classifier: ``offprint train --checkpoint WEIGHTS``.
    """
    options = {"method": method, "mask_unit": mask_unit, "mask_ratio": mask_ratio, "norm_target": norm_target,
               "on_error": on_error, "val_fraction": val_fraction}  # fmt: skip
    return dict(train(
        model, data, out, task="pretraining", stage="pretraining", recipe=overrides, options=options, model_options=model_options,
        pretrained=pretrained, checkpoint=checkpoint, callbacks=callbacks, **settings,
    ))  # fmt: skip


def pretraining_recipe(model: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """SimMIM's recipe for a model, with fields overridden; the rate falls after seven eighths of the epochs in use."""
    own = {k: v for k, v in entry(model).recipes.get("simmim", {}).items() if k not in ("decay_epochs", "input_size")}
    fields = {**(own or SIMMIM_RECIPE), **(overrides or {})}
    if not getattr(entry(model).build, "norm_target", 0) and "drop_path_rate" not in (overrides or {}):
        fields["drop_path_rate"] = None  # SimMIM states one for SwinV2
    fields.setdefault("decay_epochs", max(1.0, float(fields["epochs"]) * 7 / 8))
    return Recipe.make(fields)


register_task(MaskedPretraining())
