"""Image classification end to end: data, recipe, training that resumes exactly, evaluation, prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from offprint.data.images import ImageSplits, Subset, check_labels, open_images
from offprint.data.reading import read_picture
from offprint.data.transforms import evaluation_transform, training_transform
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.models.factory import create_model
from offprint.models.registry import Entry, entry
from offprint.tasks.contract import Job, Ready, Task, find, register_task, train
from offprint.tasks.pictures import Readable, files_of, left_out, pictures_in, present, with_validation
from offprint.tasks.recipe import Recipe
from offprint.tasks.results import Figures, Result, sheet
from offprint.tasks.running import Fitted, ImageData, RecipeTask


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
            own = self.recipe.aux_weight
            loss = loss + (self.model.aux_weight if own is None else own) * side
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images, labels = batch
        logits = self.model(images)
        self.accuracy.update(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True, batch_size=len(labels))
        self.log("val_accuracy", self.accuracy, prog_bar=True)


@dataclass
class ClassPredictions(Result):
    """The most probable classes of pictures.

    Each row: ``image`` and ``predictions``, a list of ``class``, ``index`` and ``probability``, best first.
    """

    def flat(self) -> list[dict[str, Any]]:
        return [
            {"image": row["image"], "rank": rank, **guess}
            for row in self.rows
            for rank, guess in enumerate(row["predictions"], 1)
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        rows = [[r["image"] if r["rank"] == 1 else "", r["class"], f"{r['probability']:.3f}"] for r in self.flat()]
        return ["image", "class", "probability"], rows

    def draw(self, path: str | Path) -> Path:
        """The pictures, each with its first class."""
        shown = []
        for row in self.rows[:24]:
            best = row["predictions"][0]
            shown.append((read_picture(row["image"]), f"{best['class']} {100 * best['probability']:.0f} %"))
        return sheet(path, shown)


class ImageClassification(Task):
    """Cross-entropy training of image models by their papers' recipes."""

    name = "classification"
    does = "classifies pictures"
    goal = "val_accuracy"
    made = ("validation.txt",)

    def fits(self, spec: Entry) -> bool:
        return spec.task == self.name or (spec.kind == "backbone" and hasattr(spec.build, "forward_features"))

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.2, on_error: str = "stop") -> ImageSplits:
        """Open labelled pictures.

        Args:
            source: a folder of class folders (with ``train`` and ``val``, or without), a name (``mnist``, ``cifar10``, ...), a bundled
                sample (``sample:cifar10``), or :class:`~offprint.data.images.ImageSplits`.
            val_fraction: share held out per class, where the data have no split of their own.
            on_error: a picture that cannot be read: stop or skip.
        """
        if isinstance(source, ImageSplits):
            return source
        return open_images(source, val_fraction=val_fraction, seed=seed, on_error=on_error)

    def digest(self, data: ImageSplits) -> str:
        return ""  # pictures come and go: what belongs to which part is fixed in the folder instead

    def prepare(self, job: Job, *, num_classes: int = 0) -> None:
        """Fix the validation part of a folder, and check the labels.

        Args:
            num_classes: outputs of the model where it should have more than the data have classes.
        """
        kept = Path(job.out) / "validation.txt"
        if job.run.resume and kept.is_file() and (Path(job.out) / "settings.json").is_file():
            job.data = with_validation(job.data, kept.read_text(encoding="utf-8").splitlines())
        for part in (job.data.train, job.data.val):
            check_labels(part.targets, len(job.data.classes))

    def build(self, job: Job) -> torch.nn.Module:
        classes = max(len(job.data.classes), int(job.options.get("num_classes", 0)))
        for name in ("drop_path_rate", "drop_rate"):
            if getattr(job.how, name) is not None:
                job.model_options.setdefault(name, getattr(job.how, name))
        network = start(job, classes)
        scale = job.how.head_init_scale
        if scale != 1.0:
            head = network.get_classifier() if hasattr(network, "get_classifier") else None
            if head is None or not hasattr(head, "weight"):
                raise OffprintError(f"head_init_scale={scale}: {job.model} has no linear classifier to scale")
            with torch.no_grad():
                head.weight.mul_(scale)
                if head.bias is not None:
                    head.bias.mul_(scale)
        return network

    def about(self, job: Job) -> dict[str, Any]:
        return {
            "classes": job.data.classes,
            "input_size": side_of(job),
            "preprocessing": dict(job.entry.preprocessing),
        }

    def module(self, job: Job) -> Classification:
        held = [str(p) for p in files_of(job.data.val)]
        if held and job.folder.writes:
            atomic_write(job.folder / "validation.txt", "\n".join(held) + "\n")
        return Classification(job.network, job.how, len(job.data.classes), job.run.seed)

    def loaders(self, job: Job) -> ImageData:
        return picture_loaders(job, getattr(job.network, "in_chans", 3))

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        accuracy = fitted.best if fitted.best is not None else fitted.logged.get("val_accuracy", math.nan)
        return {"accuracy": 100 * accuracy, "loss": fitted.logged.get("val_loss"), "classes": job.data.classes}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"validation accuracy {figures['accuracy']:.2f} % after {figures['epochs']} epochs"
            f" ({figures.get('weights_are', 'best epoch')}); weights: {folder / 'model.safetensors'}"
        ]

    def ready(self, folder: Path, about: dict[str, Any]) -> Ready:
        return self.restored(folder, about, num_classes=len(about["classes"]))

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        spec = entry(name)
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options)
        size, preprocessing = (spec.input_size or (3, 224, 224))[-1], spec.preprocessing
        if pretrained:  # as the publisher of these weights evaluates them
            release = spec.release(pretrained)
            size, preprocessing = (release.input_size or (3, size, size))[-1], release.preprocessing or preprocessing
        classes = None
        if getattr(model, "num_classes", 0) == 1000:
            from torchvision.models._meta import _IMAGENET_CATEGORIES

            classes = list(_IMAGENET_CATEGORIES)
        about = {"classes": classes, "input_size": size, "preprocessing": dict(preprocessing), "options": dict(options)}
        return Ready(self, model.eval(), name, about)

    def transform(self, ready: Ready):
        """Picture in, tensor out, as this model is evaluated."""
        about = ready.about
        return evaluation_transform(about["input_size"], about["preprocessing"], getattr(ready.model, "in_chans", 3))

    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        batch_size: int = 64,
        workers: int = 0,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Figures:
        """Top-1 and top-5 accuracy (%) and cross-entropy on the validation part.

        Args:
            batch_size: pictures at once.
            workers: loader processes.
            on_error: a picture that cannot be read: stop or skip.
        """
        if data is None:
            data = own_source(ready)
        splits = self.open(data)
        kept = None if ready.folder is None else ready.folder / "validation.txt"
        if kept is not None and kept.is_file() and str(data) == ready.about.get("source"):
            splits = with_validation(splits, kept.read_text(encoding="utf-8").splitlines())
        reasons: list[str] = []
        found = evaluate_classifier(
            ready.model, splits, self.transform(ready), batch_size=batch_size, workers=workers, on_error=on_error,
            skipped=reasons, progress=progress,
        )  # fmt: skip
        return Figures.of(found, units={"top1": " %", "top5": " %"}, notes=left_out(reasons))

    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        top_k: int = 5,
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> ClassPredictions:
        """Classes of pictures.

        Args:
            inputs: picture files, and folders of them.
            top_k: classes to name.
            on_error: a picture that cannot be read: stop or skip.
        """
        files, reasons = pictures_in(inputs), []
        rows: list[dict] = []
        transform = self.transform(ready)
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                rows += predict_images(ready.model, transform, [file], ready.about.get("classes"), top_k)
            except OffprintError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
            if progress:
                progress(text=file.name)
        return ClassPredictions(rows, left_out(reasons))


