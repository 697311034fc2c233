"""Detection as a task: training, resuming, average precision, prediction in the picture's own pixels, tiles."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from offprint.data.boxes import digit_scenes, open_boxes
from offprint.errors import DataError, OffprintError
from offprint.tasks._average_precision import AveragePrecision
from offprint.tasks._detecting import Sizes, detected_in_tiles
from offprint.tasks.contract import Ready, by_name, evaluate, load_run, predict, train
from offprint.tasks.detection import DetectionRecipe

NAME = "resnet18_ibn_a+fpn+mask_rcnn"
SMALL = {
    "kind": "", "depths": (1, 1, 1, 1), "widths": (8, 8, 16, 16), "neck": {"name": "fpn", "out_channels": 16, "finest": 4},
    "head": {"name": "mask_rcnn", "hidden": 16, "mask_width": 8, "proposals": (50, 50, 20, 20), "regions": 16},
}  # fmt: skip
RECIPE = {"epochs": 2, "batch_size": 4, "short_sides": (64, 80)}


@pytest.fixture(scope="module")
def data():
    return digit_scenes(8, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    said = []
    done = train(
        NAME, data, tmp_path_factory.mktemp("run"), recipe=RECIPE, model_options=SMALL, progress=False, say=said.append
    )
    return done, said


def test_training_says_what_it_found_and_leaves_a_run(run, data):
    done, said = run
    assert "8 pictures with" in said[0] and "10 classes: 0, 1" in said[0] and "no camera saw them" in said[1]
    assert {"ap", "ap50", "ap75", "mask_ap"} <= set(done.figures["last_epoch"])
    figures = evaluate(done.load(), data)
    assert figures["ap"] == pytest.approx(done["ap"], abs=1e-6) and figures["pictures"] == 3
    assert [r["class"] for r in figures.rows] == [str(i) for i in range(10)]
    assert sum(r["objects"] for r in figures.rows) == sum(len(s.labels) for s in data.val.scenes)


def test_a_killed_run_resumes_to_the_same_weights(run, data, tmp_path):
    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                raise RuntimeError("killed")

    told = {"recipe": RECIPE, "model_options": SMALL, "progress": False}
    with pytest.raises(RuntimeError, match="killed"):
        train(NAME, data, tmp_path, callbacks=[Stop()], **told)
    again = train(NAME, data, tmp_path, **told)
    a, b = (load_run(d.folder).model.state_dict() for d in (run[0], again))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_head_with_masks_needs_masks(data, tmp_path):
    from dataclasses import replace

    bare = [replace(s, shapes=(None,) * len(s.labels)) for s in data.train.scenes]
    with pytest.raises(DataError, match="objects without one; .*faster_rcnn"):
        train(
            NAME,
            replace(data, train=data.train.but(scenes=bare)),
            tmp_path,
            recipe=RECIPE,
            model_options=SMALL,
            progress=False,
        )


def test_average_precision_is_pycocotools_of_the_files(tmp_path):
    """Ours, from what we read and gather, against pycocotools on the json of the truth and of the detections."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw = np.random.default_rng(0)
    images, truth, found = [], [], []
    for i in range(6):
        Image.new("RGB", (300, 200)).save(tmp_path / f"{i}.png")
        images.append({"id": 5 * i + 3, "file_name": f"{i}.png", "width": 300, "height": 200})
        for _ in range(0 if i == 4 else 7):
            w, h = np.exp(np.minimum(draw.uniform(2, 5.6, 2), 5.2))
            x, y = draw.uniform(0, 300 - w), draw.uniform(0, 200 - h)
            kind, crowd = int(draw.choice([2, 7, 30])), int(draw.random() < 0.15)
            truth.append({"id": len(truth) + 1, "image_id": 5 * i + 3, "category_id": kind, "bbox": [x, y, w, h], "iscrowd": crowd,
                          "area": w * h * 0.7})  # fmt: skip
            for _ in range(int(draw.integers(0, 3))):
                box = np.array([x, y, w, h]) * draw.normal(1, 0.08, 4)
                found.append({"image_id": 5 * i + 3, "category_id": kind if draw.random() < 0.8 else 2, "bbox": box.tolist(),
                              "score": float(draw.random())})  # fmt: skip
    names = [{"id": k, "name": n} for k, n in ((2, "a"), (7, "b"), (30, "c"), (31, "nowhere"))]
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": truth, "categories": names}))
    splits = open_boxes(file, val_fraction=0.5)
    scenes = sorted((*splits.train.scenes, *splits.val.scenes), key=lambda s: s.key)
    data = splits.train.but(scenes=scenes)
    judge = AveragePrecision(data)
    label = {c: i + 1 for i, c in enumerate(data.ids)}
    for i, scene in enumerate(scenes):
        mine = [f for f in found if f["image_id"] == scene.key]
        boxes = torch.tensor([f["bbox"] for f in mine], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        judge.update(i, {**data.read(i)[1], "areas": scene.areas}, {
            "boxes": boxes, "scores": torch.tensor([f["score"] for f in mine], dtype=torch.float64),
            "labels": torch.tensor([label[f["category_id"]] for f in mine])}, (200, 300))  # fmt: skip
    figures, rows = judge.figures()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(file))
        theirs = COCOeval(coco, coco.loadRes(found), "bbox")
        theirs.evaluate(), theirs.accumulate(), theirs.summarize()
    stats = 100 * theirs.stats
    for name, place in (
        ("ap", 0),
        ("ap50", 1),
        ("ap75", 2),
        ("ap_small", 3),
        ("ap_medium", 4),
        ("ap_large", 5),
        ("ar100", 8),
    ):
        assert figures[name] == pytest.approx(stats[place], abs=1e-6), name
    assert 5 < figures["ap"] < 95
    for k, row in enumerate(rows[:3]):
        part = theirs.eval["precision"][:, :, k, 0, 2]
        assert row["ap"] == pytest.approx(100 * part[part > -1].mean(), abs=1e-6)
    assert rows[3] == {"class": "nowhere", "ap": None, "ap50": None, "objects": 0}


