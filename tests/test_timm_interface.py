"""timm's interface over every backbone, in the manner of timm's own model tests: what code written for timm asks of a model."""

import copy
import math

import pytest
import timm
import torch
from test_models import SMALL
from timm.data import resolve_data_config
from timm.models import FeatureInfo
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_with_matcher
from timm.optim import param_groups_layer_decay

import offprint
from offprint.errors import OffprintError
from offprint.models.layer_decay import layer_decay_groups

SIDE = 64


def made(name, **kwargs):
    torch.manual_seed(0)
    return offprint.create_model(name, **{**SMALL[name], "num_classes": 7, **kwargs}).eval()


@pytest.fixture(params=sorted(SMALL))
def name(request):
    return request.param


@pytest.fixture
def x():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_forward_and_backward(name, x):
    model = made(name).train()
    assert model(x).shape == (2, 7)
    model(x).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_only_and_out_indices(name, x):
    model = made(name, num_classes=None, features_only=True)
    maps, info = model(x), model.feature_info
    assert [m.shape[1] for m in maps] == info.channels() and len(info) == len(maps)
    for m, stride in zip(maps, info.reduction(), strict=True):
        assert all(s <= math.ceil(SIDE / stride) + 1 for s in m.shape[2:])
    assert all(dict(model.named_modules())[m] is not None for m in info.module_name())
    last = made(name, num_classes=None, features_only=True, out_indices=(-1,))
    assert last.feature_info.channels() == [maps[-1].shape[1]] == [last.num_features]
    assert last.feature_info[0]["index"] == len(maps) - 1 and last.feature_info.channels(0) == info.channels()[0]
    assert torch.equal(model.forward_features(x), maps[-1])


def test_forward_intermediates(name, x):
    model = made(name)
    info = FeatureInfo(model.feature_info, len(model.feature_info))  # timm's own reads ours
    features, maps = model.forward_intermediates(x)
    assert [m.shape[1] for m in maps] == info.channels() == model.feature_info.channels()
    assert torch.equal(features, model.forward_features(x))
    assert all(torch.equal(a, b) for a, b in zip(maps, model.forward_pyramid(x), strict=True))
    n = len(maps)
    for indices, expected in ((1, maps[-1:]), ([0, -1], [maps[0], maps[-1]] if n > 1 else maps), (None, maps)):
        got = model.forward_intermediates(x, indices, intermediates_only=True)
        if n > 1 or indices is None or isinstance(indices, int):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    early, first = model.forward_intermediates(x, [0], stop_early=True)
    assert torch.equal(first[0], maps[0]) and early.shape[-2:] == first[0].shape[-2:]
    normed = model.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0]
    assert normed.shape == maps[-1].shape
    extractor = made(name, num_classes=None, features_only=True)
    again = extractor.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(again, extractor(x), strict=True))
    with pytest.raises(OffprintError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")
    with pytest.raises(OffprintError, match="is not among"):
        model.forward_intermediates(x, n + 1)


def test_prune_intermediate_layers(name, x):
    whole = made(name)
    maps = whole.forward_intermediates(x, intermediates_only=True)
    for k in range(len(maps)):
        model = made(name)
        assert model.prune_intermediate_layers([k]) == [k]
        got = model.forward_intermediates(x, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(got, maps[: k + 1], strict=True))
        assert model.feature_info.channels() == whole.feature_info.channels()[: k + 1]
        if k < len(maps) - 1:
            assert model(x).shape == maps[k].shape and model.num_features == model.head_hidden_size == maps[k].shape[1]
            model.train()(x).mean().backward()  # nothing is left that takes no part
            assert all(p.grad is not None for p in model.parameters())
            model.layer_index("head.weight")
        else:
            assert model.num_classes == 0 and model(x).ndim == model.forward_features(x).ndim > 2


def test_features_and_heads(name, x):
    model = made(name)
    features = model.forward_features(x)
    assert features.shape[1 if features.ndim == 4 else -1] == model.num_features  # a map, or tokens
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), torch.nn.Linear) and model.get_classifier().out_features == 7
    model.reset_classifier(0)
    assert torch.equal(model(x), before) and model.num_classes == 0
    model.reset_classifier(0, "")
    tokens = features.ndim == 3  # which are left as they are; a map may be widened before the classifier
    assert model(x).shape == (features.shape if tokens else (2, model.head_hidden_size, *features.shape[2:]))
    unpooled = made(name, num_classes=0, global_pool="")
    assert unpooled(x).shape == model(x).shape and unpooled.num_classes == 0
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)
    with pytest.raises(OffprintError, match="num_classes=0"):
        model.reset_classifier(5, "")
    with pytest.raises(OffprintError, match="'avg'"):
        model.reset_classifier(5, "catavgmax")


