"""RotNet: the turns, the networks' traps, files of the authors, probes on a frozen network, from pictures to a table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.images import ArrayImages, ImageSplits
from offprint.errors import CheckpointError, DataError, OffprintError
from offprint.methods.registry import make
from offprint.methods.training._probing import first_of_each, probe
from offprint.methods.training._rotations_task import rotations_right
from offprint.methods.training.rotnet import (
    PRETEXT,
    PROBE,
    AlexNetRest,
    MlpClassifier,
    Probes,
    SteppedRecipe,
    features,
    layers_of,
    make_probe,
    read_authors,
    rotate_four,
)

QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}
FAST = {"epochs": 12, "batch_size": 8, "lr": 0.02}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def data():
    """Four classes of brightness; all are brighter at the top, so that turns can be told."""
    draw = np.random.default_rng(0)
    labels = np.arange(48) % 4
    slope = np.linspace(120, 0, 16)[None, :, None, None]
    images = (draw.integers(0, 30, (48, 16, 16, 3)) + slope + labels[:, None, None, None] * 30).astype(np.uint8)
    return ImageSplits(
        ArrayImages(images[:40], labels[:40]), ArrayImages(images[40:], labels[40:]), list("abcd"), "bars"
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("rotnet") / "run"
    recipe = {**FAST, "input_size": 16}
    return offprint.train(
        "rotnet_nin3", data, out, methods=["rotnet"], recipe=recipe, model_options={"scale": 0.05}, **QUIET
    )


# -- turns
def test_turns_are_moves_of_pixels_of_square_images():
    images = torch.randn(2, 3, 4, 4)
    views, labels = rotate_four(images)
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(views[5], torch.rot90(images[1], 1, (1, 2))) and torch.equal(views[4], images[1])
    assert torch.equal(
        views[1][:, 0, 0], images[0][:, 0, -1]
    )  # counter-clockwise: the right upper corner comes to the left
    with pytest.raises(OffprintError, match=r"square.*\(1, 3, 4, 6\)"):
        rotate_four(torch.zeros(1, 3, 4, 6))


def test_other_angles_are_refused():
    assert make("rotnet:angles=90,270").angles == (90, 270)
    for given in ("0,45", "0", "0,0"):
        with pytest.raises(OffprintError, match="resampled pixels"):
            make(f"rotnet:angles={given}")


def test_the_evaluation_turns_by_itself(run, data):
    figures = run.load().evaluate(data)
    assert figures["rotation_accuracy"] > 60 and figures["images"] == 8
    assert figures["rotation_accuracy"] == pytest.approx(run["rotation_accuracy"], abs=0.01)
    always = lambda x: nn.functional.one_hot(torch.full((len(x),), 2), 4).float()  # noqa: E731
    assert rotations_right(always, torch.randn(6, 3, 8, 8)).tolist() == [0, 0, 6, 0]


# -- networks
@pytest.mark.parametrize(
    ("name", "count"), [("rotnet_nin3", 1_004_484), ("rotnet_nin5", 1_817_796), ("nin3_supervised", 1_005_642), ("rotnet_alexnet", 57_030_724)]
)  # fmt: skip
def test_parameters(name, count):
    with torch.device("meta"):
        assert parameters(offprint.create_model(name)) == count


def test_pooling_behind_the_third_block_is_no_tensor_but_other_features():
    torch.manual_seed(0)
    plain = offprint.create_model("rotnet_nin4", scale=0.05).eval()
    pooled = offprint.create_model("rotnet_nin4", scale=0.05, use_avg_on_conv3=True).eval()
    pooled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert [f.shape[-1] for f in plain.features(x, ["conv1", "conv2", "conv3", "conv4"])] == [16, 8, 8, 8]
    assert [f.shape[-1] for f in pooled.features(x, ["conv3", "conv4"])] == [4, 4]
    assert pooled.feature_info.reduction() == [2, 4, 8, 8]
    edge = plain.conv2[3](torch.ones(1, 1, 8, 8))
    assert edge[0, 0, 0, 0] == pytest.approx(4 / 9)  # zeros of the padding are counted in the mean


def test_features_come_as_asked_and_layers_behind_are_not_run():
    model = offprint.create_model("rotnet_nin4", scale=0.05).eval()
    model.conv4 = None
    one, two = model.features(torch.randn(1, 3, 16, 16), ["conv2", "conv1"])
    assert one.shape[-1] == 4 and two.shape[-1] == 8
    assert isinstance(model.features(torch.randn(1, 3, 16, 16), "conv3"), torch.Tensor)
    with pytest.raises(OffprintError, match="unknown layer of NIN 'conv9'; nearest: conv"):
        model.features(torch.randn(1, 3, 16, 16), ["conv9"])


def test_a_backbone_like_any_other():
    model = offprint.create_model("rotnet_nin3", scale=0.05, num_classes=7, in_chans=1).eval()
    x = torch.randn(2, 1, 20, 28)
    assert model(x).shape == (2, 7) and torch.equal(model(x), model.features(x, "classifier"))
    maps = offprint.create_model("rotnet_nin3", scale=0.05, features_only=True).eval()
    assert [m.shape[1] for m in maps(torch.randn(1, 3, 32, 32))] == maps.feature_info.channels()
    assert torch.allclose(torch.export.export(model, (x,), strict=False).module()(x), model(x), atol=1e-5)
    other = offprint.create_model("mobilenetv2_100", num_classes=4).eval()
    x, names = torch.randn(1, 3, 64, 64), layers_of(other)
    last, first = features(other, x, [names[-1], names[0]])
    assert first.shape[-1] > last.shape[-1] and torch.equal(features(other, x, names[0]), first)
    with pytest.raises(OffprintError, match="unknown layer of MobileNet"):
        features(other, x, "conv1")


def test_alexnet_says_which_sizes_work():
    with torch.device("meta"):
        model = offprint.create_model("rotnet_alexnet").eval()
        assert model(torch.zeros(1, 3, 224, 224)).shape == model(torch.zeros(1, 3, 254, 223)).shape == (1, 4)
        assert model.features(torch.zeros(1, 3, 96, 96), "conv3").shape[1] == 384
        with pytest.raises(OffprintError, match="223 to 254 pixels"):
            model(torch.zeros(1, 3, 256, 256))
        with pytest.raises(OffprintError, match="expected 3 channels, got 1"):
            model(torch.zeros(1, 1, 224, 224))


# -- files of the authors
def authors(state, rules):
    out = {}
    for name, value in state.items():
        for ours, theirs in rules:
            name = name.replace(ours, theirs)
        out[name] = value
    return out


def test_a_file_of_the_authors_keeps_the_weights_under_network(tmp_path):
    model = offprint.create_model("rotnet_nin3", scale=0.05)
    rules = [
        (f"conv{b}.{j}.", f"_feature_blocks.{b - 1}.Block{b}_ConvB{j + 1}.layers.")
        for b in (1, 2, 3)
        for j in (0, 1, 2)
    ]
    rules += [(".conv.", ".Conv."), (".norm.", ".BatchNorm."), ("head.", "_feature_blocks.3.Classifier.")]
    state = authors(model.state_dict(), rules)
    old = {k: v for k, v in state.items() if "num_batches" not in k}  # torch 0.2 counted none
    torch.save({"network": old, "epoch": 200}, tmp_path / "model_net_epoch200")
    again = offprint.create_model("rotnet_nin3", scale=0.05)
    assert offprint.load_weights(again, read_authors(tmp_path / "model_net_epoch200")).dialect == "authors"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    torch.save({"state": old}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="no 'network'"):
        read_authors(tmp_path / "other")


def test_probes_of_the_authors():
    assert parameters(MlpClassifier(192 * 64, 10)) == 2_500_410
    rules = [("layers.1.", "classifier.Liniear_1."), ("layers.2.", "classifier.BatchNorm_1."), ("layers.4.", "classifier.Liniear_2."),
             ("layers.5.", "classifier.BatchNorm2d."), ("layers.7.", "classifier.Liniear_F.")]  # fmt: skip
    one, two = MlpClassifier(12, 3), MlpClassifier(12, 3)
    assert offprint.load_weights(two, authors(one.state_dict(), rules)).dialect == "authors"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    with torch.device("meta"):
        rest = AlexNetRest("conv4", 10)
        mapped = AlexNetRest.dialects[0].apply(
            dict.fromkeys(["classifier.ConvB5.0.bias", "classifier.ConvB5.1.running_mean", "classifier.Linear1.weight", "classifier.BatchNorm1.bias",
                           "classifier.Liniear2.weight", "classifier.BatchNorm2.bias", "classifier.LinearF.bias"], torch.zeros(1)), rest
        )  # fmt: skip
        assert set(mapped) <= set(rest.state_dict()) and rest(torch.zeros(2, 256, 13, 13)).shape == (2, 10)
    sizes = [
        make_probe("linear", "", shape, 1000).pool.output_size
        for shape in ((64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13))
    ]
    assert sizes == [12, 7, 5, 6]


def test_several_probes_in_one_file():
    one, two = (
        Probes([make_probe("linear", "", (4, 3, 3), 3), make_probe("conv", "", (4, 3, 3), 3)]) for _ in range(2)
    )
    rules = [("probes.0.linear", "classifiers.0.classifier.LiniearClassifier"), ("probes.0.norm", "classifiers.0.classifier.BatchNorm"),
             ("probes.1.linear", "classifiers.1.classifier.Liniear_F"), (".conv.", ".Conv."), (".norm.", ".BatchNorm.")]  # fmt: skip
    rules += [(f"probes.1.block.{j}.", f"classifiers.1.classifier.Block3_ConvB{j + 1}.layers.") for j in range(3)]
    assert offprint.load_weights(two, authors(one.state_dict(), rules)).dialect == "authors"
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


# -- recipes and labels
def test_rates_drop_where_the_tables_say():
    def by_epoch(fields):
        recipe = SteppedRecipe.make(fields)
        return [round(r, 6) for r in recipe.learning_rates(2, recipe.batch_size)[::2]]

    rates = by_epoch(PRETEXT)
    assert [rates[e] for e in (0, 59, 60, 119, 120, 159, 160, 199)] == [
        0.1,
        0.1,
        0.02,
        0.02,
        0.004,
        0.004,
        0.0008,
        0.0008,
    ]
    assert [by_epoch(PROBE["mlp"])[e] for e in (19, 20, 40, 45, 99)] == [0.1, 0.02, 0.004, 0.0008, 0.0008]
    assert [by_epoch(PROBE["linear"])[e] for e in (4, 5, 15, 25, 34)] == [0.01, 0.002, 0.0004, 0.00008, 0.00008]


def test_the_first_labels_of_each_class():
    assert first_of_each([0, 0, 1, 0, 1, 1], 2) == [0, 1, 2, 4]
    assert first_of_each([0, 0, 1, 0, 1, 1], 1, draws=5) == [0, 2, 0, 2, 0]
    with pytest.raises(DataError, match="3 labels of each class were asked for, and class 1 has 1"):
        first_of_each([0, 0, 0, 1], 3)


# -- from pictures to a table
def test_probes_leave_the_network_as_it_is(run, data, tmp_path):
    ready = run.load()
    before = {k: v.clone() for k, v in ready.model.state_dict().items()}
    found = probe(
        ready, data, tmp_path / "p", kind="linear", recipe={"epochs": 2, "batch_size": 8, "lr": 0.05}, **QUIET
    )
    assert [row["layer"] for row in found] == ["conv1", "conv2", "conv3"] and (tmp_path / "p" / "probes.png").is_file()
    assert all(torch.equal(v, ready.model.state_dict()[k]) for k, v in before.items())
    assert found.about["pretext_accuracy"] == pytest.approx(run["rotation_accuracy"])
    assert json.loads((tmp_path / "p" / "probes.json").read_text())["layers"] == found.rows
    with pytest.raises(OffprintError, match="unknown layer of NIN 'conv4'"):
        probe(ready, data, tmp_path / "q", layers=["conv4"], **QUIET)
    with pytest.raises(OffprintError, match="unknown kind of probe 'lineal'; nearest: linear"):
        probe(ready, data, tmp_path / "q", kind="lineal", **QUIET)
    with pytest.raises(OffprintError, match="train the network up to one layer; 3 were chosen"):
        probe(ready, data, tmp_path / "q", finetune=True, **QUIET)


def test_few_labels_with_and_without_the_pretext(run, data, tmp_path):
    given = {"layers": ["conv2"], "kind": "conv", "labels": 2, "draws": 16, "finetune": True, "scratch": True}
    ready = run.load()
    before = ready.model.conv1[0].norm.running_mean.clone()
    found = probe(ready, data, tmp_path / "p", recipe={"epochs": 1, "batch_size": 8, "lr": 0.01}, **given, **QUIET)
    assert {"accuracy", "scratch"} <= set(found[0]) and found.about["labels"] == 2
    assert not torch.equal(before, ready.model.conv1[0].norm.running_mean)  # it learns, its norms too


def test_the_head_of_turns_is_not_taken_for_one_of_four_classes(run, data, tmp_path):
    assert not [k for k in load_file(run.weights) if k.startswith("head.")]
    fitted = offprint.train(run.folder, data, tmp_path / "f", task="classification", recipe={"epochs": 1, "batch_size": 8, "lr": 1e-9, "weight_decay": 0}, **QUIET)  # fmt: skip
    assert fitted.load().model.head.weight.shape[0] == 4
    turns = load_file(run.folder / "rotations.safetensors")["head.weight"]
    assert not torch.allclose(load_file(fitted.weights)["head.weight"], turns, atol=1e-4)
    assert torch.allclose(
        load_file(fitted.weights)["conv1.0.conv.weight"], load_file(run.weights)["conv1.0.conv.weight"], atol=1e-6
    )


def test_the_verbs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    draw = np.random.default_rng(0)
    for label, base in (("a", 30), ("b", 160)):
        (tmp_path / "d" / label).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(base, base + 60, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "d" / label / f"{i}.png"
            )

    def call(*words):
        found = CliRunner().invoke(app, [str(w) for w in words])
        assert found.exit_code == 0, (found.output, found.exception)
        return found.output

    common = ("--data", tmp_path / "d", "--epochs", 1, "--batch-size", 4, "--accelerator", "cpu", "--logger", "none")
    said = call(
        "pretrain",
        "--method",
        "rotnet",
        "--model",
        "rotnet_nin3",
        "-o",
        "scale=0.05",
        "--size",
        16,
        "--out",
        tmp_path / "r",
        *common,
    )
    assert "25 % is chance" in said and "offprint probe" in said
    said = call("probe", tmp_path / "r", "--layers", "conv1,conv2", "--kind", "mlp", "--out", tmp_path / "p", *common)
    assert "conv2" in said and "probes.png" in said
    assert "degrees" in call("predict", tmp_path / "d" / "a", "--model", tmp_path / "r")
