"""Association as QDTrack does it (Pang et al., CVPR 2021): embeddings of regions, their losses, and the tracker of a video."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from offprint.errors import DataError, OffprintError


def track_association(
    detections: Tensor, tracks: Tensor, labels: Tensor | None = None, track_labels: Tensor | None = None
) -> Tensor:
    """How alike detections (D, C) and remembered embeddings (T, C) are: (D, T), the mean of the softmax over either side.

    Args:
        labels, track_labels: classes (D,) and (T,); pairs of two classes get 0.
    """
    if not len(detections) or not len(tracks):
        return detections.new_zeros(len(detections), len(tracks))
    products = detections @ tracks.T
    alike = (products.softmax(1) + products.softmax(0)) / 2
    return alike if labels is None or track_labels is None else alike * (labels[:, None] == track_labels)


def embedding_losses(keys: Tensor, references: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    r"""QDTrack's losses of region embeddings of a frame against those of a reference frame.

    .. math:: \log(1 + \sum_{+} \sum_{-} e^{v k^- - v k^+}), \qquad (\cos(v, k) - target)^2

    Args:
        keys, references: (K, C) and (R, C).
        positive: (K, R) bool, the same object.

    Returns:
        The first for each key (0 for one without a positive or without a negative), and the mean of the second over all pairs.
    """
    if not len(keys) or not len(references):
        return keys.new_zeros(len(keys)), keys.new_zeros(())
    products = keys @ references.T
    none = torch.finfo(products.dtype).min
    gap = torch.logsumexp(products.masked_fill(positive, none), 1) + torch.logsumexp(
        (-products).masked_fill(~positive, none), 1
    )
    both = positive.any(1) & ~positive.all(1)
    each = F.softplus(torch.where(both, gap, torch.zeros_like(gap))) * both
    cosine = F.normalize(keys, dim=1) @ F.normalize(references, dim=1).T
    return each, (cosine - positive.to(cosine.dtype)).square().mean()


class EmbedHead(nn.Module):
    """Windows (N, C, 7, 7) to embeddings (N, width): four 3x3 convolutions with GroupNorm and ReLU, one linear layer."""

    def __init__(self, channels: int, width: int = 256, groups: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.GroupNorm(groups, channels),
                nn.ReLU(),
            ]
        self.convs, self.fc = nn.Sequential(*layers), nn.Linear(channels * 49, width)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.convs(x).flatten(1))


@dataclass
class _Track:
    """What is remembered of a track."""

    embedding: Tensor
    label: int
    seen: int


@dataclass
class Tracker:
    """Gives the boxes of a video's frames their tracks.

    In each frame boxes that overlap a better one are dropped; the rest, best first, take the track that they are most alike, if more than
    ``match``. What is alike to a backdrop (an unmatched box of the frames before) gets no track; neither does one of a low score. Unmatched boxes
    with a high score begin tracks.

    Args:
        init, object_score: scores from which a box begins a track, or goes on with one (BDD100K: 0.7 and 0.3; elsewhere 0.8 and 0.5).
        match: similarity above which a pair counts.
        memory_frames: after so many frames unseen a track is forgotten.
        backdrop_frames: how long backdrops are kept.
        momentum: share of the new embedding.
        overlaps: IoU with a better box from which on a box is dropped: of object score, and below; the last is among backdrops.
    """

    init: float = 0.7
    object_score: float = 0.3
    match: float = 0.5
    memory_frames: int = 10
    backdrop_frames: int = 1
    momentum: float = 0.8
    overlaps: tuple[float, float, float] = (0.7, 0.3, 0.3)
    tracks: dict[int, _Track] = field(default_factory=dict, init=False, repr=False)
    backdrops: list[tuple[int, Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    began: int = field(default=0, init=False)
    last: int = field(default=-1, init=False)

    def __post_init__(self):
        if self.memory_frames < 1 or self.backdrop_frames < 0:
            raise OffprintError(
                f"memory_frames={self.memory_frames}, backdrop_frames={self.backdrop_frames}; give at least 1 frame, and 0 or more"
            )

    def reset(self) -> None:
        """Forget everything: another video begins."""
        self.tracks, self.backdrops, self.began, self.last = {}, [], 0, -1

    @torch.no_grad()
    def update(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, embeddings: Tensor, frame: int
    ) -> tuple[Tensor, Tensor]:
        """The tracks of a frame's boxes.

        Args:
            boxes, scores, labels, embeddings: (N, 4), (N,), (N,), (N, C).
            frame: number of the frame; 0 begins a video, and forgets the one before.

        Returns:
            Indices of the boxes that stay, best first, and the track of each from 0, -1 for none.

        Raises:
            DataError: a frame that does not come after the last one.
        """
        if frame == 0:
            self.reset()
        if frame <= self.last:
            raise DataError(
                f"frame {frame} comes after frame {self.last}; give frames in their order, or call reset() between videos"
            )
        self.last = frame
        order = scores.argsort(descending=True, stable=True)
        keep = order[_thinned(boxes[order], scores[order] < self.object_score, *self.overlaps[:2])]
        scores, labels, embeddings = scores[keep], labels[keep], embeddings[keep]
        ids = list(self.tracks)
        memory = [self.tracks[i].embedding for i in ids] + [b[1] for b in self.backdrops]
        classes = [self.tracks[i].label for i in ids] + [int(b[2]) for b in self.backdrops]
        given = torch.full((len(keep),), -1, dtype=torch.long)
        fixed = [False] * len(keep)  # matched with a memory: neither begins a track nor becomes a backdrop
        if memory and len(keep):
            alike = track_association(embeddings, torch.stack(memory), labels, labels.new_tensor(classes)).cpu()
            for i, score in enumerate(scores.tolist()):
                value, best = alike[i].max(0)
                if value <= self.match:
                    continue
                if int(best) < len(ids):
                    fixed[i] = True
                    if score > self.object_score:
                        given[i] = ids[int(best)]
                        alike[:, int(best)] = 0
                    else:
                        given[i] = -2  # a doubtful repetition of a track: dropped
                else:
                    fixed[i] = True
        rest: list[int] = []
        for i, score in enumerate(scores.tolist()):
            if fixed[i]:
                continue
            if score > self.init:
                given[i], self.began = self.began, self.began + 1
            else:
                rest.append(i)
        self._remember(given, labels, embeddings, frame)
        where = torch.tensor(rest, dtype=torch.long, device=keep.device)
        kept = [
            rest[j]
            for j in _thinned(
                boxes[keep][where], torch.zeros(len(rest), dtype=torch.bool), *self.overlaps[2:] * 2
            ).tolist()
        ]
        self.backdrops = [b for b in self.backdrops if frame - b[0] < self.backdrop_frames]
        if self.backdrop_frames:
            self.backdrops += [(frame, embeddings[i], labels[i]) for i in kept]
        stays = given > -2
        return keep[stays.to(keep.device)], given[stays]

    def _remember(self, given: Tensor, labels: Tensor, embeddings: Tensor, frame: int) -> None:
        for i, track in enumerate(given.tolist()):
            if track < 0:
                continue
            held = self.tracks.get(track)
            new = embeddings[i] if held is None else torch.lerp(held.embedding, embeddings[i], self.momentum)
            self.tracks[track] = _Track(new, int(labels[i]), frame)
        self.tracks = {k: t for k, t in self.tracks.items() if frame - t.seen < self.memory_frames}


def _thinned(boxes: Tensor, low: Tensor, high_iou: float, low_iou: float) -> Tensor:
    """Indices of boxes, best first, that overlap no better one that stays: by more than ``high_iou``, or ``low_iou`` where ``low``."""
    if not len(boxes):
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    overlap = box_iou(boxes, boxes).cpu()
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(1, len(boxes)):
        stays[i] = not bool((overlap[i, :i] > (low_iou if bool(low[i]) else high_iou)).any())
    return stays.nonzero()[:, 0].to(boxes.device)
