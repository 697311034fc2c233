"""FerKD: soft labels on disk, what is refused, regions and mixing, students that learn from files alone."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tf
from typer.testing import CliRunner

import offprint
from offprint.cli.main import app
from offprint.data.images import ArrayImages, ImageSplits
from offprint.errors import DataError, OffprintError
from offprint.methods.registry import make
from offprint.methods.training._soft_labels import (
    CropSampler,
    Replay,
    average,
    box_of,
    cut,
    draw_crops,
    file_bytes,
    generate_soft_labels,
    open_labels,
    read_labels,
    read_released,
)
from offprint.methods.training.ferkd import (
    Regions,
    calibrate_regions,
    crop_major,
    cut_box,
    mix,
    partners,
    quantize_soft_labels,
    random_mix,
    recover_soft_labels,
    selfmix,
)

QUIET = {"progress": False, "accelerator": "cpu", "logger": "none"}
CLASSES = ["a", "b", "c", "d", "e", "f", "g"]
FORMATS = ("hard", "smoothing", "marginal_smoothing_k3", "marginal_renorm_k5", "ori")


class Teacher(nn.Module):
    """Sure of bright crops; counts what it is asked."""

    def __init__(self, classes=7):
        super().__init__()
        torch.manual_seed(3)
        self.linear, self.asked = nn.Linear(12, classes), []

    def forward(self, x):
        self.asked.append(tuple(x.shape))
        return 4 * self.linear(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


@pytest.fixture(scope="module")
def images():
    draw = np.random.default_rng(0)
    return ArrayImages(draw.integers(0, 255, (14, 24, 20, 3), dtype=np.uint8), np.arange(14) % 7)


@pytest.fixture(scope="module")
def store(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "ori"
    generate_soft_labels(Teacher(), images, out, classes=CLASSES, crops=6, form="ori", size=16, batch=4)
    return open_labels(out, images, CLASSES)


def files(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.safetensors")
    }


# -- formats
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_kept_is_what_is_read(images, tmp_path, store, form):
    made = generate_soft_labels(
        Teacher(), images, tmp_path / "x", classes=CLASSES, crops=6, form=form, size=16, batch=4
    )
    again = open_labels(tmp_path / "x", images, CLASSES)
    for i in range(len(images)):
        whole, mine = store.read(i), again.read(i)
        assert torch.equal(whole.coords, mine.coords) and torch.equal(whole.flips, mine.flips)
        expected = recover_soft_labels(quantize_soft_labels(whole.labels, form), form, 7)
        assert torch.allclose(again.recovered(mine), expected, atol=1e-6)
        assert torch.allclose(again.recovered(mine).sum(1), torch.ones(6), atol=1e-5)
    assert made.bytes == sum(f.stat().st_size for f in again.files) and made.per_second > 0
    assert abs(made.bytes / 14 - file_bytes(form, 7, 6, False)) < 150


def test_classes_are_exact_in_half_precision(tmp_path):
    picture = ArrayImages(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, int))
    logits = torch.full((1, 5000), -9.0)
    logits[0, 4099] = 9.0
    classes = [str(i) for i in range(5000)]
    teacher = lambda x: logits.expand(len(x), -1)  # noqa: E731
    holder = nn.Module()
    holder.forward = teacher
    generate_soft_labels(holder, picture, tmp_path, classes=classes, crops=2, form="smoothing", half=True, size=8)
    store = open_labels(tmp_path, picture, classes)
    assert store.recovered(store.read(0)).argmax(1).tolist() == [4099, 4099]


def test_labels_of_another_format_or_of_more_classes_are_refused():
    kept = quantize_soft_labels(torch.rand(3, 7).softmax(1), "marginal_smoothing_k5")
    with pytest.raises(OffprintError, match=r"labels of shape \(3, 2, 5\) are not smoothing"):
        recover_soft_labels(kept, "smoothing", 7)
    with pytest.raises(OffprintError, match="name class 6, and there are 6"):
        recover_soft_labels(torch.tensor([6]), "hard", 6)
    with pytest.raises(OffprintError, match="marginal_smoothing_k10 keeps 10 of 7 classes"):
        quantize_soft_labels(torch.rand(3, 7), "marginal_smoothing_k10")
    with pytest.raises(OffprintError, match="unknown format of soft labels 'smooth'; nearest: smoothing"):
        quantize_soft_labels(torch.rand(3, 7), "smooth")
    both = [recover_soft_labels(kept, form, 7) for form in ("marginal_renorm", "marginal_renorm_k5")]
    assert torch.equal(*both)


# -- crops
def test_crops_are_drawn_as_torchvision_draws_them():
    coords, flips = draw_crops(0, "x", 4000, (60, 40), (0.2, 0.5))
    theirs = np.array(
        [RandomResizedCrop.get_params(torch.zeros(3, 60, 40), [0.2, 0.5], [3 / 4, 4 / 3]) for _ in range(4000)], float
    )
    theirs /= [60, 40, 60, 40]
    assert np.abs(coords.numpy().mean(0) - theirs.mean(0)).max() < 0.015
    assert np.abs(coords.numpy().std(0) - theirs.std(0)).max() < 0.015 and abs(float(flips.float().mean()) - 0.5) < 0.03
    assert (coords[:, 0] + coords[:, 2] <= 1 + 1e-6).all() and (coords[:, 1] + coords[:, 3] <= 1 + 1e-6).all()
    wide, _ = draw_crops(0, "x", 8, (2, 300), (0.9, 1.0))  # no try fits: the middle of the picture
    assert torch.equal(wide[0], wide[7]) and float(wide[0, 2]) == 1.0
    assert not torch.equal(draw_crops(1, "x", 4, (60, 40))[0], draw_crops(0, "x", 4, (60, 40))[0])


def test_a_crop_is_cut_as_fkd_cuts_it():
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (41, 67, 3), dtype=np.uint8))
    for top, left, tall, wide in [(0.1, 0.2, 0.51, 0.33), (0.333, 0.5, 0.667, 0.5), (0.013, 0.777, 0.42, 0.21)]:
        i, j, h, w = top * 41, left * 67, tall * 41, wide * 67
        box = tuple(map(round, (j, i, j + w, i + h)))
        assert box_of((top, left, tall, wide), (41, 67)) == box  # a corner is rounded, not a length
        expected = tf.resize(picture.crop(box), [16, 16], InterpolationMode.BILINEAR)
        mine = cut(picture, (top, left, tall, wide), False, 16, Image.Resampling.BILINEAR)
        assert np.abs(mine.astype(int) - np.asarray(expected)).max() <= 1
        assert np.array_equal(cut(picture, (top, left, tall, wide), True, 16, Image.Resampling.BILINEAR), mine[:, ::-1])


# -- making them
def test_a_generation_goes_on_and_makes_the_same_files(images, tmp_path):
    given = {"classes": CLASSES, "crops": 5, "form": "marginal_smoothing_k3", "size": 16}
    generate_soft_labels(Teacher(), images, tmp_path / "whole", batch=3, **given)

    class Tired(Teacher):
        def forward(self, x):
            if len(self.asked) == 6:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        generate_soft_labels(Tired(), images, tmp_path / "cut", batch=7, **given)
    begun = files(tmp_path / "cut")
    assert 0 < len(begun) < 14 and not list((tmp_path / "cut").rglob("*.part"))
    torn = sorted((tmp_path / "cut").rglob("*.safetensors"))[0]
    torn.write_bytes(torn.read_bytes()[:40])
    said = []
    made = generate_soft_labels(Teacher(), images, tmp_path / "cut", batch=7, workers=2, say=said.append, **given)
    assert made.made == 15 - len(begun) and any("are there already" in line for line in said) and "MiB" in said[0]
    for name, one in ((n, read_labels(tmp_path / "whole" / n)) for n in files(tmp_path / "whole")):
        two = read_labels(tmp_path / "cut" / name)
        assert torch.equal(one.coords, two.coords) and torch.allclose(one.labels, two.labels, atol=1e-5)


def test_a_folder_made_otherwise_is_refused(images, tmp_path):
    given = {"classes": CLASSES, "crops": 2, "form": "smoothing", "size": 16}
    generate_soft_labels(Teacher(), images, tmp_path, **given)
    with pytest.raises(DataError, match="another seed; choose another --out"):
        generate_soft_labels(Teacher(), images, tmp_path, **given, seed=1)
    other = Teacher()
    other.linear.bias.data += 1
    with pytest.raises(DataError, match="another weights"):
        generate_soft_labels(other, images, tmp_path, **given)
    with pytest.raises(OffprintError, match="the teacher has 5 outputs, the data 7 classes"):
        generate_soft_labels(Teacher(5), images, tmp_path / "y", **given)


def test_labels_of_other_data_or_another_crop_seed_are_refused(images, tmp_path, store):
    root = store.files[0].parents[2]
    other = ArrayImages(images.images[:, ::-1].copy(), np.array(images.targets))
    with pytest.raises(DataError, match="soft labels of other pictures"):
        open_labels(root, other, CLASSES)
    with pytest.raises(DataError, match="holds soft labels of 7 classes"):
        open_labels(root, images, CLASSES[:6] + ["h"])
    generate_soft_labels(Teacher(), images, tmp_path / "s", classes=CLASSES, crops=6, form="ori", size=16, seed=1)
    mixed = open_labels(tmp_path / "s", images, CLASSES)
    mixed.files[0].write_bytes(store.files[0].read_bytes())
    with pytest.raises(
        DataError, match=f"has the fingerprint {store.fingerprint}, its folder {mixed.fingerprint}.*another crop seed"
    ):
        mixed.read(0)
    mixed.files[1].write_bytes(mixed.files[2].read_bytes())
    with pytest.raises(DataError, match="holds the labels of train/c/00000002, not of train/b/00000001"):
        mixed.read(1)
    mixed.files[3].unlink()
    with pytest.raises(DataError, match=r"1 of 14 pictures have no file in .* \(train/d/00000003\)"):
        open_labels(tmp_path / "s", images, CLASSES)
    with pytest.raises(DataError, match="no soft_labels.json"):
        open_labels(tmp_path / "nowhere", images, CLASSES)


def test_crops_are_used_again_and_teachers_averaged(images, tmp_path, store):
    other, root = Teacher(), store.files[0].parents[2]
    other.linear.weight.data.mul_(-1)
    generate_soft_labels(
        other, images, tmp_path / "two", classes=CLASSES, crops=6, form="ori", size=16, reference=root, seed=9
    )
    two = open_labels(tmp_path / "two", images, CLASSES)
    mean = average([root, tmp_path / "two"], images, CLASSES, tmp_path / "mean", "ori")
    assert torch.equal(two.read(4).coords, store.read(4).coords)
    assert torch.allclose(mean.read(4).labels, (two.read(4).labels + store.read(4).labels) / 2, atol=1e-6)
    generate_soft_labels(other, images, tmp_path / "three", classes=CLASSES, crops=6, form="ori", size=16, seed=9)
    with pytest.raises(DataError, match="the crops differ"):
        average([root, tmp_path / "three"], images, CLASSES, tmp_path / "no", "ori")


# -- files of FKD
def test_files_of_fkd_are_read_without_running_them(images, tmp_path, store):
    from offprint.methods.training._soft_labels import names_of

    for i, name in enumerate(names_of(images, CLASSES)):
        found = store.read(i)
        file = tmp_path / f"{name}.tar"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            [
                found.coords.numpy(),
                found.flips.numpy(),
                quantize_soft_labels(found.labels, "marginal_smoothing_k5").half(),
            ],
            file,
        )
    theirs = open_labels(tmp_path, images, CLASSES, released="marginal_smoothing_k5")
    assert torch.equal(theirs.read(3).coords, store.read(3).coords)
    assert torch.allclose(theirs.recovered(theirs.read(3)).amax(1), store.read(3).labels.amax(1), atol=1e-3)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for write in (lambda f: torch.save([Bomb(), 1, 2], f), lambda f: f.write_bytes(pickle.dumps(Bomb()))):
        write(tmp_path / "evil.tar")
        with pytest.raises(DataError, match="is no file of FKD"):
            read_released(tmp_path / "evil.tar")
    assert not (tmp_path / "ran").exists()


def test_names_count_up_to_the_first_point(tmp_path):
    for name in ("x.1.png", "x.2.png"):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / name)
    from offprint.data.pictures import Pictures
    from offprint.methods.training._soft_labels import names_of

    with pytest.raises(DataError, match="two pictures would have the label file train/a/x"):
        names_of(Pictures(tmp_path), ["a"])


# -- regions and mixing
def test_regions_go_by_the_stored_value_and_the_surest_crop_is_left(images, store):
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.02, 0.96, 0.02], [0.34, 0.33, 0.33]])
    labels, kinds, _ = calibrate_regions(probabilities, torch.tensor([1, 1, 2]), 0.2, 0.35, 0.95, 0.1)
    assert kinds.tolist() == [2, 0, 1] and torch.allclose(labels[2], torch.tensor([0.05, 0.05, 0.9]))
    shifted = calibrate_regions(
        probabilities, torch.tensor([1, 1, 2]), 0.2, 0.35, 0.95, stored_top=torch.tensor([0.1, 0.5, 0.5])
    )
    assert shifted[1].tolist() == [0, 2, 2]
    none = Replay(images, store, 8, {}, 3, Regions(0.0, 0.0, 0.0))  # everything is above the highest threshold
    found, chosen, _ = none.choose(5, 3)
    assert chosen.tolist() == [int(found.labels.amax(1).argmax())] * 3
    some = Replay(images, store, 8, {}, 3, Regions(0.0, 0.3, float(store.read(5).labels.amax(1).median())))
    assert found.labels.amax(1)[some.choose(5, 3)[1]].max() <= some.adapt.top + 1e-6
    with pytest.raises(OffprintError, match="low=0.5, middle=0.3"):
        make("ferkd:low=0.5")


def test_a_batch_lies_crop_by_crop_and_partners_are_of_the_same_image():
    batch = torch.arange(6).view(3, 2)  # three images of two crops
    assert crop_major(batch).tolist() == [0, 2, 4, 1, 3, 5]
    rows = partners([1, 2, 0], 4)
    assert all(int(r) % 4 == i % 4 for i, r in enumerate(rows))
    with pytest.raises(OffprintError, match="5 rows are no 2 crops"):
        selfmix(torch.zeros(5, 1, 2, 2), torch.zeros(5, 3), [1, 0], 0.5)


def test_mixing_keeps_labels_with_their_crops_and_the_batch_as_it_was():
    torch.manual_seed(0)
    images = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 6, 6).contiguous()
    labels, before = nn.functional.one_hot(torch.arange(8), 8).float(), images.clone()
    for which in ("selfmix", "batch"):
        for _ in range(20):
            mixed, soft = random_mix(images, labels, 2, which)
            assert torch.allclose(
                mixed.mean((1, 2, 3)), soft @ torch.arange(8.0), atol=1e-4
            )  # as much of a label as of its picture
            if which == "selfmix":
                assert all({j % 4 for j in row.nonzero()[:, 0].tolist()} == {i % 4} for i, row in enumerate(soft))
    assert torch.equal(images, before)
    assert random_mix(images, labels, 1, "selfmix")[0] is images
    top, bottom, left, right = cut_box(20, 30, 0.75)
    assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 30 and bottom - top <= 10 and right - left <= 15
    assert mix(images, labels, torch.arange(8).flip(0), 0.9, (0, 3, 0, 6))[2] == 0.5


def test_an_epoch_is_as_many_crops_as_pictures():
    batches = [list(CropSampler(12, epoch, 6, 3, 6)) for epoch in range(6)]
    for epoch in (0, 1, 2):
        assert [(len(b), b[0][2]) for b in batches[epoch]] == [(2, 3), (2, 3)]
    assert sorted(i for epoch in (0, 1, 2) for b in batches[epoch] for _, i, _ in b) == list(
        range(12)
    )  # one pass lasts three epochs
    for epoch in (3, 4, 5):  # the last three: each picture, one crop
        assert sorted(i for b in batches[epoch] for _, i, n in b if n == 1) == list(range(12))


# -- from a teacher to a student
def test_students_learn_from_files_alone(images, store, tmp_path):
    root = store.files[0].parents[2]
    data = ImageSplits(images, ArrayImages(images.images[:4], np.array(images.targets[:4])), CLASSES, "noise")
    recipe = {
        "epochs": 3,
        "batch_size": 4,
        "lr": 1e-3,
        "input_size": 32,
        "warmup_epochs": 0,
        "mixup": 0.2,
        "label_smoothing": 0.1,
    }
    said, options = [], {"scale": 0.05}

    def train(out, method, **kwargs):
        return offprint.train("nin3_supervised", data, tmp_path / out, methods=[method], recipe={**recipe, "reference_batch": 0, "weight_decay": 0}, model_options=options, say=said.append, **QUIET, **kwargs)  # fmt: skip

    run = train("a", {"name": "ferkd", "labels": str(root), "crops": 2, "mix": "selfmix"})
    assert "stored crops take the place of the recipe's mixup, label_smoothing" in said and any(
        "dropped" in line for line in said
    )
    assert run["methods"]["ferkd"]["bytes"] == store.bytes
    assert sum(run["methods"]["ferkd"]["crops_percent"].values()) == pytest.approx(100, abs=0.1)
    again = train("b", {"name": "ferkd", "labels": str(root), "crops": 2, "mix": "selfmix"})
    assert again.weights.read_bytes() == run.weights.read_bytes()
    for method, message in [
        ("ferkd", "labels=DIR, made by offprint label"),
        ({"name": "ferkd", "labels": str(tmp_path)}, "no soft_labels.json"),
    ]:
        with pytest.raises(OffprintError, match=message):
            train("c", method)
    with pytest.raises(OffprintError, match="selfmix mixes crops of one image"):
        make("ferkd:crops=1,mix=selfmix")
    generate_soft_labels(Teacher(), images, tmp_path / "hard", classes=CLASSES, crops=3, form="hard", size=16)
    with pytest.raises(OffprintError, match="hard labels do not say how sure the teacher was"):
        train("c", {"name": "ferkd", "labels": str(tmp_path / "hard")})
    assert train("d", {"name": "ferkd", "labels": str(tmp_path / "hard"), "calibrate": False})["epochs"] == 3


def test_the_verbs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    draw = np.random.default_rng(0)
    for name, base in (("x", 30), ("y", 160)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(base, base + 60, (16, 16, 3), dtype=np.uint8)).save(
                tmp_path / "d" / name / f"{i}.png"
            )

    def call(*words, code=0):
        found = CliRunner().invoke(app, [str(w) for w in words])
        assert (found.exit_code == 0) == (code == 0), (found.output, found.exception)
        return found.output + str(found.exception or "")

    common = ("--model", "nin3_supervised", "--data", tmp_path / "d", "-o", "scale=0.05", "--size", 16, "--epochs", 2, "--batch-size", 4,
              "--accelerator", "cpu", "--logger", "none")  # fmt: skip
    call("train", *common, "--out", tmp_path / "t")
    words = (
        "label",
        "--teacher",
        tmp_path / "t",
        "--data",
        tmp_path / "d",
        "--out",
        tmp_path / "l",
        "--crops",
        3,
        "--format",
        "smoothing",
    )
    said = call(*words)
    assert "labels per second" in said and "8 files" in said and "MiB" in said
    assert "0 made" in call(*words) and "another crops" in call(*words, "--crops", 4, code=1)
    (tmp_path / "t" / "model.safetensors").unlink()  # the teacher is gone
    said = call("train", *common, "--method", f"ferkd:labels={tmp_path / 'l'},crops=2", "--out", tmp_path / "s")
    assert "validation accuracy" in said
    assert "soft labels of other pictures" in call(
        "train", *common, "--method", f"ferkd:labels={tmp_path / 'l'}", "--seed", 5, "--out", tmp_path / "u", code=1
    )
