"""What is CATNet's own: the dense sums, context that starts as the identity, regions from all levels, soft-NMS, masks in slices, weights."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.ops import nms, roi_align

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.ibn_net import ResNet
from offprint.models.checkpoint import load_weights
from offprint.models.compose import Detector
from offprint.models.detection import catnet
from offprint.models.detection.catnet import (
    SCP,
    DenseFPN,
    HRoIE,
    HRoIEHead,
    RoIExtractor,
    SoftRetinaHead,
    WithContext,
    cropped,
    shrunk,
    soft_nms,
)
from offprint.models.detection.contract import Pyramid
from offprint.models.detection.fpn import FPN
from offprint.models.parts import Maps, maps_of, part
from offprint.models.registry import entry

MAPS = Maps((8, 16, 16, 24), (4, 8, 16, 32))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pyramid(height=72, width=104, batch=2, maps=MAPS):
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s))
        for c, s in zip(maps.channels, maps.reductions, strict=True)
    ]


def named(maps):
    return OrderedDict((str(i), m) for i, m in enumerate(maps))


class Half(nn.Module):
    """Stands for a bottleneck; keeps what came in."""

    def forward(self, x):
        self.seen = x
        return x / 2


def test_dense_sums_as_they_are_written():
    """Down go the stage's inputs of all coarser levels, up what the finer ones have become; weights are shared and softmaxed."""
    neck = DenseFPN(MAPS.channels, 8, 5, 0, stack_times=2).eval()
    for weights in (*neck.top_down_atts, *neck.bottom_up_atts):
        nn.init.normal_(weights)
    for stage in neck.stages:
        for i in range(len(stage)):
            stage[i] = Half()
    maps = pyramid()
    level = [conv(x) for conv, x in zip(neck.lateral_convs, maps, strict=True)]
    level.append(neck.extra_convs[0](level[-1]))
    n = 5
    for _ in range(2):
        down = []
        for i in range(n):
            total = level[i]
            for j in range(n - i - 1):
                share = neck.top_down_atts[i].softmax(0)[j] if n - i - 1 > 1 else 1
                total = total + share * F.interpolate(level[n - 1 - j], level[i].shape[-2:], mode="bilinear")
            down.append(F.relu(total) / 2)
        up = []
        for i in range(n):
            total = level[i] + down[i]
            for j in range(i):
                share = neck.bottom_up_atts[i - 2].softmax(0)[j] if i > 1 else 1
                total = total + share * F.adaptive_max_pool2d(down[j], level[i].shape[-2:])
            up.append(F.relu(total) / 2)
        level = up
    for got, expected in zip(neck(maps), level, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(32, 48), (27, 41), (8, 5)])
