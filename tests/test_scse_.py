"""What is scse's own: the joins, where blocks are put, which files are refused, the loss's odd ends."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.segmentation.scse import (
    CSE,
    SCSE,
    SSE,
    CombinedLoss,
    DiceLoss,
    ProjectExcite,
    pixel_weights,
    recalibrate,
)

TINY = {"num_classes": 3, "num_filters": 4}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_joins_differ_and_say_which_they_are():
    x, state = torch.randn(2, 6, 5, 4), SCSE(6).state_dict()
    blocks = {a: SCSE(6, aggregation=a) for a in ("max", "add", "mul", "concat")}
    for block in blocks.values():
        block.load_state_dict(state)  # weights load across joins
    a, b = blocks["max"].cSE(x), blocks["max"].sSE(x)
    assert torch.equal(blocks["max"](x), torch.maximum(a, b)) and torch.equal(blocks["add"](x), a + b)
    assert torch.equal(blocks["mul"](x), a * b) and torch.equal(blocks["concat"](x)[:, :6], a)
    assert all(f"aggregation='{name}'" in repr(block) for name, block in blocks.items())
    with pytest.raises(OffprintError, match="max is the journal's .* add the first paper's.*'sum'"):
        SCSE(6, aggregation="sum")


@pytest.mark.parametrize(("sides", "spatial_dims"), [((5, 4), 2), ((3, 5, 4), 3)])
def test_spatial_gate_by_vectors_of_another_network(sides, spatial_dims):
    block, x, vectors = SSE(6, spatial_dims), torch.randn(2, 6, *sides), torch.randn(3, 6)
    gate = torch.sigmoid(
        (x.movedim(1, -1) @ vectors.mean(0))[:, None]
    )  # in three dimensions too, where the authors' fails
    assert torch.allclose(block(x, vectors), x * gate, atol=1e-6)
    with pytest.raises(OffprintError, match=r"\(K, 6\)"):
        block(x, torch.randn(3, 5))


def test_refused_maps_and_reductions():
    with pytest.raises(OffprintError, match="reduction 8 leave no hidden unit"):
        CSE(6, 8)
    with pytest.raises(OffprintError, match=r"expected a map \(N, 6, H, W\), got \(2, 6, 3, 3, 3\)"):
        CSE(6)(torch.randn(2, 6, 3, 3, 3))
    with pytest.raises(OffprintError, match="spatial_dims=1"):
        SSE(6, 1)
    with pytest.raises(OffprintError, match=r"\(N, 8, D, H, W\)"):
        ProjectExcite(8)(torch.randn(2, 8, 4, 4))


def _smp(rows: int) -> dict[str, torch.Tensor]:
    return {"cSE.1.weight": torch.randn(2, 32, 1, 1), "cSE.1.bias": torch.randn(2), "cSE.3.weight": torch.randn(32, 2, 1, 1),
            "cSE.3.bias": torch.randn(32), "sSE.0.weight": torch.randn(rows, 32, 1, 1), "sSE.0.bias": torch.randn(rows)}  # fmt: skip


def test_a_spatial_kernel_of_a_row_a_channel_is_refused_with_its_reason():
    assert offprint.load_weights(SCSE(32, 16, aggregation="add"), _smp(1)).dialect == "smp"
    with pytest.raises(CheckpointError, match="before December 2019"):
        offprint.load_weights(SCSE(32, 16, aggregation="add"), _smp(32))


def test_monai_channel_gate_loads():
    monai = pytest.importorskip("monai.networks.blocks.squeeze_and_excitation")
    theirs, ours, x = monai.ChannelSELayer(2, 8, 2), CSE(8), torch.randn(2, 8, 5, 5)
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "monai"
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


# -- networks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["fc_densenet", "sd_net", "unet"])
def test_odd_sizes_and_what_is_refused(name):
    model = offprint.create_model(f"{name}_csse", **TINY).eval()
    assert model(torch.randn(1, 1, 37, 51)).shape == (1, 3, 37, 51)
    with pytest.raises(OffprintError, match="of at least .* pixels a side"):
        model(torch.randn(1, 1, 4, 51))
    with pytest.raises(OffprintError, match=r"images \(N, 1, H, W\)"):
        model(torch.randn(1, 3, 37, 51))
    with pytest.raises(OffprintError, match="doubles the channels"):
        offprint.create_model(f"{name}_csse", aggregation="concat")


def test_values_go_back_to_where_they_were_the_largest():
    model, x = offprint.create_model("fc_densenet_none", **TINY), torch.randn(2, 4, 7, 9)
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(model.enlarge(0, y, indices, x), F.max_unpool2d(y, indices, 2, output_size=x.shape[-2:]))


def test_decoder_blocks_are_called_deepest_first():
    order = []
    for name, expected in (("fc_densenet", [4, 1, 2, 3]), ("sd_net", [1, 2, 3])):
        model, order = offprint.create_model(f"{name}_sse", **TINY).eval(), []
        for n in range(1, 5):
            if hasattr(model, f"decode{n}"):
                getattr(model, f"decode{n}").register_forward_hook(lambda *_, n=n, order=order: order.append(n))
        model(torch.randn(1, 1, 32, 32))
        assert order == expected


def test_an_sd_net_whose_cse_is_both_is_named():
    authors = {k.replace("logits.", "classifier.conv."): v for k, v in
               offprint.create_model("sd_net_csse", **TINY).state_dict().items()}  # fmt: skip
    assert offprint.load_weights(offprint.create_model("sd_net_csse", **TINY), authors).dialect == "authors"
    with pytest.raises(CheckpointError, match="SD-Net builds both where 'CSE' is asked for"):
        offprint.load_weights(offprint.create_model("sd_net_cse", **TINY), authors)


def test_of_a_pickled_module_the_tensors_are_read_and_nothing_is_run(tmp_path):
    """QuickNAT's files are whole modules, which fail under another version where they are unpickled."""
    theirs = offprint.create_model("sd_net_csse", **TINY).eval()
    torch.save(theirs, tmp_path / "quicknat.pth.tar")
    ours = offprint.create_model("sd_net_csse", checkpoint_path=str(tmp_path / "quicknat.pth.tar"), **TINY).eval()
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(ours(x), theirs(x))