def side_of(job: Job) -> int:
    """Height and width that a job trains at, in pixels."""
    return job.how.input_size or (job.entry.input_size or (3, 224, 224))[-1]


def picture_loaders(job: Job, channels: int) -> ImageData:
    """Loaders of a job on pictures: augmented as its recipe says, and as its model is evaluated."""
    size, preprocessing = side_of(job), job.how.pictures(job.entry.preprocessing)
    return ImageData(
        job.data,
        training_transform(size, preprocessing, job.how, channels),
        evaluation_transform(size, preprocessing, channels),
        min(job.how.batch_size, len(job.data.train)), job.run.workers, job.run.seed,
    )  # fmt: skip


def start(job: Job, num_classes: int | None) -> torch.nn.Module:
    """The network of a job with the weights it starts from; a classifier of another size is replaced."""
    options, pretrained = dict(job.model_options), job.pretrained
    backbone, plus, _ = job.model.partition("+")
    if plus and pretrained:  # of the parts, only a backbone has weights of its own
        options["backbone"], pretrained = {"name": backbone, "pretrained": pretrained}, False
    network = create_model(job.model, pretrained=pretrained, num_classes=num_classes, **options)
    if job.checkpoint:
        from offprint.models.checkpoint import load_weights

        load_weights(network, job.checkpoint, drop_head=True)
    return network


