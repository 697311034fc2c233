"""What every registered model is held to, and what the registry and the checkpoint reader refuse."""

import copy
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import harness

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.registry import entry

# every paper's adapter says how its backbones are made small: one variant for each class of network
SMALL = {
    k: v
    for path in harness.HERE.glob("*/adapter.py")
    for k, v in getattr(harness.adapter(path.parent.name), "SMALL", {}).items()
}
BACKBONES = sorted(SMALL)


def small(name, **kwargs):
    torch.manual_seed(0)
    return offprint.create_model(name, **{**SMALL[name], **kwargs}).eval()


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


def test_every_backbone_family_is_held_to_these_properties():
    families = {offprint.api.entry(n).build for n in offprint.list_models(kind="backbone")}
    assert families == {offprint.api.entry(n).build for n in BACKBONES}


@pytest.mark.parametrize("size", [(64, 64), (200, 264)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_features(name, size, channels):
    model = small(name, features_only=True, in_chans=channels)
    maps = model(torch.randn(2, channels, *size))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    for m, stride in zip(maps, model.feature_info.reduction(), strict=True):
        assert m.shape[0] == 2 and all(abs(s - d / stride) < 1.01 for s, d in zip(m.shape[2:], size, strict=True))
    if len(maps) > 1:
        two = small(name, features_only=True, out_indices=(0, -1), in_chans=channels)
        assert two.feature_info.channels() == [maps[0].shape[1], maps[-1].shape[1]]
        assert len(two(torch.randn(1, channels, *size))) == 2


def test_head(name):
    model = small(name, num_classes=7)
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape[1 if features.ndim == 4 else -1] == model.num_features  # a map, or tokens
    assert torch.equal(model(x), model.forward_head(features))
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    assert small(name, num_classes=0)(x).shape == (2, model.head_hidden_size)


def test_copies_give_the_same(name):
    model, x = small(name, num_classes=5), torch.randn(2, 3, 64, 64)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    assert torch.allclose(model.to(memory_format=torch.channels_last)(x), expected, atol=1e-5)


def test_bf16_autocast(name):
    model, x = small(name, num_classes=5), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(x).float(), model(x.clone()).float(), atol=1e-6)
        got = model(x).float()
    assert (got - model(x)).abs().max() < 0.1 * model(x).abs().max() + 0.05


def test_export_and_compile(name):
    model, x = small(name, num_classes=5), torch.randn(2, 3, 64, 64)
    expected = model(x)
    program = torch.export.export(model, (x,), strict=False).module()
    assert torch.allclose(program(x), expected, atol=1e-5)
    torch._dynamo.reset()  # all backbones share the code of Backbone.forward, which is compiled anew for a few classes only
    assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", list({entry(n).module: n for n in reversed(BACKBONES)}.values()))
def test_onnx_round_trip(name, tmp_path):
    """For one network of each file: the others of it are made of the same operations."""
    from offprint.models.export import export_model

    file = tmp_path / "m.onnx"
    assert export_model(small(name, num_classes=5), file, sample=torch.randn(1, 3, 64, 64)) < 1e-4
    assert file.stat().st_size > 0


def test_grad_checkpointing_changes_nothing(name):
    model, x = small(name, num_classes=5).train(), torch.randn(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_hub_round_trip(name, tmp_path):
    from offprint.models.sharing import from_pretrained, save_pretrained

    model, x = small(name, num_classes=5), torch.randn(1, 3, 64, 64)
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m")).eval()
    assert torch.equal(again(x), model(x))


def test_refused_inputs(name):
    model = small(name)
    with pytest.raises(OffprintError, match="in_chans=5"):
        model(torch.randn(1, 5, 64, 64))
    with pytest.raises(OffprintError, match=f"at least {model.minimum}"):
        model(torch.randn(1, 3, 8, 64))
    with pytest.raises(OffprintError, match="batch axis"):
        model(torch.randn(3, 64, 64))


def test_registry_refusals():
    with pytest.raises(OffprintError, match="convnext_tiny"):
        offprint.create_model("convnext_tin")
    with pytest.raises(OffprintError, match="depths"):
        offprint.create_model("convnext_tiny", dephts=(1, 1, 1, 1))
    with pytest.raises(OffprintError, match="features_only=True"):
        offprint.create_model("convnext_tiny", out_indices=(0,))
    with pytest.raises(OffprintError, match="0 to 3"):
        offprint.create_model("convnext_tiny", features_only=True, out_indices=(4,))
    with pytest.raises(OffprintError, match="leave num_classes out"):
        offprint.create_model("convnext_tiny", features_only=True, num_classes=3)
    with pytest.raises(OffprintError, match="choose one source"):
        offprint.create_model("convnext_tiny", pretrained=True, checkpoint_path="x.pth")
    assert offprint.list_models("convnext_*", paper="convnext", pretrained=True)


# -- the checkpoint reader -------------------------------------------------------------------------------------------
def test_reader_refuses_what_would_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(CheckpointError):
        offprint.load_weights(small("convnext_tiny"), file)
    torch.save({"model": Bomb()}, file)
    with pytest.raises(CheckpointError, match="would run code"):
        offprint.load_weights(small("convnext_tiny"), file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_reader_refuses_a_truncated_file(tmp_path, suffix):
    model = small("convnext_tiny")
    whole = tmp_path / f"whole{suffix}"
    offprint.save_weights(model, whole) if suffix == ".safetensors" else torch.save(model.state_dict(), whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="fetch it again"):
        offprint.load_weights(model, cut)
    with pytest.raises(CheckpointError, match="no weight file"):
        offprint.load_weights(model, tmp_path / "none.pth")


def test_reader_refuses_another_model(tmp_path):
    with pytest.raises(CheckpointError, match="fits no dialect"):
        offprint.load_weights(small("convnext_tiny"), nn.Linear(3, 3).state_dict())
    wider = small("convnext_tiny", dims=(16, 32, 48, 64))
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(small("convnext_tiny"), wider.state_dict())
    deeper = small("convnext_tiny", depths=(2, 1, 1, 1))
    with pytest.raises(CheckpointError, match="without a place"):
        offprint.load_weights(small("convnext_tiny"), deeper.state_dict())
    with pytest.raises(CheckpointError, match="missing"):
        offprint.load_weights(deeper, small("convnext_tiny").state_dict())


def test_reader_drops_a_head_only_when_asked():
    source = small("convnext_tiny", num_classes=9)
    target = small("convnext_tiny", num_classes=4)
    with pytest.raises(CheckpointError, match="drop_head=True"):
        offprint.load_weights(target, source.state_dict())
    report = offprint.load_weights(target, source.state_dict(), drop_head=True)
    assert sorted(report.dropped) == ["head.bias", "head.weight"] and "head" in str(report)
    assert torch.equal(target.norm.weight, source.norm.weight)
    assert offprint.load_weights(small("convnext_tiny", num_classes=0), source.state_dict()).dropped


def test_reader_adapts_input_channels():
    source = small("convnext_tiny", num_classes=4)
    x = torch.randn(1, 1, 64, 64)
    grey = small("convnext_tiny", num_classes=4, in_chans=1)
    assert offprint.load_weights(grey, source.state_dict()).adapted == ["downsample_layers.0.0.weight"]
    assert torch.allclose(grey(x), source(x.expand(-1, 3, -1, -1)), atol=1e-5)
    six = small("convnext_tiny", num_classes=4, in_chans=6)
    offprint.load_weights(six, source.state_dict())
    y = torch.randn(1, 3, 64, 64)
    assert torch.allclose(six(torch.cat([y, y], 1)), source(y), atol=1e-5)


def test_reader_opens_containers_and_prefixes():
    source = small("convnext_tiny", num_classes=4)
    wrapped = {"epoch": 3, "model": {f"module.{k}": v for k, v in source.state_dict().items()}}
    target = small("convnext_tiny", num_classes=4)
    assert offprint.load_weights(target, wrapped).loaded == len(source.state_dict())
    lightning = {"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}
    offprint.load_weights(target, lightning)
    with pytest.raises(CheckpointError, match="no tensors"):
        offprint.load_weights(target, {"a": 1})
    bad = {k: torch.full_like(v, float("nan")) for k, v in source.state_dict().items()}
    with pytest.raises(CheckpointError, match="not finite"):
        offprint.load_weights(target, bad)


def test_reader_equals_peers():
    """One network, three libraries' files, one output."""
    import timm
    import torchvision

    x = torch.randn(2, 3, 64, 64)
    theirs = timm.create_model("convnext_tiny", num_classes=11).eval()
    ours = offprint.create_model("convnext_tiny", num_classes=11).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "timm"
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    other = torchvision.models.convnext_tiny(num_classes=11).eval()
    assert offprint.load_weights(ours, other.state_dict()).dialect == "torchvision"
    assert torch.allclose(ours(x), other(x), atol=1e-5)


def test_isotropic_recognises_a_layer_scale():
    source = small("convnext_isotropic_small", layer_scale_init_value=0.5)
    target = small("convnext_isotropic_small")
    offprint.load_weights(target, source.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(target(x), source(x))


def test_drop_path_and_gamma():
    torch.manual_seed(0)
    model = offprint.create_model(
        "convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), drop_path_rate=0.9
    ).train()
    assert model.stages[0][0].drop_path.p == 0 and model.stages[3][0].drop_path.p == pytest.approx(0.9)
    kept = offprint.nn.DropPath(0.25).train()(torch.ones(4000, 1))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75]) and kept.mean() == pytest.approx(1, abs=0.05)
    assert (
        offprint.create_model("convnext_tiny", **SMALL["convnext_tiny"], layer_scale_init_value=0).stages[0][0].gamma
        is None
    )


# -- deploy ----------------------------------------------------------------------------------------------------------
def test_deploy_folds_checks_and_is_idempotent():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2)
    )
    net(torch.randn(4, 3, 8, 8))
    with pytest.raises(OffprintError, match="training mode"):
        offprint.deploy(net, torch.randn(1, 3, 8, 8))
    net.eval()
    x = torch.randn(2, 3, 8, 8)
    out = offprint.deploy(net, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in out.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert torch.allclose(out(x), net(x), atol=1e-5)
    assert offprint.deploy(out, x) is out
    with pytest.raises(OffprintError, match="pass sample="):
        offprint.deploy(net)


def test_deploy_refuses_a_merge_that_moves_the_output():
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.scale

        def merge(self):
            self.scale.data.mul_(1.01)

    model = Wrong().eval()
    with pytest.raises(OffprintError, match="unchanged"):
        offprint.deploy(model, torch.randn(3))
    assert float(model.scale) == 1


def test_info_counts():
    info = offprint.model_info("convnext_tiny")
    assert (info["parameters"], info["macs"], info["outputs"]) == (28_589_128, 4_455_531_264, [1, 1000])
    assert offprint.model_info("convnext_tiny", (3, 64, 64))["macs"] < info["macs"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    import os

    file = tmp_path / "m.safetensors"
    offprint.save_weights(small("convnext_tiny"), file)
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        offprint.save_weights(small("convnext_tiny", num_classes=3), file)
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert io.BytesIO(before).read(8)
