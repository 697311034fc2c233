"""MobileNetV2 against timm and torchvision, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm
    import torchvision

    name = "mobilenetv2_100"
    yield from classifiers("mobilenet-v2", name, f"timm {name}", timm.create_model(name))
    # no dropout in the comparison: timm and we build without, torchvision with 0.2
    yield from classifiers(
        "mobilenet-v2", name, "torchvision mobilenet_v2", torchvision.models.mobilenet_v2(dropout=0.0)
    )
