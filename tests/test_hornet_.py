"""What is hornet's own: the order, the global filter at any size, the feature pyramids under any backbone, what is refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.hornet import (
    Block,
    GlobalLocalFilter,
    GnConv,
    HorFPN,
    HorNet,
    HorUPerHead,
    resample_filter,
)
from offprint.nn import DepthwiseConv2d, Pointwise


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


SMALL = {"base_dim": 16, "depths": (1, 1, 1, 1), "layer_scale_init_value": 0.5}


def by_the_formula(layer: GnConv, x: torch.Tensor) -> torch.Tensor:
    """The recursion of Sec. 3.1, one convolution for each group."""
    dims, s = layer.dims, layer.scale
    y = F.conv2d(x, layer.proj_in.weight, layer.proj_in.bias)
    p, start = y[:, : dims[0]], dims[0]
    for k, dim in enumerate(dims):
        a = start - dims[0]
        q = y[:, start : start + dim]
        f = F.conv2d(q, layer.dwconv.weight[a : a + dim], layer.dwconv.bias[a : a + dim], padding=3, groups=dim) * s
        if k:
            p = F.conv2d(p, layer.pws[k - 1].weight, layer.pws[k - 1].bias)
        p, start = p * f, start + dim
    return F.conv2d(p, layer.proj_out.weight, layer.proj_out.bias)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("training", [False, True])
def test_gnconv_is_the_recursion(order, training):
    layer, x = GnConv(16, order, 1 / 3).train(training), torch.randn(2, 16, 9, 12)
    assert torch.allclose(layer(x), by_the_formula(layer, x), atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_order_n_is_of_degree_n_plus_one(order):
    layer = GnConv(16, order, 1 / 3).double()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    x = torch.randn(1, 16, 7, 7, dtype=torch.double)
    assert torch.allclose(layer(3 * x), 3 ** (order + 1) * layer(x), rtol=1e-9)


@pytest.mark.parametrize("size", [(14, 14), (14, 15), (9, 12), (5, 7), (32, 20), (1, 1)])
def test_global_filter_is_a_circular_convolution(size):
    """The filtered half equals the convolution with the filter's own response, taken in double precision from the definition."""
    layer = GlobalLocalFilter(4, 14, 8).eval()
    nn.init.normal_(layer.complex_weight)
    x = torch.randn(2, 4, *size)
    h, w = size
    weight = torch.view_as_complex(resample_filter(layer.complex_weight, (h, w // 2 + 1)).double().contiguous())
    response = torch.fft.irfft2(weight, s=size)  # (2, h, w)
    z = layer.pre_norm(x)[:, 2:].double()
    spread = torch.zeros_like(z)
    for dy in range(h):
        for dx in range(w):
            spread += response[:, dy, dx, None, None] * z.roll((dy, dx), (2, 3))
    local = layer.dw(layer.pre_norm(x)[:, :2])
    mixed = torch.stack([local[:, 0], spread[:, 0].float(), local[:, 1], spread[:, 1].float()], 1)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.post_norm(mixed), atol=1e-4)
        assert torch.allclose(layer(x, 0.5), 0.5 * layer.post_norm(mixed), atol=1e-4)


def test_filter_is_resampled_only_where_it_must_be():
    weight = torch.randn(3, 14, 8, 2)
    assert resample_filter(weight, (14, 8)) is weight
    other = resample_filter(weight, (27, 15))
    assert other.shape == (3, 27, 15, 2)
    assert torch.allclose(
        other[:, ::2, ::2], weight, atol=1e-6
    )  # corners aligned: every second frequency is an old one


def test_filter_trains_in_channels_last_memory():
    layer = GlobalLocalFilter(8, 6, 4).to(memory_format=torch.channels_last).train()
    x = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    layer(x).square().sum().backward()
    assert layer.complex_weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_gradient_written_out_is_the_gradient(kernel_size):
    layer = DepthwiseConv2d(6, kernel_size).double()
    x = torch.randn(3, 6, 9, 5, dtype=torch.double, requires_grad=True)
    grads = []
    for training in (True, False):
        layer.train(training).zero_grad()
        x.grad = None
        layer(x, 0.5).square().sum().backward()
        grads.append([t.grad.clone() for t in (x, *layer.parameters())])
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))
    assert torch.allclose(layer(x, 0.5), 0.5 * nn.Conv2d.forward(layer, x))


