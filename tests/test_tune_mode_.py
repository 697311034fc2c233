"""tune-mode: eval mode's outputs and gradients for less memory, on any network, and everything else left as it was."""

import copy
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.images import ArrayImages, ImageSplits
from offprint.errors import OffprintError
from offprint.methods.training.tune_mode import (
    TuneConvBN,
    advice,
    fold,
    freeze_norms,
    fuse_report,
    in_mode,
    measure_modes,
    saved_bytes,
    tune_mode,
    tuned,
    undo,
)


def lively(net, seed=0):
    """Statistics and affine parameters that are not those of a fresh norm."""
    draw = torch.Generator().manual_seed(seed)
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            m.running_mean.copy_(torch.randn(m.num_features, generator=draw) * 0.1)
            m.running_var.copy_(torch.rand(m.num_features, generator=draw) + 0.5)
            if m.affine:
                with torch.no_grad():
                    m.weight.copy_(torch.rand(m.num_features, generator=draw) + 0.5)
                    m.bias.copy_(torch.randn(m.num_features, generator=draw) * 0.1)
    return net


def gradients(net, x):
    x = x.clone().requires_grad_()
    net.zero_grad()
    torch.manual_seed(1)  # dropout
    out = net(x)
    out = out if isinstance(out, torch.Tensor) else out[0]
    out.square().sum().backward()
    return out.detach(), {"input": x.grad, **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}


def check(plain, x, **kwargs):
    """Output and gradients of tune are those of eval, in double, to 1e-5 of the largest value of each."""
    plain = freeze_norms(lively(plain.double()).train())
    expected, wanted = gradients(plain, x.double())
    keys = list(plain.state_dict())
    net = freeze_norms(tune_mode(plain, **kwargs).train())
    got, found = gradients(net, x.double())
    assert list(net.state_dict()) == keys and wanted.keys() == found.keys()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    for name, grad in wanted.items():
        assert float((grad - found[name]).abs().max()) <= 1e-5 * float(grad.abs().max()) + 1e-12, name
    return fuse_report(net)


def _vgg():
    net = tv.VGG(tv.vgg.make_layers([8, "M", 16, "M"], batch_norm=True), init_weights=False)
    net.classifier = nn.Linear(16 * 49, 5)
    return net


ARCHITECTURES = {  # twelve of torchvision's, narrow or short where their builders allow it: how many of their norms are folded
    "resnet": (lambda: tv.ResNet(tv.resnet.BasicBlock, [1, 1, 1, 1], 5), 12, 12),
    "resnext": (lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], 5, groups=8, width_per_group=4), 17, 17),
    "densenet": (lambda: tv.DenseNet(4, (2, 2, 2, 2), 8, num_classes=5), 9, 21),
    "vgg_bn": (_vgg, 2, 2),
    "mobilenet_v2": (lambda: tv.mobilenet_v2(width_mult=0.25, num_classes=5), 52, 52),
    "mobilenet_v3": (lambda: tv.mobilenet_v3_small(width_mult=0.25, num_classes=5), 34, 34),
    "shufflenet_v2": (lambda: tv.shufflenet_v2_x0_5(num_classes=5), 56, 56),
    "mnasnet": (lambda: tv.MNASNet(0.25, 5), 52, 52),
    "efficientnet": (lambda: tv.efficientnet_b0(num_classes=5), 49, 49),
    "regnet_x": (lambda: tv.regnet_x_400mf(num_classes=5), 71, 71),
    "regnet_y": (lambda: tv.regnet_y_400mf(num_classes=5), 53, 53),
    "googlenet": (lambda: tv.googlenet(init_weights=False, aux_logits=False, num_classes=5), 57, 57),
}


def test_gradients_of_twelve_architectures_are_those_of_eval_mode():
    for name, (build, fused, norms) in ARCHITECTURES.items():
        torch.manual_seed(0)
        report = check(build(), torch.randn(2, 3, 32, 32))
        assert (len(report.fused), len(report.left)) == (fused, norms - fused), name
        assert set(report.how.values()) == {"torch.fx"}


