"""Necks and heads by name on the backbones, and checkpoints of what is put together from them."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import harness

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.compose import Composed, Detector
from offprint.models.parts import Maps, each_stride, last, maps_of, part, register_part

SMALL = {
    name: options
    for path in harness.HERE.glob("*/adapter.py")
    for name, options in getattr(harness.adapter(path.parent.name), "SMALL", {}).items()
}
TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
BACKBONES = [
    "convnext_tiny",
    "swin_tiny",
    "mobilenetv2_100",
    "ghostnetv2_100",
]  # maps at strides 4 to 32, 2 to 32; tokens
UPER = {"name": "hor_uper", "channels": 8}
ASSEMBLIES = {
    "linear_probe": {"head": "linear_probe"},
    "hor_uper": {"head": UPER},
    "hor_fpn+hor_uper": {"neck": {"name": "hor_fpn", "out_channels": 8}, "head": UPER},
    "ssdlite": {"head": "ssdlite"},
    "hor_fpn+ssdlite": {"neck": {"name": "hor_fpn", "out_channels": 8}, "head": "ssdlite"},
    "mobile_deeplab": {"head": {"name": "mobile_deeplab", "width": 8}},
    "deeplabv3": {"head": {"name": "deeplabv3", "width": 8}},
}


def options(name):
    return {"convnext_tiny": TINY}.get(name) or SMALL[name]


def convnext(**more):
    torch.manual_seed(0)
    return offprint.compose({"name": "convnext_tiny", **TINY}, **{"head": UPER, "num_classes": 3, **more})


# -- the registry ----------------------------------------------------------------------------------------------------
def test_parts_by_kind_and_task():
    assert {"hor_fpn"} <= set(offprint.parts("neck"))
    heads = offprint.parts("head")
    assert heads == sorted(heads) and {"hor_uper", "linear_probe", "mobile_deeplab", "ssdlite"} <= set(heads)
    assert {"hor_fpn", "ssdlite"} <= set(offprint.parts(task="detection")) and "hor_uper" not in offprint.parts(
        task="detection"
    )
    assert offprint.parts("backbone") == offprint.list_models(kind="backbone")
    assert (part("ssdlite").paper, part("hor_uper").task) == ("mobilenet-v2", "segmentation")
    for name in offprint.parts():
        paper = part(name).paper
        assert not paper or offprint.paper(paper).slug == paper
    with pytest.raises(OffprintError, match="unknown kind of part 'tail'"):
        offprint.parts("tail")
    with pytest.raises(OffprintError, match="unknown kind of part 'tail'"):
        register_part("x", "tail", nn.Identity)
    with pytest.raises(OffprintError, match="two files register the part 'ssdlite'"):
        register_part("ssdlite", "head", nn.Identity)


def test_which_maps_a_part_takes():
    assert last(2)([2, 4, 8, 16, 32]) == (3, 4) and last(2)([16]) == (0,)
    assert each_stride(4)([2, 4, 8, 8, 32]) == (1, 3, 4)  # of one stride the last
    assert each_stride(4)([1, 2]) == (0, 1)
    assert Maps((3, 4, 5), (4, 8, 16)).pick((0, 2)) == Maps((3, 5), (4, 16))
    encoder = offprint.create_model("convnext_tiny", features_only=True, out_indices=(1, 3), **TINY)
    assert maps_of(encoder) == Maps((8, 16), (8, 32))


def test_a_neck_says_what_it_gives():
    neck = part("hor_fpn")(Maps((8, 16), (8, 16)), out_channels=12, num_outs=4)
    out = neck([torch.randn(1, 8, 16, 16), torch.randn(1, 16, 8, 8)])
    assert maps_of(neck) == Maps((12,) * 4, (8, 16, 32, 64))
    assert [(m.shape[1], 128 // m.shape[2]) for m in out] == list(
        zip(*(maps_of(neck).channels, maps_of(neck).reductions), strict=True)
    )


# -- assemblies ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", ASSEMBLIES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_head_trains_a_step_on_a_backbone(backbone, parts):
    torch.manual_seed(0)
    model = offprint.compose(backbone, **ASSEMBLIES[parts], num_classes=3, in_chans=1, **options(backbone)).train()
    x = torch.randn(2, 1, 64, 96)
    if isinstance(model, Detector):
        boxes = {"boxes": torch.tensor([[4.0, 8.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
        loss = sum(model.losses(x, [boxes] * 2).values())
    else:
        out = model(x)
        assert out.shape == ((2, 3) if parts == "linear_probe" else (2, 3, 64, 96))
        loss = nn.functional.cross_entropy(out, torch.ones(out[:, 0].shape, dtype=torch.long))
    before = {k: v.clone() for k, v in model.named_parameters()}
    loss.backward()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    optimizer.step()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == (set(model.parts) - {"backbone"} if model.frozen else set(model.parts))
    assert torch.isfinite(loss)
    if isinstance(model, Detector):
        assert set(model.eval().detect(x, limit=2)[0]) == {"boxes", "scores", "labels"}


def test_a_probed_backbone_stays_as_it_is():
    model = offprint.compose("mobilenetv2_100", **SMALL["mobilenetv2_100"]).train()
    assert (
        not model.backbone.training
        and model.head.training
        and not any(p.requires_grad for p in model.backbone.parameters())
    )
    state = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())


def test_a_name_is_a_model_like_any_other(tmp_path):
    from offprint.models.export import export_model
    from offprint.models.sharing import from_pretrained, save_pretrained

    name = "convnext_tiny+hor_fpn+mobile_deeplab"
    spec = offprint.api.entry(name)
    assert (spec.paper, spec.kind, spec.task, spec.input_size) == (
        "mobilenet-v2",
        "segmentation",
        "segmentation",
        (3, 224, 224),
    )
    assert spec.recipes == offprint.api.entry("convnext_tiny").recipes
    model = offprint.create_model(name, num_classes=4, in_chans=1, **TINY).eval()
    x = torch.randn(1, 1, 64, 64)
    save_pretrained(model, tmp_path / "m")
    assert torch.equal(from_pretrained(str(tmp_path / "m")).eval()(x), model(x))
    same = offprint.compose("convnext_tiny", "hor_fpn", "mobile_deeplab", num_classes=4, in_chans=1, **TINY)
    assert {k: v.shape for k, v in same.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert export_model(model, tmp_path / "m.pt2", "torch-export", sample=x) < 1e-4
    assert offprint.model_info(model)["outputs"] == [1, 4, 224, 224]


def test_weights_of_the_backbone_go_in_once(tmp_path):
    """A mapping may bring a file; the model that is rebuilt from its own file does not ask for it again."""
    from offprint.models.sharing import from_pretrained, save_pretrained

    source = offprint.create_model("convnext_tiny", num_classes=0, **TINY)
    offprint.save_weights(source, tmp_path / "backbone.safetensors")
    backbone = {"name": "convnext_tiny", "checkpoint_path": str(tmp_path / "backbone.safetensors"), **TINY}
    model = offprint.create_model("convnext_tiny+hor_uper", backbone=backbone, head=UPER, num_classes=2).eval()
    assert torch.equal(model.backbone.stages[0][0].pwconv1.weight, source.stages[0][0].pwconv1.weight)
    save_pretrained(model, tmp_path / "m")
    (tmp_path / "backbone.safetensors").unlink()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(from_pretrained(str(tmp_path / "m")).eval()(x), model(x))


def test_a_backbone_of_another_library():
    import timm

    theirs = timm.create_model("resnet10t", features_only=True)
    model = offprint.compose(theirs, head=UPER, num_classes=5).eval()
    assert model.to_head is not None and model(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)
    with pytest.raises(OffprintError, match="module already"):
        offprint.compose(theirs, head=UPER, depths=(1,))


def test_refusals():
    for call, said in (
        (lambda: offprint.compose("convnext_tiny", head="hor_fpn"), "hor_fpn is a neck, and was given as head"),
        (
            lambda: offprint.compose("convnext_tiny", head="hor_upr"),
            "unknown neck or head 'hor_upr'; nearest: hor_uper",
        ),
        (lambda: offprint.compose("convnext_tin", head=UPER), "unknown model 'convnext_tin'"),
        (lambda: offprint.compose("dagnn_cora", head=UPER), "dagnn_cora .* has no feature pyramid"),
        (lambda: offprint.compose({"depths": 3}, head=UPER), "with 'name'; got the keys depths"),
        (lambda: offprint.create_model("convnext_tiny+hor_fpn+hor_fpn+ssdlite"), "3 parts after the backbone"),
        (lambda: offprint.create_model("convnext_tiny+ssdlite", pretrained=True), "has no released weights"),
        (lambda: part("hor_fpn")(Maps((8,), (4,), ndim=3)), "maps of 2 axes"),
    ):
        with pytest.raises(OffprintError, match=said):
            call()


# -- their checkpoints -----------------------------------------------------------------------------------------------
def timm_file(prefix="backbone."):
    """A ConvNeXt of timm under a prefix, beside our head; and the model that it should give."""
    import timm

    theirs = timm.create_model("convnext_tiny", num_classes=0, **TINY)
    model = convnext(neck={"name": "hor_fpn", "out_channels": 8})
    state = {prefix + k: v for k, v in theirs.state_dict().items()}
    state |= {
        k: v + 1 for k, v in model.state_dict().items() if not k.startswith("backbone.") and v.is_floating_point()
    }
    return model, state


def test_each_part_in_its_own_dialect():
    model, state = timm_file()
    head = [k for k in state if k.startswith("head.")]
    report = offprint.load_weights(model, {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    assert report.dialect == "backbone: timm, neck: authors, head: authors"
    assert torch.equal(model.backbone.stages[0][0].pwconv1.weight, state["backbone.stages.0.blocks.0.mlp.fc1.weight"])
    assert head and all(torch.equal(model.state_dict()[k], state[k]) for k in head)
    assert report.dropped == ["backbone.norm.weight", "backbone.norm.bias"]  # before a classifier that is not there
    assert report.fresh == sorted(
        f"backbone.norm{i}.{k}" for i in range(4) for k in ("weight", "bias")
    )  # the pyramid's own


def test_a_part_knows_the_prefix_of_its_paper():
    model, state = timm_file()
    state = {k.replace("head.", "decode_head.", 1) if k.startswith("head.") else k: v for k, v in state.items()}
    report = offprint.load_weights(model, state)
    assert not [n for n in report.fresh if n.startswith("head.")]
    assert torch.equal(model.head.conv_seg.weight, state["decode_head.conv_seg.weight"])


def test_what_belongs_to_no_part_is_refused_or_told():
    model, state = timm_file()
    state |= {"auxiliary_head.conv_seg.weight": torch.ones(3, 8, 1, 1), "head.extra.weight": torch.ones(2)}
    lost = state.pop("head.conv_seg.bias")
    with pytest.raises(CheckpointError, match=r"1 tensors missing \(head.conv_seg.bias\), 2 without a place"):
        offprint.load_weights(model, state)
    with pytest.warns(UserWarning, match="2 without a place .*auxiliary_head.conv_seg.weight"):
        report = offprint.load_weights(model, state, strict=False)
    assert {"auxiliary_head.conv_seg.weight", "head.extra.weight"} <= set(report.dropped)
    assert "head.conv_seg.bias" in report.fresh and not torch.equal(model.head.conv_seg.bias, lost)


def test_a_file_of_the_backbone_alone():
    model, state = timm_file(prefix="")
    bare = {k: v for k, v in state.items() if not k.startswith(("neck.", "head."))} | {
        k: v for k, v in state.items() if k.startswith("head.norm")
    }
    with pytest.raises(CheckpointError, match="tensors missing .*neck"):
        offprint.load_weights(model, bare)
    with pytest.warns(UserWarning, match="tensors missing"):
        report = offprint.load_weights(model, bare, strict=False)
    assert torch.equal(model.backbone.stages[0][0].pwconv1.weight, state["stages.0.blocks.0.mlp.fc1.weight"])
    assert "head.conv_seg.weight" in report.fresh


def test_other_classes_in_the_head():
    source, target = convnext(num_classes=5), convnext(num_classes=2)
    with pytest.raises(CheckpointError, match="drop_head=True"):
        offprint.load_weights(target, source.state_dict())
    report = offprint.load_weights(target, source.state_dict(), drop_head=True)
    assert sorted(report.dropped) == ["head.conv_seg.bias", "head.conv_seg.weight"] == report.fresh


@pytest.mark.parametrize("name", ["ssdlite_mobilenetv2", "mobile_deeplabv3_os16"])
def test_files_of_the_version_before(name):
    model = offprint.create_model(name, num_classes=3, **SMALL["mobilenetv2_100"])
    old = {
        k.replace("backbone.", "encoder.", 1)
        if k.startswith("backbone.")
        else k.removeprefix("head."): torch.rand_like(v.float())
        for k, v in model.state_dict().items()
    }
    report = offprint.load_weights(model, old)
    assert report.loaded == len(old) and not report.dropped and not report.fresh
    grey = offprint.create_model(name, num_classes=3, in_chans=1, **SMALL["mobilenetv2_100"])
    assert offprint.load_weights(grey, old).adapted == ["backbone.features.0.0.weight"]
    assert isinstance(model, Composed)
    with pytest.warns(DeprecationWarning, match="encoder is .backbone now"):
        assert model.encoder is model.backbone
