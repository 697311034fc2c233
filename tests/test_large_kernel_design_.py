"""What is large-kernel-design's own: the convolution, the merge, the measurements and what stands in their results, the guidelines."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.methods.understanding import large_kernel_design as design
from offprint.methods.understanding._shape_bias import categories_of
from offprint.models.backbones.replknet import ConvFFN, ReparamLargeKernel, RepLKBlock, RepLKNet
from offprint.models.registry import entry
from offprint.nn.large_kernel import LargeKernelConv2d, spectral_depthwise, spectral_pays

TINY = {"kernel_sizes": (15, 13, 9, 7), "depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lively(module: nn.Module) -> nn.Module:
    """With statistics and affine weights unlike those of a new network."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.normal_(m.weight, 1, 0.2)
            nn.init.normal_(m.bias, std=0.2)
    return module.eval()


def tiny(**kwargs) -> RepLKNet:
    return lively(offprint.create_model("replknet_31b", num_classes=5, **{**TINY, **kwargs}))


class Passing(TorchDispatchMode):
    """What counters of operations are: a mode below autograd that passes every call on."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


# -- the convolution ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("k", "h", "w"), [(13, 7, 9), (31, 16, 20), (31, 3, 40), (29, 2, 2), (31, 50, 56), (15, 1, 1)])
def test_spectra_give_the_convolution_and_its_gradients(k, h, w):
    x = torch.randn(2, 3, h, w, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 1, k, k, dtype=torch.double, requires_grad=True)
    got, want = spectral_depthwise(x, weight), F.conv2d(x, weight, padding=k // 2, groups=3)
    assert torch.allclose(got, want, atol=1e-12)
    direction = torch.randn_like(want)
    with Passing():
        counted = spectral_depthwise(x, weight)
        below = torch.autograd.grad(counted, (x, weight), direction)
    assert torch.equal(counted, got)
    assert all(map(torch.equal, below, torch.autograd.grad(got, (x, weight), direction, retain_graph=True)))
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), direction) for y in (got, want)), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("side", [56, 14])  # one that goes through spectra, one that does not
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_way_of_the_large_convolution_is_the_same(side, layout):
    assert spectral_pays(side, side, 31) is (side == 56)
    layer = LargeKernelConv2d(4, 31)
    x = torch.randn(2, 4, side, side).contiguous(memory_format=layout)
    want = F.conv2d(x, layer.weight, layer.bias, padding=15, groups=4)
    learnt = layer(x)
    with torch.no_grad():
        used, scaled = layer.eval()(x), layer(x, 0.5)
    for got in (learnt, used, 2 * scaled):
        assert torch.allclose(got, want, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for call in (lambda: layer(x), lambda: torch.no_grad()(layer)(x)):
        with FlopCounterMode(display=False) as count:
            call()
        assert count.get_total_flops() == 2 * 2 * 4 * side * side * 31 * 31


# -- the network -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "trained", "merged", "side", "macs"),
    [
        ("replknet_31b", 79_864_168, 79_527_272, 224, 15.354),
        ("replknet_31b", 79_864_168, 79_527_272, 384, 45.119),
        ("replknet_31l", 172_671_016, 172_165_672, 384, 95.989),
        ("replknet_xl", 335_435_752, 335_399_656, 320, 128.730),
    ],
)
def test_counts(name, trained, merged, side, macs):
    assert offprint.model_info(name)["parameters"] == trained
    info = offprint.model_info(name, (3, side, side), deploy=True)
    assert info["parameters"] == merged and round(info["macs"] / 1e9, 3) == macs


def test_merging_changes_nothing_and_twice_is_once():
    model, x = tiny().double(), torch.randn(2, 3, 70, 90, dtype=torch.double)
    with torch.no_grad():
        want = model(x)
        for module in model.modules():
            if isinstance(module, ReparamLargeKernel):
                module.merge()
        assert torch.allclose(model(x), want, atol=1e-10)
        names = set(model.state_dict())
        for module in list(model.modules()):
            if hasattr(module, "merge"):
                module.merge()
                module.merge()
        assert torch.allclose(model(x), want, atol=1e-10)
    assert any(n.endswith("lkb_reparam.weight") for n in names) and not any("small_conv" in n for n in names)


def test_deploying():
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    fast = offprint.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for n, m in fast.named_modules() if n != "norm")
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-4)
    assert offprint.deploy(fast) is fast
    with pytest.raises(OffprintError, match="in training mode"):
        offprint.deploy(tiny().train())


@pytest.mark.parametrize("module", [ReparamLargeKernel(4, 7), RepLKBlock(4, 4, 7), ConvFFN(4, 8)])
def test_nothing_is_merged_in_training(module):
    before = set(module.train().state_dict())
    with pytest.raises(OffprintError, match=r"training mode.*\.eval"):
        module.merge()
    assert set(module.state_dict()) == before


def test_merged_files_and_training_files():
    """A merged checkpoint loads into the merged form; each form says which one a file of the other is for."""
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model(x)
    training = {k: v.clone() for k, v in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, ReparamLargeKernel):
            module.merge()
    merged = model.state_dict()
    into = tiny(deploy=True)
    assert not offprint.load_weights(into, {"model": merged}).fresh
    with torch.no_grad():
        assert torch.allclose(into(x), want, atol=1e-5)
    with pytest.raises(CheckpointError, match="deploy=True"):
        offprint.load_weights(tiny(), merged)
    with pytest.raises(CheckpointError, match="build it without deploy"):
        offprint.load_weights(tiny(deploy=True), training)


def test_the_halves_of_a_pair_are_separate_residual_blocks_with_one_rate():
    model = tiny(drop_path_rate=0.4)
    rates = [b.drop_path.p for stage in model.stages for b in stage.blocks]
    assert rates[0::2] == rates[1::2] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    large, mix = model.stages[0].blocks
    x = torch.randn(1, 8, 9, 9)
    for block in (large, mix):
        nn.init.zeros_(block.pw2.bn.weight)
        nn.init.zeros_(block.pw2.bn.bias)
        assert torch.equal(block(x), x)


def test_no_synchronised_norms_and_no_checkpointing_by_default():
    model = offprint.create_model("replknet_31b", **TINY)
    assert not model.grad_checkpointing and not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_maps_with_norms_of_their_own():
    """What the authors' XL has on COCO and ADE20K: asked for, or brought by a file that has it."""
    asked = offprint.create_model(
        "replknet_xl", features_only=True, norm_intermediate_features=True, small_kernel=None, **TINY
    )
    state = lively(asked).state_dict()
    assert "stages.0.norm.running_mean" in state and not any(n.startswith("norm.") for n in state)
    given = offprint.create_model("replknet_xl", features_only=True, small_kernel=None, **TINY).eval()
    offprint.load_weights(given, state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(asked(x), given(x), strict=True):
            assert torch.equal(a, b)
    classifier = offprint.create_model("replknet_xl", small_kernel=None, **TINY)
    again = offprint.create_model(
        "replknet_xl", features_only=True, norm_intermediate_features=True, small_kernel=None, **TINY
    )
    assert offprint.load_weights(again, classifier.state_dict()).fresh  # those norms alone


def test_released_weights_say_their_label_list():
    for name in ("replknet_31b", "replknet_31l"):
        release = entry(name).release("in22k")
        assert (release.num_classes, release.class_map) == (21841, "imagenet-22k")
    assert entry("replknet_xl").release().preprocessing["mean"] == (0.5,) * 3
    with pytest.raises(OffprintError, match="no released weights"):
        offprint.create_model("replknet_13", pretrained=True)


@pytest.mark.parametrize("given", [{"kernel_size": 8}, {"kernel_size": 7, "small_kernel": 4}, {"kernel_size": 3}])
def test_kernels_that_cannot_be_centred_are_refused(given):
    with pytest.raises(OffprintError, match="must be odd"):
        ReparamLargeKernel(4, **given)


def test_stages_must_agree():
    with pytest.raises(OffprintError, match="same number of stages"):
        RepLKNet(kernel_sizes=(13, 13))


@pytest.mark.parametrize("deploy", [False, True])
def test_exporting_merged_and_unmerged(deploy, tmp_path):
    from offprint.models.export import export_model

    model = tiny()
    model = offprint.deploy(model, torch.randn(1, 3, 64, 64)) if deploy else model
    assert export_model(model, tmp_path / "m.onnx", sample=torch.randn(1, 3, 64, 64)) < 1e-4


# -- effective receptive field -----------------------------------------------------------------------------------------
class OneKernel(nn.Module):
    def __init__(self, k: int, channels: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, bias=False)
        nn.init.uniform_(self.conv.weight, 0.1, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def test_the_map_of_one_positive_kernel_is_that_kernel():
    """And the areas of a constant one are those of squares within it."""
    net, x = OneKernel(9), torch.rand(3, 41, 41) + 0.1
    found = design.effective_receptive_field(net, [x], layer="conv")
    want = F.pad(net.conv.weight.detach().sum((0, 1)), (16, 16, 16, 16))
    assert torch.allclose(found.map.float(), want, atol=1e-6)
    flat = torch.zeros(41, 41)
    flat[16:25, 16:25] = 3.0
    areas = design.erf_area_ratio(flat, (0.2, 0.5, 0.99))
    assert [a.side for a in areas.values()] == [5, 7, 9]  # 25/81, 49/81 and all: more than 0.2, 0.5, 0.99
    assert areas[0.5].ratio == 49 / 41**2 and areas[0.5].holds == pytest.approx(49 / 81)
    assert design.erf_area_ratio(torch.ones(8, 8), (0.99,)) == {0.99: None}


def test_relu_is_applied_to_features_and_to_the_gradient():
    net, x = OneKernel(3, 1), torch.rand(1, 9, 9) + 0.1
    with torch.no_grad():
        net.conv.weight.copy_(torch.tensor([[0.0, -1, 0], [0, 5, 0], [0, -1, 2]]))
    found = design.effective_receptive_field(net, [x], layer="conv").map
    assert found[4, 4] == 5 and found[5, 5] == 2 and found.sum() == 7  # the negative entries are gone
    with torch.no_grad():
        net.conv.weight.neg_()
    with pytest.raises(OffprintError, match="zero everywhere"):
        design.effective_receptive_field(net, [x], layer="conv")


def test_maps_are_averaged_and_the_mode_is_given_back():
    model, images = tiny().train(), torch.randn(2, 3, 64, 64)
    both = design.effective_receptive_field(model, images[None].unbind())
    each = [design.effective_receptive_field(model, [image]).map for image in images]
    assert model.training and both.images == 2
    assert torch.allclose(both.map, (each[0] + each[1]) / 2, rtol=1e-5)


def test_thirteen_sees_further_than_three_at_the_same_depth():
    sees = {}
    for k in (3, 13):
        torch.manual_seed(0)
        net = RepLKNet(kernel_sizes=(k,) * 4, depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), small_kernel=None)
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        images = torch.randn(2, 3, 256, 256)
        net.train()(images)  # statistics, so that the branches weigh as they do in a network that is trained
        sees[k] = design.effective_receptive_field(net, images.split(1)).areas[0.5].ratio
    assert sees[13] > 1.5 * sees[3]


def test_tokens_go_on_their_grid():
    import timm
    import torchvision

    x = torch.randn(1, 3, 64, 64)
    for net in (
        timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2),
        torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64),
    ):
        found = design.effective_receptive_field(net, [x])
        assert (
            found.map.shape == (64, 64) and found.map[32:48, 32:48].sum() > 0.3 * found.map.sum()
        )  # the middle's own patch


