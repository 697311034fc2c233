"""Swin UNETR against MONAI, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.compare import Row, peak_memory, race
from offprint.errors import OffprintError
from offprint.models.checkpoint import load_weights
from offprint.models.deploy import deploy
from offprint.models.factory import create_model


def _step(model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run():
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(x), y).backward()
        optimizer.step()

    return run


def rows() -> Iterator[Row]:
    from monai.networks.nets import SwinUNETR

    torch.manual_seed(0)
    theirs = SwinUNETR(in_channels=1, out_channels=14, feature_size=24).eval()
    ours = create_model("swin_unetr_small", in_chans=1, num_classes=14, downsample="fixed").eval()
    load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 1, 64, 64, 64)
    fast = deploy(ours, x).to(memory_format=torch.channels_last_3d)
    y = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        off = float((fast(y) - theirs(x)).abs().max() / theirs(x).abs().max())
        if off > 2e-4:
            raise OffprintError(f"Swin UNETR and MONAI's differ by {off:.1e}")
        a, b = race(lambda: fast(y), lambda: theirs(x), seconds=12)
        used = peak_memory(lambda: fast(y)), peak_memory(lambda: theirs(x))
    yield Row("swin-unetr", "swin_unetr_small forward, 64^3", "MONAI SwinUNETR", a, b, used)
    target = torch.rand(1, 14, 64, 64, 64).round()
    mine = _step(ours.train().to(memory_format=torch.channels_last_3d), y, target)
    other = _step(theirs.train(), x, target)
    a, b = race(mine, other, seconds=16, rounds=3)
    yield Row(
        "swin-unetr",
        "swin_unetr_small training step, 64^3",
        "MONAI SwinUNETR",
        a,
        b,
        (peak_memory(mine), peak_memory(other)),
    )
