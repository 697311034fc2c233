"""Inception-v4 and Inception-ResNet-v2 against timm, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm

    for name in ("inception_v4", "inception_resnet_v2"):
        theirs = timm.create_model(name, drop_rate=0.0)
        yield from classifiers("inception-v4", name, f"timm {name}", theirs, size=299, batch=2)
