r"""Video Task Decathlon (Huang et al.; ICCV 2023; arXiv 2309.04422): ten driving tasks by one network. Rebuilt: no code was released.

Only the abstract and the first page stand behind this file; what is inside the blocks, their sizes, and the recipes are choices of this
library, and no weights or figures of the authors are claimed.

One backbone with a feature pyramid (256 channels, strides 4 to 64) serves all. Tasks are of four groups. **Classification**: weather and scene, from the mean of
the top map. **Segmentation**: semantic, drivable area, lanes (category, direction, style), from the levels brought to stride 4 and summed.
**Localization**: detection, instance masks, joints, from windows of proposals. **Association**: embeddings of boxes (MOT, and MOTS with their
masks), and the flow between two frames, from their pyramids by cost volumes.

Tasks of a group exchange by self-attention (Intra-IB: in windows over pixels, over the instances of an image), groups by attention from one to the
other (Cross-IB: instances read a coarse grid of pixels, pixels read the best proposals). With one task alone there is nothing to exchange and the network
is its single-task counterpart.

Training is by **CPF**: a curriculum (``stage="curriculum"``: the tasks with full labels, then ``"joint"``: all), pseudo-labels for scarce tasks by the
network of the stage before (``"pseudo"``), and at the end each decoder alone on the frozen rest (``"finetuning"``); the stage ``training`` is without it. Labels are partial:
:func:`partial_label_loss`. A whole network is scored by :func:`vtda`.

Frames of instance and tracking sets, where not all ten classes are annotated, train masks and embeddings and not the detector: an object without a label there would be
learnt as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import DataError, OffprintError
from offprint.models.backbones.ibn_net import ResNet
from offprint.models.detection._vtdnet_blocks import CrossExchange, PixelExchange
from offprint.models.detection._vtdnet_flow import FlowDecoder, census, cost_volume, flow_losses, flow_proxy_iou, warp
from offprint.models.detection._vtdnet_instances import Instances, maps_with, pooled_tokens
from offprint.models.detection._vtdnet_scores import (
    FULL_TASKS,
    GROUPS,
    INSTANCE_TASKS,
    PIXEL_TASKS,
    TASKS,
    Score,
    TaskLoss,
    check_tasks,
    label_table,
    partial_label_loss,
    vtda,
)
from offprint.models.detection._vtdnet_tracking import EmbedHead, Tracker, embedding_losses, track_association
from offprint.models.detection.fpn import FPN
from offprint.models.factory import create_model
from offprint.models.parts import maps_of
from offprint.models.registry import IMAGENET, register

__all__ = [
    "GROUPS", "TASKS", "EmbedHead", "FlowDecoder", "Score", "TaskLoss", "Tracker", "VTDNet", "census", "cost_volume", "embedding_losses",
    "flow_losses", "flow_proxy_iou", "label_table", "partial_label_loss", "track_association", "vtda", "warp",
]  # fmt: skip
WEATHERS, SCENES, CLASSES, JOINTS = 7, 7, 10, 18
MAPS = {  # the maps of each pixel task, and their classes; lanes count the background as class 0
    "semantic": {"semantic": 19}, "drivable": {"drivable": 3}, "lane": {"lane_category": 9, "lane_direction": 3, "lane_style": 3},
}  # fmt: skip
TAGS = {"weather": WEATHERS, "scene": SCENES}


class PixelFeatures(nn.Module):
    """Levels of strides 4 to 32 to one map at stride 4: convolution, norm and doubling until there, then the sum (Semantic FPN)."""

    def __init__(self, channels: int, width: int):
        super().__init__()

        def stage(before: int, doubled: bool) -> nn.Sequential:
            layers = [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.GroupNorm(min(32, width // 4), width),
                nn.ReLU(),
            ]
            return nn.Sequential(*layers, *([nn.Upsample(scale_factor=2, mode="bilinear")] if doubled else []))

        self.levels = nn.ModuleList(
            nn.Sequential(*(stage(channels if i == 0 else width, level > 0) for i in range(max(1, level))))
            for level in range(4)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        parts = [level(m) for level, m in zip(self.levels, maps, strict=False)]
        size = parts[0].shape[-2:]
        return torch.stack([p[..., : size[0], : size[1]] for p in parts]).sum(0)


class PixelTasks(nn.Module):
    """The segmentation group: pixel features, its exchange, a decoder for each map."""

    def __init__(
        self, channels: int, tasks: Sequence[str], *, width: int, task_width: int, window: int, instances: int
    ):
        super().__init__()
        self.tasks, self.task_width = tuple(tasks), task_width
        dim = len(tasks) * task_width
        self.features, self.into = PixelFeatures(channels, width), nn.Conv2d(width, dim, 1)
        shared = len(tasks) > 1
        self.exchange = nn.ModuleList(PixelExchange(len(tasks), task_width, window, s) for s in (False, True) if shared)
        self.cross = CrossExchange(dim, instances) if instances else None
        self.decoders = nn.ModuleDict(
            {task: nn.ModuleDict({m: nn.Conv2d(task_width, n, 1) for m, n in MAPS[task].items()}) for task in tasks}
        )

    def forward(
        self, pixels: Tensor, tokens: Tensor | None, there: Tensor | None, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Pixel features (B, width, h, w), instances (B, M, C) and which are there: logits (B, K, H, W) of every map."""
        x = self.into(pixels).permute(0, 2, 3, 1)
        for block in self.exchange:
            x = block(x)
        if self.cross is not None and tokens is not None:
            x = self.cross(x.flatten(1, 2), tokens, there).view(x.shape)
        out = {}
        for task, part in zip(self.tasks, x.permute(0, 3, 1, 2).split(self.task_width, 1), strict=True):
            for name, decoder in self.decoders[task].items():  # type: ignore[union-attr,operator]
                out[name] = F.interpolate(decoder(part), size=size, mode="bilinear", align_corners=False)
        return out


