"""What is affnet's own: one complex perceptron, the convolution theorem, transforms as matrices, precisions, dense forms."""

import pytest
import torch

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.affnet import AdaptiveFrequencyFilter, AFFBlock, AFFStage, channel_norm
from offprint.models.export import export_model

SMALL = {"dims": (8, 16, 16, 24, 24), "depths": (1, 1, 1, 1, 2)}
SIZES = [(9, 12), (8, 7), (1, 1), (2, 3), (5, 5)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def mixer(dim=16, **options):
    """With weights of the size that trained ones have: at 0.02 the soft threshold leaves hardly anything."""
    made = AdaptiveFrequencyFilter(dim, **options).double()
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(std=0.5)
    return made


def net(name="affnet_et", **options):
    return offprint.create_model(name, **{**SMALL, "num_classes": 5, **options}).eval()


@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_the_mask_is_one_complex_perceptron(activation):
    ours = mixer(activation=activation)
    act = {"silu": torch.nn.functional.silu, "relu": torch.relu}[activation]
    spectrum = torch.randn(2, 16, 6, 4, dtype=torch.complex128)
    w1, b1, w2, b2 = (torch.complex(p[0], p[1]) for p in (ours.w1, ours.b1, ours.w2, ours.b2))
    x = spectrum.unflatten(1, (8, 2))
    h = torch.einsum("bgihw,gio->bgohw", x, w1) + b1[..., None, None]
    h = torch.complex(act(h.real), act(h.imag))
    m = torch.einsum("bgihw,gio->bgohw", h, w2) + b2[..., None, None]
    shrink = torch.nn.functional.softshrink
    expected = torch.complex(shrink(m.real, 0.01), shrink(m.imag, 0.01)).flatten(1, 2)
    assert (expected != 0).any() and torch.allclose(ours.mask(spectrum), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_convolution_theorem(size):
    """With the mask held, the filter is a circular convolution with the mask's own map, as large as the image."""
    ours, x = mixer(), torch.randn(1, 16, *size, dtype=torch.float64)
    mask = ours.mask(torch.fft.rfft2(x, norm="ortho"))
    kernel = torch.fft.irfft2(mask, s=size)
    h, w = size
    expected = sum(
        kernel[..., i : i + 1, j : j + 1] * torch.roll(x, (i, j), (2, 3)) for i in range(h) for j in range(w)
    )
    assert torch.allclose(ours(x) - x, expected, atol=1e-10)


def test_the_mixer_sees_phase_and_does_not_commute_with_shifts():
    ours, x = mixer(), torch.randn(1, 16, 8, 8, dtype=torch.float64)
    moved = torch.roll(ours(torch.roll(x, 3, 3)), -3, 3)
    assert (moved - ours(x)).abs().max() > 0.05 * ours(x).abs().max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("activation", ["silu", "relu", "prelu"])
def test_matrices_equal_the_fft(size, activation):
    ours, x = mixer(activation=activation), torch.randn(2, 16, *size, dtype=torch.float64, requires_grad=True)
    grads = []
    for ours.matrices in (False, True):
        (grad,) = torch.autograd.grad(ours(x).square().sum(), x)
        grads.append((ours(x).detach(), grad))
    for a, b in zip(*grads, strict=True):
        assert a.shape == x.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_an_export_holds_no_complex_number_and_one_size(tmp_path):
    model, x = net(), torch.randn(1, 3, 70, 90)
    program = torch.export.export(model, (x,), strict=False)
    called = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not [c for c in called if "fft" in c or "complex" in c]
    assert export_model(model, tmp_path / "m.onnx", sample=x) < 1e-4
    before = model(x)
    model.use_matrices()
    assert torch.allclose(model(x), before, atol=1e-5)
    with pytest.raises(OffprintError, match="one file per size"):
        export_model(model, tmp_path / "free.onnx", sample=x, dynamic=("batch", "height", "width"))
    assert not (tmp_path / "free.onnx").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 64), (70, 90)])
def test_half_precisions_at_any_size(dtype, size):
    model, x = net(), torch.randn(2, 3, *size)
    expected = model(x)
    near = 0.1 * expected.abs().max()
    with torch.autocast("cpu", dtype):
        assert (model(x).float() - expected).abs().max() < near
    assert (model.to(dtype)(x.to(dtype)).float() - expected).abs().max() < near


def test_the_filter_is_raised_to_float32_in_half_and_kept_in_double():
    """In half the spectrum of this constant map overflows: 600 * 128."""
    ours = AdaptiveFrequencyFilter(16)
    with torch.no_grad():
        for p in (ours.w1, ours.w2, ours.b2[1:]):
            p.zero_()
        ours.b2[0] = 0.51
    x = torch.full((1, 16, 128, 128), 600.0)
    out = ours.half()(x.half())
    assert out.dtype == torch.float16 and torch.allclose(out.float(), 1.5 * x, rtol=1e-3)
    exact = mixer()
    y = torch.randn(1, 16, 9, 9, dtype=torch.float64)
    assert (exact(y) - exact.float()(y.float())).abs().max() > 1e-9 and exact.double()(y).dtype == torch.float64


def test_norms_share_their_tensors_and_differ():
    a, b = (channel_norm(n, 6) for n in ("layer_norm_2d", "layer_norm"))
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 6, 4, 5) * torch.arange(1, 7)[:, None, None]
    flat = x.permute(0, 2, 3, 1)
    expected = ((flat - flat.mean(-1, keepdim=True)) / (flat.std(-1, keepdim=True, correction=0) + 1e-5)).permute(
        0, 3, 1, 2
    )
    assert torch.allclose(b(x), expected, atol=1e-6) and not torch.allclose(a(x), b(x), atol=1e-2)
    small = b(1e-6 * torch.randn(1, 6, 1, 1))  # eps is added to the deviation, not to the variance
    assert small.abs().max() < 0.5


