"""Reading a network's inner maps: which layer, how its output lies on a grid, and hooks that never stay behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError, unknown

FAMILIES = (  # the usual target layer of each family, most specific first; "-1" is the last child
    "layer4.-1",  # ResNet
    "blocks.-1.norm1",  # ViT (timm)
    "layers.-1.blocks.-1.norm2",  # Swin (authors, timm)
    "encoder.layers.-1.ln_1",  # ViT (torchvision)
    "transformer.resblocks.-1.ln_1",  # ViT (CLIP)
    "stages.-1",  # ConvNeXt and descendants
    "features.-1",  # VGG, DenseNet, MobileNet, EfficientNet, Swin (torchvision)
)
DEPTH = 2  # how deep inside a detector, a segmentation network or a wrapper its backbone is looked for
TOKENS_BEFORE = 8  # class, distillation and register tokens before the patches, at most


# -- layers by name ---------------------------------------------------------------------------------------------------
def _follow(module: nn.Module, path: str) -> str | None:
    """The dotted name a path of :data:`FAMILIES` stands for below this module, or ``None`` where it leads nowhere."""
    names = []
    for part in path.split("."):
        children = dict(module.named_children())
        if part == "-1":
            if not children or not isinstance(module, nn.Sequential | nn.ModuleList):
                return None
            part = list(children)[-1]
        if part not in children:
            return None
        module = children[part]
        names.append(part)
    return ".".join(names)


def usual_layers(model: nn.Module) -> list[str]:
    """The layers usually looked at in models of the families known, those of the model itself before its parts'."""
    inside = [(len(name.split(".")) if name else 0, name, module) for name, module in model.named_modules()]
    found = []
    for _, name, module in sorted((x for x in inside if x[0] <= DEPTH), key=lambda x: x[0]):
        for path in FAMILIES:
            layer = _follow(module, path)
            if layer is not None:
                found.append(f"{name}.{layer}" if name else layer)
    return found


def layer_names(model: nn.Module, layers: str | nn.Module | Sequence[str | nn.Module]) -> list[str]:
    """Dotted names of layers given as names or as modules of the model.

    Raises:
        OffprintError: a name the model does not have (the nearest are offered), or a module that is not part of it.
    """
    given = [layers] if isinstance(layers, str | nn.Module) else list(layers)
    if not given:
        raise OffprintError("layers is empty; name at least one layer, or leave it out for the usual one")
    known = {name: module for name, module in model.named_modules() if name}
    names = []
    for layer in given:
        if isinstance(layer, nn.Module):
            found = next((name for name, module in known.items() if module is layer), None)
            if found is None:
                raise OffprintError(
                    f"the {type(layer).__name__} given as a layer is not part of {type(model).__name__}"
                )
            names.append(found)
        elif layer in known:
            names.append(layer)
        else:
            raise unknown(f"layer of {type(model).__name__}", layer, known)
    return names


