"""How ibn-net's networks are made small."""

SMALL = {
    "resnet50_ibn_a": {"depths": (1, 1, 1, 1), "widths": (8, 16, 16, 24), "se": True},
    "densenet121_ibn_a": {"depths": (2, 2, 2, 2), "growth": 8},
}
