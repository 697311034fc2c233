"""iSAID, DIOR, NWPU VHR-10 and HRSID in their published layouts."""

import json

import numpy as np
import pytest
from PIL import Image

from offprint.data.aerial import DIOR, ISAID, VHR10, open_objects
from offprint.errors import DataError
from offprint.tasks.detection import ObjectDetection


def picture(file, width=40, height=30):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file)


def coco(file, names, rows, categories):
    """``rows``: (picture, [(category, box)])."""
    images, annotations = [], []
    for key, (name, objects) in enumerate(rows, 1):
        images.append({"id": key, "file_name": name, "width": 40, "height": 30})
        for category, (x, y, w, h) in objects:
            shape = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append({"id": len(annotations) + 1, "image_id": key, "category_id": category, "bbox": [x, y, w, h],
                                "area": w * h, "iscrowd": 0, "segmentation": shape})  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in categories],
    }
    file.write_text(json.dumps(content))


def isaid(root):
    categories = [
        (1, "storage_tank"),
        (2, "Large_Vehicle"),
        (4, "plane"),
        (5, "ship"),
    ]  # ids as the set's own files have them
    for part in ("train", "val"):
        picture(root / part / "images" / "P0_0_800_0_800.png")
        many = [(4, (1, 1, 5, 5)), (5, (10, 10, 8, 6)), (1, (20, 5, 30, 5))]
        rows = [("P0_0_800_0_800.png", many)]
        if part == "train":
            picture(root / part / "images" / "P1_0_800_0_800.png")
            rows.append(("P1_0_800_0_800.png", [(2, (2, 2, 4, 4))]))
        coco(root / part / f"instancesonly_filtered_{part}.json", categories, rows, categories)
    return root


def test_isaid_has_its_own_order_of_classes(tmp_path):
    splits = open_objects(isaid(tmp_path))
    assert splits.classes == ISAID and splits.own and (len(splits.train), len(splits.val)) == (2, 1)
    scene = splits.train.scenes[0]
    assert [ISAID[i - 1] for i in scene.labels] == ["plane", "ship", "storage tank"]
    assert scene.boxes[2].tolist() == [20, 5, 40, 10] and "clipped" in splits.notes[0]  # it reached out of its picture
    ids = splits.train.ids
    assert ids[ISAID.index("plane")] == 4 and ids[ISAID.index("storage tank")] == 1 and len(set(ids)) == 15
    _, target = splits.train.but(with_masks=True).read(0)
    assert target["masks"].sum((1, 2)).tolist() == [25, 48, 100]


def test_pictures_of_too_many_objects_are_left_out_of_training_only(tmp_path):
    splits = ObjectDetection().open(isaid(tmp_path), max_instances=2)
    assert (len(splits.train), len(splits.val)) == (1, 1)
    assert splits.notes[-1] == "1 pictures of more than 2 objects are not learnt from"
    with pytest.raises(DataError, match="max_instances=-1"):
        open_objects(tmp_path, max_instances=-1)
    (tmp_path / "train" / "images" / "P1_0_800_0_800.png").unlink()
    with pytest.raises(DataError, match="1 pictures are missing"):
        open_objects(tmp_path)
    with pytest.raises(DataError, match="leaves no picture"):
        open_objects(tmp_path, max_instances=2, on_error="skip")


def test_isaid_whole_pictures_and_foreign_classes(tmp_path):
    picture(tmp_path / "train" / "images" / "images" / "P0000.png")
    picture(tmp_path / "train" / "images" / "images" / "P0001.png")
    file = tmp_path / "train" / "Annotations" / "iSAID_train.json"
    coco(file, None, [("P0000.png", [(3, (1, 1, 5, 5))]), ("P0001.png", [])], [(3, "Small_Vehicle")])
    splits = open_objects(tmp_path)
    assert not splits.own and len(splits.train) + len(splits.val) == 2
    coco(file, None, [("P0000.png", [(3, (1, 1, 5, 5))])], [(3, "cat")])
    with pytest.raises(DataError, match="the class 'cat'; the set has ship"):
        open_objects(tmp_path)


