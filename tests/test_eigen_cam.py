"""Eigen-CAM: signs, batches, hooks, layers of any network, the peer's maps, localisation scores, bad input, the verb."""

import copy
import pickle
import sys

import numpy as np
import pytest
import pytorch_grad_cam as peer
import scipy.ndimage
import torch
from PIL import Image
from pytorch_grad_cam.utils.image import show_cam_on_image
from sklearn.decomposition import PCA, KernelPCA
from torch import nn
from typer.testing import CliRunner

import offprint
from offprint.cli import main as command
from offprint.errors import DataError, OffprintError
from offprint.methods.understanding import eigen_cam
from offprint.methods.understanding._layers import grid_transform, usual_layers
from offprint.methods.understanding.eigen_cam import (
    KPCACAM,
    METHODS,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    SegEigenCAM,
    box_from_map,
    box_iou,
    eigen_projection,
    kernel_projection,
    localisation,
    overlay,
    principal_component,
    scale_maps,
)


def features(n=2, c=5, h=6, w=7, seed=0):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """Two convolutions, an in-place ReLU after the second, classes from the mean."""

    def __init__(self, inplace=True, dims=2):
        super().__init__()
        torch.manual_seed(0)
        conv = (nn.Conv2d, nn.Conv3d)[dims - 2]
        self.one, self.two = conv(3, 8, 3, 2, 1), conv(8, 12, 3, 2, 1)
        self.relu, self.head = nn.ReLU(inplace), nn.Linear(12, 4)

    def forward(self, x):
        x = self.relu(self.two(torch.relu(self.one(x))))
        return self.head(x.flatten(2).mean(2))


class Dense(Small):
    """Class scores for every pixel."""

    def forward(self, x):
        x = self.relu(self.two(torch.relu(self.one(x))))
        return nn.functional.interpolate(self.head(x.movedim(1, -1)).movedim(-1, 1), scale_factor=4.0)


@pytest.fixture
def images():
    return torch.randn(3, 3, 24, 32, generator=torch.Generator().manual_seed(1))


# -- the projection ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (2, 60, 4, 5), (1, 40, 3, 2), (1, 1, 6, 6), (2, 5, 3, 4, 6)])
def test_projection_is_the_first_principal_component(shape):
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got, share, singular = principal_component(a)
    for i, image in enumerate(a):
        rows = image.flatten(1).T.double().numpy()
        pca = PCA(n_components=min(2, *rows.shape), svd_solver="full").fit(rows)
        np.testing.assert_allclose(np.abs(got[i].flatten()), np.abs(pca.transform(rows)[:, 0]), atol=1e-5)
        assert share[i] == pytest.approx(pca.explained_variance_ratio_[0], abs=1e-5)
        np.testing.assert_allclose(singular[i][: len(pca.singular_values_)], pca.singular_values_, atol=1e-4)


def test_sign_rules():
    a = features()
    for rule, wanted in {
        "max": lambda m, x: m.max() >= -m.min(),
        "sum": lambda m, x: m.sum() >= -1e-5,
        "mean": lambda m, x: (m * (x.mean(0) - x.mean())).sum() >= 0,
    }.items():
        for turned in (a, -a):
            got = eigen_projection(turned, sign=rule)
            assert all(wanted(m, x) for m, x in zip(got, turned, strict=True)), rule
    lapack = eigen_projection(a, sign="lapack")
    assert torch.allclose(lapack.abs(), eigen_projection(a).abs(), atol=1e-5)


def test_not_centred_is_the_papers_formula():
    a = features()
    got = eigen_projection(a, center=False)
    for m, x in zip(got, a, strict=True):
        rows = x.flatten(1).T.numpy()
        _, _, vt = np.linalg.svd(rows)
        np.testing.assert_allclose(
            m.flatten(), np.abs(rows @ vt[0]), atol=1e-5
        )  # features of one sign: the map has one
    assert (got > 0).all()


def test_missing_values_count_as_zero():
    a = features()
    a[0, 0, 0, 0] = float("nan")
    assert torch.allclose(eigen_projection(a), eigen_projection(a.nan_to_num(0)))
    a[0, 0, 0, 0] = float("inf")
    with pytest.raises(OffprintError, match="infinite"):
        eigen_projection(a)


