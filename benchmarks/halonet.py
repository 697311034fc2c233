"""HaloNet against timm, the same weights: the hybrid that timm trained, and the paper's H1."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def rows() -> Iterator[Row]:
    import timm

    for name, batch in (("halonet26t", 4), ("halonet_h1", 2)):
        theirs = timm.create_model(name)
        yield from classifiers("halonet", name, f"timm {name}", theirs, size=256, batch=batch)
