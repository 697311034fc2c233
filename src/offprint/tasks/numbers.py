"""Reading whole numbers as a task: training on pictures and strings, sequence accuracy and coverage, a number and its confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from offprint.data.house_numbers import CROP, SHOWN, Box, HouseNumber, HouseNumbers, crop, open_numbers
from offprint.data.reading import read_picture
from offprint.errors import DataError, OffprintError
from offprint.models.checkpoint import load_weights
from offprint.models.detection.multi_digit import (
    Reading,
    as_logits,
    blank_loss,
    coverage_at_accuracy,
    read_sequences,
    sequence_loss,
    targets_of,
)
from offprint.models.factory import create_model
from offprint.models.registry import entry
from offprint.tasks.contract import Job, Ready, Task, register_task
from offprint.tasks.loaders import SeededLoaders
from offprint.tasks.pictures import left_out, pictures_in
from offprint.tasks.results import Figures, Result, canvas, finish, sheet
from offprint.tasks.running import Fitted, RecipeTask


def _tensor(square: Image.Image, preprocessing: Mapping[str, Any]) -> Tensor:
    x = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(preprocessing[k]).view(-1, 1, 1) for k in ("mean", "std"))
    return (x - mean) / std


class NumberCrops(Dataset):
    """(picture (3, side, side), length, digits (most,)) of numbers: a random, or the middle, part of the crop.

    Args:
        numbers: the pictures.
        side: of what the network sees; the crop is 64 / 54 times as large.
        most: digits that the network can tell.
        preprocessing: mean and std.
        random: a random part.
    """

    def __init__(
        self, numbers: Sequence[HouseNumber], side: int, most: int, preprocessing: Mapping[str, Any], random: bool
    ):
        self.numbers, self.side, self.preprocessing, self.random = list(numbers), side, preprocessing, random
        self.lengths, self.digits = targets_of([n.digits for n in self.numbers], most)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        one = self.numbers[index]
        square = crop(one.read(), one.box, round(self.side * CROP / SHOWN))
        room = square.width - self.side
        left, top = (int(torch.randint(room + 1, ())) for _ in range(2)) if self.random else (room // 2, room // 2)
        part = square.crop((left, top, left + self.side, top + self.side))
        return _tensor(part, self.preprocessing), self.lengths[index], self.digits[index]


class NumberTraining(RecipeTask):
    """The loss of length and digits; the share of held-out numbers that are right from end to end."""

    def __init__(self, model: nn.Module, recipe: Any, seed: int):
        super().__init__(model, recipe, seed)
        self.loss = blank_loss if getattr(model, "blank", False) else sequence_loss

    def training_step(self, batch, batch_idx) -> Tensor:
        images, lengths, digits = batch
        loss = self.loss(as_logits(self.model(images)), lengths, digits)
        self.check_loss(loss)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx) -> None:
        images, lengths, digits = batch
        read = read_sequences(as_logits(self.model(images)))
        right = [_right(r, n, d) for r, n, d in zip(read, lengths.tolist(), digits.tolist(), strict=True)]
        self.log("val_accuracy", sum(right) / len(right), prog_bar=True, sync_dist=True, batch_size=len(right))


def _right(found: Reading, length: int, digits: Sequence[int]) -> bool:
    """Whether a number is read as it is; one of more digits than the head has is right where it is refused."""
    if length > len(digits):
        return found.refused
    return not found.refused and list(found.digits) == list(digits[:length])


@dataclass
class NumberFigures(Figures):
    """Figures, and the confidence of each picture with whether it was right; draws the coverage curve."""

    confidence: list[float] = field(default_factory=list)
    correct: list[bool] = field(default_factory=list)

    def draw(self, path: str | Path) -> Path:
        """Accuracy of the most confident pictures against their share."""
        order = np.argsort(-np.array(self.confidence), kind="stable")
        share = np.arange(1, len(order) + 1) / len(order)
        figure, axes = canvas(6, 4)
        axes.plot(
            100 * share, 100 * np.array(self.correct)[order].cumsum() / np.arange(1, len(order) + 1), color="#3b6ea5"
        )
        at = coverage_at_accuracy(self.confidence, self.correct, 0.98)
        axes.axhline(98, color="#888888", lw=0.8, ls="--")
        axes.axvline(100 * at.coverage, color="#b5532a", lw=0.8, label=f"{100 * at.coverage:.1f} % at 98 %")
        axes.set(xlabel="pictures read without a person (%)", ylabel="of them right (%)")
        axes.legend()
        return finish(figure, path)


@dataclass
class Numbers(Result):
    """Numbers that were read. Each row: ``image``, ``number``, ``confidence``, ``refused`` (more digits than the head has)."""

    pictures: list[Any] = field(default_factory=list)

    def draw(self, path: str | Path) -> Path:
        """The crops with their numbers."""
        shown = [
            (p, "refused" if r["refused"] else f"{r['number'] or 'none'}  {100 * r['confidence']:.0f} %")
            for r, p in zip(self.rows, self.pictures, strict=True)
        ]
        return sheet(path, shown[:24])


class NumberReading(Task):
    """Reading a whole number from a crop."""

    name = "numbers"
    does = "reads numbers"
    goal = "val_accuracy"

    def open(self, source: Any, *, seed: int = 0, val_fraction: float = 0.1) -> HouseNumbers:
        """Open pictures of numbers.

        Args:
            source: SVHN's full numbers, a table of pictures and numbers (perhaps with left, top, width, height), or sample:numbers.
            val_fraction: share held out, where the data have no part for it.
        """
        if isinstance(source, HouseNumbers):
            return source
        return open_numbers(source, val_fraction=val_fraction, seed=seed)

    def prepare(self, job: Job, *, longer: str = "stop") -> None:
        """Check the numbers.

        Args:
            longer: a number with more digits than the model tells: stop, leave (out), or more (train the class for it).
        """
        if longer not in ("stop", "leave", "more"):
            raise OffprintError(f"longer={longer!r}; choose stop, leave or more")
        most = int({**_defaults(job), **job.entry.kwargs, **job.model_options}.get("max_digits", 5))
        over = [n for n in (*job.data.train, *job.data.val) if len(n.digits) > most]
        if over and longer == "stop":
            raise DataError(
                f"{len(over)} numbers have more than {most} digits, the first is {over[0].name} with {len(over[0].digits)}; pass "
                "--longer leave or --longer more, or a model of more (-o max_digits=N)"
            )
        if longer == "leave":
            keep = lambda rows: [n for n in rows if len(n.digits) <= most]  # noqa: E731
            notes = (
                [*job.data.notes, f"{len(over)} numbers of more than {most} digits left out"]
                if over
                else job.data.notes
            )
            job.data = HouseNumbers(keep(job.data.train), keep(job.data.val), job.data.name, notes)

    def build(self, job: Job) -> nn.Module:
        network = create_model(job.model, pretrained=job.pretrained, **job.model_options)
        if job.checkpoint:
            load_weights(network, job.checkpoint, drop_head=True)
        return network

    def greeting(self, job: Job) -> Sequence[str]:
        return [f"{len(job.data.train)} numbers to train on, {len(job.data.val)} held out", *job.data.notes]

    def about(self, job: Job) -> dict[str, Any]:
        return {"side": _side(job), "preprocessing": dict(job.entry.preprocessing)}

    def module(self, job: Job) -> NumberTraining:
        return NumberTraining(job.network, job.how, job.run.seed)

    def loaders(self, job: Job) -> SeededLoaders:
        most, side, pre = _most(job.network), _side(job), job.how.pictures(job.entry.preprocessing)
        train, val = (NumberCrops(n, side, most, pre, r) for n, r in ((job.data.train, True), (job.data.val, False)))
        return SeededLoaders(
            train, val, min(job.how.batch_size, len(train)), job.run.workers, job.run.seed, val_batch_size=64
        )

    def finish(self, job: Job, fitted: Fitted) -> dict[str, Any]:
        return {"accuracy": 100 * (fitted.best or 0.0), "numbers": len(job.data.train), "held_out": len(job.data.val)}

    def lines(self, figures: Mapping[str, Any], folder: Path) -> list[str]:
        return [
            f"{figures['accuracy']:.2f} % of {figures['held_out']} held-out numbers right from end to end after {figures['epochs']} epochs; "
            f"weights: {folder / 'model.safetensors'}",
            f"next: offprint predict CROP --model {folder}",
        ]

    def released(self, name: str, pretrained: bool | str, checkpoint: str | None, options: Mapping[str, Any]) -> Ready:
        model = create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **options).eval()
        spec = entry(name)
        side = (spec.input_size or (3, SHOWN, SHOWN))[-1]
        return Ready(
            self, model, name, {"options": dict(options), "preprocessing": dict(spec.preprocessing), "side": side}
        )

    @torch.no_grad()
    def evaluate(
        self,
        ready: Ready,
        data: Any = None,
        *,
        part: str = "val",
        accuracy: float = 0.98,
        progress: Callable[..., None] | None = None,
    ) -> NumberFigures:
        """Numbers right from end to end, digits right place by place, and the coverage at a wanted accuracy (%).

        Args:
            part: train, val or all.
            accuracy: wanted of what is read without a person, 0 to 1.
        """
        data = self.own_source(ready) if data is None else data
        numbers = self.open(data, seed=int(ready.about.get("seed", 0)))
        parts = {"train": numbers.train, "val": numbers.val, "all": [*numbers.train, *numbers.val]}
        if part not in parts:
            raise OffprintError(f"part={part!r}; choose train, val or all")
        held = NumberCrops(parts[part], ready.about["side"], _most(ready.model), ready.about["preprocessing"], False)
        if progress:
            progress(total=len(held))
        rows, correct, digits_right, digits = [], [], 0, 0
        like = next(ready.model.parameters())
        for start in range(0, len(held), 64):
            items = [held[i] for i in range(start, min(start + 64, len(held)))]
            read = read_sequences(as_logits(ready.model(torch.stack([x for x, *_ in items]).to(like))))
            for i, (found, (_, n, d)) in enumerate(zip(read, items, strict=True), start):
                truth = held.numbers[i].digits
                correct.append(_right(found, int(n), d.tolist()))
                digits += len(truth)
                digits_right += sum(a == b for a, b in zip(truth, found.digits, strict=False))
                rows.append({"image": held.numbers[i].name, "number": "".join(map(str, truth)), "read": found.text, "confidence": found.confidence, "right": correct[-1]})  # fmt: skip
                if progress:
                    progress(text=held.numbers[i].name)
        at = coverage_at_accuracy([r["confidence"] for r in rows], correct, accuracy)
        figures = {
            "accuracy": 100 * sum(correct) / len(correct), "digit_accuracy": 100 * digits_right / max(1, digits),
            "coverage": 100 * at.coverage, "threshold": at.threshold, "wanted": 100 * accuracy, "numbers": len(rows),
        }  # fmt: skip
        units = dict.fromkeys(("accuracy", "digit_accuracy", "coverage", "wanted"), " %")
        return NumberFigures(
            rows, figures=figures, units=units, confidence=[r["confidence"] for r in rows], correct=correct
        )

    @torch.no_grad()
    def predict(
        self,
        ready: Ready,
        inputs: Any,
        *,
        box: tuple[float, ...] = (),
        on_error: str = "stop",
        progress: Callable[..., None] | None = None,
    ) -> Numbers:
        """Read a number from each picture: a crop of it, or with a box any picture. A whole street scene is no input.

        Args:
            inputs: picture files, and folders of them.
            box: left, top, width and height of the number in pixels (four times --box, or a tuple); it is widened by 30 %.
            on_error: a picture that cannot be read: stop or skip.
        """
        if box and len(box) != 4:
            raise OffprintError(f"box={tuple(box)}; give left, top, width and height")
        side, found, reasons = ready.about["side"], Numbers([]), []
        files = pictures_in(inputs)
        if progress:
            progress(total=len(files))
        for file in files:
            try:
                read, square = self._read(ready, read_picture(file), tuple(box) or None, side)  # type: ignore[arg-type]
            except DataError as error:
                if on_error != "skip":
                    raise
                reasons.append(str(error))
                continue
            number = "" if read.refused else read.text
            found.rows.append(
                {"image": str(file), "number": number, "confidence": read.confidence, "refused": read.refused}
            )
            found.pictures.append(square)
            if progress:
                progress(text=file.name)
        found.notes += left_out(reasons)
        return found

    def _read(self, ready: Ready, picture: Image.Image, box: Box | None, side: int) -> tuple[Reading, Image.Image]:
        square = crop(picture, box, round(side * CROP / SHOWN))
        edge = (square.width - side) // 2
        square = square.crop((edge, edge, edge + side, edge + side))
        x = _tensor(square, ready.about["preprocessing"])[None].to(next(ready.model.parameters()))
        return read_sequences(as_logits(ready.model(x)))[0], square

    def sample(self, ready: Ready) -> Tensor | None:
        side = ready.about["side"]
        return torch.rand(1, 3, side, side)


def _side(job: Job) -> int:
    return job.how.input_size or (job.entry.input_size or (3, SHOWN, SHOWN))[-1]


def _defaults(job: Job) -> dict[str, Any]:
    import inspect

    return {k: p.default for k, p in inspect.signature(job.entry.build).parameters.items() if p.default is not p.empty}


def _most(model: nn.Module) -> int:
    head = getattr(model, "head", None)
    return int(getattr(model, "max_digits", getattr(head, "max_digits", 5)))


_TASK = NumberReading()
register_task(_TASK)


def read_number(
    model: nn.Module, image: Any, box: Box | None = None, preprocessing: Mapping[str, Any] | None = None
) -> Reading:
    """The number in a picture (a path or a PIL picture), with its confidence.

    Args:
        model: ``svhn_port``, ``svhn_paper``, or a backbone under the head ``sequence``.
        box: left, top, width and height of the number; without it the picture is the crop.
        preprocessing: mean and std; default those of the port.
    """
    picture = read_picture(image) if isinstance(image, str | Path) else image
    pre = preprocessing or entry("svhn_port").preprocessing
    ready = Ready(_TASK, model.eval(), type(model).__name__, {"preprocessing": dict(pre)})
    with torch.no_grad():
        return _TASK._read(ready, picture, box, SHOWN)[0]