@pytest.mark.parametrize("kernel", ["linear", "poly", "rbf", "sigmoid", "cosine"])
def test_kernels_against_scikit_learn(kernel):
    a = features()
    got, share = kernel_projection(a, kernel=kernel)
    for m, x in zip(got, a, strict=True):
        rows = x.flatten(1).T.double().numpy()
        expected = KernelPCA(1, kernel=kernel).fit_transform(rows - rows.mean(0))[:, 0]
        np.testing.assert_allclose(np.abs(m.flatten()), np.abs(expected), atol=1e-5)
    assert ((share > 0) & (share <= 1)).all()
    if kernel == "linear":
        assert torch.allclose(got, eigen_projection(a), atol=1e-5)


def test_constant_activations_give_zeros():
    assert (scale_maps(eigen_projection(torch.ones(2, 3, 4, 4))) == 0).all()
    net = Small().eval()
    nn.init.zeros_(net.two.weight)
    for name, method in METHODS.items():
        assert (method(net, "two")(torch.randn(2, 3, 16, 16)) == 0).all(), name


def test_each_image_is_its_own(images):
    for method in METHODS.values():
        cam = method(Small().eval(), ["one", "two"])
        whole, alone = cam(images), torch.cat([cam(x[None]) for x in images])
        assert torch.allclose(whole, alone, atol=1e-5)


def test_resize_and_scale():
    maps = torch.rand(2, 3, 4)
    got = scale_maps(maps, (6, 8))
    assert got.shape == (2, 6, 8) and got.amin() >= 0 and got.amax() <= 1
    volume = torch.rand(1, 2, 3, 4)
    low = volume - volume.min()
    expected = scipy.ndimage.zoom((low / (1e-7 + low.max()))[0].numpy(), 2)
    np.testing.assert_allclose(scale_maps(volume, (4, 6, 8))[0], expected, atol=1e-6)


# -- against the implementation in general use ------------------------------------------------------------------------
PEERS = {
    "eigen-cam": peer.EigenCAM,
    "eigen-grad-cam": peer.EigenGradCAM,
    "seg-eigen-cam": peer.SegEigenCAM,
    "grad-cam": peer.GradCAM,
    "grad-cam-plus-plus": peer.GradCAMPlusPlus,
}


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", PEERS)
def test_same_maps_as_the_peer(name, smooth, images):
    net = Small(inplace=False).eval()
    options = {"sign": "lapack"} if name in ("eigen-cam", "eigen-grad-cam") else {}
    got = METHODS[name](net, ["one", "two"], **options)(images, aug_smooth=smooth)
    expected = PEERS[name](net, [net.one, net.two])(images.clone(), None, aug_smooth=smooth)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_kernel_maps_are_the_peers_up_to_sign(images):
    net = Small(inplace=False).eval()
    projection = KPCACAM(net, "two").explain(images).projections[0]
    either = [scale_maps(scale_maps(p.clamp(min=0), (24, 32))).numpy() for p in (projection, -projection)]
    expected = peer.KPCA_CAM(net, [net.two])(images.clone(), None)
    assert all(min(np.abs(m[i] - e).max() for m in either) < 1e-4 for i, e in enumerate(expected))


@pytest.mark.parametrize("name", ["grad-cam", "grad-cam-plus-plus"])
def test_eigen_smooth_projects_the_weighted_activations(name, images):
    net = Small(inplace=False).eval()
    got = METHODS[name](net, "two").explain(images, eigen_smooth=True)
    module = PEERS[name](net, [net.two])
    module(images.clone(), None)
    kept, slopes = (
        x[0].numpy() for x in (module.activations_and_grads.activations, module.activations_and_grads.gradients)
    )
    weights = module.get_cam_weights(images, [net.two], None, kept, slopes)
    expected = eigen_projection(torch.from_numpy(weights[:, :, None, None] * kept))
    assert torch.allclose(got.projections[0], expected, atol=1e-5)
    assert len(got.explained) == len(got.singular_values) == 1


