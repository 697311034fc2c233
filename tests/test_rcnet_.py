"""What is rcnet's own: sizes, weights of a node, the shift between levels, contexts, norms, the two-stage form, what is refused."""

import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import OffprintError
from offprint.models.detection.fpn import FPN
from offprint.models.detection.rcnet import CSN, RCFPN, DeformConv, Node, Shift, even, fit, weighed
from offprint.models.parts import Maps
from offprint.models.registry import entry

MAPS = Maps((8, 16, 16, 24), (4, 8, 16, 32))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pyramid(height=72, width=104, batch=2, maps=MAPS):
    return [
        torch.randn(batch, c, -(-height // s), -(-width // s))
        for c, s in zip(maps.channels, maps.reductions, strict=True)
    ]


def neck(**options):
    return RCFPN.on(MAPS, **{"out_channels": 32, "deformable": False, **options}).eval()


@pytest.mark.parametrize("norm", ["bn", "gn", ""])
@pytest.mark.parametrize("deformable", [False, True])
def test_odd_sizes_and_every_norm(norm, deformable):
    model = neck(norm=norm, deformable=deformable)
    out = model(pyramid(72, 104))
    assert [tuple(m.shape[-2:]) for m in out] == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]
    assert model.maps == Maps((32,) * 5, (8, 16, 32, 64, 128))
    assert min(m.min() for m in out) < 0  # a norm comes last, not a ReLU
    convs = [m for m in model.lateral_convs]
    assert all((c.conv.bias is None) == bool(norm) for c in convs)
    assert (model.CSN.msm.aggregation[0][0].conv.bias is None) == bool(norm)
    assert model.CSN.msm.aggregation[0][1].bias is not None


def test_counts_of_the_sheet():
    channels = (256, 512, 1024, 2048)
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in m.parameters())
            for m in (RCFPN(channels), RCFPN(channels, norm="gn"), RCFPN(channels, deformable=False), FPN(channels[1:]))
        ]
    assert counts == [7665346, 7665346, 6669586, 7997440]


def test_two_stage_form():
    """Levels 2 to 6, the last one every second place of the one before it, without a convolution."""
    model = neck(finest=4)
    assert model.maps.reductions == (4, 8, 16, 32, 64) and len(model.extra_downsamples) == 0
    assert [tuple(m.shape[-2:]) for m in model(pyramid())] == [(18, 26), (9, 13), (5, 7), (3, 4), (2, 2)]


def test_shrinking_repeats_the_edge_and_keeps_the_largest():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    assert even(x).shape == (1, 1, 4, 6) and even(x)[0, 0, 3, 5] == 14
    assert fit(x, torch.Size((2, 3)))[0, 0].tolist() == [[6, 8, 9], [11, 13, 14]]
    assert fit(x, torch.Size((3, 5))) is x
    assert torch.equal(fit(x, torch.Size((5, 9))), F.interpolate(x, (5, 9), mode="bilinear"))


def test_a_fresh_node_joins_halves():
    """With weights of zero: every share is a half, every position weighs one; what a map was weighted by has the mean one."""
    node = Node(16, True, True, "", False).eval()
    own, other, below = torch.randn(2, 16, 5, 7), torch.randn(2, 16, 3, 4), torch.randn(2, 16, 10, 14)
    up, down = F.interpolate(other, (5, 7), mode="bilinear"), F.max_pool2d(below, 2)
    first = node.pre_fusion(F.relu((own + up) / 2))
    torch.testing.assert_close(node(own, other, below), node.post_fusion(F.relu((first + down) / 2)))
    weights = weighed(torch.ones(2, 1, 5, 7), torch.randn(2, 1, 5, 7))
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(2))


def test_the_mean_is_taken_before_the_weighting():
    node = Node(16, False, True, "", False).eval()
    with torch.no_grad():
        node.spatial_weight.weight.normal_()
        node.weight[0].weight.normal_()
    own, other = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    scores = node.temp * 16**-0.5 * node.spatial_weight(torch.cat([own, other], 1))
    share = node.weight[0](torch.cat([own.mean((2, 3), True), other.mean((2, 3), True)], 1)).sigmoid()
    joined = share * own + (1 - share) * weighed(other, scores)
    torch.testing.assert_close(node(own, other), node.post_fusion(F.relu(joined)))


def test_shift_borrows_from_near_and_far_in_a_circle():
    """With the first convolution copying one borrowed slice, the slice of the right level arrives."""
    shift = Shift(16, "")
    maps = [torch.full((1, 16, 1, 1), 10.0 * (i + 1)) for i in range(5)]
    for k, step in enumerate((1, -1, 2, -2)):
        for pair in shift.aggregation:
            for p in pair.parameters():
                torch.nn.init.zeros_(p)
            pair[0].conv.weight.data[0, k] = pair[1].weight.data[0, 0] = 1
        got = [float(m[0, 0].item()) - 10 * (i + 1) for i, m in enumerate(shift(maps))]
        assert got == [10.0 * ((i + step) % 5 + 1) for i in range(5)]


def test_contexts_do_not_leak_between_images():
    csn = CSN(16, "").eval()
    maps = [torch.randn(2, 16, s, s) for s in (16, 8, 4, 2, 1)]
    alone = csn([m[:1] for m in maps])
    for a, b in zip(csn(maps), alone, strict=True):
        torch.testing.assert_close(a[:1], b)


def test_deformable_convolution_starts_plain():
    """Offsets of zero; taps weighted by a half where they are weighted."""
    for modulated, factor in ((True, 0.5), (False, 1.0)):
        conv = DeformConv(8, 6, modulated=modulated)
        assert conv.conv_offset.out_channels == (54 if modulated else 36)
        x = torch.randn(1, 8, 7, 9)
        torch.testing.assert_close(conv(x), factor * F.conv2d(x, conv.weight, padding=1))
        assert conv.weight.abs().max() <= (8 * 9) ** -0.5


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: RCFPN((8, 16, 16, 24), 32, num_outs=4), "num_outs=4 and 3 of the 4 maps"),
        (lambda: RCFPN((8, 16), 32, start_level=0), "five levels"),
        (lambda: RCFPN((8, 16, 16, 24), 24), "out_channels=24; .* sixteenths"),
        (lambda: RCFPN((8, 16, 16, 24), 16, norm="gn"), "32 groups"),
        (lambda: RCFPN((8, 16, 16, 24), 32, norm="ln"), "norm of RCFPN"),
        (lambda: neck()(pyramid(maps=Maps((8, 16, 16, 16), (4, 8, 16, 32)))), "built for maps of"),
        (lambda: neck()(pyramid(maps=Maps((8, 16, 16, 24), (4, 8, 32, 64)))), "half its finer neighbour"),
        (lambda: entry("retinanet_r50_rcfpn").release(True), "no released weights"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(OffprintError, match=words):
        build()


def test_variants_build_and_a_small_one_detects():
    with torch.device("meta"):
        x101 = offprint.create_model("gfl_x101_dcn_rcfpn")
    offsets = [n for n, m in x101.backbone.named_modules() if isinstance(m, DeformConv)]
    assert len(offsets) == 4 + 23 + 3 and not any(n.startswith("layer1") for n in offsets)
    assert x101.neck.lateral_convs[0].gn.num_groups == 32
    model = offprint.create_model(
        "atss_r50_rcfpn", num_classes=3, depths=(1, 1, 1, 1), out_channels=32, deformable=False
    ).eval()
    (found,) = model.detect(torch.randn(1, 3, 100, 70), score_threshold=0.001, limit=3)
    assert len(found["boxes"]) <= 3
