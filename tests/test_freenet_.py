"""FreeNet: scenes in several formats, the sampler, training that resumes, mistakes that are named."""

import numpy as np
import pytest
import torch

import offprint
from offprint.data.scenes import Scene, open_scene, simulated_scene
from offprint.errors import DataError, OffprintError
from offprint.models.segmentation.freenet import (
    FreeNet,
    StratifiedSampler,
    fixed_num_sample,
    masked_loss,
    minibatch_sample,
)
from offprint.tasks.scenes import scores

SMALL = {"reduction_ratio": 0.25}
RECIPE = {"epochs": 3, "per_class": 30, "minibatch": 10, "lr": 0.05}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    from scipy.io import savemat

    root, scene = tmp_path_factory.mktemp("scene"), simulated_scene(48, 12, 3)
    np.save(root / "cube.npy", scene.cube)
    np.save(root / "gt.npy", scene.labels)
    savemat(root / "scene.mat", {"paviaU": scene.cube, "extra": np.zeros((2, 2))})
    savemat(root / "gt.mat", {"paviaU_gt": scene.labels})
    np.savez(root / "both.npz", cube=scene.cube, labels=scene.labels)
    return root


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    return offprint.train(
        "freenet",
        files / "scene.mat",
        out,
        options={"labels": str(files / "gt.mat")},
        model_options=SMALL,
        recipe=RECIPE,
        progress=False,
    )


def test_formats_hold_the_same_scene(files):
    a = open_scene(files / "cube.npy", files / "gt.npy")
    assert isinstance(a.cube, np.memmap)  # mapped, not read
    for cube, labels in (("scene.mat", "gt.mat"), ("both.npz", "gt.npy")):
        b = open_scene(files / cube, files / labels)
        assert np.array_equal(a.cube, b.cube) and np.array_equal(a.labels, b.labels) and a.digest == b.digest
    part = open_scene(files / "cube.npy", files / "gt.npy", crop="8:40,0:16")
    assert part.cube.shape == (32, 16, 12) and np.array_equal(part.labels, a.labels[8:40, :16])


