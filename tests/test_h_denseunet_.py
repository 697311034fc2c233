"""H-DenseUNet: released and written forms, files of Keras flat and nested, what the stages hold still, scans of any size."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import offprint
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.registry import entry
from offprint.models.segmentation import h_denseunet as paper
from offprint.models.segmentation.h_denseunet import DenseUNet, HDenseUNet

SLIM = {"layers": (1, 1, 1, 1), "growth": 4, "stem": 8, "up": (8, 8, 8, 8, 8)}


def plane(**kwargs) -> DenseUNet:
    torch.manual_seed(0)
    return DenseUNet(**{"layers": (1, 2, 1, 1), "growth": 4, "stem": 8, **kwargs})


def hybrid(**kwargs) -> HDenseUNet:
    torch.manual_seed(0)
    return HDenseUNet(plane=SLIM, volume=SLIM, **kwargs)


def keras(state, nested=None):
    """The tensors of our state under Keras' names and in its layouts."""
    import re

    roots = {"plane.out": "dense167classifer", "volume.out": "3dclassifer", "fusion.conv": "fianl_conv",
             "fusion.norm": "final_bn", "out": "2d3dclassifer" if nested is None else "dense167classifer"}  # fmt: skip
    out = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "num_batches_tracked":
            continue
        if layer in roots:
            layer = roots[layer]
        else:
            layer = ("3d" if layer.startswith("volume.") else "") + re.sub(r"^(plane|volume)\.", "", layer)
            layer = re.sub(r"blocks\.(\d)\.(\d+)\.", lambda m: f"conv{int(m[1]) + 2}_{int(m[2]) + 1}_", layer)
            layer = re.sub(r"transitions\.(\d)\.bsr", lambda m: f"conv{int(m[1]) + 2}_blk", layer)
            layer = re.sub(r"transitions\.(\d)\.conv", lambda m: f"conv{int(m[1]) + 2}_blk", layer)
            layer = re.sub(r"up\.(\d)\.conv", r"conv_up\1", layer)
            layer = re.sub(r"up\.(\d)\.norm", r"bn_up\1", layer)
            layer = re.sub(r"_(?:bsr|conv)([12])", r"_x\1", layer)
            layer = layer.replace("bsr1", "conv1").replace("bsr5", "conv5_blk")
            layer = layer.replace(".norm", "_bn").replace(".scale", "_scale")
        conv = value.ndim > 2
        flat = layer.endswith(("_bn", "_scale")) or "bn_" in layer
        kind = {"weight": "gamma" if flat else "kernel", "bias": "beta" if flat else "bias",
                "running_mean": "moving_mean", "running_var": "moving_variance"}[kind]  # fmt: skip
        value = value.permute(*range(2, value.ndim), 1, 0) if conv else value
        where = out.setdefault(layer, {}) if nested is None else out.setdefault(nested, {}).setdefault(layer, {})
        where[f"{layer}_{kind}:0" if "_scale" in layer else f"{kind}:0"] = value.numpy()
    return out


def test_files_of_keras_flat_and_nested():
    model = hybrid()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    flat = paper.read_keras({"model_weights": keras(model.state_dict())})
    other = HDenseUNet(plane=SLIM, volume=SLIM)
    report = offprint.load_weights(other, flat)
    assert report.dialect == "keras" and not report.fresh
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    alone = DenseUNet(unet_connections=False, drop_rate=0, **SLIM)
    inside = paper.read_keras(keras(model.plane.state_dict(), nested="denseu161"))
    assert next(iter(inside)).startswith("denseu161/")
    assert not offprint.load_weights(alone, inside).fresh
    started = HDenseUNet(plane=SLIM, volume=SLIM)
    before = copy.deepcopy(started.volume.state_dict())
    report = offprint.load_weights(started, inside)
    assert report.dialect == "keras-2d" and all(n.startswith(("volume.", "fusion.", "out.")) for n in report.fresh)
    assert torch.equal(started.plane.out.weight, model.plane.out.weight) and len(report.fresh) > 20
    assert all(torch.equal(v, started.volume.state_dict()[k]) for k, v in before.items())
    report = offprint.load_weights(HDenseUNet(plane=SLIM, volume=SLIM), alone.state_dict())
    assert report.dialect == "offprint-2d"
    assert not offprint.load_weights(DenseUNet(unet_connections=False, **SLIM), flat).fresh  # the branch of a hybrid
    broken = {k: v for k, v in flat.items() if "3dconv_up0" not in k}
    with pytest.raises(CheckpointError, match="missing"):
        offprint.load_weights(HDenseUNet(plane=SLIM, volume=SLIM), broken)
    with pytest.raises(CheckpointError, match="no tensors"):
        paper.read_keras({"model_weights": {}})


