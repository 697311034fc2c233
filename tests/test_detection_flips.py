"""Pictures mirrored in several ways with their objects, and masks pasted some at a time."""

import pytest
import torch
from torchvision import tv_tensors

from offprint.errors import OffprintError
from offprint.models.detection.contract import paste
from offprint.tasks._detecting import Sizes
from offprint.tasks.detection import DetectionRecipe, _Training


def shown(**recipe):
    """Where a lit corner of a 6 x 8 picture, its box and its mask come to lie, over several draws."""
    how = _Training(lambda p: p, Sizes(6, 8), DetectionRecipe(color_jitter=0.0, **recipe))
    seen = set()
    for seed in range(24):
        torch.manual_seed(seed)
        picture = torch.zeros(3, 6, 8, dtype=torch.uint8)
        picture[:, 0, 0] = 255
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0, 1, 1]]), format="XYXY", canvas_size=(6, 8)),
            "labels": torch.tensor([1]),
            "crowd": torch.tensor([False]),
            "masks": tv_tensors.Mask((picture[:1] > 0).to(torch.uint8)),
        }
        out, told = how(tv_tensors.Image(picture), target)
        y, x = (int(v[0]) for v in out[0].nonzero(as_tuple=True))
        assert told["boxes"].tolist() == [[x, y, x + 1, y + 1]] and told["masks"][0, y, x] == 1
        seen.add((x, y))
    return seen


def test_each_way_of_mirroring_moves_the_objects_along():
    assert shown() == {(0, 0), (7, 0)}
    assert shown(flips=("horizontal", "vertical", "diagonal"), flip_share=1.0) == {(7, 0), (0, 5), (7, 5)}
    assert shown(flips=("vertical",), flip_share=0.75) == {(0, 0), (0, 5)}
    assert shown(flip=False, flip_share=1.0) == {(0, 0)}


@pytest.mark.parametrize("wrong", [{"flips": ()}, {"flips": ("sideways",)}, {"flip_share": 1.5}])
def test_ways_that_are_none_are_refused(wrong):
    with pytest.raises(OffprintError, match="choose of horizontal, vertical, diagonal"):
        DetectionRecipe(**wrong)


def test_masks_pasted_in_parts_are_those_pasted_at_once():
    torch.manual_seed(0)
    corner = torch.rand(7, 2) * 20
    boxes, masks = torch.cat([corner, corner + 5 + torch.rand(7, 2) * 30], 1), torch.rand(7, 28, 28)
    assert torch.equal(paste(masks, boxes, (40, 50), at_once=3), paste(masks, boxes, (40, 50), at_once=100))
    assert paste(masks[:0], boxes[:0], (4, 5)).shape == (0, 4, 5)
