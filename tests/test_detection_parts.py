"""Backbones, necks and heads of detectors in combination: contract, losses, detections, torchvision's own detectors."""

import copy
import inspect

import pytest
import torch
import torchvision
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops import box_iou, sigmoid_focal_loss

import offprint
from offprint.errors import DataError, OffprintError
from offprint.models.backbones.ibn_net import ResNet
from offprint.models.detection import contract
from offprint.models.detection.one_stage import GFLHead, RetinaHead, atss, focal_loss, giou
from offprint.models.parts import Maps, maps_of, part, parts
from offprint.tasks.detection import _counts_background

CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
RESNET = {"block": "basic", "depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}
HEADS = parts("head", task="detection")
NECKS = [n for n in parts("neck") if n != "message_passing"]  # that one leaves maps as wide as they came
TABLE = [
    *(("resnet18_ibn_a", RESNET, "fpn", head) for head in HEADS),
    *(("convnext_tiny", CONVNEXT, neck, "retinanet") for neck in NECKS if neck != "fpn"),
    ("convnext_tiny", CONVNEXT, "rcfpn", "faster_rcnn"),
    ("resnet18_ibn_a", RESNET, None, "ssdlite"),
]


def build(backbone, options, neck, head, classes=2):
    name = "+".join(filter(None, (backbone, neck, head)))
    chosen = contract.neck_options(name)
    if neck:
        chosen.setdefault("neck", {"name": neck})["out_channels"] = 16
        if "deformable" in inspect.signature(getattr(part(neck).build, "__self__", part(neck).build)).parameters:
            chosen["neck"]["deformable"] = False
    heads = {"name": head} | ({"hidden": 16, "proposals": (60, 60, 20, 20), "regions": 16} if "rcnn" in head else {})
    heads |= {"mask_width": 8} if "mask" in head else {}
    return offprint.create_model(name, num_classes=classes + _counts_background(name), **options, **chosen, head=heads)


def scene():
    torch.manual_seed(0)
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 4:60, 4:60], masks[1, 20:90, 60:120] = 1, 1
    full = {
        "boxes": torch.tensor([[4.0, 4, 60, 60], [60, 20, 120, 90]]),
        "labels": torch.tensor([1, 2]),
        "masks": masks,
    }
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]}
    return torch.randn(2, 3, 96, 128), [full, empty]


@pytest.mark.parametrize("row", TABLE, ids=lambda r: "+".join(filter(None, (r[0], *r[2:]))))
def test_a_combination_trains(row):
    images, targets = scene()
    model = build(*row)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for step in range(6):
        torch.manual_seed(7)  # of the regions that are drawn
        terms = model.losses(images, targets)
        loss = sum(terms.values())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            still = [n for n, p in model.named_parameters() if p.grad is None and n.startswith("head.")]
            assert still == []
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    found = model.eval().detect(images, score_threshold=0.01, limit=5)
    assert len(found) == 2
    for f in found:
        assert len(f["boxes"]) == len(f["scores"]) == len(f["labels"]) <= 5
        assert (f["scores"].diff() <= 0).all() and ((f["labels"] >= 1) & (f["labels"] <= 2)).all()
        assert (f["boxes"] >= 0).all() and (f["boxes"][:, 2] <= 128).all() and (f["boxes"][:, 3] <= 96).all()
        if getattr(model.head, "masks", False):
            assert f["masks"].shape == (len(f["boxes"]), 28, 28)
            assert contract.paste(f["masks"], f["boxes"], (96, 128)).shape == (len(f["boxes"]), 96, 128)


def test_the_kinds_of_the_issue_are_there():
    assert {"retinanet", "atss", "gfl", "faster_rcnn", "mask_rcnn", "ssdlite"} <= set(HEADS)
    assert {"fpn", "rcfpn", "hor_fpn"} <= set(NECKS)


