"""What is unireplknet's own: merging, GRN, kernels, layer-wise rates, the other inputs, and what is refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones import _unireplknet_inputs as inputs
from offprint.models.backbones._unireplknet_networks import StationEncoder
from offprint.models.backbones.unireplknet import (
    BRANCHES,
    GRN,
    DilatedReparamBlock,
    UniRepLKNet,
    UniRepLKNetBlock,
    default_kernels,
)
from offprint.nn import reparam
from offprint.tasks.recipe import Recipe, build_optimizer

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "kernel_sizes": (3, 13, 13, 13), "layer_scale_init_value": 0.5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lived_in(module: nn.Module) -> nn.Module:
    """Norms, scales and GRN as after a training: nothing at 0 or 1."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
        elif isinstance(m, GRN):
            nn.init.normal_(m.gamma)
            if m.beta is not None:
                nn.init.normal_(m.beta)
        elif isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.normal_(m.weight, std=m.weight[0].numel() ** -0.5)
    return module.eval()


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [0, 3, 5, *sorted(BRANCHES)])
@pytest.mark.parametrize("size", [(15, 13), (4, 12), (1, 1)])
def test_a_merged_block_computes_the_same(kernel, size):
    block = lived_in(UniRepLKNetBlock(8, kernel, layer_scale_init_value=0.7)).double()
    merged, x = copy.deepcopy(block), torch.randn(2, 8, *size, dtype=torch.float64)
    merged.merge()
    expected = block(x)
    assert (merged(x) - expected).abs().max() < 1e-12 * expected.abs().max()
    names = {n.removeprefix("dwconv.lk_origin.").removeprefix("dwconv.") for n, _ in merged.named_parameters()}
    assert not [n for n, _ in merged.named_parameters() if "norm" in n or "bn" in n or "beta" in n or n == "gamma"], (
        names
    )
    built = UniRepLKNetBlock(8, kernel, deploy=True)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in merged.state_dict().items()}


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
def test_the_one_kernel_is_the_sum_of_the_branches(kernel):
    block = lived_in(DilatedReparamBlock(4, kernel)).double()
    weight, bias = block.kernel()
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    got = F.conv2d(x, weight, bias, padding=kernel // 2, groups=4)
    assert torch.allclose(got, block(x), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_merging_keeps_type_padding_and_groups(dtype):
    block = lived_in(UniRepLKNetBlock(8, 3)).to(dtype)
    before = block.dwconv
    block.merge()
    assert block.dwconv is before and (before.padding, before.groups) == ((1, 1), 8)
    assert {p.dtype for p in block.parameters()} == {dtype}


def test_merging_works_where_the_model_lies():
    with torch.device("meta"):
        block = UniRepLKNetBlock(8, 13).eval()
    block.merge()
    assert {p.device.type for p in block.parameters()} == {"meta"}


def test_merging_twice_changes_nothing_and_in_training_is_refused():
    model = lived_in(UniRepLKNet(3, 4, **TINY))
    once = offprint.deploy(model, torch.randn(1, 3, 64, 64))
    state = {k: v.clone() for k, v in once.state_dict().items()}
    for module in once.modules():
        if hasattr(module, "merge"):
            module.merge()
    assert all(torch.equal(v, state[k]) for k, v in once.state_dict().items())
    assert offprint.deploy(once) is once
    for part in (model.stages[1][0], model.stages[1][0].dwconv):
        part.train()
        with pytest.raises(OffprintError, match="in training mode"):
            part.merge()
    with pytest.raises(OffprintError, match="in training mode"):
        offprint.deploy(model.train())


@pytest.mark.parametrize(
    ("name", "training", "merged", "macs_training", "macs_merged"),
    [
        ("unireplknet_a", 4_649_060, 4_437_300, 0.675, 0.640),
        ("unireplknet_f", 6_489_328, 6_235_216, 0.947, 0.905),
        ("unireplknet_p", 11_080_520, 10_741_704, 1.629, 1.573),
        ("unireplknet_n", 18_818_880, 18_318_560, 2.849, 2.767),
        ("unireplknet_t", 31_693_420, 31_037_980, 5.004, 4.899),
        ("unireplknet_s", 56_456_704, 55_645_984, 9.219, 9.094),
        ("unireplknet_b", 99_089_416, 98_008_456, 16.224, 16.057),
        ("unireplknet_l", 220_076_056, 218_454_616, 36.132, 35.882),
        ("unireplknet_xl", 388_690_984, 386_529_064, 63.904, 63.570),
    ],
)
def test_counts_in_both_forms(name, training, merged, macs_training, macs_merged):
    for deploy, parameters, macs in ((False, training, macs_training), (True, merged, macs_merged)):
        info = offprint.model_info(name, deploy=deploy)
        assert info["parameters"] == parameters and round(info["macs"] / 1e9, 3) == macs


def test_merged_and_trained_files_find_their_form(tmp_path):
    model = lived_in(UniRepLKNet(3, 4, **TINY))
    x = torch.randn(2, 3, 70, 65)
    offprint.save_weights(model, tmp_path / "trained.safetensors")
    merged = offprint.deploy(model, x)
    offprint.save_weights(merged, tmp_path / "merged.safetensors")
    again = offprint.create_model("unireplknet_a", num_classes=4, deploy=True, checkpoint_path=tmp_path / "merged.safetensors",
                                  **TINY).eval()  # fmt: skip
    assert torch.equal(again(x), merged(x))
    assert (merged(x) - model(x)).abs().max() < 1e-5 * model(x).abs().max()
    with pytest.raises(CheckpointError, match="build the model with deploy=True"):
        offprint.load_weights(model, tmp_path / "merged.safetensors")
    with pytest.raises(CheckpointError, match="build it without deploy"):
        offprint.load_weights(again, tmp_path / "trained.safetensors")


# -- the network ------------------------------------------------------------------------------------------------------


def test_default_kernels():
    assert default_kernels((2, 2, 6, 2)) == ((3, 3), (13, 13), (13,) * 6, (13, 13))
    assert default_kernels((3, 3, 18, 3))[2] == (13, 3) * 9
    assert default_kernels((3, 3, 27, 3))[2] == (13, 3, 3) * 9


def test_every_branch_has_its_norm_and_the_block_another():
    block = UniRepLKNetBlock(8, 13)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in block.dwconv.modules()) == 6
    assert isinstance(block.norm, nn.BatchNorm2d) and isinstance(block.pwconv2[2], nn.BatchNorm2d)
    plain = UniRepLKNetBlock(8, 3)
    assert type(plain.dwconv) is nn.Conv2d and plain.dwconv.bias is None
    small = UniRepLKNetBlock(8, 5)  # a plain convolution, though 5 has branches as a Dilated Reparam Block
    assert type(small.dwconv) is nn.Conv2d and len(DilatedReparamBlock(8, 5).branches) == 2


def test_grn_is_its_formula():
    grn, x = GRN(6), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    assert torch.equal(grn.double()(x), x)  # gamma and beta start at 0
    nn.init.normal_(grn.gamma)
    nn.init.normal_(grn.beta)
    norm = torch.stack([x[:, :, :, c].square().sum((1, 2)).sqrt() for c in range(6)], 1)
    share = norm / (norm.mean(1, keepdim=True) + 1e-6)
    expected = (grn.gamma.flatten() * share + 1)[:, None, None] * x + grn.beta
    assert torch.allclose(grn(x), expected, atol=1e-12)


def test_a_block_is_its_parts_in_their_order():
    block = lived_in(UniRepLKNetBlock(8, 3, layer_scale_init_value=0.3)).double()
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    y = block.norm(F.conv2d(x, block.dwconv.weight, padding=1, groups=8))
    y = y * block.se.up(block.se.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
    y = F.gelu(F.linear(y.permute(0, 2, 3, 1), block.pwconv1[1].weight, block.pwconv1[1].bias))
    y = F.linear(block.act[1](y), block.pwconv2[0].weight).permute(0, 3, 1, 2)
    y = block.pwconv2[2](y)
    assert torch.allclose(block(x), x + block.gamma[:, None, None] * y, atol=1e-12)


def test_norms_come_after_the_convolutions_of_downsampling():
    model = UniRepLKNet(3, 4, **TINY)
    kinds = [[type(m).__name__ for m in layer] for layer in model.downsample_layers]
    assert kinds[0] == ["Conv2d", "LayerNorm2d", "GELU", "Conv2d", "LayerNorm2d"]
    assert kinds[1:] == [["Conv2d", "LayerNorm2d"]] * 3


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [(384, 128), (32, 32)])
def test_kernels_wider_than_the_map_stay_finite(size, autocast):
    model = UniRepLKNet(3, 4, **TINY).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = model.forward_features(torch.randn(2, 3, *size))
        loss = model.forward_head(maps).float().square().mean()
    loss.backward()
    assert torch.isfinite(maps).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_training_in_one_pass_is_training_of_the_branches():
    """In training every branch is normalised by its own batch; the kernel by hand gives the gradients of the plain one."""
    block = DilatedReparamBlock(6, 13).double().train()
    x = torch.randn(3, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    y = block.origin_bn(F.conv2d(x, block.lk_origin.weight, padding=6, groups=6))
    for k, r in block.branches:
        conv = getattr(block, f"dil_conv_k{k}_{r}")
        raw = F.conv2d(x, conv.weight, padding=r * (k - 1) // 2, dilation=r, groups=6)
        y = (
            y
            + (raw - raw.mean((0, 2, 3), keepdim=True))
            / (raw.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        )
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, block.lk_origin.weight], g)
    out = block(x)
    assert torch.allclose(out, y, atol=1e-10)
    for a, b in zip(torch.autograd.grad(out, [x, block.lk_origin.weight], g), expected, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_decay_of_grn_and_of_the_layer_scale():
    """GRN's gamma and beta have four axes and are decayed, the layer scale is a vector and is not."""
    model = UniRepLKNet(3, 4, **TINY)
    groups = build_optimizer(model, Recipe(weight_decay=0.05), 64).param_groups
    of = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    block = model.stages[0][0]
    assert of[id(block.act[1].gamma)] == of[id(block.act[1].beta)] == 0.05 and of[id(block.gamma)] == 0.0


def test_twelve_layers_for_layer_wise_rates():
    with torch.device("meta"):
        model = offprint.create_model("unireplknet_s")
    assert model.num_layers == 12 and model.layer_index("head.weight") == 13
    assert [model.layer_index(f"stages.2.{j}.gamma") for j in (0, 2, 3, 26)] == [3, 3, 4, 11]


def test_recipes():
    assert (Recipe.of("unireplknet_a").mixup, Recipe.of("unireplknet_n").cutmix) == (0.3, 0.5)
    assert Recipe.of("unireplknet_t").drop_path_rate == 0.2 and Recipe.of("unireplknet_s").cutmix == 1.0
    fine = Recipe.of("unireplknet_xl", "finetuning")
    assert (fine.epochs, fine.label_smoothing, fine.ema_decay, fine.layer_decay) == (20, 0.3, 0.9999, 0.8)
    assert Recipe.of("unireplknet_l", "pretraining").input_size == 192
    with pytest.raises(OffprintError, match="unknown stage"):
        Recipe.of("unireplknet_t", "finetuning")


def test_released_weights():
    from offprint.models.registry import entry

    assert entry("unireplknet_t").release().metrics == {"imagenet-1k": {"top1": 83.21}}
    first = entry("unireplknet_xl").release()
    assert first.input_size == (3, 384, 384) and first.url.endswith("unireplknet_xl_in22k_to_in1k_384_acc87.96.pth")
    assert entry("unireplknet_l").release("in22k").num_classes == 21841
    assert not entry("unireplknet_s_audio").weights


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"kernel_sizes": (3, 13, 13)}, "does not give a kernel to each"),
        ({"kernel_sizes": (3, 13, (13, 3), 13)}, "does not give a kernel to each"),
        ({"kernel_sizes": (3, 13, 12, 13)}, "kernel_size=12"),
        ({"depths": (1, 1, 1)}, "same number of stages"),
    ],
)
def test_networks_that_cannot_be(kwargs, says):
    with pytest.raises(OffprintError, match=says):
        UniRepLKNet(3, 4, **{**TINY, **kwargs})