@pytest.mark.parametrize(("stride", "bias"), [(1, False), (1, True), (2, True)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pointwise_is_a_convolution(stride, bias, memory):
    layer = Pointwise(5, 7, stride, bias)
    x = torch.randn(2, 5, 9, 6).contiguous(memory_format=memory)
    expected = nn.Conv2d.forward(layer, x)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    if stride == 1:
        parts = layer(x, (3, 4))
        assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("hornet_tiny_7x7", 22_409_512, 3.968),
        ("hornet_tiny_gf", 22_991_848, 3.889),
        ("hornet_small_7x7", 49_528_264, 8.814),
        ("hornet_small_gf", 50_401_768, 8.694),
        ("hornet_base_7x7", 87_256_680, 15.567),
        ("hornet_base_gf", 88_421_352, 15.408),
        ("hornet_base_gf_img384", 92_099_560, 45.278),
        ("hornet_large_7x7", 194_542_504, 34.796),
        ("hornet_large_gf", 196_289_512, 34.557),
        ("hornet_large_gf_img384", 201_806_824, 101.553),
    ],
)
def test_counts(name, parameters, macs):
    info = offprint.model_info(name)
    assert info["parameters"] == parameters and info["macs"] / 1e9 == pytest.approx(macs, abs=6e-4)


def test_a_filter_of_another_grid_is_resampled_on_loading():
    source = offprint.create_model("hornet_tiny_gf", **SMALL)
    target = offprint.create_model("hornet_tiny_gf", **SMALL, grids=((56, 29), (28, 15), (24, 13), (12, 7)))
    report = offprint.load_weights(target, {"model": source.state_dict()})
    assert sum("complex_weight" in name for name in report.adapted) == 2
    stored = source.stages[3][0].gnconv.dwconv.complex_weight
    assert torch.allclose(target.stages[3][0].gnconv.dwconv.complex_weight, resample_filter(stored, (12, 7)))
    other = offprint.create_model("hornet_tiny_gf", **{**SMALL, "base_dim": 32})
    with pytest.raises(OffprintError, match="another size"):
        offprint.load_weights(other, source.state_dict())


def test_mmpretrain_names_load():
    source = offprint.create_model("hornet_tiny_gf", **SMALL, num_classes=4).eval()
    state = {}
    for name, value in source.state_dict().items():
        name = name.replace(".gnconv.pws.", ".gnconv.projs.").replace(".gamma1", ".gamma1.weight")
        name = name.replace(".gamma2", ".gamma2.weight")
        name = name.replace("norm.", "norm3.") if name.startswith("norm.") else name
        state[name.replace("head.", "head.fc.") if name.startswith("head.") else f"backbone.{name}"] = value
    target = offprint.create_model("hornet_tiny_gf", **SMALL, num_classes=4).eval()
    assert offprint.load_weights(target, {"state_dict": state}).dialect == "mmpretrain"
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(target(x), source(x))


def test_deploy_folds_the_layer_scales():
    model = offprint.create_model("hornet_tiny_gf", **SMALL).eval()
    x = torch.randn(1, 3, 64, 96)
    merged = offprint.deploy(model, x)
    assert not any(name.endswith(("gamma1", "gamma2")) for name in merged.state_dict())
    with torch.no_grad():
        assert torch.allclose(merged(x), model(x), atol=1e-5)


