"""Super-resolution's protocol: PSNR and SSIM on luma, the scale cropped off every border, means over the pictures of a set."""

from __future__ import annotations

import statistics

from torch import Tensor

from offprint.data.photos import open_pairs
from offprint.errors import OffprintError
from offprint.tasks.protocols import Job, Measured, network
from offprint.tasks.restoration import enlarge, psnr, ssim


def eight_bit(image: Tensor) -> Tensor:
    """[0, 1] to whole grey levels in [0, 255], as a saved picture has them."""
    return (image.clamp(0, 1) * 255).round()


def run(job: Job) -> Measured:
    """PSNR (dB) and SSIM on Y of the enlarged pictures of a set."""
    asked = job.asked
    model = network(job)
    scale = model.scale
    if asked.scale and asked.scale != scale:
        raise OffprintError(f"{job.model} enlarges {scale} times, the claim is about {asked.scale} times")
    pairs = open_pairs(job.source, asked.data, scale)
    job.say(f"{len(pairs)} pictures; low resolution {pairs.how}")
    names = pairs.names[: job.limit]
    job.progress(total=len(names))
    rows = []
    for name in names:
        truth, small = pairs[name]
        ours = eight_bit(enlarge(model, small.float() / 255, tile=10_000))
        truth = truth[:, : ours.shape[1], : ours.shape[2]].float()
        rows.append((psnr(ours, truth, scale), ssim(ours, truth, scale)))
        job.progress(text=name)
    values = dict(zip(("psnr_y", "ssim_y"), map(statistics.fmean, zip(*rows, strict=True)), strict=True))
    notes = [f"low resolution {pairs.how}"]
    if len(names) < pairs.expected:
        notes.append(f"{len(names)} of the set's {pairs.expected} pictures")
    # every picture of the set is measured, so that nothing is sampled
    return Measured(
        {k: (v, 0.0) for k, v in values.items()},
        len(rows),
        pairs.digest,
        partial=len(names) < pairs.expected,
        notes=notes,
    )
