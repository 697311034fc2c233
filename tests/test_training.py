"""Training classifiers: the recipe, exact resume, bad data, lost losses, full disks."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from PIL import Image

import offprint
from offprint.data.images import ImageFolder, check_labels, open_images
from offprint.errors import DataError, OffprintError
from offprint.tasks import classification
from offprint.tasks.classification import (
    evaluate_classifier,
    predict_images,
    train_classifier,
    trained_model,
)
from offprint.tasks.recipe import Recipe, build_optimizer
from offprint.tasks.running import NonFiniteLoss

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
FAST = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "reference_batch": 0, "input_size": 32, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that a network can tell apart, 16 pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 120)):
        (root / label).mkdir()
        for i in range(16):
            Image.fromarray(draw.integers(low, low + 100, (32, 32, 3), dtype=np.uint8)).save(
                root / label / f"{i:02d}.png"
            )
    return root


def train(folder, out, **kwargs):
    overrides = {**FAST, **kwargs.pop("overrides", {})}
    return train_classifier(
        "convnext_tiny",
        folder,
        out,
        overrides=overrides,
        model_options=TINY,
        progress=False,
        accelerator="cpu",
        logger="none",
        **kwargs,
    )


class StopAfter(Callback):
    def __init__(self, epoch, error=KeyboardInterrupt):
        self.epoch, self.error = epoch, error

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            raise self.error


def weights(out):
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "mixup": 0.8, "cutmix": 1.0}])
def test_resume_equals_an_uninterrupted_run(folder, tmp_path, extra):
    whole = train(folder, tmp_path / "whole", overrides=extra)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut", overrides=extra, callbacks=(StopAfter(1),))
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    with pytest.raises(OffprintError, match="not finished"):
        trained_model(tmp_path / "cut")
    again = train(folder, tmp_path / "cut", overrides=extra)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert whole["accuracy"] == again["accuracy"] and whole["epochs"] == again["epochs"] == 3


def test_resume_after_a_kill(folder, tmp_path):
    """The process dies without warning in the middle of an epoch; the next one ends with the same weights."""
    code = f"""
import os, sys
sys.path.insert(0, {str(os.path.dirname(__file__))!r})
from test_training import train, StopAfter
class Die(StopAfter):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == self.epoch and index == 1:
            os._exit(9)
train({str(folder)!r}, {str(tmp_path / "cut")!r}, callbacks=(Die(2),))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 9
    train(folder, tmp_path / "cut")
    train(folder, tmp_path / "whole")
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_every_epoch_leaves_a_checkpoint(folder, tmp_path):
    """Also one that was no better than those before: a resumed run repeats nothing."""
    seen = []

    class Note(Callback):
        def on_train_epoch_end(self, trainer, module):
            module_file = tmp_path / "last.ckpt"
            if module_file.exists():
                seen.append((trainer.current_epoch, torch.load(module_file, weights_only=True)["epoch"]))

    train(folder, tmp_path, overrides={"epochs": 4, "lr": 1e-12}, callbacks=(Note(),))  # nothing is learnt
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 3
    assert [epoch for epoch, kept in seen if kept < epoch - 1] == []