class Seen(NamedTuple):
    """What the shared part makes of images: the pyramid, its top, proposals, maps by name with the pixel grid, logits of tags and pixels."""

    maps: list[Tensor]
    proposals: Any
    named: Any
    logits: dict[str, Tensor]


class VTDNet(nn.Module):
    """Frames (B, 3, H, W), normalised, to all tasks.

    ``forward`` gives tags and maps; :meth:`detect` every output, with a reference frame the flow as well; :meth:`losses` the losses of partly labelled frames.
    H and W are multiples of 32.

    Args:
        in_chans: image channels.
        tasks: of :data:`TASKS`; one alone is the single-task network.
        backbone: ``resnet18``, ``resnet50``, or a backbone's name.
        width: of the pyramid; ``task_width`` of a task's features in the exchange.
        pixel_width: of the pixel features.
        window: of the Intra-IB.
        hidden, mask_width, pose_width, pose_layers, embed: of the instance heads.
        proposals, regions: as :class:`~offprint.models.detection.two_stage.TwoStage` has them.
        tokens: proposals that the pixels read.
    """

    native = "offprint"
    input_layers = ("backbone.conv1",)
    background = False

    def __init__(
        self, in_chans: int = 3, tasks: Sequence[str] = TASKS, backbone: str = "resnet50", width: int = 256, task_width: int = 64,
        pixel_width: int = 128, window: int = 7, hidden: int = 1024, mask_width: int = 256, pose_width: int = 512, pose_layers: int = 8,
        embed: int = 256, proposals: tuple[int, int, int, int] = (2000, 1000, 2000, 1000), regions: int = 512, tokens: int = 64,
    ):  # fmt: skip
        super().__init__()
        self.in_chans, self.tasks, self.tokens = in_chans, check_tasks(tasks), tokens
        self.num_classes, self.joints = CLASSES, JOINTS
        pixel = [t for t in PIXEL_TASKS if t in self.tasks]
        instance = [t for t in INSTANCE_TASKS if t in self.tasks]
        self.backbone = _backbone(backbone, in_chans)
        before = maps_of(self.backbone)
        if "tagging" in self.tasks:
            self.tags = nn.ModuleDict({name: nn.Linear(before.channels[-1], n) for name, n in TAGS.items()})
        if self.tasks != ("tagging",):
            self.neck = FPN.on(before, finest=4, out_channels=width)
        both = bool(pixel and instance)
        if pixel:
            self.pixels = PixelTasks(
                width, pixel, width=pixel_width, task_width=task_width, window=window, instances=width if both else 0
            )
        if instance:
            self.instances = Instances(
                self.neck.maps, CLASSES, JOINTS, instance, width=task_width, grid=pixel_width if both else 0, hidden=hidden,
                mask_width=mask_width, pose_width=pose_width, pose_layers=pose_layers, embed=embed, proposals=proposals, regions=regions,
            )  # fmt: skip
        if "flow" in self.tasks:
            self.flow = FlowDecoder(width)

    def decoders(self) -> dict[str, list[nn.Module]]:
        """Task → the modules that serve it alone, or it and its like; all else is shared."""
        out: dict[str, list[nn.Module]] = {t: [] for t in self.tasks}
        if "tagging" in out:
            out["tagging"] = [self.tags]
        if hasattr(self, "pixels"):
            out |= {t: [d] for t, d in self.pixels.decoders.items()}
        if hasattr(self, "instances"):
            heads, roi = self.instances, self.instances.roi_heads
            mask = [roi.mask_head, roi.mask_predictor] if self.instances.masks else []
            embed = [heads.embed_head] if hasattr(heads, "embed_head") else []
            own = {
                "detection": [roi.box_head, roi.box_predictor], "instance": mask, "mot": embed, "mots": [*mask, *embed],
                "pose": [heads.pose_head, heads.pose_predictor] if hasattr(heads, "pose_head") else [],
            }  # fmt: skip
            out |= {t: m for t, m in own.items() if t in out}
        if "flow" in out:
            out["flow"] = [self.flow]
        return out

    def _check(self, x: Tensor) -> None:
        if not torch.compiler.is_compiling() and (
            x.ndim != 4 or x.shape[1] != self.in_chans or x.shape[-1] % 32 or x.shape[-2] % 32
        ):
            raise OffprintError(
                f"frames {tuple(x.shape)}; expected (B, {self.in_chans}, H, W) with H and W multiples of 32 (pad at the right and below)"
            )

    def see(self, x: Tensor, training: bool = False) -> Seen:
        """The shared part, and what needs no proposals of its own."""
        self._check(x)
        size = (int(x.shape[-2]), int(x.shape[-1]))
        levels = list(self.backbone(x))
        logits = {k: f(levels[-1].mean((2, 3))) for k, f in self.tags.items()} if "tagging" in self.tasks else {}
        maps = self.neck(levels) if hasattr(self, "neck") else levels
        pixels = self.pixels.features(maps) if hasattr(self, "pixels") else None
        proposals, tokens, there, named = None, None, None, maps_with(maps, None)
        if hasattr(self, "instances"):
            proposals = self.instances.propose(maps, size, training)
            if pixels is not None:
                tokens, there = pooled_tokens(self.instances, named, proposals, size, self.tokens)
                grid = F.adaptive_avg_pool2d(pixels, (size[0] // 32, size[1] // 32))
                named = maps_with(maps, grid.flatten(2).transpose(1, 2))
        if pixels is not None:
            logits |= self.pixels(pixels, tokens, there, size)
        return Seen(maps, proposals, named, logits)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the tags (B, K) and of the maps (B, K, H, W)."""
        return self.see(x).logits

    def example_input(self, batch: int = 1) -> Tensor:
        """A random frame."""
        like = next(self.parameters())
        return torch.rand(batch, self.in_chans, 96, 160, device=like.device, dtype=like.dtype)

    @torch.no_grad()
    def detect(self, x: Tensor, reference: Tensor | None = None, **limits: float) -> list[dict[str, Tensor]]:
        """Every output of each frame.

        Args:
            x: (B, C, H, W).
            reference: the frames after ``x``, for the flow to them.
            **limits: ``score_threshold``, ``iou_threshold``, ``limit`` of boxes.

        Returns:
            Of each frame ``weather`` and ``scene`` (probabilities), ``semantic`` and the other maps (classes, H, W), ``boxes``, ``scores``, ``labels``, ``masks``,
            ``keypoints``, ``embeddings``, ``flow`` (2, H, W) in pixels; those that its tasks have.
        """
        seen, size = self.see(x), (int(x.shape[-2]), int(x.shape[-1]))
        out: list[dict[str, Tensor]] = [{} for _ in x]
        for name, value in seen.logits.items():
            for o, v in zip(out, value, strict=True):
                o[name] = v.softmax(0) if name in TAGS else v.argmax(0)
        if hasattr(self, "instances"):
            for o, found in zip(out, self.instances.objects(seen.named, size, seen.proposals, **limits), strict=True):
                o |= found
        if "flow" in self.tasks and reference is not None:
            for o, f in zip(out, self._flow(seen, self.pyramid(reference)), strict=True):
                o["flow"] = f
        return out

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """The feature pyramid alone."""
        self._check(x)
        return self.neck(list(self.backbone(x)))

    def _flow(self, seen: Seen, others: Sequence[Tensor], rows: Sequence[int] | None = None) -> Tensor:
        maps = [m if rows is None else m[list(rows)] for m in seen.maps[:4]]
        return self.flow(maps, list(others[:4]))

    def losses(
        self, x: Tensor, targets: Sequence[dict[str, Any]], reference: Tensor | None = None,
        reference_targets: Sequence[dict[str, Any]] = (), pairs: Sequence[int] = (), frames: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Losses of each image and task (B, 10), and which count (B, 10): those that are labelled and among the network's tasks.

        Args:
            x: (B, C, H, W).
            targets: of each image ``known`` (the tasks that it has labels of), and what these need: ``weather``, ``scene`` (-1 unknown), ``semantic``, ``drivable``
                (255 unknown), ``lane_category``, ``lane_direction``, ``lane_style`` (H, W); ``boxes``, ``labels``, ``masks``, ``tracks`` (-1 none); ``pose_boxes``,
                ``keypoints`` (P, J, 3).
            reference, reference_targets: the other frame of those images that are of a video.
            pairs: which images these are.
            frames: the images and their references in [0, 1], of these pairs: the flow learns from them.
        """
        if (
            len(targets) != len(x)
            or len(pairs) != len(reference_targets)
            or len(pairs) != (0 if reference is None else len(reference))
        ):
            raise DataError(
                f"{len(x)} images, {len(targets)} targets; {len(pairs)} pairs, {len(reference_targets)} of their targets; give one of each"
            )
        size, table = (int(x.shape[-2]), int(x.shape[-1])), x.new_zeros(len(x), len(TASKS))
        rows: list[list[Tensor]] = [list(row.unbind()) for row in table]
        seen = self.see(x, training=True)
        video = {i: k for k, i in enumerate(pairs)}
        known = [{t for t in target["known"] if t in self.tasks} for target in targets]
        for i, tasks in enumerate(known):  # what needs two frames has no label where there is one
            known[i] = tasks - ({"mot", "mots", "flow"} if i not in video else set())
            if not tasks & {"flow"} or frames is None:
                known[i] -= {"flow"}
        for task in ("tagging", *PIXEL_TASKS):
            for i, target in enumerate(targets):
                if task in known[i]:
                    names = TAGS if task == "tagging" else MAPS[task]
                    parts = [_entropy(seen.logits[n][i], target[n]) for n in names]
                    rows[i][TASKS.index(task)] = torch.stack(parts).mean()
        other = self.see_reference(reference) if reference is not None and self._needs(known) else None
        if hasattr(self, "instances"):
            for i, target in enumerate(targets):
                target = _on(target, x)
                found = self.instances.losses_of(seen.named, size, seen.proposals, i, target, known[i])
                for task in {"mot", "mots"} & known[i]:
                    assert other is not None
                    k = video[i]
                    both = target, _on(reference_targets[k], x)
                    near = seen.proposals.boxes[i], other.proposals.boxes[k]
                    one, two = _slice(seen.named, i), _slice(other.named, k)
                    found[task] = self.instances.track_loss(one, two, size, near, both)
                    if task == "mots":
                        found[task] = found[task] + self.instances.mask_loss(one, size, near[0], target)
                for task, value in found.items():
                    rows[i][TASKS.index(task)] = value
        pairs_of_flow = [i for i in pairs if "flow" in known[i]]
        if pairs_of_flow and other is not None and frames is not None:
            chosen = [video[i] for i in pairs_of_flow]
            flow = self._flow(seen, [m[chosen] for m in other.maps], pairs_of_flow)
            each = flow_losses(frames[0][chosen], frames[1][chosen], flow.float())
            for i, value in zip(pairs_of_flow, each, strict=True):
                rows[i][TASKS.index("flow")] = value
        losses = torch.stack([torch.stack([v.to(table.dtype) for v in row]) for row in rows])
        return losses, label_table(known, x.device)

    @staticmethod
    def _needs(known: Sequence[set[str]]) -> bool:
        return any(tasks & {"mot", "mots", "flow"} for tasks in known)

    def see_reference(self, x: Tensor) -> Seen:
        """Of a reference frame what association needs: the pyramid, proposals, the grid."""
        maps = self.pyramid(x)
        size, named, proposals = (int(x.shape[-2]), int(x.shape[-1])), maps_with(maps, None), None
        if hasattr(self, "instances"):
            proposals = self.instances.propose(maps, size, True)
            if hasattr(self, "pixels"):
                grid = F.adaptive_avg_pool2d(self.pixels.features(maps), (size[0] // 32, size[1] // 32))
                named = maps_with(maps, grid.flatten(2).transpose(1, 2))
        return Seen(maps, proposals, named, {})


def _entropy(logits: Tensor, target: Any) -> Tensor:
    """Cross-entropy of a tag (K,) or of a map (K, H, W); 0 where nothing of it is known (-1, 255)."""
    target = torch.as_tensor(target, device=logits.device).long()
    ignored = -1 if logits.ndim == 1 else 255
    each = F.cross_entropy(logits[None], target[None], ignore_index=ignored, reduction="sum")
    return each / (target != ignored).sum().clamp(min=1)


def _slice(maps: Any, i: int) -> Any:
    return type(maps)((k, m[i : i + 1]) for k, m in maps.items())


def _on(target: dict[str, Any], like: Tensor) -> dict[str, Any]:
    moved = {k: v.to(like.device) if isinstance(v, Tensor) else v for k, v in target.items()}
    for name in ("boxes", "pose_boxes", "keypoints"):
        if name in moved:
            moved[name] = moved[name].to(torch.promote_types(like.dtype, torch.float32))
    return moved


def _backbone(name: str, in_chans: int) -> nn.Module:
    """A backbone that gives maps at strides 4 to 32; plain ResNets have torchvision's names."""
    plain = {"resnet18": ("basic", (2, 2, 2, 2)), "resnet50": ("bottleneck", (3, 4, 6, 3))}
    if name in plain:
        block, depths = plain[name]
        return ResNet(in_chans, 0, block, depths, kind="").as_features((1, 2, 3, 4))
    model = create_model(name, features_only=True, in_chans=in_chans)
    if tuple(maps_of(model).reductions) != (4, 8, 16, 32):
        raise OffprintError(f"{name} gives maps at strides {maps_of(model).reductions}; expected 4, 8, 16 and 32")
    return model


VARIANTS = {
    "vtdnet_resnet50_rebuilt": {"backbone": "resnet50"},
    "vtdnet_swin_t_rebuilt": {"backbone": "swin_tiny"},
    "vtdnet_tiny_rebuilt": {
        "backbone": "resnet18", "width": 128, "task_width": 32, "pixel_width": 64, "window": 4, "hidden": 256, "mask_width": 64,
        "pose_width": 64, "pose_layers": 2, "embed": 64, "proposals": (500, 200, 300, 100), "regions": 64, "tokens": 32,
    },
}  # fmt: skip
_RECIPE = {  # of this library, from memory of the paper
    "optimizer": "adamw", "lr": 1e-4, "weight_decay": 0.05, "epochs": 12, "batch_size": 16, "warmup_steps": 500, "warmup_epochs": 0, "clip_grad": 1.0,
    "short_sides": (600, 660, 720), "data": "bdd100k",
}  # fmt: skip
_TOY = {
    "batch_size": 2,
    "short_sides": (),
    "lr": 5e-4,
    "warmup_steps": 50,
    "data": "",
}  # the small network, on the drawn scenes
RECIPES = {
    "training": _RECIPE,
    "curriculum": {**_RECIPE, "tasks": FULL_TASKS},
    "joint": {**_RECIPE, "start": "curriculum"},
    "pseudo": {**_RECIPE, "start": "joint", "pseudo": ("semantic", "pose"), "pseudo_threshold": 0.6},
    "finetuning": {**_RECIPE, "start": "pseudo", "lr": 1e-5, "epochs": 3, "warmup_steps": 0, "decoders_only": True},
}
register(
    paper="vtdnet",
    kind="detection",
    task="driving",
    build=VTDNet,
    variants=VARIANTS,
    input_size=(3, 736, 1280),
    input_sizes={"vtdnet_tiny_rebuilt": (3, 96, 160)},
    preprocessing={**IMAGENET, "interpolation": "bilinear", "crop_pct": 1.0},
    recipes=RECIPES,
    exceptions={
        stage: {"vtdnet_tiny_rebuilt": {**_TOY, **({"lr": 5e-5, "warmup_steps": 0} if stage == "finetuning" else {})}}
        for stage in RECIPES
    },
)
