"""Attention Swin U-Net: what is released and what the paper says, windows and sizes, starts from Swin, bad input."""

import numpy as np
import pytest
import torch

import offprint
from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbones.swin import SwinTransformer
from offprint.models.segmentation.att_swin_unet import (
    AttSwinUNet,
    CrossAttention,
    CrossTransformer,
    attention_transfer,
    clean_mask,
    skin_metrics,
)

SLIM = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 8,
    "depths": (2, 2, 2, 2),
    "num_heads": (1, 2, 2, 4),
    "num_classes": 2,
}


def made(**kwargs) -> AttSwinUNet:
    """A slim network whose weights say something."""
    torch.manual_seed(0)
    model = AttSwinUNet(**{**SLIM, **kwargs}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


def told(x=None, **kwargs):
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) if x is None else x
    with torch.no_grad():
        return made(**kwargs)(x)


def test_released_spatial_attention_changes_nothing_and_the_papers_does():
    plain, released = told(), told(spatial_attention=True)
    assert torch.equal(plain, released)
    for merge in ("add", "mul"):
        assert float((told(spatial_attention=merge) - plain).abs().max()) > 1e-3


def test_in_mode_swin_the_released_form_projects_twice():
    once, twice = told(mode="swin"), told(mode="swin", spatial_attention=True)
    assert float((once - twice).abs().max()) > 1e-3
    model = made(mode="swin", spatial_attention=True)
    x, skip = torch.randn(1, 4, 4, 32), torch.randn(1, 4, 4, 32)
    layer = model.decoder.concat_back_dim[1]
    expected = layer(torch.cat([layer(torch.cat([x, skip], -1)), skip], -1))
    assert torch.equal(model.decoder.join(1, x, skip), expected)


def test_skip_num_is_a_number_or_its_text_and_counts_from_the_deepest():
    maps = {n: told(skip_num=n) for n in (0, 1, 2, 3)}
    assert torch.equal(maps[3], told(skip_num="3"))
    assert all(float((maps[n] - maps[n + 1]).abs().max()) > 0 for n in range(3))
    model = made(skip_num=1)
    x, skip = torch.randn(1, 8, 8, 16), torch.randn(1, 8, 8, 16)
    plain = model.decoder.concat_back_dim[2](torch.cat([x, skip], -1))
    assert torch.equal(model.decoder.join(2, x, skip), plain)
    with pytest.raises(OffprintError, match="0 to 3"):
        AttSwinUNet(**SLIM, skip_num=4)


def test_cross_attention_is_that_of_keys_and_values_for_every_token():
    torch.manual_seed(0)
    layer = CrossAttention(12, 3, 5).double()
    token, context = torch.randn(2, 1, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    own = layer.norm(token)
    tokens = torch.cat([own, context], 1)
    heads = [v.unflatten(-1, (3, 5)).transpose(1, 2) for v in (layer.to_q(own), *layer.to_kv(tokens).chunk(2, -1))]
    expected = layer.to_out(torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(token, context), expected)


def test_only_the_first_token_of_each_set_is_changed_and_token_0_is_not_read_again():
    torch.manual_seed(0)
    model = CrossTransformer(16, heads=2, dim_head=4)
    x, skip = torch.randn(2, 10, 16), torch.randn(2, 7, 16)
    a, b = model(x, skip)
    assert torch.equal(a[:, 1:], x[:, 1:]) and torch.equal(b[:, 1:], skip[:, 1:])
    assert not torch.allclose(a[:, 0], x[:, 0])
    swapped = x.clone()
    swapped[:, [0, 1]] = x[:, [1, 0]]  # the mean is the same, and the tokens behind token 0 are others
    assert not torch.allclose(model(swapped, skip)[1][:, 0], b[:, 0])


def test_maps_are_merged_and_not_normalised_again():
    maps = torch.rand(4, 2, 3, 3).softmax(-1)
    ones = torch.ones(4, 2, 3, 1)
    torch.testing.assert_close(attention_transfer(maps, ones, maps), 2 * ones)
    assert float(attention_transfer(maps, ones, maps, "mul").max()) < 1
    with pytest.raises(OffprintError, match="merge"):
        attention_transfer(maps, ones, maps, "max")


def test_sizes_that_do_not_fit_say_which_do():
    for size, window, says in (
        (256, 7, r"224.*window_size=8"),
        (252, 7, "224"),
        (100, 8, "128|64"),
        (0, 7, "side|224"),
    ):
        with pytest.raises(OffprintError, match=says):
            AttSwinUNet(**{**SLIM, "img_size": size, "window_size": window})
    for size, window in ((224, 7), (448, 7), (256, 8), (128, 8), (64, 8)):
        AttSwinUNet(**{**SLIM, "img_size": size, "window_size": window})
    model = made()
    assert model.size_multiple == 64
    with pytest.raises(OffprintError, match=r"multiples of 64 .*got \(64, 96\)"):
        model(torch.randn(1, 3, 64, 96))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 128, 64)).shape == (1, 2, 128, 64)
        grey = torch.randn(1, 1, 64, 64)
        assert torch.equal(model(grey), model(grey.expand(-1, 3, -1, -1)))