def test_hrsid_reads_its_two_lists_only(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        picture(tmp_path / "JPEGImages" / name)
    kind = [(1, "ship")]
    coco(tmp_path / "annotations" / "train2017.json", None, [("a.jpg", [(1, (1, 1, 5, 5))])], kind)
    coco(tmp_path / "annotations" / "test2017.json", None, [("b.jpg", [(1, (2, 2, 5, 5))])], kind)
    coco(tmp_path / "annotations" / "inshore.json", None, [("b.jpg", [(1, (2, 2, 5, 5))])], kind)
    splits = open_objects(tmp_path)
    assert [s.name for s in splits.train.scenes] == ["a.jpg"] and [s.name for s in splits.val.scenes] == ["b.jpg"]
    assert splits.own and splits.classes == ("ship",) and splits.train.has_masks


def test_vhr10(tmp_path):
    for name in ("001", "002"):
        picture(tmp_path / "positive image set" / f"{name}.jpg")
        (tmp_path / "ground truth").mkdir(exist_ok=True)
        (tmp_path / "ground truth" / f"{name}.txt").write_text("(3,4),(20,18),10 \n( 5,5),( 9,9), 1\n\n")
    picture(tmp_path / "negative image set" / "001.jpg")
    splits = open_objects(tmp_path, val_fraction=0.34)
    assert splits.classes == VHR10 and (len(splits.train), len(splits.val)) == (2, 1)
    every = [*splits.train.scenes, *splits.val.scenes]
    full = [s for s in every if len(s.labels)]
    assert len(full) == 2 and full[0].boxes.tolist() == [[3, 4, 20, 18], [5, 5, 9, 9]]
    assert [VHR10[i - 1] for i in full[0].labels] == ["vehicle", "airplane"]
    (tmp_path / "ground truth" / "001.txt").write_text("(3,4),(20,18),11\n")
    with pytest.raises(DataError, match="001.txt, line 1: .* a class of 1 to 10"):
        open_objects(tmp_path)


def dior(root):
    horizontal = root / "Annotations" / "Horizontal Bounding Boxes"
    oriented = root / "Annotations" / "Oriented Bounding Boxes"
    for folder in (horizontal, oriented, root / "ImageSets" / "Main"):
        folder.mkdir(parents=True)
    for part, stem in (("train", "00001"), ("val", "00002"), ("test", "11726")):
        picture(root / ("JPEGImages-test" if part == "test" else "JPEGImages-trainval") / f"{stem}.jpg")
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{stem}\n")
        box = "<bndbox><xmin>3</xmin><ymin>5</ymin><xmax>20</xmax><ymax>18</ymax></bndbox>"
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        head = f"<annotation><filename>{stem}.jpg</filename>{size}<object><name>Expressway-Service-area</name>"
        (horizontal / f"{stem}.xml").write_text(f"{head}{box}</object></annotation>")
        (oriented / f"{stem}.xml").write_text(
            f"{head}<robndbox><x_left_top>1</x_left_top></robndbox></object></annotation>"
        )
    return root


def test_dior_learns_from_train_and_val(tmp_path):
    splits = open_objects(dior(tmp_path / "set"))
    assert splits.classes == DIOR == tuple(sorted(DIOR, key=str.lower)) and splits.own
    assert [s.name for s in splits.train.scenes] == ["00001.jpg", "00002.jpg"]
    assert [s.name for s in splits.val.scenes] == ["11726.jpg"]
    assert splits.train.scenes[0].boxes.tolist() == [[2, 4, 20, 18]]  # VOC counts from 1
    assert DIOR[splits.train.scenes[0].labels[0] - 1] == "Expressway-Service-area"
    (tmp_path / "set" / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(DataError, match="val.txt is missing; DIOR's lists"):
        open_objects(tmp_path / "set")


def test_other_sources_are_opened_as_before():
    assert open_objects("sample:digit-scenes").name == "digit-scenes"
    with pytest.raises(DataError, match="nothing at"):
        open_objects("/no/such/place")