def test_blocks_that_cannot_be():
    with pytest.raises(OffprintError, match="5, 7, 9, 11, 13, 15, 17"):
        DilatedReparamBlock(4, 19)
    with pytest.raises(OffprintError, match="spans 9 places"):
        DilatedReparamBlock(4, 7, branches=((3, 4),))
    assert reparam.dilated(torch.ones(1, 1, 3, 3), 4).shape[-1] == 9


def test_pictures_are_learnt_and_predicted(tmp_path):
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for label, base in (("bright", 170), ("dark", 40)):
        (tmp_path / "p" / label).mkdir(parents=True)
        for i in range(8):
            picture = np.clip(base + draw.integers(-40, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "p" / label / f"{i}.png")
    plain = {"mixup": 0.0, "cutmix": 0.0, "auto_augment": "", "random_erasing": 0.0, "warmup_epochs": 0}
    done = offprint.train(
        "unireplknet_a", tmp_path / "p", tmp_path / "r", recipe={"epochs": 2, "batch_size": 8, "input_size": 32, **plain},
        model_options=TINY, progress=False, accelerator="cpu", logger="none",
    )  # fmt: skip
    found = offprint.predict(done.load(), tmp_path / "p" / "dark" / "0.png")
    assert {row["class"] for row in found[0]["predictions"]} == {"bright", "dark"}


# -- audio ------------------------------------------------------------------------------------------------------------


def test_a_tone_lights_its_filter():
    t = torch.arange(16000, dtype=torch.float64) / 16000
    peaks = [int(inputs.audio_fbank(torch.sin(2 * math.pi * f * t)).mean(0).argmax()) for f in (250, 1000, 4000)]
    centres = torch.linspace(1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700), 130, dtype=torch.float64)[1:-1]
    for peak, f in zip(peaks, (250, 1000, 4000), strict=True):
        assert abs(700 * math.expm1(float(centres[peak]) / 1127) - f) < 0.06 * f


