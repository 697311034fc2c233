"""The loss over 10^5 classes a vertical at a time, against dense logits, dense targets and the library's loss: time and memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.compare import Row, peak_memory, race
from offprint.methods.training.knowledge_concentration import StructurallyConnectedHead, summed_sigmoid_loss


def rows(
    classes: int = 100_000, verticals: int = 20, width: int = 1024, batch: int = 64, seconds: float = 8.0
) -> Iterator[Row]:
    torch.manual_seed(0)
    head = StructurallyConnectedHead(width, [classes // verticals] * verticals, "fc512-sc128")
    x = torch.randn(batch, width, requires_grad=True)
    places = (
        torch.randint(classes // verticals, (batch, 100))
        + (torch.arange(batch) % verticals * (classes // verticals))[:, None]
    )
    values = torch.rand(batch, 100)

    def ours() -> None:
        head.zero_grad()
        head.loss(x, places, values)[0].backward()

    def plain() -> None:
        head.zero_grad()
        target = torch.zeros(batch, classes).scatter(1, places, values)
        summed_sigmoid_loss(head(x), target).backward()

    took = race(ours, plain, seconds)
    memory = (peak_memory(ours), peak_memory(plain))
    what = f"loss and gradients, {classes:,} classes, batch {batch}"
    yield Row(
        "knowledge-concentration",
        what,
        "dense logits and targets",
        *took,
        memory,
        0.0,
        "memory is what this form is for",
    )

    dense = torch.nn.Sequential(torch.nn.Linear(width, 512), torch.nn.ReLU(), torch.nn.Linear(512, verticals * 128), torch.nn.ReLU(),
                                torch.nn.Linear(verticals * 128, classes))  # fmt: skip
    with torch.inference_mode():
        took = race(lambda: head(x), lambda: F.relu(dense(x)), seconds)
    what = f"logits of {classes:,} classes, batch {batch}, layers per vertical"
    yield Row("knowledge-concentration", what, "one dense layer over the same units", *took)
