"""Timing two things side by side, and two models of one architecture with one set of weights."""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import offprint
from offprint.errors import OffprintError
from offprint.models.deploy import FORMATS, fastest
from offprint.models.info import peak_memory

SAME, BEST = "same form", "best against best"
WANTED = {SAME: 1.0, BEST: 1.05}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        paper: slug.
        what: the work, e.g. ``"convnext_tiny forward, 4 x 224 px"``.
        peer: what we are compared with.
        ours, theirs: seconds (best of the rounds).
        memory: peak bytes of tensors, (ours, theirs), where taken.
        required: ratio that must be reached; 0 for information only.
        note: anything a reader of the figure must know.
        growth: the row is about growth with size or memory, not about speed against a peer.
        form: of two models: ``"same form"`` (both eager, fp32, each in the memory format that is better for it) or ``"best against
            best"`` (ours through :func:`offprint.deploy`, the peer fused where it can be and likewise in its best format, the
            same precision); empty where no models are compared.
    """

    paper: str
    what: str
    peer: str
    ours: float
    theirs: float
    memory: tuple[int, int] | None = None
    required: float = 1.0
    note: str = ""
    growth: bool = False
    form: str = ""

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def race(ours: Callable[[], object], theirs: Callable[[], object], seconds: float = 6.0, rounds: int = 5) -> tuple:
    """Best seconds of each, taken in turns after a warm-up, for about ``seconds`` in all and at least ``rounds`` turns."""
    for call in (ours, theirs):
        call()
    best = [float("inf"), float("inf")]
    began, turn = time.perf_counter(), 0
    while turn < rounds or time.perf_counter() - began < seconds:
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        for side in order:
            gc.disable()
            start = time.perf_counter()
            (ours, theirs)[side]()
            best[side] = min(best[side], time.perf_counter() - start)
            gc.enable()
        turn += 1
    return best[0], best[1]


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run():
        optimizer.zero_grad()
        out = model(x)
        out = out[0] if isinstance(out, tuple) else out
        torch.nn.functional.cross_entropy(out, y).backward()
        optimizer.step()

    return run


def precisions() -> list[str]:
    """Precisions this processor computes in; emulated bf16, tens of times slower, says nothing about either side."""
    return ["fp32", "bf16"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["fp32"]


def layouts(x: Tensor) -> tuple[str, str]:
    """The memory formats a batch of images, or of volumes, can have."""
    return "contiguous", "channels_last_3d" if x.ndim == 5 else "channels_last"


def fused(model: nn.Module, x: Tensor) -> nn.Module:
    """A peer's model with its branches merged (timm) and BatchNorms folded into convolutions (torch.fx), where that can be done."""
    from timm.utils.model import reparameterize_model
    from torch.fx.experimental.optimization import fuse

    merged = reparameterize_model(model)
    try:
        folded = fuse(merged.eval())
        with torch.no_grad():
            a, b = merged(x), folded(x)
    except (
        Exception
    ):  # the tracer meets what it cannot follow in many ways; the model then stays as its library builds it
        return merged
    return folded if torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max())) else merged


def quicker(calls: dict[str, Callable[[], object]]) -> Callable[[], object]:
    """The quicker of two calls, in a short race."""
    one, two = calls.values()
    a, b = race(one, two, seconds=0, rounds=3)
    return one if a <= b else two


