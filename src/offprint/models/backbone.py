"""What every image backbone offers (timm's interface), and the feature pyramid it turns into."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from offprint.errors import OffprintError
from offprint.models.configuration import configuration


class FeatureInfo(list):
    """The maps a model returns: a list of dicts as timm's, one a map, and their channels and strides as lists.

    Each dict has ``num_chs``, ``reduction`` (stride against the input), ``module`` (the layer that ends the map) and ``index``
    (its place in the full pyramid, 0 the finest).
    """

    def __init__(self, maps: Sequence[dict[str, Any]], out_indices: Sequence[int]):
        super().__init__(maps[i] for i in out_indices)
        self.full, self.out_indices = list(maps), tuple(out_indices)

    def _get(self, key: str, idx: int | None):
        return [row[key] for row in self] if idx is None else self.full[idx][key]

    def channels(self, idx: int | None = None):
        """Channels of each returned map, or of map ``idx`` of the full pyramid."""
        return self._get("num_chs", idx)

    def reduction(self, idx: int | None = None):
        """Stride of each returned map against the input, or of map ``idx`` of the full pyramid."""
        return self._get("reduction", idx)

    def module_name(self, idx: int | None = None):
        """Name of the layer that ends each returned map, or map ``idx`` of the full pyramid."""
        return self._get("module", idx)

    def get_dicts(self) -> list[dict]:
        """The rows as a plain list."""
        return list(self)


class Backbone(nn.Module):
    """Base of the image backbones.

    A subclass sets ``pyramid_channels``, ``pyramid_reductions``, ``pyramid_modules`` (the layer that ends each map) and
    ``num_features``, and writes :meth:`walk` and :meth:`depth_groups`; :meth:`finish`, :meth:`tap` and :meth:`pooled` where there
    is something to do.

    Class attributes:
        head_modules: modules that only the classifier uses; ``features_only`` removes them.
        classifier: name of the last linear layer, the one a new number of classes replaces.
        input_layers: names of the layers that read the image, whose weights follow ``in_chans``.
        minimum: smallest input height and width.
        undecayed: a regular expression: parameters that take no weight decay besides vectors and biases.
        dialects, native: how foreign checkpoints map (see :mod:`offprint.models.checkpoint`) and whose names ours are.
    """

    head_modules: ClassVar[tuple[str, ...]] = ("norm", "head")
    classifier: ClassVar[str] = "head"
    input_layers: ClassVar[tuple[str, ...]] = ()
    common: ClassVar[tuple[str, ...]] = ("drop_rate", "global_pool")
    minimum: int = 32
    undecayed: ClassVar[str] = ""
    dialects: ClassVar[tuple] = ()
    native: ClassVar[str] = "authors"

    drop_rate: float  # of the dropout before the classifier
    in_chans: int
    num_features: int
    num_classes: int
    pyramid_channels: list[int]
    pyramid_reductions: list[int]
    pyramid_modules: list[str]

    def __init__(self, drop_rate: float = 0.0):
        super().__init__()
        self.out_indices: tuple[int, ...] | None = None
        self.grad_checkpointing = False
        self.set_common(drop_rate)
        self.global_pool = "avg"  # or "" for none
        self.hidden = 0  # width before the classifier of a head that has a layer of its own there
        self.whole = True  # False once the layers behind a map are gone

    # -- what a subclass writes ---------------------------------------------------------------------------------------
    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """The maps as the trunk makes them, finest first, each as soon as it is there."""
        raise TypeError(f"{type(self).__name__} must define walk")

    def finish(self, x: Tensor) -> Tensor:
        """The last of :meth:`walk` as :meth:`forward_features` gives it."""
        return x

    def tap(self, x: Tensor, index: int, norm: bool = False) -> Tensor:
        """Map ``index`` of :meth:`walk` as a feature extractor gives it; ``norm``: the last through the classifier's norm."""
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """A map of :meth:`forward_features` to what the classifier reads: (B, C), or a map where ``global_pool`` is ``""``."""
        return self.pool(x)

    def depth_groups(self) -> list[list[str]]:
        """Names of layers by depth, in the order of the forward pass: the stem's, those of layer 1, ...; the head's are left out."""
        raise TypeError(f"{type(self).__name__} must define depth_groups")

    # -- forward ------------------------------------------------------------------------------------------------------
    def forward(self, x: Tensor):
        """Logits (B, num_classes) of images (B, C, H, W), or the list of maps of a ``features_only`` model."""
        if torch.compiler.is_compiling():
            return self._forward(x)
        self.check_input(x)
        try:
            return self._forward(x)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1"):
                raise
            raise OffprintError(
                f"{type(self).__name__} is in training and got a batch of shape {tuple(x.shape)}: its last maps have one value a "
                "channel, which has no variance to normalise by; give two images or more, larger ones, or call model.eval()"
            ) from error

    def _forward(self, x: Tensor):
        if self.out_indices is not None:
            maps = self.forward_pyramid(x)
            return [maps[i] for i in self.out_indices]
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map (B, num_features, H', W'), before pooling."""
        return self._last(self.walk(x))

    def _last(self, maps: Iterator[Tensor]) -> Tensor:
        place, x = -1, next(maps)
        for place, y in enumerate(maps):  # one map at a time is kept  # noqa: B007
            x = y
        return self._end(x, place + 1)

    def _end(self, x: Tensor, index: int) -> Tensor:
        return self.finish(x) if self.whole and index == len(self.pyramid_channels) - 1 else self.tap(x, index)

    def forward_pyramid(self, x: Tensor) -> list[Tensor]:
        """All maps, finest first."""
        return [self.tap(y, i) for i, y in enumerate(self.walk(x))]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map of :meth:`forward_features` to logits, or with ``pre_logits`` to what the classifier reads."""
        x = self.pooled(x) if self.whole else self.pool(x)
        if pre_logits:
            return x
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return getattr(self, self.classifier)(x) if self.num_classes else x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ):
        """The last features and chosen maps, in one pass.

        Args:
            indices: the last so many maps (a number), or these (negative: from the end); ``None``: all.
            norm: the last map through the norm before the classifier, where a model normalises before pooling.
            stop_early: leave out what comes behind the last chosen map.
            output_fmt: ``"NCHW"``.
            intermediates_only: return the list of maps alone.

        Returns:
            (features, maps); the features are those of :meth:`forward_features`, or the last map that was computed.
        """
        if output_fmt != "NCHW":
            raise OffprintError(f"output_fmt={output_fmt!r}; maps are (B, C, H, W) here, output_fmt='NCHW'")
        taken, last = self._take(indices)
        self.check_input(x)
        maps, i = [], -1
        for i, x in enumerate(self.walk(x)):  # noqa: B007, B020
            if i in taken:
                maps.append(self.tap(x, i, norm))
            if stop_early and i == last:
                break
        return maps if intermediates_only else (self._end(x, i), maps)

    def check_input(self, x: Tensor) -> None:
        """Refuse a batch the architecture cannot take, saying what would work."""
        if x.ndim != 4:
            raise OffprintError(
                f"expected images of shape (B, C, H, W), got {tuple(x.shape)}; add the batch axis with x[None]"
            )
        if not x.is_floating_point():
            raise OffprintError(
                f"expected floating-point images, normalised as the weights expect, got {x.dtype}; convert them first: "
                "(x.float() / 255 - mean) / std with the mean and std of model.pretrained_cfg"
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

    # -- maps ---------------------------------------------------------------------------------------------------------
    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, strides and layers of the maps."""
        columns = zip(self.pyramid_channels, self.pyramid_reductions, self.pyramid_modules, strict=True)
        rows = [{"num_chs": c, "reduction": r, "module": m, "index": i} for i, (c, r, m) in enumerate(columns)]
        return FeatureInfo(rows, range(len(rows)) if self.out_indices is None else self.out_indices)

    def _take(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Places of the maps that ``indices`` means (timm's rules), and the last of them."""
        n = len(self.pyramid_channels)
        if indices is None or isinstance(indices, int):
            count = n if indices is None else indices
            taken = list(range(n - count, n))
        else:
            taken = [i if i >= 0 else n + i for i in indices]
        if not taken or any(not 0 <= i < n for i in taken):
            raise OffprintError(
                f"indices={indices!r} is not among the {n} maps of this model (0 to {n - 1}, or a number up to {n})"
            )
        return taken, max(taken)

    def as_features(self, out_indices: tuple[int, ...] | list[int] | None = None) -> Backbone:
        """Turn this model, in place, into one that returns feature maps; its classifier is removed."""
        n = len(self.pyramid_channels)
        chosen = tuple(range(n)) if out_indices is None else tuple(i if i >= 0 else n + i for i in out_indices)
        if not chosen or any(not 0 <= i < n for i in chosen):
            raise OffprintError(f"out_indices={out_indices} is not among the {n} maps of this model (0 to {n - 1})")
        self.out_indices = chosen
        self._behead()
        return self

    def _behead(self) -> None:
        """Remove what only the classifier uses: the last map is the last feature now."""
        for name in self.head_modules:
            if hasattr(self, name):
                delattr(self, name)
        self.num_classes, self.num_features, self.hidden, self.whole = 0, self.pyramid_channels[-1], 0, False

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove, in place, the layers behind the last chosen map.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: the norm before the classifier goes too, even where the last map stays.
            prune_head: the classifier and the pooling go (they always do where the last map does).

        Returns:
            The places of the chosen maps.
        """
        taken, last = self._take(indices)
        if last < len(self.pyramid_channels) - 1:
            names, inside = [n for group in self.depth_groups() for n in group], self.pyramid_modules[last]
            end = max(i for i, n in enumerate(names) if n == inside or n.startswith(inside + "."))
            later = [f"norm{i}" for i in range(last + 1, len(self.pyramid_channels))]
            for name in (*names[end + 1 :], *later):
                self._remove(name)
            for table in (self.pyramid_channels, self.pyramid_reductions, self.pyramid_modules):
                del table[last + 1 :]
            self._behead()
            if self.out_indices is not None:
                self.out_indices = tuple(i for i in self.out_indices if i <= last)
            self.global_pool = ""
        elif prune_norm:
            self._behead()
            self.global_pool = ""
        elif prune_head:
            self.reset_classifier(0, "")
        return taken

    def _remove(self, name: str) -> None:
        """Take out a layer or a parameter, and the containers it leaves empty; the others keep their names."""
        parent, _, leaf = name.rpartition(".")
        try:
            owner = self.get_submodule(parent)
        except AttributeError:
            return
        owner._modules.pop(leaf, None)
        owner._parameters.pop(leaf, None)
        if parent and not owner._modules and not owner._parameters:
            self._remove(parent)

    # -- the head -----------------------------------------------------------------------------------------------------
    @property
    def head_hidden_size(self) -> int:
        """Features that reach the classifier."""
        return self.hidden or self.num_features

    def pool(self, x: Tensor) -> Tensor:
        """Mean over the map (B, C, H, W), or the map itself where ``global_pool`` is ``""``."""
        return x.mean((2, 3)) if self.global_pool else x

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.get_submodule(self.classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a fresh one for ``num_classes`` classes (0: none).

        Args:
            global_pool: ``"avg"``, or ``""`` for no pooling: :meth:`forward` then gives a map (B, C, H', W'). ``None`` leaves it.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", ""):
            raise OffprintError(f"global_pool={global_pool!r}; choose 'avg', or '' for none")
        if num_classes and not pool:
            raise OffprintError(
                f"num_classes={num_classes} with global_pool='': a map has no classes; give num_classes=0"
            )
        if num_classes and not self.whole:
            raise OffprintError(
                f"{type(self).__name__} has no head any more to give {num_classes} classes; build it anew"
            )
        self.global_pool, self.num_classes = pool, num_classes
        if not self.whole:
            return
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

    # -- training -----------------------------------------------------------------------------------------------------
    def set_common(self, drop_rate: float | None = None, global_pool: str | None = None) -> None:
        """What :func:`offprint.create_model` sets on any backbone: dropout before the classifier, and the pooling."""
        if drop_rate is not None:
            if not 0 <= drop_rate < 1:
                raise OffprintError(f"drop_rate={drop_rate}; give a probability from 0 to below 1")
            self.drop_rate = drop_rate
        if global_pool is not None and (global_pool != "avg" or not self.global_pool):
            self.reset_classifier(self.num_classes, global_pool)

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

    @property
    def num_layers(self) -> int:
        """Layers between stem and head, for layer-wise rates: the stem is layer 0, the head ``num_layers + 1``."""
        return len(self.depth_groups()) - 1

    def layer_index(self, name: str) -> int:
        """The layer of a parameter: 0 for the stem's, up to ``num_layers``; ``num_layers + 1`` for all that belongs to none."""
        groups = self.depth_groups()
        where = {n: i for i, group in enumerate(groups) for n in group}
        while name:
            if name in where:
                return where[name]
            name = name.rpartition(".")[0]
        return len(groups)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Parameter name to its layer, or its map (``coarse``): what timm's layer-wise rates ask for."""
        if not coarse:
            return self.layer_index
        ends = [max(self.layer_index(n) for n in self._inside(m)) for m in self.pyramid_modules]
        return lambda name: sum(self.layer_index(name) > end for end in ends)

    def _inside(self, module: str) -> list[str]:
        return [n for group in self.depth_groups() for n in group if n == module or n.startswith(module + ".")]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed, besides vectors and biases."""
        free = re.compile(self.undecayed or r"(?!)")
        return {name for name, _ in self.named_parameters() if free.search(name)}

    # -- the input ----------------------------------------------------------------------------------------------------
    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Set the model, in place, to images of another side or (height, width), before its optimizer is made.

        Models that take images of any size as they are have nothing to change; windows, and tables of positions or frequencies, are
        made anew or resampled.

        Raises:
            OffprintError: no such image works; the message says which would.
        """
        self._sides(img_size)

    def _remember(self, **kwargs: Any) -> None:
        """Note how the model was changed, so that a saved one is rebuilt in the same form."""
        if "spec" in self.__dict__:
            self.__dict__["spec"]["kwargs"] |= kwargs

    def _sides(self, img_size: int | Sequence[int]) -> tuple[int, int]:
        height, width = sides_of(img_size)
        if min(height, width) < self.minimum:
            raise OffprintError(
                f"img_size={img_size}: {type(self).__name__} needs height and width of at least {self.minimum} pixels"
            )
        return height, width

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm knows of a model's weights and input, from the release that was loaded, or would be."""
        return configuration(self)

    default_cfg = pretrained_cfg

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Sides of the map of :meth:`forward_features` for an image of these; nothing is computed."""
        tensors = {k: v.to("meta") for k, v in (*self.named_parameters(), *self.named_buffers())}
        probe = torch.empty(2, self.in_chans, height, width, device="meta", dtype=next(self.parameters()).dtype)
        with torch.no_grad():
            y = torch.func.functional_call(_Features(self), {f"model.{k}": v for k, v in tensors.items()}, (probe,))
        return tuple(y.shape[-2:])


class _Features(nn.Module):
    """A model whose forward is another's ``forward_features``."""

    def __init__(self, model: Backbone):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)


def sides_of(img_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or a pair of sides."""
    sides = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(sides) != 2 or not all(isinstance(s, int) and s > 0 for s in sides):
        raise OffprintError(f"img_size={img_size!r}; give one side in pixels, or (height, width)")
    return sides[0], sides[1]
