"""Swin UNETR against MONAI, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.compare import Row, forwards, training
from offprint.errors import OffprintError
from offprint.models.checkpoint import load_weights
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
    with torch.inference_mode():
        expected = theirs(x)
        off = float((ours(x) - expected).abs().max() / expected.abs().max())
    if off > 2e-4:
        raise OffprintError(f"Swin UNETR and MONAI's differ by {off:.1e}")
    peer, target = "MONAI SwinUNETR", torch.rand(1, 14, 64, 64, 64).round()
    yield from forwards("swin-unetr", "swin_unetr_small forward, 64^3", peer, ours, theirs, x, seconds=12)
    yield training("swin-unetr", "swin_unetr_small training step, 64^3", peer,
                   lambda net, volume: _step(net, volume, target), ours, theirs, x, seconds=16)  # fmt: skip