def test_gradients_of_ours_are_those_of_eval_mode():
    for slug, name in (
        ("mobilenet-v2", "mobilenetv2_100"),
        ("simplenet", "simplenetv1_5m_m2"),
        ("ibn-net", "resnet50_ibn_a"),
    ):
        path = Path(__file__).parent / "golden" / slug / "adapter.py"
        spec = importlib.util.spec_from_file_location(f"small_{slug}", path)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        name = name if name in module.SMALL else next(iter(module.SMALL))
        torch.manual_seed(0)
        net = offprint.create_model(name, num_classes=5, **module.SMALL[name])
        assert check(net, torch.randn(2, 3, 32, 32)).fused, name


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
        (nn.ConvTranspose1d(3, 4, 3), nn.BatchNorm1d(4, affine=False), (2, 3, 5)),
        (nn.Conv3d(2, 4, 3, padding="same", padding_mode="circular"), nn.SyncBatchNorm(4), (2, 2, 4, 4, 4)),
        (nn.Linear(3, 4), nn.BatchNorm1d(4, eps=1e-3), (5, 3)),
    ],
)
def test_kinds_of_layers(layer, norm, shape):
    assert len(check(nn.Sequential(layer, norm), torch.randn(shape)).fused) == 1


def block(bias=False):
    torch.manual_seed(0)
    return lively(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def ready():
    net = block()
    net(X)
    return net


def test_it_is_undone_and_nothing_else_changes():
    plain = ready().eval()
    net = tune_mode(copy.deepcopy(plain))
    assert net.state_dict().keys() == plain.state_dict().keys() and isinstance(net[0], nn.Conv2d)
    net.load_state_dict(plain.state_dict()), plain.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.allclose(net(X), plain(X), atol=1e-5) and not torch.equal(net[0](X), plain[0](X))
        assert type(undo(net)[0]) is nn.Conv2d and type(net[1]) is nn.BatchNorm2d and torch.equal(net(X), plain(X))
        with tuned(net) as report:
            assert report.fused == [("0", "1")] and not torch.equal(net[0](X), plain[0](X))
        assert torch.equal(net[0](X), plain[0](X)) and not fuse_report(net).fused
        a, b = tune_mode(net).train()(X), plain.train()(X)  # training mode is what it always was
        assert torch.equal(a, b) and torch.equal(net[1].running_mean, plain[1].running_mean)


def test_copies_pickles_compilers_and_exports_take_it():
    net, plain = tune_mode(ready()).eval(), ready().eval()
    expected = plain(X)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), torch.load(file, weights_only=False)):
        assert torch.allclose(other(X), expected, atol=1e-5) and other[0].__dict__["norm"] is other[1]
        with torch.no_grad():
            other[1].weight.mul_(2)  # its own norm is what it folds
        assert not torch.allclose(other(X), expected, atol=1e-3) and torch.allclose(net(X), expected, atol=1e-5)
    assert torch.allclose(torch.export.export(net, (X,)).module()(X), expected, atol=1e-5)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    wanted = gradients(plain, X)[1]
    found = {k.removeprefix("_orig_mod."): v for k, v in gradients(compiled, X)[1].items()}
    assert all(torch.allclose(wanted[k], found[k], atol=1e-4) for k in wanted)


def test_checkpointing_and_several_processes_and_autocast(tmp_path):
    net, plain = tune_mode(ready()).eval(), ready().eval()
    wanted = gradients(plain, X)[1]
    found = gradients_of(lambda x: net[2:](checkpoint(net[:2], x, use_reentrant=False)), net)
    assert all(torch.allclose(wanted[k], found[k], atol=1e-4) for k in found)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(net)
        found = gradients_of(parallel, net)
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.allclose(wanted[k], found[k], atol=1e-4) for k in found)
    with torch.no_grad():
        (
            net[1].running_var.fill_(1e-7),
            net[1].running_mean.fill_(0.1),
        )  # folded in half precision, this variance would be eps alone or less
        weight, bias = fold(net[0], net[1])
        with torch.autocast("cpu", torch.bfloat16):
            again, shift = fold(net[0], net[1])
            assert net[0](X).dtype == torch.bfloat16
    assert torch.equal(weight, again) and torch.equal(bias, shift) and again.dtype == torch.float32


def gradients_of(function, net):
    net.zero_grad()
    function(X).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters()}


def test_deploy_folds_once_and_can_be_taken_apart():
    for bias in (False, True):
        plain = block(bias)
        plain(X)
        plain.eval()
        net = tune_mode(copy.deepcopy(plain), mode="deploy")
        assert [k for k in net.state_dict() if k < "2"] == ["0.weight", "0.bias"]
        assert torch.allclose(net(X), plain(X), atol=1e-5)
        torch.optim.SGD(net.parameters(), 0.01).step(lambda net=net: net(X).square().sum().backward())
        after = net(X).detach()
        assert torch.allclose(undo(net)(X), after, atol=1e-4) and net.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        plain[1].weight[0] = 0
    with pytest.raises(OffprintError, match="1 channels were folded with a factor of 0"):
        undo(tune_mode(plain, mode="deploy"))