def test_no_prediction_at_all_is_zero_and_no_truth_is_refused(data):
    judge = AveragePrecision(data.train)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(DataError, match="not one object"):
        judge.figures()
    full = next(i for i, s in enumerate(data.train.scenes) if len(s.labels))
    judge.update(full, {**data.train.read(full)[1], "areas": data.train.scenes[full].areas}, empty, (128, 128))
    assert judge.figures()[0]["ap"] == 0


class Finder(nn.Module):
    """A detector that finds red blocks, pixel by pixel, so that what surrounds it can be measured."""

    in_chans = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.backbone, self.head = nn.Identity(), nn.Identity()
        self.head.finest, self.seen = 8, []

    def detect(self, x, *, limit=100, score_threshold=0.0, iou_threshold=0.5):
        found = []
        self.seen.append(tuple(x.shape[-2:]))
        for image in x:
            red = ((image[0] > 0.6) & (image[1] < 0.4)).numpy()
            boxes = []
            while red.any():
                y, x0 = np.argwhere(red)[0]
                x2 = x0 + (np.append(red[y, x0:], False).argmin())
                y2 = y + (np.append(red[y:, x0], False).argmin())
                boxes.append([x0, y, x2, y2])
                red[y:y2, x0:x2] = False
            n = len(boxes)
            found.append({"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                          "scores": torch.full((n,), 0.9), "labels": torch.ones(n, dtype=torch.int64)})  # fmt: skip
        return found


def ready(short=0, longest=4000):
    about = {"classes": ["block"], "ids": [4], "preprocessing": {}, "short": short, "longest": longest}
    return Ready(by_name("detection"), Finder().eval(), "finder", about)


def block(size, boxes):
    picture = np.full((size[1], size[0], 3), 255, np.uint8)
    for x1, y1, x2, y2 in boxes:
        picture[y1:y2, x1:x2] = (255, 0, 0)
    return picture


BOX = (30, 10, 70, 26)


@pytest.mark.parametrize("short", [0, 100])
def test_boxes_lie_in_the_pictures_own_pixels(tmp_path, short):
    """Rotated by EXIF, sixteen-bit, grey, transparent, very wide; shown at another size or at its own."""
    array = block((120, 50), [BOX])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its left side
    Image.fromarray(array).rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    clear = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    clear[:, 100:] = (255, 0, 0, 0)  # red that cannot be seen
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    Image.fromarray(block((1200, 40), [(1100, 10, 1160, 30)])).save(tmp_path / "wide.png")
    found = predict(ready(short), [tmp_path / n for n in ("turned.png", "clear.png", "wide.png")])
    for row, box, size in zip(found, (BOX, BOX, (1100, 10, 1160, 30)), ((120, 50), (120, 50), (1200, 40)), strict=True):
        assert (row["width"], row["height"]) == size
        assert short or len(row["objects"]) == 1
        row["objects"].sort(
            key=lambda o: (o["box"][0] - o["box"][2]) * (o["box"][3] - o["box"][1])
        )  # fringes of resizing last
        assert np.allclose(row["objects"][0]["box"], box, atol=1.5 if short else 0), row
    stored = predict(ready(), tmp_path / "turned.png", frame="stored")
    x1, y1, x2, y2 = BOX
    assert (stored[0]["width"], stored[0]["height"]) == (50, 120)
    assert np.allclose(stored[0]["objects"][0]["box"], [y1, 120 - x2, y2, 120 - x1])
    stored.save(tmp_path / "drawn")
    assert Image.open(tmp_path / "drawn" / "turned_objects.png").size == (120, 50)


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_grey_and_deep_pictures_are_seen_as_they_are(tmp_path, mode):
    """A dark block on white; found by a detector of what is dark."""
    array = np.full((50, 120), 65535 if mode == "I;16" else 255, np.uint16 if mode == "I;16" else np.uint8)
    array[10:26, 30:70] = 0
    Image.fromarray(array).save(tmp_path / "a.png")

    class Dark(Finder):
        def detect(self, x, **options):
            turned = torch.stack([1 - x[:, 0], torch.zeros_like(x[:, 0]), x[:, 0]], 1)
            turned[:, :, 50:] = 0  # the padding
            return super().detect(turned * (x.amax(1, keepdim=True) >= 0), **options)

    made = ready()
    made.model = Dark().eval()
    row = predict(made, tmp_path / "a.png")[0]
    assert [30, 10, 70, 26] in [o["box"] for o in row["objects"]]


def test_tiles_find_what_is_there_once():
    """Blocks inside tiles, across their edges and in corners: each once, whole, in the picture's pixels."""
    boxes = [(5, 5, 25, 20), (90, 40, 118, 60), (180, 95, 199, 119), (60, 70, 64, 110), (150, 3, 170, 9)]
    picture = torch.from_numpy(block((200, 120), boxes)).permute(2, 0, 1)
    model = Finder().eval()
    found = detected_in_tiles(model, picture, lambda x: x.float() / 255, Sizes(0, 0), 64, 0.7, 100)
    assert sorted(found["boxes"].tolist()) == sorted([list(map(float, b)) for b in boxes])
    assert max(max(s) for s in model.seen) <= 64  # never more than a tile at once
    with pytest.raises(OffprintError, match="overlap=1"):
        detected_in_tiles(model, picture, lambda x: x, Sizes(0, 0), 64, 1, 100)


def test_predictions_are_drawn_and_written(run, data, tmp_path):
    done, _ = run
    for name in ("a", "b"):
        Image.fromarray(data.val.scenes[0].file).save(tmp_path / f"{name}.png")
    found = predict(done.folder, [tmp_path / "a.png", tmp_path / "b.png"], score=0.01, limit=3)
    assert len(found[0]["objects"]) == 3
    found.save(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"a_objects.png", "b_objects.png", "objects.json"}
    written = json.loads((tmp_path / "out" / "objects.json").read_text())
    assert [i["file_name"] for i in written["images"]] == ["a.png", "b.png"] and len(written["categories"]) == 10
    one = written["annotations"][0]
    x1, y1, x2, y2 = found[0]["objects"][0]["box"]
    assert np.allclose(one["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=0.01) and one["segmentation"]["size"] == [128, 128]
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**written, "annotations": []}
        coco.createIndex()
        assert len(coco.loadRes(written["annotations"]).anns) == 6
    found.save(tmp_path / "list.csv")
    assert (tmp_path / "list.csv").read_text().startswith("image,class,score,x1,y1,x2,y2")
    found.draw(tmp_path / "sheet.png")
    none = predict(done.folder, tmp_path / "a.png", score=0.999)
    assert none[0]["objects"] == [] and none.table() == ([], [])
    none.save(tmp_path / "none.png")
    assert json.loads(none.save(tmp_path / "none.json").read_text())["annotations"] == []


def test_the_recipe_draws_sizes_and_steps_down():
    how = DetectionRecipe.make(
        {"lr": 1.0, "epochs": 12, "schedule": "step", "decay_rate": 0.1, "milestones": (8, 11), "warmup_steps": 10}
    )
    rates = how.learning_rates(10, 16)
    assert rates[0] == pytest.approx(0.001) and rates[5] == pytest.approx(0.5005) and rates[10] == 1
    assert [round(rates[10 * e], 6) for e in (7, 8, 10, 11)] == [1, 0.1, 0.1, 0.01]
    with pytest.raises(OffprintError, match="side_range"):
        DetectionRecipe.make({"side_range": (5, 3)})
    from offprint.tasks.detection import _Training

    torch.manual_seed(0)
    sizes = Sizes(64, 1000)
    drawn = {_Training(lambda x: x, sizes, DetectionRecipe(short_sides=(32, 48)))._size(50, 100) for _ in range(20)}
    assert drawn == {(32, 64), (48, 96)}
    ranged = {_Training(lambda x: x, sizes, DetectionRecipe(side_range=(30, 60)))._size(50, 100)[0] for _ in range(60)}
    assert len(ranged) > 10 and min(ranged) >= 30 and max(ranged) <= 60
    assert Sizes(800, 1333).of(100, 4000) == (33, 1333) and Sizes(320, 0, True).of(100, 200) == (320, 320)


def test_options_that_cannot_be(run):
    for options, words in (
        ({"frame": "side"}, "choose upright"),
        ({"score": 2.0}, "score=2.0"),
        ({"tile": -1}, "tile=-1"),
    ):
        with pytest.raises(OffprintError, match=words):
            predict(run[0].folder, __file__, **options)
