"""Stitched transformers: ways, costs, low-rank layers, what cannot be stitched; DeiT-3; LAMB."""

import copy
import json
import math

import pytest
import torch
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.errors import OffprintError
from offprint.models.backbones.deit3 import DeiT3
from offprint.models.backbones.sn_net_v2 import (
    SNNet,
    SNNetV2,
    StitchLinear,
    group_by_flops,
    least_squares_stitch,
    stitch_configs,
)

A = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 4, "num_heads": 2}
B = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 8, "num_heads": 2}


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = SNNetV2([A, B], num_classes=5, lora_r=4).double()
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


X = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# -- ways and costs


def test_the_costs_are_those_a_counter_sees(net):
    from torch.utils.flop_counter import FlopCounterMode

    net = offprint.deploy(net, X)
    for stitch in (0, 1, *(ids[0] for ids in net.stitches.kinds.values())):
        net.set_stitch(stitch)
        with FlopCounterMode(display=False) as seen, torch.no_grad():
            net(X[:1])
        assert seen.get_total_flops() / 2 == net.macs(stitch)


def test_costs_of_the_paper():
    with torch.device("meta"):
        model = offprint.create_model("snnetv2_deit3_s_b")
    assert [round(model.macs(i) / 1e9, 3) for i in (0, 7, 19, 1)] == [4.599, 11.111, 11.168, 17.564]
    count = {n: sum(p.numel() for p in model.parameters() if p.requires_grad or n == "all") for n in ("all", "trained")}
    assert count == {"all": 117_136_976, "trained": 110_354_000}
    assert len(model.groups()) == 13 and len(model.stitches.used) == 134


def test_every_stitch_gives_logits_and_maps_of_one_width(net):
    maps = SNNetV2([A, B], lora_r=4).double().as_features()
    assert maps.feature_info.channels() == [16] * 4 and maps.feature_info.reduction() == [8] * 4
    for stitch in net.stitches.used:
        net.set_stitch(stitch)
        maps.set_stitch(stitch)
        with torch.no_grad():
            assert net(X).shape == (3, 5)
            assert [tuple(m.shape) for m in maps(X)] == [(3, 16, 4, 4)] * 4
    with pytest.raises(OffprintError, match="none of the"):
        net.set_stitch(len(net.stitches.paths))


def test_a_stitch_is_its_anchors_run_by_hand(net):
    i, enter = 1, 4  # small 0 to 1, then large from 4
    stitch = next(k for k in net.stitches.kinds["sl"] if net.stitches.paths[k][0].last == i)
    net.set_stitch(stitch)
    with torch.no_grad():
        x = net.small.embed(X).x
        for block in net.small.blocks[: i + 1]:
            x = block(x)
        x = net.stitch_layers[0][i](x)
        assert x.shape[1] == 1 + 16  # the class token goes through, too
        for block in net.large.blocks[enter:]:
            x = block(x)
        expected = net.large.head(net.large.norm(x)[:, 0])
        assert torch.equal(net(X), expected)


def test_the_gap_between_groups():
    costs = {i: 1e9 * c for i, c in enumerate((1.0, 1.9, 2.1, 2.9, 5.0))}
    assert group_by_flops(costs, 1.0) == [[0, 1], [2, 3], [4]]
    assert group_by_flops(costs, 0.5) == [[0], [1, 2], [3], [4]]
    assert group_by_flops(costs, 10) == [[0, 1, 2, 3, 4]]
    with pytest.raises(OffprintError, match="gap=-1"):
        group_by_flops(costs, -1)


def test_steps_draw_groups_alike(net):
    torch.manual_seed(0)
    groups, seen = net.groups(), dict.fromkeys(range(len(net.groups())), 0)
    where = {i: g for g, members in enumerate(groups) for i in members}
    drawn = [net.draw() for _ in range(4000)]
    for stitch in drawn:
        seen[where[stitch]] += 1
    expected = 4000 / len(groups)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in seen.values())
    whole_small = next(i for i in range(len(net.stitches.paths)) if i not in net.stitches.used)
    assert whole_small not in drawn


def test_training_draws_and_evaluation_does_not(net):
    net.set_stitch(1)
    net.train()
    torch.manual_seed(0)
    used = set()
    for _ in range(30):
        net.zero_grad()
        net(X).sum().backward()
        used.add(any(p.grad is not None for p in net.anchors[0].parameters()))
    assert used == {True, False} and net.stitch == 1
    net.sampling = False
    net.zero_grad()
    net(X).sum().backward()
    assert all(p.grad is None for p in net.anchors[0].parameters())


# -- low-rank layers: no merged state behind one's back


