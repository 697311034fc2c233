"""GhostNetV2 against timm, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm

    name = "ghostnetv2_100"
    yield from classifiers("ghostnet-v2", name, f"timm {name}", timm.create_model(name))
