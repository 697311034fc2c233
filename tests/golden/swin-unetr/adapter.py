"""How swin-unetr's cases are computed: our pieces, and MONAI's where the library uses them."""

import golden
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric

from offprint.models.segmentation import swin_unetr


def _array(record, key):
    return torch.from_numpy(golden.array(record["inputs"][key]["shape"], record["inputs"][key]["seed"]))


def regions(record):
    expected = record["expected"]
    yield "regions", swin_unetr.brats_regions(torch.tensor(record["inputs"]["labels"])).long(), expected["regions"], 0
    yield "written_labels", swin_unetr.brats_labels(_array(record, "logits")), expected["written_labels"], 0
    noise = _array(record, "image_noise")
    image = torch.where(noise.abs() < 0.3, 0.0, noise)
    yield "normalised", swin_unetr.normalize_nonzero(image), expected["normalised"], 1e-5


def dice(record):
    logits, target = _array(record, "logits"), (_array(record, "target_noise") > 0.3).float()
    expected = record["expected"]
    loss = DiceLoss(sigmoid=True)
    yield "loss_default", loss(logits, target), expected["loss_default"], 1e-5
    other = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6)
    yield "loss_squared", other(logits, target), expected["loss_squared_smooth_nr0_dr1e-6"], 1e-5
    target[1, 2] = 0
    metric = DiceMetric(include_background=True, reduction="mean_batch", get_not_nans=True)
    metric((torch.sigmoid(logits) > 0.5).float(), target)
    mean, count = metric.aggregate()
    yield "metric", mean, expected["metric_per_channel"], 1e-5
    yield "not_nans", count, expected["not_nans_per_channel"], 0


def schedule(record):
    yield "lr", swin_unetr.warmup_cosine(**record["inputs"]), record["expected"]["lr"], 1e-6


def sliding_window(record):
    volume, roi = _array(record, "volume"), record["inputs"]["roi"]

    def predictor(window):
        mean = window.mean(dim=(1, 2, 3, 4), keepdim=True).expand_as(window)
        return torch.cat([mean, 2 * window - window.amax(dim=(1, 2, 3, 4), keepdim=True)], 1)

    constant = sliding_window_inference(volume, roi, 1, predictor, overlap=0.5)
    gaussian = sliding_window_inference(volume, roi, 1, predictor, overlap=0.6, mode="gaussian")
    yield "constant", constant[0, :, ::3, ::3, ::3], record["expected"]["constant"], 1e-5
    yield "gaussian", gaussian[0, :, ::3, ::3, ::3], record["expected"]["gaussian"], 1e-5


CASES = {
    "brats_regions": regions,
    "dice_loss_and_metric": dice,
    "warmup_cosine": schedule,
    "sliding_window": sliding_window,
}
