"""The anchor against timm, the same weights."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm

    name = "deit3_small_patch16_224"
    yield from classifiers("sn-net-v2", name, f"timm {name}", timm.create_model(name))