@pytest.mark.parametrize("rank", [0, 3])
def test_merging_keeps_the_outputs(rank):
    torch.manual_seed(0)
    layer, x = StitchLinear(6, 9, rank).double(), torch.randn(5, 7, 6, dtype=torch.float64)
    if rank:
        torch.nn.init.normal_(layer.lora_B)
    before = layer(x)
    merged = copy.deepcopy(layer)
    merged.merge()
    merged.merge()
    assert merged.rank == 0 and set(merged.state_dict()) == {"weight", "bias"}
    torch.testing.assert_close(merged(x), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x), before)


def test_modes_and_files_change_nothing(net, tmp_path):
    net.set_stitch(net.stitches.kinds["lsl"][0])
    expected = net(X)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for mode in (True, False):
        net.train(mode)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        offprint.save_weights(net, tmp_path / f"{mode}.safetensors")
        other = SNNetV2([A, B], num_classes=5, lora_r=4).double()
        offprint.load_weights(other, tmp_path / f"{mode}.safetensors")
        other.set_stitch(net.stitch)
        torch.testing.assert_close(other.eval()(X), expected, rtol=1e-9, atol=1e-9)
    deployed = offprint.deploy(net.eval(), X)
    torch.testing.assert_close(deployed(X), expected, rtol=1e-9, atol=1e-9)
    assert not any("lora" in k for k in deployed.state_dict()) and any("lora" in k for k in net.state_dict())


def test_one_way_alone(net):
    for stitch in (0, 1, net.stitches.kinds["sl"][1], net.stitches.kinds["sls"][0]):
        net.set_stitch(stitch)
        alone = net.extract(stitch)
        assert torch.equal(alone(X), net(X))
        assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in net.parameters())


# -- joining


def test_least_squares():
    torch.manual_seed(0)
    front, weight, bias = torch.randn(4, 17, 6).double(), torch.randn(9, 6).double(), torch.randn(9).double()
    found = least_squares_stitch(front, front @ weight.T + bias)
    torch.testing.assert_close(found, (weight, bias))
    with pytest.raises(OffprintError, match="give more pictures"):
        least_squares_stitch(front[:1, :6], front[:1, :6])
    with pytest.raises(OffprintError, match="same patches"):
        least_squares_stitch(front, front[:, 1:])
    front[0, 0, 0] = math.nan
    with pytest.raises(OffprintError, match="not finite"):
        least_squares_stitch(front, front)


def test_stitches_that_start_by_least_squares_are_near_the_anchor():
    """Anchors that are the same network: every stitch is the identity, and every way its own anchor."""
    torch.manual_seed(0)
    small = DeiT3(num_classes=5, **A).double()
    twin = copy.deepcopy(small)
    net = SNNetV2([small, twin], num_classes=5, lora_r=0).double().eval()
    torch.nn.init.normal_(net.small.cls_token)
    twin.cls_token.data.copy_(small.cls_token.data)
    assert net.fit_stitches(torch.randn(20, 3, 32, 32, dtype=torch.float64)) == 4 + 3
    expected = small.eval()(X)
    for stitch in net.stitches.used:
        net.set_stitch(stitch)
        torch.testing.assert_close(net(X), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("anchors", "says"),
    [
        ([A], "two anchors"),
        ([B, A], "smaller one first"),
        ([A, {**B, "patch_size": 16}], "patches of 8 and 16"),
        ([A, {**B, "img_size": 64}], r"grids of \(4, 4\) and \(8, 8\)"),
        ([A, {**B, "depth": 6}], "4, 8, 12"),
        (["resnet50", B], "plain transformer"),
        ([torch.nn.Linear(2, 2), B], "Linear is no plain transformer"),
        ([{**A, "num_heads": 5}, B], "5 heads"),
    ],
)
def test_what_does_not_fit_is_told(anchors, says):
    with pytest.raises(OffprintError, match=says):
        SNNetV2(anchors)


def test_a_rank_larger_than_a_layer():
    with pytest.raises(OffprintError, match="0 .* to 12"):
        SNNetV2([A, B], lora_r=13)


def test_depths():
    assert stitch_configs((12, 12)).layers == (12, 11)
    one = SNNet([A, B], num_classes=3)
    assert one.stitches.kinds == {"anchors": (0,), "sl": (1, 2, 3, 4)} and one.stitch == 0
    one.set_stitch(4)  # all of the small anchor, and of the large one norm and head
    assert one.eval()(X.float()).shape == (3, 3)


