"""What is measured: a model by name or the folder of a run, and pictures in the form that it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from offprint.data.photos import photographs, set5
from offprint.data.reading import read_picture
from offprint.data.transforms import evaluation_transform
from offprint.errors import OffprintError
from offprint.models.factory import create_model
from offprint.models.registry import entry
from offprint.tasks.contract import find
from offprint.tasks.folder import is_run
from offprint.tasks.pictures import pictures_in


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        model: in evaluation mode.
        name, weights: what it is called, and which weights it has, in words.
        preprocessing, input_size: of its pictures.
        classes: names of its outputs, where they are known.
    """

    model: nn.Module
    name: str
    weights: str
    preprocessing: dict[str, Any]
    input_size: int
    classes: list[str] | None = None

    def transform(self, picture: Image.Image) -> Tensor:
        """A picture as the model is evaluated on it."""
        channels = getattr(self.model, "in_chans", 3)
        return evaluation_transform(self.input_size, self.preprocessing, channels)(picture)


def open_subject(
    where: str | Path, pretrained: bool | str = False, checkpoint: str | None = None, *, untrained: bool = False
) -> Subject:
    """The folder of a run, or a model name with weights.

    Args:
        pretrained, checkpoint: weights, with a name.
        untrained: a name may come without weights; it then has random ones, and says so.

    Raises:
        OffprintError: nothing of these.
    """
    text = str(where)
    if untrained and not (pretrained or checkpoint or is_run(text) or "/" in text or Path(text).is_dir()):
        spec = entry(text)
        size = (spec.input_size or (3, 224, 224))[-1]
        return Subject(create_model(text).eval(), text, "random weights", dict(spec.preprocessing), size)
    ready = find(text, pretrained, checkpoint)
    about = ready.about
    if "preprocessing" not in about:
        raise OffprintError(f"{where} {ready.task.does}; this measurement is for models of pictures")
    if ready.folder is not None:
        weights = f"run {'/'.join(Path(ready.folder).absolute().parts[-2:])}"
    elif checkpoint:
        weights = f"from {Path(checkpoint).name}"
    else:
        weights = f"released {entry(text).tag(pretrained)}"
    return Subject(ready.model, ready.name, weights, about["preprocessing"], about["input_size"], about.get("classes"))


def pictures(source: str | Path | Sequence[str | Path] | None, count: int) -> tuple[list[Image.Image], str]:
    """The first pictures of a folder, in the order of their names, or the bundled photographs; and what they are, in words."""
    if count < 1:
        raise OffprintError(f"{count} pictures; give 1 or more (the paper: 50)")
    if source is None:
        bundled = {**photographs(), **set5()}
        chosen = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in list(bundled.values())[:count]]
        return chosen, f"{len(chosen)} bundled photographs (the paper: 50 validation images of ImageNet)"
    files = pictures_in(source)[:count]
    return [read_picture(f) for f in files], f"{len(files)} pictures of {source}"


def prepared(subject: Subject, chosen: Sequence[Image.Image], size: int) -> Iterator[Tensor]:
    """The pictures warped to a square of ``size`` pixels (bicubic) and normalised as the model's weights expect.

    A model of one size only is set to this one.
    """
    if size < 32:
        raise OffprintError(f"size {size}; give 32 pixels or more (the paper: 1024)")
    model, channels = subject.model, getattr(subject.model, "in_chans", 3)
    check = getattr(model, "check_input", None)
    if check is not None:
        try:
            check(torch.zeros(1, channels, size, size))
        except OffprintError:
            model.set_input_size(size)  # type: ignore[operator]
    how = {**subject.preprocessing, "interpolation": "bicubic", "crop_mode": "squash"}
    transform = evaluation_transform(size, how, channels)
    return (transform(picture) for picture in chosen)
