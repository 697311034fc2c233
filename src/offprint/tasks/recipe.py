"""A training recipe as data: a paper states its own in its file, a user overrides any field."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from offprint.errors import OffprintError, unknown


@dataclass(frozen=True)
class Recipe:
    r"""How an image classifier is trained.

    ``lr`` is the rate at ``reference_batch`` images per step and is scaled linearly to the batch in use (0: not scaled).
    ``scaled_with_batch`` names the rates that are. ``schedule`` is ``cosine``, ``step`` (``lr * decay_rate ** (epoch // decay_epochs)``) or
    ``constant``, after ``warmup_epochs`` of linear warm-up from ``warmup_lr``. ``auto_augment`` is ``""``, ``"randaugment"``,
    ``"trivial"``, ``"three"`` (DeiT III's) or timm's ``rand-mM-nN...`` notation (magnitude M of 10, N operations). ``crop_scale`` is the share
    of the picture's area that a crop takes, ``()`` for the whole short side, shifted by up to four pixels. ``ema_decay`` 0 keeps no average.

    ``layer_decay`` is the factor between the rates of neighbouring layers (1: one rate), ``head_init_scale`` one on a fresh
    classifier, ``aux_weight`` the weight of a side classifier's loss (``None``: the model's own, if it has one). ``lr_noise``: from and
    to which part of training the rate is multiplied by 1 + r each epoch, r normal and redrawn until \|r\| < 0.67. ``interpolation``,
    ``crop_pct`` and ``crop_mode`` are of the pictures (``""`` and 0: the model's own preprocessing). ``data`` is the set that a stage is
    stated for, ``start`` the stage whose weights it starts from; a run says both.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    reference_batch: int = 0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_vectors: bool = False
    epochs: int = 100
    batch_size: int = 64
    schedule: str = "cosine"
    decay_rate: float = 0.97
    decay_epochs: float = 1.0
    warmup_epochs: float = 5
    warmup_lr: float = 0.0
    min_lr: float = 1e-6
    clip_grad: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    flip: bool = True
    crop_scale: tuple[float, ...] = (0.08, 1.0)
    color_jitter: float = 0.0
    auto_augment: str = ""
    random_erasing: float = 0.0
    drop_path_rate: float | None = None
    drop_rate: float | None = None
    ema_decay: float = 0.0
    input_size: int = 0
    layer_decay: float = 1.0
    head_init_scale: float = 1.0
    aux_weight: float | None = None
    scaled_with_batch: tuple[str, ...] = ("lr", "min_lr", "warmup_lr")
    lr_noise: tuple[float, ...] = ()
    interpolation: str = ""
    crop_pct: float = 0.0
    crop_mode: str = ""
    data: str = ""
    start: str = ""

    def __post_init__(self):
        for name, choices in (("optimizer", OPTIMIZERS), ("schedule", ("cosine", "step", "constant"))):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        for name in ("lr", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must be above 0")
        for name in ("label_smoothing", "random_erasing", "ema_decay", "mixup", "cutmix", "weight_decay", "clip_grad"):
            if not getattr(self, name) >= 0:
                raise OffprintError(f"recipe: {name}={getattr(self, name)!r}; it must not be negative")

    @classmethod
    def of(cls, model: str, stage: str = "training", **overrides: Any) -> Recipe:
        """The recipe a model's paper states for a stage, with fields overridden.

        Raises:
            OffprintError: the paper has no such stage, or an override names no field.
        """
        return cls.make({**stated(model, stage), **overrides})

    @classmethod
    def make(cls, fields: Mapping[str, Any]) -> Recipe:
        """A recipe from a mapping; unknown fields are refused."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise unknown("field of the recipe", name, known)
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**given)

    def scaled(self, batch: int) -> tuple[float, float, float]:
        """(lr, min_lr, warmup_lr) at this many images per step."""
        factor = batch / self.reference_batch if self.reference_batch else 1.0
        lr, low, start = (
            getattr(self, name) * (factor if name in self.scaled_with_batch else 1.0)
            for name in ("lr", "min_lr", "warmup_lr")
        )
        return lr, low, start

    def learning_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        """The rate of every step of the run."""
        rates = self._smooth_rates(steps_per_epoch, batch)
        if self.lr_noise:
            first, last = (round(share * self.epochs) for share in self.lr_noise)
            for epoch in range(first, last):
                for step in range(epoch * steps_per_epoch, min((epoch + 1) * steps_per_epoch, len(rates))):
                    rates[step] *= 1 + _noise(epoch)
        return rates

    def pictures(self, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
        """A model's preprocessing with what this recipe says otherwise."""
        own = {"interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode}
        return {**preprocessing, **{k: v for k, v in own.items() if v}}

    def _smooth_rates(self, steps_per_epoch: int, batch: int) -> list[float]:
        from offprint.nn import cosine_schedule

        top, low, start = self.scaled(batch)
        total = max(1, self.epochs * steps_per_epoch)
        warm = min(round(self.warmup_epochs * steps_per_epoch), total // 2)
        if self.schedule == "cosine":
            return cosine_schedule(top, min(low, top), total, warm, start)
        rise = [start + (top - start) * i / max(1, warm) for i in range(warm)]
        if self.schedule == "constant":
            return rise + [top] * (total - warm)
        return rise + [
            top * self.decay_rate ** int(step / steps_per_epoch / self.decay_epochs) for step in range(warm, total)
        ]


@cache
def _noise(epoch: int, bound: float = 0.67) -> float:
    """A normal number of an epoch, drawn again until it lies within the bound."""
    draw = random.Random(42 + epoch)
    while True:
        value = draw.gauss(0, 1)
        if abs(value) < bound:
            return value


def stated(model: str, stage: str = "training") -> Mapping[str, Any]:
    """The fields of the recipe that a model's paper states for a stage.

    Raises:
        OffprintError: it states none.
    """
    from offprint.models.registry import entry

    spec = entry(model)
    if stage not in spec.recipes and stage != "training":
        raise unknown(f"stage of the recipe of {model}", stage, {"training", *spec.recipes})
    return spec.recipes.get(stage, {})


OPTIMIZERS = ("adamw", "adam", "sgd", "nesterov", "rmsprop", "rmsprop_tf", "lamb")


def build_optimizer(model, recipe: Recipe, batch: int):
    """The recipe's optimizer; biases, norms and other vectors are not decayed unless the recipe says so.

    A model may name more that is not: ``undecayed``, a regular expression searched for in parameter names.
    """
    import re

    import torch

    lr = recipe.scaled(batch)[0]
    if recipe.layer_decay != 1.0:
        from offprint.models.layer_decay import layer_decay_groups

        groups = layer_decay_groups(model, lr, recipe.weight_decay, recipe.layer_decay)
    else:
        free = re.compile(getattr(model, "undecayed", "") or r"(?!)")
        decayed: list = []
        plain: list = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                vector = parameter.ndim <= 1 or name.endswith(".bias") or bool(free.search(name))
                (plain if vector and not recipe.decay_vectors else decayed).append(parameter)
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [g for g in groups if g["params"]]
    match recipe.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, betas=recipe.betas, eps=recipe.eps)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, betas=recipe.betas, eps=recipe.eps)
        case "sgd" | "nesterov":
            return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.optimizer == "nesterov")
        case "lamb":
            from offprint.tasks.lamb import Lamb

            return Lamb(groups, lr=lr, betas=recipe.betas, eps=recipe.eps)
        case "rmsprop_tf":
            from offprint.tasks.rmsprop import RMSpropTF

            return RMSpropTF(groups, lr=lr, alpha=0.9, momentum=recipe.momentum, eps=recipe.eps)
        case _:
            return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, momentum=recipe.momentum, eps=recipe.eps)
