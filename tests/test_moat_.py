"""What is moat's own: TensorFlow's padding and names, windows, tables of positions, what dense heads read, what is refused."""

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import golden
import harness

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.moat import (
    HEAD_DIM,
    Attention,
    Halving,
    MBConv,
    MOATBlock,
    SqueezeExcite,
    pool_as_tensorflow,
)

SMALL = {"stem": 8, "dims": (8, 16, 32, 64), "depths": (1, 1, 2, 2)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def net(**options):
    model = offprint.create_model("tiny_moat_0", **{**SMALL, "num_classes": 5, **options}).eval()
    with torch.no_grad():
        for p in model.parameters():  # at 0.02 nothing of the attention is seen
            p.normal_(std=0.3)
    return model


def same(x, kernel):
    """TensorFlow's "same" at stride 2 by its rule: in all (ceil(n / 2) - 1) 2 + k - n cells, the smaller half before."""
    pads = []
    for n in reversed(x.shape[-2:]):
        total = max((-(-n // 2) - 1) * 2 + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (8, 7), (5, 6), (1, 1), (2, 3)])
def test_padding_is_tensorflows(size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    conv = Halving(4).double()
    expected = F.conv2d(same(x, 3), conv.weight, None, 2, groups=4)
    assert torch.allclose(conv(x), expected)
    with torch.no_grad():
        assert torch.allclose(conv(x), expected)
    for kernel in (2, 3):
        cells = F.avg_pool2d(same(torch.ones_like(x), kernel), kernel, 2)
        assert torch.allclose(pool_as_tensorflow(x, kernel), F.avg_pool2d(same(x, kernel), kernel, 2) / cells)


def test_symmetric_padding_would_be_shifted():
    conv, x = Halving(4), torch.randn(1, 4, 8, 8)
    assert not torch.allclose(conv(x), F.conv2d(x, conv.weight, None, 2, 1, groups=4), atol=1e-3)


@pytest.mark.parametrize("window", [(3, 5), (14, 14), (4, 2)])
def test_bias_of_each_pair(window):
    """Entry x - i + wh - 1, y - j + ww - 1 of the table, resized to (2 wh - 1, 2 ww - 1) half-pixel centred."""
    attention = Attention(64, 14)
    torch.nn.init.normal_(attention.relative_position_embedding)
    bias, (h, w) = attention.bias(window), window
    table = F.interpolate(attention.relative_position_embedding[None], (2 * h - 1, 2 * w - 1), mode="bilinear")[0]
    for query, key in ((0, 0), (0, h * w - 1), (h * w - 1, 1), (w, w + 1)):
        (i, j), (x, y) = divmod(query, w), divmod(key, w)
        assert torch.allclose(bias[:, query, key], table[:, x - i + h - 1, y - j + w - 1], atol=1e-6)


def test_attention_is_the_formula():
    attention = Attention(64, 14).double()
    torch.nn.init.normal_(attention.relative_position_embedding)
    x = torch.randn(2, 3, 4, 64, dtype=torch.float64)
    tokens = x.flatten(1, 2)
    heads = []
    for head in range(2):
        cut = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        q, k, v = (layer(tokens)[..., cut] for layer in (attention.q, attention.k, attention.v))
        logits = (q * HEAD_DIM**-0.5) @ k.mT + attention.bias((3, 4))[head]
        heads.append(logits.softmax(-1) @ v)
    expected = attention.o(torch.cat(heads, -1)).view_as(x)
    assert torch.allclose(attention(x), expected)
    with torch.no_grad():
        assert torch.allclose(attention(x), expected)


@pytest.mark.parametrize("positions", [True, False])
def test_a_window_of_the_whole_map_is_global_attention(positions):
    x = torch.randn(2, 3, 64, 96)
    whole = net(position_embedding=positions)
    cut = net(position_embedding=positions, window_size=[None, None, [4, 6], [2, 3]])
    cut.load_state_dict(whole.state_dict())
    assert torch.equal(whole(x), cut(x))
    cut.set_windows([None, None, [2, 2], [1, 1]])
    assert not torch.allclose(whole(x), cut(x))
    cut.set_windows(None)
    assert torch.equal(whole(x), cut(x))


def test_global_means_the_current_map():
    """A larger image is not silently cut into windows: a far corner reaches everywhere (deeplab2#146)."""
    attention = Attention(32, 14).eval()
    x = torch.randn(1, 20, 24, 32)
    y = x.clone()
    y[0, 0, 0] += 1
    assert ((attention(x) - attention(y)).abs().amax(-1) > 0).all()
    attention.window = (4, 4)
    assert not ((attention(x) - attention(y)).abs().amax(-1) > 0)[0, 4:].any()


def test_only_the_last_block_of_a_stage_is_global():
    model = net(window_size=(None, None, (2, 2), (1, 1)), global_attention_at_end_of_moat_stage=True)
    windows = [m.attention.window for m in model.modules() if isinstance(m, MOATBlock)]
    assert windows == [(2, 2), None, (1, 1), None]
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_windows_that_do_not_fit_are_refused():
    model = net(window_size=(None, None, (14, 14), None))
    with pytest.raises(OffprintError, match=r"stage 3, block_02_00: its map of 4x6 .* windows of 14x14"):
        model(torch.randn(1, 3, 64, 96))
    with pytest.raises(OffprintError, match="stage 1 has no attention"):
        net(window_size=((2, 2), None, None, None))
    for wrong in ((2, 2), (None, None, 14, None), (None, None, (14, 0), None)):
        with pytest.raises(OffprintError, match="for each of the 4 stages"):
            net(window_size=wrong)
    with pytest.raises(OffprintError, match="pool_size=4"):
        net(pool_size=4)
    with pytest.raises(OffprintError, match="48 is no multiple"):
        net(dims=(8, 16, 48, 64))
    with pytest.raises(OffprintError, match="no released weights"):
        offprint.create_model("moat_0", pretrained=True)


def test_windows_are_remembered_by_a_saved_model(tmp_path):
    from offprint.models.sharing import from_pretrained, save_pretrained

    model, x = net(), torch.randn(1, 3, 64, 64)
    model.set_windows([None, None, [2, 2], None], True)
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m")).eval()
    assert again.block_02_00.attention.window == (2, 2) and again.block_02_01.attention.window is None
    assert torch.equal(again(x), model(x))


def test_dense_heads_read_what_passed_gelu_and_the_classifier_does_not():
    model, x = net(), torch.randn(1, 3, 64, 64)
    stages = list(model.walk(x))
    assert torch.equal(model.forward_features(x), stages[-1])
    pyramid = net(features_only=True, num_classes=None)
    offprint.load_weights(pyramid, model.state_dict())
    maps = pyramid(x)
    assert all(torch.equal(m, F.gelu(s)) for m, s in zip(maps, stages, strict=True))
    assert pyramid.feature_info.reduction() == [2, 4, 8, 16, 32]
    pooled = model.final_layer_norm(stages[-1].mean((2, 3)))
    assert torch.equal(model(x), model.logits_head(pooled))


def test_pool_size_changes_outputs_and_no_parameters():
    two, three = net(), net(pool_size=3)
    three.load_state_dict(two.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(two(x), three(x))


def test_details_of_the_blocks():
    model = net()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(1e-3, 0.01)}
    block = MBConv(8, 16, 2, 2).eval()
    assert block.expand_conv.out_channels == 64 and block.se.reduce_conv2d.out_channels == 4  # of the output's width
    gate, x = SqueezeExcite(8, 2), torch.randn(1, 8, 3, 3)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(gate(x), x * gate.expand_conv2d(F.silu(gate.reduce_conv2d(mean))).sigmoid())
    assert all(m.se is None for m in model.modules() if isinstance(m, MOATBlock))
    torch.nn.init.normal_(block.pre_norm.bias)  # pre_norm acts on the branch, not on the shortcut
    y = torch.randn(1, 8, 6, 6)
    block.shrink_conv.weight.data.zero_()
    block.shrink_conv.bias.data.zero_()
    assert torch.allclose(block(y), block.shortcut_conv(F.avg_pool2d(y, 2)), atol=1e-6)


def test_drop_path_does_not_reach_the_full_rate():
    model = net(drop_path_rate=0.6)
    rates = [m.drop_path.p for m in model.modules() if isinstance(m, MBConv)]
    assert rates == pytest.approx([0.6 * k / 6 for k in range(6)])


def test_positions_learn():
    """TensorFlow's eager layer gathers its bias once, when built; ours follows the weights."""
    model, x = net().train(), torch.randn(2, 3, 64, 64)
    model(x).square().mean().backward()
    table = model.block_02_00.attention.relative_position_embedding
    assert table.grad.abs().max() > 0
    model.eval()
    before = model(x)
    with torch.no_grad():
        table.normal_(std=3.0)
    assert not torch.allclose(model(x), before)


def test_deploy_folds_every_norm_and_twice_is_once():
    model, x = net(), torch.randn(1, 3, 65, 64)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
    out = offprint.deploy(model, x, tolerance=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in out.modules())
    before = out(x)
    for module in out.modules():
        if isinstance(module, MBConv):
            module.merge()
    assert torch.equal(out(x), before)


RECORD = Path(__file__).parent / "golden" / "moat" / "tiny_moat_0_tf_names.json"


def tensorflow_state():
    return {k: torch.from_numpy(v) for k, v in golden.state_dict(golden.load(RECORD)).items()}


def test_tensorflow_files():
    """Names as in a checkpoint (with slashes, the stem under moat/), averages beside them, other variables."""
    record = golden.load(RECORD)
    state = {}
    for name, value in tensorflow_state().items():
        name = name.replace(".", "/")
        state[name if name.startswith("moat/") else f"moat/stem/{name}"] = value
    ours, theirs = (harness.build(record).eval() for _ in range(2))
    plain = offprint.load_weights(ours, tensorflow_state())
    assert plain.dialect == "tensorflow" and not plain.fresh
    averaged = {f"{k}/ExponentialMovingAverage": v for k, v in state.items() if "moving_" not in k}
    shifted = {k: v + 1 if "moving_" not in k else v for k, v in state.items()}
    report = offprint.load_weights(theirs, {**shifted, **averaged, "global_step": torch.tensor(3.0)})
    assert report.average == "ema" and not report.fresh
    x = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(ours(x), theirs(x), strict=True))


def test_a_checkpoint_without_moving_statistics_is_refused():
    """The first published files lacked them, and such a model predicts almost everything wrong (deeplab2#144)."""
    state = {k: v for k, v in tensorflow_state().items() if "moving_" not in k}
    with pytest.raises(CheckpointError, match="running_mean"):
        offprint.load_weights(harness.build(golden.load(RECORD)), state)


def test_a_classifier_of_tensorflow():
    model = net()
    state = dict(model.state_dict())
    state["logits_head.kernel"] = state.pop("logits_head.weight").t()[None, None]
    other = net()
    offprint.load_weights(other, state)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(x), model(x))


COUNTS = {
    "tiny_moat_0": (3_355_348, 3_332_232, 1_040_734_208),
    "tiny_moat_1": (5_122_895, 5_094_000, 1_575_522_560),
    "tiny_moat_2": (9_772_741, 9_732_288, 2_974_625_024),
    "tiny_moat_3": (19_534_390, 19_476_600, 5_897_093_120),
    "moat_0": (27_846_892, 27_777_544, 5_638_149_120),
    "moat_1": (41_598_448, 41_467_864, 9_001_466_880),
    "moat_2": (73_422_408, 73_248_296, 53_283_037_184),
    "moat_3": (189_958_040, 189_536_280, 263_408_752_640),
    "moat_4": (483_214_184, 482_539_368, 636_271_935_488),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_size_and_normalisation(name):
    count, bare, macs = COUNTS[name]
    info = offprint.model_info(name)
    assert info["parameters"] == count and offprint.model_info(f"{name}_no_pe")["parameters"] == bare
    assert info["macs"] == macs
    with torch.device("meta"):
        cfg = offprint.create_model(name).pretrained_cfg
    large = name in ("moat_2", "moat_3", "moat_4")
    assert tuple(cfg["mean"]) == ((0.5, 0.5, 0.5) if large else (0.485, 0.456, 0.406))
    assert tuple(cfg["input_size"]) == tuple(offprint.api.entry(name).input_size)
