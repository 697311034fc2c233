"""Models set to other images, and inputs that no model can take."""

import pytest
import torch
from test_models import SMALL, small

import offprint
from offprint.errors import OffprintError


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_backbone_takes_another_size(name):
    model = small(name, num_classes=3)
    model.set_input_size((96, 128) if "mlp" not in name else 128)
    assert model(torch.randn(1, 3, 96, 128)).shape == (1, 3)
    with pytest.raises(OffprintError, match="pixels"):
        model.set_input_size(2)
    with pytest.raises(OffprintError, match="one side"):
        model.set_input_size((64, 64, 3))


@pytest.mark.parametrize("name", ["swin_tiny", "swinv2_tiny"])
@pytest.mark.parametrize("size", [64, (64, 96), 256])
def test_swin_becomes_the_model_built_for_that_size(name, size):
    """Same windows, masks and logits as a model that is built there and given the resampled weights."""
    torch.manual_seed(0)
    model = offprint.create_model(name, **SMALL[name], img_size=128, num_classes=3, ape=True).eval()
    built = offprint.create_model(name, **SMALL[name], img_size=size, num_classes=3, ape=True).eval()
    offprint.load_weights(built, model.state_dict())
    model.set_input_size(size)
    assert [s.window for s in model.layers] == [s.window for s in built.layers]
    assert [s.sides for s in model.layers] == [s.sides for s in built.layers]
    assert [s.covered for s in model.layers] == [s.covered for s in built.layers]
    x = torch.randn(1, 3, *((size, size) if isinstance(size, int) else size))
    assert torch.allclose(model(x), built(x), atol=1e-5)
    assert all(a.shape == b.shape for a, b in zip(model.parameters(), built.parameters(), strict=True))


def test_swin_takes_another_window_and_is_saved_so(tmp_path):
    from offprint.models.hub import from_pretrained, save_pretrained

    model = small("swin_tiny", img_size=128, num_classes=3)
    model.set_input_size(192, window_size=6)
    assert [s.window for s in model.layers] == [6, 6, 6, 6] and model.layers[0].blocks[0].attn.window == 6
    save_pretrained(model, tmp_path / "m")
    x = torch.randn(1, 3, 192, 192)
    assert torch.equal(from_pretrained(str(tmp_path / "m")).eval()(x), model(x))


def test_swin_mlp_says_which_sizes_keep_its_weights():
    model = small("swin_mlp_tiny_c24", img_size=128)
    model.set_input_size(256)
    with pytest.raises(OffprintError, match="sides of 128 pixels"):
        model.set_input_size(64)


def test_hornet_resamples_its_filters_once():
    model = small("hornet_tiny_gf")
    x = torch.randn(1, 3, 96, 160)
    expected = model(x)
    model.set_input_size((96, 160))
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert model.stages[2][0].gnconv.dwconv.complex_weight.shape[1:3] == (6, 6)


def test_rectangular_windows_are_refused():
    with pytest.raises(OffprintError, match=r"window_size=\(7, 14\).*one number"):
        offprint.create_model("swin_tiny", window_size=(7, 14))
    with pytest.raises(OffprintError, match="one side in pixels"):
        offprint.create_model("swin_tiny", img_size=(3, 224, 224))
    with pytest.raises(OffprintError, match="one side in pixels"):
        offprint.create_model("swinv2_tiny", img_size=256.0)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_pictures_as_bytes_are_refused(name):
    with pytest.raises(OffprintError, match=r"torch.uint8.*/ 255"):
        small(name)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_one_image_whose_last_map_is_one_pixel():
    for name in ("resnet50_ibn_a", "mobilenetv2_100"):
        model = small(name).train()
        with pytest.raises(OffprintError, match="two images or more"):
            model(torch.randn(1, 3, 32, 32))
        model(torch.randn(2, 3, 32, 32))
        model(torch.randn(1, 3, 64, 64))
    aux = small("inception_v4", aux=True).train()
    with pytest.raises(OffprintError, match="two images or more"):
        aux(torch.randn(1, 3, 32, 32))
