"""Inception-v4 and the Inception-ResNets: what is their own, and the RMSProp that they are trained with."""

import copy
import math

import pytest
import torch
from torch import nn

import offprint
from offprint.errors import OffprintError
from offprint.models.backbones.inception_v4 import Residual, slim_names
from offprint.tasks.recipe import Recipe, build_optimizer
from offprint.tasks.rmsprop import RMSpropTF

FEW = {"depths": (1, 1, 1)}


def randomised(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("inception_v4", 42_679_816),
        ("inception_resnet_v1", 22_756_328),
        ("inception_resnet_v1_facenet", 23_482_624),
        ("inception_resnet_v2", 55_843_464),
    ],
)
def test_parameters(name, parameters):
    assert offprint.model_info(name)["parameters"] == parameters


def test_the_printed_v2_has_the_printed_widths():
    """Table of Sec. 3.2, with the two misprints put right: 384, 1152 (1154), 2144 (2048)."""
    with torch.device("meta"):
        model = offprint.create_model("inception_resnet_v2_paper")
    assert model.pyramid_channels[2:] == [384, 1152, 2144]
    assert [len(model.get_submodule(f"repeat_{i}")) for i in (1, 2, 3)] == [5, 10, 5]


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2", "inception_resnet_v1"])
def test_smallest_image(name):
    model = offprint.create_model(name, num_classes=3, **FEW).eval()
    assert model(torch.randn(1, 3, 75, 75)).shape == (1, 3)
    with pytest.raises(OffprintError, match="at least 75"):
        model(torch.randn(1, 3, 74, 90))
    aligned = offprint.create_model(name, num_classes=3, align_feature_maps=True, **FEW).eval()
    assert aligned(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_aligned_maps_line_up_with_the_image():
    """The same weights; with padding the last map has exactly a 32nd of the sides, without it less."""
    plain = randomised(offprint.create_model("inception_resnet_v1", num_classes=3, **FEW))
    aligned = offprint.create_model("inception_resnet_v1", num_classes=3, align_feature_maps=True, **FEW).eval()
    aligned.load_state_dict(plain.state_dict())
    assert aligned.forward_features(torch.randn(1, 3, 128, 96)).shape[-2:] == (4, 3)
    assert plain.forward_features(torch.randn(1, 3, 139, 139)).shape[-2:] == (3, 3)


def test_facenet():
    model = randomised(offprint.create_model("inception_resnet_v1_facenet", **FEW))
    x = torch.randn(2, 3, 80, 80)
    assert model(x).shape == (2, 512) and torch.allclose(model(x).norm(dim=1), torch.ones(2), atol=1e-5)
    named = offprint.create_model("inception_resnet_v1_facenet", num_classes=11, **FEW).eval()
    offprint.load_weights(model, named.state_dict())  # the identities are left out
    assert named(x).shape == (2, 11)
    assert torch.allclose(named.forward_head(named.forward_features(x), pre_logits=True), model(x), atol=1e-5)
    named.reset_classifier(4)
    assert named(x).shape == (2, 4) and named.logits.in_features == 512


def test_residual_is_scaled():
    torch.manual_seed(0)
    block = Residual(8, (((4, 1),), ((4, 1), (4, (1, 7)), (4, (7, 1)))), 0.1, relu=False).eval()
    x = torch.randn(1, 8, 9, 9)
    small = block(x) - x
    block.scale = 1.0
    assert torch.allclose(block(x) - x, 10 * small, atol=1e-5)
    model = offprint.create_model("inception_resnet_v2", scales=(0.3, 0.2, 0.1), **FEW)
    assert [model.get_submodule(f"repeat_{i}")[0].scale for i in (1, 2, 3)] == [0.3, 0.2, 0.1]
    assert model.block8.scale == 1 and not model.block8.relu
    with pytest.raises(OffprintError, match="from 0.1 to 0.3"):
        offprint.create_model("inception_resnet_v2", scales=(0, 1, 1))
    with pytest.raises(OffprintError, match="v1"):
        offprint.create_model("inception_resnet_v2", form="v3")


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
@pytest.mark.parametrize("size", [75, 299])
def test_side_classifier(name, size):
    with torch.device("meta"):
        model = offprint.create_model(name, num_classes=5, aux=True, **FEW)
        x = torch.zeros(2, 3, size, size)
        logits, side = model.train()(x)
        assert logits.shape == side.shape == (2, 5)
        assert model.eval()(x).shape == (2, 5)
        model.reset_classifier(3)
        assert model.train()(x)[1].shape == (2, 3)
    with pytest.raises(OffprintError, match="num_classes above 0"):
        offprint.create_model(name, num_classes=0, aux=True, **FEW)


def test_side_classifier_is_trained():
    from offprint.tasks.classification import Classification

    torch.manual_seed(0)
    model = offprint.create_model("inception_resnet_v1", num_classes=4, aux=True, align_feature_maps=True, **FEW)
    task = Classification(model, Recipe.of("inception_resnet_v1"), 4)
    task.log = lambda *a, **k: None
    images, labels = torch.randn(2, 3, 48, 48), torch.tensor([1, 2])
    torch.manual_seed(1)
    loss = task.training_step((images, labels), 0)
    torch.manual_seed(1)
    logits, side = model.train()(images)
    both = [nn.functional.cross_entropy(o, labels, label_smoothing=0.1) for o in (logits, side)]
    assert torch.allclose(loss, both[0] + 0.4 * both[1], atol=1e-4)
    loss.backward()
    assert model.aux.fc.weight.grad.abs().sum() > 0
    features = offprint.create_model("inception_resnet_v1", features_only=True, **FEW)
    assert offprint.load_weights(features, model.state_dict()).loaded


# -- TensorFlow's weights --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_slim_weights(name):
    """Under slim's names and layouts, without gamma, with a background class first: the same network."""
    source = randomised(offprint.create_model(name, num_classes=5))
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    ours = {n: v for n, v in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    scope, state = {"inception_v4": "InceptionV4", "inception_resnet_v2": "InceptionResnetV2"}[name], {}
    for theirs, mine in slim_names()[scope].items():
        if mine.startswith("aux"):
            continue
        if mine == "last_linear":
            pad = [
                torch.cat([ours.pop(f"{mine}.{k}")[:1] + 1, source.state_dict()[f"{mine}.{k}"]])
                for k in ("weight", "bias")
            ]
            state[f"{scope}/{theirs}/weights"], state[f"{scope}/{theirs}/biases"] = pad[0].t().contiguous(), pad[1]
            continue
        if f"{mine}.conv.weight" not in ours:  # the 1x1 before a sum
            state[f"{scope}/{theirs}/weights"] = ours.pop(f"{mine}.weight").permute(2, 3, 1, 0).contiguous()
            state[f"{scope}/{theirs}/biases"] = ours.pop(f"{mine}.bias")
            continue
        state[f"{scope}/{theirs}/weights"] = ours.pop(f"{mine}.conv.weight").permute(2, 3, 1, 0).contiguous()
        ours.pop(f"{mine}.bn.weight")
        for a, b in (("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var")):
            state[f"{scope}/{theirs}/BatchNorm/{a}"] = ours.pop(f"{mine}.bn.{b}")
    assert ours == {}
    state[f"{scope}/AuxLogits/Conv2d_1b_1x1/BatchNorm/beta"] = torch.zeros(128)
    target = offprint.create_model(name, num_classes=5).eval()
    assert offprint.load_weights(target, state).dialect == "tensorflow"
    x = torch.randn(1, 3, 80, 80)
    assert torch.allclose(target(x), source(x), rtol=1e-4, atol=1e-4)


# -- RMSProp ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_rmsprop_is_tensorflows(momentum, decay):
    """Against the recurrence written out in plain numbers."""
    theta, lr, alpha, eps = 0.7, 0.045, 0.9, 1.0
    parameter = nn.Parameter(torch.tensor([theta, 1.0], dtype=torch.float64))
    optimizer = RMSpropTF([parameter], lr=lr, alpha=alpha, eps=eps, momentum=momentum, weight_decay=decay)
    s, m = 1.0, 0.0
    for step in range(5):
        if step == 3:
            lr = optimizer.param_groups[0]["lr"] = 0.01
        parameter.grad = torch.stack([torch.sin(parameter[0].detach()) + step, torch.zeros((), dtype=torch.float64)])
        g = math.sin(theta) + step + decay * theta
        s = alpha * s + (1 - alpha) * g * g
        m = momentum * m + lr * g / math.sqrt(s + eps)
        theta -= m
        optimizer.step()
        assert float(parameter[0].detach()) == pytest.approx(theta, abs=1e-12)


def test_rmsprop_resumes_and_is_what_the_recipe_builds():
    torch.manual_seed(0)
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    recipe = Recipe.of("inception_v4")
    optimizer = build_optimizer(model, recipe, recipe.reference_batch)
    assert type(optimizer) is RMSpropTF
    assert [g["weight_decay"] for g in optimizer.param_groups] == [4e-5, 0.0]
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["eps"]) == (0.045, 1.0)
    x = torch.randn(5, 4)

    def step(net, with_optimizer):
        loss = with_optimizer.step(lambda: (with_optimizer.zero_grad(), net(x).square().mean().backward())[1])
        return loss

    step(model, optimizer)
    other.load_state_dict(model.state_dict())
    again = build_optimizer(other, recipe, recipe.reference_batch)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        step(model, optimizer)
        step(other, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert type(build_optimizer(model, Recipe(optimizer="rmsprop"), 1)) is torch.optim.RMSprop


def test_rmsprop_refusals():
    parameter = nn.Parameter(torch.zeros(1))
    with pytest.raises(OffprintError, match="lr=-1"):
        RMSpropTF([parameter], lr=-1)
    with pytest.raises(OffprintError, match="between 0 and 1"):
        RMSpropTF([parameter], alpha=1.0)


def test_rates_fall_every_second_epoch():
    recipe = Recipe.of("inception_v4", epochs=6)
    rates = recipe.learning_rates(2, recipe.reference_batch)
    assert rates[::4] == pytest.approx([0.045, 0.045 * 0.94, 0.045 * 0.94**2])