def own_source(ready: Ready) -> str:
    """The data a run was trained on.

    Raises:
        OffprintError: there is no run, or its data came from Python.
    """
    source = ready.about.get("source") or ready.about.get("data")
    if ready.folder is None or not source:
        raise OffprintError(f"{ready.name} comes from no run, so it has no data of its own; give --data")
    return source


def train_classifier(
    model: str,
    data: Any,
    out: str | Path,
    *,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    model_options: Mapping[str, Any] | None = None,
    on_error: str = "stop",
    val_fraction: float = 0.2,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> dict[str, Any]:
    """:func:`offprint.train` for classification, with a plain dictionary of figures.

    Args:
        model, data, out, pretrained, checkpoint, model_options, callbacks: as there.
        overrides: fields of the recipe.
        on_error, val_fraction: see :meth:`ImageClassification.open`.
        **settings: see :class:`~offprint.tasks.settings.Run`.
    """
    done = train(
        model, data, out, task="classification", recipe=overrides, options={"on_error": on_error, "val_fraction": val_fraction},
        model_options=model_options, pretrained=pretrained, checkpoint=checkpoint, callbacks=callbacks, **settings,
    )  # fmt: skip
    return dict(done)


def trained_model(where: str | Path, checkpoint: str | None = None, pretrained: bool | str = False):
    """A classifier for prediction: the folder of a run, or a model name with weights.

    Returns:
        (model in evaluation mode, evaluation transform, class names or ``None``)
    """
    ready = find(where, pretrained, checkpoint)
    if not isinstance(ready.task, ImageClassification):
        raise OffprintError(f"{where} {ready.task.does}; this verb is for classifiers of pictures")
    return ready.model, ready.task.transform(ready), ready.about.get("classes")


@torch.no_grad()
def evaluate_classifier(
    model,
    data: ImageSplits,
    transform,
    *,
    batch_size: int = 64,
    workers: int = 0,
    on_error: str = "stop",
    skipped: list[str] | None = None,
    progress=None,
) -> dict:
    """Top-1 and top-5 accuracy (%) and cross-entropy on the validation part.

    Args:
        on_error: ``"skip"`` leaves pictures out that cannot be read, and puts the reasons into ``skipped``.
        progress: called with ``total=n`` once and ``text=...`` per batch.
    """
    readable = Readable(Subset(data.val, range(len(data.val)), transform), on_error)
    loader = DataLoader(readable, batch_size, num_workers=workers, collate_fn=present)
    device = next(model.parameters()).device
    classes = len(data.classes)
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(device)
    loss, count = 0.0, 0
    if progress:
        progress(total=len(loader))
    for batch, reasons in loader:
        if skipped is not None:
            skipped += reasons
        if batch is None:
            continue
        images, labels = batch
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
    if not count:
        raise DataError("not one picture of the validation part could be read")
    return {
        "top1": 100 * float(top1.compute()),
        "top5": 100 * float(top5.compute()),
        "loss": loss / count,
        "images": count,
    }


@torch.no_grad()
def predict_images(model, transform, paths, classes: list[str] | None = None, top_k: int = 5) -> list[dict]:
    """Top-k classes of each picture file: ``[{"image", "predictions": [{"class", "index", "probability"}, ...]}, ...]``."""
    rows = []
    device = next(model.parameters()).device
    for path in paths:
        tensor = transform(read_picture(path))
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


register_task(ImageClassification())
