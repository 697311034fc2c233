"""How much of an image the backbone of FFNet-34 sees, against FFNet-50's, and whether a small FFNet learns a small set.

The paper's point is that bottleneck blocks, of which most convolutions are 1x1, see little. Measured is the footprint of the
gradient: the pixels that move one value of the coarsest map, weighted by how much, as the root mean square distance from their centre.
Both backbones are the paper's own, of the same multiply-adds within 5 % in the whole network, from random weights (the authors' cannot be
fetched everywhere), scaled by their fan-in, their norms settled on real photographs. Seeds are weights and photographs.

Beside it, not judged: FFNet-40S dBBB on thirty slices of a real anatomy, its pixel accuracy on the slices it learnt.

Setting and band were fixed before the first full run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.photos import photographs, set5
from offprint.data.volumes import TISSUES, brain_labels, simulate_t1, tissue_classes
from offprint.models.factory import create_model
from offprint.proofs import Effect, Proof, kit

ARMS = {"34, basic blocks": "34", "50, bottlenecks": "50"}
SIZES = {  # mode: side of the image, probed images, judged seeds, steps of the small set, slices, batch
    "quick": (64, 1, (0,), 1, 2, 2),
    "full": (512, 1, (0, 1, 2, 3, 4), 60, 30, 4),
    "gpu": (1024, 8, (0, 1, 2, 3, 4), 600, 30, 8),
}


def _pictures(side: int, count: int, generator: torch.Generator) -> Tensor:
    """Crops (count, 3, side, side) of real photographs, enlarged where they are smaller, normalised."""
    kept = [*photographs().values(), *set5().values()]
    out = []
    for _ in range(count):
        picture = kept[int(torch.randint(len(kept), (1,), generator=generator))].float()[None] / 255
        scale = max(1.0, (side + 1) / min(picture.shape[-2:]))
        picture = F.interpolate(picture, scale_factor=scale, mode="bilinear", align_corners=False)
        y, x = (int(torch.randint(n - side + 1, (1,), generator=generator)) for n in picture.shape[-2:])
        out.append(picture[0, :, y : y + side, x : x + side])
    return (torch.stack(out) - 0.45) / 0.25


def _radius(depth: str, seed: int, side: int, count: int, device) -> float:
    """Root mean square distance (pixels) of the gradient's footprint of the middle of the coarsest map."""
    torch.manual_seed(seed)
    net = create_model(f"ffnet_cls_{depth}_aax", features_only=True, out_indices=(3,))
    kit.fan_in_(net).to(device)
    generator = torch.Generator().manual_seed(seed)
    images = _pictures(side, count, generator).to(device)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # type: ignore[assignment]  # the plain mean of what is seen
    with torch.no_grad():
        net.train()(_pictures(min(side, 256), 2, generator).to(device))
    images.requires_grad_()
    (last,) = net.eval().requires_grad_(False)(images)
    middle = last[..., last.shape[-2] // 2, last.shape[-1] // 2]
    direction = torch.randn(middle.shape, generator=generator).to(device)
    (middle * direction).sum().backward()
    assert images.grad is not None
    share = images.grad.square().sum((0, 1)).double().cpu()
    share /= share.sum()
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in share.shape), indexing="ij")
    cy, cx = float((share * y).sum()), float((share * x).sum())
    return float((share * ((y - cy) ** 2 + (x - cx) ** 2)).sum().sqrt())


def _cost(depth: str) -> int:
    """Multiply-adds of the whole segmentation network at 512x1024, counted without computing."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        create_model(f"ffnet_seg_{depth}_aaa").eval()(torch.zeros(1, 3, 512, 1024))
    return counter.get_total_flops() // 2


def _learnt(steps: int, slices: int, batch: int, device) -> float:
    """Pixel accuracy (%) of FFNet-40S dBBB on the slices it was trained on, as images of 128x256."""
    labels = brain_labels()[:72, :72, :80][: 72 : max(1, 72 // slices)][:slices]
    generator = torch.Generator().manual_seed(0)
    masks = tissue_classes(labels).long()
    target = (masks * torch.arange(1, len(TISSUES) + 1)[:, None, None, None]).sum(0)
    image = F.interpolate(simulate_t1(labels, generator)[:, None], (128, 256), mode="bilinear", align_corners=False)
    target = F.interpolate(target[:, None].float(), (128, 256))[:, 0].long().to(device)
    image = ((image - 0.4) / 0.4).expand(-1, 3, -1, -1).to(device)
    torch.manual_seed(0)
    net = create_model("ffnet_seg_40s_dbbb_mobile", num_classes=len(TISSUES) + 1, enlarge=True)
    kit.fan_in_(net).to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(image), (batch,), generator=generator).to(device)
        loss = F.cross_entropy(net(image[index].contiguous(memory_format=torch.channels_last)), target[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        said = torch.cat([net(x).argmax(1) for x in image.split(batch)])
    return 100 * float((said == target).float().mean())


def run(ctx) -> dict:
    side, count, seeds, steps, slices, batch = SIZES[ctx.mode]
    ctx.total(len(ARMS) * len(seeds) + 1)
    costs = {name: _cost(depth) for name, depth in ARMS.items()}
    kit.match_cost(costs)
    found: dict[str, list[float]] = {}
    for name, depth in ARMS.items():
        found[name] = []
        for seed in seeds:
            ctx.step(f"{name}: seed {seed}")
            found[name].append(
                ctx.part(f"{depth}-{seed}", lambda d=depth, s=seed: _radius(d, s, side, count, ctx.device))
            )
    ctx.step("a small set")
    basic, bottleneck = found.values()
    first, second = costs.values()
    return {
        "gain_in_receptive_field": kit.paired(basic, bottleneck, first / second),
        "radius": {name: kit.interval(values) for name, values in found.items()},
        "arms": found,
        "costs": costs,
        "pixel_accuracy": ctx.part("small", lambda: _learnt(steps, slices, batch, ctx.device)),
        "data_digest": kit.digest(brain_labels(), *photographs().values()),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(
        figures,
        figure.subplots(),
        title="How far one value of the coarsest map sees",
        ylabel="radius of the gradient (pixels)",
    )


_WIDER = (Effect("gain_in_receptive_field", unit="pixels", why="bottleneck blocks limit the receptive field"),)
PROOF = Proof(
    slug="simple-segmentation",
    question="At the same cost, does a backbone of basic blocks see more of the image than one of bottlenecks?",
    data="bundled photographs for the footprint; slices of a real anatomy with SIMULATED intensities for the small set",
    baseline="FFNet-50: bottleneck blocks; same stem, widths of the head, photographs and start of the weights",
    bands={"quick": _WIDER, "full": _WIDER},
    run=run,
    plot=plot,
)