def test_pooling_again_gives_the_same_maxima(size):
    x = torch.randn(2, 3, *size)
    sizes = [(-(-size[0] // s), -(-size[1] // s)) for s in (2, 4, 8, 16)]
    for got, wanted in zip(shrunk(x, sizes), sizes, strict=True):
        assert torch.equal(got, F.adaptive_max_pool2d(x, wanted))


def test_levels_of_both_forms_and_counts():
    two, one = (
        DenseFPN.on(MAPS, finest=4, out_channels=8, stack_times=1),
        DenseFPN.on(MAPS, out_channels=8, stack_times=1),
    )
    assert two.maps.reductions == (4, 8, 16, 32, 64) and len(two.extra_convs) == 1
    assert one.maps.reductions == (8, 16, 32, 64, 128) and len(one.extra_convs) == 2
    assert [tuple(m.shape[-2:]) for m in one.eval()(pyramid())] == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    with torch.device("meta"):
        count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
        channels = (256, 512, 1024, 2048)
        assert count(DenseFPN(channels)) == 12_276_242 and count(FPN(channels, extra="")) == 3_344_384
        assert count(SCP()) == 660_490 and count(HRoIE().box) == 525_312
        head = HRoIEHead.with_mask(Maps((256,) * 5, (4, 8, 16, 32, 64)), 15)
        parts = (head.rpn, head.roi_heads.box_roi_pool, head.roi_heads.mask_roi_pool, head)
        assert [count(p) for p in parts] == [593_935, 525_312, 525_312, 593_935 + 2 * 525_312 + 13_973_580 + 2_626_575]


def test_context_is_the_identity_at_first_and_does_not_leak_between_images():
    scp = SCP(16, 2)
    maps = [torch.randn(2, 16, 5, 7), torch.randn(2, 16, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(scp(maps), maps, strict=True))
    block = scp.blocks[0]
    nn.init.normal_(block.m.conv.weight)
    values, share = block.v(maps[0]), block.k(maps[0]).flatten(2).softmax(-1)
    vector = (values.flatten(2) * share).sum(-1)[..., None, None]
    torch.testing.assert_close(block(maps[0]), maps[0] + block.m(vector) * block.a(maps[0]).sigmoid())
    torch.testing.assert_close(block(maps[0])[:1], block(maps[0][:1]))


def test_regions_with_no_attention_are_half_the_sum_of_all_levels():
    maps = [torch.randn(2, 8, 32 // 2**i, 32 // 2**i) for i in range(5)]
    boxes = [torch.tensor([[4.0, 6, 40, 50], [0, 0, 128, 128]]), torch.tensor([[30.0, 30, 60, 90]])]
    for direction in ("bottom_up", "top_down"):
        extract = RoIExtractor(8, (4, 8, 16, 32), 7, direction)
        for p in extract.parameters():
            nn.init.zeros_(p)
        expected = sum(roi_align(m, boxes, 7, 1 / s, 0, True) for m, s in zip(maps, (4, 8, 16, 32), strict=False)) / 2
        torch.testing.assert_close(extract(named(maps), boxes), expected)  # the fifth level is not read
        assert extract(named(maps), [torch.zeros(0, 4)] * 2).shape == (0, 8, 7, 7)


def test_regions_gather_what_was_attended_in_their_own_order():
    maps, boxes = [torch.randn(1, 8, 32 // 2**i, 32 // 2**i) for i in range(4)], [torch.tensor([[4.0, 6, 40, 50]])]
    results = []
    for direction in ("bottom_up", "top_down"):
        torch.manual_seed(1)
        extract = RoIExtractor(8, (4, 8, 16, 32), 7, direction)
        total = torch.zeros(1, 8, 7, 7)
        for i in range(4) if direction == "bottom_up" else range(3, -1, -1):
            window = roi_align(maps[i], boxes, 7, 1 / 4 / 2**i, 0, True)
            total = total + window * extract.atts[i](torch.cat([total, window], 1)).sigmoid()
        results.append(extract(named(maps), boxes))
        torch.testing.assert_close(results[-1], total)
    assert not torch.allclose(*results)


def test_soft_nms_box_by_box():
    """Against the rule as it is written; boxes that hard suppression drops keep a lower score, and classes do not meet."""
    corner = torch.rand(40, 2) * 30
    boxes = torch.cat([corner, corner + 8 + torch.rand(40, 2) * 20], 1)
    scores, labels = torch.rand(40), torch.randint(1, 3, (40,))
    expected = {}
    for label in (1, 2):
        left = {i: float(scores[i]) for i in range(40) if labels[i] == label}
        while left:
            best = max(left, key=left.get)
            expected[best] = left.pop(best)
            for i in left:
                low, high = torch.maximum(boxes[best, :2], boxes[i, :2]), torch.minimum(boxes[best, 2:], boxes[i, 2:])
                cut = float((high - low).clamp(min=0).prod())
                area = [float((boxes[k, 2:] - boxes[k, :2]).prod()) for k in (best, i)]
                iou = cut / (sum(area) - cut)
                if iou >= 0.5:
                    left[i] *= 1 - iou
    kept, softened = soft_nms(boxes, scores, labels, 0.5)
    order = sorted((i for i in expected if expected[i] >= 1e-3), key=lambda i: -expected[i])
    assert kept.tolist() == order
    torch.testing.assert_close(softened, torch.tensor([expected[i] for i in order]))
    assert len(kept) > len(nms(boxes, scores, 0.5))
    twice = torch.tensor([[0.0, 0, 9, 9]]).repeat(2, 1)  # the same box again falls to nothing
    assert soft_nms(twice, torch.tensor([0.9, 0.8]), torch.ones(2, dtype=torch.int64), 0.5)[0].tolist() == [0]


def test_masks_are_cropped_of_the_wanted_objects_only():
    masks = torch.zeros(3000, 8, 8, dtype=torch.uint8)
    masks[7, 2:6, 2:6] = 1
    boxes = torch.tensor([[2.0, 2, 6, 6], [0, 0, 8, 8]]).repeat(70, 1)
    found = cropped(masks, boxes, torch.full((140,), 7), 4)
    assert (
        found.shape == (140, 4, 4)
        and found[0].min() == 1
        and found[1].tolist() == F.pad(torch.ones(2, 2), (1,) * 4).tolist()
    )
    assert cropped(masks, boxes[:0], torch.zeros(0, dtype=torch.int64), 4).shape == (0, 4, 4)


def assembled(head, finest, **options):
    """A detector of the paper, thin."""
    body = ResNet(num_classes=0, kind="", block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 16, 16)).as_features(
        (1, 2, 3, 4)
    )
    neck = WithContext(DenseFPN.on(maps_of(body), finest=finest, out_channels=16, stack_times=1))
    return Detector(body, neck, head(neck.maps, 3, **options)).eval()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return assembled(HRoIEHead.with_mask, 4, hidden=16, mask_width=8, proposals=(90, 90, 60, 60), regions=32)


def test_a_small_detector_detects_and_learns_from_an_empty_image(small):
    (found,) = small.detect(torch.randn(1, 3, 100, 70), score_threshold=0.0, limit=70)
    assert len(found["boxes"]) == 70 and found["masks"].shape == (70, 28, 28)  # more than a slice
    assert (found["scores"].diff() <= 0).all()
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 64, 64)}
    losses = small.losses(torch.randn(1, 3, 64, 64), [none])
    assert losses["mask"] == 0 and losses["box_reg"] == 0 and losses["classifier"] > 0


def test_authors_weights_have_the_background_last(small, tmp_path):
    state = small.state_dict()
    back = [(b.replace("\\", ""), a.lstrip("^").replace("\\", "")) for a, b in HRoIEHead.whole_dialects[0].renames[:4]]
    inner = (
        ("box_roi_pool.", "bbox_roi_extractor."), ("mask_roi_pool.", "mask_roi_extractor."), ("box_head.fc6.", "bbox_head.shared_fcs.0."),
        ("box_head.fc7.", "bbox_head.shared_fcs.1."), ("box_predictor.cls_score.", "bbox_head.fc_cls."),
        ("box_predictor.bbox_pred.", "bbox_head.fc_reg."), ("mask_predictor.conv5_mask.", "mask_head.upsample."),
        ("mask_predictor.mask_fcn_logits.", "mask_head.conv_logits."), *((f"mask_head.{i}.0.", f"mask_head.convs.{i}.conv.") for i in range(4)),
    )  # fmt: skip
    theirs = {}
    for name, value in state.items():
        for ours, other in (*back, *inner):
            name = name.replace(ours, other)
        theirs[name] = value.roll(-1, 0) if ".fc_cls." in name else value
    assert {"rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.bias", "neck.0.top_down_atts.0"} <= set(theirs)
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": theirs, "meta": {}}, file)
    again = assembled(HRoIEHead.with_mask, 4, hidden=16, mask_width=8)
    assert load_weights(again, file).dialect == "authors"
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())


def test_retinanet_form_softens_scores_and_reads_authors_names(tmp_path):
    with torch.device("meta"):
        named_so = offprint.create_model("catnet_r50", num_classes=2)
    assert isinstance(named_so.head, SoftRetinaHead) and named_so.size_multiple == 128
    model = assembled(SoftRetinaHead.on, 8, depth=1)
    assert model.neck.maps.reductions == (8, 16, 32, 64, 128)
    theirs = {
        k.replace("head.classify.", "bbox_head.retina_cls.").replace("head.regress.", "bbox_head.retina_reg.").replace("head.", "bbox_head.")
        if not k.startswith(("backbone.", "neck.")) else k: v
        for k, v in model.state_dict().items()
    }  # fmt: skip
    theirs = {k.replace("bbox_bbox_head", "bbox_head"): v for k, v in theirs.items()}
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": theirs}, file)
    again = assembled(SoftRetinaHead.on, 8, depth=1)
    load_weights(again, file)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    x = torch.randn(1, 3, 64, 64)
    (found,) = again.detect(x, score_threshold=0.0)
    (hard,) = super(SoftRetinaHead, again.head).detect(again.pyramid(x), (64, 64), score_threshold=0.0, limit=1000)
    assert len(found["boxes"]) > len(hard["boxes"]) and found["scores"][0] == hard["scores"][0]


def test_parts_drop_into_torchvision_detectors():
    body = ResNet(num_classes=0, kind="", block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 16, 16)).as_features(
        (1, 2, 3, 4)
    )
    neck = part("dense_fpn_scp")(maps_of(body), finest=4, out_channels=16, stack_times=1)
    pools = HRoIE(16, neck.maps.reductions[:4])
    target = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1])}
    detector = FasterRCNN(
        Pyramid(body, neck), 3, min_size=96, max_size=128, box_roi_pool=pools.box, box_batch_size_per_image=16
    )
    losses = detector([torch.rand(3, 96, 128)] * 2, [target] * 2)
    sum(losses.values()).backward()
    assert pools.box.atts[3].conv.weight.grad is not None and all(torch.isfinite(v) for v in losses.values())
    assert (
        MaskRCNN(detector.backbone, 3, box_roi_pool=pools.box, mask_roi_pool=pools.mask).roi_heads.mask_roi_pool
        is pools.mask
    )