def test_a_budget(net):
    table = net.table()
    assert [r["gmacs"] for r in table] == sorted(r["gmacs"] for r in table)
    middle = table[len(table) // 2]["gmacs"]
    chosen = net.choose(middle)
    assert net.stitch == chosen and net.macs(chosen) / 1e9 <= middle
    cheap = table[1]["stitch"]
    assert net.choose(middle, {cheap: 99.0}) == cheap
    with pytest.raises(OffprintError, match="the cheapest"):
        net.choose(0)


# -- sizes, files


def test_other_sizes_of_images_and_classes(tmp_path):
    net = SNNetV2([A, B], num_classes=5, lora_r=4)
    offprint.save_weights(net, tmp_path / "w.safetensors")
    large = offprint.create_model(
        "snnetv2", anchors=[{**A, "img_size": 64}, {**B, "img_size": 64}], lora_r=4, num_classes=5,
        checkpoint_path=str(tmp_path / "w.safetensors"),
    ).eval()  # fmt: skip
    assert {"anchors.0.pos_embed", "anchors.1.pos_embed"} <= set(large.load_report.adapted)
    assert large(torch.randn(1, 3, 64, 96)).shape == (1, 5)
    with pytest.raises(OffprintError, match="drop_head"):
        offprint.load_weights(SNNetV2([A, B], num_classes=7, lora_r=4), tmp_path / "w.safetensors")
    other = SNNetV2([A, B], num_classes=7, lora_r=4)
    report = offprint.load_weights(other, tmp_path / "w.safetensors", drop_head=True)
    assert {n.rsplit(".", 1)[0] for n in report.fresh} == {"anchors.0.head", "anchors.1.head"}
    net.set_input_size(64)
    again = offprint.create_model("snnetv2", anchors=net.spec_of_anchors(), lora_r=4, num_classes=5)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    net.reset_classifier(9)
    assert net(torch.randn(1, 3, 64, 64)).shape == (1, 9)


def test_timm_reads_the_same_anchor():
    import timm

    theirs = timm.create_model(
        "deit3_small_patch16_224", embed_dim=48, depth=2, num_heads=2, img_size=64, num_classes=6
    ).eval()
    ours = DeiT3(num_classes=6, img_size=64, embed_dim=48, depth=2, num_heads=2).eval()
    offprint.load_weights(ours, theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.forward_features(x), theirs.forward_features(x), rtol=1e-4, atol=1e-5)


def test_lamb_takes_timms_steps():
    from timm.optim import Lamb as Theirs

    from offprint.tasks.lamb import Lamb

    torch.manual_seed(0)
    a = torch.nn.Linear(5, 7).double()
    b = copy.deepcopy(a)

    def groups(m):
        return [{"params": [m.weight], "weight_decay": 0.02}, {"params": [m.bias], "weight_decay": 0.0}]

    ours, theirs = Lamb(groups(a), lr=1e-2, eps=1e-6), Theirs(groups(b), lr=1e-2, eps=1e-6)
    for _ in range(20):
        x = 4 * torch.randn(9, 5).double()
        for model, optimizer in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-9, atol=1e-9)


# -- the verb


def _pictures(root):
    """Two classes of 32-pixel squares, forty of each."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 120)):
        (root / name).mkdir(parents=True)
        for i in range(40):
            Image.fromarray(rng.integers(low, low + 120, (32, 32, 3), np.uint8)).save(root / name / f"{i}.png")
    return str(root)


def test_the_verb(tmp_path):
    run, data = CliRunner(), _pictures(tmp_path / "pictures")
    size = ["--size", "32", "--epochs", "1", "--lr", "1e-3", "--batch-size", "16"]
    for name, row in (("a", A), ("b", {**B, "depth": 4})):
        words = [w for k, v in row.items() for w in ("-o", f"{k}={v}")]
        done = run.invoke(
            app,
            [
                "train",
                "--model",
                "deit3_small_patch16_224",
                "--data",
                data,
                "--out",
                str(tmp_path / name),
                *size,
                *words,
            ],
        )
        assert done.exit_code == 0, done.output
    words = ["stitch", str(tmp_path / "a"), str(tmp_path / "b"), "--data", data, "--out", str(tmp_path / "s"), "--rank", "4",
             "--evaluate", "front", "--budget", "1", *size[2:]]  # fmt: skip
    done = run.invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "s" / "stitches.json").read_text())
    assert len(told["stitches"]) > 2 and all(0 <= r["top1"] <= 100 for r in told["stitches"])
    assert (tmp_path / "s" / "stitches.png").stat().st_size > 5000
    ready = offprint.load_run(tmp_path / "s")
    assert isinstance(ready.model, SNNetV2) and ready.about["classes"] == ["dark", "light"]
    before = (tmp_path / "s" / "model.safetensors").read_bytes()
    assert run.invoke(app, words).exit_code == 0 and (tmp_path / "s" / "model.safetensors").read_bytes() == before


def test_the_verb_refuses(tmp_path):
    from offprint.methods.training.stitching import stitch

    with pytest.raises(OffprintError, match="random weights"):
        stitch("deit3_small_patch16_224", "deit3_base_patch16_224", "sample:cifar10", tmp_path)
    with pytest.raises(OffprintError, match="version"):
        stitch("a", "b", "sample:cifar10", tmp_path, version=3)
