"""The effective receptive field of an image model: which pixels reach the middle of its last map, and how far that area goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.files import atomic_write
from offprint.methods.understanding._layers import evaluating, find_layer, grid_transform, hooks, layer_names
from offprint.nn.precision import wide

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
SIDE = 1024  # of the pictures that the paper measures on


class Area(NamedTuple):
    """A centred square: its side in pixels, its share of the image, and what share of the contributions it holds."""

    side: int
    ratio: float
    holds: float


def _compressed(field_map: Any) -> Tensor:
    """log10(map + 1) over its maximum: what the squares are measured on, and the picture shows."""
    m = torch.as_tensor(field_map).detach().cpu().double()
    if m.ndim != 2 or not torch.isfinite(m).all() or (m < 0).any():
        raise OffprintError(
            f"a map (H, W) of finite contributions of zero or more is needed, this one is {tuple(m.shape)}"
            + ("" if m.ndim != 2 else " and holds others")
        )
    m = torch.log10(m + 1)
    if not m.max() > 0:
        raise OffprintError(
            "the map is zero everywhere: no pixel reaches the middle of the last map; the features there are all negative, or the "
            "network is cut off (dead weights)"
        )
    return m / m.max()


def erf_area_ratio(field_map: Any, thresholds: Sequence[float] = THRESHOLDS) -> dict[float, Area | None]:
    """How large a centred square must be to hold more than a share of the contributions, after log10(map + 1).

    Args:
        field_map: (H, W), contributions as :func:`effective_receptive_field` gives them (not yet compressed).
        thresholds: shares, above 0 and below 1.

    Returns:
        threshold → the square of side 2i + 1 with the smallest i from 1 to H // 2 - 1, or ``None`` where no such square does.
    """
    for t in thresholds:
        if not 0 < t < 1:
            raise OffprintError(f"threshold {t}: give shares above 0 and below 1, such as 0.2, 0.3, 0.5, 0.99")
    m = _compressed(field_map)
    (height, width), sums = m.shape, torch.nn.functional.pad(m.cumsum(0).cumsum(1), (1, 0, 1, 0))
    middle, across = height // 2, width // 2
    held = []
    for i in range(1, middle):
        top, bottom = middle - i, min(height, middle + i + 1)
        left, right = max(0, across - i), min(width, across + i + 1)
        held.append(float(sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]))
    total, found = float(m.sum()), {}
    for t in thresholds:
        i = next((i for i, share in enumerate(held, 1) if share / total > t), None)
        found[t] = None if i is None else Area(2 * i + 1, (2 * i + 1) ** 2 / (height * width), held[i - 1] / total)
    return found


@dataclass(frozen=True)
class ReceptiveField:
    """The effective receptive field of a model, averaged over pictures.

    Attributes:
        map: (H, W) float64, contributions of the pixels.
        model: its name.
        weights: which weights it had; what an untrained network shows is its start, not what it learnt.
        layer: whose map was looked at.
        images: how many pictures; ``skipped`` of those given made the gradient no number.
        thresholds: of :attr:`areas`.
    """

    map: Tensor
    model: str
    weights: str
    layer: str
    images: int
    skipped: int = 0
    thresholds: tuple[float, ...] = THRESHOLDS
    areas: Mapping[float, Area | None] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures: figures of different sizes say nothing of each other."""
        return self.map.shape[0], self.map.shape[1]

    def draw(self, axis) -> None:
        """The map, compressed, on a matplotlib axis."""
        axis.imshow(_compressed(self.map).numpy(), cmap="YlGn", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        half = self.areas.get(0.5)
        note = "" if half is None else f"half within {half.side} px"
        axis.set_title(f"{self.model}\n{self.weights}; {note}".rstrip("; "), fontsize=8)

    def plain(self) -> dict[str, Any]:
        """Everything but the map, as plain data."""
        return {
            "model": self.model, "weights": self.weights, "layer": self.layer, "images": self.images, "skipped": self.skipped,
            "input_size": list(self.size),
            "areas": {f"{t:g}": None if a is None else a._asdict() for t, a in self.areas.items()},
        }  # fmt: skip

    def save(self, path: str | Path) -> Path:
        """The map and all else as an .npz file."""
        import io
        import json

        buffer = io.BytesIO()
        np.savez_compressed(buffer, map=self.map.numpy(), about=np.array(json.dumps(self.plain())))
        return atomic_write(Path(path), buffer.getvalue())


def comparable(fields: Sequence[ReceptiveField]) -> None:
    """Refuse receptive fields that were measured on pictures of different sizes: the order of two models can turn with it."""
    sizes = {f.size for f in fields}
    if len(sizes) > 1:
        rows = ", ".join(f"{f.model} at {f.size[0]}x{f.size[1]}" for f in fields)
        raise OffprintError(
            f"receptive fields of different input sizes cannot be compared ({rows}): which of two models sees further can turn with "
            f"the size; measure them again at one size, {SIDE} being the paper's"
        )


def _last_map(model: nn.Module, x: Tensor, layer: str | None) -> Tensor:
    """(1, C, h, w): the last map before the final norm and pooling, or what a named layer gives, in the graph."""
    if layer is None:  # ours and timm's say it themselves; tokens come on their grid, class tokens left out
        return model.forward_intermediates(x, indices=1, norm=False, output_fmt="NCHW", intermediates_only=True)[-1]  # type: ignore[operator]
    kept: list[Any] = []

    def keep(module: nn.Module, inputs: object, output: Any) -> Any:
        kept.append(output)
        return (
            output.clone() if isinstance(output, Tensor) else None
        )  # an in-place activation behind it changes the copy

    with hooks(model, [layer], lambda _: keep):
        model(x)
    if not kept or not isinstance(kept[-1], Tensor):
        raise OffprintError(f"layer {layer!r} gave no tensor; name another with layer=")
    return grid_transform(kept[-1], tuple(x.shape[2:]), model.get_submodule(layer), model, layer)(kept[-1])


def contributions(model: nn.Module, image: Tensor, layer: str | None = None) -> Tensor:
    """How much each pixel of one picture adds to the middle of the last map: (1, C, H, W) to (H, W).

    The gradient of the sum over channels of ReLU(feature at [h // 2, w // 2]) by the picture, negative entries dropped, summed
    over colour channels.
    """
    x = image.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = _last_map(model, x, layer)
        middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle.relu().sum(), x)
    return wide(gradient).relu().sum((0, 1))