# -- hooks ------------------------------------------------------------------------------------------------------------
@contextmanager
def hooks(model: nn.Module, names: Iterable[str], make: Callable[[str], Callable]) -> Iterator[None]:
    """While the block runs, each named layer has the forward hook ``make(name)``; afterwards none, whatever happened."""
    modules, handles = dict(model.named_modules()), []
    try:
        handles += [modules[name].register_forward_hook(make(name)) for name in names]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watch(model: nn.Module, names: Iterable[str], *, gradients: bool = False) -> Iterator[dict[str, object]]:
    """While the block runs, keep the output of the named layers.

    The network goes on with a copy, so that an in-place activation after the layer cannot rewrite what was kept, and the kept
    tensor can be differentiated with respect to, even where every weight is frozen.

    Args:
        model: the network.
        names: dotted names of its layers. A layer that is called several times keeps its last output.
        gradients: keep outputs in the graph.

    Yields:
        {name: output}, filled when the network runs.
    """
    kept: dict[str, object] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: object) -> object:
        if not isinstance(output, Tensor):
            kept[name] = output
            return None
        if not gradients:
            kept[name] = output.detach()
        else:
            kept[name] = output if output.requires_grad else output.detach().requires_grad_()
        return kept[name].clone()

    with hooks(model, names, lambda name: partial(keep, name)):
        yield kept


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While the block runs the network is in eval mode; every module gets its own mode back."""
    training = [m for m in model.modules() if m.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def find_layer(model: nn.Module, images: Tensor) -> str:
    """The layer to look at when none is named; the network runs once to see what its layers give for these images.

    The usual layer of the model's family, where that gives a map of more than one pixel. Otherwise the last layer to finish
    that does; where the output is not class scores but a map or boxes, the last of the coarsest, in the backbone if one is
    so called.

    Raises:
        OffprintError: the model has no such layer.
    """
    size, pixels = tuple(images.shape[2:]), {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        pixels.pop(name, None)  # a layer called again counts where it finished last
        if isinstance(output, Tensor) and output.is_floating_point() and output.shape[:1] == images.shape[:1]:
            try:
                count = grid_transform(output, size, module, model, name)(output)[0, 0].numel()
            except OffprintError:
                return
            if count > 1:
                pixels[name] = count

    layers = [name for name, _ in model.named_modules() if name]
    with evaluating(model), torch.no_grad(), hooks(model, layers, lambda name: partial(note, name)):
        output = model(images)
    if not pixels:
        raise OffprintError(f"{type(model).__name__} has no layer with a map to look at; name layers=[...]")
    usual = next((name for name in usual_layers(model) if name in pixels), None)
    if usual is not None:
        return usual
    if isinstance(output, Tensor) and output.ndim == 2:
        return list(pixels)[-1]
    inside = {name: count for name, count in pixels.items() if name.split(".")[0] in ("backbone", "encoder")} or pixels
    return [name for name, count in inside.items() if count == min(inside.values())][-1]


# -- outputs on a grid ------------------------------------------------------------------------------------------------
def _spread(image: Sequence[int], grid: Sequence[int]) -> float:
    """How far a grid's proportions are from the image's: 0 when every side is divided alike."""
    steps = [math.log(max(a, 1) / max(b, 1)) for a, b in zip(image, grid, strict=True)]
    return max(steps) - min(steps)


@cache
def _token_grid(tokens: int, size: tuple[int, ...], prefixes: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """Leading tokens and the grid of the others, for square patches: those that divide the image, else a ragged edge."""
    strides = range(1, min(size) + 1)
    whole = [s for s in strides if all(side % s == 0 for side in size)]
    for chosen, ways in ((whole, (math.floor,)), (strides, (math.floor, math.ceil))):
        for prefix in prefixes:
            for stride in chosen:
                for way in ways:
                    grid = tuple(way(side / stride) for side in size)
                    if math.prod(grid) == tokens - prefix:
                        return prefix, grid
    return None


def grid_transform(output: Tensor, size: Sequence[int], module: nn.Module, model: nn.Module, name: str) -> Callable:
    """How a layer's output becomes a map (N, C, *grid), found from its shape.

    - (N, C, h, w) and (N, C, d, h, w) stay.
    - (N, h, w, C), as Swin's layers give: recognised by a LayerNorm over the last axis, or because its first two sides and
      not its last two have the image's proportions.
    - (N, tokens, C): leading tokens (class, distillation, registers) are dropped and the rest put back on the grid of patches.

    Raises:
        OffprintError: the output is not a map of any of these kinds.
    """
    dims = len(size)
    if output.ndim == dims + 2:
        norm = getattr(module, "normalized_shape", None)
        channels = norm[0] if norm is not None and len(norm) == 1 else None
        first, last = output.shape[1], output.shape[-1]
        if channels is not None and first != last and channels in (first, last):
            moved = channels == last
        else:
            behind, ahead = _spread(size, output.shape[2:]), _spread(size, output.shape[1:-1])
            moved = ahead < 0.25 and ahead + 0.1 < behind
        return _channels_first if moved else _same
    if output.ndim == 3:
        own = next((n for m in model.modules() if isinstance(n := getattr(m, "num_prefix_tokens", None), int)), None)
        known = tuple(range(TOKENS_BEFORE + 1)) if own is None else (own, *range(TOKENS_BEFORE + 1))
        found = _token_grid(output.shape[1], tuple(size), known)
        if found is not None:
            return _Tokens(*found)
        raise OffprintError(
            f"layer {name!r} gives {output.shape[1]} tokens, which do not fill a grid over an image of "
            f"{'x'.join(map(str, size))}; pass reshape_transform="
        )
    raise OffprintError(
        f"layer {name!r} gives a tensor of shape {tuple(output.shape)}, not a map (N, C, {', '.join('dhw'[-dims:])}) nor "
        "tokens (N, L, C); choose a layer before the pooling, or pass reshape_transform="
    )


def _same(x: Tensor) -> Tensor:
    return x


def _channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


class _Tokens:
    """(N, prefix + d*h*w, C) to (N, C, d, h, w)."""

    def __init__(self, prefix: int, grid: tuple[int, ...]):
        self.prefix, self.grid = prefix, grid

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)
