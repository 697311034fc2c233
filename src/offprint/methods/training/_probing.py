"""Probes on the layers of a trained backbone: which layer knows how much, with all labels or with the first few of each class."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms import v2

from offprint.data.images import ImageSplits, Subset, check_labels
from offprint.data.transforms import evaluation_transform, training_transform
from offprint.errors import DataError, OffprintError
from offprint.files import atomic_write
from offprint.methods.training.rotnet import PROBE, PROBES, Probes, SteppedRecipe, features, layers_of, make_probe
from offprint.models.backbone import Backbone
from offprint.models.checkpoint import save_weights
from offprint.models.factory import create_model
from offprint.models.registry import entry
from offprint.tasks.classification import ImageClassification, own_source
from offprint.tasks.contract import Ready, find
from offprint.tasks.folder import SUMMARY, WEIGHTS, RunFolder
from offprint.tasks.results import Result, canvas, finish
from offprint.tasks.running import ImageData, RecipeTask, fit
from offprint.tasks.settings import Run

TABLE, PLOT = "probes.json", "probes.png"


class ProbeTraining(RecipeTask):
    """Probes that learn at once on the layers of one network, which stays as it is and in evaluation mode, unless it is fine-tuned."""

    def __init__(
        self,
        model: nn.Module,
        backbone: nn.Module,
        layers: Sequence[str],
        recipe: SteppedRecipe,
        classes: int,
        seed: int,
    ):
        super().__init__(model, recipe, seed)
        self.layers, self.finetune = list(layers), hasattr(model, "backbone")
        self._held = [backbone]  # in a list, so that a frozen network is neither saved nor trained
        self.accuracy = nn.ModuleList(MulticlassAccuracy(classes, average="micro") for _ in layers)

    def on_fit_start(self) -> None:
        self._held[0].to(self.device)

    def logits(self, images: Tensor) -> list[Tensor]:
        """Of each probe."""
        backbone = self._held[0]
        if self.finetune:
            return self.model.probes(features(backbone, images, self.layers))
        with torch.no_grad():
            maps = features(backbone.eval(), images, self.layers)
        return self.model(maps)

    def training_step(self, batch, batch_idx) -> Tensor:
        images, labels = batch
        loss = torch.stack([F.cross_entropy(logits, labels) for logits in self.logits(images)]).sum()
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images, labels = batch
        for i, logits in enumerate(self.logits(images)):
            self.accuracy[i].update(logits, labels)  # type: ignore[operator,union-attr]
            self.log(f"val_accuracy_{i}", self.accuracy[i])  # type: ignore[arg-type]
            self.log(f"val_loss_{i}", F.cross_entropy(logits, labels), sync_dist=True, batch_size=len(labels))


@dataclass
class ProbeTable(Result):
    """A row for each layer: ``layer``, ``channels``, ``side``, ``accuracy`` (%) and ``loss`` on the validation part; with a comparison
    also ``scratch`` (%), the same layers and probe from random weights.

    Attributes:
        about: kind of probe, labels, epochs, and the accuracy of the pretext task where that is known.
    """

    about: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> Any:
        return {**self.about, "layers": self.rows}

    def draw(self, path: str | Path) -> Path:
        """Accuracy of each layer, in the order of the forward pass."""
        figure, axes = canvas(1.5 + 1.1 * max(3, len(self.rows)), 3.4)
        names, values = [row["layer"] for row in self.rows], [row["accuracy"] for row in self.rows]
        axes.plot(names, values, "o-", color="#3b6ea5", label="trained before")
        for name, value in zip(names, values, strict=True):
            axes.annotate(f"{value:.1f}", (name, value), xytext=(0, 6), textcoords="offset points", ha="center")
        if scratch := [(row["layer"], row["scratch"]) for row in self.rows if "scratch" in row]:
            axes.plot(*zip(*scratch, strict=True), "s", color="#d9822b", label="from random weights")
            axes.legend()
        axes.margins(y=0.2)
        axes.set_ylabel("accuracy (%)")
        axes.set_title(f"{self.about.get('kind', '')} probes of {self.about.get('model', '')}")
        return finish(figure, path)


def first_of_each(targets: Sequence[int], labels: int, draws: int = 0) -> list[int]:
    """Indices of the first ``labels`` items of each class (0: all), gone through until there are ``draws`` (0: once).

    Raises:
        DataError: a class has fewer.
    """
    taken: dict[int, list[int]] = defaultdict(list)
    for i, target in enumerate(targets):
        if not labels or len(taken[int(target)]) < labels:
            taken[int(target)].append(i)
    short = [f"{c} has {len(found)}" for c, found in sorted(taken.items()) if labels and len(found) < labels]
    if short:
        raise DataError(
            f"{labels} labels of each class were asked for, and class {', '.join(short[:5])}; ask for fewer"
        )
    chosen = sorted(i for found in taken.values() for i in found)
    return (chosen * (-(-draws // len(chosen))))[:draws] if draws else chosen


def _transforms(ready: Ready, side: int, preprocessing: Mapping[str, Any], recipe: SteppedRecipe):
    channels = getattr(ready.model, "in_chans", 3)
    test = evaluation_transform(side, preprocessing, channels)
    if side < 64:
        return training_transform(side, preprocessing, recipe, channels), test
    as_it_is = evaluation_transform(side, {**preprocessing, "crop_mode": "squash"}, channels)
    crop = [v2.Resize(round(side * 8 / 7)), v2.RandomCrop(side), *([v2.RandomHorizontalFlip()] if recipe.flip else [])]
    return v2.Compose([*crop, as_it_is]), test


def probe(
    model: Any,
    data: Any = None,
    out: str | Path = "runs/probe",
    *,
    layers: Sequence[str] = (),
    kind: str = "linear",
    labels: int = 0,
    draws: int = 0,
    finetune: bool = False,
    scratch: bool = False,
    recipe: Mapping[str, Any] | None = None,
    pretrained: bool | str = False,
    checkpoint: str | None = None,
    val_fraction: float = 0.2,
    say: Callable[[str], None] = lambda text: None,
    run: Run | None = None,
    **settings: Any,
) -> ProbeTable:
    """Train probes on layers of a network, and measure them on the validation part. All are taken as they are after the last epoch.

    Args:
        model: the folder of a run, a model name with ``pretrained`` or ``checkpoint``, or what :func:`offprint.load_run` gives.
        data: labelled pictures; default those the run was trained on.
        out: folder of the probes, table and plot.
        layers: names of layers; default all that the network has.
        kind: ``linear``, ``conv`` (a block of convolutions), ``mlp``, or ``nonlinear`` (the rest of AlexNet).
        labels: use the first so many of each class; 0 for all.
        draws: pictures of an epoch, so that few labels get as many steps as many; 0 for one pass.
        finetune: the network learns too (one layer; what lies behind it is not used).
        scratch: also train the same layers and probe from random weights, all of it, on the same pictures.
        recipe: fields of the recipe that differ from the paper's.
        pretrained, checkpoint: weights, with a name.
        val_fraction: share held out where the data have no part of their own for it.
        say: told what is found.
        run, **settings: see :class:`~offprint.tasks.settings.Run`.

    Raises:
        OffprintError: no such layer or kind, a network that gives no maps, pictures without labels.
    """
    how = (run or Run()).but(**settings)
    if kind not in PROBES:
        make_probe(kind, "", (1, 1, 1), 1)
    ready = find(model, pretrained, checkpoint)
    net = ready.model
    if not isinstance(net, Backbone):
        raise OffprintError(f"{ready.name} is a {type(net).__name__}; probes are for backbones of pictures")
    chosen = list(layers) or [n for n in layers_of(net) if not (kind == "nonlinear" and n not in ("conv4", "conv5"))]
    if (finetune or scratch) and len(chosen) != 1:
        raise OffprintError(
            f"finetune and scratch train the network up to one layer; {len(chosen)} were chosen: {', '.join(chosen)}"
        )
    source = own_source(ready) if data is None else data
    splits = ImageClassification().open(source, seed=how.seed, val_fraction=val_fraction)
    for part in (splits.train, splits.val):
        check_labels(part.targets, len(splits.classes))
    if len(splits.classes) < 2:
        raise DataError(f"{source} has pictures of one class only; probes need labels")
    made = SteppedRecipe.make({**PROBE[kind], **(recipe or {})})
    side = made.input_size or ready.about.get("input_size") or (entry(ready.name).input_size or (3, 224, 224))[-1]
    preprocessing = ready.about.get("preprocessing") or dict(entry(ready.name).preprocessing)
    train, test = _transforms(ready, side, preprocessing, made)  # type: ignore[arg-type]
    indices = first_of_each(splits.train.targets, labels, draws)
    part = ImageSplits(Subset(splits.train, indices), splits.val, splits.classes, splits.name)
    loaders = lambda: ImageData(part, train, test, min(made.batch_size, len(indices)), how.workers, how.seed)  # noqa: E731
    pretext = _pretext(ready)
    words = f"{len(set(indices)):,} labels" + (f", the first {labels} of each class" if labels else "")
    say(f"{kind} probes on {', '.join(chosen)} of {ready.name}: {words}")
    if pretext is not None:
        same = str(source) == str(ready.about.get("source"))
        say(
            f"the pretext reached {pretext:.2f} %"
            + ("; it saw the same training pictures, without labels" if same else "")
        )
    about = {"task": "probe", "model": str(ready.name if ready.folder is None else ready.folder), "kind": kind, "layers": chosen,
             "labels": labels, "draws": draws, "classes": splits.classes, "input_size": side, "recipe": asdict(made), "seed": how.seed}  # fmt: skip
    rows, leader = _fit(net, chosen, kind, finetune, made, loaders, Path(out), {**about, "finetune": finetune}, how)
    if scratch:
        torch.manual_seed(how.seed)
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in ready.about.get("options", {}).items()}
        fresh = create_model(ready.name, num_classes=net.num_classes, **options)
        other, _ = _fit(
            fresh, chosen, kind, True, made, loaders, Path(out) / "scratch", {**about, "finetune": True}, how
        )
        rows[0]["scratch"] = other[0]["accuracy"]
    told = {k: about[k] for k in ("model", "kind", "labels")} | {
        "finetune": finetune,
        "epochs": made.epochs,
        "pretext_accuracy": pretext,
    }
    table = ProbeTable(rows, about=told)
    if leader:
        atomic_write(Path(out) / TABLE, json.dumps(table.plain(), indent=1) + "\n")
        table.draw(Path(out) / PLOT)
    return table


def _fit(net, layers, kind, finetune, recipe, loaders, out, about, how) -> tuple[list[dict[str, Any]], bool]:
    """Rows of the layers, from the folder where they are there."""
    net.requires_grad_(finetune).eval()
    side = about["input_size"]
    with torch.no_grad():
        maps = features(net, torch.zeros(2, net.in_chans, side, side), layers)
    torch.manual_seed(how.seed)
    probes = Probes(
        [make_probe(kind, n, m.shape[1:], len(about["classes"])) for n, m in zip(layers, maps, strict=True)]
    )
    folder = RunFolder(out, about, how.resume, made=(TABLE, PLOT))
    before = folder.summary()
    if before is not None and before["epochs"] == recipe.epochs and (folder / WEIGHTS).is_file():
        return before["layers"], folder.writes
    model: nn.Module = probes
    if finetune:
        model = nn.Module()
        model.backbone, model.probes = net, probes
        net.train()
    module = ProbeTraining(model, net, layers, recipe, len(about["classes"]), how.seed)
    fitted = fit(module, loaders(), folder, how)
    net.to("cpu").eval()
    rows = []
    for i, (name, shape) in enumerate(zip(layers, (m.shape[1:] for m in maps), strict=True)):
        accuracy, loss = fitted.logged[f"val_accuracy_{i}"], fitted.logged[f"val_loss_{i}"]
        rows.append({"layer": name, "channels": shape[0], "side": shape[-1], "accuracy": 100 * accuracy, "loss": loss})
    if fitted.trainer.is_global_zero:
        model.load_state_dict(fitted.state)
        save_weights(model.to("cpu"), folder / WEIGHTS)
        folder.write_summary({"layers": rows, "epochs": recipe.epochs})
    return rows, fitted.trainer.is_global_zero


def _pretext(ready: Ready) -> float | None:
    """Accuracy (%) of the pretext task, where the run was one."""
    file = None if ready.folder is None else ready.folder / SUMMARY
    held = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}
    return held.get("rotation_accuracy")
