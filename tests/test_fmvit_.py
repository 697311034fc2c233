"""What is the rebuilt FMViT's own: branches that merge, norms that fold, averages at borders, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from benchmarks.fmvit import Direct
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.fmvit import CFB, CFC, FMB, GMLP, RLMHSA, ConvBN, FMViT, Rep, merge_branches

TINY = {"blocks": ("c", "cf", "f", "f"), "dims": (32, 64, 64, 96), "num_classes": 5}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def uneven(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias)
    return model.double().eval()


def tiny(name="fmvit_tiny_rebuilt", **kwargs) -> FMViT:
    return uneven(offprint.create_model(name, **{**TINY, **kwargs}))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max())


@pytest.mark.parametrize(
    ("name", "trained", "merged", "macs", "fewer"),
    [
        ("fmvit_tiny_rebuilt", 5_077_928, 3_515_624, 1.693e9, 1.346e9),
        ("fmvit_small_rebuilt", 14_933_800, 9_941_704, 3.118e9, 2.274e9),
    ],
)
def test_counts_of_both_forms(name, trained, merged, macs, fewer):
    from offprint.proofs import kit

    info = offprint.model_info(name)
    assert info["parameters"] == trained and info["macs"] == pytest.approx(macs, rel=3e-4)
    net = offprint.create_model(name, deploy=True)
    assert sum(p.numel() for p in net.parameters()) == merged
    assert kit.macs(net, 1, 3, 224, 224) == pytest.approx(fewer, rel=3e-4)


# -- merging ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "branches", "stride", "groups"),
    [
        ((8, 8), ((1, 1), (1, 2), (1, 4)), 1, 1),
        ((8, 8), ((3, 4), (1, 4)), 1, 4),
        ((12, 24), ((3, 2), (1, 6), (3, 6)), 1, 2),
        ((6, 6), ((3, 2), (1, 6), (3, 6)), 1, 2),
        ((6, 6), ((3, 1), (1, 1), (5, 3)), 2, 1),
    ],
)
def test_branches_merge(sizes, branches, stride, groups):
    layer, x = uneven(Rep(*sizes, branches, stride)), torch.randn(2, sizes[0], 9, 7, dtype=torch.float64)
    assert (layer.identity is not None) == (sizes[0] == sizes[1] and stride == 1)
    before = layer(x)
    layer.merge()
    assert close(layer(x), before)
    size = max(k for k, _ in branches)
    assert layer.weight.shape == (sizes[1], sizes[0] // groups, size, size)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.merge()  # a second time changes nothing
    assert all(torch.equal(v, state[k]) for k, v in layer.state_dict().items())


def test_a_small_kernel_and_the_identity_lie_at_the_centre():
    layer = uneven(Rep(4, 4, ((3, 2), (1, 4))))
    with torch.no_grad():
        layer.branches[0].conv.weight.zero_()
    weight, _ = layer.kernel()
    ring = weight.clone()
    ring[..., 1, 1] = 0
    assert float(ring.abs().max()) == 0 and float(weight[..., 1, 1].abs().max()) > 0
    own = layer.identity.weight / (layer.identity.running_var + layer.identity.eps).sqrt()
    plain, _, _ = merge_branches([(b.conv.weight, b.bn, b.conv.groups) for b in layer.branches])
    moved = (weight - plain)[..., 1, 1]  # (4, 2): each channel at its own place in its group of two
    assert torch.allclose(moved, torch.stack([own * torch.tensor([1, 0, 1, 0]), own * torch.tensor([0, 1, 0, 1])], 1))


def test_merging_is_computed_in_double():
    """A running variance near 0 makes the scale large; single precision would lose what the others add."""
    layer = uneven(Rep(8, 8)).float()
    with torch.no_grad():
        layer.branches[1].bn.running_var.fill_(1e-9)
    expected, _ = layer.double().kernel()
    got, _ = layer.float().kernel()
    assert (got - expected).abs().max() / expected.abs().max() < 1e-6


@pytest.mark.parametrize("pool", [1, 2, 3])
@pytest.mark.parametrize("kind", ["cfb", "fmb", "attention"])
def test_norms_fold_into_what_follows(kind, pool):
    block = {"cfb": lambda: CFB(32, 64, 2), "fmb": lambda: FMB(32, 96, 2, pool), "attention": lambda: RLMHSA(32, pool)}[
        kind
    ]()
    block, x = uneven(block), torch.randn(2, 32, 11, 14, dtype=torch.float64)
    before = block(x)
    block.merge()
    assert close(block(x), before)
    norms = [n for n, m in block.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(n in ("norm", "norm1", "norm2", "attn.norm") or n.startswith("mlp.fc1") for n in norms)
    block.merge()
    assert close(block(x), before)


def test_merging_in_training_is_refused():
    for part in (tiny(), CFB(32, 32), FMB(32, 64), RLMHSA(32, 2), Rep(4, 4)):
        with pytest.raises(OffprintError, match="training mode"):
            part.train().merge()
    with pytest.raises(OffprintError, match="training mode"):
        tiny().train().switch_to_deploy()


def test_the_form_for_inference():
    net, x = tiny().float(), torch.randn(2, 3, 75, 66)
    merged = offprint.deploy(net, x)
    assert [n for n, m in merged.named_modules() if isinstance(m, nn.BatchNorm2d)] == ["norm"]
    assert not any(isinstance(m, Rep) and not m.merged for m in merged.modules())
    net.switch_to_deploy()
    assert torch.allclose(net(x), merged(x), rtol=1e-4, atol=1e-3) and offprint.deploy(net) is net


def test_either_file_loads_into_either_form():
    source, x = tiny(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected, trained = source(x), {k: v.clone() for k, v in source.state_dict().items()}
    source.merge()
    for state in (trained, source.state_dict()):
        for deploy in (False, True):
            target = offprint.create_model("fmvit_tiny_rebuilt", **TINY, deploy=deploy).double().eval()
            assert not offprint.load_weights(target, state).fresh and close(target(x), expected)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(tiny(deploy=True), tiny(dims=(32, 64, 96, 96)).state_dict())


def test_a_merged_network_is_rebuilt_merged(tmp_path):
    from offprint.models.sharing import from_pretrained, save_pretrained

    net, x = tiny().float(), torch.randn(1, 3, 64, 64)
    net.merge()
    save_pretrained(net, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m")).eval()
    assert again.spec["kwargs"]["deploy"] and torch.equal(again(x), net(x))


# -- the blocks ------------------------------------------------------------------------------------------------------
def test_against_the_formulas_written_out():
    net, x = tiny(), torch.randn(2, 3, 71, 90, dtype=torch.float64)
    with torch.no_grad():
        assert close(net(x), Direct(net)(x))


def test_averages_at_the_border_do_not_count_padding():
    """A map of ones stays one of ones, whatever its size; counted padding would darken the border."""
    attention = uneven(RLMHSA(32, 4))
    seen = []
    attention.norm.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    attention(torch.ones(1, 32, 9, 6, dtype=torch.float64))
    assert seen[0].shape[2:] == (3, 2) and torch.allclose(seen[0], torch.ones_like(seen[0]))


@pytest.mark.parametrize(
    ("out", "share", "low"), [(64, 0.75, 32), (96, 0.75, 64), (320, 0.75, 224), (128, 0.5, 64), (64, 0.1, 32)]
)
def test_low_channels_are_heads_of_32(out, share, low):
    block = FMB(32, out, share=share)
    assert block.attn.q.in_features == low and block.split.conv.out_channels == out - low
    assert block(torch.randn(1, 32, 5, 5)).shape == (1, out, 5, 5)


def test_high_channels_come_from_the_low_ones():
    """Without what mixes them, the block hands low channels through and derives the high ones from these."""
    block, x = uneven(FMB(32, 64)), torch.randn(1, 32, 6, 6, dtype=torch.float64)
    for layer in (block.attn.proj, block.high.proj, *(b.conv for b in block.mlp.fc2.branches)):
        nn.init.zeros_(layer.weight)
    nn.init.zeros_(block.attn.proj.bias)
    last = [b.bn for b in block.mlp.fc2.branches]
    for norm in last:
        nn.init.zeros_(norm.bias)
        nn.init.zeros_(norm.running_mean)
    assert close(block(x), torch.cat([x, block.split(x)], 1))


def test_parts_of_other_groupings():
    assert [m.conv.groups for m in CFC(96).mix.branches] == [3, 3] and CFC(96).proj.bias is None
    mlp = GMLP(32, 1.5)
    assert (
        mlp.fc1.out_channels == 48
        and mlp.fc1.identity is None
        and [b.conv.groups for b in mlp.fc2.branches] == [1, 2, 4]
    )
    assert isinstance(CFB(32, 32).embed.conv, nn.Identity) and isinstance(CFB(32, 64).embed.conv, ConvBN)
    x = torch.randn(1, 32, 5, 7)
    assert torch.equal(CFB(32, 32).embed(x), x) and F.relu(CFB(32, 64, 2)(x)).shape == (1, 64, 3, 4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FMB(32, 32), "leaves no high channels"),
        (lambda: FMB(32, 64, share=1.0), "share=1.0 leaves no high channels"),
        (lambda: FMB(32, 80), "multiple of 32"),
        (lambda: CFB(32, 48), "multiple of 32"),
        (lambda: CFB(32, 32, 3), "stride=3; give 1 or 2"),
        (lambda: RLMHSA(40), "width of a head"),
        (lambda: Rep(6, 6, ((1, 4),)), "do not divide into 4 groups"),
        (lambda: FMViT(blocks=("c", "x"), dims=(32, 64), pool_ratios=(1, 1)), "c for CFB and f for FMB"),
        (lambda: FMViT(blocks=("c",), dims=(32, 64), pool_ratios=(1, 1)), "one of each for every stage"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(OffprintError, match=says):
        make()


def test_what_is_said_of_weights():
    """tany0699/FMViT#1 and #3: users ask for code and weights; there are none, and every name and text says that it is rebuilt."""
    import offprint.models.backbones.fmvit as module

    names = offprint.list_models(paper="fmvit")
    assert names and all(name.endswith("_rebuilt") for name in names)
    assert "neither code nor weights" in module.__doc__ and "no published accuracy" in offprint.paper("fmvit").summary
    with pytest.raises(OffprintError, match="fmvit_tiny_rebuilt has no released weights"):
        offprint.create_model("fmvit_tiny_rebuilt", pretrained=True)