def test_imagenet_starts_the_encoder():
    from torchvision.models import DenseNet

    theirs = DenseNet(4, (1, 2, 1, 1), 8, bn_size=4, num_classes=10)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
            module.running_mean.normal_()
    model = plane().eval()
    report = offprint.load_weights(model, theirs.state_dict())
    assert report.dialect == "torchvision"
    assert all("scale" in n or n.startswith(("up.", "out.", "line0.")) for n in report.fresh)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-5
    x, theirs = torch.randn(1, 3, 64, 64), theirs.eval()
    kept = {}
    model.bsr5.register_forward_hook(lambda m, i, o: kept.update(out=o))
    with torch.no_grad():
        model(x)
        assert torch.allclose(kept["out"], F.relu(theirs.features(x)), atol=1e-5)
    flat = paper.read_keras(
        {k: v for k, v in keras(model.state_dict(), "x")["x"].items() if "up" not in k and "167" not in k}
    )
    assert offprint.load_weights(plane(), {**flat, "fc6/kernel:0": torch.zeros(4, 10)}).dialect == "keras-imagenet"


def test_connections_are_one_flag_and_none_in_the_released_form():
    assert entry("h_denseunet_released").kwargs == {} and entry("h_denseunet").kwargs == {"unet_connections": True}
    with_, without = plane(), plane(unet_connections=False)
    assert hasattr(with_.line0, "weight") and without.line0 is None
    assert hybrid().plane.line0 is None and hybrid(unet_connections=True).plane.up[0].drop_rate == 0
    with pytest.raises(OffprintError, match="do not allow a sum"):
        DenseUNet(ndim=3, unet_connections=True)
    with pytest.raises(OffprintError, match="four blocks"):
        DenseUNet(layers=(1, 2))


def test_the_image_comes_first_and_logits_are_scaled():
    model, seen = hybrid().eval(), {}
    model.volume.conv1.register_forward_pre_hook(lambda m, i: seen.update(x=i[0]))
    x = torch.randn(2, 1, 32, 32, 8)
    with torch.no_grad():
        fused, slices, deep = model.forward_all(x)
        one = model.plane(x[0, 0][:, :, [0, 0, 1]].movedim(-1, 0)[None])
        assert torch.allclose(model(x), fused) and deep.shape == fused.shape == (2, 3, 32, 32, 8)
        assert torch.allclose(one[0], slices[0, ..., 0], atol=1e-4)
    assert torch.equal(seen["x"][:, :1], x) and torch.allclose(seen["x"][:, 1:], 250 * slices)
    eps = {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d)}
    assert eps == {1.1e-5, 1e-3}


@pytest.mark.parametrize(
    ("stage", "moving"), [("training", {"volume", "fusion"}), ("finetuning", {"volume", "fusion"})]
)
def test_what_a_stage_holds_still(stage, moving):
    model = hybrid()
    model.set_stage(stage)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    target = torch.randint(0, 3, (1, 32, 32, 8))
    model.volume_loss(model(torch.randn(1, 1, 32, 32, 8)), target).backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = {k for k in changed if k.endswith("running_mean")}
    assert {k.split(".")[0] for k in statistics} == moving
    assert any(k.startswith("plane.") for k in changed) == (stage == "finetuning")
    assert any(k.startswith(("volume.blocks.", "volume.transitions.")) for k in statistics) == (stage == "training")
    assert {"volume.bsr1.norm.running_mean", "volume.bsr5.norm.running_mean", "fusion.norm.running_mean"} <= statistics
    assert model.fusion.drop_rate == (0.1 if stage == "training" else 0.3)
    with pytest.raises(OffprintError, match="stage of h-denseunet"):
        model.set_stage("joint")


def test_the_loss_divides_by_voxels_and_skips_the_ends():
    logits, target = torch.randn(1, 3, 4, 4, 6), torch.randint(0, 3, (1, 4, 4, 6))
    inner = F.cross_entropy(logits[..., 1:-1], target[..., 1:-1], torch.tensor(paper.CLASS_WEIGHTS), reduction="sum")
    assert torch.isclose(paper.weighted_cross_entropy(logits, target), inner / target[..., 1:-1].numel())
    hopeless = torch.tensor([100.0, 0.0, -100.0])[None, :, None, None]
    assert torch.isclose(
        paper.weighted_cross_entropy(hopeless, torch.full((1, 1, 1), 2)), torch.tensor(8.57 * 23.02585)
    )
    with pytest.raises(OffprintError, match="none is left"):
        paper.weighted_cross_entropy(logits[..., :2], target[..., :2])
    with pytest.raises(OffprintError, match="one weight per class"):
        paper.weighted_cross_entropy(logits, target, (1.0, 2.0))


