"""Maps made from a GeoTIFF lie where it lies."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from offprint.data.georeference import georeference, map_tiff
from offprint.data.masks import Classes
from offprint.tasks.scenes import ClassMaps
from offprint.tasks.segmentation import Masks

PLACE = {
    33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 388000.0, 5820000.0, 0.0),
    34735: (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633), 34737: "WGS 84 / UTM zone 33N|",
}  # fmt: skip


@pytest.fixture
def raster(tmp_path):
    """A picture of a field with its place."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in PLACE.items():
        directory.tagtype[tag] = 2 if isinstance(value, str) else 3 if tag == 34735 else 12
        directory[tag] = value
    path = tmp_path / "field.tif"
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(path, tiffinfo=directory)
    return path


def test_what_a_file_says_is_what_a_map_says(raster):
    place = georeference(raster)
    assert place == PLACE
    for top, kind in ((3, np.uint8), (300, np.uint16)):
        data = map_tiff(np.full((6, 8), top), place)
        with Image.open(io.BytesIO(data)) as image:
            assert (
                np.array_equal(np.asarray(image).astype(kind), np.full((6, 8), top))
                and image.tag_v2[33922] == PLACE[33922]
            )
    assert georeference(raster.with_suffix(".png")) == {}


def test_masks_and_class_maps_of_a_raster_keep_its_place(raster, tmp_path):
    found = np.arange(48).reshape(6, 8) % 3
    masks = Masks(
        [{"image": str(raster), "shares": {}}],
        masks=[found],
        classes=Classes(["a", "b", "c"], [(0, 0, 0), (9, 0, 0), (0, 9, 0)]),
    )
    masks.save(tmp_path / "masks")
    assert georeference(tmp_path / "masks" / "field_mask.tif") == PLACE
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / "field_mask.tif")), found)
    maps = ClassMaps([{"scene": str(raster), "shares": {}}], maps=[found.astype(np.uint16)])
    maps.save(tmp_path / "maps")
    assert georeference(tmp_path / "maps" / "field_classes.tif") == PLACE
    assert sorted(p.suffix for p in (tmp_path / "maps").iterdir()) == [".npy", ".png", ".tif"]