def test_released_weights_are_registered():
    released = entry("cat_mask_rcnn_r50").weights
    assert released["isaid_aug"].metrics == {"isaid": {"ap": 47.7, "mask_ap": 39.2}}
    assert released["isaid"].sha256 == "384df911" and released["vhr10"].num_classes == 10
    assert (
        entry("catnet_r50").recipe["lr"] == 0.005
        and entry("cat_rcnn_r50").recipes["multiscale"]["short_sides"][-1] == 400
    )


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: DenseFPN((8, 16, 16, 24), num_outs=3), "num_outs=3 maps of the 4"),
        (lambda: DenseFPN((8, 16), start_level=2), "at least one map"),
        (lambda: DenseFPN((8, 16), stack_times=0), "counts from 1 on"),
        (lambda: DenseFPN(MAPS.channels, 8)(pyramid()[::-1]), "built for maps of"),
        (lambda: DenseFPN.on(MAPS, out_channels=8, stack_times=1)(pyramid(64, 64, 1)), "no batch statistics"),
        (lambda: SCP(8, 3)(pyramid()), "built for 3 maps, and got 4"),
        (lambda: RoIExtractor(8, (4, 8), 7, "sideways"), "direction of HRoIE"),
        (
            lambda: RoIExtractor(8, (4, 8), 7, "top_down")(named([torch.zeros(1, 8, 8, 8)]), [torch.zeros(0, 4)]),
            "2 maps, and got 1",
        ),
        (lambda: catnet.detector(head="mask"), "head of CATNet"),
        (lambda: HRoIEHead.on(MAPS, 3), "maps of one width"),
        (lambda: entry("cat_mask_rcnn_r50").release("coco"), "weights of cat_mask_rcnn_r50"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(OffprintError, match=words):
        build()
