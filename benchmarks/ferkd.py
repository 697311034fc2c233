"""Making soft labels against a plain loop over crops, and reading them against the student's step and against FKD's own files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop, ToTensor
from torchvision.transforms import functional as tf

import offprint
from benchmarks.compare import Row, race
from offprint.data.images import ArrayImages
from offprint.methods.training._soft_labels import Replay, generate_soft_labels, names_of, open_labels
from offprint.methods.training.ferkd import crop_major, quantize_soft_labels, recover_soft_labels, soft_cross_entropy

PLAIN = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
FORM = "marginal_smoothing_k5"


def _pictures(count: int, side: int, classes: int) -> ArrayImages:
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse]
    return ArrayImages(np.stack(images), np.arange(count) % classes)


def _loop(teacher: nn.Module, images: ArrayImages, out: Path, crops: int, size: int) -> None:
    """Each crop by torchvision, each picture's crops through the teacher, one torch file a picture."""
    finish = Compose([ToTensor(), Normalize(PLAIN["mean"], PLAIN["std"])])
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for i in range(len(images)):
            picture, coords, flips, parts = images[i][0], [], [], []
            for _ in range(crops):
                top, left, height, width = RandomResizedCrop.get_params(picture, [0.08, 0.936], [3 / 4, 4 / 3])
                part = tf.resized_crop(picture, top, left, height, width, [size, size], InterpolationMode.BICUBIC)
                flips.append(bool(torch.rand(()) < 0.5))
                parts.append(finish(tf.hflip(part) if flips[-1] else part))
                coords.append(
                    (top / picture.height, left / picture.width, height / picture.height, width / picture.width)
                )
            answers = quantize_soft_labels(teacher(torch.stack(parts)).softmax(1), FORM)
            torch.save([np.array(coords, np.float32), np.array(flips), answers], out / f"{i}.tar")


def rows(
    count: int = 12, side: int = 256, crops: int = 50, size: int = 128, classes: int = 100, seconds: float = 8.0
) -> Iterator[Row]:
    torch.manual_seed(0)
    images, names = _pictures(count, side, classes), [str(i) for i in range(classes)]
    teacher = offprint.create_model("mobilenetv2_100", num_classes=classes, width=0.35).eval()
    with tempfile.TemporaryDirectory() as folder:
        root, turn = Path(folder), iter(range(10**6))

        def ours() -> None:
            generate_soft_labels(
                teacher,
                images,
                root / f"o{next(turn)}",
                classes=names,
                crops=crops,
                form=FORM,
                size=size,
                preprocessing=PLAIN,
            )

        took = race(ours, lambda: _loop(teacher, images, root / f"t{next(turn)}", crops, size), seconds)
        rate = f"{count * crops / took[0]:,.0f} labels per second"
        yield Row(
            "ferkd",
            f"soft labels of {count} pictures x {crops} crops at {size} px, to disk",
            "a plain loop over crops",
            *took,
            note=rate,
        )

        store = open_labels(next(root.glob("o*")), images, names)
        _loop(teacher, images, root / "theirs", crops, size)
        theirs = open_labels_of_loop(root / "theirs", images, names)
        both = [lambda s=s: [s.recovered(s.read(i)) for i in range(count)] for s in (store, theirs)]
        yield Row(
            "ferkd", f"{count} files of {crops} labels, read and recovered", "FKD's torch files", *race(*both, seconds)
        )

        replay, student = (
            Replay(images, store, size, PLAIN),
            offprint.create_model("mobilenetv2_100", num_classes=classes, width=0.35),
        )

        def plain() -> None:
            for i in range(count):
                found = store.read(i)
                whole = recover_soft_labels(found.labels, FORM, classes)
                order = torch.randperm(crops)[:4]
                for c in order.tolist():
                    top, left, height, width = (found.coords[c] * side).round().int().tolist()
                    part = tf.resized_crop(
                        images[i][0], top, left, height, width, [size, size], InterpolationMode.BILINEAR
                    )
                    Normalize(PLAIN["mean"], PLAIN["std"])(ToTensor()(tf.hflip(part) if found.flips[c] else part))
                whole[order]

        load = lambda: [replay[i, 4] for i in range(count)]  # noqa: E731
        yield Row(
            "ferkd",
            f"{count} pictures x 4 crops with their labels, ready to learn from",
            "torchvision's transforms",
            *race(load, plain, seconds),
        )

        batch = [crop_major(torch.stack(column)) for column in zip(*load(), strict=True)]

        def step() -> None:
            student.zero_grad()
            soft_cross_entropy(student(batch[0]), batch[1]).backward()

        took = race(load, step, seconds)
        note = "a small student on this processor; in one loader process, so reading hides behind the step where the ratio is above 1"
        yield Row(
            "ferkd",
            f"reading {count} x 4 crops against learning from them",
            "the student's own step",
            *took,
            required=1.0,
            note=note,
        )


def open_labels_of_loop(folder: Path, images: ArrayImages, names: list[str]):
    """The loop's files under the names of FKD."""
    for i, name in enumerate(names_of(images, names)):
        target = folder / f"{name}.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.tar").rename(target)
    return open_labels(folder, images, names, released=FORM)