def test_volumes(images):
    net = Small(inplace=False, dims=3).eval()
    x = torch.randn(2, 3, 16, 16, 16)
    expected = peer.EigenCAM(net, [net.two])(x.clone(), None)
    got = EigenCAM(net, "two", sign="lapack")(x)
    assert got.shape == (2, 16, 16, 16)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert EigenCAM(net)(torch.randn(1, 3, 8, 12, 16)).shape == (1, 8, 12, 16)


def test_overlay_against_the_peer():
    draw = np.random.default_rng(0)
    image, cam = draw.random((9, 8, 3), dtype=np.float32), draw.random((9, 8), dtype=np.float32)
    for weight in (0.5, 0.2):
        expected = show_cam_on_image(image, cam, use_rgb=True, image_weight=weight)
        assert np.abs(overlay(image, cam, weight).astype(int) - expected).max() <= 1
    assert (overlay(image.transpose(2, 0, 1), cam) == overlay(image, cam)).all()


# -- hooks, modes, gradients --------------------------------------------------------------------------------------------
def test_an_in_place_relu_after_the_layer_does_not_reach_the_map(images):
    for method in METHODS.values():
        assert torch.equal(method(Small(True).eval(), "two")(images), method(Small(False).eval(), "two")(images))


def test_nothing_stays_behind(images):
    net = Small()
    net.train(), net.head.eval()
    net.requires_grad_(False)
    net.two.requires_grad_(True)
    modes = [m.training for m in net.modules()]
    for method in METHODS.values():
        method(net, "one")(images)
        method(net)(images)
        with pytest.raises(OffprintError):
            method(net, "head")(images)
        with pytest.raises(RuntimeError):
            method(net, "one")(images[:, :2])
    assert [m.training for m in net.modules()] == modes
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_works_inside_inference_mode_and_with_frozen_weights(images):
    net = Small().eval().requires_grad_(False)
    expected = GradCAM(net, "two")(images)
    with torch.inference_mode():
        assert torch.allclose(GradCAM(net, "two")(images + 0), expected)
    assert expected.amax() > 0


def test_half_precision_copies_and_pickles(images):
    cam = EigenCAM(Small().eval(), "two")
    expected = cam(images)
    assert torch.equal(copy.deepcopy(cam)(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(cam))(images), expected)
    low = cam.to(torch.bfloat16).explain(images.bfloat16())
    assert low.maps.dtype == torch.float32 and (low.maps - expected).abs().mean() < 0.05


def test_the_class_matters_only_where_gradients_do(images):
    net = Small().eval()
    for method in METHODS.values():
        one, other = (method(net, "two")(images, c) for c in (0, 1))
        assert torch.equal(one, other) != method.uses_gradients
    cam = GradCAM(net, "two")
    assert torch.allclose(cam(images, [0, 1, 2]), cam(images, torch.tensor([0, 1, 2])))
    assert torch.allclose(cam(images), cam(images, net(images).argmax(1)))
    assert torch.allclose(cam(images, 2), cam(images, lambda scores: scores[2]))
    assert torch.allclose(cam(images, np.int64(2)), cam(images, [2, 2, 2]))


def test_segmentation_scores(images):
    """The score is the class's sum over the pixels predicted as it; the default class is that of most pixels."""
    net = Dense().eval()
    labels = net(images).argmax(1)
    top = labels.flatten(1).mode(1).values.tolist()
    cam = SegEigenCAM(net, "two")
    masked = [lambda row, t=t: (row[t] * (row.argmax(0) == t)).sum() for t in top]
    assert torch.allclose(cam(images), cam(images, masked))
    assert cam(images).amax() > 0

    class Named(Dense):
        def forward(self, x):
            return {"aux": torch.zeros(1), "out": super().forward(x)}

    assert torch.allclose(SegEigenCAM(Named().eval(), "two")(images), cam(images))


