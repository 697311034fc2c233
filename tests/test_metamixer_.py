"""What is MetaMixer's own: the frame, two forms of one network, files in either, and the networks for other tasks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones._metamixer_forms import FFNetForecast, FFNetSegHead, FFNetSR, PerGroup, RepDW1d, StripDW
from offprint.models.backbones.metamixer import (
    ChannelMixer,
    Downsampling,
    FFBlock,
    FFNet,
    FFNifiedAttention,
    MetaMixer,
    RepDW,
    Residual,
    Skip,
)
from offprint.models.parts import Maps
from offprint.nn.mergeable import ConvNorm, Mergeable

TINY = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64), "stem_width": 8, "num_classes": 5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def uneven(model: nn.Module) -> nn.Module:
    """Norms, layer scales and kernels of ordinary size, so that what is left out or folded wrongly shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for value, low, high in ((module.running_var, 0.5, 2), (module.weight, 0.5, 1.5)):
                nn.init.uniform_(value, low, high)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, Residual) and module.layer_scale is not None:
            nn.init.uniform_(module.layer_scale, 0.5, 1.5)
    return model.double().eval()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max())


def tiny(name="ffnet_3", **kwargs) -> FFNet:
    return uneven(offprint.create_model(name, **{**TINY, **kwargs}))


# -- the frame -------------------------------------------------------------------------------------------------------
def test_the_frame_takes_any_steps():
    x = torch.randn(2, 4, 5, 5)
    steps = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 3), nn.Softmax(1), nn.Conv2d(6, 4, 1)
    query, key, act, value = steps
    assert torch.equal(MetaMixer(*steps)(x), value(act(key(query(x)))))
    for mixer in (FFNifiedAttention(4), ChannelMixer(4)):
        assert isinstance(mixer, MetaMixer) and mixer(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "trained", "merged", "macs"),
    [
        ("ffnet_1", 13_775_656, 13_660_152, 3.001e9),
        ("ffnet_2", 27_208_408, 26_908_440, 6.061e9),
        ("ffnet_3", 48_817_896, 48_330_632, 10.236e9),
        ("ffnet_4", 79_868_968, 79_200_360, 19.299e9),
    ],
)
def test_counts_of_both_forms(name, trained, merged, macs):
    info = offprint.model_info(name)
    assert info["parameters"] == trained and info["macs"] == pytest.approx(macs, rel=2e-4)
    with torch.device("meta"):
        assert sum(p.numel() for p in offprint.create_model(name, deploy=True).parameters()) == merged


def test_merged_multiply_adds():
    from offprint.proofs import kit

    assert kit.macs(FFNet(deploy=True), 1, 3, 256, 256) == pytest.approx(2.985e9, rel=2e-4)


# -- two forms -------------------------------------------------------------------------------------------------------
def parts():
    yield FFNifiedAttention(6), 6
    yield FFNifiedAttention(6, 3), 6
    yield ChannelMixer(6, 3), 6
    yield Downsampling(6, 12), 6
    yield FFBlock(8, use_se=True, use_layer_scale=True), 8
    yield ConvNorm(6, 4, 3, 2), 6
    yield RepDW(6, 18, stride=2), 6
    yield StripDW(6, 9), 6
    yield StripDW(6, 3), 6


@pytest.mark.parametrize(("part", "dim"), list(parts()), ids=lambda v: type(v).__name__)
def test_parts_merge_exactly(part, dim):
    part, x = uneven(part), torch.randn(2, dim, 13, 10, dtype=torch.float64)
    before, count = part(x), sum(p.numel() for p in part.parameters())
    part.merge()
    assert close(part(x), before) and sum(p.numel() for p in part.parameters()) <= count
    state = {k: v.clone() for k, v in part.state_dict().items()}
    part.merge()  # a second time changes nothing
    assert all(torch.equal(v, state[k]) for k, v in part.state_dict().items())
    part.train()(x).sum().backward()  # and the merged form learns on


