"""What proofs of detectors share: scenes of real digits on real photographs, one training loop, COCO's AP of one class.

The scenes are PUT TOGETHER (:func:`offprint.data.boxes.digit_scenes`), and digits of any kind are one class. A mode's setting begins with the
scenes to learn from, the scenes held out, the steps, and the scenes per step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offprint.data.boxes import BoxedPictures, digit_scenes
from offprint.models.compose import Detector
from offprint.proofs import kit
from offprint.tasks._average_precision import AveragePrecision, target_of

SIDE = 96


def tensors(data: BoxedPictures) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """All pictures, normalised, and their targets of one class."""
    images = torch.from_numpy(np.stack([s.file for s in data.scenes])).permute(0, 3, 1, 2).float() / 255
    targets = [
        {"boxes": torch.from_numpy(s.boxes), "labels": torch.ones(len(s.labels), dtype=torch.int64)}
        for s in data.scenes
    ]
    return (images - 0.45) / 0.25, targets


def scenes(setting: Sequence[Any], part: str) -> BoxedPictures:
    """Scenes to learn from (``train``), to choose rates on (``val``), to judge by (``test``)."""
    count, held, *_ = setting
    found = digit_scenes(count, held, SIDE, 0) if part in ("train", "test") else digit_scenes(count, held, SIDE, 1)
    data = found.train if part == "train" else found.val
    return data.but(
        scenes=[replace(s, labels=np.ones_like(s.labels)) for s in data.scenes], classes=("digit",), ids=(1,)
    )


def digest(setting: Sequence[Any]) -> str:
    """Of the scenes that are judged by."""
    return kit.digest(*(s.file for s in scenes(setting, "test").scenes))


def score(model: Detector, data: BoxedPictures, device) -> dict[str, float]:
    """AP at IoU 0.5, and AP (%)."""
    judge = AveragePrecision(data)
    images, _ = tensors(data)
    model.eval()
    for i, image in enumerate(images):
        found = {k: v.cpu() for k, v in model.detect(image[None].to(device), limit=50)[0].items()}
        judge.update(i, target_of(data, i, data.read(i)[1]), found, (SIDE, SIDE))
    figures, _ = judge.figures()
    return {"ap50": figures["ap50"], "ap": figures["ap"]}


def arm(name: str, build: Callable[[], Detector], macs: float, setting: Sequence[Any], device) -> kit.Arm:
    """A detector that ``build`` makes, trained by AdamW with a one-cycle rate on scenes whose order follows from the seed."""
    _, _, steps, batch, *_ = setting
    images, targets = tensors(scenes(setting, "train"))

    def run(seed: int, rate: float, part: str) -> dict[str, float]:
        torch.manual_seed(seed)
        model = build().to(device).train()
        order = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        first = last = 0.0
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=order).tolist()
            told = [{k: v.to(device) for k, v in targets[i].items()} for i in chosen]
            loss = sum(model.losses(images[chosen].to(device), told).values(), torch.zeros((), device=device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            last = float(loss.detach())
            first = first or last
        return {**score(model, scenes(setting, part), device), "loss_share_left": last / first}

    return kit.Arm(name, run, macs)
