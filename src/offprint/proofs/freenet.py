"""A made-up scene learnt whole: mini-batches of a stratified sampler, one fixed mini-batch, and all pixels at every step.

No hyperspectral cube may be bundled, so that the scene is simulated (smooth spectra mixed at the borders of five classes, under noise);
it shows the sampler at work and nothing of any sensor. All arms take the same steps on the same full image with the same twenty pixels of
each class known; they differ in which of these a step's loss looks at. Accuracy is over all other labelled pixels; the rate is chosen for
each arm by the same rule on scenes that are not judged. The setting was declared before the first full run.
"""

from __future__ import annotations

import numpy as np
import torch

from offprint.data.scenes import simulated_scene
from offprint.models.segmentation.freenet import (
    FreeNet,
    StratifiedSampler,
    fixed_num_sample,
    masked_loss,
    poly_rate,
    scores,
)
from offprint.proofs import Effect, Proof, kit

ARMS = ("one mini-batch", "all pixels", "stratified")
PER_CLASS, MINIBATCH = 20, 5
SIZES = {  # mode: (side of the scene, bands, width factor, steps, judged seeds, rates)
    "quick": (32, 10, 0.25, 8, (0, 1), (0.03,)),
    "full": (64, 24, 0.25, 100, (0, 1, 2, 3, 4), (0.01, 0.03, 0.1)),
    "gpu": (256, 100, 1.0, 1000, (0, 1, 2, 3, 4), (1e-3, 1e-2, 3e-2)),
}


def _fit(arm: str, seed: int, rate: float, mode: str, device) -> float:
    side, bands, ratio, steps, *_ = SIZES[mode]
    scene = simulated_scene(side, bands, 5, seed)
    assert scene.labels is not None
    train, test = fixed_num_sample(scene.labels, PER_CLASS, scene.classes, seed)
    sampler = StratifiedSampler(scene.labels, train, MINIBATCH, seed)
    image = torch.from_numpy(scene.normalised())[None].to(device)
    labels = torch.from_numpy(scene.labels)[None].to(device)
    torch.manual_seed(seed)
    net = FreeNet(bands, scene.classes, reduction_ratio=ratio).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), rate, 0.9, weight_decay=1e-3)
    everything, first = np.where(train.ravel())[0], sampler.epoch(0)[0]
    queue: list[np.ndarray] = []
    for step in range(steps):
        if not queue:
            queue = sampler.epoch(step // sampler.count)
        chosen = {"one mini-batch": first, "all pixels": everything, "stratified": queue.pop(0)}[arm]
        mask = torch.zeros(labels.numel(), device=device)
        mask[torch.from_numpy(chosen).to(device)] = 1
        for group in optimizer.param_groups:
            group["lr"] = poly_rate(step, steps, rate)
        loss = masked_loss(net(image), labels, mask.view_as(labels))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 35)
        optimizer.step()
    with torch.no_grad():
        found = net.eval()(image)[0].argmax(0) + 1
    return 100 * scores(found.cpu(), torch.from_numpy(scene.labels * test), scene.classes)["oa"]


def run(ctx) -> dict:
    side, bands, ratio, _, seeds, rates = SIZES[ctx.mode]
    ctx.total(kit.steps(len(ARMS), seeds, rates))
    cost = kit.macs(FreeNet(bands, 5, reduction_ratio=ratio), 1, bands, side, side)

    def arm(name: str) -> kit.Arm:
        return kit.Arm(name, lambda seed, rate, part: _fit(name, seed, rate, ctx.mode, ctx.device), cost)

    found = kit.compare(ctx, [arm(name) for name in ARMS], seeds=seeds, rates=rates)
    return {
        **found.figures("accuracy"),
        "gain_over_one_mini_batch": found.effect("stratified"),
        "gain_over_all_pixels": found.effect("stratified", "all pixels"),
        "data_digest": kit.digest(simulated_scene(side, bands, 5, 0).cube),
    }


def plot(figures: dict, figure) -> None:
    kit.bars(figures, figure.subplots(), title="What a step of full-image training looks at")


_EFFECTS = (
    Effect(
        "gain_over_one_mini_batch",
        unit="points",
        why="Sec. III-B: a random sequence of stratified mini-batches, against a fixed one",
    ),
    Effect(
        "gain_over_all_pixels",
        unit="points",
        why="Sec. III-B: full-image training without the sampler does not converge well",
    ),
)
PROOF = Proof(
    slug="freenet",
    question="When a whole scene is the image of every step, do stratified mini-batches of its pixels teach more than a fixed choice of them?",
    data="simulated scenes (offprint.data.scenes.simulated_scene): no real cube is bundled",
    baseline="the same network and steps with one fixed mini-batch, and with all known pixels at every step",
    bands={"quick": _EFFECTS, "full": _EFFECTS},
    run=run,
    plot=plot,
)
