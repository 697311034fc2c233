"""Swin: windows against plain definitions, other libraries at any size, tables that move between windows, what is refused."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.swin import SwinTransformer, WindowAttention
from offprint.models.layer_decay import layer_decay_groups
from offprint.nn.positions import resample_table
from offprint.nn.windows import attend, gather_bias, join, split, windows
from offprint.proofs.kit import macs
from offprint.tasks.recipe import Recipe, build_optimizer

SMALL = {"embed_dim": 8, "depths": (2, 2, 2, 1), "num_heads": (1, 2, 2, 4)}
TWO = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def small(name="swin_tiny", seed=0, **kwargs):
    torch.manual_seed(seed)
    return offprint.create_model(name, **{**SMALL, "num_classes": 5, **kwargs}).eval()


# -- windows ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("sides", "window", "shift"), [((8, 12), (4, 4), (2, 2)), ((6, 9), (4, 4), (2, 0)),
                                                        ((5, 6, 7), (3, 2, 4), (1, 1, 2)), ((3, 3), (7, 7), (3, 3))])  # fmt: skip
def test_windows_are_a_roll_and_a_cut(sides, window, shift):
    x = torch.randn(2, *sides, 3)
    cut = windows(sides, window, shift)
    got = split(x, cut)
    pads = [n for s, p in zip(reversed(sides), reversed(cut.padded), strict=True) for n in (0, p - s)]
    rolled = torch.roll(F.pad(x, (0, 0, *pads)), [-s for s in shift], tuple(range(1, len(sides) + 1)))
    first = rolled[(slice(None), *(slice(w) for w in window))].flatten(1, -2)
    assert torch.equal(got[:, 0], first)
    assert torch.equal(join(got, cut), x)
    assert windows(sides, window, shift) is cut  # made once


@pytest.mark.parametrize("sides", [(8, 8), (6, 9)])
def test_shifted_attention_is_attention_among_neighbours(sides):
    """Roll, mask and windows equal attention of each token over those of its own displaced window, computed one by one."""
    torch.manual_seed(0)
    m, s, heads, dim = 4, 2, 2, 8
    layer = WindowAttention(dim, m, heads).eval()
    torch.nn.init.normal_(layer.relative_position_bias_table)
    x = torch.randn(1, *sides, dim)
    cut = windows(sides, (m, m), (s, s))
    y = split(x, cut)
    got = join(layer(y.flatten(0, 1), cut.mask).view_as(y), cut)
    h, w = cut.padded
    padded = F.pad(x, (0, 0, 0, w - sides[1], 0, h - sides[0]))[0]
    qkv = F.linear(padded, layer.qkv.weight, layer.qkv.bias).view(h, w, 3, heads, -1)
    group = lambda i, n: (i - s) // m  # noqa: E731  (the first s rows have a group of their own)
    want = torch.zeros(h, w, dim)
    for r in range(h):
        for c in range(w):
            near = [
                (a, b) for a in range(h) for b in range(w) if group(a, h) == group(r, h) and group(b, w) == group(c, w)
            ]
            out = []
            for head in range(heads):
                rows = [(r - a + m - 1) * (2 * m - 1) + c - b + m - 1 for a, b in near]
                k, v = (torch.stack([qkv[a, b, i, head] for a, b in near]) for i in (1, 2))
                logits = (
                    k @ qkv[r, c, 0, head] * (dim // heads) ** -0.5 + layer.relative_position_bias_table[rows, head]
                )
                out.append(logits.softmax(0) @ v)
            want[r, c] = torch.cat(out)
    want = F.linear(want, layer.proj.weight, layer.proj.bias)[: sides[0], : sides[1]]
    assert torch.allclose(got[0], want, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_the_path_with_gradients_equals_the_fused_one(masked):
    torch.manual_seed(0)
    cut = windows((8, 8), (4, 4), (2, 2))
    q, k, v = torch.randn(3, 3 * 4, 2, 16, 8, dtype=torch.float64).unbind(0)
    table = torch.randn(49, 2, dtype=torch.float64, requires_grad=True)
    mask = cut.mask.double() if masked else None
    bias = gather_bias(table, (4, 4))
    with torch.no_grad():
        fused = attend(q, k, v, bias, mask)
    explicit = attend(q.requires_grad_(), k, v, bias, mask)
    assert torch.allclose(explicit, fused, atol=1e-12) and explicit.requires_grad
    grads = torch.autograd.grad(explicit.square().sum(), (q, table))
    plain = (q * 8**-0.5) @ k.transpose(-1, -2) + gather_bias(table, (4, 4))
    if masked:
        plain = (plain.view(3, 4, 2, 16, 16) + mask[:, None]).flatten(0, 1)
    out = (plain.softmax(-1) @ v).transpose(1, 2).flatten(2)
    for a, b in zip(grads, torch.autograd.grad(out.square().sum(), (q, table)), strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_one_window_over_the_map_is_plain_attention():
    model = small(window_size=16, img_size=64, depths=(2,), num_heads=(1,))
    other = copy.deepcopy(model)
    other.layers[0].shifted = False
    x = torch.randn(1, 3, 64, 64)
    assert model.layers[0].window == 16 and torch.equal(model(x), other(x))


def test_kept_windows_serve_training_after_inference():
    model = small(window_size=5, img_size=44)
    with torch.inference_mode():
        model(torch.randn(1, 3, 44, 44))
    model.train()(torch.randn(1, 3, 44, 44)).sum().backward()


# -- the model at any size -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (90, 131), (128, 64)])
def test_equals_torchvision_at_any_size(size):
    from torchvision.models.swin_transformer import SwinTransformer as Theirs

    torch.manual_seed(0)
    theirs = Theirs([4, 4], 8, [2, 2, 2, 1], [1, 2, 2, 4], [4, 4], stochastic_depth_prob=0, num_classes=5).eval()
    ours = small(window_size=4)
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "torchvision"
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_equals_timm():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=96, window_size=6, num_classes=5, embed_dim=24
    ).eval()
    ours = offprint.create_model("swin_tiny", img_size=96, window_size=6, num_classes=5, embed_dim=24).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "timm"
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_img_size_only_sets_where_windows_shrink():
    one, two = small(window_size=4, img_size=256), small(window_size=4, img_size=128)
    assert [s.window for s in two.layers] == [4, 4, 4, 4] and two.layers[3].covered
    offprint.load_weights(two, one.state_dict())
    x = torch.randn(1, 3, 128, 128)
    assert torch.allclose(one(x), two(x), atol=1e-6)


def test_the_dense_form_never_shrinks_and_always_shifts():
    model = offprint.create_model("swin_tiny", features_only=True, img_size=96, window_size=12, **SMALL).eval()
    assert {s.window for s in model.layers} == {12}
    assert model.layers[3].blocks[0].attn.relative_position_bias_table.shape == (23**2, 4)
    plain, shifted = model.layers[0].cuts(torch.zeros(1, 3, 3, 8), dense=True)
    assert shifted.shift == (6, 6) and plain.shift == (0, 0)
    assert model.layers[0].cuts(torch.zeros(1, 3, 30, 8), dense=False)[1].shift == (0, 6)


def test_a_classifiers_file_serves_the_dense_form():
    source = small(window_size=4)
    dense = offprint.create_model("swin_tiny", features_only=True, window_size=4, **SMALL)
    report = offprint.load_weights(dense, source.state_dict())
    assert {n.split(".")[0] for n in report.dropped} == {"norm", "head"}
    assert {n.split(".")[0] for n in report.fresh} == {"norm0", "norm1", "norm2", "norm3"}


def test_absolute_positions_follow_the_image():
    model = small(window_size=4, img_size=64, ape=True)
    assert model(torch.randn(1, 3, 96, 72)).shape == (1, 5)
    larger = small(window_size=4, img_size=128, ape=True)
    report = offprint.load_weights(larger, model.state_dict())
    assert "absolute_pos_embed" in report.adapted
    want = F.interpolate(model.absolute_pos_embed.view(1, 16, 16, 8).permute(0, 3, 1, 2), (32, 32), mode="bicubic")
    assert torch.allclose(larger.absolute_pos_embed.view(1, 32, 32, 8).permute(0, 3, 1, 2), want, atol=1e-6)
    mapped = {
        **model.state_dict(),
        "absolute_pos_embed": model.absolute_pos_embed.detach().transpose(1, 2).view(1, 8, 16, 16),
    }
    offprint.load_weights(larger, mapped)  # the dense code keeps a map
    assert torch.allclose(larger.absolute_pos_embed.view(1, 32, 32, 8).permute(0, 3, 1, 2), want, atol=1e-6)


# -- moving between windows ------------------------------------------------------------------------------------------
def test_tables_are_resampled_for_another_window():
    source = small(window_size=4, img_size=64)
    target = small(window_size=6, img_size=96)
    buffers = {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
               "layers.0.blocks.1.attn_mask": torch.zeros(16, 16, 16)}  # fmt: skip
    report = offprint.load_weights(target, {"model": {**source.state_dict(), **buffers}})
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert name in report.adapted
    assert torch.allclose(target.state_dict()[name], resample_table(source.state_dict()[name], 11))


def test_a_pretraining_file_is_resampled_geometrically():
    source, target = small(window_size=4, img_size=64), small(window_size=6, img_size=96)
    source.add_mask_token()
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    state = {f"encoder.{k}": v for k, v in source.state_dict().items()} | {"decoder.0.weight": torch.zeros(3, 3)}
    offprint.load_weights(target, state)
    table = source.state_dict()[name]
    assert torch.allclose(target.state_dict()[name], resample_table(table, 11, geometric=True))
    assert not torch.allclose(target.state_dict()[name], resample_table(table, 11), atol=1e-3)


def test_the_geometric_grid_keeps_centre_and_corners():
    """A cubic spline through the old offsets, placed so that the ends stay the ends."""
    from scipy.interpolate import RectBivariateSpline

    table = torch.randn(49, 2)
    got = resample_table(table, 9, geometric=True).view(9, 9, 2)
    old = table.view(7, 7, 2)
    assert torch.allclose(got[4, 4], old[3, 3], atol=1e-5)
    assert torch.allclose(got[[0, 0, -1, -1], [0, -1, 0, -1]], old[[0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-4)
    q = (13**0.5 - 1) / 2  # 1 + q + q² = 4
    at = [-4, -(1 + q), -1, 0, 1, 1 + q, 4]
    want = RectBivariateSpline(at, at, old[..., 0].numpy())(range(-4, 5), range(-4, 5))
    assert torch.allclose(got[..., 0].double(), torch.from_numpy(want), atol=1e-4)
    same = resample_table(table, 7, geometric=False)
    assert torch.allclose(same, table, atol=1e-6)


def test_what_is_refused():
    source = small(window_size=4)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(small(window_size=4, embed_dim=16), source.state_dict())
    with pytest.raises(CheckpointError, match="another size"):  # other heads: the tables are other tables
        offprint.load_weights(small(window_size=4, num_heads=(2, 4, 4, 8)), source.state_dict())
    mixer = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "img_size": 64}
    four = offprint.create_model("swin_mlp_tiny_c24", window_size=4, **mixer)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(offprint.create_model("swin_mlp_tiny_c24", window_size=8, **mixer), four.state_dict())
    with pytest.raises(OffprintError, match="do not divide into 3 heads"):
        offprint.create_model("swin_tiny", embed_dim=32)
    with pytest.raises(OffprintError, match="same number of stages"):
        offprint.create_model("swin_tiny", depths=(2, 2, 2))
    with pytest.raises(OffprintError, match="at least one token"):
        offprint.create_model("swin_tiny", window_size=0)
    with pytest.raises(OffprintError, match="smaller than a patch"):
        offprint.create_model("swin_tiny", img_size=2)


# -- Swin-MLP --------------------------------------------------------------------------------------------------------
def test_swin_mlp_is_a_grouped_convolution_in_padded_windows():
    torch.manual_seed(0)
    model = offprint.create_model(
        "swin_mlp_tiny_c24", img_size=32, window_size=4, embed_dim=8, depths=(2,), num_heads=(2,)
    ).eval()
    block = model.layers[0].blocks[1]
    torch.nn.init.normal_(block.mixer.bias)
    x = torch.randn(1, 8, 8, 8)
    cut = windows((8, 8), (4, 4), (2, 2))
    padded = F.pad(x, (0, 0, 2, 2, 2, 2))
    cells = (
        padded.view(1, 3, 4, 3, 4, 8).permute(0, 1, 3, 2, 4, 5).reshape(9, 16, 2, 4).transpose(1, 2).reshape(9, 32, 4)
    )
    mixed = F.conv1d(cells, block.mixer.weight, block.mixer.bias, groups=2)
    mixed = (
        mixed.view(9, 2, 16, 4)
        .transpose(1, 2)
        .reshape(1, 3, 3, 4, 4, 8)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(1, 12, 12, 8)
    )
    assert torch.allclose(block.mix(x, cut), mixed[:, 2:10, 2:10], atol=1e-5)


# -- recipe ----------------------------------------------------------------------------------------------------------
def test_tables_and_positions_are_not_decayed():
    model = small(window_size=4, ape=True, img_size=64)
    groups = build_optimizer(model, Recipe.of("swin_tiny"), 64).param_groups
    free = {id(p) for p in groups[1]["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in free and p.ndim > 1}
    assert names == {n for n, _ in model.named_parameters() if n.endswith(("bias_table", "absolute_pos_embed"))}
    recipe = Recipe.of("swin_small")
    assert recipe.scaled(1024)[0] == pytest.approx(1e-3) and recipe.drop_path_rate == 0.3


def test_layer_decay():
    names = ["patch_embed.proj.weight", "mask_token", "layers.0.blocks.1.attn.qkv.weight", "layers.0.downsample.reduction.weight",
             "layers.2.blocks.5.mlp.fc1.bias", "layers.3.blocks.1.attn.relative_position_bias_table", "norm.weight", "head.weight"]  # fmt: skip
    model = SwinTransformer(embed_dim=6, ape=True)
    model.add_mask_token()
    groups = layer_decay_groups(model, 1e-3, 0.05, 0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    rows = [of[id(model.get_parameter(name))] for name in names]
    assert [r["layer"] for r in rows] == [0, 0, 2, 2, 10, 12, 13, 13]
    assert rows[2]["lr_scale"] == 0.5**11 and rows[-1]["lr"] == 1e-3
    assert [bool(r["weight_decay"]) for r in rows] == [True, False, True, True, False, False, False, True]
    assert of[id(model.absolute_pos_embed)]["layer"] == 13  # as the authors' code leaves it, with the head


def test_counts_of_the_paper():
    info = offprint.model_info("swin_tiny")
    assert (info["parameters"], info["macs"]) == (28_288_354, 4_490_566_656)
    larger = offprint.model_info("swin_base_patch4_window12_384")
    assert larger["input"] == [1, 3, 384, 384] and larger["macs"] == 47_083_134_976
    assert offprint.api.entry("swin_tiny").build is SwinTransformer


def test_pickles_are_small_and_equal():
    model = small(window_size=4)
    x = torch.randn(1, 3, 72, 64)
    expected = model(x)
    raw = pickle.dumps(model)
    assert torch.equal(pickle.loads(raw)(x), expected)
    assert len(raw) < 1.3 * sum(p.numel() * 4 for p in model.parameters()) + 2e5


def test_the_cost_is_linear_in_the_tokens_and_shifts_are_free():
    """Eq. 2: four times the area costs four times as much, and a displaced window what one that stays does."""
    costs = {}
    for size in (64, 128):
        net = SwinTransformer(size, 4, 1, 0, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=2)
        costs[size] = macs(net, 1, 1, size, size)
    assert costs[128] == 4 * costs[64]
    for stage in net.layers:
        stage.shifted = False
    assert macs(net, 1, 1, 128, 128) == costs[128]
