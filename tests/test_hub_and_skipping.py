"""Pictures of the hub, with a stand-in for the package that loads them; and pictures that cannot be read, passed over."""

import io
import sys
import types

import numpy as np
import pytest
from PIL import Image

from offprint.data.images import open_images
from offprint.errors import DataError


def png(level):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), level).save(buffer, "PNG")
    return buffer.getvalue()


class Rows:
    """A split as the package gives it: rows by number, columns by name."""

    def __init__(self, names, **columns):
        self.columns = columns
        self.features = {name: types.SimpleNamespace(names=names if name == "label" else None) for name in columns}

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


@pytest.fixture
def hub(monkeypatch):
    """``datasets.load_dataset`` from this mapping."""
    held = {}
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=lambda name: held[name]))
    return held


def level(item):
    return int(np.asarray(item[0])[0, 0, 0]), item[1]


def test_splits_and_classes_of_the_hub(hub):
    pictures = [Image.new("L", (4, 4), 10), {"bytes": png(20), "path": None}, Image.new("RGBA", (4, 4), (9, 9, 9, 0))]
    hub["org/set"] = {
        "train": Rows(["cat", "dog"], image=pictures, label=[1, 0, 1]),
        "test": Rows(["cat", "dog"], image=pictures[:1], label=[0]),
    }
    splits = open_images("hf://org/set")
    assert splits.classes == ["cat", "dog"] and [level(splits.train[i]) for i in range(3)] == [
        (10, 1),
        (20, 0),
        (255, 1),
    ]
    assert [level(splits.val[0])] == [(10, 0)]


def test_a_hub_set_of_one_split_is_split_by_class(hub):
    hub["org/one"] = {"train": Rows(None, img=[Image.new("L", (4, 4), i) for i in range(8)], label=list("abababab"))}
    splits = open_images("hf://org/one", val_fraction=0.25)
    assert splits.classes == ["a", "b"] and len(splits.train) == 6 and sorted(splits.val.targets) == [0, 1]
    assert all(
        label == value % 2
        for part in (splits.train, splits.val)
        for value, label in (level(part[i]) for i in range(len(part)))
    )


def test_a_hub_set_without_pictures(hub):
    hub["org/text"] = {"train": Rows(None, sentence=["x"], label=[0])}
    with pytest.raises(DataError, match="hf://org/text has no column called image, .*; its columns: sentence, label"):
        open_images("hf://org/text")


def test_listed_pictures_that_cannot_be_read_are_skipped_or_named(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"none" if i == 2 else png(10 * i))
    (tmp_path / "t.csv").write_text(
        "path,label,split\n" + "".join(f"{i}.png,{'ab'[i % 2]},{'val' if i > 3 else 'train'}\n" for i in range(6))
    )
    splits = open_images(tmp_path / "t.csv", on_error="skip")
    with pytest.warns(UserWarning, match=r"skipped: cannot read the picture .*2\.png"):
        assert level(splits.train[2]) == (30, 1)
    with pytest.raises(DataError, match=r"cannot read the picture .*2\.png"):
        open_images(tmp_path / "t.csv").train[2]
    with pytest.raises(DataError, match="choose 'stop' or 'skip'"):
        open_images(tmp_path / "t.csv", on_error="ignore")
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"none")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="not one of the 6 pictures could be read"):
        splits.train[0]
