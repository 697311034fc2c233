"""How fcaformer's backbone is made small; its records are whole models called as they are."""

SMALL = {
    "fcaformer_l2": {
        "img_size": 64, "dims": (16, 16, 32, 48), "depths": (1, 1, 3, 2), "num_heads": (2, 3), "layer_scale_init_value": 0.5,
    },
}  # fmt: skip