def test_scans_of_any_size_with_and_without_a_prior():
    model, scan = hybrid().eval(), torch.randn(40, 52, 11)
    p = paper.predict_volume(model, scan)
    assert p.shape == (3, 40, 52, 11) and torch.allclose(p[..., 1:-1].sum(0), torch.ones(40, 52, 9), atol=1e-3)
    assert not p[..., 0].any() and not p[..., -1].any()
    assert paper.predict_volume(model, scan[..., :3]).shape == (3, 40, 52, 3)
    alone = plane().eval()
    q = paper.predict_volume(alone, scan)
    assert torch.allclose(q.sum(0), torch.ones(40, 52, 11), atol=1e-4)  # every slice, the first and the last too
    prior = torch.zeros(40, 52, 11)
    prior[10:20, 10:20, 4:6] = 1
    some = paper.predict_volume(alone, scan, prior)
    assert torch.equal(some[..., 4:6], q[..., 4:6]) and not some[..., :4].any()
    assert not paper.predict_volume(alone, scan, torch.zeros(40, 52, 11)).any()
    with pytest.raises(OffprintError, match="mask of its size"):
        paper.predict_volume(alone, scan, prior[..., :5])
    with pytest.raises(DataError, match="not finite"):
        paper.predict_volume(alone, scan * torch.nan)


def test_windows_never_leave_the_scan():
    for depth, low, high in ((8, 0, 7), (9, 0, 8), (40, 0, 39), (40, 38, 39), (12, 5, 5)):
        starts, counts = paper.z_windows(depth, low, high)
        assert min(starts) >= 0 and max(starts) + 8 <= depth and all(counts[max(1, low) : min(depth - 1, high + 1)])
    with pytest.raises(OffprintError, match="a window of 8 slices in a scan of 5"):
        paper.z_windows(5, 0, 4)


def test_crops_hold_liver_and_stay_inside():
    torch.manual_seed(0)
    labels = torch.zeros(40, 36, 10, dtype=torch.int64)
    labels[2:9, 20:30, 1:4] = 1
    labels[4, 25, 2] = 2
    for stretch in (0.8, 1.0, 1.2):
        for _ in range(20):
            place = paper.liver_crop(labels, 16, 8, stretch)
            cut = labels[place]
            assert cut.shape == (round(16 * stretch), round(16 * stretch), 8) and (cut > 0).any()
    assert labels[paper.liver_crop(labels, 64, 8)].shape == (40, 36, 8)  # larger than the scan
    with pytest.raises(DataError, match="no voxel"):
        paper.liver_crop(torch.zeros(8, 8, 8))


def test_thresholds_empty_results_and_empty_classes():
    liver, tumour = np.full((6, 6, 6), 0.6), np.zeros((6, 6, 6))
    tumour[2, 2, 2], tumour[3, 3, 3] = 0.85, 0.95
    found = paper.postprocess(liver, tumour)
    assert found[2, 2, 2] == 1 and found[3, 3, 3] == 2 and found.dtype == np.uint8
    assert not paper.postprocess(0 * liver, tumour * 0, liver > 0.5).any()
    empty, one = np.zeros((2, 2, 2)), np.ones((2, 2, 2))
    assert paper.lits_dice([empty, one], [empty, one])["dice_per_case"] == 1
    healthy = paper.lits_dice([one], [empty])
    assert (
        healthy["dice_per_case"] == 0
        and healthy["dice_global"] == 0
        and paper.lits_dice([empty], [empty])["dice_global"] == 1
    )
    with pytest.raises(OffprintError, match="case 0"):
        paper.lits_dice([empty], [np.ones((2, 2, 3))])


def test_refused_inputs_and_intensities():
    with pytest.raises(OffprintError, match=r"multiples of \(32, 32, 4\).*pad to \(64, 32, 8\)"):
        hybrid()(torch.zeros(1, 1, 40, 32, 6))
    with pytest.raises(OffprintError, match="the slices last"):
        hybrid()(torch.zeros(1, 2, 32, 32, 8))
    with pytest.raises(OffprintError, match=r"expected \(B, 3, H, W\)"):
        plane()(torch.zeros(1, 1, 32, 32))
    assert paper.normalize_hu(torch.tensor([-1000.0, 48.0, 900.0])).tolist() == [-248.0, 0.0, 202.0]


def test_it_is_merged_exported_and_copied():
    model = hybrid().eval()
    x = model.example_input()
    with torch.no_grad():
        expected = model(x)
        merged = offprint.deploy(model, x)
        assert torch.allclose(merged(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        assert merged.volume.blocks[0][0].bsr2 is None and model.volume.blocks[0][0].bsr2 is not None
        assert torch.equal(copy.deepcopy(model)(x), expected)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last_3d).to(torch.float64)
        assert last.plane.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(last(x.double()).float(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        exported = torch.export.export(model, (x,), strict=False).module()
        assert torch.allclose(exported(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    with pytest.raises(OffprintError, match="training mode"):
        hybrid().volume.blocks[0][0].merge()