def test_weights_go_to_other_sizes_and_windows():
    small, large = made(), AttSwinUNet(**{**SLIM, "img_size": 128}).eval()
    state = {**small.state_dict(), "encoder.layers.0.blocks.1.attn_mask": torch.zeros(64, 4, 4),
             "encoder.layers.0.blocks.1.attn.relative_position_index": torch.zeros(4, 4)}  # fmt: skip
    report = offprint.load_weights(large, state)
    assert not report.fresh
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x))
    other = AttSwinUNet(**{**SLIM, "window_size": 4, "img_size": 128})
    assert any("bias_table" in name for name in offprint.load_weights(other, small.state_dict()).adapted)


def test_a_swin_file_starts_encoder_and_decoder():
    torch.manual_seed(0)
    swin = SwinTransformer(64, embed_dim=8, depths=(2, 2, 4, 2), num_heads=(1, 2, 2, 4), window_size=2, num_classes=5)
    file = {**swin.state_dict(), "layers.0.blocks.1.attn_mask": torch.zeros(64, 4, 4)}
    model = AttSwinUNet(**{**SLIM, "depths": (2, 2, 4, 2)})
    report = offprint.load_weights(model, file)
    assert report.dialect == "swin" and all(n.startswith("decoder.") for n in report.fresh)
    for stage in (0, 1, 2):
        for block in range((2, 2, 4)[stage]):
            name = f"blocks.{block}.attn.qkv.weight"
            want = swin.state_dict()[f"layers.{stage}.{name}"]
            assert torch.equal(model.state_dict()[f"encoder.layers.{stage}.{name}"], want)
            assert torch.equal(model.state_dict()[f"decoder.layers_up.{3 - stage}.{name}"], want)
    assert not any("blocks" in n for n in report.fresh)
    shallow = AttSwinUNet(**SLIM)  # two blocks where the file has four: the others are told as dropped
    assert any(n.startswith("encoder.layers.2.blocks.3") for n in offprint.load_weights(shallow, file).dropped)
    with pytest.raises(CheckpointError):
        offprint.load_weights(AttSwinUNet(**{**SLIM, "embed_dim": 16}), file)


def test_counts_of_the_sheet():
    unused = 7_968
    want = {"att_swin_unet": 46_901_892, "att_swin_unet_d2222": 32_689_956, "swin_unet_plain": 41_388_804,
            "swin_unet_plain_d2222": 27_176_868}  # fmt: skip
    for name, count in want.items():
        with torch.device("meta"):
            model = offprint.create_model(name)
        assert sum(p.numel() for p in model.parameters()) == count - unused
    with pytest.raises(OffprintError, match="no released weights"):
        offprint.create_model("att_swin_unet", pretrained=True)


def test_skin_scores_and_what_they_refuse():
    truth = np.zeros((2, 40, 40), int)
    truth[:, 10:30, 10:30] = 1
    p = truth * 0.9
    p[0, 2, 2] = 1.0  # a speck that the opening removes
    p[0, 19:21, 19:21] = 0.0  # a hole that is filled
    found = skin_metrics(p, torch.from_numpy(truth))
    assert found == {"dice": 1.0, "accuracy": 1.0, "sensitivity": 1.0, "specificity": 1.0}
    none = skin_metrics(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)))
    assert none["dice"] is None and none["sensitivity"] is None and none["specificity"] == 1.0
    assert clean_mask(np.eye(9, dtype=bool))[0].sum() == 0
    for wrong, says in (
        ((p * 5 - 1, truth), "sigmoid"),
        ((p, truth * 255), "divide"),
        ((p[0], truth[0]), r"\(N, H, W\)"),
    ):
        with pytest.raises(OffprintError, match=says):
            skin_metrics(*wrong)


def test_it_trains_on_masks_of_another_size_and_predicts_them(tmp_path):
    from PIL import Image

    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i in range(4):
        mask = np.zeros((50, 70), np.uint8)
        mask[10 + i : 35, 15 : 45 + i] = 255
        Image.fromarray(np.stack([200 - mask // 2] * 3, -1)).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    options = {k: v for k, v in SLIM.items() if k != "num_classes"}
    recipe = {"epochs": 1, "batch_size": 2, "input_size": 64}
    run = offprint.train(
        "att_swin_unet", tmp_path, tmp_path / "run", recipe=recipe, model_options=options, progress=False
    )
    found = offprint.predict(run.folder, tmp_path / "images" / "0.png")
    assert found.masks[0].shape == (50, 70) and set(np.unique(found.masks[0])) <= {0, 1}
