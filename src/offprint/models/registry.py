"""Every model by name: one registry.

A model file calls :func:`register` once with its table of variants. The registry imports the files of a room the first
time a name is asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from offprint.errors import OffprintError, unknown

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic", "crop_pct": 0.875}


@dataclass(frozen=True)
class Weights:
    """A released checkpoint: where it lives, whose it is, how it is read, and what its publisher says of it.

    Args:
        url: an address, or ``hf:OWNER/REPO/FILE`` for a file on the Hugging Face hub.
        publisher: who released this file (``"authors"``, ``"timm"``, ``"torchvision"``, ...).
        dialect: whose tensor names it holds: the ``native`` name of the model's class, or one of its dialects.
        licence: what its publisher grants, ``"none stated"`` where that is nothing.
        sha256: the digest, or the prefix of it that the publisher puts into the file's name; empty where none is stated.
        num_classes: outputs of the classifier, 0 where the file is used without one; ``None`` is the model's own number.
        input_size: (C, H, W) or (C, D, H, W) at which the publisher evaluates; ``None`` is the model's own.
        preprocessing: ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode`` (``"center"``, or ``"squash"`` for a
            picture warped to the square) as its publisher evaluates; ``None`` is the model's own.
        metrics: data id → metric → value, as stated by the publisher, digit for digit; accuracies, mIoU and Dice in %.
        metrics_source: where the publisher states them.
        class_map: name of the order of the model's outputs where they are not ImageNet-1K's 1000 in the usual one.
        average: ``"ema"`` or ``"raw"`` where the file holds both, or the publisher says which it evaluates.
    """

    url: str
    publisher: str
    dialect: str
    licence: str
    sha256: str = ""
    num_classes: int | None = None
    input_size: tuple[int, ...] | None = None
    preprocessing: Mapping[str, Any] | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    metrics_source: str = ""
    class_map: str = ""
    average: str = ""


@dataclass(frozen=True)
class Entry:
    """One registered model: how to build it, whose paper it is, and what its released weights are."""

    name: str
    paper: str
    kind: str
    build: Callable[..., nn.Module]
    kwargs: Mapping[str, Any]
    input_size: tuple[int, ...] | None
    preprocessing: Mapping[str, Any]
    weights: Mapping[str, Weights]
    recipes: Mapping[str, Mapping[str, Any]]
    module: str
    task: str = ""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe of the stage ``training``."""
        return self.recipes.get("training", {})

    def __call__(self, **kwargs) -> nn.Module:
        return self.build(**{**self.kwargs, **kwargs})

    def tag(self, wanted: bool | str = True) -> str:
        """The tag that ``pretrained=wanted`` means: the first one, or the one of this name."""
        if not self.weights:
            raise OffprintError(
                f"{self.name} has no released weights; pass checkpoint_path= for a file of your own, or choose a model that has "
                f"({', '.join(list_models(paper=self.paper, pretrained=True)[:6]) or 'none of this paper'}; all of them: offprint weights)"
            )
        tag = next(iter(self.weights)) if wanted is True else str(wanted)
        if tag not in self.weights:
            raise unknown(f"weights of {self.name}", tag, self.weights)
        return tag

    def release(self, wanted: bool | str = True) -> Weights:
        """The released checkpoint of this tag, with the model's own classes, input and preprocessing where it has none."""
        chosen = self.weights[self.tag(wanted)]
        parameter = inspect.signature(self.build).parameters.get("num_classes")
        own = self.kwargs.get("num_classes", parameter.default if parameter else None)
        return replace(
            chosen,
            num_classes=own if chosen.num_classes is None else chosen.num_classes,
            input_size=chosen.input_size or self.input_size,
            preprocessing=self.preprocessing if chosen.preprocessing is None else chosen.preprocessing,
        )


_entries: dict[str, Entry] = {}
_rooms: list[str] = ["offprint.models"]
_seen: set[str] = set()
_assemblers: list[Callable[[str], Entry]] = []


