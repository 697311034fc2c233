"""The stages that papers state, as their own repositories give them, and how rates follow the batch."""

import pytest

from offprint.errors import OffprintError
from offprint.models.registry import entries, entry, register
from offprint.tasks.recipe import Recipe


def test_every_stage_of_every_backbone_is_a_recipe():
    stages = {(name, stage) for name, e in entries().items() if e.kind == "backbone" for stage in e.recipes}
    for name, stage in stages:
        recipe = Recipe.of(name, stage)
        assert recipe.data or "facenet" in name
        assert not recipe.start or recipe.start in entry(name).recipes or (name.split("_")[0], recipe.start) in {
            (other.split("_")[0], s) for other, s in stages
        }  # fmt: skip
    assert entry("convnext_tiny").recipe is entry("convnext_tiny").recipes["training"]


# stage: lr at the batch, weight decay, epochs, warm-up, layer decay, drop path
STATED = {
    ("convnext_base", "training"): (4e-3, 4096, 0.05, 300, 20, 1.0, 0.5),
    ("convnext_xlarge", "pretraining"): (4e-3, 4096, 0.05, 90, 5, 1.0, 0.2),
    ("convnext_large", "finetuning"): (5e-5, 512, 1e-8, 30, 0, 0.8, 0.3),
    ("convnext_large", "finetuning_384"): (5e-5, 512, 1e-8, 30, 0, 0.7, 0.95),
    ("hornet_large_gf", "pretraining"): (4e-3, 4096, 0.1, 90, 5, 1.0, 0.2),
    ("hornet_large_gf_img384", "finetuning"): (5e-5, 512, 1e-8, 30, 0, 0.7, 0.4),
    ("swin_base", "pretraining"): (1.25e-4, 512, 0.05, 90, 5, 1.0, 0.2),
    ("swin_tiny", "finetuning"): (2e-5, 512, 1e-8, 30, 5, 1.0, 0.1),
    ("swin_base_patch4_window12_384", "finetuning_384"): (2e-5, 512, 1e-8, 30, 5, 1.0, 0.5),
    ("swin_base", "simmim"): (1e-4, 512, 0.05, 800, 10, 1.0, 0.0),
    ("swin_base", "simmim_finetuning"): (1.25e-3, 512, 0.05, 100, 20, 0.8, 0.1),
    ("swinv2_large", "pretraining"): (1.25e-4, 512, 0.1, 90, 5, 1.0, 0.2),
    ("swinv2_base_patch4_window12to14_192to224", "simmim_finetuning"): (1.25e-3, 512, 0.05, 100, 20, 0.75, 0.1),
}


@pytest.mark.parametrize("key", STATED, ids="-".join)
def test_stated_figures(key):
    r = Recipe.of(*key)
    found = (r.lr, r.reference_batch, r.weight_decay, r.epochs, r.warmup_epochs, r.layer_decay, r.drop_path_rate)
    assert found == STATED[key]


def test_what_else_stages_say():
    fine = Recipe.of("convnext_xlarge", "finetuning")
    assert (fine.head_init_scale, fine.mixup, fine.cutmix, fine.ema_decay, fine.start) == (
        0.001, 0, 0, 0.9999, "pretraining",
    )  # fmt: skip
    assert Recipe.of("convnext_base", "finetuning").ema_decay == 0
    wide = Recipe.of("convnext_base", "finetuning_384")
    assert (wide.input_size, wide.crop_pct, wide.crop_mode, wide.start) == (384, 1.0, "squash", "training")
    assert Recipe.of("ghostnetv2_100").lr_noise == (0.42, 0.9)
    assert Recipe.of("nasnet_a_large").aux_weight == Recipe.of("inception_v4").aux_weight == 0.4
    with pytest.raises(OffprintError, match="pretraining"):
        Recipe.of("convnext_tiny", "pretrainig")


def test_which_rates_follow_the_batch():
    convnext, swin = Recipe.of("convnext_base"), Recipe.of("swin_base")
    assert convnext.scaled(1024) == pytest.approx((1e-3, 1e-6, 0.0))  # the floor stays
    assert swin.scaled(1024) == pytest.approx((1e-3, 1e-5, 1e-6))  # all three follow
    assert Recipe.of("swin_tiny", "finetuning").scaled(1024) == pytest.approx((4e-5, 4e-7, 4e-8))


def test_registering_by_stage():
    from offprint.models import registry
    from offprint.models.backbones.convnext import ConvNeXt

    kept = dict(registry._entries)
    try:
        with pytest.warns(DeprecationWarning, match="exceptions="):
            register(paper="convnext", kind="backbone", build=ConvNeXt, variants={"a_": {}, "b_": {}}, recipe={"lr": 1.0},
                     recipes={"a_": {"epochs": 3}})  # fmt: skip
        assert entry("a_").recipe == {"lr": 1.0, "epochs": 3} and entry("b_").recipe == {"lr": 1.0}
        register(paper="convnext", kind="backbone", build=ConvNeXt, variants={"a_": {}, "b_": {}},
                 recipes={"training": {"lr": 2.0}}, exceptions={"finetuning": {"b_": {"lr": 0.1}}})  # fmt: skip
        assert set(entry("a_").recipes) == {"training"} and entry("b_").recipes["finetuning"] == {"lr": 0.1}
        with pytest.raises(OffprintError, match="recipe of its own"):
            register(paper="convnext", kind="backbone", build=ConvNeXt, variants={"a_": {}},
                     exceptions={"finetuning": {"c_": {}}})  # fmt: skip
    finally:
        registry._entries.clear()
        registry._entries.update(kept)
