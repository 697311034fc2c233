"""CATNet's three parts, each against a small two-stage detector without it, at equal cost: how well it finds handwritten digits in photographs.

Four detectors with the same backbone and the same two stages, trained on the same scenes in the same order:

- the baseline, Faster R-CNN over a feature pyramid network, with each region pooled from the level of its size;
- DenseFPN (one stage) in the place of that network;
- that network with SCP after it;
- HRoIE in the place of the pooling.

All have the L1 losses and the soft-NMS of the authors' configuration, so that the part is the only difference. Widths are chosen so that all cost the
same (within 5 %): the arms whose part is dear are narrower. All find digits of any kind, one class, and are judged by COCO's AP at IoU 0.5 on
scenes that none has seen: other digits on other photographs. The rate of each arm is chosen by the same rule, on scenes of their own.

The scenes are PUT TOGETHER from real handwritten digits and real photographs (:func:`offprint.data.boxes.digit_scenes`), not taken from the air; nothing
is said of iSAID or DIOR, nor of masks, nor of the size of a gain; what is asked is on which side of zero each difference lies.

Before the setting was committed one run of each arm (seed 1000, rate 0.003, 60 steps, the scenes that rates are chosen on) showed that all learn: AP at
IoU 0.5 of 15.6 % for the baseline, 20.6 % with DenseFPN, 28.5 % with SCP and 20.2 % with HRoIE; the loss fell to 0.6 to 0.7 of its start. The steps
were then set to 45 for time. The judged seeds were not run.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from offprint.models.backbones.ibn_net import ResNet
from offprint.models.compose import Detector
from offprint.models.detection.catnet import DenseFPN, HRoIEHead, WithContext
from offprint.models.detection.contract import named
from offprint.models.detection.fpn import FPN
from offprint.models.parts import maps_of
from offprint.proofs import Effect, Proof, _digit_scenes, kit
from offprint.proofs._digit_scenes import SIDE

REGIONS = 32
ARMS = {"FPN": "", "DenseFPN": "dense", "SCP": "scp", "HRoIE": "hroie"}
WIDTHS = {"": 68, "dense": 72, "scp": 68, "hroie": 52}  # channels of the maps
SIZES = {  # mode: scenes to learn from, scenes held out, steps, scenes per step, judged seeds, rates
    "quick": (16, 4, 2, 4, (0,), (2e-3,)),
    "full": (200, 40, 45, 8, (0, 1, 2, 3, 4), (1e-3, 3e-3)),
    "gpu": (2000, 200, 2000, 16, (0, 1, 2, 3, 4), (5e-4, 1e-3, 3e-3)),
}


class _Raw(nn.Module):
    """A detector's two stages on a fixed number of regions, so that its cost can be counted."""

    def __init__(self, model: Detector):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor):
        maps = self.model.pyramid(x)
        heads, size = self.model.head.roi_heads, (x.shape[-2], x.shape[-1])
        boxes = [x.new_tensor([[8.0, 8.0, 40.0, 40.0]]).expand(REGIONS, 4)] * len(x)
        windows = heads.box_roi_pool(named(maps), boxes, [size] * len(x))
        return self.model.head(maps), heads.box_predictor(heads.box_head(windows))


def network(arm: str, width: int = 0) -> Detector:
    """A small two-stage detector of one class, with one of the parts or none."""
    backbone = ResNet(num_classes=0, block="basic", depths=(1, 1, 1, 1), kind="", widths=(16, 32, 64, 64))
    body, width = backbone.as_features((1, 2, 3, 4)), width or WIDTHS[arm]
    before = maps_of(body)
    if arm == "dense":
        neck: nn.Module = DenseFPN.on(before, finest=4, out_channels=width, stack_times=1)
    else:
        neck = FPN.on(before, finest=4, out_channels=width)
    if arm == "scp":
        neck = WithContext(neck)
    head = HRoIEHead(maps_of(neck), 1, hidden=64, proposals=(200, 100, 100, 50), regions=REGIONS)
    if arm != "hroie":
        head.roi_heads.box_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    return Detector(body, neck, head)


def _arm(name: str, arm: str, mode: str, device) -> kit.Arm:
    macs = kit.macs(_Raw(network(arm)), 1, 3, SIDE, SIDE)
    return _digit_scenes.arm(name, lambda: network(arm), macs, SIZES[mode], device)


def run(ctx) -> dict:
    *_, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    arms = [_arm(name, arm, ctx.mode, ctx.device) for name, arm in ARMS.items()]
    found = kit.compare(ctx, arms, seeds=seeds, rates=rates)
    figures = dict(found.figures("ap50"))
    for name in list(ARMS)[1:]:
        figures[f"gain_ap50_of_{name.lower()}"] = found.effect(name)
        figures[f"gain_ap_of_{name.lower()}"] = found.effect(name, metric="ap")
    figures["data_digest"] = _digit_scenes.digest(SIZES[ctx.mode])
    return figures


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="parts of CATNet, digits in photographs", ylabel="AP at IoU 0.5 (%)")


_GAINS = tuple(
    Effect(f"gain_ap50_of_{part}", unit="points", why=why)
    for part, why in (
        ("densefpn", "every level sees all others twice over (abstract)"),
        ("scp", "a region is told from its like by what is around it (abstract)"),
        ("hroie", "a region's evidence lies on more than the level of its size (abstract)"),
    )
)
PROOF = Proof(
    slug="catnet",
    question="Does each of DenseFPN, SCP and HRoIE make a two-stage detector of the same cost find more?",
    data="scenes PUT TOGETHER from real handwritten digits on real photographs; other digits and photographs for the test",
    baseline="the same detector over a feature pyramid network, each region pooled from the level of its size",
    bands={"quick": _GAINS, "full": _GAINS, "gpu": _GAINS},
    run=run,
    plot=plot,
)
