"""What is halonet's own: windows, padding, relative positions, strided queries, the family, foreign files, what is refused."""

import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.halonet import HaloAttention, HaloNet, _CutWindows, cut_windows


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def by_the_formula(layer: HaloAttention, x: torch.Tensor) -> torch.Tensor:
    """Every query on its own, in plain Python, from the definition in the paper."""
    n, b, h, d, dv = layer.num_heads, layer.block_size, layer.halo_size, layer.head_dim, layer.value_head_dim
    w, stride, side = b + 2 * h, layer.stride, b // layer.stride
    wq, wkv = layer.q.weight.flatten(1), layer.kv.weight.flatten(1)
    images, _, height, width = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    out = torch.zeros(images, n * dv, rows, columns)
    for image in range(images):
        for r in range(rows):
            for c in range(columns):
                q = (wq @ x[image, :, r * stride, c * stride]).view(n, d)
                top, left = r // side * b - h, c // side * b - h
                i, j = r % side, c % side
                logits, values = [], []
                for u in range(w):
                    for v in range(w):
                        y, z = top + u, left + v
                        inside = 0 <= y < height and 0 <= z < width
                        kv = (wkv @ x[image, :, y, z] if inside else torch.zeros(n * (d + dv))).view(n, d + dv)
                        rel = layer.pos_embed.height_rel[u - i + w - 1] + layer.pos_embed.width_rel[v - j + w - 1]
                        logits.append((q * kv[:, :d]).sum(1) * d**-0.5 + q @ rel)
                        values.append(kv[:, d:])
                weight = torch.stack(logits).softmax(0)
                out[image, :, r, c] = (weight[..., None] * torch.stack(values)).sum(0).flatten()
    return out


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "size"),
    [
        ({"block_size": 4, "halo_size": 1}, (8, 4)),
        ({"block_size": 4, "halo_size": 1}, (7, 9)),
        ({"block_size": 4, "halo_size": 2, "stride": 2}, (8, 8)),
        ({"block_size": 4, "halo_size": 1, "stride": 2}, (5, 7)),
        ({"block_size": 2, "halo_size": 0, "value_dim": 20}, (4, 5)),
        ({"block_size": 2, "halo_size": 5, "value_dim": 4}, (3, 3)),
    ],
)
def test_attention_is_what_the_formula_says(kwargs, size, training):
    layer = HaloAttention(6, 8, num_heads=2, **kwargs).train(training)
    x = torch.randn(2, 6, *size)
    with torch.no_grad():
        expected = by_the_formula(layer, x)
        assert torch.allclose(layer(x), expected, atol=1e-5)
        assert torch.allclose(layer(x.contiguous(memory_format=torch.channels_last)), expected, atol=1e-5)
        layer.merge()
        assert torch.allclose(layer.eval()(x), expected, atol=1e-5)


@pytest.mark.parametrize(("block", "halo"), [(4, 1), (4, 5), (3, 2), (4, 0)])
def test_the_written_gradient_of_the_windows_is_the_gradient(block, halo):
    window = block + 2 * halo
    x = torch.randn(2, 3 * block + 2 * halo, 2 * block + 2 * halo, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: _CutWindows.apply(t, window, block, 2), x, fast_mode=True)
    assert torch.equal(_CutWindows.apply(x, window, block, 2), cut_windows(x, window, block, 2))


def test_training_and_evaluation_have_the_same_gradients():
    layer, x = HaloAttention(8, num_heads=2, block_size=4, halo_size=1), torch.randn(2, 8, 9, 12)
    grads = []
    for training in (False, True):
        layer.train(training).zero_grad()
        layer(x).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads, strict=True))


def _global(layer: HaloAttention, x: torch.Tensor, pad: int) -> torch.Tensor:
    """Attention of every place to every place of the map padded by ``pad``, with an explicit bias."""
    n, d, dv, side = layer.num_heads, layer.head_dim, layer.value_head_dim, x.shape[-1]
    wide = side + 2 * pad
    q = layer.q(x).unflatten(1, (n, d)).flatten(3).transpose(2, 3)
    k, v = F.pad(layer.kv(x), (pad,) * 4).unflatten(1, (n, d + dv)).flatten(3).transpose(2, 3).split((d, dv), -1)
    place, key = torch.arange(side * side), torch.arange(wide * wide)
    rows = key[None] // wide - place[:, None] // side + wide - 1
    columns = key[None] % wide - place[:, None] % side + wide - 1
    table = layer.pos_embed.height_rel[rows] + layer.pos_embed.width_rel[columns]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.einsum("bnpd,pkd->bnpk", q, table))
    return out.transpose(2, 3).flatten(1, 2).unflatten(2, (side, side))


@pytest.mark.parametrize("halo", [0, 3, 9])
def test_a_block_as_large_as_the_map_is_global_attention(halo):
    """With a halo, also one larger than the map, the padding takes part."""
    layer, x = HaloAttention(8, num_heads=2, block_size=6, halo_size=halo).eval(), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.allclose(layer(x), _global(layer, x, halo), atol=1e-5)


def test_a_shift_by_a_block_shifts_the_output():
    layer, x = HaloAttention(8, num_heads=2, block_size=4, halo_size=2).eval(), torch.randn(1, 8, 24, 24)
    with torch.no_grad():
        a, b = layer(x), layer(x.roll((4, 4), (2, 3)))
    assert torch.allclose(b[..., 8:20, 8:20], a[..., 4:16, 4:16], atol=1e-6)


