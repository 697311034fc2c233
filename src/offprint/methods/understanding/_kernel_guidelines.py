"""Which of the guidelines for large-kernel networks a network keeps, read from its convolutions while it runs once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.methods.understanding._layers import evaluating

LARGE = 7  # the smallest side of a kernel that counts as large
ENOUGH = 13  # the side that the journal paper finds enough for most tasks
DEEP = 18  # depth-wise layers of a stage from which on the paper adds 3x3 ones


@dataclass
class Layer:
    """One convolution or linear layer as it ran.

    Attributes:
        name: dotted.
        kernel: sides that a tap can reach, dilation included.
        depthwise, strided: what it is.
        side: sides of the map it read, smallest first.
        widening: output over input channels where it mixes channels alone (1x1 convolution, linear layer), else 0.
        reads: number of the tensor it read: layers beside each other read the same one.
        normed: a BatchNorm reads what it gives.
    """

    name: str
    kernel: tuple[int, ...]
    depthwise: bool
    strided: bool
    side: tuple[int, ...]
    widening: float
    reads: int
    normed: bool = False

    @property
    def large(self) -> bool:
        return max(self.kernel, default=1) >= LARGE


class Finding(NamedTuple):
    """One guideline: ``kept``, ``broken``, or ``not told`` (the network says nothing of it), with the layers that show it."""

    number: int
    guideline: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Design:
    """What a network's convolutions say of the guidelines."""

    model: str
    layers: tuple[Layer, ...]
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def broken(self) -> list[int]:
        """Numbers of the guidelines that are broken."""
        return [f.number for f in self.findings if f.verdict == "broken"]

    @property
    def kernels(self) -> list[int]:
        """Sides of the depth-wise kernels of stride 1, in the order of the network, those beside larger ones left out."""
        return [max(layer.kernel) for layer in _main(self.layers)]


GUIDELINES = {
    1: "large kernels are depth-wise",
    2: "an identity shortcut leads around every large kernel",
    3: "small kernels with BatchNorms of their own stand beside the large ones in training",
    4: "judged by downstream tasks as well as by ImageNet",
    5: "the smallest maps have large kernels too",
    6: "a channel-mixing layer widens the map (four times in the paper) between large kernels",
    7: "3x3 kernels in the first stage, large ones in the middle and late stages",
    8: f"of {DEEP} and more depth-wise layers in a stage at most half are large",
    9: f"no kernel is wider than {ENOUGH}, which is enough for most tasks",
}


@contextmanager
def _hooked(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: nn.Module, x: Tensor) -> tuple[list[Layer], dict[str, Any]]:
    """The layers in the order in which they ran, and the inputs of all modules that got one map (kept alive: they are compared)."""
    rows: list[Layer] = []
    seen: dict[int, int] = {}  # id of a tensor → its number
    kept: list[Tensor] = []
    inputs: dict[str, Any] = {}
    made: dict[int, Layer] = {}

    def number(tensor: Tensor) -> int:
        kept.append(tensor)
        return seen.setdefault(id(tensor), len(seen))

    def note(name: str):
        def hook(module: nn.Module, given: tuple, output: Any) -> None:
            if not given or not isinstance(given[0], Tensor) or not isinstance(output, Tensor):
                return
            inputs[name] = (module, given[0], output)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if id(given[0]) in made:
                    made[id(given[0])].normed = True
                return
            if isinstance(module, nn.Linear):
                places = given[0].shape[1:-1]
                rows.append(
                    Layer(name, (), False, False, tuple(sorted(places)), module.out_features / module.in_features, number(given[0]))
                )  # fmt: skip
            elif isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
                reach = tuple(d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True))
                point, whole = max(reach) == 1, module.groups == 1
                depthwise = module.groups == module.in_channels > 1 and not point
                widening = module.out_channels / module.in_channels if point and whole else 0.0
                rows.append(
                    Layer(name, reach, depthwise, max(module.stride) > 1, tuple(sorted(given[0].shape[2:])), widening, number(given[0]))
                )  # fmt: skip
            else:
                return
            kept.append(output)
            made[id(output)] = rows[-1]

        return hook

    with _hooked([m.register_forward_hook(note(n)) for n, m in model.named_modules() if n]), torch.no_grad():
        model(x)
    return rows, inputs


def _main(layers: Sequence[Layer]) -> list[Layer]:
    """Depth-wise layers of stride 1, of those beside each other the one with the largest kernel."""
    rows: dict[int, Layer] = {}
    for layer in layers:
        if layer.depthwise and not layer.strided:
            best = rows.get(layer.reads)
            if best is None or max(layer.kernel) > max(best.kernel):
                rows[layer.reads] = layer
    return list(rows.values())


def _beside(layer: Layer, layers: Sequence[Layer]) -> list[Layer]:
    """Smaller depth-wise kernels that read the same map."""
    return [o for o in layers if o is not layer and o.reads == layer.reads and o.depthwise and not o.strided]


def _passes_around(model: nn.Module, x: Tensor, cut: Sequence[str], inputs: dict[str, Any]) -> bool:
    """Whether the map that a block reads reaches its output while these layers are silenced: a shortcut leads around them.

    The block is the innermost module around the layers that gives a map of the shape it reads.
    """
    names = cut[0].split(".")
    around = [".".join(names[:i]) for i in range(len(names) - 1, 0, -1)]
    for name in around:
        found = inputs.get(name)
        if found is None or found[1].shape != found[2].shape:
            continue
        module, given = found[0], found[1]
        modules = dict(model.named_modules())
        silence = [modules[c].register_forward_hook(lambda m, i, o: torch.zeros_like(o)) for c in cut]
        with _hooked(silence), torch.enable_grad():
            source = given.detach().clone().requires_grad_()
            out = module(source)
            if not out.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(out.sum(), source, allow_unused=True)
        if gradient is not None and bool((gradient != 0).any()):
            return True
    return False


