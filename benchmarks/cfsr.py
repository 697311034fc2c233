"""What merging is worth: CFSR deployed against its own training form, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.compare import Row, peak_memory, race
from offprint.models.deploy import deploy
from offprint.models.factory import create_model


def rows() -> Iterator[Row]:
    torch.manual_seed(0)
    model = create_model("cfsr_x2").eval()
    x = torch.rand(1, 3, 180, 320)
    merged = deploy(model, x).to(memory_format=torch.channels_last)
    y = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        a, b = race(lambda: merged(y), lambda: model(x), seconds=10)
        used = peak_memory(lambda: merged(y)), peak_memory(lambda: model(x))
    yield Row("cfsr", "cfsr_x2 forward, 180x320 px", "the multi-branch training form", a, b, used)