def test_the_result_says_size_and_weights():
    model = offprint.create_model("replknet_31b", **TINY)
    one = design.effective_receptive_field(model, [torch.randn(3, 64, 64)])
    assert (one.weights, one.size, one.model) == ("random weights", (64, 64), "replknet_31b")
    two = design.effective_receptive_field(model, [torch.randn(3, 96, 96)])
    design.comparable([one, one])
    with pytest.raises(OffprintError, match="96x96.*cannot be compared|cannot be compared.*96x96"):
        design.comparable([one, two])
    offprint.load_weights(model, model.state_dict())
    assert "from" in design.effective_receptive_field(model, [torch.randn(3, 64, 64)], weights="from a file").weights


def test_pictures_that_give_no_number_are_left_out():
    bad = torch.full((3, 64, 64), float("nan"))
    found = design.effective_receptive_field(tiny(), [torch.randn(3, 64, 64), bad])
    assert (found.images, found.skipped) == (1, 1)
    with pytest.raises(OffprintError, match="no numbers"):
        design.effective_receptive_field(tiny(), [bad])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no pictures"),
        ([torch.randn(3, 64, 64), torch.randn(3, 64, 80)], "resize them to one size"),
        ([torch.randn(64, 64)], r"\(3, H, W\)"),
    ],
)
def test_refused_pictures(images, message):
    with pytest.raises(OffprintError, match=message):
        design.effective_receptive_field(tiny(), images)


