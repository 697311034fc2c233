"""What every class activation map shares: the network, its layers, one forward pass with hooks, scaling and averaging."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError, need, unknown
from offprint.methods.understanding._layers import evaluating, find_layer, grid_transform, layer_names, watch
from offprint.models.checkpoint import Dialect
from offprint.models.factory import create_model
from offprint.nn.precision import wide


def scale_maps(maps: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Each map to [0, 1], (x - min) / (1e-7 + max), then resized.

    Args:
        maps: (N, h, w) or (N, d, h, w).
        size: bilinear with half-pixel centres in two dimensions, a cubic spline in three; ``None`` keeps the size.
    """
    axes = tuple(range(1, maps.ndim))
    maps = maps - maps.amin(axes, keepdim=True)
    maps = maps / (1e-7 + maps.amax(axes, keepdim=True))
    if size is None or tuple(size) == tuple(maps.shape[1:]):
        return maps
    if maps.ndim == 3:
        return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    factors = [t / s for t, s in zip(size, maps.shape[1:], strict=True)]
    zoomed = [scipy.ndimage.zoom(m, factors) for m in maps.cpu().numpy()]
    return torch.from_numpy(np.stack(zoomed)).to(maps)


@dataclass
class Explanation:
    """What a map was made from.

    Attributes:
        maps: (N, H, W) or (N, D, H, W) in [0, 1], at the size of the images.
        projections: per layer, the signed map on the layer's own grid.
        explained: per layer, the share (N,) of the variance that the projection explains (eigen methods only).
        singular_values: per layer, the two largest (N, 2) (linear eigen methods only); when they are close, the direction and
            so the map is not stable.
        output: what the network gave.
        layers: dotted names.
    """

    maps: Tensor
    projections: list[Tensor]
    output: object
    layers: list[str]
    explained: list[Tensor] = field(default_factory=list)
    singular_values: list[Tensor] = field(default_factory=list)


Target = int | Callable[[Tensor], Tensor]
Targets = Sequence[Target] | Tensor | Target | None


def _class_scores(output: object, targets: Targets) -> Tensor:
    """The sum over images of the score to explain.

    Outputs (N, classes); or (N, classes, *grid) of a segmentation, where the score is the class's sum over the pixels
    predicted as it. ``None`` takes each image's own top class (in a segmentation: the one of most pixels).
    """
    if isinstance(output, dict):
        output = output.get("out", next(iter(output.values())))
    elif isinstance(output, list | tuple):
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise OffprintError(f"class scores (N, classes) expected from the network, it gave {_describe(output)}")
    count, classes = output.shape[:2]
    if targets is None:
        best = output.argmax(1)
        targets = best if output.ndim == 2 else best.flatten(1).mode(1).values
    if isinstance(targets, Integral) or callable(targets):
        targets = [targets] * count
    targets = targets.tolist() if isinstance(targets, Tensor) else list(targets)
    if len(targets) != count:
        raise OffprintError(f"{len(targets)} targets were given for {count} images; give one per image")
    total = output.new_zeros(())
    for row, target in zip(output, targets, strict=True):
        if callable(target):
            total = total + target(row)
        elif not isinstance(target, Integral) or not 0 <= target < classes:
            raise OffprintError(
                f"target {target!r} is not one of the {classes} classes; give a whole number from 0 to {classes - 1}"
            )
        elif row.ndim == 1:
            total = total + row[target]
        else:
            total = total + (row[target] * (row.argmax(0) == target)).sum()
    if not total.requires_grad:
        raise OffprintError(
            "the network's output has no gradient (it runs under no_grad); use eigen-cam, which needs none"
        )
    return total