def test_parts_drop_into_torchvision_detectors():
    images, targets = scene()
    backbone = ResNet(num_classes=0, kind="", **RESNET).as_features((1, 2, 3, 4))
    for make, neck in ((FasterRCNN, "fpn"), (RetinaNet, "rcfpn")):
        options = {"finest": 4, "extra": "pool"} if neck == "fpn" else {}
        body = contract.Pyramid(copy.deepcopy(backbone), part(neck)(maps_of(backbone), out_channels=16, **options))
        more = {}
        if make is RetinaNet:
            from torchvision.models.detection.anchor_utils import AnchorGenerator

            more = {"anchor_generator": AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((1.0,),) * 5)}
        detector = make(body, num_classes=3, min_size=96, max_size=128, **more)
        losses = detector(list(images), targets)
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values())
        assert len(detector.eval()(list(images))) == 2
    with pytest.raises(OffprintError, match="add a neck"):
        contract.Pyramid(backbone)


def test_torchvision_weights_of_mask_rcnn_and_its_outputs(tmp_path):
    """torchvision's own detector and ours agree on the same weights."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    torch.manual_seed(0)
    raw = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    layers = {f"layer{i}": str(i - 1) for i in range(1, 5)}
    theirs = MaskRCNN(
        BackboneWithFPN(raw, layers, [64, 128, 256, 512], 16), num_classes=4, box_score_thresh=0.0,
        min_size=128, max_size=128, image_mean=[0, 0, 0], image_std=[1, 1, 1],
    ).eval()  # fmt: skip
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    ours = offprint.create_model(
        "resnet18_ibn_a+fpn+mask_rcnn", num_classes=3, kind="", checkpoint_path=str(file), depths=(1, 1, 1, 1),
        neck={"name": "fpn", "finest": 4, "out_channels": 16},
    ).eval()  # fmt: skip
    theirs.rpn.anchor_generator = ours.head.rpn.anchor_generator  # torchvision's are rounded to whole pixels
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        maps = theirs.backbone(image)
        for a, b in zip(maps.values(), ours.pyramid(image), strict=True):
            torch.testing.assert_close(a, b)
        (expected,), (got,) = theirs(list(image)), ours.detect(image, score_threshold=0.0)
    assert len(got["boxes"]) == len(expected["boxes"]) > 0
    torch.testing.assert_close(got["scores"], expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(got["boxes"], expected["boxes"], atol=1e-2, rtol=0)
    pasted = contract.paste(got["masks"], got["boxes"], (128, 128))
    assert (pasted == (expected["masks"][:, 0] >= 0.5)).float().mean() > 0.999


def test_focal_loss_is_torchvisions():
    torch.manual_seed(0)
    logits = torch.randn(50, 4, dtype=torch.float64)
    rows, classes, skip = torch.tensor([3, 7, 20]), torch.tensor([0, 3, 1]), torch.tensor([5, 6])
    target = torch.zeros_like(logits)
    target[rows, classes] = 1
    each = sigmoid_focal_loss(logits, target)
    each[skip] = 0
    torch.testing.assert_close(focal_loss(logits, rows, classes, skip), each.sum())


def test_giou_is_torchvisions():
    from torchvision.ops import generalized_box_iou

    a = torch.tensor([[0.0, 0, 10, 10], [5, 5, 8, 20], [0, 0, 1, 1]])
    b = torch.tensor([[2.0, 2, 9, 14], [5, 5, 8, 20], [50, 50, 60, 60]])
    torch.testing.assert_close(giou(a, b), generalized_box_iou(a, b).diag())


def test_atss_object_by_object():
    """Against the rule as it is written, one object and one level after the other."""
    torch.manual_seed(0)
    levels = contract.anchors(((12, 16), (6, 8), (3, 4)), (8, 16, 32), (8.0,), (1.0,), torch.device("cpu"))
    corner = torch.rand(6, 2) * 60
    boxes = torch.cat([corner, corner + 12 + torch.rand(6, 2) * 50], 1)
    base, overlap = torch.cat(levels), None
    overlap = box_iou(base, boxes)
    best = torch.full((len(base),), -1.0)
    owner = torch.full((len(base),), -1)
    for j, box in enumerate(boxes):
        near, start = [], 0
        for level in levels:
            middle = (level[:, :2] + level[:, 2:]) / 2 - (box[:2] + box[2:]) / 2
            near += (middle.norm(dim=1).argsort()[:9] + start).tolist()
            start += len(level)
        of = overlap[near, j]
        bound = of.mean() + of.std()
        for i in near:
            x, y = (base[i, :2] + base[i, 2:]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap[i, j] >= bound and inside and overlap[i, j] > best[i]:
                best[i], owner[i] = overlap[i, j], j
    assert (owner >= 0).sum() > 5
    assert torch.equal(atss(boxes, levels), owner)


def test_gfl_reads_distances_from_distributions():
    head = GFLHead(Maps((16,), (8,)), 2)
    codes = torch.full((1, 68), -50.0)
    for side, distance in enumerate((2, 3, 4, 5)):
        codes[0, side * 17 + distance] = 50.0
    box = head.decode(codes, torch.tensor([[68.0, 68, 132, 132]]), 8)
    torch.testing.assert_close(box, torch.tensor([[100.0 - 16, 100 - 24, 100 + 32, 100 + 40]]))


def test_two_stage_levels_are_asked_of_the_neck():
    model = build("resnet18_ibn_a", RESNET, "rcfpn", "faster_rcnn")
    assert model.neck.maps.reductions == (4, 8, 16, 32, 64)
    assert build("resnet18_ibn_a", RESNET, "rcfpn", "retinanet").neck.maps.reductions == (8, 16, 32, 64, 128)
    assert contract.neck_options("resnet18_ibn_a+hor_fpn+retinanet") == {}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"labels": torch.tensor([0, 1])}, "labels 0 to 1; expected 1 to 2"),
        ({"labels": torch.tensor([1])}, "expected \\(N, 4\\) and \\(N,\\)"),
        ({"boxes": torch.tensor([[4.0, 4, 4, 60], [60, 20, 120, 90]])}, "a box without area"),
        ({"masks": torch.zeros(1, 96, 128)}, "expected \\(2, H, W\\)"),
    ],
)
def test_targets_that_cannot_be_are_refused(change, words):
    _, targets = scene()
    with pytest.raises(DataError, match=words):
        contract.check_targets([{**targets[0], **change}], 1, 2, masks=True)
    with pytest.raises(DataError, match="one per image"):
        contract.check_targets(targets, 3, 2)


def test_heads_say_what_they_need():
    with pytest.raises(OffprintError, match="add a neck"):
        RetinaHead(Maps((8, 16), (8, 16)), 2)
    with pytest.raises(OffprintError, match="at least 1"):
        RetinaHead(Maps((8, 8), (8, 16)), 0)
    with pytest.raises(OffprintError, match="built for 2 maps, and got 1"):
        RetinaHead(Maps((8, 8), (8, 16)), 2)([torch.zeros(1, 8, 4, 4)])


def test_torchvision_weights_of_retinanet_and_its_outputs(tmp_path):
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    torch.manual_seed(0)
    raw = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    layers = {f"layer{i}": str(i - 2) for i in range(2, 5)}
    body = BackboneWithFPN(raw, layers, [128, 256, 512], 16, LastLevelP6P7(512, 16))
    scales = tuple(tuple(s * 4 * 2 ** (i / 3) for i in range(3)) for s in (8, 16, 32, 64, 128))
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    theirs = RetinaNet(body, 3, anchor_generator=AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 5)).eval()
    file = tmp_path / "theirs.pth"
    torch.save(theirs.state_dict(), file)
    ours = offprint.create_model(
        "resnet18_ibn_a+fpn+retinanet", num_classes=3, kind="", checkpoint_path=str(file), depths=(1, 1, 1, 1),
        neck={"name": "fpn", "out_channels": 16},
    ).eval()  # fmt: skip
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        expected = theirs.head(list(theirs.backbone(image).values()))
        scores, codes = ours(image)
    rows = [torch.cat([ours.head.rows(m, w) for m in maps], 1) for maps, w in ((scores, 3), (codes, 4))]
    torch.testing.assert_close(rows[0], expected["cls_logits"])
    torch.testing.assert_close(rows[1], expected["bbox_regression"])