def test_refused_maps_and_shares():
    with pytest.raises(OffprintError, match="above 0 and below 1"):
        design.erf_area_ratio(torch.ones(9, 9), (1.0,))
    with pytest.raises(OffprintError, match=r"\(H, W\)"):
        design.erf_area_ratio(torch.ones(3, 9, 9))
    with pytest.raises(OffprintError, match="finite contributions"):
        design.erf_area_ratio(torch.full((9, 9), -1.0))


# -- shape bias --------------------------------------------------------------------------------------------------------
def test_the_mean_of_a_category_decides_and_neither_sum_nor_maximum():
    groups = {"one": [0], "many": [1, 2, 3, 4]}
    logits = torch.tensor([[2.0, 2.4, 1.9, 0, 0], [1.0, 1.1, 1.1, 1.1, 1.1]])
    assert design.sixteen_class_decision(logits, groups).names == ["one", "many"]
    assert {k: len(v) for k, v in design.SIXTEEN.items()} == {
        "airplane": 1, "bear": 4, "bicycle": 2, "bird": 49, "boat": 5, "bottle": 7, "car": 3, "cat": 6, "chair": 4, "clock": 3,
        "dog": 109, "elephant": 2, "keyboard": 2, "knife": 1, "oven": 1, "truck": 8,
    }  # fmt: skip
    assert len({i for v in design.SIXTEEN.values() for i in v}) == 207