def _describe(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _network(model: nn.Module | str) -> nn.Module:
    """A module as it is; ``torchvision/NAME``, ``timm/NAME`` or one of our names built without weights."""
    if isinstance(model, nn.Module):
        return model
    library, _, name = model.rpartition("/")
    if library == "torchvision":
        import torchvision

        if name not in torchvision.models.list_models():
            raise unknown("torchvision model", name, torchvision.models.list_models())
        build = torchvision.models.get_model_builder(name)
        takes = [p for p in ("weights", "weights_backbone") if p in inspect.signature(build).parameters]
        return build(**dict.fromkeys(takes))
    if library == "timm":
        timm = need("timm", "bench", f"the model {model!r}")
        if name.split(".")[0] not in timm.list_models():
            raise unknown("timm model", name, timm.list_models())
        return timm.create_model(name, pretrained=False)
    if library:
        raise unknown("library", library, ("torchvision", "timm"))
    return create_model(name)


class CAM(nn.Module):
    """What all the methods share: layers, hooks, rectifying, scaling, averaging. Not a method itself.

    The object is a module around the network: it moves with ``.to()``, and ``offprint.load_weights`` reads the network's own
    files into it. Hooks live only during a call, and weights collect no gradients.

    Args:
        model: a network, or the name of one to be built without weights: ``"torchvision/resnet18"``,
            ``"timm/deit_tiny_patch16_224"``, or a name of :func:`offprint.list_models`.
        layers: dotted names or modules; several are averaged. ``None``: the usual one of the family, else the last with a
            map of more than one pixel (found when the first images of a size come: the network runs once more).
        reshape_transform: a layer's output → (N, C, *grid); ``None`` finds it (see
            :func:`~offprint.methods.understanding._layers.grid_transform`).
    """

    uses_gradients = False

    def __init__(
        self,
        model: nn.Module | str,
        layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.model = _network(model)
        self.layers = None if layers is None else layer_names(self.model, layers)
        self.reshape_transform = reshape_transform
        self._found: dict[tuple[int, ...], str] = {}

    # -- weights: the network's dialects, one level up ----------------------------------------------------------------
    @property
    def dialects(self) -> tuple[Dialect, ...]:
        """The wrapped network's own names and every dialect it reads."""
        inner = (Dialect(getattr(self.model, "native", "the network's")), *getattr(self.model, "dialects", ()))
        return tuple(Dialect(d.name, ignore=d.ignore, reshape=_Inside(d)) for d in inner)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the wrapped network does to a state before it is loaded."""
        adapt = getattr(self.model, "adapt_state", None)
        if not callable(adapt):
            return state
        return {f"model.{k}": v for k, v in adapt({k.removeprefix("model."): v for k, v in state.items()}).items()}

    # -- what a method writes -----------------------------------------------------------------------------------------
    def project(
        self, activations: Tensor, gradients: Tensor | None, eigen_smooth: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Signed map (N, *grid), explained share and singular values from (N, C, *grid)."""
        raise TypeError(f"{type(self).__name__} must define project")

    # -- the call -----------------------------------------------------------------------------------------------------
    def explain(self, images: Tensor, targets: Targets = None, *, eigen_smooth: bool = False) -> Explanation:
        """Maps of a batch of images, and what they were made from; arguments as in :meth:`forward`."""
        if not isinstance(images, Tensor) or images.ndim not in (4, 5) or not len(images):
            raise OffprintError(
                f"images (N, C, H, W) or volumes (N, C, D, H, W) expected, {_describe(images)} was given"
            )
        size = tuple(images.shape[2:])
        layers, gradients = self.layers, self.uses_gradients
        if layers is None:
            if size not in self._found:
                self._found[size] = find_layer(self.model, images)
            layers = [self._found[size]]
        with torch.inference_mode(False), torch.set_grad_enabled(gradients), evaluating(self.model):
            images = images.clone() if images.is_inference() else images
            with watch(self.model, layers, gradients=gradients) as kept:
                output = self.model(images)
            outputs = [_one_tensor(kept, name) for name in layers]
            slopes: Sequence[Tensor | None] = [None] * len(outputs)
            if gradients:
                slopes = torch.autograd.grad(_class_scores(output, targets), outputs, allow_unused=True)
        modules = dict(self.model.named_modules())
        maps, result = [], Explanation(torch.empty(0), [], output, list(layers))
        for name, activation, slope in zip(layers, outputs, slopes, strict=True):
            if gradients and slope is None:
                raise OffprintError(f"layer {name!r} does not influence the score; choose one on the way to the output")
            to_grid = self.reshape_transform or grid_transform(activation, size, modules[name], self.model, name)
            grid = wide(to_grid(activation.detach()))
            if grid.ndim != images.ndim or len(grid) != len(images):
                raise OffprintError(
                    f"layer {name!r} gives maps of shape {tuple(grid.shape)}; (N, C, *grid) with N = {len(images)} and "
                    f"{len(size)} grid axes is needed. Choose another layer, or pass reshape_transform="
                )
            slope = wide(to_grid(slope)) if slope is not None else None
            projection, explained, singular = self.project(grid, slope, eigen_smooth)
            result.projections.append(projection)
            if explained is not None:
                result.explained.append(explained)
            if singular is not None:
                result.singular_values.append(singular)
            maps.append(scale_maps(projection.clamp(min=0), size).clamp(min=0))
        result.maps = scale_maps(torch.stack(maps).mean(0))
        result.output = output.detach() if isinstance(output, Tensor) else output
        return result

    def forward(
        self,
        images: Tensor,
        targets: Targets = None,
        *,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> Tensor:
        """One map in [0, 1] per image, at its size.

        Args:
            images: (N, C, H, W), prepared as the network wants them; or volumes (N, C, D, H, W).
            targets: per image a class, or a function of that image's output; ``None``: its top class. Methods without a class
                (EigenCAM, KPCACAM) ignore it.
            aug_smooth: average over the image and its mirror image, times 0.9, 1 and 1.1 (six passes, each with its own top
                class unless targets are given).
            eigen_smooth: in GradCAM and GradCAMPlusPlus, the first principal component of the weighted activations in place of
                their sum.

        Returns:
            (N, H, W) or (N, D, H, W).

        Raises:
            OffprintError: images of another rank, a layer whose output is not a map, targets that do not fit.
        """
        if not aug_smooth:
            return self.explain(images, targets, eigen_smooth=eigen_smooth).maps
        passes = []
        for mirrored in (False, True):
            for factor in (0.9, 1.0, 1.1):
                shown = (images.flip(-1) if mirrored else images) * factor
                seen = self.explain(shown, targets, eigen_smooth=eigen_smooth).maps
                passes.append(seen.flip(-1) if mirrored else seen)
        return torch.stack(passes).mean(0)


def _one_tensor(kept: dict[str, object], name: str) -> Tensor:
    """The output a layer gave."""
    if name not in kept:
        raise OffprintError(f"layer {name!r} did not run on these images; choose one that the forward pass calls")
    value = kept[name]
    if not isinstance(value, Tensor):
        raise OffprintError(f"layer {name!r} gives {_describe(value)}, not a map; choose a layer that gives one tensor")
    return value


class _Inside:
    """A dialect of the wrapped network, with its names one level up."""

    def __init__(self, dialect: Dialect):
        self.dialect = dialect

    def __call__(self, state: dict[str, Tensor], cam: CAM) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in self.dialect.apply(state, cam.model).items()}
