r"""Spatial CNN: Spatial As Deep (Pan, Shi, Luo, Wang, Tang; AAAI 2018; arXiv 1712.06080).

Long thin shapes are seldom seen whole: a lane goes on beneath a car. SCNN lets the rows and columns of a feature map speak to
their neighbours in turn. With the slices :math:`X_0, X_1, \dots` of a map (Sec. 3.1),

.. math:: X'_0 = X_0, \qquad X'_i = X_i + \mathrm{relu}(K * X'_{i-1}),

K being one kernel of w places by C channels for all slices of a pass. What stands at one end so reaches the other end of the map
in a single pass, at the cost of one convolution. The passes down, up, right and left follow each other, each with its own kernel.

The network is VGG-16 at stride 8 (dilations in place of the last two poolings), 128 channels, the four passes, one map per
lane and one for the rest; from the maps' probabilities a small head says which lanes there are (Fig. 3). Lanes are read off the
maps row by row, and are judged as on CULane (drawn curves that overlap) or TuSimple (points per row).

Reference: the authors' Lua code, XingangPan/SCNN, and harryhan618/SCNN_Pytorch, which loads their weights. In lanedet's form of the
passes (``stop_short``) the up and the left pass leave their last slice without a message; weights trained so need it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.backbone import sides_of
from offprint.models.checkpoint import Dialect
from offprint.models.parts import Maps, last, register_part
from offprint.models.registry import Weights, register
from offprint.models.segmentation._lane_curves import CULANE, TUSIMPLE, LaneRows, maps_to_lanes
from offprint.models.segmentation._lane_scores import (
    CulaneCounts,
    TusimpleScore,
    culane_f1,
    culane_total,
    spline,
    tusimple_accuracy,
    tusimple_total,
)
from offprint.nn.sweep import sweep

__all__ = [
    "CULANE", "TUSIMPLE", "SCNN", "CulaneCounts", "ExistenceHead", "LaneRows", "MessagePassing", "SCNNLoss", "TusimpleScore",
    "culane_f1", "culane_total", "maps_to_lanes", "spline", "tusimple_accuracy", "tusimple_total",
]  # fmt: skip

PASSES = {
    "up_down": (0, False),
    "down_up": (0, True),
    "left_right": (1, False),
    "right_left": (1, True),
}  # axis, reverse
LANEDET = {"up_down": "conv_d", "down_up": "conv_u", "left_right": "conv_r", "right_left": "conv_l"}


# -- message passing --------------------------------------------------------------------------------------------------
class MessagePassing(nn.Module):
    """Messages down, up, to the right and to the left, one pass after another: (B, C, H, W) to the same, for maps of any size.

    Args:
        channels: C.
        kernel_size: w, places of the neighbouring slice that a message gathers; odd.
        stop_short: lanedet's form: row 0 gets no message from below and column 0 none from the right.

    Kernels start at the deviation sqrt(2 / (w C C 5)) of the authors; larger ones explode over a hundred columns.
    """

    native = "scnn_pytorch"
    dialects = (Dialect("lanedet", tuple((rf"^{b}\.", f"{a}.") for a, b in LANEDET.items())),)

    def __init__(self, channels: int = 128, kernel_size: int = 9, stop_short: bool = False):
        super().__init__()
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise OffprintError(f"kernel_size={kernel_size}; a message is centred on its place, so give an odd number")
        self.channels, self.kernel_size, self.stop_short = channels, kernel_size, stop_short
        for name, (axis, _) in PASSES.items():
            kernel = (1, kernel_size) if axis == 0 else (kernel_size, 1)
            conv = nn.Conv2d(channels, channels, kernel, padding=tuple(k // 2 for k in kernel), bias=False)
            nn.init.normal_(conv.weight, std=(2 / (kernel_size * channels * channels * 5)) ** 0.5)
            setattr(self, name, conv)

    def steps(self, x: Tensor) -> list[Tensor]:
        """The map (B, C, H, W) after each of the four passes."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise OffprintError(f"expected a map (B, {self.channels}, H, W), got {tuple(x.shape)}")
        found = []
        for name, (axis, reverse) in PASSES.items():
            order = (2, 0, 3, 1) if axis == 0 else (3, 0, 2, 1)  # slices, batch, places, channels
            back = (1, 3, 0, 2) if axis == 0 else (1, 3, 2, 0)
            weight = getattr(self, name).weight.flatten(2)
            x = sweep(x.permute(order), weight, reverse, self.stop_short and reverse).permute(back)
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[-1]


