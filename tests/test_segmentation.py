"""Segmentation: layouts and masks, losses and measures, training that resumes, pictures of any size, mistakes that are named."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import offprint
from offprint.data.masks import CITYSCAPES, open_masks, read_mask
from offprint.errors import DataError, OffprintError
from offprint.nn.region_losses import focal, lovasz_softmax, region_loss, soft_dice
from offprint.tasks.segmentation import Overlap, bands, probabilities, segmented

MODEL = "mobilenetv2_050+mobile_deeplab"
FAST = {
    "recipe": {"epochs": 2, "batch_size": 4, "input_size": 64, "lr": 3e-3, "reference_batch": 0},
    "options": {"scale_max": 1.0},
}


def scene(seed: int, side=(72, 80)):
    """A red square and a blue disc on grey: three classes."""
    rng = np.random.default_rng(seed)
    h, w = side
    picture, mask = np.full((h, w, 3), 128, np.uint8), np.zeros((h, w), np.uint8)
    y, x = (int(rng.integers(0, n - 24)) for n in side)
    picture[y : y + 24, x : x + 24], mask[y : y + 24, x : x + 24] = (220, 30, 30), 1
    cy, cx = (int(rng.integers(12, n - 12)) for n in side)
    disc = (np.mgrid[:h, :w][0] - cy) ** 2 + (np.mgrid[:h, :w][1] - cx) ** 2 < 100
    picture[disc], mask[disc] = (30, 30, 220), 2
    return picture + rng.integers(0, 20, picture.shape, np.uint8), mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(10):
        picture, mask = scene(i)
        Image.fromarray(picture).save(root / "images" / f"p{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"p{i}.png")
    (root / "classes.txt").write_text("background\nsquare\ndisc\n")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    return offprint.train(MODEL, folder, out, task="segmentation", progress=False, **FAST)


# -- data


def _one(root, picture, mask, name="a", ending=".png"):
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(root / "images" / f"{name}{ending}")
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(root / "masks" / f"{name}.png")


def test_grey_palette_and_coloured_masks_mean_the_same(tmp_path):
    colours = [(0, 0, 0), (250, 0, 0), (0, 0, 250)]
    expected = []
    for i in range(4):
        picture, mask = scene(i)
        expected.append(mask)
        _one(tmp_path / "grey", picture, mask, f"p{i}")
        palette = Image.fromarray(mask, "P")
        palette.putpalette([v for c in colours for v in c])
        _one(tmp_path / "palette", picture, palette, f"p{i}")
        _one(tmp_path / "colour", picture, np.array(colours, np.uint8)[mask], f"p{i}")
        _one(tmp_path / "binary", picture, ((mask > 0) * 255).astype(np.uint8), f"p{i}")
    (tmp_path / "colour" / "classes.txt").write_text("background 0 0 0\nsquare 250 0 0\ndisc 0 0 250\n")
    for kind in ("grey", "palette", "colour"):
        data = open_masks(tmp_path / kind, val_fraction=0.25)
        assert len(data.classes) == 3 and len(data.train) == 3 and len(data.val) == 1
        for part in (data.train, data.val):
            for i, (file, _) in enumerate(part.pairs):
                assert np.array_equal(part.read(i)[1].numpy(), expected[int(file.stem[1:])])
    binary = open_masks(tmp_path / "binary")
    assert binary.classes.names == ("background", "foreground")
    assert set(binary.train.read(0)[1].unique().tolist()) == {0, 1}


def test_colours_without_names_are_classes(tmp_path):
    for i in range(2):
        picture, mask = scene(i)
        _one(tmp_path, picture, np.array([(0, 0, 0), (9, 200, 9), (200, 9, 9)], np.uint8)[mask], f"p{i}")
    data = open_masks(tmp_path)
    assert len(data.classes) == 3 and data.classes.coloured and data.classes.colours[0] == (0, 0, 0)


def test_voc_and_cityscapes(tmp_path):
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for i in range(3):
        picture, mask = scene(i)
        mask[0, :] = 255
        Image.fromarray(picture).save(voc / "JPEGImages" / f"p{i}.jpg")
        Image.fromarray(mask).save(voc / "SegmentationClass" / f"p{i}.png")
    (voc / "ImageSets/Segmentation/train.txt").write_text("p0\np1\n")
    (voc / "ImageSets/Segmentation/val.txt").write_text("p2\n")
    data = open_masks(tmp_path / "VOCdevkit")
    assert data.own and (len(data.train), len(data.val)) == (2, 1)
    assert (
        len(data.classes) == 21 and data.classes.names[15] == "person" and data.classes.colours[15] == (192, 128, 128)
    )
    city = tmp_path / "city"
    for part in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            (city / kind / part / "aachen").mkdir(parents=True)
        picture, _ = scene(0)
        labels = np.zeros(picture.shape[:2], np.uint8)
        labels[:20], labels[20:40] = CITYSCAPES["road"][0], CITYSCAPES["bicycle"][0]
        Image.fromarray(picture).save(city / "leftImg8bit" / part / "aachen" / "aachen_0_1_leftImg8bit.png")
        Image.fromarray(labels).save(city / "gtFine" / part / "aachen" / "aachen_0_1_gtFine_labelIds.png")
    data = open_masks(city)
    mask = data.val.read(0)[1]
    assert len(data.classes) == 19 and mask[0, 0] == 0 and mask[30, 0] == 18 and mask[50, 0] == 255


def test_bad_data_is_named(tmp_path, folder):
    with pytest.raises(DataError, match="images/ and masks/"):
        open_masks(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Pascal VOC"):
        open_masks(tmp_path / "empty")
    picture, mask = scene(0)
    for name, wrong, says in (
        ("size", mask[:50], r"p1.png is 80 x 50 pixels and its picture .*p1.png 80 x 72"),
        ("value", np.where(mask == 2, 7, mask).astype(np.uint8), r"p1.png has the value 7.* 3 classes"),
    ):
        root = tmp_path / name
        shutil.copytree(folder, root)
        Image.fromarray(wrong).save(root / "masks" / "p1.png")
        with pytest.raises(DataError, match=says):
            open_masks(root)
        data = open_masks(root, on_error="skip")
        assert len(data.train) + len(data.val) == 9 and any("p1.png" in note for note in data.notes)
    root = tmp_path / "alone"
    shutil.copytree(folder, root)
    (root / "masks" / "p3.png").unlink()
    with pytest.raises(DataError, match=r"1 pictures have no mask: .*p3.png"):
        open_masks(root)
    (root / "masks" / "p3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read the mask .*p3.png"):
        open_masks(root)
    smooth = tmp_path / "smooth"
    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3)).astype(np.uint8)
        _one(smooth, noise, noise, f"p{i}")
    with pytest.raises(DataError, match="colours"):
        open_masks(smooth)


def test_a_mask_of_sixteen_bits(tmp_path):
    values = np.array([[0, 300], [1, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png"), values)


# -- losses and measures


def test_losses_by_hand():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randint(0, 3, (2, 5, 4))
    target[0, 0] = 255
    keep = target != 255
    p = logits.softmax(1).movedim(1, -1)[keep]
    t = F.one_hot(target[keep], 3).double()
    dice = 1 - sum(2 * (p[:, c] * t[:, c]).sum() / (p[:, c].sum() + t[:, c].sum()) for c in range(3)) / 3
    torch.testing.assert_close(soft_dice(logits, target), dice)
    picked = (p * t).sum(1)
    torch.testing.assert_close(focal(logits, target), (-((1 - picked) ** 2) * picked.log()).mean())
    sure = 50 * F.one_hot(target.clamp(max=2), 3).movedim(-1, 1).double()
    for kind in ("ce", "dice", "focal", "lovasz", "ce+dice"):
        assert region_loss(kind, sure, target) < 1e-6 < 0.1 < region_loss(kind, -sure, target)
    nothing = torch.full_like(target, 255)
    for kind in ("ce", "dice", "focal", "lovasz"):
        x = logits.clone().requires_grad_()
        region_loss(kind, x, nothing).backward()
        assert float(x.grad.abs().sum()) == 0
    with pytest.raises(OffprintError, match="loss"):
        region_loss("iou", logits, target)


def test_lovasz_of_hard_errors_is_one_minus_iou():
    target = torch.tensor([[[0, 0, 1, 1, 1, 0]]])
    said = torch.tensor([[[0, 1, 1, 1, 0, 0]]])
    logits = 200.0 * F.one_hot(said, 2).movedim(-1, 1).double()
    iou = [2 / 4, 2 / 4]
    assert abs(float(lovasz_softmax(logits, target)) - (1 - sum(iou) / 2)) < 1e-9


def test_measures_agree_with_torchmetrics():
    from torchmetrics.classification import MulticlassAccuracy, MulticlassCohenKappa, MulticlassJaccardIndex

    torch.manual_seed(0)
    said, truth = torch.randint(0, 4, (3, 40, 30)), torch.randint(0, 4, (3, 40, 30))
    truth[0, :5] = 255
    mine = Overlap(4)
    for a, b in zip(said, truth, strict=True):
        mine.update(a, b)
    found = mine.figures()
    for name, theirs, scale in (
        ("miou", MulticlassJaccardIndex(4, ignore_index=255), 100),
        ("accuracy", MulticlassAccuracy(4, average="micro", ignore_index=255), 100),
        ("mean_accuracy", MulticlassAccuracy(4, ignore_index=255), 100),
        ("kappa", MulticlassCohenKappa(4, ignore_index=255), 1),
    ):
        assert abs(found[name] - scale * float(theirs(said, truth))) < 1e-4


def test_classes_that_are_nowhere_make_no_nan():
    mine = Overlap(5)
    mine.update(torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long))
    found = mine.figures()
    assert found["miou"] == found["dice"] == found["accuracy"] == 100 and found["kappa"] == 1
    assert mine.per_class()["iou"] == [100, None, None, None, None]
    with pytest.raises(DataError, match="ignored"):
        Overlap(2).figures()


# -- any size


class Pixelwise(nn.Module):
    """Says of each pixel which channel is largest; gives its answer at half the size where asked."""

    num_classes = in_chans = 3
    seen = 0

    def __init__(self, half=False):
        super().__init__()
        self.half, self.weight = half, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        type(self).seen = max(self.seen, x.shape[-1] * x.shape[-2])
        return F.avg_pool2d(x, 2) if self.half else x


@pytest.mark.parametrize("size", [(50, 40), (33, 190), (200, 65), (130, 140)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_windows_cover_all(size, overlap):
    torch.manual_seed(0)
    x, net = torch.randn(1, 3, *size), Pixelwise()
    assert torch.equal(segmented(net, x, 32, overlap), x[0].argmax(0))
    parts = list(bands(lambda v: v.softmax(1), lambda a, b: x[:, :, a:b], *size, 32, overlap))
    assert torch.equal(torch.cat([p for _, p in parts]), x[0].argmax(0))
    assert [top for top, _ in parts] == np.cumsum([0, *(len(p) for _, p in parts)])[:-1].tolist()


def test_small_outputs_are_enlarged_and_mirrors_averaged():
    x = torch.randn(1, 3, 40, 50)
    assert probabilities(Pixelwise(half=True), x).shape == x.shape
    torch.testing.assert_close(probabilities(Pixelwise(), x, flips=True), x.softmax(1))


def test_large_photograph_in_little_memory(run, tmp_path):
    """4000 x 3000 pixels: the windows bound what is held, not the picture."""
    import resource

    picture = np.tile(scene(0)[0], (42, 50, 1))[:3000, :4000]
    Image.fromarray(picture).save(tmp_path / "large.jpg")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = offprint.predict(run.folder, tmp_path / "large.jpg", window=256, overlap=0.0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    assert found.masks[0].shape == (3000, 4000) and found.masks[0].dtype == np.uint8
    assert grown < 1.0, f"{grown:.2f} GB"


# -- the task


def test_training_learns_and_evaluates(run, folder):
    assert set(run.figures) >= {"miou", "epochs", "weights"} and run.figures["miou"] > 20
    figures = offprint.evaluate(run.folder)
    assert abs(figures["miou"] - run.figures["miou"]) < 1e-3
    assert [row["class"] for row in figures.rows] == ["background", "square", "disc"]
    assert figures["pictures"] == 2


def test_predicting_writes_masks_in_the_pictures_own_pixels(run, folder, tmp_path):
    turned = Image.open(folder / "images" / "p0.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    found = offprint.predict(run.folder, [folder / "images" / "p1.png", tmp_path / "turned.jpg"])
    assert [(r["width"], r["height"]) for r in found.rows] == [(80, 72), (72, 80)]
    found.save(tmp_path / "out")
    mask = Image.open(tmp_path / "out" / "p1_mask.png")
    assert mask.mode == "P" and mask.size == (80, 72) and np.array_equal(np.array(mask), found.masks[0])
    assert Image.open(tmp_path / "out" / "p1_overlay.png").size == (80, 72)
    assert abs(sum(found[0]["shares"].values()) - 100) < 0.01
    found.save(tmp_path / "shares.csv")
    found.draw(tmp_path / "sheet.png")
    with pytest.raises(OffprintError, match="to a folder"):
        found.save(tmp_path / "one.png")


def test_the_console(run, folder, tmp_path):
    from typer.testing import CliRunner

    from offprint.cli.main import app

    cli = CliRunner()
    done = cli.invoke(
        app, ["predict", str(folder / "images"), "--model", str(run.folder), "--out", str(tmp_path / "m")]
    )
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "m").glob("*_mask.png"))) == 10
    done = cli.invoke(app, ["evaluate", str(run.folder)])
    assert done.exit_code == 0 and "miou" in done.output.lower(), done.output


def test_any_backbone_under_any_head(folder, tmp_path):
    heads = [p for p in offprint.parts("head") if offprint.models.parts.part(p).task == "segmentation"]
    assert len(heads) >= 3
    options = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
    for head in heads:
        made = offprint.train(
            "convnext_tiny", folder, tmp_path / head, task="segmentation", head=head, progress=False, model_options=options,
            recipe={**FAST["recipe"], "epochs": 1},
        )  # fmt: skip
        assert offprint.load_run(made.folder).predict(folder / "images" / "p0.png").masks[0].shape == (72, 80)


def test_losses_balance_and_sides(folder, tmp_path):
    for loss, balance in (("dice", "none"), ("focal", "median"), ("ce+lovasz", "inverse")):
        offprint.train(
            MODEL, folder, tmp_path / loss, task="segmentation", progress=False, recipe={**FAST["recipe"], "epochs": 1},
            options={"loss": loss, "balance": balance},
        )  # fmt: skip
    shutil.copytree(folder, tmp_path / "three")
    (tmp_path / "three" / "classes.txt").write_text("background\nsquare\ndisc\nnothing\n")
    with pytest.raises(DataError, match="nothing: no pixel"):
        offprint.train(
            MODEL,
            tmp_path / "three",
            tmp_path / "x",
            task="segmentation",
            options={"balance": "inverse"},
            progress=False,
        )


def test_refusals(run, folder, tmp_path):
    for options, says in (
        ({"loss": "iou"}, "loss"),
        ({"balance": "all"}, "balance"),
        ({"scale_min": 3.0}, "scale_min"),
    ):
        with pytest.raises(OffprintError, match=says):
            offprint.train(MODEL, folder, tmp_path / "r", task="segmentation", options=options, progress=False)
    other = tmp_path / "two"
    shutil.copytree(folder, other)
    (other / "classes.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(OffprintError, match="the model has 3 classes"):
        offprint.evaluate(run.folder, other)
    with pytest.raises(OffprintError, match="overlap=1"):
        offprint.predict(run.folder, folder / "images" / "p0.png", overlap=1)


def test_removing_a_picture_moves_no_other(folder, tmp_path):
    root, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(folder, root)
    offprint.train(
        MODEL, root, out, task="segmentation", progress=False, **{**FAST, "recipe": {**FAST["recipe"], "epochs": 1}}
    )
    held = (out / "validation.txt").read_text()
    train = next(p for p in (root / "images").iterdir() if str(p) not in held)
    train.unlink()
    (root / "masks" / train.name).unlink()
    offprint.train(MODEL, root, out, task="segmentation", progress=False, **FAST)
    assert sorted((out / "validation.txt").read_text().split()) == sorted(held.split())


def test_killed_training_goes_on_to_the_same_weights(folder, tmp_path):
    words = [sys.executable, "-m", "offprint.cli.main", "train", "--model", MODEL, "--task", "segmentation", "--data", str(folder), "--epochs",
             "3", "--batch-size", "4", "--size", "64", "--lr", "3e-3", "--scale-max", "1.0", "--out"]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    subprocess.run([*words, str(tmp_path / "whole")], check=True, **quiet)
    process = subprocess.Popen([*words, str(tmp_path / "cut")], **quiet)
    until = time.monotonic() + 120
    while not (tmp_path / "cut" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    subprocess.run([*words, str(tmp_path / "cut")], check=True, **quiet)
    whole, cut = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut
