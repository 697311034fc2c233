"""SwinV2 and SimMIM: other libraries at any size, a bias that is never stale, windows that change, pre-training end to end."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.data.pictures import open_pictures
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.models.backbones.swin_v2 import (
    SimMIM,
    WindowAttention,
    log_coordinates,
    normalize_targets,
    simmim_mask,
)
from offprint.tasks.classification import train_classifier, trained_model
from offprint.tasks.pretraining import pretrain, pretraining_recipe
from offprint.tasks.recipe import Recipe, build_optimizer
from offprint.tasks.running import NonFiniteLoss

SMALL = {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4)}


def small(seed=0, **kwargs):
    """A small SwinV2 whose blocks do something: their norms start at zero otherwise."""
    torch.manual_seed(seed)
    model = offprint.create_model("swinv2_tiny", **{**SMALL, "num_classes": 5, "window_size": 4, **kwargs}).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight, 1, 0.1)
    return model


# -- the model -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (90, 131)])
def test_equals_torchvision_at_any_size(size):
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
    from torchvision.models.swin_transformer import SwinTransformer as Theirs

    torch.manual_seed(0)
    theirs = Theirs([4, 4], 8, [2, 2, 1, 1], [1, 2, 2, 4], [4, 4], stochastic_depth_prob=0, num_classes=5,
                    block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2).eval()  # fmt: skip
    for name, value in theirs.named_parameters():
        nn.init.normal_(value, 1 if ".norm" in name and name.endswith("weight") else 0, 0.3)  # the keys' bias, too
    ours = small()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "torchvision"
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(x)
        assert (ours(x) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_equals_timm():
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(
        "swinv2_tiny_window8_256", img_size=96, window_size=6, num_classes=5, embed_dim=24
    ).eval()
    for name, value in theirs.named_parameters():
        if ".norm" in name and name.endswith("weight"):
            nn.init.normal_(value, 1, 0.1)
    ours = offprint.create_model("swinv2_tiny", img_size=96, window_size=6, num_classes=5, embed_dim=24).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "timm"
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_a_fresh_block_is_the_identity():
    torch.manual_seed(0)
    model = offprint.create_model("swinv2_tiny", **SMALL, window_size=4)
    x = torch.randn(1, 8, 8, 8)
    stage = model.layers[0]
    for block, cut in zip(stage.blocks, stage.cuts(x, False), strict=True):
        assert torch.equal(block(x, cut), x)


def test_logits_are_bounded():
    """|cos| / tau stays below 100 whatever is fed in, and the bias within 0 and 16."""
    layer = WindowAttention(16, 4, 2)
    nn.init.constant_(layer.logit_scale, 50.0)
    x = 1e4 * torch.randn(1, 16, 16)
    with torch.no_grad():
        assert torch.isfinite(layer(x)).all() and torch.isfinite(layer(torch.zeros(1, 16, 16))).all()
        assert 0 < layer.table().min() and layer.table().max() < 16


# -- the bias --------------------------------------------------------------------------------------------------------
def test_the_kept_bias_is_never_stale():
    model = small()
    x = torch.randn(1, 3, 64, 64)
    attn = model.layers[0].blocks[0].attn
    with torch.no_grad():
        before = model(x)
        assert attn.bias() is attn.bias()
        twin = copy.deepcopy(model)
        assert twin.layers[0].blocks[0].attn._bias is None and torch.equal(twin(x), before)
        assert pickle.loads(pickle.dumps(model)).layers[0].blocks[0].attn._bias is None
        attn.cpb_mlp[2].weight.mul_(5)  # as an optimizer does
        changed = model(x)
        assert not torch.allclose(changed, before, atol=1e-5) and torch.equal(copy.deepcopy(model)(x), changed)
        model.load_state_dict(twin.state_dict())
        assert torch.equal(model(x), before)
        attn.cpb_mlp[2].weight = nn.Parameter(5 * attn.cpb_mlp[2].weight)
        assert torch.equal(model(x), changed)
        assert torch.allclose(model.double()(x.double()).float(), changed, atol=1e-4)
        lent = {"cpb_mlp.2.weight": torch.zeros(1, 512)}
        layer = WindowAttention(8, 4, 1).eval()
        y = torch.randn(1, 16, 8)
        assert not torch.equal(layer(y), torch.func.functional_call(layer, lent, y)) and torch.equal(layer(y), layer(y))
    model.train()
    assert attn._bias is None


def test_gradients_reach_the_bias_network_in_evaluation_too():
    model = small()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert model.layers[0].blocks[0].attn.cpb_mlp[0].weight.grad.abs().sum() > 0


def test_a_larger_window_reads_the_same_bias_at_the_same_offsets():
    """Window 4 grown to 8 with its pre-training window: both tables agree where both have an offset (Eq. 4)."""
    four, eight = WindowAttention(8, 4, 2), WindowAttention(8, 8, 2, pretrained_window=4)
    eight.load_state_dict(four.state_dict())
    a, b = four.table().view(7, 7, 2), eight.table().view(15, 15, 2)
    assert torch.allclose(a, b[4:11, 4:11], atol=1e-6)
    assert log_coordinates(4).abs().max() == pytest.approx(torch.tensor(9.0).log2().item() / 3)
    assert log_coordinates(8, 4).abs().max() > log_coordinates(8).abs().max()
    assert torch.isfinite(log_coordinates(1)).all()


def test_weights_move_to_larger_windows_without_resampling():
    source = small(img_size=64)
    target = small(img_size=128, window_size=8, pretrained_window_sizes=(4, 4, 4, 2), seed=1)
    buffers = {"layers.0.blocks.0.attn.relative_coords_table": torch.zeros(1, 7, 7, 2)}
    report = offprint.load_weights(target, {"model": {**source.state_dict(), **buffers}})
    assert not report.adapted and not report.fresh
    assert target(torch.randn(1, 3, 128, 128)).shape == (1, 5)
    old = {k.replace("cpb_mlp", "rpe_mlp"): v for k, v in source.state_dict().items()}
    assert offprint.load_weights(target, old).dialect == "simmim"


def test_what_is_refused():
    with pytest.raises(OffprintError, match="one window for each of the 4 stages"):
        small(pretrained_window_sizes=(4, 4))
    with pytest.raises(OffprintError, match="has no offsets"):
        small(pretrained_window_sizes=(4, 4, 4, 1), img_size=256)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(small(embed_dim=16), small().state_dict())
    with pytest.raises(CheckpointError, match="SwinTransformerV2"):  # a file of the first Swin
        offprint.load_weights(small(), offprint.create_model("swin_tiny", **SMALL, num_classes=5).state_dict())


def test_temperatures_and_the_bias_network_are_not_decayed():
    model = SimMIM(small(num_classes=0))
    groups = build_optimizer(model, Recipe.of("swinv2_tiny"), 64).param_groups
    decayed = {id(p) for p in groups[0]["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decayed}
    assert not [n for n in names if "cpb_mlp" in n or "logit_scale" in n or "mask_token" in n]
    assert "encoder.layers.0.blocks.0.attn.qkv.weight" in names and "decoder.0.weight" in names


# -- SimMIM ----------------------------------------------------------------------------------------------------------
def test_masks_hide_whole_squares():
    mask = simmim_mask(64, (192, 96), generator=torch.Generator().manual_seed(0))
    assert mask.shape == (64, 48, 24)
    units = F.avg_pool2d(mask[:, None], 8)[:, 0]
    assert set(units.unique().tolist()) == {0.0, 1.0} and (units.sum((1, 2)) == 11).all()  # ceil(0.6 * 18)
    assert units.mean(0).std() < 0.12 and len({tuple(u.flatten().tolist()) for u in units}) > 60
    with pytest.raises(OffprintError, match="must divide the image"):
        simmim_mask(1, (200, 192))
    with pytest.raises(OffprintError, match="between 0 and 1"):
        simmim_mask(1, (64, 64), ratio=1.0)


def test_targets_are_normalised_over_real_pixels():
    x = torch.randn(1, 2, 7, 9, dtype=torch.float64)
    got = normalize_targets(x, 5)
    for r, c in ((0, 0), (3, 4), (6, 1)):
        near = x[0, :, max(0, r - 2) : r + 3, max(0, c - 2) : c + 3].flatten(1)
        want = (x[0, :, r, c] - near.mean(1)) / (near.var(1) + 1e-6).sqrt()
        assert torch.allclose(got[0, :, r, c], want)


@pytest.mark.parametrize(
    "name", ["swin_tiny", "swinv2_tiny", "swin_mlp_tiny_c24", "convnext_tiny", "convnext_isotropic_small"]
)
def test_any_backbone_that_hides_tokens(name):
    torch.manual_seed(0)
    kwargs = (
        {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "layer_scale_init_value": 1.0}
        if name == "convnext_tiny"
        else SMALL
    )
    kwargs = {"dim": 16, "depth": 2} if "isotropic" in name else kwargs
    encoder = offprint.create_model(name, num_classes=0, **kwargs)
    plain = encoder.forward_features(torch.zeros(1, 3, 64, 64))
    assert "mask_token" not in encoder.state_dict()
    p = encoder.patch_size
    with pytest.raises(OffprintError, match="add_mask_token"):
        encoder.forward_features(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64 // p, 64 // p))
    model = SimMIM(encoder).train()
    image, mask = torch.randn(2, 3, 64, 64), simmim_mask(2, (64, 64), patch=p)
    out = model(image, mask)
    assert out.reconstruction.shape == image.shape and out.encoded.shape[1] == encoder.num_features
    out.loss.backward()
    assert encoder.mask_token.grad.abs().sum() > 0
    model.eval()
    hidden = mask.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
    with torch.no_grad():  # what is hidden is not seen
        other = model(torch.where(hidden > 0, torch.randn_like(image), image), mask)
        assert torch.allclose(other.encoded, model(image, mask).encoded, atol=1e-5)
        nothing = encoder.forward_features(torch.zeros(1, 3, 64, 64), torch.zeros(1, 64 // p, 64 // p))
    assert torch.allclose(nothing, plain, atol=1e-5)
    with pytest.raises(OffprintError, match="expected a mask of shape"):
        model(image, mask[:, 1:])
    file = encoder.state_dict()
    report = offprint.load_weights(offprint.create_model(name, num_classes=3, **kwargs), file, drop_head=True)
    assert all(n.startswith("head.") for n in report.fresh)


def test_simmim_refusals():
    with pytest.raises(OffprintError, match="cannot hide tokens"):
        SimMIM(nn.Conv2d(3, 3, 1))
    with pytest.raises(OffprintError, match="odd number"):
        SimMIM(small(num_classes=0), norm_target=4)
    model = SimMIM(small(num_classes=0))
    with pytest.raises(OffprintError, match="multiples of 32"):
        model(torch.randn(1, 3, 80, 64), torch.zeros(1, 20, 16))


# -- the run ---------------------------------------------------------------------------------------------------------
OPTIONS = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "img_size": 32, "window_size": 4}
FAST = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "reference_batch": 0, "input_size": 32, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 pictures of one colour each without classes, half of them in a folder below."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "below").mkdir()
    draw = np.random.default_rng(0)
    for i in range(40):
        pixels = draw.integers(0, 230, (1, 1, 3)) + draw.integers(0, 25, (32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / ("below" if i % 2 else ".") / f"{i:02d}.png")
    return root


def run(folder, out, **kwargs):
    overrides = {**FAST, **kwargs.pop("overrides", {})}
    model = kwargs.pop("model", "swinv2_tiny")
    return pretrain(model, folder, out, overrides=overrides, model_options=kwargs.pop("options", OPTIONS), mask_unit=8,
                    progress=False, accelerator="cpu", logger="none", val_fraction=0.2, **kwargs)  # fmt: skip


def weights(out):
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


class Die(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            os._exit(9)


def test_pretraining_resumes_after_a_kill_and_starts_a_classifier(folder, tmp_path):
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_swin_v2_ import run, Die
run(Path({str(folder)!r}), Path({str(tmp_path / "cut")!r}), callbacks=(Die(2),))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    assert not (tmp_path / "cut" / "model.safetensors").exists() and (tmp_path / "cut" / "last.ckpt").exists()
    again, whole = run(folder, tmp_path / "cut"), run(folder, tmp_path / "whole")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a) and whole["loss"] == again["loss"]
    assert run(folder, tmp_path / "whole") == whole  # a run that has ended is not run again
    with pytest.raises(OffprintError, match="another seed"):
        run(folder, tmp_path / "whole", seed=1)
    with pytest.raises(OffprintError, match="pre-trains on pictures.*this verb is for classifiers"):
        trained_model(tmp_path / "whole")
    for i, file in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / "classes" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "classes" / str(i % 2))
    start = _Start()
    train_classifier("swinv2_tiny", tmp_path / "classes", tmp_path / "run", checkpoint=whole["weights"], model_options=OPTIONS,
                     overrides={**FAST, "epochs": 1}, progress=False, accelerator="cpu", logger="none", callbacks=(start,))  # fmt: skip
    assert all(torch.equal(start.weights[k], v) for k, v in a.items() if k != "mask_token")


class _Start(Callback):
    """Notes the weights a classifier starts with."""

    def on_train_start(self, trainer, module):
        self.weights = {k: v.clone() for k, v in module.model.state_dict().items()}


def test_pretraining_learns(folder, tmp_path):
    options = {"depths": (1, 1, 1, 1), "dims": (16, 16, 16, 16), "layer_scale_init_value": 1.0}
    short = run(folder, tmp_path / "a", model="convnext_tiny", options=options, overrides={"epochs": 1, "lr": 1e-5})
    longer = run(folder, tmp_path / "b", model="convnext_tiny", options=options, overrides={"epochs": 25, "lr": 5e-3})
    assert longer["loss"] < 0.95 * short["loss"]
    assert json.loads((tmp_path / "b" / "settings.json").read_text())["norm_target"] == 0


def test_a_lost_loss_stops_the_run(folder, tmp_path):
    with pytest.raises(NonFiniteLoss, match="Lower lr"):
        run(folder, tmp_path, overrides={"lr": 1e30, "clip_grad": 0.0, "epochs": 6})


def test_runs_that_cannot_start(folder, tmp_path):
    with pytest.raises(OffprintError, match="nearest: simmim"):
        run(folder, tmp_path, method="simmin")
    with pytest.raises(OffprintError, match="must divide the image"):
        run(folder, tmp_path, overrides={"input_size": 36})
    with pytest.raises(OffprintError, match="cells of 32"):
        run(folder, tmp_path, overrides={"input_size": 40})
    with pytest.raises(DataError, match="no folder"):
        open_pictures(tmp_path / "none" / "x")
    with pytest.raises(DataError, match="holds no pictures"):
        (tmp_path / "empty").mkdir()
        open_pictures(tmp_path / "empty")
    with pytest.raises(DataError, match="share held out"):
        open_pictures(folder, val_fraction=0)


def test_pictures_of_a_folder(folder):
    splits = open_pictures(folder, val_fraction=0.25)
    assert (len(splits.train), len(splits.val)) == (30, 10) and splits.train[0][0].size == (32, 32)
    assert open_pictures("sample:cifar10").name == "sample:cifar10"


def test_the_recipe_and_the_verb(folder, tmp_path):
    from offprint.cli.main import app

    recipe = pretraining_recipe("swinv2_base", {"epochs": 80, "batch_size": 2048})
    rates = recipe.learning_rates(10, 2048)
    assert max(rates) == pytest.approx(4e-4) and rates[699] == pytest.approx(4e-4) and rates[-1] == pytest.approx(4e-5)
    assert recipe.drop_path_rate == 0.1 and pretraining_recipe("swin_base").drop_path_rate is None
    words = ["pretrain", "-m", "swin_tiny", "-d", str(folder), "--out", str(tmp_path), "--size", "32", "--mask-unit", "8",
             "--epochs", "1", "--batch-size", "16", "-o", "embed_dim=8", "-o", "depths=(1,1,1,1)", "-o", "num_heads=(1,1,2,2)"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert (
        result.exit_code == 0 and "next: offprint train" in result.output and (tmp_path / "model.safetensors").is_file()
    )
    shown = CliRunner().invoke(app, [*words, "--show-recipe"])
    assert shown.exit_code == 0 and "'schedule': 'step'" in shown.output