def test_shape_bias_counts_decisions_for_either_cue_of_conflicting_pictures():
    rows = [
        ("a_cat1-dog2.png", "cat", "cat"),
        ("b_cat1-dog2.png", "cat", "dog"),
        ("c_cat3-oven11.png", "cat", "cat"),
        ("d_dog1-car1.png", "dog", "boat"),
        ("e_dog1-dog3.png", "dog", "dog"),  # shape and texture agree
    ]
    found = design.shape_bias(rows)
    assert found.shape_bias == pytest.approx(2 / 3)
    assert (found.fraction_correct_shape, found.fraction_correct_texture) == (2 / 5, 1 / 5)
    assert (found.pictures, found.conflicts) == (5, 4)
    assert found.by_category == {"cat": pytest.approx(2 / 3), "dog": None}
    assert design.shape_bias(rows[3:4]).shape_bias is None


@pytest.mark.parametrize(
    ("name", "texture", "shape"),
    [("0000_cueconf_boat8-bicycle2.png", "bicycle", "boat"), ("cat7-oven3.png", "oven", "cat")],
)
def test_names(name, texture, shape):
    assert (design.texture_of(name), design.shape_of(name)) == (texture, shape)


def test_refused_decisions():
    with pytest.raises(DataError, match="no decisions"):
        design.shape_bias([])
    with pytest.raises(DataError, match=r"IMG_7\.png.*cat7-oven3"):
        design.shape_bias([("IMG_7.png", "cat", "cat")])
    with pytest.raises(OffprintError, match="has 10 classes.*categories="):
        design.sixteen_class_decision(torch.zeros(1, 10))
    with pytest.raises(OffprintError, match="without outputs: x"):
        design.sixteen_class_decision(torch.zeros(1, 10), {"x": []})
    with pytest.raises(OffprintError, match=r"\(N, classes\)"):
        design.sixteen_class_decision(torch.zeros(10))
    with pytest.raises(OffprintError, match="no output for oven"):
        categories_of(["cat", "dog"], ["cat", "oven"], 2)
    assert categories_of(["cat", "dog", "oven"], ["cat", "oven"], 3) == {"cat": [0], "oven": [2]}
    assert categories_of(None, ["cat", "oven"], 1000) is design.SIXTEEN


# -- guidelines --------------------------------------------------------------------------------------------------------
def verdicts(model, side=64):
    return {f.number: f.verdict for f in design.check_design(model, torch.randn(1, 3, side, side)).findings}


def test_the_network_of_the_guidelines_keeps_them():
    options = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    model = offprint.create_model("unireplknet_a", **options)
    assert design.check_design(model, torch.randn(1, 3, 64, 64)).broken == []
    merged = offprint.deploy(model.eval(), torch.randn(1, 3, 64, 64))
    assert verdicts(merged)[3] == "not told" and verdicts(merged)[2] == "kept"


def test_each_guideline_can_be_broken():
    assert verdicts(tiny())[2] == "kept" and verdicts(tiny(shortcut=False))[2] == "broken"
    assert verdicts(tiny())[3] == "kept" and verdicts(tiny(small_kernel=None))[3] == "not told"
    assert verdicts(tiny())[7] == "broken" and verdicts(tiny(kernel_sizes=(3, 13, 13, 13), small_kernel=3))[7] == "kept"
    assert verdicts(tiny())[5] == "kept" and verdicts(tiny(kernel_sizes=(15, 13, 9, 3), small_kernel=3))[5] == "broken"
    assert verdicts(tiny())[9] == "broken" and verdicts(tiny(kernel_sizes=(13,) * 4))[9] == "kept"
    assert verdicts(tiny())[8] == "kept" and verdicts(tiny(depths=(1, 1, 18, 1)))[8] == "broken"
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 9, padding=4), nn.Conv2d(8, 8, 1))
    assert (verdicts(dense)[1], verdicts(dense)[2]) == ("broken", "broken")
    stacked = nn.Sequential(*(nn.Conv2d(3, 3, 9, padding=4, groups=3) for _ in range(3)))
    assert verdicts(stacked)[6] == "broken" and verdicts(tiny())[6] == "kept"
    bare = tiny()
    bare.stages[0].blocks[0].large_kernel.small_conv.bn = nn.Identity()
    assert verdicts(bare)[3] == "broken"