def test_tiff_with_bands_first_or_last(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    cube = np.random.default_rng(0).normal(size=(20, 24, 7)).astype(np.float32)
    tifffile.imwrite(tmp_path / "last.tif", cube, photometric="minisblack")
    tifffile.imwrite(tmp_path / "first.tif", np.moveaxis(cube, -1, 0), photometric="minisblack")
    for name in ("last", "first"):
        assert np.array_equal(open_scene(tmp_path / f"{name}.tif").cube, cube)


def test_bands_are_normalised_over_the_whole_scene():
    scene = simulated_scene(32, 6, 3)
    scene.cube[..., 2] = 4
    x = scene.normalised()
    assert (
        np.allclose(x.mean((1, 2)), 0, atol=1e-5)
        and np.allclose(x.std((1, 2))[[0, 1, 3]], 1, atol=1e-5)
        and (x[2] == 0).all()
    )
    scene.cube[5, 7, 3] = np.nan
    with pytest.raises(DataError, match="band 3 .* row 5, column 7"):
        scene.normalised()


def test_bad_files_are_named(files, tmp_path):
    np.save(tmp_path / "first.npy", np.zeros((200, 20, 24)))
    np.save(tmp_path / "map.npy", np.ones((20, 24), int))
    np.save(tmp_path / "turned.npy", np.ones((40, 48), int))
    np.save(tmp_path / "none.npy", np.zeros((48, 48), int))
    np.savez(tmp_path / "two.npz", a=np.zeros((9, 9, 4)), b=np.zeros((9, 9, 4)))
    (tmp_path / "broken.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    for source, options, says in (
        (tmp_path / "no.mat", {}, "there is no cube"),
        (tmp_path / "broken.mat", {}, "cannot read the cube"),
        (tmp_path / "first.npy", {"labels": tmp_path / "map.npy"}, "bands come first"),
        (tmp_path / "two.npz", {}, "2 arrays .* --key"),
        (files / "scene.mat", {"key": "indian"}, "no array 'indian'; it holds"),
        (files / "cube.npy", {"labels": tmp_path / "turned.npy"}, "40 x 48 pixels, the scene 48 x 48"),
        (files / "cube.npy", {"labels": tmp_path / "none.npy"}, "numbered from 1"),
        (files / "cube.npy", {"crop": "0:9"}, "top:bottom"),
        (files / "cube.npy", {"crop": "0:90,0:9"}, "does not lie inside"),
    ):
        with pytest.raises(DataError, match=says):
            open_scene(source, **options)


# -- sampling and loss


def test_every_pixel_is_learnt_from_once_an_epoch():
    labels = simulated_scene(40, 4, 4).labels
    train, test = fixed_num_sample(labels, 25, 4)
    assert not (train & test).any() and [int((labels[train] == c).sum()) for c in range(1, 5)] == [25] * 4
    sampler = StratifiedSampler(labels, train, 10)
    for epoch in (0, 1, 7):
        batches = sampler.epoch(epoch)
        assert len(batches) == sampler.count == 3
        seen = np.concatenate(batches)
        assert len(seen) == len(set(seen.tolist())) == 100 and train.ravel()[seen].all()
        sizes = sorted(len(b) for b in batches)
        assert sizes == [20, 40, 40]  # ten of each class, and a short last piece
    assert [b.tolist() for b in sampler.epoch(2)] == [b.tolist() for b in sampler.epoch(2)]
    assert [b.tolist() for b in sampler.epoch(2)] != [b.tolist() for b in sampler.epoch(3)]


def test_a_used_up_class_drops_out():
    labels = np.array([[1] * 9 + [2] * 3])
    batches = minibatch_sample(labels, labels > 0, 4, 0)
    assert [[int((labels.ravel()[b] == c).sum()) for c in (1, 2)] for b in batches] == [[4, 3], [4, 0], [1, 0]]


def test_a_small_class_is_learnt_from_whole():
    labels = np.array([[1] * 50, [2] * 5 + [0] * 45])
    train, test = fixed_num_sample(labels, 20, 2)
    assert int((labels[train] == 2).sum()) == 5 and int((labels[test] == 2).sum()) == 0
    found = scores(torch.ones(2, 50).long(), torch.from_numpy(labels * test), 2)
    assert found["aa_tested"] == 1.0 and abs(found["aa"] - 0.5) < 1e-6  # the released mean counts the empty class as 0


def test_background_in_the_mask_is_counted_and_costs_nothing():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 2, 2), torch.tensor([[[1, 0], [2, 3]]])
    mask = torch.tensor([[[1, 1], [0, 0]]])
    expected = -logits.log_softmax(1)[0, 0, 0, 0] / 2
    torch.testing.assert_close(masked_loss(logits, labels, mask), expected)


def test_scores_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score

    torch.manual_seed(0)
    said, truth = torch.randint(1, 5, (300,)), torch.randint(0, 5, (300,))
    keep = truth > 0
    found = scores(said, truth, 4)
    assert abs(found["oa"] - accuracy_score(truth[keep], said[keep])) < 1e-9
    assert abs(found["aa_tested"] - balanced_accuracy_score(truth[keep], said[keep])) < 1e-9
    assert abs(found["kappa"] - cohen_kappa_score(truth[keep], said[keep])) < 1e-9
    with pytest.raises(DataError, match="not one pixel"):
        scores(said, torch.zeros(300), 4)


# -- the network


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("freenet_pavia", 2_712_755), ("freenet_salinas", 2_800_922), ("freenet_houston", 2_748_953)],
)
def test_parameters(name, parameters):
    assert sum(p.numel() for p in offprint.create_model(name).parameters()) == parameters


def test_any_size_and_both_modes():
    net = FreeNet(7, 3, reduction_ratio=0.25).eval()
    x = torch.randn(2, 7, 21, 35)
    y = net(x)
    assert y.shape == (2, 3, 21, 35)
    torch.testing.assert_close(y.sum(1), torch.ones(2, 21, 35))
    torch.testing.assert_close(net.logits(x).softmax(1), y)
    padded = torch.nn.functional.pad(x, (0, 13, 0, 11))
    torch.testing.assert_close(net(padded)[..., :21, :35], y)
    torch.testing.assert_close(net.train()(x), net.logits(x))
    with pytest.raises(OffprintError, match="in_chans="):
        net(torch.randn(2, 6, 16, 16))
    with pytest.raises(OffprintError, match="reduction_ratio"):
        FreeNet(reduction_ratio=0.05)