def test_layer_scale_can_be_left_out_and_paths_dropped():
    assert Block(8, 2, layer_scale_init_value=0).gamma1 is None
    block, x = Block(8, 2, drop_path=0.999).train(), torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_layer_decay_groups():
    model = HorNet(base_dim=16)
    groups = {n: model.layer_index(n) for n, _ in model.named_parameters()}
    assert set(groups.values()) == set(range(14))
    assert groups["downsample_layers.0.0.weight"] == 0 and groups["downsample_layers.3.1.weight"] == 12
    assert groups["stages.2.1.gamma1"] == 3 and groups["stages.2.17.norm1.weight"] == 11
    assert groups["norm.weight"] == groups["head.bias"] == 13


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("hornet_tiny_gf", SMALL),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
        ("ghostnetv2_100", {"width": 0.25, "out_indices": (1, 2, 3, 4)}),
        ("halonet_h1", {"blocks": ("c", "c", "c", "a"), "mids": (8, 8, 16, 16), "widths": (8, 16, 24, 32)}),
    ],
)
@pytest.mark.parametrize("kind", ["7x7", "gf"])
def test_feature_pyramids_stand_on_any_backbone(name, kwargs, kind):
    encoder = offprint.create_model(name, features_only=True, **kwargs)
    channels = encoder.feature_info.channels()
    neck, head = HorFPN(channels, 32, kind=kind), HorUPerHead(channels, 32, num_classes=3, kind=kind)
    x = torch.randn(2, 3, 104, 136)
    maps = encoder(x)
    levels = neck(maps)
    assert [tuple(v.shape[2:]) for v in levels[:4]] == [tuple(m.shape[2:]) for m in maps]
    assert len(levels) == 5 and all(v.shape[1] == 32 for v in levels)
    assert levels[4].shape[2:] == tuple(math.ceil(s / 2) for s in levels[3].shape[2:])
    logits = head(maps)
    assert logits.shape == (2, 3, *maps[0].shape[2:])
    (logits.mean() + sum(v.mean() for v in levels)).backward()
    assert all(p.grad is not None for m in (encoder, neck, head) for p in m.parameters())


def test_segmentation_head_deploys_and_travels():
    head = HorUPerHead([8, 16, 24, 32], 32, num_classes=3).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 24), (16, 12), (24, 6), (32, 3))]
    folded = offprint.deploy(head, (maps,))
    with torch.no_grad():
        assert torch.allclose(folded(maps), head(maps), atol=1e-5)
        assert torch.equal(copy.deepcopy(head)(maps), head(maps))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_refusals():
    with pytest.raises(OffprintError, match="divisible by 16"):
        GnConv(24, 5)
    with pytest.raises(OffprintError, match="order 0"):
        GnConv(24, 0)
    with pytest.raises(OffprintError, match="unknown kind of gnConv 'gff'"):
        GnConv(16, 2, kind="gff")
    with pytest.raises(OffprintError, match="even number"):
        GlobalLocalFilter(7)
    with pytest.raises(OffprintError, match="one frequency"):
        GlobalLocalFilter(8, 0, 4)
    with pytest.raises(OffprintError, match="even number"):
        GnConv(4, 3, kind="gf")  # groups of 1, 2 and 4 channels: 7 in all
    with pytest.raises(OffprintError, match="same number of stages"):
        HorNet(depths=(1, 1, 1))
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (24, 4), (32, 2))]
    for part in (HorFPN([8, 16, 24, 32], 16), HorUPerHead([8, 16, 24, 32], 16).eval()):
        with pytest.raises(OffprintError, match=r"feature_info.channels\(\)"):
            part(maps[:3])
    with pytest.raises(OffprintError, match="reverse the list"):
        HorFPN([32, 24, 16, 8], 16)(maps[::-1])
    with pytest.raises(OffprintError, match="num_outs=3"):
        HorFPN([8, 16, 24, 32], 16, num_outs=3)
