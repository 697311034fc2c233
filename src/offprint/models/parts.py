"""Parts by name: the necks and heads of the papers, beside the registry of models, whose backbones they stand on.

What a part needs of the one before it is no base class but :class:`Maps`: how many channels its maps have, at which strides, over
how many axes. A backbone says so by its ``feature_info`` (ours and timm's do), a neck by its ``maps``. A part is built with the
:class:`Maps` that come in, and is called with the maps:

- a neck: ``neck(maps) -> list of maps``, described by ``neck.maps``;
- a head: ``head(maps, size) -> output``, ``size`` being (H, W) of the image; one that detects has ``detect`` and ``losses`` as well.

A file calls :func:`register_part` beside its :func:`~offprint.models.registry.register`; :mod:`offprint.models.compose` puts parts together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from offprint.errors import OffprintError, unknown
from offprint.models import registry

KINDS = ("neck", "head")
Takes = Callable[[Sequence[int]], tuple[int, ...]]


@dataclass(frozen=True)
class Maps:
    """Maps (B, channels[i], H / reductions[i], W / reductions[i]) as they pass from part to part, fine to coarse.

    Args:
        channels, reductions: of each map; a reduction is its stride against the image.
        ndim: axes besides batch and channels, 2 for images.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    ndim: int = 2

    def pick(self, indices: Sequence[int]) -> Maps:
        """Some of them."""
        return Maps(
            tuple(self.channels[i] for i in indices), tuple(self.reductions[i] for i in indices), ndim=self.ndim
        )


def maps_of(module: nn.Module) -> Maps:
    """What maps a backbone or a neck gives.

    Raises:
        OffprintError: it does not say.
    """
    own = getattr(module, "maps", None)
    if isinstance(own, Maps):
        return own
    info: Any = getattr(module, "feature_info", None)
    if info is None:
        raise OffprintError(
            f"{type(module).__name__} gives no feature maps: it has neither maps nor feature_info; "
            "build the encoder with features_only=True"
        )
    return Maps(tuple(info.channels()), tuple(info.reduction()), getattr(module, "ndim", 2))


def last(count: int) -> Takes:
    """The coarsest maps, so many."""
    return lambda reductions: tuple(range(len(reductions)))[-count:]


def each_stride(finest: int) -> Takes:
    """The last map of every stride, from this one on; all of them where none is so coarse."""

    def takes(reductions: Sequence[int]) -> tuple[int, ...]:
        where = {stride: i for i, stride in enumerate(reductions)}
        return tuple(i for stride, i in sorted(where.items()) if stride >= finest) or tuple(range(len(reductions)))

    return takes


@dataclass(frozen=True)
class Part:
    """One registered neck or head: how to build it, what it serves, and whose paper it is."""

    name: str
    kind: str
    paper: str
    task: str
    build: Callable[..., nn.Module]
    takes: Takes
    form: str = ""
    prefers: Mapping[str, Any] = field(default_factory=dict)
    ndim: int = 2

    def __call__(self, before: Maps, **options) -> nn.Module:
        if before.ndim != self.ndim:
            raise OffprintError(
                f"{self.name} works on maps of {self.ndim} axes, and what comes before it gives maps of {before.ndim}"
            )
        return self.build(before, **options)


_parts: dict[str, Part] = {}


def register_part(
    name: str,
    kind: str,
    build: Callable[..., nn.Module],
    *,
    paper: str = "",
    task: str = "",
    takes: Takes = each_stride(4),
    form: str = "",
    prefers: Mapping[str, Any] | None = None,
) -> None:
    """Enter a neck or a head.

    Args:
        name: unique among the parts.
        kind: ``"neck"`` or ``"head"``.
        build: ``build(maps_before, **options)``; a head takes ``num_classes`` among its options.
        paper: slug in the catalogue, empty for what is no paper's.
        task: what a head serves (``"classification"``, ``"segmentation"``, ``"detection"``); a neck serves any.
        takes: strides of the maps at hand → indices of those it reads.
        form: method of a backbone that gives the very maps this part was designed for; one without it gives its pyramid.
        prefers: arguments for a backbone that takes them.
    """
    if kind not in KINDS:
        raise unknown("kind of part", kind, KINDS)
    if name in _parts and _parts[name].build is not build:
        raise OffprintError(f"two files register the part {name!r}: {_parts[name].build!r} and {build!r}")
    _parts[name] = Part(name, kind, paper, task, build, takes, form, dict(prefers or {}))


def parts(kind: str | None = None, *, task: str | None = None) -> list[str]:
    """Names of the parts, sorted.

    Args:
        kind: ``"backbone"``, ``"neck"`` or ``"head"``; default necks and heads.
        task: only parts that serve it.
    """
    if kind == "backbone":
        return registry.list_models(kind="backbone")
    if kind is not None and kind not in KINDS:
        raise unknown("kind of part", kind, ("backbone", *KINDS))
    registry.entries()  # imports the files that register them
    return sorted(
        n
        for n, p in _parts.items()
        if (kind is None or p.kind == kind) and (task is None or p.task == task or p.kind == "neck")
    )


def part(name: str) -> Part:
    """The neck or head of this name; an unknown name is refused with the nearest ones."""
    if name not in parts():
        raise unknown("neck or head", name, parts())
    return _parts[name]
