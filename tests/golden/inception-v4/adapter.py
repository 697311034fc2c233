"""How inception-v4's networks are made small: few blocks, and padded throughout so that small images fit."""

SMALL = {
    "inception_v4": {"depths": (1, 1, 1), "align_feature_maps": True},
    "inception_resnet_v2": {"depths": (1, 1, 1), "align_feature_maps": True},
}