def test_spectrograms_are_padded_before_they_are_normalised():
    fbank = torch.full((2, 3, 5), inputs.SPEECH_MEAN)
    out = inputs.audio_spectrogram(fbank, frames=5)
    assert out.shape == (2, 5, 5) and (out[:, :3] == 0).all()
    assert torch.allclose(out[:, 3:], torch.tensor(-inputs.SPEECH_MEAN / (2 * inputs.SPEECH_STD)))
    assert inputs.audio_spectrogram(fbank, frames=2).shape == (2, 2, 5)


def test_masks_noise_and_mixing():
    fbank = torch.ones(64, 128, 128)
    masked = inputs.mask_fbank(fbank)
    rows, columns = (masked == 0).all(2).sum(1), (masked == 0).all(1).sum(1)
    assert rows.max() <= 48 and columns.max() <= 48 and rows.float().mean() > 10 and len(rows.unique()) > 5
    spectrogram = torch.zeros(32, 40, 8)
    spectrogram[:, 20] = 5
    moved = inputs.jitter_spectrogram(spectrogram)
    at = moved.amax(2).argmax(1) - 20
    assert at.abs().max() <= 10 and len(at.unique()) > 5 and 0 <= moved.min() and moved.max() < 5.1
    waves, targets = torch.randn(200, 50), F.one_hot(torch.arange(200) % 5, 5).float()
    mixed, soft = inputs.mix_waveforms(waves, targets)
    assert torch.allclose(soft.sum(1), torch.ones(200)) and torch.allclose(mixed.mean(1), torch.zeros(200), atol=1e-6)
    untouched = torch.isclose(mixed, waves - waves.mean(1, keepdim=True), atol=1e-6).all(1).float().mean()
    assert 0.25 < untouched < 0.55  # two in five