def test_dropout_before_the_classifier(name, x):
    model = made(name, drop_rate=0.9)
    assert model.drop_rate == 0.9 and torch.equal(model(x), made(name)(x))
    features = model.forward_features(x)
    model.drop_rate, off = 0.5, made(name, drop_rate=0)
    torch.manual_seed(0)
    dropped = model.train().forward_head(features)
    assert not torch.equal(dropped, off.train().forward_head(features))
    with pytest.raises(OffprintError, match="drop_rate=1"):
        made(name, drop_rate=1.0)


KEYS = {"url", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "num_classes", "pool_size", "first_conv",
        "classifier", "architecture", "tag", "license", "min_input_size", "fixed_input_size"}  # fmt: skip


def test_default_cfg(name):
    model = made(name, num_classes=None)
    cfg, state = model.default_cfg, model.state_dict()
    assert set(cfg) >= KEYS and cfg == model.pretrained_cfg
    assert f"{cfg['first_conv']}.weight" in state and f"{cfg['classifier']}.weight" in state
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0]
    assert len(state[f"{cfg['classifier']}.weight"]) == model.num_classes == cfg["num_classes"]
    asked = resolve_data_config(model=model)
    assert asked["mean"] == cfg["mean"] and asked["input_size"] == cfg["input_size"]
    assert asked["interpolation"] == cfg["interpolation"] and asked["crop_pct"] == cfg["crop_pct"]
    if max(cfg["input_size"]) <= 256:
        with torch.no_grad():
            features = model.forward_features(torch.randn(1, *cfg["input_size"]))
        sides = tuple(features.shape[2:]) if features.ndim == 4 else cfg["pool_size"]
        assert sides == cfg["pool_size"] and (features.ndim == 4 or features.shape[1] == 1 + math.prod(sides))


def test_copies_and_checkpointing(name, x):
    model = made(name)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(copy.deepcopy(model).forward_intermediates(x)[0], model.forward_features(x))
    model.train()
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        _, maps = model.forward_intermediates(x)
        sum(m.square().mean() for m in maps).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("some", ["convnext_tiny", "densenet121_ibn_a", "nasnet_a_cifar", "swin_tiny"])
def test_a_map_exports(some, x):
    unpooled = made(some, num_classes=0, global_pool="")
    program = torch.export.export(unpooled, (x,), strict=False).module()
    assert torch.allclose(program(x), unpooled(x), atol=1e-5)


def test_groups_by_depth(name):
    model = made(name)
    names = [n for n, _ in model.named_parameters()]
    layers = {n: model.layer_index(n) for n in names}
    assert set(layers.values()) == set(range(model.num_layers + 2))
    assert all(layers[f"{n}.weight"] == 0 for n in model.input_layers if f"{n}.weight" in layers)
    assert layers[f"{model.classifier}.weight"] == model.num_layers + 1
    assert model.no_weight_decay() <= set(names)
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g["params"]}
    ours = {id(p): g["lr_scale"] for g in layer_decay_groups(model, 1.0, 0.05, 0.5) for p in g["params"]}
    assert ours == theirs
    coarse = group_with_matcher(model.named_parameters(), model.group_matcher(coarse=True))
    assert 1 <= len(coarse) <= len(model.feature_info) + 1
    torch.optim.AdamW(layer_decay_groups(model, 1e-3, 0.05, 0.8))


def test_timm_wraps_it(name, x):
    """timm's own extractor prunes the model and asks it for its maps."""
    n = len(made(name).feature_info)
    wanted = tuple(range(max(1, n - 1)))
    got = FeatureGetterNet(made(name), out_indices=wanted)(x)
    expected = made(name).forward_intermediates(x, list(wanted), intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# -- single models ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("convnext_tiny", "convnext_tiny"), ("ghostnetv2_100", "ghostnetv2_100"), ("mobilenetv2_035", "mobilenetv2_035")],
)
def test_equal_to_timm(ours, theirs):
    """The same weights give timm's maps, and timm's map without a pooling."""
    x = torch.randn(1, 3, 64, 64)
    peer = timm.create_model(theirs, num_classes=3).eval()
    model = offprint.create_model(ours, num_classes=3).eval()
    offprint.load_weights(model, peer.state_dict())
    assert (model.num_features, model.head_hidden_size) == (peer.num_features, peer.head_hidden_size)
    for m in (model, peer):
        m.reset_classifier(0, "")
    assert torch.allclose(model(x), peer(x), atol=1e-4)
    if ours == "convnext_tiny":
        for indices in (None, 2, [0, -1]):
            a, b = (m.forward_intermediates(x, indices) for m in (model, peer))
            assert torch.allclose(a[0], b[0], atol=1e-4)
            assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(a[1], b[1], strict=True))


