"""How ghostnet-v2's backbone is made small."""

SMALL = {
    "ghostnetv2_100": {
        "width": 0.5,
        "layout": (((3, 16, 16, False, 1),), ((3, 48, 24, False, 2),), ((5, 72, 40, True, 2), (5, 120, 40, True, 1)),
                   ((3, 240, 80, False, 2),), ((5, 480, 96, True, 2), (3, 480, 96, False, 1))),
    },
}  # fmt: skip