def test_networks_without_large_kernels_and_without_kernels():
    assert set(verdicts(offprint.create_model("mobilenetv2_100")).values()) == {"not told"}
    with pytest.raises(OffprintError, match="no convolution with a kernel wider than 1"):
        design.check_design(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.randn(1, 3, 8, 8))


# -- verbs -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path):
    """Two classes that differ in colour, and conflicting pictures named after them."""
    draw = np.random.default_rng(0)
    for name, channel in (("cat", 0), ("oven", 2)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(12):
            picture = draw.integers(0, 60, (32, 32, 3)).astype(np.uint8)
            picture[..., channel] += 150
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{i}.png")
    (tmp_path / "cues").mkdir()
    for i, source in enumerate(sorted((tmp_path / "data" / "cat").iterdir())[:4]):
        (tmp_path / "cues" / f"oven{i}-cat{i}.png").write_bytes(source.read_bytes())
    return tmp_path


def run(*words):
    result = CliRunner().invoke(app, ["measure", *map(str, words)])
    return result.exit_code, result.output + str(result.exception or "")


def test_the_ablation_and_the_measurements_of_its_runs(data, monkeypatch):
    monkeypatch.chdir(data)
    trunk = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    told = []
    options = {
        "epochs": 2,
        "size": 32,
        "trunk": trunk,
        "recipe": {"batch_size": 8},
        "logger": "none",
        "progress": False,
    }
    result = design.ablate(data / "data", data / "runs", kernels=(3, 7), say=told.append, **options)
    assert (
        [r["arm"] for r in result["rows"]]
        == ["3x3", "7x7", "7x7, no small kernel beside", "7x7, no shortcut"]
        == [t.split(", seed")[0] for t in told]
    )
    assert result["rows"][1]["parameters"] > result["rows"][2]["parameters"] > result["rows"][0]["parameters"]
    assert json.loads((data / "runs" / "ablation.json").read_text()) == json.loads(json.dumps(result))
    again = design.ablate(data / "data", data / "runs", kernels=(3, 7), **options)
    assert again["rows"] == result["rows"]
    folder = data / "runs" / "7x7" / "seed-0"
    code, text = run("erf", folder, "--size", 64, "--images", 2, "--data", data / "data", "--out", "e.png")
    assert code == 0 and (data / "e.png").stat().st_size > 1000
    row = json.loads((data / "e.json").read_text())[0]
    assert row["input_size"] == [64, 64] and row["images"] == 2 and row["weights"] == "run 7x7/seed-0"
    code, text = run("shape-bias", folder, "--data", data / "cues", "--out", "s.json")
    row = json.loads((data / "s.json").read_text())[0]
    assert code == 0 and row["pictures"] == row["conflicts"] == 4 and len(row["decisions"]) == 4
    code, text = run("design", folder)
    assert code == 0 and "identity shortcut" in text
    with pytest.raises(OffprintError, match="odd sides"):
        design.ablate(data / "data", data / "x", kernels=(4,))


def test_verbs_refuse(data, monkeypatch):
    monkeypatch.chdir(data)
    assert "random weights" in run("shape-bias", "replknet_31b", "--data", data / "cues")[1]
    assert "unknown model" in run("erf", "replknet_31", "--size", 64)[1]
    assert "32 pixels or more" in run("erf", "mobilenetv2_100", "--size", 8)[1]
    assert "--thresholds" in run("erf", "mobilenetv2_100", "--thresholds", "half")[1]
    assert "one model's weights" in run("erf", "mobilenetv2_100", "convnext_tiny", "--checkpoint", "x.pth")[1]
    assert "does not say its texture" in run("shape-bias", "replknet_31b", "--data", data / "data")[1]
    code, text = run("erf", "mobilenetv2_100", "--size", 64, "--images", 1, "--out", "m.png")
    assert code == 0 and "mobilenetv2_100 has random weights" in text and (data / "m.json").exists()
