"""Shape against texture: what a classifier decides where the two say different things (Geirhos et al., ICLR 2019)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from offprint.errors import DataError, OffprintError
from offprint.nn.precision import wide

# ImageNet-1K's outputs of each of the sixteen categories, as ranges with both ends
_RANGES = {
    "airplane": "404",
    "bear": "294-297",
    "bicycle": "444 671",
    "bird": "8 10-16 18-20 22-24 80-83 87-96 98-100 127-133 135-145",
    "boat": "472 554 625 814 914",
    "bottle": "440 720 737 898-899 901 907",
    "car": "436 511 817",
    "cat": "281-286",
    "chair": "423 559 765 857",
    "clock": "409 530 892",
    "dog": "152-191 193-203 205-226 228-241 243-250 252-257 259 261-263 265-268",
    "elephant": "385-386",
    "keyboard": "508 878",
    "knife": "499",
    "oven": "766",
    "truck": "555 569 656 675 717 734 864 867",
}


def _indices(ranges: str) -> tuple[int, ...]:
    found: list[int] = []
    for part in ranges.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


SIXTEEN: dict[str, tuple[int, ...]] = {name: _indices(ranges) for name, ranges in _RANGES.items()}


class Decisions(NamedTuple):
    """Scores (N, categories) and the name of the best category of each picture."""

    scores: Tensor
    names: list[str]


def sixteen_class_decision(logits: Tensor, categories: Mapping[str, Sequence[int]] = SIXTEEN) -> Decisions:
    """Which category each picture is given: the one whose classes have the largest mean probability.

    The mean and not the sum, since the categories have between one class and 109; and not the maximum.

    Args:
        logits: (N, classes), before the softmax over all of them.
        categories: name → its outputs; default the sixteen of ImageNet-1K.

    Raises:
        OffprintError: a category without an output, or outputs that the logits do not have.
    """
    if logits.ndim != 2:
        raise OffprintError(f"logits (N, classes) expected, a tensor of shape {tuple(logits.shape)} was given")
    empty = [name for name, indices in categories.items() if not len(indices)]
    if empty or not categories:
        raise OffprintError(f"categories without outputs: {', '.join(empty) or 'all, none was given'}")
    highest = max(max(indices) for indices in categories.values())
    if highest >= logits.shape[1] or (categories is SIXTEEN and logits.shape[1] != 1000):
        raise OffprintError(
            f"the model has {logits.shape[1]} classes, the categories are of outputs up to {highest}"
            + (" of ImageNet-1K's 1000" if categories is SIXTEEN else "")
            + "; give categories= of this model's own classes (name → outputs), or weights with those of ImageNet-1K"
        )
    probabilities = wide(logits).softmax(1)
    scores = torch.stack([probabilities[:, list(indices)].mean(1) for indices in categories.values()], 1)
    names = list(categories)
    return Decisions(scores, [names[i] for i in scores.argmax(1).tolist()])


class ShapeBias(NamedTuple):
    """What decisions on pictures of conflicting cues come to.

    The two fractions are over all pictures, also those whose shape and texture agree; the bias is over the decisions for either
    cue of pictures where they do not, ``None`` where there was none.
    """

    shape_bias: float | None
    fraction_correct_shape: float
    fraction_correct_texture: float
    pictures: int
    conflicts: int
    by_category: dict[str, float | None]


def texture_of(name: str) -> str:
    """The texture's category of a picture's name, ``..._SHAPE3-TEXTURE2.png``: its last word without digits."""
    word = Path(name).stem.rsplit("-", 1)
    texture = re.sub(r"\d", "", word[-1])
    if len(word) < 2 or not texture:
        raise DataError(
            f"{name!r} does not say its texture; pictures of conflicting cues are named SHAPE<number>-TEXTURE<number>, such as cat7-oven3.png"
        )
    return texture


def shape_of(name: str) -> str:
    """The shape's category of a picture's name: the word before the last ``-``, without digits."""
    texture_of(name)
    word = re.split(r"[_\s]", Path(name).stem.rsplit("-", 1)[0])[-1]
    shape = re.sub(r"\d", "", word)
    if not shape:
        raise DataError(f"{name!r} does not say its shape; expected a name such as cat7-oven3.png")
    return shape


def shape_bias(rows: Iterable[Sequence[str]]) -> ShapeBias:
    """Decisions for the shape over decisions for the shape or the texture.

    Args:
        rows: (picture's name, category of its shape, category it was given); the texture's category stands in the name. Rows
            whose shape and texture agree say nothing of either cue and count in the denominators of the fractions alone; so do
            decisions for a third category.

    Raises:
        DataError: no rows, or a name that does not say its texture.
    """
    table = [(str(name), str(shape), texture_of(str(name)), str(given)) for name, shape, given in rows]
    if not table:
        raise DataError("no decisions were given")
    conflicts = [row for row in table if row[1] != row[2]]

    def bias(part: Sequence[tuple[str, str, str, str]]) -> tuple[int, int, float | None]:
        by_shape = sum(given == shape for _, shape, _, given in part)
        by_texture = sum(given == texture for _, _, texture, given in part)
        either = by_shape + by_texture
        return by_shape, by_texture, by_shape / either if either else None

    by_shape, by_texture, overall = bias(conflicts)
    shapes = sorted({row[1] for row in table})
    return ShapeBias(
        overall, by_shape / len(table), by_texture / len(table), len(table), len(conflicts),
        {name: bias([row for row in conflicts if row[1] == name])[2] for name in shapes},
    )  # fmt: skip


def categories_of(classes: Sequence[str] | None, wanted: Iterable[str], outputs: int) -> Mapping[str, Sequence[int]]:
    """Which outputs of a model are each category: those of ImageNet-1K's sixteen, or the model's own classes of these names.

    Raises:
        OffprintError: neither.
    """
    wanted = sorted(set(wanted))
    own = {name: [i for i, c in enumerate(classes or ()) if str(c) == name] for name in wanted}
    if outputs == 1000 and set(wanted) <= set(SIXTEEN):
        return SIXTEEN
    missing = [name for name, indices in own.items() if not indices]
    if missing:
        raise OffprintError(
            f"the model has no output for {', '.join(missing[:6])}: it has {outputs} classes ({', '.join(map(str, (classes or ())[:6]))}, ...). "
            "Pictures of the sixteen categories need a model of ImageNet-1K's 1000 classes; other pictures one whose classes have "
            "the names in the pictures' names"
        )
    return own


@torch.no_grad()
def decide(
    model, files: Sequence[Path], transform: Callable[[Any], Tensor], categories: Mapping[str, Sequence[int]],
    *, batch: int = 32, progress=None,
) -> list[tuple[str, str, str]]:  # fmt: skip
    """(picture's name, category of its shape, category it was given) of picture files, for :func:`shape_bias`."""
    from offprint.data.reading import read_picture

    rows, device = [], next(model.parameters()).device
    for start in range(0, len(files), batch):
        part = files[start : start + batch]
        images = torch.stack([transform(read_picture(f)) for f in part]).to(device)
        given = sixteen_class_decision(model(images), categories).names
        rows += [(f.name, shape_of(f.name), name) for f, name in zip(part, given, strict=True)]
        if progress:
            progress(f"{len(rows)} pictures")
    return rows
