"""What is ghostnet-v2's own: the gate, odd sizes, the plain network it starts from, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.ghostnet_v2 import DFCAttention, GhostBottleneck, GhostModule, GhostNetV2


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _plain_dfc(gate: DFCAttention, x: torch.Tensor) -> torch.Tensor:
    """The decoupled mix written as sums over neighbours in a row, then in a column."""
    point, norm1, row, norm2, column, norm3 = gate
    z = norm1(point(F.avg_pool2d(x, 2)))
    for conv, norm, axis in ((row, norm2, 3), (column, norm3, 2)):
        taps = conv.weight.flatten(1)  # (C, 5)
        pad = (2, 2, 0, 0) if axis == 3 else (0, 0, 2, 2)
        wide = F.pad(z, pad)
        z = norm(sum(taps[:, t, None, None] * wide.narrow(axis, t, z.shape[axis]) for t in range(5)))
    rows = (torch.arange(x.shape[2]) * z.shape[2] / x.shape[2]).long()
    columns = (torch.arange(x.shape[3]) * z.shape[3] / x.shape[3]).long()
    return z.sigmoid()[:, :, rows][:, :, :, columns]


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (2, 5)])
def test_the_gate_is_a_mix_along_rows_and_columns(size):
    gate, x = DFCAttention(6, 10).eval(), torch.randn(2, 6, *size)
    out = gate(x)
    assert out.shape == (2, 10, *size) and 0 < out.min() and out.max() < 1
    assert torch.allclose(out, _plain_dfc(gate, x), atol=1e-6)


def test_a_change_reaches_along_rows_and_columns_as_far_as_the_taps():
    gate = DFCAttention(1, 4).eval()
    x = torch.randn(1, 1, 32, 32)
    y = x.clone()
    y[..., 0, 0] += 1
    moved = ((gate(x) - gate(y)).abs().amax((0, 1)) > 1e-7).nonzero()
    assert moved.max() == 5  # places 0 to 2 at half resolution


def test_attention_multiplies_the_plain_module():
    gated = GhostModule(6, 10, attention=True).eval()
    plain = GhostModule(6, 10).eval()
    plain.load_state_dict(gated.state_dict(), strict=False)
    x = torch.randn(2, 6, 9, 12)
    assert torch.allclose(gated(x), plain(x) * gated.short_conv(x))
    assert GhostModule(6, 9)(x).shape == (2, 9, 9, 12)  # an odd number of channels drops one of the cheap half


def test_the_first_two_bottlenecks_have_no_attention():
    model = offprint.create_model("ghostnetv2_100")
    blocks = [m for m in model.modules() if isinstance(m, GhostBottleneck)]
    assert len(blocks) == 16
    assert [b.ghost1.short_conv is not None for b in blocks] == [False] * 2 + [True] * 14
    assert all(b.ghost2.short_conv is None for b in blocks)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("ghostnetv2_100", 6_156_908, 167_048_288),
        ("ghostnetv2_130", 8_960_404, 269_322_976),
        ("ghostnetv2_160", 12_392_698, 398_607_224),
    ],
)
def test_counts(name, parameters, macs):
    info = offprint.model_info(name)
    assert (info["parameters"], info["macs"]) == (parameters, macs)


def test_without_attention_it_is_ghostnet():
    """The V1 network of timm loads, and gives the same; its weights do not fit V2, and the reader says where."""
    import timm

    theirs = timm.create_model("ghostnet_100", num_classes=7).eval()
    ours = offprint.create_model("ghostnetv2_100", num_classes=7, attention=False).eval()
    offprint.load_weights(ours, theirs.state_dict())
    x = torch.randn(1, 3, 71, 90)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    with pytest.raises(OffprintError, match="short_conv"):
        offprint.load_weights(offprint.create_model("ghostnetv2_100", num_classes=7), theirs.state_dict())


def test_a_classifier_file_fills_a_pyramid():
    source = offprint.create_model("ghostnetv2_100", width=0.25)
    pyramid = offprint.create_model("ghostnetv2_100", width=0.25, features_only=True).eval()
    report = offprint.load_weights(pyramid, {"state_dict": source.state_dict()})
    assert not report.fresh
    x = torch.randn(1, 3, 50, 64)
    with torch.no_grad():
        assert torch.equal(pyramid(x)[-1], source.eval().forward_pyramid(x)[-1])


def test_refusals():
    model = GhostNetV2(width=0.25, num_classes=2).eval()
    assert model(torch.randn(1, 3, 33, 33)).shape == (1, 2)
    with pytest.raises(OffprintError, match="at least 33"):
        model(torch.randn(1, 3, 32, 64))
    with pytest.raises(OffprintError, match=r"pools 2x2.*\(1, 4\)"):
        DFCAttention(2, 2)(torch.randn(1, 2, 1, 4))
    with pytest.raises(OffprintError, match="width=0"):
        GhostNetV2(width=0)


def test_the_plain_module_reaches_one_place_and_the_gated_one_further():
    reach = {}
    for attention in (False, True):
        module = GhostModule(3, 16, attention=attention).eval()
        x = torch.randn(4, 3, 32, 32)
        y = x.clone()
        y[:, :, 16, 16] += 1
        with torch.no_grad():
            moved = ((module(x) - module(y)).abs().amax((0, 1)) > 1e-7).nonzero()
        reach[attention] = int((moved - 16).abs().max())
    assert reach == {
        False: 1,
        True: 5,
    }  # one 3x3; two taps each way at half resolution, and the place where halves meet
