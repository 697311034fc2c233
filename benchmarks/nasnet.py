"""NASNet-A large against timm, the same weights.

timm's four strided average poolings count the padding, the authors' do not; the peer's are exchanged for ones that do not either.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.compare import Row, classifiers


def corrected():
    """timm's network with SAME averages that leave the padding out, for images of 331 pixels (maps of 165, 83, 42 and 21)."""
    import timm
    from torch import nn

    model = timm.create_model("nasnetalarge", drop_rate=0.0)
    for cell in (model.cell_stem_0, model.cell_stem_1, model.reduction_cell_1):
        cell.comb_iter_2_left = nn.AvgPool2d(3, 2, 1, count_include_pad=False)
    model.reduction_cell_0.comb_iter_2_left = nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False)
    return model


def rows() -> Iterator[Row]:
    yield from classifiers("nasnet", "nasnet_a_large", "timm nasnetalarge", corrected(), size=331, batch=1)
