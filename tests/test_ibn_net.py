"""IBN-Net: the layer, the conversion of other networks, and what instance normalisation promises."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.ibn_net import IBN, ibn
from offprint.nn.instance_batch import InstanceNorm2d

FORMATS = (torch.contiguous_format, torch.channels_last)


def randomised(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("ratio", "bn_first", "batch"), [(0.5, False, 4), (0.4, True, 1), (0.25, False, 3)])
def test_layer_equals_the_plain_formulation(layout, training, ratio, bn_first, batch):
    """Divide, torch's own two norms, concatenate: the same values, gradients and running statistics in both layouts."""
    torch.manual_seed(0)
    layer = randomised(IBN(10, ratio, bn_first))
    nn.init.normal_(layer.IN.weight)
    nn.init.normal_(layer.IN.bias)
    theirs = nn.ModuleDict({"IN": nn.InstanceNorm2d(len(layer.IN.weight), affine=True), "BN": copy.deepcopy(layer.BN)})
    theirs["IN"].load_state_dict(layer.IN.state_dict())
    layer.train(training), theirs.train(training)
    x = torch.randn(batch, 10, 6, 5).contiguous(memory_format=layout)
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = torch.relu_(layer(ours))
    a, b = other.split(layer.split, 1)
    z = torch.cat([theirs["BN"](a), theirs["IN"](b)] if bn_first else [theirs["IN"](a), theirs["BN"](b)], 1)
    grad = torch.randn_like(y)
    y.backward(grad)
    F.relu(z).backward(grad)
    assert y.is_contiguous(memory_format=layout)
    assert torch.allclose(y, F.relu(z), atol=1e-5) and torch.allclose(ours.grad, other.grad, atol=1e-5)
    assert torch.allclose(layer.IN.weight.grad, theirs["IN"].weight.grad, atol=1e-4)
    assert torch.allclose(layer.BN.running_var, theirs["BN"].running_var)


@pytest.mark.parametrize("layout", FORMATS)
def test_instance_norm(layout):
    ours, theirs = InstanceNorm2d(6), nn.InstanceNorm2d(6, affine=True)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    assert not [k for k in ours.state_dict() if "running" in k]
    for batch in (1, 3):
        x = torch.randn(batch, 6, 5, 7).contiguous(memory_format=layout)
        y = torch.relu_(ours(x))
        assert torch.allclose(y, F.relu(theirs(x)), atol=1e-5) and y.is_contiguous(memory_format=layout)
    pixel = ours(torch.randn(2, 6, 1, 1))
    shift = ours.bias[None, :, None, None].expand(2, -1, -1, -1)
    assert torch.allclose(pixel, shift, atol=1e-3)  # the kernel divides by sqrt(eps) before it subtracts


def test_ratio_floors_and_refusals():
    assert IBN(64, 0.4, bn_first=True).split == (38, 26) and IBN(64, 0.3).split == (19, 45)
    with pytest.raises(OffprintError, match="between 0 and 1"):
        IBN(8, 1.0)
    with pytest.raises(OffprintError, match="at least 2"):
        IBN(1)


def test_where_the_layers_sit():
    with torch.device("meta"):
        a = offprint.create_model("resnet50_ibn_a")
        b = offprint.create_model("resnet50_ibn_b")
        d = offprint.create_model("densenet121_ibn_a")
    first = {n for n, m in a.named_modules() if isinstance(m, IBN)}
    assert first == {f"layer{i}.{j}.bn1" for i, depth in ((1, 3), (2, 4), (3, 6)) for j in range(depth)}
    assert {n for n, m in b.named_modules() if isinstance(m, nn.InstanceNorm2d)} == {
        "bn1",
        "layer1.2.IN",
        "layer2.3.IN",
    }
    dense = [n for n, m in d.named_modules() if isinstance(m, IBN)]
    assert len(dense) == 2 + 4 + 8 and all(int(n.split(".")[2].removeprefix("denselayer")) % 3 == 1 for n in dense)


@pytest.mark.parametrize("kind", ["", "a", "b"])
def test_appearance(kind):
    """After the first instance normalisation of form b, contrast is gone; with batch normalisation it is not."""
    net = offprint.create_model(
        "resnet18_ibn_b", num_classes=0, kind=kind, depths=(1, 1, 1, 1), widths=(8, 8, 8, 8)
    ).eval()
    x = torch.rand(1, 3, 64, 64)
    seen = net.forward_pyramid(x)[0], net.forward_pyramid(3 * x)[0]
    change = float((seen[0] - seen[1]).abs().max() / seen[0].abs().max())
    assert change < 1e-3 if kind == "b" else change > 1


@pytest.mark.parametrize(
    ("peer", "name", "kind"),
    [
        ("resnet18", "resnet18_ibn_a", "a"),
        ("resnet18", "resnet18_ibn_b", "b"),
        ("resnet50", "resnet50_ibn_b", "b"),
        ("resnext50_32x4d", "resnext50_ibn_a", "a"),
        ("densenet121", "densenet121_ibn_a", "a"),
    ],
)
def test_converting_gives_the_papers_network(peer, name, kind):
    """torchvision's network, converted, has the authors' names and computes what ours does."""
    import torchvision

    plain = randomised(getattr(torchvision.models, peer)(num_classes=5))
    theirs = ibn(plain, kind)
    assert theirs is plain and not theirs.training
    ours = offprint.create_model(name, num_classes=5).eval()
    assert offprint.load_weights(ours, theirs.state_dict()).dialect == "authors"
    x = torch.randn(1, 3, 65, 96)
    assert torch.allclose(ours(x), theirs(x), atol=1e-4)
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(theirs)))(x), theirs(x))


