r"""Scaling Up Your Kernels: Large Kernel Design in ConvNets towards Universal Representations (TPAMI 2025; arXiv 2410.08049), the
journal form of RepLKNet (CVPR 2022) and UniRepLKNet (CVPR 2024).

A few very large depth-wise kernels beat many small ones if the network around them is built for them, and two measurements say
why. Both take any image model.

*Effective receptive field.* With :math:`F` the last map before the final norm, the contribution of pixel :math:`p` is

.. math:: A_p = \frac1N \sum_n \sum_c \mathrm{ReLU}\Big(\frac{\partial}{\partial x^{(n)}_{cp}}
          \sum_k \mathrm{ReLU}\big(F^{(n)}_{k, \lfloor h/2 \rfloor, \lfloor w/2 \rfloor}\big)\Big),

and what counts is the area of the smallest centred square that holds more than a share :math:`t` of :math:`\log_{10}(A + 1)`. Maps are
averaged before the logarithm. The picture is of the weights, not of the architecture: a random network looks Gaussian whatever
its kernels, and which of two models sees further can turn with the size of the pictures (1024 pixels in the paper), so both
stand in the result.

*Shape bias.* On pictures with the shape of one category and the texture of another (Geirhos et al. 2019), the share of decisions
for the shape among the decisions for either. A decision is the category whose ImageNet classes have the largest mean
probability.

*Guidelines.* :func:`check_design` reads a network's convolutions and says which it keeps; :func:`ablate` trains one small network with
small and large kernels, without the small kernel beside them, and without the shortcut, on data of one's own. The models are
RepLKNet (:mod:`offprint.models.backbones.replknet`) and UniRepLKNet (:mod:`offprint.models.backbones.unireplknet`).
"""

from __future__ import annotations

from offprint.methods.understanding._kernel_ablation import ABLATION, ablate
from offprint.methods.understanding._kernel_guidelines import GUIDELINES, Design, Finding, check_design
from offprint.methods.understanding._receptive_field import (
    THRESHOLDS,
    Area,
    ReceptiveField,
    comparable,
    contributions,
    effective_receptive_field,
    erf_area_ratio,
)
from offprint.methods.understanding._shape_bias import (
    SIXTEEN,
    Decisions,
    ShapeBias,
    categories_of,
    decide,
    shape_bias,
    shape_of,
    sixteen_class_decision,
    texture_of,
)
from offprint.models.backbones.replknet import ReparamLargeKernel, RepLKBlock

__all__ = [
    "ABLATION",
    "Area",
    "Decisions",
    "Design",
    "Finding",
    "GUIDELINES",
    "ReceptiveField",
    "RepLKBlock",
    "ReparamLargeKernel",
    "SIXTEEN",
    "ShapeBias",
    "THRESHOLDS",
    "ablate",
    "categories_of",
    "check_design",
    "comparable",
    "contributions",
    "decide",
    "effective_receptive_field",
    "erf_area_ratio",
    "shape_bias",
    "shape_of",
    "sixteen_class_decision",
    "texture_of",
]