# -- layers of any network ----------------------------------------------------------------------------------------------
NETWORKS = {
    "torchvision/resnet18": ("layer4.1", (3, 4)),
    "torchvision/densenet121": ("features.norm5", (3, 4)),
    "torchvision/mobilenet_v3_small": ("features.12", (3, 4)),
    "torchvision/shufflenet_v2_x0_5": ("conv5", (3, 4)),
    "torchvision/swin_t": ("features.7", (3, 4)),
    "torchvision/lraspp_mobilenet_v3_large": ("backbone.16", (6, 8)),
    "timm/efficientnet_b0": ("bn2", (3, 4)),
    "timm/pvt_v2_b0": ("stages.3", (3, 4)),
    "torchvision/fcn_resnet50": ("backbone.layer4.2", (12, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_finds_the_layer_of_any_network(name):
    layer, grid = NETWORKS[name]
    torch.manual_seed(0)
    seen = EigenCAM(name).explain(torch.randn(1, 3, 96, 128))
    assert seen.layers == [layer] and seen.projections[0].shape == (1, *grid) and seen.maps.shape == (1, 96, 128)


def test_finds_the_tokens_of_transformers():
    import timm
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    vit = timm.create_model("deit_tiny_distilled_patch16_224", img_size=(96, 128), depth=2)
    seen = GradCAM(vit).explain(torch.randn(2, 3, 96, 128))
    assert seen.layers == ["blocks.1.norm1"] and seen.projections[0].shape == (2, 6, 8) and seen.maps.amax() > 0
    tv = VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)
    seen = EigenCAM(tv).explain(torch.randn(2, 3, 64, 64))
    assert seen.layers == ["encoder.layers.encoder_layer_1.ln_1"] and seen.projections[0].shape == (2, 4, 4)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1, 1, 1), embed_dim=24
    )
    seen = EigenCAM(swin).explain(torch.randn(2, 3, 64, 64))
    assert seen.layers == ["layers.3.blocks.0.norm2"] and seen.projections[0].shape == (2, 2, 2)