def _told(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def check_design(model: nn.Module, sample: Tensor | None = None, *, name: str = "") -> Design:
    """Hold a network against the guidelines of the paper.

    The network runs once on the sample, and each block with a large kernel once more with that kernel silenced, which shows
    whether a shortcut leads around it. A merged network has lost the small kernels beside the large ones, so guideline 3 is not
    told there; guideline 4 is not a property of a network.

    Args:
        model: any convolutional network.
        sample: (B, C, H, W) that it takes; default a random image of its own size.
        name: how the result calls it.

    Raises:
        OffprintError: the network has no convolution with a kernel wider than 1, so that the guidelines say nothing of it.
    """
    from offprint.methods.understanding._receptive_field import name_of
    from offprint.models.deploy import example_input

    x = example_input(model) if sample is None else sample
    with evaluating(model):
        layers, inputs = _layers(model, x)
        spatial = [layer for layer in layers if max(layer.kernel, default=1) > 1]
        if not spatial:
            raise OffprintError(
                f"{type(model).__name__} has no convolution with a kernel wider than 1; the guidelines are about convolutional networks"
            )
        large = [layer for layer in spatial if layer.large and not layer.strided]
        main = [layer for layer in _main(spatial) if layer.large]
        shortcut = {
            layer.name: _passes_around(model, x, [layer.name, *(o.name for o in _beside(layer, spatial))], inputs)
            for layer in [*main, *(o for o in large if not o.depthwise)]
        }
    found = dict.fromkeys(GUIDELINES, ("not told", "no large kernels"))
    found[4] = ("not told", "no property of a network: see its figures in segmentation and detection")
    if large:
        found |= _of_large(large, main, layers, spatial, shortcut)
    found |= _of_stages(spatial, layers)
    rows = tuple(Finding(n, text, *found[n]) for n, text in GUIDELINES.items())
    return Design(name or name_of(model), tuple(layers), rows)


def _verdict(wrong: Sequence[str], right: str, fault: str) -> tuple[str, str]:
    return ("broken", f"{fault}: {_told(wrong)}") if wrong else ("kept", right)


def _of_large(
    large: Sequence[Layer],
    main: Sequence[Layer],
    layers: Sequence[Layer],
    spatial: Sequence[Layer],
    shortcut: dict[str, bool],
) -> dict[int, tuple[str, str]]:
    dense = [layer.name for layer in large if not layer.depthwise]
    found = {
        1: _verdict(dense, f"{len(large)} kernels of {LARGE} and more", "not depth-wise"),
        2: _verdict([n for n, ok in shortcut.items() if not ok], f"around all {len(shortcut)}", "none around"),
    }
    if main:
        beside = {layer.name: _beside(layer, spatial) for layer in main}
        alone = [n for n, others in beside.items() if not others]
        bare = [o.name for n, others in beside.items() for o in others if not o.normed]
        if len(alone) == len(main):
            found[3] = ("not told", "nothing stands beside the large kernels: merged, or built without")
        elif bare:
            found[3] = ("broken", f"without a BatchNorm of their own: {_told(bare)}")
        else:
            found[3] = _verdict(alone, f"{sum(map(len, beside.values()))} beside {len(main)}", "none beside")
        order = {id(layer): i for i, layer in enumerate(layers)}
        gaps = []
        for a, b in zip(main[:-1], main[1:], strict=True):
            between = layers[order[id(a)] + 1 : order[id(b)]]
            gaps.append((b.name, max((layer.widening for layer in between), default=0.0)))
        poor = [name for name, most in gaps if most < 2]
        least = min((most for _, most in gaps), default=0.0)
        found[6] = _verdict(
            poor, f"by {least:g} at the least" if gaps else "one large kernel only", "no widening before"
        )
    widest = max(max(layer.kernel) for layer in large)
    found[9] = ("kept" if widest <= ENOUGH else "broken", f"the widest is {widest}")
    return found


def _of_stages(spatial: Sequence[Layer], layers: Sequence[Layer]) -> dict[int, tuple[str, str]]:
    """What needs the stages: the depth-wise layers on maps of one size, where mixing layers widen the map (a stem's do not)."""
    mixed = {layer.side for layer in layers if layer.widening >= 2}
    stages: dict[tuple[int, ...], list[int]] = {}
    for layer in _main(spatial):
        if layer.side in mixed:
            stages.setdefault(layer.side, []).append(max(layer.kernel))
    rows = [stages[side] for side in sorted(stages, reverse=True)]
    if not any(max(row) >= LARGE for row in rows):
        return {}
    sides = " / ".join(",".join(map(str, sorted(set(row), reverse=True))) for row in rows)
    late = all(max(row) >= LARGE for row in rows[1:])
    crowded = [row for row in rows if len(row) >= DEEP and 2 * sum(k >= LARGE for k in row) > len(row)]
    return {
        5: ("kept" if max(rows[-1]) >= LARGE else "broken", f"kernels of the last stage: {max(rows[-1])}"),
        7: (
            "not told" if len(rows) < 2 else "kept" if max(rows[0]) < LARGE and late else "broken",
            f"kernels by stage: {sides}",
        ),
        8: (
            "broken" if crowded else "kept",
            f"{len(crowded)} stages with more than half" if crowded else f"layers by stage: {', '.join(str(len(r)) for r in rows)}",
        ),
    }  # fmt: skip
