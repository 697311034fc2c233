"""ImageNet's protocols: one view, flips, ten and 144 crops; the order of classes is checked on a few pictures before the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as vf

from offprint.data.imagenet import Labelled, open_imagenet
from offprint.data.transforms import evaluation_transform
from offprint.errors import DataError, OffprintError
from offprint.tasks.protocols import Job, Measured, network

CHUNK = 1000  # pictures whose results are kept at once, so that an interrupted run goes on


def crops(size: int, crop: float, steps: str, mode: InterpolationMode):
    """A picture to its views: ``flip`` the centre and its mirror image; ``10-crop`` corners, centre and mirror images; ``144-crop``
    those of GoogLeNet (arXiv 1409.4842, Sec. 7): four scales, three squares, four corners, centre and the whole square, mirrored.

    Args:
        size: side of a view in pixels.
        crop: share of the resized shorter side, for the first two.
    """

    def mirrored(views: list) -> list:
        return views + [vf.horizontal_flip(v) for v in views]

    def five(image) -> list:
        return list(vf.five_crop(image, [size, size]))

    def centre(image):
        return mirrored([vf.center_crop(vf.resize(image, [int(size / crop)], mode), [size, size])])

    def ten(image):
        return mirrored(five(vf.resize(image, [int(size / crop)], mode)))

    def many(image):
        found = []
        for side in (256, 288, 320, 352):
            short = round(side * size / 224)
            scaled = vf.resize(image, [short], mode)
            _, height, width = vf.get_dimensions(scaled)
            for k in range(3):  # left, middle, right; or top, middle, bottom
                top, left = (height - short) * k // 2, (width - short) * k // 2
                square = vf.crop(scaled, top, left, short, short)
                found += mirrored([*five(square), vf.resize(square, [size, size], mode)])
        return found

    return {"flip": centre, "10-crop": ten, "144-crop": many}[steps]


def transform_of(preprocessing: Mapping, size: int, crop: float, steps: str, channels: int = 3):
    """Picture → views (V, C, H, W) as the publisher of the weights evaluates."""
    settings = {**preprocessing, "crop_pct": crop or preprocessing.get("crop_pct", 0.875)}
    squash = settings.get("crop_mode", "squash" if settings["crop_pct"] >= 1.0 else "center") == "squash"
    mode = InterpolationMode(settings.get("interpolation", "bicubic"))
    last = evaluation_transform(
        size, {**settings, "crop_pct": 1.0}, channels
    )  # normalises a view that has its size already
    if steps:
        views = crops(size, settings["crop_pct"], steps, mode)
        return lambda image: torch.stack([last(view) for view in views(image)])
    first = (
        v2.Resize((size, size), mode)
        if squash
        else v2.Compose([v2.Resize(int(size / settings["crop_pct"]), mode), v2.CenterCrop(size)])
    )
    return lambda image: last(first(image))[None]


def permutation(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """How consistently pictures of a class are taken for one and the same *other* class, as a share of all pictures.

    High only where every class has a partner of its own: the order of classes is another one.
    """
    pairs = Counter(zip(labels, predicted, strict=True))
    several = {label for label, n in Counter(labels).items() if n > 1}
    best: dict[int, tuple[int, int]] = {}
    for (label, guess), n in pairs.items():
        if label in several and n > best.get(label, (0, 0))[0]:
            best[label] = (n, guess)
    partners = Counter(guess for _, guess in best.values())
    total = sum(n for label, n in Counter(labels).items() if label in several)
    agreed = sum(n for label, (n, guess) in best.items() if n > 1 and guess != label and partners[guess] == 1)
    return agreed / total if total else 0.0


def _pilot(data: Labelled) -> Labelled | None:
    """A few pictures of each of some classes, spread over the classes."""
    of: dict[int, list[int]] = {}
    for i, labels in enumerate(data.labels):
        if len(labels) == 1:
            of.setdefault(labels[0], []).append(i)
    several = [rows[:8] for _, rows in sorted(of.items()) if len(rows) > 1]
    if len(several) < 4:
        return None
    chosen = several[:: max(1, len(several) // 16)][:16]
    return data.chosen([i for rows in chosen for i in rows])


@torch.no_grad()
def _guesses(model, data: Labelled, job: Job, classes: Tensor | None, batch: int) -> list[list[int]]:
    """The five likeliest classes of every picture; views are averaged after the softmax."""
    rows: list[list[int]] = []
    for views, _ in DataLoader(data, batch, num_workers=job.workers):
        count, many = views.shape[:2]
        logits = model(views.flatten(0, 1).to(job.device))
        if classes is not None:
            logits = logits[:, classes.to(logits.device)]
        if logits.shape[1] != 1000:
            raise OffprintError(f"{job.model} gives {logits.shape[1]} classes with these weights; ImageNet-1K has 1000")
        likely = logits.float().softmax(1).view(count, many, -1).mean(1)
        rows += likely.topk(5, 1).indices.tolist()
    return rows


def run(job: Job) -> Measured:
    """Top-1 and top-5 accuracy (%), and the errors they leave."""
    asked, spec = job.asked, job.entry
    weights = None if job.checkpoint else spec.release(job.tag or True)
    preprocessing = dict((weights.preprocessing if weights else spec.preprocessing) or {})
    shape = (weights.input_size if weights else spec.input_size) or (3, 224, 224)
    size = asked.input or shape[-1]
    data = open_imagenet(job.source or _home(asked.data), asked.data, truth=job.truth)
    job.say(f"{len(data):,} pictures; classes by {data.how}")
    notes = [f"classes by {data.how}"]
    if data.missing:
        listed = ", ".join(data.missing[:5]) + (", ..." if len(data.missing) > 5 else "")
        notes.append(f"{len(data.missing):,} pictures of the whole set are not here: {listed}")
        job.say(notes[-1])
    elif not data.whole:
        notes.append(f"{len(data):,} pictures are not the whole set")
        job.say(notes[-1])
    model = network(job)
    data.transform = transform_of(preprocessing, size, asked.crop, asked.steps, getattr(model, "in_chans", 3))
    classes = _classes(weights)
    views = {"": 1, "flip": 2, "10-crop": 10, "144-crop": 144}[asked.steps]
    batch = max(1, job.batch_size // views)
    if (pilot := _pilot(data)) is not None:
        first = [g[0] for g in _guesses(model, pilot, job, classes, batch)]
        _check_order([lab[0] for lab in pilot.labels], first, data.how)
    if job.limit is not None and job.limit < len(data):
        data = data.some(job.limit)
        notes.append(f"{len(data):,} of the pictures only")
    judged = [i for i, labels in enumerate(data.labels) if labels]
    job.progress(total=math.ceil(len(data) / CHUNK))
    rows: list[list[int]] = []
    for start in range(0, len(data), CHUNK):
        part = data.chosen(range(start, min(start + CHUNK, len(data))))
        key = f"{data.digest} {start}"
        rows += job.part(key, lambda p=part: _guesses(model, p, job, classes, batch))
        job.progress(text=f"{len(rows):,} of {len(data):,} pictures")
    one = sum(rows[i][0] in data.labels[i] for i in judged) / len(judged)
    five = sum(bool(set(rows[i]) & set(data.labels[i])) for i in judged) / len(judged)
    if all(len(labels) < 2 for labels in data.labels):
        _check_order([data.labels[i][0] for i in judged], [rows[i][0] for i in judged], data.how)
    metrics = {}
    for name, share in (("top1", one), ("top5", five)):
        error = 100 * math.sqrt(share * (1 - share) / len(judged))
        metrics[name], metrics[f"{name}_error"] = (100 * share, error), (100 * (1 - share), error)
    return Measured(metrics, len(judged), data.digest, partial=not data.whole, notes=notes)


def _check_order(labels: Sequence[int], guesses: Sequence[int], how: str) -> None:
    right = sum(a == b for a, b in zip(labels, guesses, strict=True)) / max(1, len(labels))
    agreed = permutation(labels, guesses)
    if right < 0.05 and agreed > 0.5:
        raise DataError(
            f"{right:.1%} of {len(labels)} pictures are classified rightly, yet {agreed:.0%} of them get one and the same other class as "
            f"the rest of their class: the classes ({how}) are in another order than the model's. ImageNet's models count the sorted "
            "synsets from 0; the development kit's numbers, and names sorted as text, are other orders"
        )


def _classes(weights) -> Tensor | None:
    """Which of the head's outputs are the 1,000 classes, where it has others."""
    if weights is None or not weights.class_map:
        return None
    if weights.class_map == "background-first":
        return torch.arange(1, 1001)
    raise OffprintError(
        f"these weights number their classes by {weights.class_map}, which has no ImageNet-1K rows here; choose another tag"
    )


def _home(which: str) -> str:
    from offprint.data.home import data_dir

    return str(data_dir() / which)
