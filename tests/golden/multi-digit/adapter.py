"""How multi-digit's cases are computed through the public interface."""

import torch
from reading import array, said

from offprint.models.detection.multi_digit import (
    SequenceLogits,
    blank_loss,
    coverage_at_accuracy,
    read_sequences,
    sequence_loss,
    targets_of,
)


def coverage(record):
    a, b = (array(record, record["inputs"][k]).double() for k in "ab")
    times, plus = said(record, "sigmoid(#a+#)")
    slope, minus = said(record, "b < #·confidence-#")
    confidence = torch.sigmoid(times * a + plus)
    correct = b < slope * confidence - minus
    yield "accuracy", float(correct.double().mean()), record["expected"]["accuracy"], 1e-6
    for t, row in record["expected"]["coverage_at"].items():
        found = coverage_at_accuracy(confidence, correct, float(t))._asdict()
        for name, value in row.items():
            yield f"{name} at {t}", found[name], value, 1e-6


def sequence(record):
    given, expected = record["inputs"], record["expected"]
    length, digits, eleven = (
        array(record, given[k]).double() for k in ("length_logits", "digit_logits", "digit_logits_11")
    )
    scaled = SequenceLogits(given["scale"] * length, given["scale"] * digits)
    read = read_sequences(scaled)
    for i, (found, value) in enumerate(zip(read, expected["sequences"], strict=True)):
        yield f"sequence {i}", list(found.digits), value, 0
    yield "log_probability", [r.log_probability for r in read], expected["log_probability"], 1e-6
    yield "confidence", [r.confidence for r in read], expected["confidence"], 1e-6
    yield "more", [r.more for r in read], expected["log_probability_more_than_five"], 1e-6
    lengths, targets = targets_of(given["labels"], digits.shape[1])
    yield "loss_per_item", sequence_loss(scaled, lengths, targets, "none"), expected["loss_per_item"], 1e-6
    yield "loss_mean", sequence_loss(scaled, lengths, targets), expected["loss_mean"], 1e-6
    yield "port_loss", blank_loss(SequenceLogits(scaled.length, eleven), lengths, targets), expected["port_loss"], 1e-6


CASES = {"coverage": coverage, "sequence_head": sequence}
WORDS = {
    "sequence_head": {
        "(B,7: lengths 0..5, more than 5)": "the shape of the array",
        "array (B,5,10)": "the shape of the array",
        "l = 0..5": "the lengths that the array has",
        "the (B,5,11) logits": "the shape of the array",
        "class 10 for absent digits": "the definition of the port's loss",
    },
}
