"""Pictures with objects: COCO, Pascal VOC and YOLO, and what files get wrong."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from offprint.data import boxes
from offprint.data.boxes import digit_scenes, open_boxes
from offprint.errors import DataError


def pictures(folder, names, size=(40, 30), orientation=1):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", size, (90, 120, 30)).save(folder / name, exif=exif)


def coco(file, names=("a.png", "b.png"), annotations=(), size=(40, 30), categories=((3, "cat"), (17, "dog"))):
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"id": 10 + i, "file_name": n, "width": size[0], "height": size[1]} for i, n in enumerate(names)]
    rows = [{"id": i, "image_id": 10, "iscrowd": 0, **a} for i, a in enumerate(annotations)]
    content = {"images": images, "annotations": rows, "categories": [{"id": i, "name": n} for i, n in categories]}
    file.write_text(json.dumps(content))


def test_coco_with_all_that_occurs(tmp_path):
    """Ids with holes, boxes outside and without area, crowds, polygons, both run-length codes, a picture without objects."""
    pictures(tmp_path / "images", ["a.png", "b.png"])
    square = np.zeros((30, 40), np.uint8)
    square[5:15, 10:20] = 1
    code = boxes.encode(square)
    coco(tmp_path / "labels.json", annotations=[
        {"category_id": 17, "bbox": [30, 20, 20, 20]},  # reaches out
        {"category_id": 3, "bbox": [5, 5, 0, 9]},  # no area
        {"category_id": 3, "bbox": [50, 5, 9, 9]},  # outside
        {"category_id": 3, "bbox": [10, 5, 10, 10], "segmentation": code, "iscrowd": 1},
        {"category_id": 3, "bbox": [10, 5, 10, 10], "segmentation": {"size": [30, 40], "counts": boxes._runs(square)["counts"]}},
        {"category_id": 17, "bbox": [10, 5, 10, 10], "segmentation": [[10, 5, 20, 5, 20, 15, 10, 15]], "area": 77},
        {"category_id": 17, "bbox": [2, 2, 6, 6], "segmentation": [[3, 3, 3, 3, 3, 3]]},  # three equal points
        {"category_id": 17, "bbox": [0, 0, 20, 20], "segmentation": [[0, 0, 20, 20, 20, 0, 0, 20]]},  # crosses itself
    ])  # fmt: skip
    splits = open_boxes(tmp_path, val_fraction=0.5)
    data = splits.train.but(
        scenes=sorted((*splits.train.scenes, *splits.val.scenes), key=lambda s: s.name), with_masks=True
    )
    assert data.classes == ("cat", "dog") and data.ids == (3, 17)
    _, target = data.read(0)
    assert target["boxes"][0].tolist() == [30, 20, 40, 30]
    assert target["labels"].tolist() == [2, 1, 1, 2, 2, 2] and target["crowd"].tolist() == [False, True, *[False] * 4]
    for i in (1, 2, 3):
        assert np.array_equal(target["masks"][i].numpy(), square), i
    assert target["masks"][4].sum() == 36  # its box
    assert 0 < target["masks"][5].sum() < 300
    assert data.scenes[0].areas[3] == 77 and data.scenes[0].areas[0] == 100
    assert len(data.read(1)[1]["boxes"]) == 0
    notes = "; ".join(splits.notes)
    assert "1 boxes reached out of their picture and were clipped (first: a.png)" in notes
    assert "2 boxes without area" in notes and "1 pictures hold no objects" in notes and "1 crowds" in notes
    assert not splits.own and len(splits.train) == len(splits.val) == 1


def test_coco_in_its_published_layout(tmp_path):
    for part in ("train", "val"):
        pictures(tmp_path / f"{part}2017", [f"{part}.jpg"])
        coco(tmp_path / "annotations" / f"instances_{part}2017.json", (f"{part}.jpg",),
             [{"category_id": 3, "bbox": [1, 2, 3, 4]}])  # fmt: skip
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    splits = open_boxes(tmp_path)
    assert splits.own and splits.train.scenes[0].name == "train.jpg" and splits.val.scenes[0].name == "val.jpg"
    assert splits.val.scenes[0].boxes.tolist() == [[1, 2, 4, 6]]


def test_missing_pictures_are_named_or_left_out(tmp_path):
    pictures(tmp_path, ["a.png", "c.png"])
    coco(tmp_path / "l.json", ("a.png", "gone.png", "c.png"), [{"category_id": 3, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(DataError, match=r"1 pictures are missing: .*gone\.png; .*--on-error skip"):
        open_boxes(tmp_path / "l.json")
    splits = open_boxes(tmp_path / "l.json", on_error="skip", val_fraction=0.5, seed=1)
    assert len(splits.train) + len(splits.val) == 2 and "first: gone.png" in splits.notes[-1]


def xml(name, rows, size="<size><width>40</width><height>30</height></size>"):
    things = "".join(
        f"<object><name>{n}</name><difficult>{d}</difficult><bndbox>"
        + "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), b, strict=True))
        + "</bndbox></object>"
        for n, b, d in rows
    )
    return f"<annotation><filename>{name}</filename>{size}{things}</annotation>"


def test_pascal_voc(tmp_path):
    pictures(tmp_path / "JPEGImages", ["a.jpg", "b.jpg"])
    notes, lists = tmp_path / "Annotations", tmp_path / "ImageSets" / "Main"
    notes.mkdir(), lists.mkdir(parents=True)
    (notes / "a.xml").write_text(
        xml("a.jpg", [("dog", (1, 1, 40, 30), 0), ("cat", (5, 5, 5, 9), 0), ("dog", (3, 3, 9, 9), 1)])
    )
    (notes / "b.xml").write_text(xml("b.jpg", [("cat", (2, 3, 4, 5), 0)], size=""))
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    splits = open_boxes(tmp_path)
    assert splits.classes == ("cat", "dog") and splits.own
    scene = splits.train.scenes[0]
    assert scene.boxes.tolist() == [[0, 0, 40, 30], [2, 2, 9, 9]]  # counted from 1, both ends inside
    assert scene.labels.tolist() == [2, 2] and scene.crowd.tolist() == [False, True]
    assert splits.val.scenes[0].boxes.tolist() == [[1, 2, 4, 5]]
    (notes / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]>' + xml("a.jpg", []))
    with pytest.raises(DataError, match="declares entities"):
        open_boxes(tmp_path)
    (notes / "a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a\.xml is not Pascal VOC's xml"):
        open_boxes(tmp_path)


def test_yolo(tmp_path):
    for part in ("train", "val"):
        pictures(tmp_path / "images" / part, ["a.jpg", "b.jpg"])
        (tmp_path / "labels" / part).mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n0 0.1 0.1 0.6 0.1 0.6 0.7\n")
    (tmp_path / "labels" / "val" / "b.txt").write_text("0 0.5 0.5 1.2 0.5\n")
    (tmp_path / "data.yaml").write_text("names: {0: ship, 1: plane}\n")
    splits = open_boxes(tmp_path)
    assert splits.classes == ("ship", "plane") and splits.own and splits.train.ids == (0, 1)
    scene = splits.train.scenes[0]
    assert np.allclose(scene.boxes, [[10, 12, 30, 18], [4, 3, 24, 21]]) and scene.labels.tolist() == [2, 1]
    assert scene.shapes[0] is None and len(scene.shapes[1][0]) == 6
    assert np.allclose(splits.val.scenes[1].boxes, [[0, 7.5, 40, 22.5]])
    assert any("clipped" in n for n in splits.notes) and any("2 pictures hold no objects" in n for n in splits.notes)
    for line, words in (
        ("1 0.5 0.5 0.5", "3 numbers after the class"),
        ("x 1 1 1 1", "line 1"),
        ("7 .5 .5 .1 .1", "there are 2 names"),
    ):
        (tmp_path / "labels" / "train" / "a.txt").write_text(line)
        with pytest.raises(DataError, match=words):
            open_boxes(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    (tmp_path / "labels" / "train" / "z.txt").write_text("1 0.5 0.5 0.5 0.2\n")
    with pytest.raises(DataError, match=r"1 pictures are missing: .*z\.jpg"):
        open_boxes(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_picture(tmp_path, orientation):
    """A block of white in the stored pixels, found again in the upright picture."""
    mask = np.zeros((30, 50), np.uint8)
    mask[5:12, 20:41] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(mask).save(tmp_path / "a.png", exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    ys, xs = np.nonzero(seen)
    upright = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert boxes.turned(np.array([[20, 5, 41, 12]]), orientation, (50, 30)).tolist() == [upright]
    assert boxes.as_stored(np.array([upright]), orientation, seen.shape[::-1]).tolist() == [[20, 5, 41, 12]]
    if orientation not in (5, 6, 7, 8):
        return
    row = {"category_id": 3, "bbox": [20, 5, 21, 7], "segmentation": [[20, 5, 41, 5, 41, 12, 20, 12]]}
    coco(tmp_path / "l.json", ("a.png",) * 2, [row], size=(50, 30))
    data = open_boxes(tmp_path / "l.json", val_fraction=0.5).train
    whole = data.but(scenes=[s for s in (*data.scenes, *open_boxes(tmp_path / "l.json", val_fraction=0.5).val.scenes) if len(s.labels)],
                     with_masks=True)  # fmt: skip
    picture, target = whole.read(0)
    assert target["boxes"].tolist() == [upright]
    assert np.array_equal(target["masks"][0].numpy() > 0, picture[0].numpy() > 0)


@pytest.mark.parametrize(
    "annotation, words",
    [
        ({"category_id": 99, "bbox": [1, 2, 3, 4]}, "category 99, which is not in 'categories'"),
        ({"category_id": 3, "image_id": 77, "bbox": [1, 2, 3, 4]}, "of the picture 77"),
        ({"category_id": 3, "bbox": [1, 2, 3]}, "no bbox of four numbers"),
        ({"category_id": 3, "bbox": [1, 1, 0, 0]}, "not one object"),
    ],
)
def test_what_coco_files_get_wrong(tmp_path, annotation, words):
    pictures(tmp_path, ["a.png", "b.png"])
    coco(tmp_path / "l.json", annotations=[annotation])
    with pytest.raises(DataError, match=words):
        open_boxes(tmp_path / "l.json")


def test_other_bad_sources(tmp_path):
    with pytest.raises(DataError, match="nothing at"):
        open_boxes(tmp_path / "none")
    with pytest.raises(DataError, match="holds no pictures with boxes; expected COCO"):
        open_boxes(tmp_path)
    (tmp_path / "l.json").write_text("{")
    with pytest.raises(DataError, match="is not json"):
        open_boxes(tmp_path / "l.json")
    with pytest.raises(DataError, match="sample:digit-scenes"):
        open_boxes("sample:nothing")
    pictures(tmp_path, ["a.png", "b.png"], size=(44, 30))
    coco(tmp_path / "l.json", annotations=[{"category_id": 3, "bbox": [1, 2, 3, 4]}])
    splits = open_boxes(tmp_path / "l.json", val_fraction=0.5)
    with pytest.raises(DataError, match="is 44 x 30 pixels, and its objects were written for 40 x 30"):
        splits.train.read(0)


def test_digit_scenes_are_what_they_say():
    splits = digit_scenes(24, 6)
    assert splits.digest == digit_scenes.__wrapped__(24, 6).digest
    data = splits.train.but(with_masks=True)
    for i in range(len(data)):
        picture, target = data.read(i)
        assert picture.shape == (3, 128, 128)
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            ys, xs = torch.nonzero(mask, as_tuple=True)
            x1, y1, x2, y2 = box.tolist()
            assert x1 <= xs.min() and xs.max() < x2 and y1 <= ys.min() and ys.max() < y2
            assert mask.sum() > 0.1 * (x2 - x1) * (y2 - y1)
    assert "no camera" in splits.notes[0]
