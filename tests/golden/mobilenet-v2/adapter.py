"""How mobilenet-v2's records are computed through the public interface."""

CALLS = {"ssdlite_mobilenetv2": lambda model, record, x: model(x)}  # the plain call gives raw scores and box codes
SMALL = {
    "mobilenetv2_100": {
        "width": 0.35,
        "settings": ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2), (6, 64, 2, 2), (6, 96, 1, 2)),
    }
}
