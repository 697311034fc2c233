"""Backbone, neck and head put together by name.

>>> import offprint
>>> model = offprint.compose("convnext_tiny", neck="hor_fpn", head="hor_uper", num_classes=21)
>>> same = offprint.create_model("convnext_tiny+hor_fpn+hor_uper", num_classes=21)

The second form is a name like any other: it is saved, shared, exported and rebuilt as one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models import registry
from offprint.models.factory import create_model
from offprint.models.parts import Part, maps_of, part

Spec = str | Mapping[str, Any]


class Composed(nn.Module):
    """A backbone, perhaps a neck, and a head; images (B, C, H, W) to what the head gives.

    Args:
        backbone: gives a list of maps, and says which (:func:`~offprint.models.parts.maps_of`).
        neck: maps to maps, or ``None``.
        head: maps and the size of the image to the output.
        to_neck, to_head: indices of the maps they read, of the backbone's and of what comes before the head; default all.

    A checkpoint is read part by part, each in its own dialect: ``backbone.``, ``neck.`` and ``head.`` are the prefixes here, and
    a part may know others of its paper. A head may freeze the backbone (``frozen = True``), which then stays in evaluation mode.
    """

    native = "offprint"

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        head: nn.Module,
        to_neck: tuple[int, ...] | None = None,
        to_head: tuple[int, ...] | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        if neck is not None:
            self.neck = neck
        self.head: Any = head
        self.parts = ("backbone", "head") if neck is None else ("backbone", "neck", "head")
        self.to_neck, self.to_head = to_neck, to_head
        self.in_chans = getattr(backbone, "in_chans", 3)
        self.num_classes = getattr(head, "num_classes", None)
        self.frozen = bool(getattr(head, "frozen", False))
        if self.frozen:
            backbone.requires_grad_(False)
            backbone.eval()

    @property
    def encoder(self) -> nn.Module:
        """The backbone, by the name it had until 0.1."""
        warnings.warn(f"{type(self).__name__}.encoder is .backbone now", DeprecationWarning, stacklevel=2)
        return self.backbone

    @property
    def dialects(self) -> tuple:
        """Other people's names for whole models that end in this head."""
        return tuple(getattr(self.head, "whole_dialects", ()))

    def train(self, mode: bool = True) -> Composed:
        """Training mode; a frozen backbone stays as it is."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The maps that the head reads."""
        maps = list(self.backbone(x))
        if "neck" in self.parts:
            maps = self.neck(maps if self.to_neck is None else [maps[i] for i in self.to_neck])
        return maps if self.to_head is None else [maps[i] for i in self.to_head]

    def forward(self, x: Tensor) -> Any:
        return self.head(self.pyramid(x), x.shape[-2:])


class Detector(Composed):
    """A composed model whose head finds objects."""

    head: Any

    @torch.no_grad()
    def detect(self, x: Tensor, **options) -> list[dict[str, Tensor]]:
        """Objects in each image (B, C, H, W), normalised: ``boxes`` (N, 4) in pixels of ``x``, ``scores``, ``labels``; options are the head's."""
        return self.head.detect(self.pyramid(x), x.shape[-2:], **options)

    def losses(self, x: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of the loss of a batch; ``targets`` are per image ``boxes`` (N, 4) in pixels, and ``labels`` (N,)."""
        return self.head.losses(self.pyramid(x), x.shape[-2:], targets)


def _named(given: Spec) -> tuple[str, dict[str, Any]]:
    """(name, options) of a name or of a mapping with ``name``."""
    if isinstance(given, str):
        return given, {}
    if "name" not in given:
        raise OffprintError(f"a part is given by its name or by a mapping with 'name'; got the keys {', '.join(given)}")
    return given["name"], {k: v for k, v in given.items() if k != "name"}


def _backbone(given: Spec | nn.Module, first: Part, in_chans: int | None, options: dict[str, Any]) -> nn.Module:
    """The encoder of a backbone, with the maps that the part after it reads."""
    if isinstance(given, nn.Module):
        if options or in_chans not in (None, getattr(given, "in_chans", in_chans)):
            raise OffprintError("the backbone is a module already; arguments for it cannot be given with it")
        return given
    name, own = _named(given)
    options = {**own, **options}
    spec = registry.entry(name)
    takes = inspect.signature(spec.build).parameters
    options = {**{k: v for k, v in first.prefers.items() if k in takes}, **options}
    indices = options.pop("out_indices", None)
    if not hasattr(spec.build, "as_features"):
        raise OffprintError(f"{name} ({spec.kind}) has no feature pyramid; give a backbone: offprint.parts('backbone')")
    model: Any = create_model(name, num_classes=0, in_chans=in_chans, **options)
    form = getattr(model, first.form, None) if first.form and indices is None else None
    if form is not None:
        return form()
    return model.as_features(first.takes(model.feature_info.reduction()) if indices is None else indices)


def compose(
    backbone: Spec | nn.Module,
    neck: Spec | None = None,
    head: Spec = "linear_probe",
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **options: Any,
) -> Composed:
    """Put a model together.

    Args:
        backbone: name of any backbone, a mapping of its name and arguments (``{"name": "convnext_tiny", "pretrained": True}``),
            or a module that gives maps and has ``feature_info`` (timm's ``features_only`` models).
        neck, head: names of :func:`~offprint.models.parts.parts`, or mappings of name and arguments.
        num_classes: outputs of the head; default its own.
        in_chans: image channels; default the backbone's.
        **options: more arguments of the backbone.

    Raises:
        OffprintError: unknown names, a head where a neck belongs, maps that a part cannot read.
    """
    named = [(*_named(given), kind) for given, kind in ((neck, "neck"), (head, "head")) if given is not None]
    for name, _, kind in named:
        if part(name).kind != kind:
            raise OffprintError(f"{name} is a {part(name).kind}, and was given as {kind}")
    encoder = _backbone(backbone, part(named[0][0]), in_chans, options)
    maps, modules, picks = maps_of(encoder), [], []
    for i, (name, arguments, kind) in enumerate(named):
        chosen = part(name)
        # an encoder of ours gives what its first reader takes; of other maps that reader chooses here
        ready = i == 0 and not isinstance(backbone, nn.Module)
        indices = None if ready else chosen.takes(maps.reductions)
        maps = maps if indices is None else maps.pick(indices)
        if kind == "head" and num_classes is not None:
            arguments = {**arguments, "num_classes": num_classes}
        modules.append(chosen(maps, **arguments))
        picks.append(indices)
        if kind == "neck":
            maps = maps_of(modules[-1])
    assembly = Detector if part(named[-1][0]).task == "detection" else Composed
    if len(modules) == 1:
        return assembly(encoder, None, modules[0], None, picks[0])
    return assembly(encoder, modules[0], modules[1], *picks)


def _entry(name: str) -> registry.Entry:
    """The model that a name such as ``BACKBONE+HEAD`` or ``BACKBONE+NECK+HEAD`` means."""
    backbone, *rest = name.split("+")
    if not 1 <= len(rest) <= 2:
        raise OffprintError(
            f"{name!r} has {len(rest)} parts after the backbone; give BACKBONE+HEAD or BACKBONE+NECK+HEAD"
        )
    spec, head = registry.entry(backbone), part(rest[-1])
    kwargs = {"backbone": backbone, "head": rest[-1], **({"neck": rest[0]} if len(rest) == 2 else {})}
    return registry.Entry(
        name, head.paper or spec.paper, head.task, compose, kwargs, spec.input_size, spec.preprocessing, {}, spec.recipes,
        compose.__module__, head.task,
    )  # fmt: skip


registry.assembles(_entry)