# -- the network ------------------------------------------------------------------------------------------------------
def _vgg(in_chans: int, widths: Sequence[int]) -> nn.Sequential:
    """VGG-16 with BatchNorm up to stride 8, under torchvision's numbers: 33 and 43, the last poolings, are missing."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    at, before = 0, in_chans
    for stage, (width, depth) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True)):
        dilation = 2 if stage == 4 else 1
        for _ in range(depth):
            layers[str(at)] = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation)
            layers[str(at + 1)], layers[str(at + 2)] = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            before, at = width, at + 3
        if stage < 3:
            layers[str(at)] = nn.MaxPool2d(2, 2)
        at += 1
    return nn.Sequential(layers)


class ExistenceHead(nn.Module):
    """Which lanes there are: the maps' softmax, 2x2 means, two linear layers. It fits one image size.

    Args:
        num_maps: maps, the background's among them.
        num_lanes: flags.
        img_size: (height, width) of the image, multiples of 16; the maps are at stride 8.
    """

    native = "scnn_pytorch"

    def __init__(self, num_maps: int = 5, num_lanes: int = 4, img_size: int | Sequence[int] = (288, 800)):
        super().__init__()
        self.img_size = sides_of(img_size)
        if any(side % 16 for side in self.img_size):
            near = tuple(max(16, round(side / 16) * 16) for side in self.img_size)
            raise OffprintError(
                f"img_size={self.img_size}: sides must be multiples of 16 (the head pools maps of stride 8 by 2); try {near}"
            )
        height, width = self.img_size
        features = num_maps * (height // 16) * (width // 16)
        self.fc = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, num_lanes))

    def logits(self, maps: Tensor) -> Tensor:
        """Logits of the maps (B, num_maps, H/8, W/8) to logits of the flags (B, num_lanes)."""
        return self.fc(F.avg_pool2d(maps.softmax(1), 2).flatten(1))

    def forward(self, maps: Tensor) -> Tensor:
        """The flags' probabilities (B, num_lanes)."""
        return self.logits(maps).sigmoid()


