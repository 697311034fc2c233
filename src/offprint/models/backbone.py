"""What every image backbone offers, and the feature pyramid it turns into."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from offprint.errors import OffprintError


class FeatureInfo:
    """Channels and strides of the maps a ``features_only`` model returns (timm's interface)."""

    def __init__(self, channels: list[int], reductions: list[int], out_indices: tuple[int, ...]):
        self._channels, self._reductions, self.out_indices = channels, reductions, out_indices

    def channels(self, idx: int | None = None):
        """Channels of each returned map, or of map ``idx`` of the full pyramid."""
        return [self._channels[i] for i in self.out_indices] if idx is None else self._channels[idx]

    def reduction(self, idx: int | None = None):
        """Stride of each returned map against the input, or of map ``idx`` of the full pyramid."""
        return [self._reductions[i] for i in self.out_indices] if idx is None else self._reductions[idx]

    def module_name(self, idx: int | None = None):
        names = [f"stage{i}" for i in range(len(self._channels))]
        return [names[i] for i in self.out_indices] if idx is None else names[idx]

    def get_dicts(self) -> list[dict]:
        return [
            {"num_chs": self._channels[i], "reduction": self._reductions[i], "module": f"stage{i}", "index": i}
            for i in self.out_indices
        ]

    def __len__(self) -> int:
        return len(self.out_indices)


class Backbone(nn.Module):
    """Base of the image backbones.

    A subclass sets ``pyramid_channels``, ``pyramid_reductions`` and ``num_features``, and writes ``forward_features``
    (last map before pooling), ``forward_head`` and ``forward_pyramid`` (all maps, finest first).

    Class attributes:
        head_modules: modules that only the classifier uses; ``features_only`` removes them.
        classifier: dotted name of the last linear layer, the one a new number of classes replaces.
        input_layers: names of the layers that read the image, whose weights follow ``in_chans``.
        minimum: smallest input height and width.
        dialects, native: how foreign checkpoints map (see :mod:`offprint.models.checkpoint`) and whose names ours are.
    """

    head_modules: ClassVar[tuple[str, ...]] = ("norm", "head")
    classifier: ClassVar[str] = "head"
    input_layers: ClassVar[tuple[str, ...]] = ()
    minimum: ClassVar[int] = 32
    dialects: ClassVar[tuple] = ()
    native: ClassVar[str] = "authors"

    in_chans: int
    num_features: int
    num_classes: int
    pyramid_channels: list[int]
    pyramid_reductions: list[int]

    def __init__(self):
        super().__init__()
        self.out_indices: tuple[int, ...] | None = None
        self.grad_checkpointing = False

    # -- what a subclass writes ---------------------------------------------------------------------------------------
    def forward_features(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward_features")

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        raise TypeError(f"{type(self).__name__} must define forward_pyramid")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define forward_head")

    # -- what it gets -------------------------------------------------------------------------------------------------
    def forward(self, x: Tensor):
        """Logits (B, num_classes) of images (B, C, H, W), or the list of maps of a ``features_only`` model."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        if self.out_indices is not None:
            maps = self.forward_pyramid(x)
            return [maps[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def check_input(self, x: Tensor) -> None:
        """Refuse a batch the architecture cannot take, saying which sizes would work."""
        if x.ndim != 4:
            raise OffprintError(
                f"expected images of shape (B, C, H, W), got {tuple(x.shape)}; add the batch axis with x[None]"
            )
        if x.shape[1] != self.in_chans:
            raise OffprintError(
                f"expected {self.in_chans} channels, got {x.shape[1]} (shape {tuple(x.shape)}); "
                f"build the model with in_chans={x.shape[1]}"
            )
        if min(x.shape[-2:]) < self.minimum:
            raise OffprintError(
                f"{type(self).__name__} needs height and width of at least {self.minimum} pixels, got {tuple(x.shape[-2:])}; "
                "resize the image"
            )

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and strides of the pyramid."""
        indices = self.out_indices if self.out_indices is not None else tuple(range(len(self.pyramid_channels)))
        return FeatureInfo(list(self.pyramid_channels), list(self.pyramid_reductions), indices)

    def as_features(self, out_indices: tuple[int, ...] | list[int] | None = None) -> Backbone:
        """Turn this model, in place, into one that returns feature maps; its classifier is removed."""
        n = len(self.pyramid_channels)
        chosen = tuple(range(n)) if out_indices is None else tuple(i if i >= 0 else n + i for i in out_indices)
        if not chosen or any(not 0 <= i < n for i in chosen):
            raise OffprintError(f"out_indices={out_indices} is not among the {n} maps of this model (0 to {n - 1})")
        for name in self.head_modules:
            if hasattr(self, name):
                delattr(self, name)
        self.out_indices, self.num_classes = chosen, 0
        return self

    @property
    def head_hidden_size(self) -> int:
        """Features that reach the classifier; a head with a layer of its own before that says another number."""
        return self.num_features

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer by a fresh one for ``num_classes`` classes (0: none)."""
        parent, _, leaf = self.classifier.rpartition(".")
        owner = self.get_submodule(parent) if parent else self
        old = getattr(owner, leaf)
        reference = next(self.parameters())
        new: nn.Module = nn.Identity()
        if num_classes > 0:
            width = getattr(old, "in_features", self.head_hidden_size)
            new = nn.Linear(width, num_classes, device=reference.device, dtype=reference.dtype)
            nn.init.trunc_normal_(new.weight, std=0.02)
            nn.init.zeros_(new.bias)
        setattr(owner, leaf, new)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory: recompute each block's activations in the backward pass."""
        self.grad_checkpointing = enable

    def run(self, blocks, x: Tensor, *args) -> Tensor:
        """Apply blocks in turn, recomputing them in the backward pass when gradient checkpointing is on."""
        for block in blocks:
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = recompute(block, x, *args, use_reentrant=False)
            else:
                x = block(x, *args)
        return x