def effective_receptive_field(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    layer: str | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    name: str = "",
    weights: str = "",
    progress=None,
) -> ReceptiveField:
    """Which pixels reach the middle of a model's last map, averaged over pictures.

    Args:
        model: any image network: ours and timm's are asked for their last map before the final norm, of others the last layer with
            a map is looked at (see :func:`offprint.methods.understanding.eigen_cam` for how it is found).
        images: pictures (3, H, W) or batches (B, 3, H, W) of one size, normalised as the weights expect; 1024 x 1024 in the paper.
        layer: dotted name of the layer to look at instead.
        thresholds: shares for the areas.
        name, weights: how the result calls them; default what the model knows of itself.
        progress: called with a text after each picture.

    Raises:
        OffprintError: no pictures, pictures of different sizes, or none that gives a number.
    """
    total, count, skipped, size = None, 0, 0, None
    if layer is not None:
        layer = layer_names(model, layer)[0]
    with evaluating(model):
        for given in images:
            batch = given[None] if given.ndim == 3 else given
            if batch.ndim != 4:
                raise OffprintError(
                    f"pictures (3, H, W) or batches (B, 3, H, W) expected, a tensor of {tuple(given.shape)} was given"
                )
            if size is None:
                size = tuple(batch.shape[2:])
                if layer is None and not hasattr(model, "forward_intermediates"):
                    layer = find_layer(model, batch[:1])
            elif tuple(batch.shape[2:]) != size:
                raise OffprintError(
                    f"the pictures are {size} and {tuple(batch.shape[2:])} pixels; resize them to one size, {SIDE} in the paper"
                )
            for image in batch.split(1):
                found = contributions(model, image, layer).cpu().double()
                if not torch.isfinite(found).all():
                    skipped += 1
                else:
                    total, count = found if total is None else total + found, count + 1
                if progress:
                    progress(f"{count} pictures")
    if total is None:
        raise OffprintError(
            f"the gradients of all {skipped} pictures are no numbers; check the weights"
            if skipped
            else "no pictures were given"
        )
    mean, shares = total / count, tuple(thresholds)
    return ReceptiveField(
        mean, name or name_of(model), weights or weights_of(model), layer or "last map", count, skipped, shares,
        erf_area_ratio(mean, shares),
    )  # fmt: skip


def name_of(model: nn.Module) -> str:
    """The registry's name of a model, else that of its class."""
    return (model.__dict__.get("spec") or {}).get("name") or type(model).__name__


def weights_of(model: nn.Module) -> str:
    """Which weights a model has, as far as it knows."""
    tag = (model.__dict__.get("spec") or {}).get("weights")
    report = model.__dict__.get("load_report")
    if tag:
        return f"released {tag}"
    if report is not None:
        return f"from {Path(report.source).name}"
    return "random weights" if "spec" in model.__dict__ else "weights unstated"