def test_merging_in_training_is_refused():
    net = tiny().train()
    with pytest.raises(OffprintError, match=r"training mode.*call eval\(\)"):
        net.merge()
    with pytest.raises(OffprintError, match="training mode"):
        offprint.deploy(net)


def test_the_norm_before_a_convolution_scales_its_inputs():
    skip, x = uneven(Skip(5, 5)), torch.randn(1, 5, 4, 4, dtype=torch.float64)
    norm, weight = skip.conv.bn, skip.conv.c.weight[:, :, 0, 0].detach()
    t = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected, shift = weight @ torch.diag(t) + torch.eye(5), weight @ (norm.bias - norm.running_mean * t)
    before = skip(x)
    skip.merge()
    assert torch.allclose(skip.weight[:, :, 0, 0], expected) and torch.allclose(skip.bias, shift)
    assert close(skip(x), before)


def test_the_small_kernel_lies_in_the_middle():
    layer = RepDW(2, 2).eval()
    with torch.no_grad():
        layer.conv.c.weight.zero_()
        layer.conv1.c.weight.fill_(1.0)
    layer.merge()
    assert layer.weight[0, 0, 2:5, 2:5].min() > 0.9 and float(layer.weight.abs().sum()) == pytest.approx(18, rel=1e-4)


def test_small_kernels_of_the_token_mixer_are_plain():
    mixer = FFNifiedAttention(4, 3)
    assert type(mixer.conv1) is nn.Conv2d and mixer.conv1.bias is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in (*mixer.conv1.modules(), *mixer.conv2.modules()))


def test_deploy_keeps_the_last_norm_and_the_scales():
    net, x = tiny().float(), torch.randn(2, 3, 70, 53)
    merged = offprint.deploy(net, x, tolerance=1e-4)
    assert [n for n, m in merged.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["norm"]
    assert any(n.endswith("layer_scale") for n, _ in merged.named_parameters())
    assert not any(m.merged for m in net.modules() if isinstance(m, Mergeable))
    assert offprint.deploy(merged, x) is merged


def test_either_file_loads_into_either_form():
    source, x = tiny(), torch.randn(2, 3, 40, 50, dtype=torch.float64)
    expected, trained = source(x), {k: v.clone() for k, v in source.state_dict().items()}
    source.merge()
    merged = source.state_dict()
    assert "patch_embed.0.weight" in merged and "stages.1.0.proj.1.weight" in merged
    for state in (trained, merged, {"state_dict": {f"module.{k}": v for k, v in merged.items()}}):
        for deploy in (False, True):
            target = offprint.create_model("ffnet_3", **TINY, deploy=deploy).double().eval()
            report = offprint.load_weights(target, state)
            assert not report.fresh and close(target(x), expected), (deploy, list(state)[:2])


def test_a_merged_network_is_rebuilt_merged(tmp_path):
    from offprint.models.sharing import from_pretrained, save_pretrained

    net = tiny().float()
    net.merge()
    save_pretrained(net, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m")).eval()
    assert again.spec["kwargs"]["deploy"] and torch.equal(again(x := torch.randn(1, 3, 64, 64)), net(x))


def test_a_file_of_another_size_is_refused():
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(tiny(deploy=True), tiny(dims=(16, 32, 64, 128)).state_dict())
    with pytest.raises(CheckpointError, match="missing"):
        offprint.load_weights(tiny("ffnet_3"), tiny("ffnet_2").state_dict())  # no layer scales


def test_layer_scale_is_of_the_two_largest():
    for name, expected in (("ffnet_1", 0), ("ffnet_2", 0), ("ffnet_3", 10), ("ffnet_4", 10)):
        net = offprint.create_model(name, **TINY)
        scales = [p for n, p in net.named_parameters() if n.endswith("layer_scale")]
        assert len(scales) == expected and all(float(p.detach().max()) == pytest.approx(1e-6) for p in scales)


def test_squeeze_excite_is_timms():
    from timm.layers import SqueezeExcite

    for dim, hidden in ((8, 8), (80, 24), (88, 24), (176, 48)):
        theirs, ours = SqueezeExcite(dim, 0.25), FFBlock(dim, use_se=True).token_mixer[1]
        assert ours.fc1.out_channels == hidden == theirs.fc1.out_channels
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(2, dim, 3, 3)
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    net = FFNet(depths=(3, 1), dims=(8, 16), token_kernel_sizes=(3, 7), use_se=True, stem_width=8)
    assert [not isinstance(b.token_mixer[1], nn.Identity) for b in (*net.stages[0], net.stages[1][1])] == [
        True, False, True, True,
    ]  # fmt: skip


def test_channels_of_the_image_are_honoured():
    """The authors accept the argument and read three channels all the same."""
    assert tiny(in_chans=5)(torch.randn(1, 5, 32, 32, dtype=torch.float64)).shape == (1, 5)
    source, target = tiny(), tiny(in_chans=1)
    assert offprint.load_weights(target, source.state_dict()).adapted == ["patch_embed.0.c.weight"]
    source.merge()
    target = tiny(in_chans=1)
    assert offprint.load_weights(target, source.state_dict()).adapted[-1] == "patch_embed.0.weight"


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"dims": (8, 12, 24, 48)}, "widths 8 and 12.*must be a multiple"),
        ({"depths": (1, 1, 1)}, "give one of each for every stage"),
    ],
)
def test_refusals(kwargs, says):
    with pytest.raises(OffprintError, match=says):
        offprint.create_model("ffnet_1", **{**TINY, **kwargs})