def test_a_network_of_sounds():
    model = offprint.create_model("unireplknet_s_audio", num_classes=3, **TINY).eval()
    out = model(model.listen(torch.randn(2, 16000)))
    assert out.shape == (2, 3)
    assert model.backbone.downsample_layers[0][0].in_channels == 1
    assert torch.allclose(offprint.deploy(model)(model.example_input(2)), model(model.example_input(2)), atol=1e-5)


@pytest.mark.parametrize(
    ("waveform", "kwargs", "says"),
    [
        (torch.zeros(1, 16000), {"sample_rate": 44100}, "resample it first"),
        (torch.zeros(1, 399), {}, "less than one window of 400"),
        (torch.tensor([[math.nan] * 500]), {}, "not finite"),
        (torch.zeros(1, 500, dtype=torch.int16), {}, "floating-point waveform"),
    ],
)
def test_sounds_that_are_refused(waveform, kwargs, says):
    with pytest.raises(OffprintError, match=says):
        inputs.audio_fbank(waveform, **kwargs)
    with pytest.raises(OffprintError, match=r"\(B, time, mel\)"):
        inputs.audio_to_map(torch.zeros(4, 4))


# -- video ------------------------------------------------------------------------------------------------------------


def test_a_frame_fills_a_quarter_of_its_rows():
    video = torch.arange(16.0)[None, None, :, None, None].expand(1, 1, 16, 8, 6)
    map_ = inputs.video_to_map(video)
    assert map_.shape == (1, 1, 32, 24)
    assert all((map_[0, 0, 2 * i : 2 * i + 2] == i).all() for i in range(16))  # 8 rows of a frame in 2 of the map
    with pytest.raises(OffprintError, match="10 frames make no square"):
        inputs.video_to_map(torch.zeros(1, 3, 10, 8, 8))
    with pytest.raises(OffprintError, match=r"\(B, C, T, H, W\)"):
        inputs.video_to_map(torch.zeros(1, 3, 8, 8))


