"""How catnet's parts and its detector are called."""

import re
from collections import OrderedDict

import torch
from reading import precision


def _regions(record):
    """The boxes of the notes, of one image: [batch, x1, y1, x2, y2] each."""
    rows = re.search(r"used: \[(\[.*?\])\]", record["notes"])[1]
    rows = [[float(n) for n in row.split(",")] for row in re.findall(r"\[([^\]]*)\]", rows)]
    images = max(int(row[0]) for row in rows) + 1
    return [torch.tensor([r[1:] for r in rows if r[0] == i], dtype=precision(record)) for i in range(images)]


def _named(maps):
    return OrderedDict((str(i), m) for i, m in enumerate(maps))


def _raw(model, record, x):
    maps = model.pyramid(x)
    objectness, codes = model.head(maps)
    heads, shape, boxes = model.head.roi_heads, [tuple(x.shape[-2:])] * len(x), _regions(record)
    scores, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(_named(maps), boxes, shape)))
    masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(_named(maps), boxes, shape)))
    # the reference has the background last among the scores, and neither boxes nor masks of it
    scores = torch.cat([scores[:, 1:], scores[:, :1]], 1)
    return {
        "neck": maps,
        "rpn_cls": objectness,
        "rpn_reg": codes,
        "cls": scores,
        "reg": deltas[:, 4:],
        "mask": masks[:, 1:],
    }


CALLS = {
    "custom: called with one list of the four maps, fine to coarse; gives the list of five maps": (
        lambda model, record, *maps: model(list(maps))
    ),
    "custom: called with one list of the two maps; gives the list of two maps": (
        lambda model, record, *maps: model(list(maps))
    ),
    "custom: the extractor of the names under box. (direction bottom_up, 7x7) on the four maps and the notes' RoIs": (
        lambda model, record, *maps: model.box(_named(maps), _regions(record))
    ),
    "custom: the extractor of the names under mask. (direction top_down, 14x14) on the same": (
        lambda model, record, *maps: model.mask(_named(maps), _regions(record))
    ),
    "custom: raw outputs for the notes' RoIs (no decoding, no NMS): the five neck maps, the RPN's five class maps and "
    "five box maps, then class scores, box deltas and mask logits of the RoIs": _raw,
}
WORDS = {
    "cat_mask_rcnn_r50": {
        "outputs in order: 5 neck levels, 5 rpn_cls, 5 rpn_reg": "the number of the outputs",
        "sampling_ratio 0 (adaptive)": "the extractors' own, not an option",
    },
    "dense_fpn": {"four maps of a 96x160 image": "the sizes of the inputs"},
    "hroie": {"four levels (strides 4, 8, 16, 32)": "the argument strides"},
}