def test_the_halo_decides_what_a_block_sees():
    for halo in (0, 1, 3):
        layer = HaloAttention(4, num_heads=1, block_size=4, halo_size=halo).eval()
        x = torch.randn(1, 4, 16, 16, requires_grad=True)
        layer(x)[..., 4:8, 8:12].sum().backward()
        seen = x.grad.abs().amax((0, 1)) > 0
        assert seen.any(1).nonzero().flatten().tolist() == list(range(4 - halo, 8 + halo))
        assert seen.any(0).nonzero().flatten().tolist() == list(range(8 - halo, 12 + halo))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("halonet_h0", 5_500_952),
        ("halonet_h1", 8_100_056),
        ("halonet_h2", 9_404_312),
        ("halonet_h3", 11_841_304),
        ("halonet_h4", 19_101_976),
        ("halonet_h5", 30_717_272),
        ("halonet_h6", 43_456_792),
        ("halonet_h7", 67_433_240),
        ("halonet26t", 12_480_288),
        ("halonet50ts", 22_733_280),
        ("sehalonet33ts", 13_691_712),
        ("halo2botnet50ts_256", 22_635_360),
    ],
)
def test_counts(name, parameters):
    info = offprint.model_info(name)
    assert info["parameters"] == parameters and info["outputs"] == [1, 1000]


def test_heads_of_the_paper_change_little():
    with torch.device("meta"):
        ours, paper = (offprint.create_model("halonet_h1", num_heads=h) for h in (8, (4, 8, 8, 8)))
    counts = [sum(p.numel() for p in m.parameters()) for m in (paper, ours)]
    assert counts[0] - counts[1] == 1296


@pytest.mark.parametrize("name", ["sehalonet33ts", "halonet50ts", "halo2botnet50ts_256"])
def test_hybrids_equal_timm(name):
    import timm

    theirs = timm.create_model(name, num_classes=5).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as built they switch the branches off
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    ours = offprint.create_model(name, num_classes=5).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "timm"
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_a_lucidrains_layer_loads():
    """Its layer without the mask at the border, and without its output projection: an inner block gives the same."""
    heads, d, block, halo = 2, 4, 4, 1
    w = block + 2 * halo
    state = {
        "to_q.weight": torch.randn(heads * d, 6),
        "to_kv.weight": torch.randn(2 * heads * d, 6),
        "to_out.weight": torch.randn(6, heads * d),
        "to_out.bias": torch.randn(6),
        "rel_pos_emb.rel_height": torch.randn(2 * w - 1, d),
        "rel_pos_emb.rel_width": torch.randn(2 * w - 1, d),
    }
    layer = HaloAttention(6, heads * d, heads, block, halo).eval()
    assert offprint.load_weights(layer, state).dialect == "lucidrains"
    x = torch.randn(1, 6, 12, 12)
    with torch.no_grad():
        got = layer(x)[0, :, 4:8, 4:8].flatten(1)  # (heads d, 16)
    window = x[0, :, 3:9, 3:9].flatten(1)
    q = (state["to_q.weight"] @ x[0, :, 4:8, 4:8].flatten(1)).view(heads, d, 16) * d**-0.5
    k, v = (state["to_kv.weight"] @ window).view(2, heads, d, w * w)
    place, key = torch.arange(16), torch.arange(w * w)
    table = state["rel_pos_emb.rel_height"][key[None] // w - place[:, None] // 4 + w - 1]
    table = table + state["rel_pos_emb.rel_width"][key[None] % w - place[:, None] % 4 + w - 1]
    logits = torch.einsum("hdp,hdk->hpk", q, k) + torch.einsum("hdp,pkd->hpk", q, table)
    expected = torch.einsum("hpk,hdk->hdp", logits.softmax(-1), v).flatten(0, 1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_evaluation_does_not_depend_on_the_number_of_threads():
    """With large logits the softmax is a switch: a rounding that differs would show."""
    model = offprint.create_model("halonet_h1", blocks=("a", "a", "a", "a"), num_classes=3).eval()
    for module in model.modules():
        if isinstance(module, HaloAttention):
            module.q.weight.data.mul_(30)
    x, before = torch.randn(1, 3, 128, 128), torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                outs.append(model(x))
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(*outs, atol=1e-6)


def test_refusals():
    with pytest.raises(OffprintError, match="3 heads do not divide 8"):
        HaloAttention(8, num_heads=3)
    with pytest.raises(OffprintError, match="10 value channels"):
        HaloAttention(8, num_heads=4, value_dim=10)
    with pytest.raises(OffprintError, match="block_size=7 with stride=2"):
        HaloAttention(8, num_heads=2, block_size=7, stride=2)
    with pytest.raises(OffprintError, match="stride=3"):
        HaloAttention(8, num_heads=2, block_size=9, stride=3)
    with pytest.raises(OffprintError, match="halo_size=-1"):
        HaloAttention(8, num_heads=2, halo_size=-1)
    with pytest.raises(OffprintError, match="same number of stages"):
        HaloNet(blocks=("a", "a"), halo_size=(1, 2, 3), mids=(8, 8), widths=(8, 8))
    with pytest.raises(OffprintError, match="a .attention. or c"):
        HaloNet(blocks=("a", "x", "a", "a"))
    with pytest.raises(OffprintError, match="another size"):
        offprint.load_weights(
            offprint.create_model("halonet_h1", blocks=("a",) * 4, halo_size=2),
            offprint.create_model("halonet_h1", blocks=("a",) * 4).state_dict(),
        )
