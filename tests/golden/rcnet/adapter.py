"""How rcnet's neck and its detectors are called."""


def _raw(model, record, x):
    maps = model.pyramid(x)
    scores, boxes = model.head(maps, x.shape[-2:])
    return {"neck": maps, "cls": scores, "reg": boxes}


CALLS = {
    "custom: called with one list of the four maps, fine to coarse; gives the list of five maps": (
        lambda model, record, *maps: model(list(maps))
    ),
    "custom: raw outputs (no decoding, no NMS): five neck maps, five class maps, five box maps": _raw,
}
_MAPS = "the sizes of the inputs"
WORDS = {
    "rcfpn_bn": {"136x200 image": _MAPS},
    "retinanet_r50_rcfpn": {
        "5 neck maps, 5 class maps (9*80), 5 box maps (9*4)": "the number and the sizes of the outputs",
    },
}