def test_no_network_has_released_weights():
    with pytest.raises(OffprintError, match="has no released weights"):
        offprint.create_model("fc_densenet_csse", pretrained=True)


# -- into any network --------------------------------------------------------------------------------------------------
def test_recalibrate_gives_the_papers_network():
    plain, ready = (offprint.create_model(f"fc_densenet_{k}", **TINY).eval() for k in ("none", "csse"))
    x, before = torch.randn(2, 1, 32, 48), plain.state_dict()
    added = recalibrate(plain, "csse", at=["encode?", "decode?"], sample=x)
    assert len(added.recalibration) == 8
    ready.load_state_dict(before, strict=False)
    for place, block in added.recalibration.items():
        ready.get_submodule(place).SELayer.load_state_dict(block.state_dict())
    assert torch.allclose(added(x), ready(x), atol=1e-6)
    assert set(before) < set(added.state_dict())  # names of the network's own stay


def test_recalibrate_finds_the_ends_of_stages():
    import torchvision

    found = recalibrate(torchvision.models.resnet50(), sample=torch.randn(1, 3, 64, 64))
    assert list(found.recalibration) == ["relu", "layer1", "layer2", "layer3", "layer4"]  # no place inside a block
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    ours = offprint.create_model("convnext_tiny", **small)  # some layers of which give (B, H, W, C)
    found = recalibrate(ours, "cse", sample=torch.randn(1, 3, 64, 64))
    assert list(found.recalibration) == [f"stages/{i}/0" for i in range(4)]
    plain = recalibrate(offprint.create_model("fc_densenet_none", **TINY), sample=torch.randn(1, 1, 32, 32))
    assert {f"encode{i}" for i in range(1, 5)} | {f"decode{i}" for i in range(1, 5)} <= set(plain.recalibration)


def test_recalibrated_volumes_copy_train_and_load():
    net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.MaxPool3d(2), nn.Conv3d(4, 6, 3, padding=1), nn.Flatten(2))
    x = torch.randn(2, 1, 8, 8, 8)
    net = recalibrate(net, "project_excite", sample=x)
    assert [type(b) for b in net.recalibration.values()] == [ProjectExcite] * 2
    assert torch.equal(copy.deepcopy(net)(x), net(x)) and torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))
    net(x).square().mean().backward()
    assert all(p.grad is not None for p in net.recalibration.parameters())


def test_what_recalibrate_refuses():
    def net():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())

    x = torch.randn(1, 1, 8, 8)
    with pytest.raises(OffprintError, match="unknown kind of excitation 'se'"):
        recalibrate(net(), "se", sample=x)
    with pytest.raises(OffprintError, match="made for volumes"):
        recalibrate(net(), "project_excite", sample=x)
    with pytest.raises(OffprintError, match="unknown module of Sequential 'layer'"):
        recalibrate(net(), at=["layer"], sample=x)
    with pytest.raises(OffprintError, match="2 gives no map"):
        recalibrate(net(), at=["2"], sample=x)
    with pytest.raises(OffprintError, match="recalibrated already"):
        recalibrate(recalibrate(net(), sample=x), sample=x)
    with pytest.raises(OffprintError, match="doubles the channels"):
        recalibrate(net(), aggregation="concat", sample=x)


# -- loss --------------------------------------------------------------------------------------------------------------
def test_dice_of_one_channel_is_of_its_sigmoid():
    target = torch.randint(2, (2, 5, 4))
    good, bad = ((2.0 * target - 1)[:, None] * s for s in (20, -20))
    assert DiceLoss()(good, target) < 1e-3 < 0.99 < DiceLoss()(bad, target)  # a softmax over one channel is 1 for both


def test_dice_is_per_image_and_weights_multiply():
    logits, target = torch.randn(2, 3, 5, 4), torch.randint(3, (2, 5, 4))
    each = [float(DiceLoss()(logits[i : i + 1], target[i : i + 1])) for i in range(2)]
    assert float(DiceLoss()(logits, target)) == pytest.approx(sum(each) / 2)
    assert float(DiceLoss()(logits, target, torch.full((3,), 2.0))) == pytest.approx(2 * sum(each) / 2)
    with pytest.raises(OffprintError, match="whole-numbered classes"):
        CombinedLoss()(logits, target.float())


def test_pixel_weights_balance_and_mark_boundaries():
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    target[0, :, 3] = 1
    weights = pixel_weights(target, 3, boundary=5)
    assert weights[0, 0].tolist() == pytest.approx(
        [4 / 12, 4 / 12, 4 / 12 + 5, 1 + 5]
    )  # torch's median: the lower of two