def forwards(
    paper: str, what: str, peer: str, ours: nn.Module, theirs: nn.Module, x: Tensor, *, seconds: float, memory: bool = True,
    required: float = 1.0,
) -> Iterator[Row]:  # fmt: skip
    """Rows of two models' forward passes: in the same form, and the best of each in every precision of this processor."""

    def eager(model: nn.Module) -> Callable[[], object]:
        calls = {}
        for name in layouts(x):
            net, image = (v.to(memory_format=FORMATS[name]) for v in (copy.deepcopy(model), x))
            calls[name] = lambda net=net, image=image: net(image)
        return quicker(calls)

    def best(model: nn.Module) -> Callable[[], object]:
        return lambda: model(x)

    with torch.inference_mode():
        pairs = [(SAME, "fp32", eager(ours), eager(theirs))]
    with torch.no_grad():
        merged = fused(theirs, x)
        for precision in precisions():
            mine = offprint.deploy(ours, x, precision=precision, tolerance=1e-3)
            try:
                other = fastest(theirs, merged, (x,), precision, "fastest")
            except RuntimeError:  # a folded model with tensors that have no channels-last form
                other = fastest(theirs, theirs, (x,), precision, "fastest")
            pairs.append((BEST, precision, best(mine), best(other)))
    for form, precision, a, b in pairs:
        with torch.inference_mode():
            took = race(a, b, seconds)
            used = (peak_memory(a), peak_memory(b)) if memory else None
        yield Row(paper, f"{what}, {precision}", peer, *took, used, required * WANTED[form], form=form)


def training(
    paper: str, what: str, peer: str, steps: Callable[[nn.Module, Tensor], Callable[[], object]], ours: nn.Module,
    theirs: nn.Module, x: Tensor, *, seconds: float, memory: bool = True, required: float = 1.0,
) -> Row:  # fmt: skip
    """The row of two models' training steps, each in the memory format that is better for it; ``steps(model, x)`` makes one."""
    chosen = []
    for model in (ours, theirs):
        calls = {}
        for name in layouts(x):
            net, image = (v.to(memory_format=FORMATS[name]) for v in (copy.deepcopy(model).train(), x))
            calls[name] = steps(net, image)
        chosen.append(quicker(calls))
    took = race(*chosen, seconds, rounds=4)
    used = (peak_memory(chosen[0]), peak_memory(chosen[1])) if memory else None
    return Row(paper, what, peer, *took, used, required * WANTED[SAME], form=SAME)


def classifiers(
    paper: str,
    name: str,
    peer: str,
    theirs: nn.Module,
    *,
    size: int | tuple[int, int] = 224,
    batch: int = 4,
    seconds: float = 8.0,
    train_seconds: float = 12.0,
    tolerance: float = 1e-4,
    map_state: Callable[[dict], dict] = lambda state: state,
    forward: bool = True,
    train: bool = True,
    required: float = 1.0,
    memory: bool = True,
    **kwargs,
) -> Iterator[Row]:
    """Forward and training step of our model ``name`` and a peer's model of the same architecture.

    Our model is loaded from the peer's own weights and must give the peer's output first. Then like runs against like: see
    ``form`` of :class:`Row`.

    Args:
        theirs: the peer's model; its classifier's size sets ours.
        size, batch: of the images.
        map_state: changes the peer's state before our reader sees it.
        tolerance: largest difference of the outputs, relative to the largest.
        kwargs: for :func:`offprint.create_model`.
    """
    h, w = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    x = torch.randn(batch, 3, h, w)
    theirs = theirs.eval()
    with torch.no_grad():
        expected = theirs(x)
    classes = expected.shape[1]
    ours = offprint.create_model(name, num_classes=classes, **kwargs).eval()
    offprint.load_weights(ours, map_state(dict(theirs.state_dict())))
    with torch.no_grad():
        off = float((ours(x) - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not off <= tolerance:
        raise OffprintError(
            f"{name} and {peer} differ by {off:.1e} on the same weights; a benchmark of them says nothing"
        )
    shape = f"{batch} x {h}" + ("" if h == w else f"x{w}") + " px"
    if forward:
        what = f"{name} forward, {shape}"
        yield from forwards(paper, what, peer, ours, theirs, x, seconds=seconds, memory=memory, required=required)
    if train:
        y = torch.arange(batch) % classes
        what = f"{name} training step, {shape}"
        yield training(paper, what, peer, lambda net, image: _step(net, image, y), ours, theirs, x,
                       seconds=train_seconds, memory=memory, required=required)  # fmt: skip