# -- enlarging -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [2, 3])
def test_without_its_body_it_repeats_the_picture(scale):
    net, x = FFNetSR(scale, dim=4, depth=1), torch.rand(1, 3, 5, 7)
    nn.init.zeros_(net.conv_bef_up.weight)
    nn.init.zeros_(net.conv_bef_up.bias)
    assert torch.equal(net(x), F.interpolate(x, scale_factor=scale, mode="nearest"))


def test_places_of_the_norms():
    kinds = {norm: [type(m).__name__ for m in FFNetSR(dim=4, depth=1, norm=norm).body[0].token_mixer] for norm in (None, "LN", "BN")}  # fmt: skip
    assert kinds[None] == ["Conv2d", "Conv2d", "GELU", "Conv2d"]
    assert kinds["LN"] == ["LayerNorm2d", *kinds[None]] and kinds["BN"] == ["Conv2d", "BatchNorm2d", *kinds[None][1:]]


def test_two_names_of_one_network():
    for name, count in (("ffnet_sr_light", 1_789_452), ("ffnet_sr", 2_381_580)):
        for each in (name, f"{name}_x2"):
            entry = offprint.api.entry(each)
            assert entry.task == "restoration" and entry.weights["released"].url.endswith(".pth")
            with torch.device("meta"):
                assert sum(p.numel() for p in offprint.create_model(each).parameters()) == count


def test_photographs_are_learnt_and_enlarged(tmp_path):
    """``offprint train --model ffnet_sr_light_x2``, then ``offprint upscale`` with the run and with a file."""
    from typer.testing import CliRunner

    from offprint.cli.main import app

    generator, folder = np.random.default_rng(0), tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    made = CliRunner().invoke(app, [
        "train", "--data", str(folder), "--model", "ffnet_sr_light_x2", "--epochs", "1", "--out", str(tmp_path / "run"),
        "--option", "dim=8", "--option", "depth=1", "--patch", "8", "--patches", "1",
    ])  # fmt: skip
    assert made.exit_code == 0, made.output + repr(made.exception)
    made = CliRunner().invoke(
        app, ["upscale", str(folder / "0.png"), "--model", str(tmp_path / "run"), "--out", str(tmp_path / "large.png")]
    )
    assert made.exit_code == 0, made.output + repr(made.exception)
    assert Image.open(tmp_path / "large.png").size == (96, 96)


