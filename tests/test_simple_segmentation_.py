"""What is simple-segmentation's own: names, odd sizes, the halved input, whose weights go where, the head under other backbones."""

import pytest
import torch

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.segmentation.simple_segmentation import BACKBONES, FFNet, FFNetClassifier, Halved

SMALL = {"depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_names_are_not_those_of_the_other_ffnets():
    names = offprint.list_models("ffnet*", paper="simple-segmentation")
    assert all(n.startswith(("ffnet_seg_", "ffnet_cls_")) for n in names)
    assert not set(names) & set(offprint.list_models("ffnet*", paper="metamixer"))


def test_depths_count_the_convolutions_of_basic_blocks():
    for name, row in BACKBONES.items():
        per_block = 3 if row.get("block") == "bottleneck" else 2
        stem = 1 if row["stem"] == "A" else 2
        counted = per_block * sum(row["depths"]) + stem + (1 if stem == 1 else 0)
        assert counted == int(name.rstrip("NS")), name


def test_every_network_says_where_its_file_lies():
    for name in offprint.list_models(paper="simple-segmentation"):
        ((_, weights),) = offprint.api.entry(name).weights.items()
        archive, _, file = weights.url.partition("#")
        assert archive.endswith(".zip") and file.startswith(archive.rsplit("/", 1)[-1].removesuffix(".zip") + "/")
        mobile_or_other = "mobile" in name or "s_" not in name.removeprefix("ffnet_seg_").removeprefix("ffnet_cls_")
        assert mobile_or_other != ("_gpu_" in file), name
    one, two = (offprint.api.entry(f"ffnet_seg_40s_bcc_mobile{s}").weights for s in ("", "_pre_down"))
    assert one == two  # one file for both


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_any_size_and_the_stride_of_the_logits(mode, down):
    model = FFNet(num_classes=5, mode=mode, down=down, **SMALL).eval()
    step = 8 if down else 4
    for h, w in ((64, 96), (75, 101)):
        assert model(torch.randn(1, 3, h, w)).shape == (1, 5, -(-h // step), -(-w // step))
    model.head.enlarge = True
    assert model(torch.randn(1, 3, 75, 101)).shape == (1, 5, 75, 101)


def test_the_halved_image_loses_a_row_and_two_columns():
    x = torch.randn(1, 3, 32, 48)
    y = Halved()(x)
    assert y.shape == (1, 3, 15, 22)
    side = torch.tensor([0.00967746, 0.20539965, 0.56984578, 0.20539965, 0.00967746])
    assert torch.allclose(Halved().weight[0, 0], torch.outer(side, side), atol=1e-7)
    patch = x[0, 1, 1:6, 2:7]  # rows are padded by one, columns are not
    assert float(y[0, 1, 1, 1]) == pytest.approx(float((Halved().weight[0, 0] * patch).sum()), abs=1e-5)
    assert Halved()(x.double()).dtype == torch.float64


def test_a_file_of_pre_down_loads_into_its_twin():
    plain, halving = FFNet(num_classes=5, **SMALL).eval(), FFNet(num_classes=5, pre_down=True, **SMALL).eval()
    authors = {
        k.replace("backbone.", "backbone_model."): v for k, v in plain.state_dict().items() if k.startswith("backbone.")
    }
    authors |= {k: v for k, v in plain.state_dict().items() if k.startswith("head.")} | {
        "smoothing.weight": torch.ones(3, 1, 5, 5)
    }
    for model in (FFNet(num_classes=5, **SMALL).eval(), halving):
        offprint.load_weights(model, authors)
    x = torch.randn(1, 3, 128, 128)
    assert torch.allclose(halving(x), plain(Halved()(x)), atol=1e-6)


def _classifier_file(tmp_path, authors: bool):
    model = FFNetClassifier(num_classes=7, **SMALL)
    state = model.state_dict()
    if authors:

        def rename(k):
            if k.startswith("fc."):
                return f"head.layers.2.classifier.{k.removeprefix('fc.')}"
            if k.startswith("classification."):
                return k.replace("classification.", "head.layers.2.")
            if k.startswith("adapter."):
                return f"head.layers.0.adapter_conv.{k[8]}.layers.{k[10:]}"
            if k.startswith("up."):
                _, fam, rest = k.split(".", 2)
                return f"head.layers.1.{fam}.layers.{rest}"
            return f"backbone_model.{k}"

        state = {rename(k): v for k, v in state.items()}
    file = tmp_path / f"{authors}.pth"
    torch.save(state, file)
    return model, str(file)


@pytest.mark.parametrize("authors", [True, False])
@pytest.mark.parametrize("down", [True, False])
def test_of_a_classifier_the_backbone_alone_is_taken(tmp_path, authors, down):
    source, file = _classifier_file(tmp_path, authors)
    model = FFNet(num_classes=5, down=down, backbone={"checkpoint_path": file}, **SMALL)
    assert torch.equal(model.backbone.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    assert not torch.equal(model.head.up.fam_4[0].weight, source.up.fam_4[0].weight)  # it would fit, and is left
    with pytest.raises(CheckpointError, match="classifier's file" if authors else "missing"):
        offprint.load_weights(FFNet(num_classes=5, **SMALL), file)


def test_narrow_classifiers_run_and_one_image_keeps_its_axis():
    narrow = {"depths": (1, 1, 1), "widths": (8, 16, 16), "stem": "C"}
    model = FFNetClassifier(num_classes=7, **narrow)
    model.set_common(drop_rate=0.2)
    assert model.train()(torch.randn(2, 3, 96, 96)).shape == (2, 7)
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_maps_and_features_in_one_pass():
    model, x = FFNetClassifier(num_classes=7, **SMALL).eval(), torch.randn(1, 3, 64, 64)
    features, maps = model.forward_intermediates(x, indices=(1, 3))
    assert torch.equal(features, model.forward_features(x)) and [m.shape[1] for m in maps] == [8, 16]
    last, (first,) = model.forward_intermediates(x, indices=(0,), stop_early=True)
    assert torch.equal(last, first)


def test_down_costs_one_shortcut_in_basic_blocks_only():
    def count(**kwargs):
        with torch.device("meta"):
            return sum(p.numel() for p in FFNet(**kwargs).parameters())

    assert count(**BACKBONES["40S"], down=True) - count(**BACKBONES["40S"]) == 64 * 64 + 2 * 64
    assert count(**BACKBONES["50"], down=True) == count(**BACKBONES["50"])


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_tiny"])
def test_head_under_another_backbone(name):
    small = {
        "convnext_tiny": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
        "swin_tiny": {"embed_dim": 24, "depths": (1, 1, 1, 1)},
    }
    model = offprint.compose(
        {"name": name, **small[name]}, head={"name": "ffnet", "up": "C", "head": "C"}, num_classes=4
    ).eval()
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 4, 56, 56)
    assert "ffnet" in offprint.parts("head", task="segmentation")


@pytest.mark.parametrize("pre_down", [False, True])
def test_mobile_networks_export_with_free_sizes(tmp_path, pre_down):
    from offprint.models.export import export_model

    model = FFNet(num_classes=3, mode="nearest", pre_down=pre_down, **SMALL).eval()
    sample = torch.randn(1, 3, 128, 192)
    off = export_model(model, tmp_path / "m.pt2", "torch-export", sample=sample, dynamic=("batch", "height", "width"))
    assert off < 1e-4
    assert export_model(model, tmp_path / "m.onnx", sample=sample, dynamic=("batch", "height", "width")) < 1e-4
    program = torch.export.load(tmp_path / "m.pt2").module()
    x = torch.randn(2, 3, 160, 128)
    assert torch.allclose(program(x), offprint.deploy(model, sample)(x), atol=1e-5)


def test_refusals():
    with pytest.raises(OffprintError, match="both name 3 stages"):
        FFNetClassifier(stem="C")
    with pytest.raises(OffprintError, match="down=True"):
        FFNetClassifier(depths=(1, 1, 1), widths=(8, 8, 8), stem="C", down=True)
    for key, value in (("up", "D"), ("head", "X"), ("mode", "bicubic"), ("stem", "Z")):
        with pytest.raises(OffprintError, match=f"unknown .*'{value}'"):
            FFNet(**{key: value}, **SMALL)
