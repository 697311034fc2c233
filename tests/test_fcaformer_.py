"""What is fcaformer's own: cross tokens, their factors and order, tables for other images, the dense form, and what is refused."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.fcaformer import (
    FcaFormer,
    ForwardCrossBlock,
    _cut,
    _join,
    merged_sides,
    offset_index,
    resample,
)

SMALL = {
    "img_size": 64,
    "dims": (16, 16, 32, 48),
    "depths": (1, 1, 3, 2),
    "num_heads": (2, 3),
    "layer_scale_init_value": 0.5,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lively(model: nn.Module) -> nn.Module:
    """With tables, norms and statistics unlike those of a new network."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("attention_biases", "s_token_bias", "s_scale_factors")):
                p.normal_()
            elif p.ndim == 1:
                p.add_(0.2 * torch.randn_like(p))
            else:
                p.normal_(std=1.3 * p[0].numel() ** -0.5)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(std=0.2)
                m.running_var.uniform_(0.5, 1.5)
    return model.eval()


def tiny(**kwargs) -> FcaFormer:
    return lively(offprint.create_model("fcaformer_l2", **{"num_classes": 5, **SMALL, **kwargs}))


@pytest.mark.parametrize(
    ("name", "parameters", "authors_macs"),
    [
        ("fcaformer_l1", 6_187_560, 1.374),
        ("fcaformer_l2", 16_275_870, 3.602),
        ("fcaformer_l3", 27_894_484, 6.651),
        ("fcaformer_l4", 65_638_204, 14.492),
    ],
)
def test_counts(name, parameters, authors_macs):
    """The authors' code also computes queries of the cross tokens and drops them; ours does not."""
    info = offprint.model_info(name)
    with torch.device("meta"):
        model = offprint.create_model(name)
    dropped = sum(
        b.s_scale_factors.numel() * b.norm1.normalized_shape[0] ** 2 for _, _, b in model._attending() if b.earlier
    )
    assert info["parameters"] == parameters and dropped > 0
    assert round((info["macs"] + dropped) / 1e9, 3) == authors_macs


def test_counts_at_another_size():
    assert offprint.model_info("fcaformer_l2", (3, 128, 128), img_size=128)["parameters"] == 16_262_820


def test_offsets_are_numbered_as_they_are_first_seen():
    points, seen, rows = [(y, x) for y in range(3) for x in range(4)], {}, []
    for a in points:
        for b in points:
            rows.append(seen.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(seen)))
    assert offset_index(3, 4).flatten().tolist() == rows


