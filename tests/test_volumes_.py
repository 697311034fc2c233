"""Volumes as a task: layouts, grids, bad files, windows in bounded memory, training, use, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import torch

import offprint
from offprint.data import labelled_volumes as files
from offprint.data.labelled_volumes import BRATS, Case, VolumeClasses, open_volumes
from offprint.errors import DataError, OffprintError
from offprint.nn.sliding import sliding_window
from offprint.tasks import volumes
from offprint.tasks.contract import tasks_of

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
MODEL = "h_denseunet_released"
SLIM = {"layers": (1, 1, 1, 1), "growth": 4, "stem": 8, "up": (8, 8, 8, 8, 8)}
BUILD = {"plane": SLIM, "volume": SLIM}


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def scan(seed, shape=(36, 40, 12)):
    """A bright box in noise, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    x, y, z = (int(rng.integers(2, n // 2)) for n in shape)
    mask[x : x + 14, y : y + 14, z : z + 5] = 1
    mask[x : x + 5, y : y + 5, z : z + 5] = 2
    return (rng.normal(0, 10, shape) + 60.0 * mask).astype(np.float32), mask


def pairs(root, count=4, **kwargs):
    for i in range(count):
        image, mask = scan(i, **kwargs)
        write(root / "images" / f"case{i}.nii.gz", image)
        write(root / "labels" / f"case{i}.nii.gz", mask)
    (root / "classes.txt").write_text("background\nliver\ntumour\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pairs(tmp_path_factory.mktemp("volumes"))


FAST = {
    "recipe": {"epochs": 2, "batch_size": 1, "lr": 1e-2, "optimizer": "adamw", "loss": "dice+ce"},
    "options": {"crop": "32,32,8", "normalize": "zscore"}, "model_options": BUILD, "progress": False, "logger": "none",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return offprint.train(MODEL, folder, tmp_path_factory.mktemp("run"), **FAST)


# -- files


def test_layouts(folder, tmp_path):
    splits = open_volumes(folder)
    assert len(splits.train) == 3 and len(splits.val) == 1 and splits.classes.names == ("background", "liver", "tumour")
    image, mask = scan(0)
    root = tmp_path / "btcv"
    for i in range(3):
        write(root / "imagesTr" / f"img000{i}.nii.gz", image)
        write(root / "labelsTr" / f"label000{i}.nii.gz", mask)
    rows = [{"image": f"imagesTr/img000{i}.nii.gz", "label": f"labelsTr/label000{i}.nii.gz"} for i in range(3)]
    told = {
        "labels": {"0": "background", "1": "spleen", "2": "kidney"},
        "modality": {"0": "CT"},
        "training": rows[:2],
        "validation": rows[2:],
    }
    (root / "dataset.json").write_text(json.dumps(told))
    splits = open_volumes(root)
    assert splits.own and splits.classes.names[1:] == ("spleen", "kidney") and splits.val[0].name == "img0002"
    (root / "dataset.json").unlink()
    assert len(open_volumes(root).train) == 2  # by like numbers
    (root / "dataset.json").write_text('{"training": 3}')
    with pytest.raises(DataError, match=r"dataset\.json cannot be used"):
        open_volumes(root)
    brats = tmp_path / "brats"
    for i in range(2):
        for kind in ("flair", "t1ce", "t1", "t2"):
            write(brats / f"B{i}" / f"B{i}_{kind}.nii.gz", image)
        write(brats / f"B{i}" / f"B{i}_seg.nii.gz", np.where(mask == 2, 4, mask).astype(np.uint8))
    splits = open_volumes(brats)
    assert splits.classes == BRATS and splits.modalities == ("FLAIR", "T1ce", "T1", "T2")
    read, grid = files.read_image(splits.train[0], 4)
    assert read.shape == (4, 36, 40, 12) and grid.spacing == (1.0, 1.5, 2.0) and grid.orientation == "RAS"
    (brats / "B0" / "B0_t1ce.nii.gz").unlink()
    with pytest.raises(DataError, match="B0 has no modality T1ce"):
        open_volumes(brats)
    with pytest.raises(DataError, match="T1ce"):
        volumes._cases([brats / "B0"], 4)
    (tmp_path / "nothing").mkdir()
    for what, says in ((tmp_path / "gone", "no folder at"), (tmp_path / "nothing", "holds no volumes with masks")):
        with pytest.raises(DataError, match=says):
            open_volumes(what)


def test_bad_files_are_named(folder, tmp_path):
    image, mask = scan(0)
    classes = VolumeClasses(("background", "liver", "tumour"))

    count = iter(range(100))

    def case(image, mask=mask, affine=AFFINE):
        root = tmp_path / str(next(count))
        write(root / "bad.nii.gz", image)
        write(root / "bad_mask.nii.gz", mask, affine)
        return Case("bad", (root / "bad.nii.gz",), root / "bad_mask.nii.gz")

    broken = image.copy()
    broken[3, 3, 3] = np.nan
    for given, says in (
        (case(broken), "bad.nii.gz holds 1 voxels that are not finite"),
        (
            case(np.stack([image] * 5, -1)),
            r"bad.nii.gz has the sides \(36, 40, 12, 5\), and a volume of three dimensions was meant",
        ),
    ):
        with pytest.raises(DataError, match=says):
            files.read_image(given, 1)
    for given, says in (
        (case(image, mask[:-1]), r"bad_mask.nii.gz has the sides \(35, 40, 12\) and its image"),
        (case(image, mask * 3), "bad_mask.nii.gz has the values 3, 6"),
        (case(image, mask, np.diag([2.0, 2.0, 2.0, 1.0])), "bad_mask.nii.gz lies elsewhere"),
        (case(image, image), "bad_mask.nii.gz is no mask"),
    ):
        with pytest.raises(DataError, match=says):
            files.read_label(given, classes, files.grid_of(given.images[0]))
    (tmp_path / "torn.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read the volume"):
        files.grid_of(tmp_path / "torn.nii.gz")
    root = pairs(tmp_path / "lost", 3)
    (root / "labels" / "case1.nii.gz").unlink()
    with pytest.raises(DataError, match="case1.nii.gz has no mask"):
        open_volumes(root)
    assert len(open_volumes(root, on_error="skip").notes) == 1


def test_other_grids_are_refused_and_resampled_on_request(run, tmp_path):
    root = pairs(tmp_path / "mixed", 3)
    image, mask = scan(7)
    turned = np.array([[0, -1.5, 0, 0], [1.0, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1.0]])
    write(root / "images" / "case3.nii.gz", image, turned)
    write(root / "labels" / "case3.nii.gz", mask, turned)
    cases = open_volumes(root).train + open_volumes(root).val
    with pytest.raises(
        DataError, match=r"case3.*orientation ALS.*1 x 1.5 x 2 mm, orientation RAS|case\d.*RAS.*case3.*ALS"
    ):
        files.agreed(sorted(cases, key=lambda c: c.name))
    with pytest.raises(DataError, match="give --spacing"):
        offprint.train(MODEL, root, tmp_path / "r", **FAST)
    grid = files.grid_of(root / "images" / "case3.nii.gz")
    label = torch.from_numpy(mask)
    there = files.to_grid(label[None], grid, (0.75, 0.5, 1.0), "RAS", labels=True)[0]
    assert there.shape == (80, 72, 24) and torch.equal(files.from_grid(there, grid, "RAS"), label)
    with pytest.raises(DataError, match="give --resample true"):
        offprint.predict(run.folder, root / "images" / "case3.nii.gz")
    found = offprint.predict(run.folder, root / "images" / "case3.nii.gz", resample=True)
    assert found.masks[0].shape == (36, 40, 12)


# -- windows


class Sum(torch.nn.Module):
    """Scores that depend on the window as a whole, so that every seam would show."""

    def forward(self, x):
        return torch.cat([x + x.mean(), 2 * x - x.amax()], 1)


@pytest.mark.parametrize("sides", [(11, 9, 13), (6, 20, 7), (4, 5, 30)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_slabs_are_the_sliding_window(sides, overlap):
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    x, window, net = torch.randn(1, *sides), (6, 8, 6), Sum()
    out, seen = torch.zeros(2, *sides), torch.zeros(sides)
    for place, scores in volumes.slabs(net, x, window, overlap):
        out[(slice(None), *place)] = scores
        seen[place] += 1
    assert (seen == 1).all()
    torch.testing.assert_close(out, sliding_window(net, x[None], window, overlap)[0])
    torch.testing.assert_close(out, sliding_window_inference(x[None], window, 1, net, overlap=overlap)[0])


def test_memory_follows_the_window():
    """A volume of 200 layers with 30 classes: all scores would be 460 MB."""
    import resource

    class Wide(torch.nn.Module):
        size_multiple = 8

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(30, 1, 1, 1, 1))

        def forward(self, x):
            return torch.nn.functional.conv3d(x, self.w)

    x = torch.randn(1, 200, 160, 120)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    volumes.segmented(Wide(), x, VolumeClasses(tuple(map(str, range(30)))), (16, 64, 64), 0.0)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3 < 250


# -- the task


def test_which_models():
    assert tasks_of("swin_unetr_tiny") == ["volumes"] and tasks_of(MODEL) == ["volumes"]
    assert tasks_of("denseunet161_2d") == ["segmentation", "volumes"] and "volumes" not in tasks_of("att_swin_unet")


def test_training_evaluating_and_masks_with_the_inputs_geometry(run, folder, tmp_path):
    figures = offprint.evaluate(run.folder)
    assert abs(figures["dice"] - run.figures["dice"]) < 1e-3 and np.isfinite(figures["hd95"])
    assert [r["class"] for r in figures.rows] == ["liver", "tumour"] and figures["volumes"] == 1
    found = offprint.predict(run.folder, folder / "images" / "case1.nii.gz")
    found.save(tmp_path / "out")
    mask = nibabel.load(tmp_path / "out" / "case1_mask.nii.gz")
    image = nibabel.load(folder / "images" / "case1.nii.gz")
    assert mask.shape == image.shape and np.array_equal(mask.affine, image.affine) and mask.get_data_dtype() == np.uint8
    assert mask.header["sform_code"] == image.header["sform_code"] and np.array_equal(
        np.asarray(mask.dataobj), found.masks[0]
    )
    assert (tmp_path / "out" / "case1_overlay.png").stat().st_size > 500
    found.save(tmp_path / "one.nii.gz")
    found.save(tmp_path / "ml.csv")
    with pytest.raises(OffprintError, match="to a folder"):
        found.save(tmp_path / "one.png")
    with pytest.raises(OffprintError, match="three numbers"):
        offprint.predict(run.folder, folder / "images", window="32,32")
    with pytest.raises(OffprintError, match="overlap=1"):
        offprint.predict(run.folder, folder / "images" / "case1.nii.gz", overlap=1.0)


def test_empty_masks_have_a_score():
    classes, empty = VolumeClasses(("background", "liver")), torch.zeros(4, 4, 4, dtype=torch.uint8)
    full = torch.ones(4, 4, 4, dtype=torch.uint8)
    score = lambda a, b: volumes.case_scores(a, b, classes, (1, 1, 2), True)[0]  # noqa: E731
    assert score(empty, empty) == {"dice": 100.0, "hd95": 0.0}
    assert score(full, empty) == {"dice": 0.0, "hd95": pytest.approx(96**0.5)}
    assert score(full, full) == {"dice": 100.0, "hd95": 0.0}
    shifted = empty.clone()
    shifted[:2] = 1
    assert 0 < score(shifted, full)["dice"] < 100 and score(shifted, full)["hd95"] == 2


def test_regions_of_brats_train_and_are_painted(tmp_path):
    for i in range(2):
        image, mask = scan(i, (32, 64, 32))
        for kind in ("t2f", "t1c", "t1n", "t2w"):
            write(tmp_path / "d" / f"B{i}" / f"B{i}-{kind}.nii.gz", image)
        write(tmp_path / "d" / f"B{i}" / f"B{i}-seg.nii.gz", np.where(mask == 2, 3, mask).astype(np.uint8))
    made = offprint.train("swin_unetr_tiny", tmp_path / "d", tmp_path / "run", recipe={"epochs": 1, "warmup_epochs": 0},
                          options={"crop": "32,64,32"}, progress=False, logger="none")  # fmt: skip
    found = offprint.predict(made.folder, tmp_path / "d" / "B0")
    assert found.masks[0].shape == (32, 64, 32) and set(np.unique(found.masks[0])) <= {0, 1, 2, 4}
    assert made.load().model.in_chans == 4
    scores = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.9, 0.1], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]).T
    assert BRATS.decide(scores).tolist() == [1, 2, 4, 0]


def test_stages_of_the_hybrid(folder, tmp_path):
    said = []
    fast = {**FAST, "recipe": {**FAST["recipe"], "epochs": 1, "loss": "own"}}
    flat = offprint.train("denseunet161_2d_released", folder, tmp_path / "flat", task="volumes", say=said.append,
                          **{**fast, "model_options": SLIM})  # fmt: skip
    assert offprint.predict(flat.folder, folder / "images" / "case0.nii.gz").masks[0].shape == (36, 40, 12)
    three = offprint.train(MODEL, folder, tmp_path / "three", checkpoint=str(flat.weights), **fast)
    both = flat.load().model.state_dict(), three.load().model.plane.state_dict()
    assert all(torch.equal(v, both[1][k]) for k, v in both[0].items())  # the 2-D branch was held still
    end = offprint.train(
        three.folder,
        folder,
        tmp_path / "end",
        stage="finetuning",
        **{k: v for k, v in fast.items() if k != "model_options"},
    )
    assert any(not torch.equal(v, end.load().model.plane.state_dict()[k]) for k, v in both[0].items())


def test_killed_training_goes_on_to_the_same_weights(tmp_path):
    data = pairs(tmp_path / "data", 3, shape=(32, 32, 8))
    longer = {**FAST, "recipe": {**FAST["recipe"], "epochs": 4}}
    code = f"import sys, offprint; offprint.train({MODEL!r}, sys.argv[1], sys.argv[2], **{longer!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(data), str(tmp_path / "cut")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (tmp_path / "cut" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "cut" / "last.ckpt").exists() and not (tmp_path / "cut" / "model.safetensors").exists()
    for name in ("whole", "cut"):
        offprint.train(MODEL, data, tmp_path / name, **longer)
    whole, cut = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "cut"))
    assert whole == cut
