"""CFSR: two forms that compute the same, files in either, pictures of any size, the metrics."""

import numpy as np
import pytest
import torch
from PIL import Image

import offprint
from offprint.data.photos import photographs, set5
from offprint.data.resize import bicubic
from offprint.errors import OffprintError
from offprint.models.signals.cfsr import EFN, MASKS
from offprint.tasks.restoration import enlarge, psnr, ssim, train_restoration, upscale


def small(scale=2, **kwargs):
    torch.manual_seed(0)
    model = offprint.create_model(f"cfsr_x{scale}", embed_dim=8, depths=(1, 1), **kwargs)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "scale_" in name or name.endswith("_bias"):
                p.copy_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_deploying_keeps_the_output(scale):
    model, x = small(scale), torch.rand(2, 3, 13, 18)
    with pytest.raises(OffprintError, match="training mode"):
        offprint.deploy(model.train())
    merged = offprint.deploy(model.eval())
    assert torch.allclose(merged(x), model(x), atol=1e-5) and merged(x).shape == (2, 3, 13 * scale, 18 * scale)
    assert offprint.deploy(merged) is merged
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(m.deploy for m in merged.modules() if isinstance(m, EFN))
    assert not any(m.deploy for m in model.modules() if isinstance(m, EFN))


def test_merging_equals_the_branches_computed_one_by_one():
    """Eq. of Sec. III-C with one convolution per branch, against the one kernel that both forms compute with."""
    efn, x = small().layers[0].blocks[0].mlp.double(), torch.randn(2, 8, 11, 13, dtype=torch.float64)
    with torch.no_grad():
        y = torch.nn.functional.gelu(efn.fc1(efn.norm(x)))
        hidden = y.shape[1]
        edges = efn.pos(y)
        for name, mask in MASKS.items():
            fixed = torch.tensor(mask, dtype=torch.float64).expand(hidden, 1, 3, 3)
            branch = torch.nn.functional.conv2d(y, fixed, padding=1, groups=hidden)
            edges = edges + getattr(efn, f"scale_{name}")[:, 0] * branch + getattr(efn, f"{name}_bias")[:, None, None]
        expected = efn.fc2(y + torch.nn.functional.gelu(edges))
        assert torch.allclose(efn(x), expected, atol=1e-12)
        plain = efn.fc2(y + torch.nn.functional.gelu(efn.pos(y)))
        assert (plain - expected).abs().max() > 0.1  # the branches are no small matter here
        efn.merge()
        assert torch.allclose(efn(x), expected, atol=1e-12)


def test_the_merged_form_is_idempotent_and_trains_on():
    model = small().eval()
    model.merge()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.merge()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.train()(torch.rand(1, 3, 8, 8)).mean().backward()


def test_either_file_loads_into_either_form():
    source, x = small().eval(), torch.rand(1, 3, 9, 9)
    expected = source(x)
    merged = offprint.deploy(source)
    for state in (source.state_dict(), merged.state_dict()):
        for deploy in (False, True):
            target = small(deploy=deploy).eval()
            offprint.load_weights(target, {"params": state})
            assert torch.allclose(target(x), expected, atol=1e-5)


def test_masks_are_fixed_and_the_branches_learn():
    model = small()
    model(torch.rand(1, 3, 8, 8)).square().mean().backward()
    efn = model.layers[0].blocks[0].mlp
    assert (
        efn.scale_sobel_x.grad.abs().sum() > 0 and efn.mask_sobel_x.grad is None and not efn.mask_sobel_x.requires_grad
    )


def test_restoration_form_and_refusals():
    x = torch.rand(1, 1, 10, 12)
    assert offprint.create_model("cfsr_x2", scale=1, in_chans=1, embed_dim=8, depths=(1,)).eval()(x).shape == x.shape
    with pytest.raises(OffprintError, match="give an integer"):
        small(mlp_ratio=2.0)
    with pytest.raises(OffprintError, match="choose 2, 3 or 4"):
        offprint.create_model("cfsr_x2", scale=5)
    with pytest.raises(OffprintError, match=r"\(B, 3, H, W\)"):
        small()(x)


def test_tiles_give_what_the_whole_gives():
    model = small().eval()
    image = photographs()["chelsea"][:, :100, :130].float() / 255
    whole = enlarge(model, image, tile=1000)
    seen = []
    tiled = enlarge(model, image, tile=48, overlap=32, progress=lambda total=None, text="": seen.append(total or text))
    assert (whole - tiled).abs().max() < 1 / 255 and seen[0] == 9 and len(seen) == 10
    assert upscale(model, Image.fromarray(np.zeros((10, 7, 3), np.uint8))).size == (14, 20)


def test_metrics():
    picture = set5()["baby"]
    other = (picture.float() + 2).clamp(0, 255)
    assert psnr(picture, picture) == float("inf") and ssim(picture, picture) == pytest.approx(1)
    assert psnr(picture, other, y=False) == pytest.approx(42.1, abs=0.05)
    assert psnr(picture, picture.flip(-1)) < 20 and ssim(picture, picture.flip(-1)) < 0.6
    with pytest.raises(OffprintError, match="of one size"):
        psnr(picture, picture[:, :10])


def test_metrics_equal_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a = photographs()["coffee"][:, :64, :80]
    b = (a.float() + 9 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    x, y = a.numpy().astype(float), b.numpy().astype(float)
    assert psnr(a, b, y=False) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=255), abs=1e-6)
    theirs = structural_similarity(x, y, data_range=255, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)[1]  # fmt: skip
    assert ssim(a, b, y=False) == pytest.approx(theirs[:, 5:-5, 5:-5].mean(), abs=1e-6)


def test_bicubic_reduction_is_the_papers():
    """MATLAB's reductions of Set5, which come with the pictures, to within their rounding."""
    for scale in (2, 3, 4):
        big = set5()["baby"].float()
        h, w = (n - n % scale for n in big.shape[1:])
        got = bicubic(big[:, :h, :w], 1 / scale).clamp(0, 255)
        assert (got - set5(scale)["baby"].float()).abs().max() < 1.01


def test_a_short_training_run_learns_and_refuses_small_pictures():
    model = small()
    losses = train_restoration(
        model, [photographs()["coffee"].float()[:, :64, :64] / 255], steps=30, patch=12, batch=2, lr=5e-3
    )
    assert sum(losses[-5:]) < sum(losses[:5]) and not model.training
    with pytest.raises(OffprintError, match="smaller than a patch of 96"):
        train_restoration(model, [torch.rand(3, 40, 40)], steps=1)
