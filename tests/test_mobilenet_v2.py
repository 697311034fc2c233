"""MobileNetV2, SSDLite and Mobile DeepLabv3: what is their own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import batched_nms

import offprint
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.backbones.mobilenet_v2 import ConvNormAct, MobileNetV2
from offprint.models.detection.ssdlite import CODER, SSDLite, SSDLiteHead, anchors
from offprint.models.sharing import from_pretrained, save_pretrained

SMALL = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2), (6, 64, 2, 2), (6, 96, 1, 2))


def randomised(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def test_peers():
    import timm
    import torchvision

    x = torch.randn(2, 3, 96, 70)
    ours = offprint.create_model("mobilenetv2_035", num_classes=7).eval()
    theirs = randomised(torchvision.models.mobilenet_v2(width_mult=0.35, num_classes=7))
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "torchvision"
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    ours = offprint.create_model("mobilenetv2_140", features_only=True).eval()
    theirs = randomised(timm.create_model("mobilenetv2_140", features_only=True))
    whole = timm.create_model("mobilenetv2_140")
    whole.load_state_dict(theirs.state_dict(), strict=False)
    assert offprint.load_weights(ours, whole.state_dict()).dialect == "timm"
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert ours.feature_info.channels() == theirs.feature_info.channels()


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [("mobilenetv2_100", s, m) for s, m in ((192, 221316608), (160, 154083200), (128, 99074048), (96, 56289152))],
)
def test_resolutions(name, size, macs):
    assert offprint.model_info(name, (3, size, size))["macs"] == macs


@pytest.mark.parametrize("stride", [16, 8])
def test_dilation_gives_the_map_between_the_strides(stride):
    """Every second (fourth) place of the dilated network's map is the strided network's."""
    strided = randomised(MobileNetV2(width=0.35, num_classes=0))
    dilated = MobileNetV2(width=0.35, num_classes=0, output_stride=stride).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 128, 96)
    step = 32 // stride
    a, b = strided.forward_features(x), dilated.forward_features(x)
    assert b.shape[-2:] == (128 // stride, 96 // stride)
    assert torch.allclose(a, b[..., ::step, ::step], atol=1e-5)
    rates = [m.dilation[0] for m in dilated.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert rates == [1] * 14 + [2] * 3 if stride == 16 else rates == [1] * 7 + [2] * 7 + [4] * 3
    info = MobileNetV2(output_stride=stride).as_features().feature_info
    assert info.reduction()[-1] == stride


# -- TensorFlow's weights --------------------------------------------------------------------------------------------
def slim_state(model):
    """A model's tensors under slim's names and in its layouts, with a background class before the others."""
    out = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        part = name.split(".")
        if part[0] == "head":
            value = torch.cat([torch.full_like(value[:1], 7.0), value])
            leaf = "weights" if part[1] == "weight" else "biases"
            value = value.t()[None, None] if leaf == "weights" else value
            out[f"MobilenetV2/Logits/Conv2d_1c_1x1/{leaf}"] = value.contiguous()
            continue
        index = int(part[1])
        if len(part) == 4:
            scope, norm = ("Conv" if index == 0 else "Conv_1"), part[2] == "1"
        else:
            layers = ("depthwise", "project") if index == 1 else ("expand", "depthwise", "project")
            norm = part[4] == "1" if len(part) == 6 else int(part[3]) == len(layers)
            layer = layers[int(part[3])] if len(part) == 6 else "project"
            scope = "expanded_conv" + (f"_{index - 1}" if index > 1 else "") + f"/{layer}"
        leaf = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        if norm:
            out[f"MobilenetV2/{scope}/BatchNorm/{leaf[part[-1]]}"] = value
        elif "depthwise" in scope:
            out[f"MobilenetV2/{scope}/depthwise_weights"] = value.permute(2, 3, 0, 1).contiguous()
        else:
            out[f"MobilenetV2/{scope}/weights"] = value.permute(2, 3, 1, 0).contiguous()
    return out


@pytest.mark.parametrize("size", [(96, 96), (97, 63)])
def test_tensorflow_weights_bring_their_padding(size, tmp_path):
    source = randomised(MobileNetV2(num_classes=5, width=0.35, eps=1e-3, same_padding=True))
    model = offprint.create_model("mobilenetv2_035", num_classes=5).eval()
    state = slim_state(source)
    state["MobilenetV2/Conv/weights/ExponentialMovingAverage"] = state["MobilenetV2/Conv/weights"]
    assert offprint.load_weights(model, state).dialect == "tensorflow"
    x = torch.randn(1, 3, *size)
    assert torch.allclose(model(x), source(x), atol=1e-5)
    save_pretrained(model, tmp_path / "m")
    assert torch.equal(from_pretrained(str(tmp_path / "m")).eval()(x), model(x))
    assert not torch.allclose(randomised(MobileNetV2(num_classes=5, width=0.35))(x), source(x), atol=1e-3)
    with_background = offprint.create_model("mobilenetv2_035", num_classes=6).eval()
    offprint.load_weights(with_background, state)
    assert torch.allclose(with_background(x)[:, 1:], source(x), atol=1e-5)


@pytest.mark.parametrize("side", [8, 9])
def test_same_padding_is_tensorflows(side):
    """Against the definition: output ceil(n / 2), the odd row of padding at the end."""
    layer = ConvNormAct(3, 4, 3, 2, same=True).eval()
    x = torch.randn(1, 3, side, side)
    total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = F.relu6(layer[1](F.conv2d(padded, layer[0].weight, stride=2)))
    assert layer(x).shape[-1] == -(-side // 2) and torch.allclose(layer(x), expected)
    fast = offprint.deploy(layer, x)
    assert isinstance(fast[1], nn.Identity) and torch.allclose(fast(x), expected, atol=1e-5)


def test_refusals():
    with pytest.raises(OffprintError, match="above 0"):
        offprint.create_model("mobilenetv2_100", width=0)
    with pytest.raises(OffprintError, match="32, 16 or 8"):
        offprint.create_model("mobilenetv2_100", output_stride=4)
    state = slim_state(MobileNetV2(width=0.35))
    with pytest.raises(CheckpointError, match="output_stride=32"):
        offprint.load_weights(offprint.create_model("mobilenetv2_035", output_stride=16), state)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(offprint.create_model("mobilenetv2_050"), state)


# -- SSDLite ---------------------------------------------------------------------------------------------------------
def detector(**kwargs):
    torch.manual_seed(0)
    kwargs = {"width": 0.35, "settings": SMALL, "num_classes": 3, **kwargs}
    return offprint.create_model("ssdlite_mobilenetv2", **kwargs)


def test_anchors():
    sizes = ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))
    boxes = anchors(sizes)
    assert boxes.shape == (2034, 4) and anchors(((19, 19), *sizes[1:])).shape == (1917, 4)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    size = boxes[:, 2:] - boxes[:, :2]
    assert torch.allclose(centre[:3], torch.full((3, 2), 0.5 / 20))
    assert torch.allclose(
        size[:3], torch.tensor([[0.1, 0.1], [0.2 * 2**0.5, 0.2 / 2**0.5], [0.2 / 2**0.5, 0.2 * 2**0.5]])
    )
    wide = torch.tensor([0.95, 0.95 * 2**0.5, 0.95 / 2**0.5, 0.95 * 3**0.5, 0.95 / 3**0.5, 0.95**0.5])  # the last map's
    assert torch.allclose(size[-6:, 0], wide)
    assert torch.allclose(centre[1200 + 6], torch.tensor([1.5 / 10, 0.5 / 10]))  # along the row first


def test_detect_equals_the_plain_formulation():
    """Few candidates at a time, or all at once: the same boxes."""
    model = detector(num_classes=9).train()
    x = torch.randn(2, 3, 96, 128)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # a plain average: one pass gives scores that differ
    model(x)
    model.eval()
    scores, codes = model(x)
    found = model.detect(x, limit=30)
    sizes = tuple(tuple(m.shape[-2:]) for m in model.head.six(model.pyramid(x)))
    for s, c, got in zip(scores, codes, found, strict=True):
        boxes = CODER.decode_single(c, anchors(sizes)) * torch.tensor([128, 96, 128, 96])
        boxes = torch.stack(
            [boxes[:, 0].clamp(0, 128), boxes[:, 1].clamp(0, 96), boxes[:, 2].clamp(0, 128), boxes[:, 3].clamp(0, 96)],
            1,
        )
        p = s.sigmoid()[:, 1:]
        rows, labels = (p > 1e-8).nonzero(as_tuple=True)
        keep = batched_nms(boxes[rows], p[rows, labels], labels, 0.6)[:30]
        assert torch.allclose(got["scores"], p[rows, labels][keep])
        assert torch.allclose(got["boxes"], boxes[rows][keep], atol=1e-3)
        assert torch.equal(got["labels"], labels[keep] + 1)
    assert all(len(d["boxes"]) == 0 for d in model.detect(x, score_threshold=1.1))


def scenes():
    generator = torch.Generator().manual_seed(1)
    images, targets = torch.zeros(4, 3, 96, 96), []
    for image in images:
        boxes = []
        for kind in range(2):
            w, h = torch.randint(20, 48, (2,), generator=generator).tolist()
            x, y = (int(torch.randint(0, 96 - side, (1,), generator=generator)) for side in (w, h))
            image[kind, y : y + h, x : x + w] = 1
            boxes.append([x, y, x + w, y + h])
        targets.append({"boxes": torch.tensor(boxes).float(), "labels": torch.tensor([1, 2])})
    return images * 2 - 1, targets


def test_losses_teach_it_scenes():
    images, targets = scenes()
    model = detector().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = None
    for _ in range(70):
        loss = sum(model.losses(images, targets).values())
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1 * first
    from torchvision.ops import box_iou

    for found, target in zip(model.eval().detect(images, score_threshold=0.5), targets, strict=True):
        best = box_iou(target["boxes"], found["boxes"]).max(1)
        assert (best.values > 0.5).all() and torch.equal(found["labels"][best.indices], target["labels"])


def test_hard_negatives():
    """All positives, three times as many negatives, the hardest first; three where there is no positive."""
    base = anchors(((4, 4), (2, 2), (1, 1), (1, 1), (1, 1), (1, 1)))
    loss = torch.arange(len(base)).float()
    positive = torch.zeros(len(base), dtype=torch.bool)
    positive[[0, 5]] = True
    codes = torch.zeros(len(base), 4)
    codes[:, 0] = torch.linspace(-20, 20, len(base))  # no two boxes fall together
    kept = SSDLiteHead._hard(loss, codes, base, positive)
    assert set(kept.tolist()) == {0, 5} | set(range(len(base) - 6, len(base)))
    assert len(SSDLiteHead._hard(loss, codes, base, torch.zeros_like(positive))) == 3


def test_an_image_without_objects():
    images, targets = scenes()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = detector().losses(images[:2], [empty, empty])
    assert float(losses["box_regression"].detach()) == 0 and torch.isfinite(losses["classification"])
    sum(losses.values()).backward()


def test_target_refusals():
    model, (images, targets) = detector(), scenes()
    with pytest.raises(DataError, match="one per image"):
        model.losses(images, targets[:2])
    bad = copy.deepcopy(targets)
    bad[1]["labels"][0] = 3
    with pytest.raises(DataError, match="target 1 has labels 2 to 3"):
        model.losses(images, bad)
    bad = copy.deepcopy(targets)
    bad[2]["boxes"][0, 2] = bad[2]["boxes"][0, 0]
    with pytest.raises(DataError, match="without area"):
        model.losses(images, bad)
    with pytest.raises(DataError, match=r"expected \(N, 4\)"):
        model.losses(images, [{"boxes": torch.zeros(2, 5), "labels": torch.ones(2)}] * 4)
    with pytest.raises(DataError, match="no labels"):
        model.losses(images, [{"boxes": torch.zeros(0, 4)}] * 4)


def test_heads_stand_on_any_backbone():
    import timm

    x = torch.randn(1, 3, 96, 130)
    small = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    one = offprint.create_model("ssdlite_mobilenetv2", backbone="convnext_tiny", num_classes=4, **small).eval()
    scores, codes = one(x)
    assert scores.shape[1] == codes.shape[1] and scores.shape[2] == 4 and len(one.detect(x)) == 1
    peer = SSDLite(timm.create_model("resnet10t", features_only=True), 5).eval()
    assert peer(x)[0].shape[2] == 5
    two = offprint.create_model("mobile_deeplabv3_os16", backbone="convnext_tiny", num_classes=4, **small).eval()
    assert two(x).shape == (1, 4, 96, 130)
    with pytest.raises(OffprintError, match="reads two maps"):
        offprint.create_model("ssdlite_mobilenetv2", backbone="convnext_isotropic_small", depth=1, dim=16)
    with pytest.raises(OffprintError, match="features_only=True"):
        offprint.models.segmentation.mobile_deeplab.MobileDeepLabV3(nn.Linear(2, 2))
    with pytest.raises(OffprintError, match="background"):
        detector(num_classes=1)


@pytest.mark.parametrize("name", ["ssdlite_mobilenetv2", "mobile_deeplabv3_os8"])
def test_heads_deploy_export_and_grey_images(name, tmp_path):
    torch.manual_seed(0)
    model = randomised(offprint.create_model(name, num_classes=4, width=0.35, settings=SMALL, in_chans=1))
    x = torch.randn(2, 1, 65, 96)
    expected = model(x)
    fast = offprint.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    program = torch.export.export(model, (x,), strict=False).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for got in (fast(x), program(x), compiled(x)):
        for a, b in zip(*((o if isinstance(o, tuple) else (o,)) for o in (got, expected)), strict=True):
            assert torch.allclose(a, b, atol=1e-4)
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m")).eval()(x)
    assert torch.equal(
        (again if isinstance(again, torch.Tensor) else again[0]),
        (expected if isinstance(expected, torch.Tensor) else expected[0]),
    )
