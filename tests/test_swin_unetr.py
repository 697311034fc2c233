"""Swin UNETR: equal to MONAI at every size, orders of merging, sliding windows, volumes and files."""

import numpy as np
import pytest
import torch
from monai.networks.nets import SwinUNETR as Theirs

import offprint
from offprint.data.volumes import TISSUES, brain_labels, read_volume, simulate_t1, tissue_classes
from offprint.errors import CheckpointError, DataError, OffprintError


@pytest.mark.parametrize(("sides", "v2"), [((64, 64, 64), False), ((32, 96, 64), False), ((64, 32, 32), True)])
def test_equals_monai(sides, v2):
    torch.manual_seed(0)
    theirs = Theirs(in_channels=2, out_channels=3, feature_size=12, use_v2=v2).eval()
    ours = offprint.create_model(
        f"swin_unetr{'_v2' if v2 else ''}_tiny", in_chans=2, num_classes=3, downsample="fixed"
    ).eval()
    report = offprint.load_weights(ours, {"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}})
    assert not report.fresh
    x = torch.randn(1, 2, *sides)
    with torch.no_grad():
        a, b = ours(x), theirs(x)
    assert (a - b).abs().max() < 2e-4 * b.abs().max()


def test_the_published_order_is_the_default():
    torch.manual_seed(0)
    legacy = offprint.create_model("swin_unetr_tiny", in_chans=1, num_classes=2).eval()
    fixed = offprint.create_model("swin_unetr_tiny", in_chans=1, num_classes=2, downsample="fixed").eval()
    offprint.load_weights(fixed, legacy.state_dict())
    x = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(legacy(x), fixed(x), atol=1e-3)
    with pytest.raises(OffprintError, match="nearest: mergingv2"):
        offprint.create_model("swin_unetr_tiny", downsample="merging")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 4, 64, 64, 60), r"multiples of 32, got \(64, 64, 60\); crop or pad to \(64, 64, 64\)"),
        ((1, 4, 32, 32, 32), "make one side 64"),
        ((1, 3, 64, 64, 64), r"expected \(B, 4, D, H, W\)"),
        ((4, 64, 64, 64), r"expected \(B, 4, D, H, W\)"),
    ],
)
def test_refused_inputs(shape, says):
    model = offprint.create_model("swin_unetr_tiny")
    with pytest.raises(OffprintError, match=says):
        model(torch.zeros(shape))


def test_refused_files_and_sizes():
    tiny = offprint.create_model("swin_unetr_tiny")
    with pytest.raises(CheckpointError, match="another size|without a place|missing"):
        offprint.load_weights(tiny, offprint.create_model("swin_unetr_v2_tiny").state_dict())
    other = offprint.create_model("swin_unetr_tiny", num_classes=14)
    with pytest.raises(CheckpointError, match="drop_head=True"):
        offprint.load_weights(tiny, other.state_dict())
    assert offprint.load_weights(tiny, other.state_dict(), drop_head=True).dropped
    one = offprint.create_model("swin_unetr_tiny", in_chans=1)
    assert offprint.load_weights(one, tiny.state_dict()).adapted
    with pytest.raises(OffprintError, match="multiple of 12"):
        offprint.create_model("swin_unetr_tiny", feature_size=10)
    with pytest.raises(OffprintError, match="choose 2 or 3"):
        offprint.create_model("swin_unetr_tiny", spatial_dims=4)


def test_it_is_exported_compiled_and_copied():
    import copy

    model = offprint.create_model("swin_unetr_tiny", in_chans=1, num_classes=2).eval()
    x = torch.randn(1, 1, 64, 32, 32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.allclose(torch.export.export(model, (x,), strict=False).module()(x), expected, atol=1e-4)
        assert torch.allclose(torch.compile(model, backend="eager")(x), expected, atol=1e-4)
        merged = offprint.deploy(model, x)
        assert torch.allclose(merged(x), expected, atol=1e-4)


def test_volumes(tmp_path):
    import nibabel

    labels = brain_labels()
    masks = tissue_classes(labels)
    assert masks.shape == (len(TISSUES), *labels.shape) and not (masks.sum(0) > 1).any() and all(m.any() for m in masks)
    image = simulate_t1(labels, torch.Generator().manual_seed(0))
    again = simulate_t1(labels, torch.Generator().manual_seed(0))
    assert torch.equal(image, again) and image[masks[0]].mean() > image[labels == 0].mean() + 0.5
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4), affine), tmp_path / "v.nii.gz")
    volume, read = read_volume(tmp_path / "v.nii.gz")
    assert volume.shape == (2, 3, 4) and read[0, 0] == 2
    (tmp_path / "bad.nii").write_bytes(b"nothing")
    for name in ("bad.nii", "none.nii"):
        with pytest.raises(DataError, match="cannot read the volume"):
            read_volume(tmp_path / name)
