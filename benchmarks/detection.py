"""RetinaNet, Mask R-CNN and SSDLite: finding objects, and a training step, against torchvision's own over the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import offprint
from benchmarks.compare import Row, race, training
from offprint.models.compose import Detector
from offprint.models.detection.ssdlite import MAPS, SCALES

CLASSES, SIDE, BATCH = 20, 320, 2
_SAME = {
    "min_size": SIDE,
    "max_size": SIDE,
    "image_mean": [0.0] * 3,
    "image_std": [1.0] * 3,
}  # pictures as they are given


def _resnet(first: int, extra: nn.Module | None = None) -> BackboneWithFPN:
    layers = {f"layer{i}": str(i - first) for i in range(first, 5)}
    channels = [64 * 2 ** (i - 1) for i in range(first, 5)]
    return BackboneWithFPN(torchvision.models.resnet18(), layers, channels, 256, extra)


def _retinanet() -> tuple[Detector, nn.Module]:
    scales = tuple(tuple(int(s * 4 * 2 ** (i / 3)) for i in range(3)) for s in (8, 16, 32, 64, 128))
    theirs = RetinaNet(
        _resnet(2, LastLevelP6P7(512, 256)), CLASSES, anchor_generator=AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 5),
        **_SAME,
    )  # fmt: skip
    ours = offprint.create_model("resnet18_ibn_a+fpn+retinanet", num_classes=CLASSES, kind="")
    return ours, theirs


def _mask_rcnn() -> tuple[Detector, nn.Module]:
    ours = offprint.create_model(
        "resnet18_ibn_a+fpn+mask_rcnn", num_classes=CLASSES, kind="", neck={"name": "fpn", "finest": 4}
    )
    return ours, MaskRCNN(_resnet(1), CLASSES + 1, **_SAME)


class _Six(nn.Module):
    """The six maps of our detector, as torchvision's SSD takes a backbone."""

    def __init__(self, ours: Detector):
        super().__init__()
        self.body, self.extra = ours.backbone, ours.head.extra

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = list(self.body(x))[-2:]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return {str(i): m for i, m in enumerate(maps)}


def _ssdlite() -> tuple[Detector, nn.Module]:
    """The same backbone, extra blocks and number of anchors; torchvision's predictors, loss and filtering."""
    import copy
    from functools import partial

    ours = offprint.create_model("ssdlite_mobilenetv2", num_classes=CLASSES + 1)
    body = _Six(copy.deepcopy(ours))
    ratios = [[2] if level == 0 else [2, 3] for level in range(MAPS)]
    boxes = DefaultBoxGenerator(ratios, scales=list(SCALES))
    widths = [m.shape[1] for m in body.eval()(torch.zeros(1, 3, SIDE, SIDE)).values()]

    norm = partial(nn.BatchNorm2d, eps=1e-3)
    head = SSDLiteHead(widths, boxes.num_anchors_per_location(), CLASSES + 1, norm)
    return ours, SSD(body, boxes, (SIDE, SIDE), CLASSES + 1, head=head, image_mean=[0.0] * 3, image_std=[1.0] * 3)


def _targets() -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(BATCH):
        corner = torch.rand(8, 2, generator=draw) * 0.6 * SIDE
        boxes = torch.cat([corner, corner + 20 + torch.rand(8, 2, generator=draw) * 0.3 * SIDE], 1)
        masks = torch.zeros(8, SIDE, SIDE, dtype=torch.uint8)
        for m, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            m[y1:y2, x1:x2] = 1
        labels = torch.randint(1, CLASSES, (8,), generator=draw)
        found.append({"boxes": boxes, "labels": labels, "masks": masks})
    return found


def _step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer, targets = torch.optim.SGD(model.parameters(), lr=1e-5), _targets()

    def run():
        optimizer.zero_grad()
        terms = model.losses(x, targets) if isinstance(model, Detector) else model(list(x), targets)
        sum(terms.values()).backward()
        optimizer.step()

    return run


def rows(seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    x = torch.rand(BATCH, 3, SIDE, SIDE)
    for name, paper, make in (
        ("RetinaNet", "rcnet", _retinanet),
        ("Mask R-CNN", "catnet", _mask_rcnn),
        ("SSDLite", "mobilenet-v2", _ssdlite),
    ):
        ours, theirs = (m.eval() for m in make())
        peer = f"torchvision's {name} over the same backbone"
        with torch.inference_mode():
            took = race(lambda o=ours: o.detect(x), lambda t=theirs: t(list(x)), seconds)
        yield Row(paper, f"{name}, objects of {BATCH} x {SIDE} px", peer, *took)
        what = f"{name} training step, {BATCH} x {SIDE} px"
        yield training(paper, what, peer, _step, ours, theirs, x, seconds=seconds, memory=False)