# -- the task


def test_it_learns_a_scene(run):
    assert run.figures["oa"] > 60 and run.folder.joinpath("model.safetensors").is_file()
    found = offprint.evaluate(run.folder)
    assert abs(found["oa"] - run.figures["oa"]) < 1e-3 and [r["class"] for r in found.rows] == [1, 2, 3]


def test_predicting_maps(run, files, tmp_path):
    from PIL import Image

    found = offprint.predict(run.folder, files / "cube.npy")
    assert found.maps[0].shape == (48, 48) and set(np.unique(found.maps[0])) <= {1, 2, 3}
    found.save(tmp_path / "map.png")
    found.save(tmp_path / "map.npy")
    found.save(tmp_path / "all")
    found.save(tmp_path / "shares.csv")
    assert Image.open(tmp_path / "map.png").size == (48, 48) and np.array_equal(
        np.load(tmp_path / "map.npy"), found.maps[0]
    )
    np.save(tmp_path / "other.npy", np.zeros((20, 20, 5), np.float32))
    with pytest.raises(DataError, match="5 bands, the model was trained on 12"):
        offprint.predict(run.folder, tmp_path / "other.npy")


def test_the_console(files, tmp_path):
    from typer.testing import CliRunner

    from offprint.cli.main import app

    words = ["train", "--model", "freenet_slim", "--data", str(files / "scene.mat"), "--labels", str(files / "gt.mat"), "--per-class", "20",
             "--minibatch", "10", "--epochs", "1", "--out", str(tmp_path / "r")]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "optimistic" in done.output and "20, 20, 20" in done.output
    done = CliRunner().invoke(
        app, ["predict", str(files / "cube.npy"), "--model", str(tmp_path / "r"), "--out", str(tmp_path / "m.png")]
    )
    assert done.exit_code == 0 and (tmp_path / "m.png").is_file(), done.output


def test_an_interrupted_run_goes_on_to_the_same_weights(files, tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise RuntimeError("cut")

    def train(out, **more):
        return offprint.train("freenet", files / "cube.npy", out, options={"labels": str(files / "gt.npy")}, model_options=SMALL, recipe=RECIPE,
                              progress=False, **more)  # fmt: skip

    train(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="cut"):
        train(tmp_path / "cut", callbacks=[Stop()])
    train(tmp_path / "cut")
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert a == b


def test_splits_that_leave_nothing(files, tmp_path):
    labels = np.load(files / "gt.npy")
    gap = np.where(labels == 2, 4, labels)
    np.save(tmp_path / "gap.npy", gap)
    for options, recipe, says in (
        ({"labels": str(tmp_path / "gap.npy")}, {}, "class 2 of 4 have no pixel|classes? 2 of 4"),
        ({"labels": str(files / "gt.npy")}, {"per_class": 10000}, "takes every labelled pixel"),
        ({}, {}, "no labels to learn from"),
    ):
        with pytest.raises(DataError, match=says):
            offprint.train(
                "freenet", files / "cube.npy", tmp_path / "x", options=options, recipe=recipe, progress=False
            )
    train, test = np.zeros_like(labels), np.zeros_like(labels)
    train[:24], test[24:] = 1, 1
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "test.npy", test)
    options = {
        "labels": str(files / "gt.npy"),
        "train_map": str(tmp_path / "train.npy"),
        "test_map": str(tmp_path / "test.npy"),
    }
    said = []
    if all((labels[:24] == c).any() for c in (1, 2, 3)):
        offprint.train("freenet", files / "cube.npy", tmp_path / "own", options=options, model_options=SMALL, recipe={**RECIPE, "epochs": 1},
                       say=said.append, progress=False)  # fmt: skip
        assert not any("optimistic" in line for line in said)


def test_a_scene_in_memory(tmp_path):
    scene = simulated_scene(32, 8, 3)
    done = offprint.train(
        "freenet", scene, tmp_path / "r", model_options=SMALL, recipe={**RECIPE, "epochs": 1}, progress=False
    )
    assert done.load().predict(Scene(scene.cube, name="again")).maps[0].shape == (32, 32)