def test_it_learns_and_its_folder_is_a_model(folder, tmp_path):
    summary = train(folder, tmp_path, overrides={"epochs": 6, "lr": 5e-3, "flip": False, "crop_scale": (0.8, 1.0)})
    assert summary["accuracy"] > 80 and json.loads((tmp_path / "summary.json").read_text()) == summary
    model, transform, classes = trained_model(tmp_path)
    assert classes == ["dark", "light"]
    found = evaluate_classifier(model, open_images(folder), transform)
    assert found["top1"] == pytest.approx(summary["accuracy"]) and found["images"] == 6
    rows = predict_images(model, transform, [folder / "dark" / "00.png"], classes, top_k=5)
    assert [p["class"] for p in rows[0]["predictions"]] == ["dark", "light"]
    assert sum(p["probability"] for p in rows[0]["predictions"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(OffprintError, match="cannot read the picture"):
        predict_images(model, transform, [folder / "none.png"])


def test_another_setting_does_not_resume(folder, tmp_path):
    train(folder, tmp_path, overrides={"epochs": 1})
    with pytest.raises(OffprintError, match="another recipe.*--no-resume"):
        train(folder, tmp_path, overrides={"epochs": 1, "lr": 2e-3})
    train(folder, tmp_path, overrides={"epochs": 1, "lr": 2e-3}, resume=False)


def test_early_stop_loggers_and_bf16(folder, tmp_path):
    summary = train_classifier(
        "convnext_tiny", folder, tmp_path, overrides={**FAST, "epochs": 9, "lr": 1e-9}, model_options=TINY, patience=2,
        precision="bf16-mixed", logger="both", progress=False, accelerator="cpu",
    )  # fmt: skip
    assert summary["epochs"] < 9
    assert list((tmp_path / "logs").rglob("metrics.csv")) and list((tmp_path / "logs").rglob("events.*"))
    with pytest.raises(OffprintError, match="csv, tensorboard"):
        train_classifier(
            "convnext_tiny", folder, tmp_path / "x", overrides=FAST, model_options=TINY, logger="paper", progress=False
        )


def test_a_lost_loss_stops_and_keeps_the_last_good_checkpoint(folder, tmp_path, monkeypatch):
    real = classification.F.cross_entropy
    calls = {"n": 0}

    def sometimes(*args, **kwargs):
        calls["n"] += 1
        return real(*args, **kwargs) * (float("nan") if calls["n"] > 6 else 1)

    monkeypatch.setattr(classification.F, "cross_entropy", sometimes)
    with pytest.raises(NonFiniteLoss, match="last good checkpoint is .*last.ckpt"):
        train(folder, tmp_path, overrides={"epochs": 5})
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in kept["state_dict"].values() if v.is_floating_point())


def test_a_full_disk_leaves_the_old_checkpoint(folder, tmp_path, monkeypatch):
    real, calls = os.fsync, {"n": 0}

    def full(handle):
        calls["n"] += 1
        if calls["n"] > 4:
            raise OSError(28, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        train(folder, tmp_path, overrides={"epochs": 5})
    monkeypatch.undo()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] >= 0
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".part")]


def test_a_corrupt_picture_is_named(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "d")
    bad = tmp_path / "d" / "light" / "03.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(DataError, match="03.png.*--on-error skip"):
        train(tmp_path / "d", tmp_path / "out")
    data = ImageFolder(tmp_path / "d", on_error="skip")
    with pytest.warns(UserWarning, match="skipped.*03.png"):
        image, label = data[19]
    assert label == 1 and image.size == (32, 32)
    assert train(tmp_path / "d", tmp_path / "out2", on_error="skip")["epochs"] == 3
    with pytest.raises(DataError, match="'stop' or 'skip'"):
        ImageFolder(tmp_path / "d", on_error="ignore")


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match="no folder at.*sample:mnist"):
        open_images(tmp_path / "none")
    with pytest.raises(DataError, match="holds no pictures"):
        open_images(tmp_path)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match="one class only"):
        open_images(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="one class only"):
        open_images(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "1.png")
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="no pictures for c"):
        open_images(tmp_path)
    (tmp_path / "c").rmdir()
    with pytest.raises(DataError, match="class 'a' has one picture"):
        open_images(tmp_path)
    with pytest.raises(OffprintError, match="cifar10"):
        open_images("sample:cifar")


def test_splits_of_a_folder(folder, tmp_path):
    splits = open_images(folder, val_fraction=0.25)
    assert (len(splits.train), len(splits.val)) == (24, 8)
    assert not set(splits.train.indices) & set(splits.val.indices)
    assert open_images(folder, val_fraction=0.25).val.indices == splits.val.indices
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        for name in ("dark", "light"):
            (tmp_path / part / name).symlink_to(folder / name)
    assert len(open_images(tmp_path).val) == 32
    (tmp_path / "val" / "dark").rename(tmp_path / "val" / "gloomy")
    with pytest.raises(DataError, match="different classes: dark, gloomy"):
        open_images(tmp_path)
    with pytest.raises(DataError, match="val_fraction=1.5"):
        open_images(folder, val_fraction=1.5)