def test_reshape_transform_is_what_the_user_would_write():
    import timm

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    x = torch.randn(2, 3, 64, 64)

    def grid(tokens):
        return tokens[:, 1:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    assert torch.equal(EigenCAM(vit, "blocks.1.norm1", reshape_transform=grid)(x), EigenCAM(vit, "blocks.1.norm1")(x))
    with pytest.raises(OffprintError, match=r"maps of shape \(2, 192, 16\)"):
        EigenCAM(vit, "blocks.1.norm1", reshape_transform=lambda t: t[:, 1:].transpose(1, 2))(x)


def test_our_own_backbone_and_small_images():
    """At 32 pixels the last stage is a single pixel, whose map would be all zero: an earlier one is taken."""
    net = offprint.create_model("convnext_tiny", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    cam = EigenCAM(net)
    assert cam.explain(torch.randn(1, 3, 64, 96)).layers == ["stages.3.0"]
    small = cam.explain(torch.randn(1, 3, 32, 32))
    assert small.projections[0].shape == (1, 2, 2) and small.maps.amax() > 0.99
    assert EigenCAM(nn.Sequential(net)).explain(torch.randn(1, 3, 64, 96)).layers == ["0.stages.3.0"]
    named = EigenCAM(net, [net.stages[0][0], "stages.1.0"]).explain(torch.randn(1, 3, 64, 64))
    assert named.layers == ["stages.0.0", "stages.1.0"] and len(named.projections) == len(named.explained) == 2
    assert usual_layers(nn.ReLU()) == []


@pytest.mark.parametrize(
    ("shape", "size", "module", "grid"),
    [
        ((2, 8, 3, 4), (96, 128), nn.Identity(), (8, 3, 4)),
        ((2, 3, 4, 8), (96, 128), nn.Identity(), (8, 3, 4)),
        ((2, 7, 7, 49), (224, 224), nn.LayerNorm(49), (49, 7, 7)),
        ((2, 7, 7, 7), (224, 224), nn.Identity(), (7, 7, 7)),
        ((2, 13 * 17, 6), (200, 264), nn.Identity(), (6, 13, 17)),  # ragged: stride 16 rounds up
        ((2, 5 + 48, 6), (96, 128), nn.Identity(), (6, 6, 8)),  # class and four register tokens
        ((1, 1 + 27, 6), (48, 48, 48), nn.Identity(), (6, 3, 3, 3)),
        ((1, 6, 3, 3, 3), (48, 48, 48), nn.Identity(), (6, 3, 3, 3)),
    ],
)
def test_outputs_on_a_grid(shape, size, module, grid):
    out = torch.randn(shape)
    assert grid_transform(out, size, module, nn.Identity(), "x")(out).shape == (shape[0], *grid)


# -- localisation -------------------------------------------------------------------------------------------------------
def test_boxes_and_scores():
    cam = np.zeros((10, 12))
    cam[2:5, 3:7] = 1
    cam[8, 10] = 0.9
    assert box_from_map(cam) == (3, 2, 7, 5)
    assert box_from_map(cam, threshold=0.95) == (3, 2, 7, 5)
    assert box_from_map(np.zeros((4, 4))) is None
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == box_iou(None, (0, 0, 1, 1)) == 0
    scores = localisation(cam[None], [(3, 2, 7, 5)])
    assert scores == {"pointing": 1, "energy": pytest.approx(12 / 12.9), "iou": 1, "correct": 1}
    assert localisation(torch.zeros(1, 4, 4), [(0, 0, 2, 2)]) == {"pointing": 0, "energy": 0, "iou": 0, "correct": 0}


# -- bad input ------------------------------------------------------------------------------------------------------------
class Frozen(Small):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Tuples(Small):
    def __init__(self):
        super().__init__()
        self.pair = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x):
        return super().forward(self.pair(x)[0])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: EigenCAM(Small(), "tow"), "unknown layer of Small 'tow'; nearest: two"),
        (lambda x: EigenCAM(Small(), []), "layers is empty"),
        (lambda x: EigenCAM(Small(), nn.ReLU()), "ReLU given as a layer is not part of Small"),
        (lambda x: EigenCAM(Small(), "two", sign="up"), "unknown sign rule 'up'"),
        (lambda x: KPCACAM(Small(), "two", kernel="quadratic"), "unknown kernel"),
        (lambda x: KPCACAM(Small(), "two", sign="lapack")(x), "unknown sign rule of kernel PCA"),
        (lambda x: EigenCAM("torchvision/resnet81"), "unknown torchvision model"),
        (lambda x: EigenCAM("timm/resnet81"), "unknown timm model"),
        (lambda x: EigenCAM("keras/resnet18"), "unknown library"),
        (lambda x: EigenCAM("convnxt_tiny"), "convnext_tiny"),
        (lambda x: EigenCAM(Small())(x[0]), r"images \(N, C, H, W\).*\(3, 24, 32\)"),
        (lambda x: EigenCAM(Small())(x[:0]), r"\(0, 3, 24, 32\)"),
        (lambda x: EigenCAM(Small())(x.numpy()), "a ndarray was given"),
        (lambda x: EigenCAM(Small(), "head")(x), "not a map"),
        (lambda x: EigenCAM(Tuples(), "pair")(x), "gives a tuple, not a map"),
        (lambda x: EigenCAM(nn.Linear(32, 4))(x), "has no layer with a map"),
        (lambda x: EigenCAM(nn.Sequential(nn.Flatten(), nn.Linear(24 * 32 * 3, 4)))(x), "has no layer with a map"),
        (
            lambda x: GradCAM(Small(), "two")(x, 4),
            "target 4 is not one of the 4 classes; give a whole number from 0 to 3",
        ),
        (lambda x: GradCAM(Small(), "two")(x, -1), "target -1"),
        (lambda x: GradCAM(Small(), "two")(x, [0.5, 1, 2]), "target 0.5"),
        (lambda x: GradCAM(Small(), "two")(x, [0, 1]), "2 targets were given for 3 images"),
        (lambda x: GradCAM(Small().one, "")(x), "unknown layer"),
        (lambda x: GradCAM(Frozen(), "two")(x), "has no gradient"),
        (lambda x: principal_component(torch.zeros(2, 3)), r"activations \(N, C, \*grid\)"),
        (lambda x: principal_component(features(), sign="x"), "unknown sign rule"),
        (lambda x: overlay(np.zeros((4, 4, 3)), np.zeros((4, 5))), r"\(4, 5, 3\), is needed"),
        (lambda x: overlay(np.full((4, 4, 3), 255.0), np.zeros((4, 4))), r"image in \[0, 1\]"),
        (lambda x: overlay(np.zeros((4, 4, 3)), np.zeros((4, 4)), 2), "image_weight"),
        (lambda x: box_from_map(np.zeros((1, 4, 4))), "one map"),
        (lambda x: localisation(np.zeros((2, 4, 4)), [(0, 0, 1, 1)]), "one box per map"),
    ],
)
def test_bad_input(call, says, images):
    with pytest.raises(OffprintError, match=says):
        call(images)