def test_order_of_a_block_and_its_skips():
    block = AFFBlock(16, "layer_norm_2d", "silu").eval()
    x = torch.randn(2, 16, 6, 6)
    y = block.norm1(x)
    y = block.norm2(y + block.mlp.block(y))
    spectrum = torch.fft.rfft2(y, norm="ortho")
    y = torch.fft.irfft2(block.filter.mask(spectrum) * spectrum, s=(6, 6), norm="ortho") + y
    assert torch.allclose(block(x), x + y, atol=1e-5)
    stage = AFFStage(16, 2, True, "layer_norm_2d", "silu").eval()
    z = stage.conv_proj(stage.global_rep(x))
    assert torch.equal(stage(x), stage.fusion(torch.cat([x, z], 1))) and stage.fusion.block.conv.kernel_size == (1, 1)
    bare = AFFStage(16, 1, False, "layer_norm_2d", "silu").eval()
    assert torch.equal(bare(x), bare.conv_proj(bare.global_rep(x)))


@pytest.mark.parametrize(
    ("name", "count", "prelu", "macs"),
    [
        ("affnet_et", 1_436_264, 1_442_530, 356_236_800),
        ("affnet_t", 2_654_232, 2_664_698, 786_462_720),
        ("affnet", 5_568_696, 5_584_346, 1_453_721_088),
        ("affnet_base", 17_178_104, None, 5_342_520_832),
        ("affnet_large", 46_068_088, None, 13_244_671_488),
    ],
)
def test_counts(name, count, prelu, macs):
    info = offprint.model_info(name)
    assert (info["parameters"], info["macs"]) == (count, macs)
    if prelu:
        assert offprint.model_info(name, activation="prelu")["parameters"] == prelu


def test_dense_forms():
    x = torch.randn(1, 3, 128, 96)
    for stride, dilations in ((32, (1, 1)), (16, (1, 1)), (8, (1, 2))):
        model = net(output_stride=stride, features_only=True, num_classes=None)
        assert model.feature_info.reduction() == [min(s, stride) for s in (2, 4, 8, 16, 32)]
        assert model(x)[-1].shape[-2:] == (128 // stride, 96 // stride)
        convs = [layer[0].block.conv_3x3.block.conv for layer in (model.layer_4, model.layer_5)]
        assert tuple(c.dilation[0] for c in convs) == dilations == tuple(c.padding[0] for c in convs)
        inner = [m.mlp.block.conv_3x3.block.conv.dilation for m in model.modules() if isinstance(m, AFFBlock)]
        assert set(inner) == {(1, 1)}


def test_deeplab_reads_the_authors_names():
    """CVNets' segmentation files: encoder.*, seg_head.aspp.aspp_layer.*, seg_head.classifier.block.conv.*"""
    options = {"backbone": {"name": "affnet_et", **SMALL}, "head": {"name": "deeplabv3", "width": 8}, "num_classes": 4}
    one, two = (offprint.compose(**options).eval() for _ in range(2))
    theirs = {}
    for name, value in one.state_dict().items():
        name = name.replace("backbone.", "encoder.").replace("head.convs.4.", "head.convs.4.aspp_pool.conv_1x1.")
        name = name.replace("head.convs", "seg_head.aspp.aspp_layer.convs").replace(
            "head.project", "seg_head.aspp.aspp_layer.project"
        )
        theirs[name.replace("head.logits.", "seg_head.classifier.block.conv.")] = value
    report = offprint.load_weights(two, theirs)
    x = torch.randn(1, 3, 65, 80)
    assert not report.fresh and torch.equal(one(x), two(x)) and two(x).shape == (1, 4, 65, 80)
    assert one.backbone.feature_info.reduction() == [16]
    rates = [c.block.conv.dilation[0] for c in one.head.convs]
    assert rates == [1, 6, 12, 18, 1]


def test_authors_classifier_file_loads():
    one, two = net(), net()
    theirs = {k.replace("head.", "classifier.fc."): v for k, v in one.state_dict().items()}
    assert offprint.load_weights(two, theirs).dialect == "authors"
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(one(x), two(x))
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(net(dims=(8, 16, 16, 24, 32)), theirs)


def test_start():
    model = net()
    assert float(model.head.bias.abs().max()) == 0
    filters = [m for m in model.modules() if isinstance(m, AdaptiveFrequencyFilter)]
    for tensor in (filters[0].w1, filters[0].b1, filters[0].w2, filters[0].b2):
        assert 0.01 < float(tensor.std()) < 0.03
    cfg = offprint.create_model("affnet_et").pretrained_cfg
    assert tuple(cfg["mean"]) == (0, 0, 0) and tuple(cfg["std"]) == (1, 1, 1)


def test_refusals():
    with pytest.raises(OffprintError, match="12 channels .* multiple of 8"):
        AdaptiveFrequencyFilter(12)
    with pytest.raises(OffprintError, match="sparsity_threshold=-1"):
        AdaptiveFrequencyFilter(16, sparsity_threshold=-1)
    with pytest.raises(OffprintError, match="unknown activation 'swish'"):
        net(activation="swish")
    with pytest.raises(OffprintError, match="unknown channel norm 'batch'"):
        net(norm="batch")
    with pytest.raises(OffprintError, match="output_stride=4"):
        net(output_stride=4)
    with pytest.raises(OffprintError, match="the five layers"):
        net(depths=(1, 1, 1))
    with pytest.raises(OffprintError, match="no released weights"):
        offprint.create_model("affnet", pretrained=True)
