"""Swin against timm and torchvision, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm
    import torchvision

    peers = {
        "timm swin_tiny_patch4_window7_224": timm.create_model("swin_tiny_patch4_window7_224"),
        "torchvision swin_t": torchvision.models.swin_t(),
    }
    for peer, theirs in peers.items():
        yield from classifiers("swin", "swin_tiny", peer, theirs)
