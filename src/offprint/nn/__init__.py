"""Building blocks that two or more models share."""

from offprint.nn.depthwise import DepthwiseConv2d
from offprint.nn.drop import DropPath, drop_path_rates
from offprint.nn.masking import MaskedTokens
from offprint.nn.norm import LayerNorm2d
from offprint.nn.pointwise import Pointwise
from offprint.nn.schedule import cosine_schedule
from offprint.nn.squeeze_excite import SqueezeExcite
from offprint.nn.width import make_divisible

__all__ = [
    "DepthwiseConv2d",
    "DropPath",
    "LayerNorm2d",
    "MaskedTokens",
    "Pointwise",
    "SqueezeExcite",
    "cosine_schedule",
    "drop_path_rates",
    "make_divisible",
]