def test_a_network_of_clips():
    model = offprint.create_model("unireplknet_b_video", num_classes=3, **{**TINY, "kernel_sizes": None})
    assert {b.dwconv.lk_origin.kernel_size for b in model.backbone.stages[3]} == {(11, 11)}
    assert model.eval()(torch.randn(2, 3, 16, 32, 32)).shape == (2, 3)


# -- points -----------------------------------------------------------------------------------------------------------


def test_every_view_lies_in_its_image_and_in_the_middle():
    points = torch.randn(2, 100, 3)
    views = inputs.point_views(points)
    assert views.shape == (20, 100, 3)
    assert torch.allclose(inputs.point_views(points[:1]), views[:10])  # the views of a cloud one after the other
    cells = inputs.view_cells(views, 32)
    x, y = cells // 32, cells % 32
    assert cells.min() >= 0 and cells.max() < 32 * 32
    for axis in (x, y):
        low, high = axis.flatten(1).amin(1), axis.flatten(1).amax(1)
        assert ((low + high) // 2 - 15).abs().max() <= 1
    spans = torch.stack([x.flatten(1).amax(1) - x.flatten(1).amin(1), y.flatten(1).amax(1) - y.flatten(1).amin(1)])
    assert (spans.amax(0) == 31).all()  # the longer side fills the image


def test_points_are_summed_into_their_cells():
    projection = lived_in(inputs.PointProjection(16, 1, 4)).double()
    points = torch.randn(1, 20, 3, dtype=torch.float64)
    seen = {}
    projection.img_block.register_forward_pre_hook(lambda m, x: seen.update(image=x[0]))
    projection(points)
    features = projection.point_features(points)[0]
    cells = inputs.view_cells(inputs.point_views(points, math.pi * torch.tensor(inputs.VIEWS[:1])), 16)[0]
    expected = torch.zeros(64, 16 * 16, dtype=torch.float64)
    for i in range(20):
        for cell in cells[i]:
            expected[:, cell] += features[i]
    assert torch.allclose(seen["image"][0].flatten(1), expected, atol=1e-12)


def test_neighbours_are_counted_with_the_point_itself():
    projection = lived_in(inputs.PointProjection(16, 1, 3)).double()
    points = torch.randn(1, 12, 3, dtype=torch.float64)
    own = projection.input_trans(points.transpose(1, 2))[0].T
    rows = []
    for i in range(12):
        near = (points[0] - points[0, i]).norm(dim=1).argsort()[:3]
        rows.append(torch.cat([own[near] - own[i], own[i].expand(3, -1)], 1))
    edges = torch.stack(rows).permute(2, 0, 1)[None]
    expected = projection.proj_layer(projection.graph_layer(edges).amax(-1)).transpose(1, 2)
    assert torch.allclose(projection.point_features(points), expected, atol=1e-12)


@pytest.mark.parametrize("fusion", [False, True])
def test_a_network_of_points(fusion):
    model = offprint.create_model(
        "unireplknet_s_points", num_classes=5, img_size=56, num_views=2, local_size=8, fusion=fusion, **TINY
    )
    points = torch.randn(3, 64, 3)
    out = model.eval()(points)
    assert out.shape == (3, 5)
    assert torch.allclose(model(points[1:2]), out[1:2], atol=1e-4)  # a cloud alone gives what it gives among others
    assert torch.allclose(offprint.deploy(model, points)(points), out, atol=1e-4)
    model.train()(points).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_authors_names_of_the_point_network():
    options = {"num_classes": 5, "img_size": 56, "num_views": 2, "local_size": 8, **TINY}
    model, other = (lived_in(offprint.create_model("unireplknet_s_points", **options)) for _ in range(2))
    theirs = {}
    for name, value in model.state_dict().items():
        for ours, old in (("norm1", "0.0.norm"), ("qkv", "0.0.fn.to_qkv"), ("proj", "0.0.fn.to_out.0"), ("norm2", "0.1.norm"),
                          ("mlp.0", "0.1.fn.net.0"), ("mlp.2", "0.1.fn.net.3")):  # fmt: skip
            name = name.replace(f"enc.fusion.{ours}.", f"enc.fusion.transformer.layers.{old}.")
        theirs[name] = value
    theirs |= {"views": torch.zeros(10, 2, 3), "base_model.head.weight": torch.zeros(1000, 32)}
    assert offprint.load_weights(other, theirs).dialect == "authors"
    points = torch.randn(1, 32, 3)
    assert torch.equal(other(points), model(points))


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (torch.zeros(1, 7, 3), "7 points, fewer than the 8 neighbours"),
        (torch.zeros(1, 20, 4), r"\(B, N, 3\)"),
        (torch.full((1, 20, 3), math.nan), "20 of the points .* not finite"),
    ],
)
def test_clouds_that_are_refused(points, says):
    with pytest.raises(OffprintError, match=says):
        inputs.PointProjection(16, 2, 8)(points)


