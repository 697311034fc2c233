"""How ferkd's cases are computed through the public interface."""

import torch
from reading import array, said

from offprint.methods.training.ferkd import (
    KINDS,
    calibrate_regions,
    partners,
    quantize_soft_labels,
    recover_soft_labels,
    selfmix,
    soft_cross_entropy,
)


def formats(record):
    given, expected = record["inputs"], record["expected"]
    probabilities = (said(record, "softmax(#*array)") * array(record, given["teacher_array"])).softmax(1)
    student = array(record, given["student"])
    for form, rows in expected["quantised"].items():
        stored = quantize_soft_labels(probabilities, form)
        yield form, stored, rows, 1e-6
        whole = recover_soft_labels(stored, form, probabilities.shape[1], probabilities.dtype)
        yield f"{form} recovered", whole, expected["recovered"][form], 1e-6
        yield f"{form} loss", soft_cross_entropy(student, whole.to(student)), expected["soft_cross_entropy"][form], 1e-6
    full = recover_soft_labels(quantize_soft_labels(probabilities, "ori"), "ori", probabilities.shape[1])
    yield "full loss", soft_cross_entropy(student, full), expected["soft_cross_entropy"]["full"], 1e-6


def calibration(record):
    given, expected = record["inputs"], record["expected"]
    rows = array(record, given["array"])
    first, last, count = said(record, "linspace(#,#,#)")
    probabilities = (rows * torch.linspace(first, last, count, dtype=rows.dtype)[:, None]).softmax(1)
    low, middle, top, epsilon = said(record, "T_L=#, T_M=#, T_T=#, eps=#")
    target = torch.tensor(given["ground_truth"])
    for name, score in (("score_top1", "top1"), ("score_groundtruth", "groundtruth")):
        labels, kinds, scores = calibrate_regions(probabilities, target, low, middle, top, epsilon, score)
        yield f"{name}: scores", scores, expected[name]["scores"], 1e-6
        for i, (kind, row) in enumerate(zip(expected[name]["kind"], expected[name]["labels"], strict=True)):
            yield f"{name}: kind {i}", KINDS[int(kinds[i])], kind, 0
            yield f"{name}: label {i}", None if KINDS[int(kinds[i])] == "discard" else labels[i], row, 1e-6


def mixing(record):
    given, expected = record["inputs"], record["expected"]
    images, labels = array(record, given["images"]), array(record, given["labels_array"]).softmax(1)
    order, lam = given["permutation"], given["lam"]
    yield "partners", partners(order, len(images) // len(order)), expected["partner_rows"], 0
    mixed, soft, _ = selfmix(images, labels, order, lam)
    yield "mixup", mixed.sum((1, 2, 3)), expected["mixup_images_sum_per_row"], 1e-6
    yield "mixup labels", soft, expected["mixup_labels"], 1e-6
    mixed, soft, share = selfmix(images, labels, order, lam, given["box_rows_cols"])
    yield "cutmix", mixed.sum((1, 2, 3)), expected["cutmix_images_sum_per_row"], 1e-6
    yield "share", share, expected["cutmix_lam"], 1e-6
    yield "cutmix labels", soft, expected["cutmix_labels"], 1e-6


CASES = {"case_soft_label_format": formats, "case_region_calibration": calibration, "case_selfmix": mixing}

WORDS = {
    "case_soft_label_format": {
        "over 12 classes": "the shape of the arrays",
        "k5/k10 -> 2 x k array (row 0 indices as floats, row 1 probabilities, descending)": "how the formats are stored",
        "recovered to 12 classes": "the shape of the arrays",
        "divides the top-5 by their sum": "the k of the format's name",
    },
    "case_region_calibration": {
        "6 classes, 10 crops": "the shape of the array",
        "1-eps on the ground truth, eps/(C-1) elsewhere": "the softened label",
    },
    "case_selfmix": {
        "2 images x 3 crops": "the shape of the arrays and the permutation",
        "crop j of image i at row j*2+i": "the crop-major order",
        "lam=0.3": "inputs.lam",
        "rows 0:2, columns 1:4": "inputs.box_rows_cols",
    },
}
