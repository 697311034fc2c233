"""The task of RotNet: by which quarter turn a picture was rotated. Pictures need no labels; those that have them keep them unread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from offprint.data.images import ImageSplits, Subset
from offprint.data.pictures import open_pictures
from offprint.data.transforms import evaluation_transform
from offprint.errors import OffprintError
from offprint.methods.training.rotnet import ANGLES, PRETEXT, PRETEXT_LARGE, SteppedRecipe, check_angles, rotate
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import load_weights, save_weights
from offprint.models.factory import create_model
from offprint.models.registry import Entry
from offprint.tasks.classification import ClassPredictions, own_source, picture_loaders, predict_images, side_of, start
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.pictures import Readable, left_out, pictures_in, present
from offprint.tasks.results import Figures
from offprint.tasks.running import Fitted, ImageData, RecipeTask

HEAD = "rotations.safetensors"  # the classifier of turns, apart: whoever starts from the weights wants another one
LOW = 40.0  # percent of four turns, below which it is worth a word


class RotationPrediction(RecipeTask):
    """Cross-entropy over the turns; all views of a picture are in one batch."""

    def __init__(self, model: torch.nn.Module, recipe: SteppedRecipe, angles: Sequence[int] = ANGLES, seed: int = 0):
        super().__init__(model, recipe, seed)
        self.angles = tuple(angles)
        self.accuracy = MulticlassAccuracy(len(angles), average="micro")

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        views, turns = rotate(images, self.angles)
        logits = self.model(views)
        return (logits[0] if isinstance(logits, tuple) else logits), turns

    def training_step(self, batch, batch_idx) -> Tensor:
        loss = F.cross_entropy(*self._logits(batch[0]))
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        logits, turns = self._logits(batch[0])
        self.accuracy.update(logits, turns)
        self.log("val_loss", F.cross_entropy(logits, turns), sync_dist=True, batch_size=len(turns))
        self.log("val_accuracy", self.accuracy, prog_bar=True)


class Rotations(Task):
    """RotNet: predict the quarter turn of pictures."""

    name = "rotations"
    does = "learns from pictures without labels, by which quarter turn they were rotated"
    made = (HEAD,)

    def fits(self, spec: Entry) -> bool:
        return isinstance(spec.build, type) and issubclass(spec.build, Backbone)

    def recipe(self, spec: Entry, stage: str = "training", overrides: Mapping[str, Any] | None = None) -> SteppedRecipe:
        side = (overrides or {}).get("input_size") or (spec.input_size or (3, 224, 224))[-1]
        made = SteppedRecipe.make({**(PRETEXT if side < 64 else PRETEXT_LARGE), **(overrides or {})})
        assert isinstance(made, SteppedRecipe)
        return made

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.05, on_error: str = "stop") -> ImageSplits:
        """Open pictures; labels are not looked at.

        Args:
            source: a folder of pictures at any depth, a name (``mnist``, ``cifar10``, ...), or a bundled sample (``sample:cifar10``).
            val_fraction: share of the pictures that the accuracy is measured on, where they have no part of their own for it.
            on_error: a picture that cannot be read: stop or skip.
        """
        if isinstance(source, ImageSplits):
            return source
        return open_pictures(source, val_fraction=val_fraction, seed=seed, on_error=on_error)

    def prepare(self, job: Job, *, angles: tuple[int, ...] = ANGLES) -> None:
        """Settle the turns.

        Args:
            angles: the turns in degrees, of 0, 90, 180 and 270.
        """
        job.settled = {"angles": list(check_angles(angles))}

    def build(self, job: Job) -> torch.nn.Module:
        for name in ("drop_path_rate", "drop_rate"):
            if getattr(job.how, name) is not None:
                job.model_options.setdefault(name, getattr(job.how, name))
        return start(job, len(job.settled["angles"]))

    def greeting(self, job: Job) -> Sequence[str]:
        return [f"{len(job.data.train):,} pictures, each in {len(job.settled['angles'])} views; labels are not read"]

    def about(self, job: Job) -> dict[str, Any]:
        return {
            **job.settled,
            "input_size": side_of(job),
            "preprocessing": job.how.pictures(job.entry.preprocessing),
        }

    def module(self, job: Job) -> RotationPrediction:
        return RotationPrediction(job.network, job.how, job.settled["angles"], job.run.seed)

    def loaders(self, job: Job) -> ImageData:
        return picture_loaders(job, getattr(job.network, "in_chans", 3))

    def save(self, job: Job) -> None:
        """The weights without the classifier, and the classifier beside them."""
        from copy import deepcopy

        from offprint.files import atomic_write

        head = {k: v for k, v in job.network.state_dict().items() if k.startswith(f"{job.network.classifier}.")}
        trunk = deepcopy(job.network)
        trunk.reset_classifier(0)
        from safetensors.torch import save

        atomic_write(job.folder / HEAD, save({k: v.contiguous() for k, v in head.items()}))
        save_weights(trunk, job.folder / "model.safetensors")

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {
            "rotation_accuracy": 100 * fitted.logged.get("val_accuracy", float("nan")),
            "chance": 100 / len(job.settled["angles"]),
            "loss": fitted.logged.get("val_loss"),
        }

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        accuracy, chance = figures["rotation_accuracy"], figures["chance"]
        said = [
            f"rotations: {accuracy:.2f} % of held-out views after {figures['epochs']} epochs ({chance:g} % is chance); "
            f"weights: {folder / 'model.safetensors'}"
        ]
        if accuracy < LOW * chance / 25:
            said.append(
                "that is low: turns cannot be told of pictures that have no up and down (cells, satellite pictures, digits such as 0 and 8)"
            )
        return [
            *said,
            f"next: offprint probe {folder} --data ..., or offprint train --model {folder} --task classification --data ...",
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in about["options"].items()}
        model = create_model(about["model"], num_classes=len(about["angles"]), **options)
        load_weights(model, {**load_file(folder / "model.safetensors"), **load_file(folder / HEAD)})
        return Ready(self, model.eval(), about["model"], about, folder)

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        ready = super().released(name, pretrained, checkpoint, options)
        turns = getattr(ready.model, "num_classes", 0)
        if turns != len(ANGLES):
            raise OffprintError(
                f"{name} with these weights has {turns} classes; one that tells turns has {len(ANGLES)}"
            )
        from offprint.models.registry import entry

        spec = entry(name)
        ready.about |= {
            "angles": list(ANGLES),
            "input_size": (spec.input_size or (3, 224, 224))[-1],
            "preprocessing": dict(spec.preprocessing),
        }
        return ready

    def transform(self, ready: Ready):
        """Picture in, tensor out, as this model is evaluated."""
        channels = getattr(ready.model, "in_chans", 3)
        return evaluation_transform(ready.about["input_size"], ready.about["preprocessing"], channels)

    @torch.no_grad()
    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Accuracy (%) over all turned views of the validation part, and of each turn.

        Args:
            batch_size: pictures at once, each in all its views.
            workers: loader processes.
            on_error: a picture that cannot be read: stop or skip.
        """
        splits = self.open(own_source(ready) if data is None else data, seed=int(ready.about.get("seed", 0)))
        angles, reasons = ready.about["angles"], []
        part = Readable(Subset(splits.val, range(len(splits.val)), self.transform(ready)), on_error)
        loader = DataLoader(part, batch_size, num_workers=workers, collate_fn=present)
        right, count = torch.zeros(len(angles)), 0
        if progress:
            progress(total=len(loader))
        for batch, why in loader:
            reasons += why
            if batch is not None:
                right += rotations_right(ready.model, batch[0], angles)
                count += len(batch[0])
            if progress:
                progress(text=f"{count} pictures")
        if not count:
            raise OffprintError("not one picture of the validation part could be read")
        each = {f"at_{angle}": 100 * float(r) / count for angle, r in zip(angles, right, strict=True)}
        figures = {
            "rotation_accuracy": 100 * float(right.sum()) / count / len(angles),
            **each,
            "chance": 100 / len(angles),
        }
        return Figures.of({**figures, "images": count}, units=dict.fromkeys(figures, " %"), notes=left_out(reasons))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> ClassPredictions:
        """By which turn pictures seem to have been rotated, counter-clockwise.

        Args:
            inputs: picture files, and folders of them.
            on_error: a picture that cannot be read: stop or skip.
        """
        files, reasons, rows = pictures_in(inputs), [], []
        if progress:
            progress(total=len(files))
        names = [f"{angle} degrees" for angle in ready.about["angles"]]
        for file in files:
            try:
                rows += predict_images(ready.model, self.transform(ready), [file], names, len(names))
            except OffprintError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
            if progress:
                progress(text=file.name)
        return ClassPredictions(rows, left_out(reasons))


def rotations_right(model: torch.nn.Module, images: Tensor, angles: Sequence[int] = ANGLES) -> Tensor:
    """How many of the images (B, C, S, S) a model gets right at each turn: (len(angles),)."""
    views, turns = rotate(images, angles)
    right = (model(views).argmax(1) == turns).float()
    return torch.zeros(len(angles), device=right.device).index_add_(0, turns, right).cpu()


register_task(Rotations())
