"""How halonet's backbone is made small."""

SMALL = {
    "halonet_h1": {
        "blocks": ("a", "ca", "a", "a"), "mids": (16, 16, 32, 32), "widths": (16, 24, 32, 40), "block_size": 4,
        "halo_size": 1, "num_heads": 4, "value_ratio": 1.5, "stem_width": 16, "final_width": 48,
    },
}  # fmt: skip
