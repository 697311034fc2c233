"""How hornet's necks are called, and how its backbone is made small."""

CALLS = {
    "custom: called with one list of the four maps, fine to coarse; gives the list of five maps": (
        lambda model, record, *maps: model(list(maps))
    ),
    "custom: called with one list of the four maps, fine to coarse; logits at stride 4": (
        lambda model, record, *maps: model(list(maps))
    ),
}
SMALL = {
    "hornet_tiny_gf": {
        "base_dim": 16, "depths": (1, 1, 2, 1), "orders": (1, 2, 3, 4), "kinds": ("7x7", "7x7", "gf", "gf"),
        "grids": ((16, 9), (8, 5), (4, 3), (2, 2)), "layer_scale_init_value": 0.5,
    },
}  # fmt: skip