def _plain_block(block: ForwardCrossBlock, x: torch.Tensor, cross: torch.Tensor | None):
    """The block as the paper's formulas say it, one step at a time, with explicit logits."""
    b, c, h, w = x.shape
    heads, n = block.num_heads, h * w
    t = x.flatten(2).transpose(1, 2)

    def project(z):
        return block.qkv(z).view(b, -1, 3, heads, c // heads).permute(2, 0, 3, 1, 4)

    q, k, v = project(block.norm1(t))
    logits = q * (c // heads) ** -0.5 @ k.transpose(2, 3)
    for i in range(n):
        for j in range(n):
            dy, dx = abs(i // w - j // w), abs(i % w - j % w)
            logits[:, :, i, j] += block.attention_biases[:, dy * w + dx]
    if cross is not None:
        _, k2, v2 = project(block.s_norm(cross * block.s_scale_factors))
        other = q * (c // heads) ** -0.5 @ k2.transpose(2, 3) + block.s_token_bias
        logits, v = torch.cat([logits, other], 3), torch.cat([v, v2], 2)
    y = block.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))
    x = (t + block.gamma_1 * y).transpose(1, 2).view(b, c, h, w)
    merged = None if block.dw_conv is None else block.dw_conv(x).flatten(2).transpose(1, 2)
    t = block.local_conv(x).flatten(2).transpose(1, 2)
    t = t + block.gamma_2 * block.mlp.fc2(F.gelu(block.mlp.fc1(block.mlp.norm(block.norm2(t)))))
    return t.transpose(1, 2).view(b, c, h, w), merged


@pytest.mark.parametrize("sides", [(4, 4), (5, 6)])
@pytest.mark.parametrize("earlier", [0, 2])
def test_the_block_is_the_formula(sides, earlier):
    block = lively(ForwardCrossBlock(12, 3, sides, earlier, True, 0.0, 0.5)).double()
    count = merged_sides(*sides)[0] * merged_sides(*sides)[1]
    cross = torch.randn(2, earlier * count, 12, dtype=torch.double) if earlier else None
    x = torch.randn(2, 12, *sides, dtype=torch.double)
    with torch.no_grad():
        for got, want in zip(block(x, cross), _plain_block(block, x, cross), strict=True):
            assert torch.allclose(got, want, atol=1e-10)
    assert block(x, cross)[1].shape == (2, count, 12)


def test_cross_tokens_with_a_bias_of_minus_infinity_are_the_plain_hybrid():
    model, plain = tiny(), tiny(cab_max_d=0)
    own = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(own)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(model(x), plain(x), atol=1e-4)
        for _, _, block in model._attending():
            if block.earlier:
                block.s_token_bias.fill_(-torch.inf)
        assert torch.allclose(model(x), plain(x), atol=1e-6)
    assert not any("s_norm" in n or "dw_conv" in n for n in plain.state_dict())


def test_of_the_factors_only_the_signs_count():
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    block = model.layer_2.blocks[2]
    with torch.no_grad():
        block.s_scale_factors.copy_(torch.where(block.s_scale_factors > 0, 1.0, -1.0))
        before = model(x)
        block.s_scale_factors.mul_(3)
        assert torch.allclose(model(x), before, atol=1e-3)
        block.s_scale_factors[0, 0].neg_()
        assert (model(x) - before).abs().max() > 1e-3


def test_every_block_attends_to_all_before_it_oldest_first(monkeypatch):
    model, seen, made = tiny(depths=(1, 1, 4, 2)), [], []
    plain = ForwardCrossBlock.forward

    def forward(self, x, cross):
        seen.append(cross)
        out = plain(self, x, cross)
        made.append(out[1])
        return out

    monkeypatch.setattr(ForwardCrossBlock, "forward", forward)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert seen[0] is None and seen[4] is None  # the first of each stage
    assert made[3] is None and made[5] is None  # the last
    for j in (1, 2, 3):
        assert torch.equal(seen[j], torch.cat(made[:j], 1))
    seen.clear(), made.clear()
    limited = tiny(depths=(1, 1, 4, 2), cab_max_d=2)
    with torch.no_grad():
        limited(torch.randn(1, 3, 64, 64))
    assert torch.equal(seen[3], torch.cat(made[1:3], 1))
    assert limited.layer_2.blocks[3].s_scale_factors.shape == (1, 2, 1)
    dense = lively(
        offprint.create_model("fcaformer_l2", features_only=True, **{**SMALL, "depths": (1, 1, 4, 2), "cab_max_d": 2})
    )
    assert dense.layer_2.blocks[3].s_scale_factors.shape == (1, 3, 1)  # the dense form has no limit
    seen.clear()
    with torch.no_grad():
        dense(torch.randn(1, 3, 64, 64))
    assert seen[3].shape[1] == 3


def test_the_local_convolution_replaces_the_stream():
    block = lively(ForwardCrossBlock(8, 2, (4, 4), 0, False, 0.0, 0.5))
    nn.init.zeros_(block.local_conv.bn.weight)
    nn.init.zeros_(block.local_conv.bn.bias)
    nn.init.zeros_(block.gamma_2)
    with torch.no_grad():
        assert block(torch.randn(1, 8, 4, 4), None)[0].abs().max() == 0


# -- sizes -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [112, 100, (224, 100), 16])
def test_sides_must_be_multiples_of_32(size):
    with pytest.raises(OffprintError, match="multiples of 32"):
        offprint.create_model("fcaformer_l2", img_size=size)
    with pytest.raises(OffprintError, match="multiples of 32|at least 32"):
        tiny().set_input_size(size)


def test_an_image_of_another_size_is_refused_with_what_would_work():
    with pytest.raises(OffprintError, match=r"64x64 pixels, got 64x96.*set_input_size\(\(64, 96\)\)"):
        tiny()(torch.randn(1, 3, 64, 96))


@pytest.mark.parametrize("size", [128, (96, 128), 32])
def test_a_file_for_other_images_is_resampled_and_says_so(size):
    model = tiny()
    built = offprint.create_model("fcaformer_l2", num_classes=5, **{**SMALL, "img_size": size}).eval()
    square = not isinstance(size, tuple)
    source = model if square else tiny(img_size=(192, 256))
    with pytest.warns(UserWarning, match="resampled from images of (64x64|192x256)"):
        report = offprint.load_weights(built, source.state_dict())
    tables = ("attention_biases", "s_token_bias", "s_scale_factors")
    assert report.adapted and all(n.endswith(tables) for n in report.adapted) and not report.fresh
    moved = copy.deepcopy(source)
    moved.set_input_size(size)
    x = torch.randn(1, 3, *((size, size) if square else size))
    with torch.no_grad():
        assert torch.allclose(moved(x), built(x), atol=1e-6)
    assert moved.state_dict().keys() == built.state_dict().keys()
    with pytest.raises(RuntimeError, match="size mismatch"):
        offprint.create_model("fcaformer_l2", num_classes=5, **{**SMALL, "img_size": size}).load_state_dict(
            source.state_dict()
        )


def test_the_same_size_changes_nothing_and_says_nothing():
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_input_size(64)
        assert not offprint.load_weights(tiny(), model.state_dict()).adapted
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_tables_keep_what_they_say():
    """No offset and the largest one keep their bias; a factor keeps its sign; a bias of a merged token stays with its place."""
    table = torch.randn(3, 16)
    large = resample("attention_biases", table, (4, 4), (7, 7)).view(3, 7, 7)
    assert torch.allclose(large[:, 0, 0], table[:, 0]) and torch.allclose(large[:, 6, 6], table[:, 15])
    assert torch.allclose(large[:, ::2, ::2], table.view(3, 4, 4), atol=1e-6)
    factors = torch.tensor([1.0, -1.0, 2.0, -2.0]).view(1, 4, 1)  # two blocks of 1x2 merged tokens
    moved = resample("s_scale_factors", factors, (4, 8), (8, 16)).view(2, 2, 4)
    assert torch.equal(moved[0], torch.tensor([[1.0, 1, -1, -1]] * 2)) and torch.equal(moved[1], 2 * moved[0])
    bias = torch.randn(1, 3, 1, 2)
    assert torch.equal(resample("s_token_bias", bias, (4, 4), (4, 4)), bias)
    assert resample("s_token_bias", bias, (4, 4), (8, 8)).shape == (1, 3, 1, 8)


def test_a_size_is_remembered(tmp_path):
    from offprint.models.sharing import from_pretrained, save_pretrained

    model = tiny()
    model.set_input_size((96, 128))
    save_pretrained(model, tmp_path / "m")
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        assert torch.equal(from_pretrained(str(tmp_path / "m")).eval()(x), model(x))


# -- the dense form ----------------------------------------------------------------------------------------------------
def dense(**kwargs) -> FcaFormer:
    return lively(offprint.create_model("fcaformer_l2", features_only=True, **{**SMALL, **kwargs}))


def test_one_window_is_the_classifiers_map():
    model, pyramid = tiny(), dense()
    offprint.load_weights(pyramid, model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(model.walk(x), pyramid.walk(x), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        maps = pyramid(x)
    assert [m.shape[1] for m in maps] == [96, 192, 384, 768] == pyramid.feature_info.channels()
    normal = (maps[0] - pyramid.norm0.bias[:, None, None]) / pyramid.norm0.weight[:, None, None]
    assert normal.mean(1).abs().max() < 1e-4 and pyramid.norm0.eps == 1e-6 and pyramid.head0.bias is None


@pytest.mark.parametrize("before", [True, False])
def test_windows_are_cut_and_joined(before):
    x = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7) + 1
    windows = _cut(x, (4, 4), before)
    assert windows.shape == (2 * 4, 3, 4, 4)
    assert torch.equal(_join(windows, (5, 7), (4, 4), before), x)
    corner = windows[0, :, 0, 0] if before else windows[3, :, 3, 3]
    assert corner.abs().max() == 0  # zeros stand before the first place in even blocks, after the last in odd ones
    kept = windows[0, 0, 3, 3] if before else windows[0, 0, 0, 0]
    assert kept == (x[0, 0, 0, 2] if before else x[0, 0, 0, 0])


def test_displaced_windows_pass_on_what_one_block_cannot():
    """A change in one corner stays in its window in the first block, and leaves it by the second."""
    reach = []
    for depth in (1, 2):
        model = dense(depths=(1, 1, depth, 1))
        stage = model.layer_2
        x = torch.randn(1, 32, 6, 6)
        y = x.clone()
        y[..., 5, 5] += torch.randn(32)
        with torch.no_grad():
            moved = (model._attend(stage, x) - model._attend(stage, y)).abs().amax(1)[0] > 1e-6
        reach.append(moved.nonzero().amin(0).tolist())
    assert reach[0] == [2, 2] and reach[1] == [0, 0]  # windows of 4 from 2 on in even blocks, from 0 on in odd ones


def test_dense_layer_scales_start_at_one_unless_given():
    options = {k: v for k, v in SMALL.items() if k != "layer_scale_init_value"}
    classifier = offprint.create_model("fcaformer_l2", **options)
    assert classifier.layer_2.blocks[0].gamma_1.unique().tolist() == pytest.approx([1e-6])
    pyramid = offprint.create_model("fcaformer_l2", features_only=True, **options)
    assert {float(p) for n, v in pyramid.named_parameters() if "gamma" in n for p in v.detach().unique()} == {1.0}
    assert dense().layer_2.blocks[0].dw_conv is not None
    given = offprint.create_model("fcaformer_l2", features_only=True, **SMALL)
    assert given.layer_0.blocks[0].gamma.unique().tolist() == [0.5]


def test_pruned_dense_form_has_nothing_left_over():
    model, x = dense(), torch.randn(1, 3, 64, 96)
    want = model(x)[1]
    model.prune_intermediate_layers([1])
    assert not any(n.startswith(("layer_2", "layer_3", "head2", "norm2", "head3")) for n in model.state_dict())
    assert torch.allclose(model.forward_intermediates(x, intermediates_only=True)[1], want)


# -- merging, and the rest ---------------------------------------------------------------------------------------------
def test_deploying():
    for model, x in ((tiny(), torch.randn(2, 3, 64, 64)), (dense(), torch.randn(1, 3, 96, 70))):
        fast = offprint.deploy(model, x)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
        assert not any(n.endswith(("gamma_1", "attention_biases", "s_token_bias")) for n in fast.state_dict())
        with torch.no_grad():
            pairs = zip(*((v if isinstance(v, list) else [v]) for v in (model(x), fast(x))), strict=True)
            assert all(torch.allclose(a, b, atol=2e-4) for a, b in pairs)
        again = offprint.deploy(fast)
        assert again is fast
        for block in fast.modules():
            if isinstance(block, ForwardCrossBlock):
                block.merge()  # a second time changes nothing
        with torch.no_grad():
            assert torch.equal(
                torch.utils._pytree.tree_leaves(fast(x))[0], torch.utils._pytree.tree_leaves(again(x))[0]
            )
    with pytest.raises(OffprintError, match="deploy again"):
        offprint.deploy(tiny()).set_input_size(128)


def test_nothing_is_merged_in_training():
    block = ForwardCrossBlock(8, 2, (4, 4), 0, True)
    with pytest.raises(OffprintError, match=r"training mode.*\.eval"):
        block.merge()
    assert block.attention_biases is not None and block.gamma_1 is not None
    with pytest.raises(OffprintError, match="training mode"):
        offprint.deploy(tiny().train())


def test_without_a_classifier_the_norm_stays():
    model = tiny(num_classes=0)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model.norm_head(model.forward_features(x).mean((2, 3)))
        assert torch.allclose(model(x), want)


def test_checkpoints_of_the_authors_script():
    model = tiny()
    report = offprint.load_weights(tiny(), {"model": model.state_dict(), "epoch": 3})
    assert report.container == "model" and not report.fresh


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_heads": (3, 3)}, "do not divide into 3 heads"),
        ({"depths": (1, 1, 1)}, "four stages"),
        ({"cab_max_d": -1}, "0 for none"),
        ({"pretrained": True}, "no released weights"),
    ],
)
def test_refused_arguments(given, says):
    with pytest.raises(OffprintError, match=says):
        offprint.create_model("fcaformer_l2", **{**SMALL, **given})