def test_a_step_of_eval_moves_the_kernel_by_c_squared_times_that_of_deploy():
    moved = {}
    for mode in ("eval", "tune", "deploy"):
        net = in_mode(ready().double(), mode)
        before = net[0].weight.detach().clone() if mode == "deploy" else fold(net[0], net[1])[0].detach()
        torch.manual_seed(0)
        net(X.double()).square().sum().backward()
        with torch.no_grad():
            net[0].weight.sub_(net[0].weight.grad, alpha=1e-3)  # the kernel alone
            after = net[0].weight if mode == "deploy" else fold(net[0], net[1])[0]
            moved[mode] = after - before
    norm = ready().double()[1]
    c = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(-1, 1, 1, 1)
    assert torch.allclose(moved["eval"], moved["tune"]) and torch.allclose(moved["tune"], c**2 * moved["deploy"])


class Odd(nn.Module):
    """Everything that must be left alone, or told apart."""

    def __init__(self):
        super().__init__()
        self.shared, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.level, self.same = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.read, self.twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first = nn.BatchNorm2d(3)
        self.norm, self.late = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.watched, self.under = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.watched.register_forward_hook(lambda *_: None)
        self.scaled, self.light = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
        self.batch, self.without = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3, track_running_stats=False)
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x):
        x = self.first(x)
        x = self.a(self.shared(x)) + self.b(self.shared(x))
        x = self.same(self.level(input=x)) + self.same(
            input=self.level(F.avg_pool2d(x, 3, 1, 1))
        )  # one head on two levels
        y = self.read(x)
        x = self.twice(y) + y
        x = self.late(self.norm(torch.cat([x[:, :2], x[:, 2:]], 1)))
        x = self.light(self.scaled(self.under(self.watched(x))))
        x = x + self.without(self.batch(x))
        y = F.conv2d(input=x, weight=self.weight, bias=None, stride=2, padding=1)  # by keyword, and functional
        return F.batch_norm(y, self.a.running_mean, self.a.running_var)


def test_what_is_left_alone_and_why():
    torch.manual_seed(0)
    net = Odd().double()
    freeze_norms(net)
    report = check(net, torch.randn(2, 3, 6, 6))
    assert report.fused == [("shared", "a"), ("shared", "b"), ("level", "same")]
    for name, why in {
        "twice": "is read elsewhere too", "first": "it reads the input",
        "norm": "the output of cat, not of a convolution (as in networks that normalise first)", "under": "carries hooks",
        "light": "is parametrized", "without": "track_running_stats=False",
    }.items():  # fmt: skip
        assert why in report.left[name], name
    text = str(report)
    assert text.startswith("tune mode: 3 of 9 BatchNorms") and "left alone, it reads the input: first" in text


class Meeting(nn.Module):
    """One convolution before two norms, two before one, and a norm whose convolution is also used alone."""

    def __init__(self):
        super().__init__()
        self.head, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.left, self.right, self.both = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.alone, self.after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.one(self.head(x)) + self.two(self.head(F.avg_pool2d(x, 3, 1, 1)))
        x = self.both(self.left(x)) + self.both(self.right(x))
        return self.after(self.alone(x)) + self.alone(F.relu(x))


def test_calls_are_folded_not_modules():
    torch.manual_seed(0)
    report = check(Meeting(), torch.randn(2, 3, 6, 6))
    assert report.fused == [("head", "one"), ("head", "two"), ("left", "both"), ("right", "both")]
    assert report.left == {"after": "its convolution is also used without a norm"}
    net, plain = tune_mode(lively(Meeting())).eval(), lively(Meeting()).eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(copy.deepcopy(net)(x), plain(x), atol=1e-5)
    net.one.train(), plain.one.train()  # one norm of the two learns its statistics again
    assert torch.allclose(net(x), plain(x), atol=1e-5) and torch.allclose(net.one.running_mean, plain.one.running_mean)
    folded = fuse_report(tune_mode(net, mode="deploy"))
    assert not folded.fused and "can be folded at each step only" in folded.left["both"]


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.inner = (
            nn.Conv2d(3, 3, 1),
            nn.BatchNorm2d(3),
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        )

    def forward(self, x):
        if x.shape[-1] < 2:
            raise ValueError("too small")
        return self.inner(self.bn(self.conv(x)))


