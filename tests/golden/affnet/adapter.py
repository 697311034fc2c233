"""How affnet's backbone is made small."""

SMALL = {"affnet_et": {"dims": (8, 16, 16, 24, 24), "depths": (1, 1, 1, 1, 2)}}