def register(
    *,
    paper: str,
    kind: str,
    build: Callable[..., nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    input_size: tuple[int, ...] | None = (3, 224, 224),
    preprocessing: Mapping[str, Any] = IMAGENET,
    weights: Mapping[str, Mapping[str, Weights]] | None = None,
    input_sizes: Mapping[str, tuple[int, ...]] | None = None,
    recipe: Mapping[str, Any] | None = None,
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
    exceptions: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    task: str | None = None,
) -> None:
    """Enter a paper's variants.

    Args:
        paper: slug in the catalogue.
        kind: ``backbone``, ``segmentation``, ``detection``, ``signal``, ``graph``, or the kind of method it belongs to.
        build: the model class, or a function returning a model.
        variants: model name → keyword arguments of ``build``.
        input_size: shape (C, H, W) or (C, D, H, W) the released weights expect; ``None`` where there is no fixed shape.
        preprocessing: mean, std, interpolation and crop fraction the released weights expect.
        weights: model name → {tag: :class:`Weights`}; the first tag is what ``pretrained=True`` loads.
        input_sizes: exceptions to ``input_size`` by model name.
        recipe: the paper's training recipe as fields of its task's recipe (see :class:`offprint.tasks.recipe.Recipe`); the same
            as ``recipes={"training": ...}``.
        recipes: stage (``training``, ``pretraining``, ``finetuning``, ...) → recipe of all models.
        exceptions: stage → model name → what differs for it; a stage that ``recipes`` has not is one of the models named here.
        task: name of the task (:mod:`offprint.tasks`) that trains and uses it; ``None`` is classification for backbones and
            otherwise none. A backbone may serve several tasks; this is the one meant where none is named.
    """
    for name in weights or {}:
        if name not in variants:
            raise unknown(f"model of {paper} with weights", name, variants)
    stages, special = _by_stage(variants, recipe, recipes, exceptions)
    for name, kwargs in variants.items():
        if name in _entries and _entries[name].build is not build:
            raise OffprintError(f"two papers register the model {name!r}: {_entries[name].paper} and {paper}")
        size = (input_sizes or {}).get(name, input_size)
        own = {
            stage: {**stages.get(stage, {}), **special.get(stage, {}).get(name, {})}
            for stage in (*stages, *(s for s in special if s not in stages))
            if stage in stages or name in special[stage]
        }
        released = dict((weights or {}).get(name, {}))
        own_task = task if task is not None else "classification" if kind == "backbone" else ""
        _entries[name] = Entry(
            name, paper, kind, build, dict(kwargs), size, dict(preprocessing), released, own, build.__module__, own_task
        )


def _by_stage(variants, recipe, recipes, exceptions) -> tuple[dict, dict]:
    """The recipes of all models and those of single ones, by stage."""
    stages, special = dict(recipes or {}), {stage: dict(rows) for stage, rows in (exceptions or {}).items()}
    old = {name: stages.pop(name) for name in list(stages) if name in variants}
    if old:
        warnings.warn(
            "register(recipes=...) goes by stage now; what single models have of their own is exceptions={'training': ...}",
            DeprecationWarning,
            stacklevel=3,
        )
        special["training"] = {**special.get("training", {}), **old}
    if recipe is not None:
        stages = {"training": recipe, **stages}
    for stage, rows in special.items():
        for name in rows:
            if name not in variants:
                raise unknown(f"model with a recipe of its own for {stage}", name, variants)
    return stages, special


def add_room(package: str) -> None:
    """Let the registry look for models in another package (its modules are imported when a name is not found)."""
    if package not in _rooms:
        _rooms.append(package)


def assembles(make: Callable[[str], Entry]) -> None:
    """Let ``make`` say what the names with a ``+`` mean: those of models put together from parts."""
    _assemblers[:] = [make]


def _import_room(package: str) -> None:
    if package in _seen:
        return
    _seen.add(package)
    root = importlib.import_module(package)
    for info in pkgutil.walk_packages(root.__path__, package + "."):
        importlib.import_module(info.name)


def entries(*, everywhere: bool = True) -> dict[str, Entry]:
    """All registered models by name."""
    for room in _rooms if everywhere else _rooms[:1]:
        _import_room(room)
    return _entries


def entry(name: str) -> Entry:
    """The registered model of this name, or the one put together as ``BACKBONE+HEAD`` or ``BACKBONE+NECK+HEAD`` says.

    An unknown name is refused with the nearest ones.
    """
    for room in _rooms:
        if name in _entries:
            break
        _import_room(room)
    if "+" in name and _assemblers:
        return _assemblers[0](name)
    if name not in _entries:
        raise unknown("model", name, entries())
    return _entries[name]


def list_models(
    pattern: str = "*", *, paper: str | None = None, kind: str | None = None, pretrained: bool = False
) -> list[str]:
    """Names of the models that match, sorted.

    Args:
        pattern: shell-style pattern, e.g. ``"convnext*"``.
        paper: only models of this paper (slug).
        kind: only models of this kind (``backbone``, ``segmentation``, ...).
        pretrained: only models with released weights.
    """
    return sorted(
        name
        for name, e in entries().items()
        if fnmatch.fnmatch(name, pattern)
        and (paper is None or e.paper == paper.replace("_", "-"))
        and (kind is None or e.kind == kind)
        and (not pretrained or e.weights)
    )


def __getattr__(name: str):
    if name == "create_model":  # its home until 0.1
        warnings.warn(
            "offprint.models.registry.create_model is offprint.models.factory.create_model now", DeprecationWarning, 2
        )
        return importlib.import_module("offprint.models.factory").create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
