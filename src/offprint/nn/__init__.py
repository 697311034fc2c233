"""Building blocks that two or more models share."""

from offprint.nn.drop import DropPath, drop_path_rates
from offprint.nn.norm import LayerNorm2d
from offprint.nn.schedule import cosine_schedule

__all__ = ["DropPath", "LayerNorm2d", "cosine_schedule", "drop_path_rates"]