class SCNN(nn.Module):
    """Road images (B, 3, H, W) to (logits (B, num_lanes + 1, H, W), probabilities of the lanes' existence (B, num_lanes)).

    Args:
        img_size: (height, width), multiples of 16. The existence head belongs to it: CULane's weights are for 288 x 800, TuSimple's
            for 288 x 512.
        num_lanes: lanes that are told apart; map 0 is the background.
        in_chans: image channels.
        kernel_size: w of the message passing.
        stop_short: see :class:`MessagePassing`.
        widths: channels of VGG's five stages.
        hidden: channels of the two convolutions before the passes.
        drop_rate: of whole channels before the maps.
        fresh_existence: leave the existence head of a file out, and keep a fresh one: so a file of another size of image is loaded.
    """

    native = "offprint"
    classifier = "existence"
    input_layers = ("backbone.0",)
    dialects = (
        Dialect("scnn_pytorch", ((r"^fc\.", "existence.fc."),)),
        Dialect("torchvision", ((r"^features\.", "backbone."),), ignore=r"^classifier\.", part=r"^backbone\."),
    )

    def __init__(
        self,
        img_size: int | Sequence[int] = (288, 800),
        num_lanes: int = 4,
        in_chans: int = 3,
        kernel_size: int = 9,
        stop_short: bool = False,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        hidden: tuple[int, int] = (1024, 128),
        drop_rate: float = 0.1,
        fresh_existence: bool = False,
    ):
        super().__init__()
        if num_lanes < 1:
            raise OffprintError(f"num_lanes={num_lanes}; give the number of lanes that are told apart, 1 or more")
        self.img_size, self.num_lanes, self.in_chans = sides_of(img_size), num_lanes, in_chans
        self.optional_state = r"^existence\." if fresh_existence else ""
        wide, channels = hidden
        self.backbone = _vgg(in_chans, widths)
        self.layer1 = nn.Sequential(
            nn.Conv2d(widths[-1], wide, 3, padding=4, dilation=4, bias=False), nn.BatchNorm2d(wide), nn.ReLU(inplace=True),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.message_passing = MessagePassing(channels, kernel_size, stop_short)
        self.layer2 = nn.Sequential(nn.Dropout2d(drop_rate), nn.Conv2d(channels, num_lanes + 1, 1))
        self.existence = ExistenceHead(num_lanes + 1, num_lanes, img_size)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Leave the existence head out where that was asked for; otherwise say which size of image it belongs to."""
        if self.optional_state:
            return {k: v for k, v in state.items() if not k.startswith("existence.")}
        first, own = state.get("existence.fc.0.weight"), self.existence.fc[0].weight
        maps = state.get("layer2.1.weight")
        if first is not None and maps is not None and len(maps) == self.num_lanes + 1 and first.shape != own.shape:
            cells, known = first.shape[1] // (self.num_lanes + 1), {900: (288, 800), 576: (288, 512)}
            belongs = f"images of {known[cells]}" if cells in known else f"images of {cells} cells of 16 x 16 pixels"
            again = (
                f"build with img_size={known[cells]}, or"
                if cells in known
                else "build with the img_size it was trained at, or"
            )
            raise CheckpointError(
                f"the file's existence head (fc.0, {tuple(first.shape)}) belongs to {belongs}, the model's {tuple(own.shape)} to "
                f"{self.img_size}; {again} with fresh_existence=True to load all but that head"
            )
        return state

    def check_input(self, x: Tensor) -> None:
        """Refuse images of another size than the existence head is for."""
        if x.ndim != 4 or x.shape[1] != self.in_chans or tuple(x.shape[-2:]) != self.img_size:
            raise OffprintError(
                f"expected images (B, {self.in_chans}, {self.img_size[0]}, {self.img_size[1]}), got {tuple(x.shape)}; resize them "
                f"to {self.img_size} (predict does), or build the model with img_size={tuple(x.shape[-2:])}"
            )

    def maps(self, x: Tensor) -> Tensor:
        """Logits (B, num_lanes + 1, H/8, W/8) of the maps."""
        return self.layer2(self.message_passing(self.layer1(self.backbone(x))))

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the maps, enlarged to the image, and of the flags: what the loss takes."""
        if not torch.compiler.is_compiling():
            self.check_input(x)
        maps = self.maps(x)
        return F.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=True), self.existence.logits(maps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps, flags = self.logits(x)
        return maps, flags.sigmoid()

    def example_input(self, batch: int = 1) -> Tensor:
        """A random image of the model's size."""
        weight = self.layer2[1].weight
        return torch.randn(batch, self.in_chans, *self.img_size, device=weight.device, dtype=weight.dtype)


class SCNNLoss(nn.Module):
    """Cross-entropy of the maps with a lighter background, and of the lanes' existence, from logits.

    Args:
        background: weight of map 0 in the weighted mean.
        existence: weight of the second term.
    """

    def __init__(self, background: float = 0.4, existence: float = 0.1):
        super().__init__()
        self.background, self.existence = background, existence

    def forward(self, maps: Tensor, flags: Tensor, target: Tensor, exists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(term of the maps, term of existence, their weighted sum).

        Args:
            maps: logits (B, K + 1, H, W).
            flags: logits (B, K).
            target: lane of each pixel (B, H, W), 0 where there is none.
            exists: (B, K), whether each lane is there.
        """
        weight = maps.new_ones(maps.shape[1])
        weight[0] = self.background
        seg = F.cross_entropy(maps, target, weight)
        exist = F.binary_cross_entropy_with_logits(flags, exists.to(flags))
        return seg, exist, seg + self.existence * exist


# -- the layer in other networks ----------------------------------------------------------------------------------------
class MessageNeck(nn.Module):
    """The passes on the coarsest map of any backbone, after a 1x1 convolution to their channels: a neck for :func:`offprint.compose`.

    Args:
        before: the maps that come in; the last is replaced.
        channels, kernel_size, stop_short: see :class:`MessagePassing`.
    """

    native = "offprint"

    def __init__(self, before: Maps, channels: int = 128, kernel_size: int = 9, stop_short: bool = False):
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(before.channels[-1], channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.message_passing = MessagePassing(channels, kernel_size, stop_short)
        self.maps = Maps((*before.channels[:-1], channels), before.reductions)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [*maps[:-1], self.message_passing(self.reduce(maps[-1]))]


# -- variants, recipes, weights -----------------------------------------------------------------------------------------
VARIANTS: dict[str, dict[str, Any]] = {
    "scnn_vgg16_culane": {"img_size": (288, 800)},
    "scnn_vgg16_tusimple": {"img_size": (288, 512)},
}
SIZES = {name: (3, *row["img_size"]) for name, row in VARIANTS.items()}
PICTURES = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
OWN_PICTURES = {
    "mean": (0.3598, 0.3653, 0.3662),
    "std": (0.2573, 0.2663, 0.2756),
    "interpolation": "bilinear",
}  # the authors' file
WEIGHTS = {
    "scnn_vgg16_culane": {
        "culane": Weights(
            "https://drive.google.com/uc?export=download&id=1IlPJ7zxyiage5oKcHxojufoxxleq5JoH", "harryhan618", "scnn_pytorch", "MIT",
            metrics={"culane": {"f1_normal": 90.26, "f1_crowded": 68.23, "f1_night": 65.32}},
            metrics_source="harryhan618/SCNN_Pytorch README",
        ),
    },
}  # fmt: skip
RECIPE = {
    "optimizer": "nesterov", "lr": 0.16, "reference_batch": 128, "batch_size": 128, "momentum": 0.9, "weight_decay": 1e-3,
    "decay_vectors": True, "epochs": 12, "warmup_epochs": 0.08, "power": 0.9, "flip": False, "clip_grad": 1.0, "min_lr": 0.0,
}  # fmt: skip
register(
    paper="scnn", kind="segmentation", task="lanes", build=SCNN, variants=VARIANTS, input_size=SIZES["scnn_vgg16_culane"],
    input_sizes=SIZES, preprocessing=PICTURES, weights=WEIGHTS, recipe=RECIPE,
    exceptions={"training": {"scnn_vgg16_tusimple": {
        "lr": 0.15, "reference_batch": 32, "batch_size": 32, "epochs": 15, "warmup_epochs": 0.2, "weight_decay": 1e-4,
    }}},
)  # fmt: skip
register_part("message_passing", "neck", MessageNeck, paper="scnn", takes=last(4))