def test_labels_out_of_range():
    check_labels([0, 1, 2], 3)
    with pytest.raises(DataError, match="item 1 has the label 3, outside 0 to 2.*num_classes=4"):
        check_labels([0, 3], 3)
    with pytest.raises(DataError, match="item 0 has the label -1"):
        check_labels([-1], 3)


def test_no_network_names_the_folder(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise RuntimeError("no route to host")

    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(DataError, match="cifar100 is not under.*OFFPRINT_DATA.*sample:cifar10"):
        open_images("cifar100")


def test_named_data_from_a_local_copy(tmp_path, monkeypatch):
    import gzip

    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 7], np.uint8)
    for part in ("train", "t10k"):
        head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4) for n in images.shape)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1]) + (2).to_bytes(4) + labels.tobytes())
        )
    monkeypatch.setenv("OFFPRINT_DATA", str(tmp_path))
    splits = open_images("mnist")
    assert list(splits.train.targets) == [3, 7] and splits.train[1][0].size == (28, 28)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="train-images"):
        open_images("mnist")


# -- recipes ---------------------------------------------------------------------------------------------------------
def test_the_papers_recipe_is_the_default():
    recipe = Recipe.of("convnext_small")
    assert (recipe.lr, recipe.reference_batch, recipe.epochs, recipe.drop_path_rate) == (4e-3, 4096, 300, 0.4)
    assert recipe.scaled(1024)[0] == pytest.approx(1e-3)
    assert Recipe.of("convnext_small", lr=1.0).lr == 1.0
    with pytest.raises(OffprintError, match="warmup_epochs"):
        Recipe.of("convnext_small", warmup=3)
    with pytest.raises(OffprintError, match="adamw"):
        Recipe(optimizer="adamww")
    with pytest.raises(OffprintError, match="lr=0"):
        Recipe(lr=0)
    with pytest.raises(OffprintError, match="mixup=-1"):
        Recipe(mixup=-1)


def test_schedules():
    rates = Recipe(lr=1.0, epochs=10, warmup_epochs=2, min_lr=0.1).learning_rates(5, 1)
    assert len(rates) == 50 and rates[0] == 0 and max(rates) == 1.0 and rates[-1] < 0.12
    step = Recipe(lr=1.0, schedule="step", decay_rate=0.5, decay_epochs=2, warmup_epochs=0, epochs=6).learning_rates(
        3, 1
    )
    assert step[0] == 1 and step[6] == 0.5 and step[-1] == 0.25
    assert set(Recipe(lr=2.0, schedule="constant", warmup_epochs=0, epochs=2).learning_rates(3, 1)) == {2.0}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "nesterov", "rmsprop", "rmsprop_tf"])
def test_optimizers_decay_matrices_only(name):
    model = offprint.create_model("convnext_tiny", num_classes=2, **TINY)
    optimizer = build_optimizer(model, Recipe(optimizer=name, weight_decay=0.3), 8)
    decays = {g["weight_decay"]: g["params"] for g in optimizer.param_groups}
    assert all(p.ndim > 1 for p in decays[0.3]) and all(p.ndim == 1 for p in decays[0.0])
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    before = model.head.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.head.weight)


@pytest.mark.parametrize(
    ("size", "preprocessing", "squashed"),
    [
        (64, {"crop_pct": 0.875}, False),
        (384, {"crop_pct": 0.875}, True),
        (384, {"crop_pct": 0.875, "crop_mode": "center"}, False),
        (64, {"crop_pct": 1.0}, True),
        (64, {"crop_pct": 1.0, "crop_mode": "center"}, False),
        (64, {"crop_pct": 0.875, "crop_mode": "squash"}, True),
    ],
)
def test_a_wide_picture_is_cropped_or_warped_as_its_publisher_does(size, preprocessing, squashed):
    """A picture whose outer thirds are white: what is left of them tells a crop from a warp."""
    from PIL import Image

    from offprint.data.transforms import evaluation_transform

    picture = Image.new("L", (3 * size, size), 255)
    picture.paste(0, (size, 0, 2 * size, size))
    seen = evaluation_transform(size, preprocessing)(picture.convert("RGB"))
    assert (float(seen[0, size // 2, size // 8]) > 0.9) is squashed
