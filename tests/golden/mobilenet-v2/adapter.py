"""How mobilenet-v2's records are computed through the public interface."""

CALLS = {
    "custom: raw class scores and raw box codes of all anchors, before sigmoid, decoding and NMS; the input goes in as it is": (
        lambda model, record, x: model(x)
    )
}
WORDS = {
    "ssdlite_mobilenetv2": {
        "features.14": "a name",
        "features.18": "a name",
        "(1x1, BN": "the rule of the model",
        "four extra blocks of 512, 256, 256, 128": "the model's widths",
        "Anchors per cell 3,6,6,6,6,6; 91 scores": "the model's anchors; the classes are in the arguments",
        "(1, anchors, 91) and raw box codes (1, anchors, 4)": "the sizes of the outputs",
        "have eps 1e-3": "the model's",
    }
}
SMALL = {
    "mobilenetv2_100": {
        "width": 0.35,
        "settings": ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2), (6, 64, 2, 2), (6, 96, 1, 2)),
    }
}
