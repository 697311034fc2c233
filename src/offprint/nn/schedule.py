"""Learning-rate schedules given as one number per step."""

from __future__ import annotations

import math


def cosine_schedule(base: float, final: float, total: int, warmup: int = 0, start: float = 0.0) -> list[float]:
    """Linear warm-up from ``start`` to ``base`` over ``warmup`` steps (both ends included), then a cosine to ``final``.

    Args:
        base, final, start: learning rates.
        total: all steps, warm-up included.
        warmup: warm-up steps.

    Returns:
        ``total`` learning rates.
    """
    rise = [start + (base - start) * i / max(1, warmup - 1) for i in range(warmup)]
    rest = total - warmup
    fall = [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return (rise + fall)[:total]