def test_a_layer_beside_the_way_to_the_score_is_refused(images):
    class Branch(Small):
        def forward(self, x):
            self.one(x)
            return self.head(x.mean((2, 3)).repeat(1, 4))

    with pytest.raises(OffprintError, match="does not influence the score"):
        GradCAM(Branch(), "one")(images)
    with pytest.raises(OffprintError, match="'two' did not run"):
        GradCAM(Branch(), "two")(images)


# -- the verb -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A training run of one epoch on a folder of a few pictures."""
    from offprint.tasks.classification import train_classifier

    folder = tmp_path_factory.mktemp("explain")
    draw = np.random.default_rng(0)
    for i in range(8):
        for name in ("cat", "dog"):
            (folder / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(
                folder / "data" / name / f"{i}.png"
            )
    train_classifier(
        "convnext_tiny", str(folder / "data"), folder / "run", progress=False, logger="none", accelerator="cpu",
        overrides={"epochs": 1, "batch_size": 4, "input_size": 64},
        model_options={"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    )  # fmt: skip
    return folder


def invoke(*arguments):
    return CliRunner().invoke(command.app, ["explain", *map(str, arguments)])


@pytest.mark.parametrize("method", METHODS)
def test_verb(run_folder, tmp_path, method):
    picture = run_folder / "data" / "cat" / "0.png"
    out = tmp_path / "out.png"
    result = invoke(picture, "-m", run_folder / "run", "--method", method, "--target", "dog", "--out", out)
    assert result.exit_code == 0, result.output
    assert "out.png" in result.output
    with Image.open(out) as written:  # the centre crop that the network saw, 64 of 73 pixels of the short side
        assert written.size == (35, 35)


def test_verb_with_a_named_model_and_options(run_folder, tmp_path):
    weights = tmp_path / "w.safetensors"
    offprint.save_weights(offprint.create_model("convnext_tiny"), weights)
    picture = tmp_path / "p.png"
    Image.new("L", (60, 50), 128).save(picture)
    result = invoke(
        picture, "-m", "convnext_tiny", "--checkpoint", weights, "--layer", "stages.2.8", "--layer", "stages.3.2"
    )
    assert result.exit_code == 0 and (tmp_path / "p_eigen-cam.png").is_file(), result.output
    result = invoke(picture, "-m", run_folder / "run", "--method", "grad-cam", "--aug-smooth", "--eigen-smooth")
    assert result.exit_code == 0 and (tmp_path / "p_grad-cam.png").is_file(), result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("{run}/../data/cat/0.png", "-m", "{run}", "--method", "eigencam"),
            "unknown method 'eigencam'; nearest: eigen-cam",
        ),
        (("{run}/no.png", "-m", "{run}"), "cannot read the picture"),
        (("{run}/settings.json", "-m", "{run}"), "cannot read the picture"),
        (("{run}/../data/cat/0.png", "-m", "{run}", "--layer", "stages.9"), "unknown layer of ConvNeXt 'stages.9'"),
        (("{run}/../data/cat/0.png", "-m", "{run}", "--method", "grad-cam", "--target", "cow"), "unknown class 'cow'"),
        (
            ("{run}/../data/cat/0.png", "-m", "{run}", "--method", "grad-cam", "--target", "2"),
            "target 2 is not one of the 2",
        ),
        (("{run}/../data/cat/0.png", "-m", "convnext_tiny"), "random weights"),
    ],
)
def test_verb_refuses(run_folder, monkeypatch, capsys, arguments, says):
    given = [a.format(run=run_folder / "run") for a in arguments]
    monkeypatch.setattr(sys, "argv", ["offprint", "explain", *given])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())
    with pytest.raises((OffprintError, DataError)):
        raise invoke(*given).exception


def test_public_names():
    assert set(METHODS.values()) == {EigenCAM, EigenGradCAM, SegEigenCAM, KPCACAM, GradCAM, GradCAMPlusPlus}
    assert all(hasattr(eigen_cam, name) for name in eigen_cam.__all__)
