"""How metamixer's backbones are made small."""

SMALL = {
    "ffnet_2": {"depths": (1, 1, 2, 1), "dims": (16, 32, 64, 64), "stem_width": 16},
}