def test_what_fx_cannot_trace_is_exported_or_taken_by_its_parts():
    whole = check(Branching(), torch.randn(2, 3, 4, 4), example=torch.randn(2, 3, 4, 4).double())
    assert len(whole.fused) == 2 and whole.how["the network"].startswith("torch.export (torch.fx: ")
    parts = check(Branching(), torch.randn(2, 3, 4, 4))
    assert parts.fused == [("inner.0", "inner.1")] and parts.how["the network"].startswith("its parts one by one")
    assert parts.left == {"bn": "no forward pass that could be traced calls it"}
    both = nn.Sequential(
        Branching(),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
    )
    named = check(both, torch.randn(2, 3, 4, 4), parts=["0", "1"])  # one untraceable part does not stop the others
    assert (
        named.fused == [("0.inner.0", "0.inner.1"), ("1.0", "1.1")]
        and named.left["2.1"] == "it is in none of the parts that were named"
    )


def test_bad_input_is_told():
    with pytest.raises(OffprintError, match="unknown mode 'tun'; nearest: tune"):
        tune_mode(ready(), mode="tun")
    with pytest.raises(OffprintError, match="unknown part of the network 'bakbone'; nearest: backbone"):
        tune_mode(nn.ModuleDict({"backbone": ready()}), "bakbone")
    with pytest.raises(OffprintError, match="Linear has no BatchNorm"):
        tune_mode(nn.Linear(2, 2))
    with pytest.raises(OffprintError, match="it normalises another axis: 4 outputs, 3 features"):
        TuneConvBN(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(3))
    with pytest.raises(OffprintError, match="unknown mode of training 'deploy'"):
        offprint.train("mobilenetv2_100", "nowhere", methods=["tune-mode:mode=deploy"])


def test_memory_falls_where_maps_are_larger_than_kernels_and_the_other_case_is_told():
    net = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
    large, small = (measure_modes(net, torch.randn(n, 8, s, s)) for n, s in ((4, 32), (1, 4)))
    y, kernel = 4 * 32 * 32 * 32 * 4 / 2**20, 32 * 8 * 9 * 4 / 2**20
    assert large["eval"]["mebibytes"] - large["tune"]["mebibytes"] == pytest.approx(y - kernel, rel=0.02)
    assert large["deploy"]["mebibytes"] == pytest.approx(large["tune"]["mebibytes"] - kernel, rel=0.02)
    assert small["tune"]["mebibytes"] > small["eval"]["mebibytes"]
    assert "use a larger batch" in advice(small) and "use a larger batch" not in advice(large)
    parameters = nn.Linear(4, 4)
    assert saved_bytes(parameters, lambda: parameters(torch.ones(1, 4))) == 16  # the input, not the weight


def test_the_verb_measures_the_modes_and_says_whether_tune_is_worth_it(tmp_path):
    words = [
        "measure",
        "modes",
        "torchvision/shufflenet_v2_x0_5",
        "--batch",
        "2",
        "--size",
        "32",
        "--rounds",
        "1",
        "--part",
        "conv1",
    ]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "modes.json")]).output
    assert "tune mode: 1 of 56 BatchNorms" in shown and "against eval" in shown
    kept = json.loads((tmp_path / "modes.json").read_text())
    assert list(kept["modes"]) == ["train", "tune", "deploy", "eval"] and kept["fused"] == [["conv1.0", "conv1.1"]]
    refused = CliRunner().invoke(app, [*words[:3], "--batch", "0"])
    assert "--batch 0: give 2 or more" in str(refused.exception)


def test_a_run_by_name_is_eval_modes(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 255, (8, 32, 32, 3), dtype=np.uint8), np.arange(8) % 2
    data = ImageSplits(ArrayImages(images, labels), ArrayImages(images, labels), ["a", "b"], "eight")
    tiny = {"width": 0.35, "settings": ((1, 16, 1, 1), (6, 24, 1, 2))}
    recipe = {
        "epochs": 1,
        "batch_size": 4,
        "lr": 1e-3,
        "reference_batch": 0,
        "input_size": 32,
        "warmup_epochs": 0,
        "optimizer": "sgd",
    }
    said, found = [], {}
    for mode in ("tune", "eval"):
        run = offprint.train(
            "mobilenetv2_100", data, tmp_path / mode, recipe=recipe, model_options=dict(tiny), methods=[f"tune-mode:mode={mode}"],
            progress=False, accelerator="cpu", logger="none", say=said.append,
        )  # fmt: skip
        found[mode] = run.load().model.state_dict()
        statistics = [v for k, v in found[mode].items() if k.endswith("running_mean")]
        assert statistics and not any(v.any() for v in statistics)  # frozen
    assert run["methods"]["tune-mode"]["fused"] == 0 and any(
        "BatchNorms folded into the layer" in line for line in said
    )
    assert any("the weights are random ones" in line for line in said)
    for name, value in found["tune"].items():
        assert torch.allclose(value, found["eval"][name], atol=1e-5), name