def test_converting_keeps_the_weights():
    import torchvision

    plain = randomised(torchvision.models.resnet18())
    before = copy.deepcopy(plain.layer1[0].bn1)
    after = ibn(plain).layer1[0].bn1
    assert torch.equal(torch.cat([after.IN.weight, after.BN.weight]), before.weight)
    assert torch.equal(torch.cat([after.IN.bias, after.BN.bias]), before.bias)
    assert torch.equal(after.BN.running_mean, before.running_mean[32:])
    assert type(plain.layer4[0].bn1) is nn.BatchNorm2d and type(plain.layer1[0].bn2) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("name", "layers", "instances"),
    [
        ("resnet18", 6, ["bn1", "layer1.1.IN", "layer2.1.IN"]),
        ("mobilenetv2_035", 13, ["bn1.0", "blocks.0.0.IN", "blocks.1.1.IN"]),
        ("regnety_002", 6, ["stem.bn.0", "s1.b1.IN", "s2.b1.IN"]),
        (
            "densenet121",
            14,
            ["features.norm0.0", "features.denseblock1.denselayer6.IN", "features.denseblock2.denselayer12.IN"],
        ),
    ],
)
def test_converting_timm(name, layers, instances):
    """timm joins norm and activation in one module; both stay."""
    import timm

    x = torch.randn(2, 3, 64, 64)
    a = ibn(timm.create_model(name, num_classes=3))
    assert sum(isinstance(m, IBN) for m in a.modules()) == layers
    b = ibn(timm.create_model(name, num_classes=3), "b")
    assert [n for n, m in b.named_modules() if isinstance(m, InstanceNorm2d)] == instances
    for model in (a, b):
        out = model.train()(x)
        out.sum().backward()
        assert out.shape == (2, 3) and all(p.grad is not None for p in model.parameters())


def test_converting_ours_and_a_chain():
    import torchvision

    ours = ibn(offprint.create_model("mobilenetv2_035", num_classes=3), "b", sample=torch.zeros(1, 3, 64, 64))
    assert isinstance(ours.features[0][1], InstanceNorm2d) and ours.train()(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    grey = ibn(offprint.create_model("mobilenetv2_035", num_classes=3, in_chans=1))
    assert sum(isinstance(m, IBN) for m in grey.modules()) == 13
    chain = ibn(torchvision.models.vgg11_bn(num_classes=3), sample=torch.zeros(1, 3, 64, 64))
    assert [n for n, m in chain.named_modules() if isinstance(m, IBN)] == [f"features.{i}" for i in (1, 5, 9, 16)]


def test_converting_refusals():
    import torchvision

    with pytest.raises(OffprintError, match="unknown kind of IBN"):
        ibn(torchvision.models.resnet18(), "c")
    with pytest.raises(OffprintError, match="no BatchNorm2d"):
        ibn(offprint.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)))
    with pytest.raises(OffprintError, match="kind='a'"):
        ibn(torchvision.models.vgg11_bn(), "b", sample=torch.zeros(1, 3, 64, 64))
    with pytest.raises(OffprintError, match="one resolution only"):
        ibn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), sample=torch.zeros(1, 3, 8, 8))

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x))))
            return x + y if y.sum() > 0 else x - y

    with pytest.raises(OffprintError, match="cannot see where Branching"):
        ibn(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Branching()), "b", sample=torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["resnet18_ibn_a", "resnet50_ibn_a", "densenet121_ibn_a", "resnet18_ibn_b"])
def test_deploy(name):
    small = {"depths": (1, 1, 1, 1)} | ({"growth": 8} if "dense" in name else {"widths": (8, 8, 16, 16)})
    model = randomised(offprint.create_model(name, num_classes=3, **small))
    for layout in FORMATS:
        x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
        fast = offprint.deploy(model, x).to(memory_format=layout)
        assert torch.allclose(fast(x), model(x), atol=1e-4)
        if "resnet" in name:
            assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_refusals():
    import torchvision

    with pytest.raises(CheckpointError, match="missing"):
        offprint.load_weights(offprint.create_model("resnet18_ibn_a"), torchvision.models.resnet18().state_dict())
    with pytest.raises(OffprintError, match="unknown kind of IBN"):
        offprint.create_model("resnet18_ibn_a", kind="c")
    with pytest.raises(OffprintError, match="DenseNet"):
        offprint.create_model("densenet121_ibn_a", kind="b")
    with pytest.raises(OffprintError, match="four stages"):
        offprint.create_model("resnet18_ibn_a", depths=(1, 1))
    with pytest.raises(OffprintError, match="bottleneck"):
        offprint.create_model("resnet18_ibn_a", groups=32)
    parallel = {f"module.{k}": v for k, v in offprint.create_model("resnet18_ibn_b").state_dict().items()}
    assert offprint.load_weights(offprint.create_model("resnet18_ibn_b"), parallel).loaded
