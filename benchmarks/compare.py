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
from offprint.models.info import peak_memory


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

    Our model is loaded from the peer's own weights and must give the peer's output first. Both then run as a user would run
    them on this machine: ours deployed (``offprint.deploy``) for the forward and in channels-last memory, the peer's in eager
    mode as its library builds it.

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
    fast = x.contiguous(memory_format=torch.channels_last)
    if forward:
        merged = offprint.deploy(ours, x).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            a, b = race(lambda: merged(fast), lambda: theirs(x), seconds)
            used = (peak_memory(lambda: merged(fast)), peak_memory(lambda: theirs(x))) if memory else None
        yield Row(paper, f"{name} forward, {shape}", peer, a, b, used, required)
    if train:
        y = torch.arange(batch) % classes
        mine = copy.deepcopy(ours).train().to(memory_format=torch.channels_last)
        a_step, b_step = _step(mine, fast, y), _step(theirs.train(), x, y)
        a, b = race(a_step, b_step, train_seconds, rounds=4)
        used = (peak_memory(a_step), peak_memory(b_step)) if memory else None
        yield Row(paper, f"{name} training step, {shape}", peer, a, b, used, required)