def test_projections_that_cannot_be():
    with pytest.raises(OffprintError, match="1 to 10 views"):
        inputs.PointProjection(16, 11)
    with pytest.raises(OffprintError, match="must be even"):
        inputs.PointProjection(15)


def test_points_that_coincide_are_one_cell():
    out = inputs.PointProjection(16, 2, 8).eval()(torch.ones(1, 20, 3))
    assert torch.isfinite(out).all()


# -- series -----------------------------------------------------------------------------------------------------------


def test_series_fill_the_map_of_the_paper():
    model = offprint.create_model("unireplknet_s_series", variables=3, **TINY)
    assert (model.context, model.side, model.embedding.out_channels) == (48, 192, 768)
    assert offprint.create_model("unireplknet_s_series", variables=3, context=96, **TINY).side == 192


def test_forecasts_move_with_the_level_of_their_window():
    model = lived_in(offprint.create_model("unireplknet_a_series", variables=2, context=16, horizon=4, **TINY)).double()
    x = torch.randn(3, 2, 16, dtype=torch.float64)
    y = model(x)
    assert y.shape == (3, 2, 4)
    assert torch.allclose(model(100 + 5 * x), 100 + 5 * y, atol=1e-3)


def test_series_that_are_refused():
    model = offprint.create_model("unireplknet_a_series", variables=2, context=16, horizon=4, **TINY)
    with pytest.raises(OffprintError, match=r"\(B, 2, 16\), got \(1, 2, 15\)"):
        model(torch.randn(1, 2, 15))
    with pytest.raises(OffprintError, match="a context of 4 steps or more"):
        offprint.create_model("unireplknet_a_series", context=3, **TINY)
    with pytest.raises(OffprintError, match="horizon=0"):
        offprint.create_model("unireplknet_a_series", horizon=0, **TINY)
    with pytest.raises(OffprintError, match="unknown size of UniRepLKNet 'q'"):
        offprint.create_model("unireplknet_a_series", size="q")


def test_stations_become_tokens():
    options = {**TINY, "dims": (4, 8, 16, 32)}
    encoder = lived_in(StationEncoder(5, 4, 32, 128, **options)).double()
    series, time, place = (torch.randn(*s, dtype=torch.float64) for s in ((3, 128, 5), (3, 128, 4), (3, 3)))
    tokens = encoder(series, time, place)
    assert encoder.side == 64 and tokens.shape == (3, 4, 32)
    embedded = (
        encoder.value(series.transpose(1, 2)).transpose(1, 2) + encoder.time(time) + encoder.place(place)[:, None]
    )
    (maps,) = encoder.backbone(embedded.reshape(3, 1, 64, 64))
    assert torch.equal(tokens, maps.contiguous().view(3, 4, 32))
    with pytest.raises(OffprintError, match="fill no square map"):
        StationEncoder(steps=47)
    with pytest.raises(OffprintError, match=r"\(stations, 128, 5\)"):
        encoder(series[:, :10], time, place)


# -- for other runtimes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("unireplknet_s_audio", {"num_classes": 3}, (1, 32, 128)),
        ("unireplknet_b_video", {"num_classes": 3}, (1, 3, 16, 16, 16)),
        ("unireplknet_s_points", {"num_classes": 3, "img_size": 56, "num_views": 2, "local_size": 8}, (1, 32, 3)),
    ],
)
def test_merged_networks_are_plain_operators(name, options, shape, tmp_path):
    import onnx

    from offprint.models.export import export_model

    model = lived_in(offprint.create_model(name, **options, **TINY))
    assert export_model(model, tmp_path / "m.onnx", sample=torch.randn(shape)) < 1e-3
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    assert {node.domain for node in nodes} == {""}
    kernels = [
        node for node in nodes if node.op_type == "Conv" and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    assert len(kernels) == 4  # one depth-wise convolution a block, and no branches
