"""Driving frames as the network takes them: at one size, mirrored alike with their reference frame, padded to one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from offprint.data.driving import JOINTS, Frame
from offprint.tasks._detecting import Sizes, pad_to
from offprint.tasks.loaders import SeededLoaders

MULTIPLE = 32
FARTHEST = 3  # frames between a frame and its reference
MAPS = ("semantic", "drivable", "lane_category", "lane_direction", "lane_style")
_MIRROR = [JOINTS.index(j.replace("left", "#").replace("right", "left").replace("#", "right")) for j in JOINTS]
Sample = tuple[Tensor, dict[str, Any]]


def sized(picture: Tensor, target: dict[str, Any], size: tuple[int, int], mirrored: bool = False) -> Sample:
    """A picture (3, H, W) uint8 and its target at another size: the picture in [0, 1], maps at the nearest pixel."""
    height, width = picture.shape[-2:]
    scale = torch.tensor([size[1] / width, size[0] / height])
    x, target = F.resize(picture, list(size), antialias=True).float() / 255, dict(target)
    for name in (*MAPS, "masks"):
        if name in target:
            held = target[name]
            shown = held[None] if held.ndim == 2 else held
            if len(shown):
                shown = F.resize(shown.to(torch.uint8), list(size), interpolation=F.InterpolationMode.NEAREST_EXACT)
            else:
                shown = held.new_zeros(0, *size)
            target[name] = shown[0].long() if held.ndim == 2 else shown
    for name in ("boxes", "pose_boxes"):
        if name in target:
            target[name] = target[name] * scale.repeat(2)
    if "keypoints" in target:
        target["keypoints"] = target["keypoints"] * torch.cat([scale, torch.ones(1)])
    return mirror(x, target) if mirrored else (x, target)


def mirror(x: Tensor, target: dict[str, Any]) -> Sample:
    """Left and right exchanged, of the joints as well."""
    width, target = x.shape[-1], dict(target)
    for name in (*MAPS, "masks"):
        if name in target:
            target[name] = target[name].flip(-1)
    for name in ("boxes", "pose_boxes"):
        if name in target:
            x1, y1, x2, y2 = target[name].unbind(1)
            target[name] = torch.stack([width - x2, y1, width - x1, y2], 1)
    if "keypoints" in target:
        points = target["keypoints"][:, _MIRROR].clone()
        points[..., 0] = torch.where(points[..., 2] > 0, width - points[..., 0], points[..., 0])
        target["keypoints"] = points
    return x.flip(-1), target


class Pairs(Dataset):
    """(frame, reference or ``None``), each a picture in [0, 1] with its target; a reference is of the same video, at most three frames away.

    Args:
        frames: to learn from.
        tasks: whose labels count, of all where none is named.
        sizes: short sides one of which is drawn for each.
        longest: most pixels of the long side.
        flip: mirror half of them.
    """

    def __init__(self, frames: Sequence[Frame], tasks: Sequence[str], sizes: Sequence[int], longest: int, flip: bool):
        self.frames = [f.only(tasks) if tasks else f for f in frames]
        self.sizes, self.longest, self.flip = tuple(sizes), longest, flip
        self.videos: dict[str, list[int]] = defaultdict(list)
        for i, frame in enumerate(self.frames):
            if frame.video:
                self.videos[frame.video].append(i)

    def __len__(self) -> int:
        return len(self.frames)

    def near(self, index: int) -> list[int]:
        """Frames that may be the reference of this one: with the same labels of tracks."""
        frame, kinds = self.frames[index], {"mot", "mots", "flow"}
        own = kinds & set(frame.labels)
        return [
            i for i in self.videos.get(frame.video, ())
            if own and i != index and abs(self.frames[i].index - frame.index) <= FARTHEST and own <= set(self.frames[i].labels)
        ]  # fmt: skip

    def __getitem__(self, index: int) -> tuple[Sample, Sample | None]:
        picture, target = self.frames[index].read()
        short = self.sizes[int(torch.randint(len(self.sizes), ()))] if self.sizes else 0
        size = Sizes(short, self.longest).of(*picture.shape[-2:])
        mirrored, near = self.flip and bool(torch.rand(()) < 0.5), self.near(index)
        other = None
        if near:
            other = sized(*self.frames[near[int(torch.randint(len(near), ()))]].read(), size, mirrored)
        return sized(picture, target, size, mirrored), other


def padded(samples: Sequence[Sample]) -> tuple[Tensor, list[dict[str, Any]]]:
    """One batch of pictures; what lies in the padding is unknown in every map."""
    height, width = (-(-max(x.shape[k] for x, _ in samples) // MULTIPLE) * MULTIPLE for k in (-2, -1))
    targets = []
    for x, target in samples:
        own = dict(target)
        for name in (*MAPS, "masks"):
            if name in own:
                full = own[name].new_full((*own[name].shape[:-2], height, width), 0 if name == "masks" else 255)
                full[..., : x.shape[-2], : x.shape[-1]] = own[name]
                own[name] = full
        targets.append(own)
    return torch.stack([pad_to(x, height, width) for x, _ in samples]), targets


def joined(samples: Sequence[tuple[Sample, Sample | None]]):
    """A batch: pictures, targets, which have a reference, these references and their targets; all of one size."""
    pairs = [i for i, (_, other) in enumerate(samples) if other is not None]
    both, targets = padded([s for s, _ in samples] + [o for _, o in samples if o is not None])
    n = len(samples)
    return both[:n], targets[:n], pairs, both[n:], targets[n:]


class PairLoaders(SeededLoaders):
    """Batches of :func:`joined`."""

    def train_dataloader(self) -> DataLoader:
        loader = super().train_dataloader()
        loader.collate_fn = joined
        return loader
