"""SwinV2 against timm and torchvision, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from benchmarks.compare import Row, classifiers


def _awake(model: nn.Module) -> nn.Module:
    """Norms at one: fresh blocks are the identity, and equal outputs of two such networks would say nothing."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    return model


def rows() -> Iterator[Row]:
    import timm
    import torchvision

    peers = {
        "timm swinv2_tiny_window8_256": timm.create_model("swinv2_tiny_window8_256"),
        "torchvision swin_v2_t": torchvision.models.swin_v2_t(),
    }
    for peer, theirs in peers.items():
        yield from classifiers("swin-v2", "swinv2_tiny", peer, _awake(theirs), size=256)
