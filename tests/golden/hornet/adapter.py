"""How hornet's necks are called, and how its backbone is made small."""

CALLS = {
    "custom: called with one list of the four maps, fine to coarse; gives the list of five maps": (
        lambda model, record, *maps: model(list(maps))
    ),
    "custom: called with one list of the four maps, fine to coarse; logits at stride 4": (
        lambda model, record, *maps: model(list(maps))
    ),
}
_PYRAMID = {
    "(stride 4 to 32)": "the sizes of the inputs",
    "a max pool with kernel 1 and stride 2": "the rule of the model",
}
WORDS = {
    "horfpn_7x7": _PYRAMID,
    "horfpn_gf": {**_PYRAMID, "filters are 32x17": "the sizes in the state"},
    "horfpn_7x7_upernet_head": {"logits at stride 4": "the size of the output", "(eps 1e-5)": "the model's"},
}
SMALL = {
    "hornet_tiny_gf": {
        "base_dim": 16, "depths": (1, 1, 2, 1), "orders": (1, 2, 3, 4), "kinds": ("7x7", "7x7", "gf", "gf"),
        "grids": ((16, 9), (8, 5), (4, 3), (2, 2)), "layer_scale_init_value": 0.5,
    },
}  # fmt: skip