@pytest.mark.parametrize(("kwargs", "says"), [({"scale": 5}, "choose 2, 3 or 4"), ({"norm": "GN"}, "'LN' or 'BN'")])
def test_refusals_of_enlarging(kwargs, says):
    with pytest.raises(OffprintError, match=says):
        FFNetSR(**kwargs)
    with pytest.raises(OffprintError, match=r"\(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        FFNetSR(dim=4, depth=1)(torch.rand(1, 1, 8, 8))


# -- segmentation ----------------------------------------------------------------------------------------------------
SEG = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}


def segmenter() -> nn.Module:
    return offprint.compose(
        {"name": "ffnet_seg", **SEG}, head={"name": "ffnet_seg_head", "width": 8, "depth": 1}, num_classes=4
    )


def test_the_head_reads_strides_8_to_32_of_any_backbone():
    net = uneven(segmenter()).float()
    x = torch.randn(1, 3, 75, 90)
    assert net(x).shape == (1, 4, 75, 90) and net.head.in_channels == (8, 16, 24)
    merged = offprint.deploy(net, x, tolerance=1e-3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
    other = offprint.compose("ghostnetv2_100", head={"name": "ffnet_seg_head", "width": 8, "depth": 1}, num_classes=2)
    assert other.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(OffprintError, match=r"maps of \(8, 16\) channels.*got \(8, 8\)"):
        FFNetSegHead(Maps((8, 16), (8, 16)), width=8)([torch.randn(1, 8, 4, 4)] * 2)


def test_the_authors_segmentation_files_load():
    """``backbone.`` and ``decode_head.``, as their toolbox saves a model; and the pre-trained backbone with its classifier."""
    source, target = uneven(segmenter()), segmenter().double().eval()
    state = {
        k.replace("head.", "decode_head.", 1) if k.startswith("head.") else k: v for k, v in source.state_dict().items()
    }
    offprint.load_weights(target, {"state_dict": state})
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(target(x), source(x))
    backbone = uneven(offprint.create_model("ffnet_seg", num_classes=7, **SEG))
    names = {("head2.3." + k[5:] if k.startswith("head.") else k): v for k, v in backbone.state_dict().items()}
    again = offprint.create_model("ffnet_seg", num_classes=7, **SEG).double().eval()
    assert offprint.load_weights(again, names).dialect == "authors"
    assert torch.equal(again(x), backbone(x))


def test_the_network_as_the_authors_have_it():
    for name, classes in (("ffnet_seg_ade20k", 150), ("ffnet_seg_cityscapes", 19)):
        with torch.device("meta"):
            net = offprint.create_model(name)
        assert net.head.conv_seg.out_channels == classes and net.head.conv_seg.in_channels == 1024
        assert net.head.in_channels == (192, 384, 768)
        assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 68
    small = uneven(offprint.create_model("ffnet_seg_ade20k", num_classes=3, **SEG))
    state = {
        k.replace("head.", "decode_head.", 1) if k.startswith("head.") else k: v for k, v in small.state_dict().items()
    }
    again = offprint.create_model("ffnet_seg_ade20k", num_classes=3, **SEG)
    assert offprint.load_weights(again, {"state_dict": state}, dialect="authors").dialect == "authors"


# -- forecasting -----------------------------------------------------------------------------------------------------
def forecaster(**kwargs) -> FFNetForecast:
    sizes = {"nvars": 3, "seq_len": 24, "target_window": 5, "dim": 8, "kernel_size": 11, "small": 5}
    return uneven(offprint.create_model("ffnet_forecast", **{**sizes, **kwargs}))


def test_groups_as_products_of_matrices():
    layer, x = PerGroup(4, 3, 5).double(), torch.randn(2, 4, 3, 7, dtype=torch.float64)
    expected = F.conv1d(x.flatten(1, 2), layer.weight, layer.bias, groups=4).unflatten(1, (4, 5))
    assert close(layer(x), expected)


def test_level_and_spread_of_a_series_pass_through():
    net, x = forecaster(), torch.randn(2, 3, 24, dtype=torch.float64)
    assert torch.allclose(net(x * 100 + 7), net(x) * 100 + 7, rtol=1e-3, atol=1e-3)


def test_the_long_kernel_merges():
    """The authors' own merge cannot run: 5 taps go into the middle of 51, 23 zeros on both sides."""
    net, x = forecaster(kernel_size=51), torch.randn(2, 3, 24, dtype=torch.float64)
    layer = next(m for m in net.modules() if isinstance(m, RepDW1d))
    before, large = net(x), layer.kernel()[0].clone()
    with torch.no_grad():
        layer.small_conv.conv.weight.zero_()
    moved = (large - layer.kernel()[0]).abs().amax((0, 1)).nonzero()[:, 0]
    assert moved.tolist() == [23, 24, 25, 26, 27]
    net = forecaster(kernel_size=51)
    before = net(x)
    net.merge()
    assert close(net(x), before) and not hasattr(next(m for m in net.modules() if isinstance(m, RepDW1d)), "small_conv")


def test_files_of_a_forecaster_in_either_form():
    source, x = forecaster(), torch.randn(1, 3, 24, dtype=torch.float64)
    expected, trained = source(x), {k: v.clone() for k, v in source.state_dict().items()}
    source.merge()
    merged = {
        k.replace("channel_mixer.dw.", "channel_mixer.dw.lkb_reparam."): v for k, v in source.state_dict().items()
    }
    idle = {
        "te_patch.0.weight": torch.ones(4),
        "downsample_layers.2.1.bias": torch.ones(3),
        "lat_layer.0.bias": torch.ones(1),
    }
    for state in (trained, merged):
        for deploy in (False, True):
            target = forecaster(deploy=deploy)
            report = offprint.load_weights(target, {**state, **idle})
            assert set(idle) <= set(report.dropped) and close(target(x), expected)


def test_a_forecaster_learns_a_table(tmp_path):
    """``offprint train --model ffnet_forecast``: variables, context and horizon come from the data; it beats the last value."""
    from typer.testing import CliRunner

    from offprint.cli.main import app

    t = np.arange(400)
    draw = np.random.default_rng(0)
    waves = np.stack([np.sin(2 * np.pi * t / 12 + j) * (j + 1) + 10 * j for j in range(2)], 1)
    file = tmp_path / "power.csv"
    rows = "\n".join(f"{a:.5f},{b:.5f}" for a, b in waves + 0.05 * draw.normal(size=waves.shape))
    file.write_text("load,heat\n" + rows + "\n")
    made = CliRunner().invoke(app, [
        "train", "--data", str(file), "--model", "ffnet_forecast", "--out", str(tmp_path / "run"), "--context", "24", "--horizon",
        "6", "--epochs", "6", "--batch-size", "16", "--lr", "0.005", "--option", "dim=8", "--option", "drop_rate=0.0",
    ])  # fmt: skip
    assert made.exit_code == 0, made.output + repr(made.exception)
    figures = offprint.evaluate(str(tmp_path / "run"))
    assert figures["mse"] < 0.5 * figures.beside["repeat last"]["mse"]


def test_refusals_of_forecasting():
    with pytest.raises(OffprintError, match=r"\(B, 3, 24\), got \(2, 24, 3\)"):
        forecaster()(torch.randn(2, 24, 3))
    with pytest.raises(OffprintError, match="target_window=0; give 1 or more"):
        forecaster(target_window=0)
    with pytest.raises(OffprintError, match="no released weights"):
        offprint.create_model("ffnet_forecast", pretrained=True)