def test_default_cfg_of_a_release():
    model = offprint.create_model("convnext_tiny", **SMALL["convnext_tiny"])
    release = offprint.api.entry("convnext_tiny").release()
    assert model.pretrained_cfg["url"] == release.url and model.pretrained_cfg["tag"] == "in1k"
    assert model.pretrained_cfg["license"] == "mit"
    model.__dict__["spec"]["weights"] = "timm_in12k_ft_in1k_384"
    cfg = model.pretrained_cfg
    assert (cfg["hf_hub_id"], cfg["url"], cfg["source"]) == ("timm/convnext_tiny.in12k_ft_in1k_384", "", "hf-hub")
    assert cfg["input_size"] == (3, 384, 384) and cfg["pool_size"] == (12, 12) and cfg["crop_mode"] == "squash"


def test_pool_sizes_of_the_papers():
    """Without computing anything: at the papers' own sizes."""
    sizes = {"inception_v4": (299, 8), "nasnet_a_mobile": (224, 7), "swin_tiny": (224, 7), "halonet_h3": (320, 10)}
    for name, (side, expected) in sizes.items():
        with torch.device("meta"):
            model = offprint.create_model(name)
        assert model.map_size(side, side) == (expected, expected)


def test_layers_of_the_papers():
    for name, layers in (
        ("convnext_tiny", 6),
        ("convnext_small", 12),
        ("hornet_tiny_7x7", 12),
        ("swin_tiny", 12),
        ("swin_small", 24),
    ):
        with torch.device("meta"):
            assert offprint.create_model(name).num_layers == layers
    with torch.device("meta"):
        model = offprint.create_model("convnext_small")
    where = {"stages.2.2.gamma": 3, "stages.2.3.dwconv.weight": 4, "stages.2.26.norm.weight": 11, "stages.3.0.gamma": 12,
             "downsample_layers.3.1.weight": 12, "downsample_layers.2.0.bias": 3, "norm.weight": 13}  # fmt: skip
    assert {n: model.layer_index(n) for n in where} == where
    groups = layer_decay_groups(model, 5e-5, 1e-8, 0.7)
    assert len(groups) == 28 and groups[0]["lr"] == pytest.approx(5e-5 * 0.7**13) and groups[-1]["lr"] == 5e-5
    with pytest.raises(OffprintError, match="at most 1"):
        layer_decay_groups(model, 1.0, 0.0, 1.5)


def test_layers_of_a_model_around_a_backbone():
    from offprint.models.backbones.swin_v2 import SimMIM

    encoder = made("swin_tiny", num_classes=0)
    model = SimMIM(encoder)
    of = {id(p): g for g in layer_decay_groups(model, 1.0, 0.05, 0.5) for p in g["params"]}
    assert set(of) == {id(p) for p in model.parameters()}
    assert of[id(encoder.mask_token)]["layer"] == 0 and of[id(encoder.mask_token)]["weight_decay"] == 0
    assert of[id(model.decoder[0].weight)]["layer"] == encoder.num_layers + 1
    encoder.patch_embed.requires_grad_(False)
    assert id(encoder.patch_embed.proj.weight) not in {
        id(p) for g in layer_decay_groups(model, 1.0, 0.05, 0.5) for p in g["params"]
    }
    with pytest.raises(OffprintError, match="holds no backbone"):
        layer_decay_groups(torch.nn.Linear(3, 3), 1.0, 0.05, 0.5)


def test_pruning_the_norm_keeps_the_last_map():
    model, x = made("swin_tiny"), torch.randn(1, 3, SIDE, SIDE)
    raw, normed = (model.forward_intermediates(x, 1, norm=n, intermediates_only=True)[0] for n in (False, True))
    assert torch.equal(normed, model.forward_features(x)) and not torch.equal(raw, normed)
    model.prune_intermediate_layers(1, prune_norm=True)
    assert torch.equal(model(x), raw) and not hasattr(model, "norm")


def test_pooling_and_dropout_survive_saving(tmp_path):
    from offprint.models.hub import from_pretrained, save_pretrained

    model = offprint.create_model(
        "convnext_tiny", **SMALL["convnext_tiny"], num_classes=0, global_pool="", drop_rate=0.25
    )
    save_pretrained(model, tmp_path / "m")
    again = from_pretrained(str(tmp_path / "m"))
    assert (again.global_pool, again.drop_rate) == ("", 0.25)
    with pytest.raises(OffprintError, match="num_classes=0"):
        offprint.create_model("convnext_tiny", global_pool="")
