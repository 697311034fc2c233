"""What is SimpleNet's own: its layouts of layers, the pooling by the maximum, files of other layouts, and what is refused."""

import re
from itertools import pairwise

import pytest
import torch
from torch import nn

import offprint
from benchmarks.simplenet import Plain
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.simplenet import NETWORKS, SimpleNet

SMALL = {"scale": 0.125}
CIFAR = ("simplenet_cifar_310k", "simplenet_cifar_460k", "simplenet_cifar_5m", "simplenet_cifar_5m_extra_pool")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def convolutions(model) -> list[int]:
    return [i for i, layer in enumerate(model.features) if isinstance(layer, nn.Conv2d)]


def random_norms(model):
    """Norms that are not the identity, so that an order or a kind that is wrong shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return model.eval()


def file_of_2018(model, prefix="module.") -> dict:
    """The weights as the authors' CIFAR files of 2018 have them: dropouts behind pools only, DataParallel's prefix."""
    own, state, place = convolutions(model), {}, {}
    at = 0
    for here, after in pairwise([*own, len(model.features) + 9]):
        place |= {here: at, here + 1: at + 1}
        at += 3 + 2 * isinstance(model.features[min(after, len(model.features)) - 2], nn.MaxPool2d)
    for name, value in model.state_dict().items():
        name = re.sub(r"^features\.(\d+)", lambda m: f"features.{place[int(m[1])]}", name)
        state[prefix + name.replace("head.", "classifier.")] = value.clone()
    return {"epoch": 540, "arch": "simplenet", "state_dict": state}


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("simplenetv1_small_m1_05", 1_506_792, 0.341e9),
        ("simplenetv1_small_m2_05", 1_506_792, 0.428e9),
        ("simplenetv1_small_m1_075", 3_287_272, 0.759e9),
        ("simplenetv1_small_m2_075", 3_287_272, 0.954e9),
        ("simplenetv1_5m_m1", 5_752_808, 1.342e9),
        ("simplenetv1_5m_m2", 5_752_808, 1.689e9),
        ("simplenetv1_9m_m1", 9_508_968, 2.774e9),
        ("simplenetv1_9m_m2", 9_508_968, 3.555e9),
        ("simplenet_cifar_310k", 312_362, 55.8e6),
        ("simplenet_cifar_460k", 385_790, 73.2e6),
        ("simplenet_cifar_5m", 5_498_378, 652e6),
        ("simplenet_cifar_5m_extra_pool", 5_498_378, 632e6),
    ],
)
def test_counts(name, parameters, macs):
    info = offprint.model_info(name)
    assert info["parameters"] == parameters and info["macs"] == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize(
    ("mode", "macs", "strides"), [(3, 2.035e9, [2, 4, 8, 16, 32]), (4, 2.729e9, [2, 4, 8, 16, 32])]
)
def test_later_strides_cost_more(mode, macs, strides):
    model = offprint.create_model("simplenetv1_5m_m2", mode=mode)
    assert model.feature_info.reduction() == strides
    assert offprint.models.info.model_info(model)["macs"] == pytest.approx(macs, rel=2e-3)


def test_places_of_the_convolutions():
    """Where the released files have them."""
    imagenet = [0, 4, 8, 12, 16, 20, 26, 30, 34, 38, 44, 48, 52]
    assert convolutions(offprint.create_model("simplenetv1_9m_m1", **SMALL)) == imagenet
    cifar = [0, 4, 8, 12, 17, 21, 25, 30, 34, 39, 43, 47, 52]
    assert convolutions(offprint.create_model("simplenet_cifar_5m", **SMALL)) == cifar
    shifted = [*cifar[:10], *(i + 2 for i in cifar[10:])]
    assert convolutions(offprint.create_model("simplenet_cifar_5m_extra_pool", **SMALL)) == shifted


def test_units():
    model = offprint.create_model("simplenetv1_5m_m2")
    kernels = [m.kernel_size[0] for m in model.features if isinstance(m, nn.Conv2d)]
    assert kernels == [3] * 10 + [1, 1, 3]
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None and layer.padding[0] == layer.kernel_size[0] // 2
            bound = 2**0.5 * (6 / (layer.weight[0].numel() + layer.weight[:, 0].numel())) ** 0.5
            assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.momentum, layer.eps) == (0.05, 1e-5)
        if isinstance(layer, nn.Dropout2d):
            assert layer.p == 0


def test_the_last_pool_is_a_maximum():
    model = random_norms(SimpleNet(5, scale=0.125))
    x = torch.randn(2, 3, 70, 90)
    y = model.forward_features(x)
    assert min(y.shape[2:]) > 1
    assert torch.allclose(model(x), model.head(y.flatten(2).max(2).values))
    assert not torch.allclose(model(x), model.head(y.mean((2, 3))), atol=1e-3)


def test_against_the_layers_in_a_row():
    for network, mode in ((0, 2), (4, 0)):
        theirs = random_norms(Plain(network, mode, 7))
        ours = SimpleNet(7, network_idx=network, mode=mode).eval()
        assert offprint.load_weights(ours, theirs.state_dict()).dialect == "authors"
        x = torch.randn(1, 3, 40, 36)
        with torch.no_grad():
            assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_2018_are_recognised(prefix):
    """Coderx7/SimpleNet_Pytorch#7: the prefix of DataParallel, and dropouts that were added since."""
    source = random_norms(offprint.create_model("simplenet_cifar_5m_extra_pool", **SMALL))
    target = offprint.create_model("simplenet_cifar_5m_extra_pool", **SMALL).eval()
    report = offprint.load_weights(target, file_of_2018(source, prefix))
    assert report.dialect == "authors_2018" and not report.fresh
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(target(x), source(x))


