"""How vtdnet's cases are computed through the public interface."""

import torch
from reading import array, precision, said

from offprint.models.detection.vtdnet import (
    embedding_losses,
    flow_proxy_iou,
    partial_label_loss,
    track_association,
    vtda,
)


def scores(record):
    given, expected = record["inputs"], record["expected"]
    a, b, c = (array(record, given[k]).double() for k in "abc")
    middle, slope, low, high = said(record, "scores = clip(#+#a, #, #)")
    spread, least, most = said(record, "= clip(scores + #|b|·c, #, #)")
    found = (middle + slope * a).clamp(low, high)
    singles = (found + spread * b.abs() * c).clamp(least, most)
    names = [n for group in given["groups"].values() for n in group]
    got = vtda(
        dict(zip(names, found.tolist(), strict=True)),
        dict(zip(names, singles.T.tolist(), strict=True)),
        given["groups"],
    )
    yield "scores", found, expected["scores"], 1e-6
    yield "sigma", [got.sigma[n] for n in names], expected["sigma"], 1e-6
    yield "scale", [got.scale[n] for n in names], expected["scale"], 1e-6
    for group, value in expected["groups"].items():
        yield group, got.groups[group], value, 1e-6
    yield "vtda", got.total, expected["vtda"], 1e-6


def partial(record):
    given, expected = record["inputs"], record["expected"]
    a, b, c, d = (array(record, given[k]).double() for k in "abcd")
    labelled = a > said(record, "labelled = a > #")
    pseudo = (d > said(record, "pseudo-labelled = (d > #)")) & ~labelled
    got = partial_label_loss(b.abs(), labelled, pseudo, c.abs())
    yield "task_losses", got.tasks, expected["task_losses"], 1e-6
    yield "total", got.total, expected["total"], 1e-6
    yield "labelled_counts", labelled.sum(0).tolist(), expected["labelled_counts"], 0
    yield "pseudo_counts", pseudo.sum(0).tolist(), expected["pseudo_counts"], 0


def association(record):
    given, expected = record["inputs"], record["expected"]
    detections, tracks = (array(record, given[k]).double() for k in ("detections", "tracks"))
    alike = track_association(detections, tracks)
    step = said(record, "target track (#i mod T)")
    positive = torch.arange(len(tracks)) == (step * torch.arange(len(detections)) % len(tracks))[:, None]
    each, auxiliary = embedding_losses(detections, tracks, positive)
    yield "bisoftmax", alike, expected["bisoftmax"], 1e-6
    yield "best_track", alike.argmax(1).tolist(), expected["best_track"], 0
    yield "embedding_loss", each, expected["embedding_loss"], 1e-6
    yield "auxiliary_loss", auxiliary, expected["auxiliary_loss"], 1e-6


def flow(record):
    given, expected = record["inputs"], record["expected"]
    power = said(record, "(x-cx)^#")
    y, x = torch.meshgrid(torch.arange(given["height"]), torch.arange(given["width"]), indexing="ij")

    def disc(one, shift):
        cx, cy = (c + s for c, s in zip(one["center"], shift, strict=True))
        return (x - cx) ** power + (y - cy) ** said(record, "+(y-cy)^#") <= one["radius"] ** said(record, "<= r^#")

    first = torch.stack([disc(o, (0, 0)) for o in given["objects"]])
    after = torch.stack([disc(o, o["true_shift"]) for o in given["objects"]])
    field = torch.zeros(2, *x.shape, dtype=precision(record))
    for one, mask in zip(given["objects"], first, strict=True):
        field[:, mask] = torch.tensor(one["predicted_shift"], dtype=field.dtype)[:, None]
    got = flow_proxy_iou(first, after, field)
    yield "iou", got, expected["iou"], 1e-6
    yield "mean", got.mean(), expected["mean"], 1e-6


CASES = {"vtda": scores, "partial_labels": partial, "track_association": association, "flow_proxy_iou": flow}
WORDS = {
    "vtda": {
        "c (4, n)": "the shape of the array",
        "15a, 0,": "a lower bound that the values of the record do not reach",
        "|b|\u00b7c, 0,": "the same",
        "1/ceil(2 sigma)": "the definition of the scale",
        "ceil = 1": "the definition of the scale",
    },
    "track_association": {"0/1 target": "the definition of the loss", "log(1 + sum": "the definition of the loss"},
    "partial_labels": {"0 if none": "the definition of the loss"},
    "flow_proxy_iou": {"24x32 grid": "said by the inputs as well"},
}
