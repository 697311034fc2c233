"""ConvNeXt against timm and torchvision, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm
    import torchvision

    yield from classifiers("convnext", "convnext_tiny", "timm convnext_tiny", timm.create_model("convnext_tiny"))
    yield from classifiers("convnext", "convnext_tiny", "torchvision convnext_tiny", torchvision.models.convnext_tiny())