def test_files_of_2018_do_not_enter_the_network_without_the_extra_pool():
    """Coderx7/SimpleNet_Pytorch#5: every shape fits, and only the accuracy would tell."""
    source = offprint.create_model("simplenet_cifar_5m_extra_pool", **SMALL)
    target = offprint.create_model("simplenet_cifar_5m", **SMALL)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    assert [v.shape for v in before.values()] == [v.shape for v in source.state_dict().values()]
    with pytest.raises(CheckpointError, match="behind the convolutions 4, 7, 9, 10, 12.*simplenet_cifar_5m_extra_pool"):
        offprint.load_weights(target, file_of_2018(source))
    with pytest.raises(CheckpointError, match="pools behind"):
        offprint.load_weights(target, source.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_files_of_another_width_are_refused():
    source = offprint.create_model("simplenet_cifar_5m_extra_pool", scale=0.25)
    with pytest.raises(CheckpointError, match="another size"):
        offprint.load_weights(offprint.create_model("simplenet_cifar_5m_extra_pool", **SMALL), file_of_2018(source))


def test_a_rate_gives_a_dropout_and_shifts_the_names():
    plain = random_norms(offprint.create_model("simplenet_cifar_310k"))
    model = offprint.create_model("simplenet_cifar_310k", drop_rates={"3": 0.3, 15: 0.1, 4: 0.2}).eval()
    dropouts = {i: m.p for i, m in enumerate(model.features) if isinstance(m, nn.Dropout2d) and m.p}
    assert convolutions(model)[3:5] == [12, 18] and convolutions(plain)[3:5] == [12, 17]
    assert dropouts == {15: 0.3, 17: 0.2, 52: 0.1} and model.drop_rate == 0.1  # entry 15 is the last pool as well
    offprint.load_weights(model, plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), plain(x))


def test_nothing_is_dropped_in_evaluation():
    """The code of 2018 dropped a tenth of the pooled channels in the test as well."""
    model = offprint.create_model("simplenet_cifar_310k", drop_rates={LAST_POOL: 0.5, 15: 0.5})
    x = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


LAST_POOL = [i for i, entry in enumerate(NETWORKS[2].split()) if entry == "P"][-1]


@pytest.mark.parametrize(("name", "smallest"), [*((n, 16) for n in CIFAR[:3]), (CIFAR[3], 32), ("simplenetv1_5m_m1", 25),
                                                ("simplenetv1_5m_m2", 25)])  # fmt: skip
def test_smallest_inputs(name, smallest):
    model = offprint.create_model(name, num_classes=2, **SMALL).eval()
    assert model.minimum == smallest and model(torch.randn(1, 3, smallest, smallest)).shape == (1, 2)
    with pytest.raises(OffprintError, match=f"at least {smallest}"):
        model(torch.randn(1, 3, smallest - 1, 64))


def test_digits_of_one_channel():
    model = offprint.create_model("simplenet_cifar_310k", in_chans=1).eval()
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_deploy_folds_every_norm():
    model = random_norms(offprint.create_model("simplenetv1_5m_m2", num_classes=3, **SMALL))
    x = torch.randn(2, 3, 64, 64)
    merged = offprint.deploy(model, x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in merged.modules())
    assert torch.allclose(merged(x), model(x), rtol=1e-4, atol=1e-4)
    assert offprint.deploy(merged, x) is merged
    with pytest.raises(OffprintError, match="training mode"):
        offprint.deploy(model.train(), x)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"network_idx": 6}, "network_idx=6; choose one of 0 to 5"),
        ({"mode": 5}, "mode=5; choose one of 0 to 4"),
        ({"scale": 0.001}, "scale=0.001 leaves no channel"),
        ({"drop_rates": {16: 0.1}}, "entries 0 to 14"),
        ({"drop_rates": {"last": 0.1}}, "'last'"),
        ({"drop_rates": {3: 1.0}}, r"drop_rates\[3\]=1.0; give a probability"),
    ],
)
def test_refusals(kwargs, says):
    with pytest.raises(OffprintError, match=says):
        SimpleNet(**kwargs)


def test_no_weights_for_the_cifar_networks():
    with pytest.raises(OffprintError, match="simplenet_cifar_5m has no released weights.*simplenetv1_5m_m1"):
        offprint.create_model("simplenet_cifar_5m", pretrained=True)
