"""CFSR on Set5 with the released weights where they are, and what its edge branches are worth in training everywhere.

Values: the released weights on Set5 by the papers' protocol (MATLAB's reductions, luma, the scale cut off each border). A band is
the printed figure, give or take one in its last digit. The repository prints x4; x2 is from the paper's table; for x3 no figure is
at hand and none is judged.

Effect: a small network (16 wide, one stage of two blocks, x2) trained on two photographs, with the Sobel and Laplacian branches
beside its depth-wise convolutions and without. The start of everything else is the same, the merged networks have equal cost,
and so, nearly, has training, which convolves with the merged kernel. The rate of each is chosen on a third photograph; the score
is the mean PSNR on Set5. Layer scales start at 0.1, the size that released weights have learnt.

Earlier versions judged a gain over bicubic enlargement (0.93 dB; shown here without being judged, for passing bicubic is no claim of the
paper) and an equality of merged and unmerged kernels (0; now a test, branch by branch).
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from offprint.data.photos import photographs, set5
from offprint.data.resize import bicubic
from offprint.models import hub
from offprint.models.factory import create_model
from offprint.models.signals.cfsr import CFSR, EFN
from offprint.proofs import Band, Effect, Proof, kit
from offprint.tasks.restoration import enlarge, psnr, ssim, train_restoration

HELD = "chelsea"  # the photograph that rates are chosen on
SIZES = {  # mode: steps, judged seeds, rates, width, blocks
    "quick": (20, (0, 1), (5e-3,), 16, 2),
    "full": (500, (0, 1, 2, 3, 4), (2e-3, 5e-3), 16, 2),
    "gpu": (50_000, (0, 1, 2, 3, 4), (5e-4, 1e-3, 2e-3), 48, 12),
}


def _eight_bit(image: Tensor) -> Tensor:
    return (image.clamp(0, 1) * 255).round()


def _released(scale: int) -> bool:
    return hub.find(f"cfsr_x{scale}") is not None


def _pairs(scale: int, model: CFSR | None):
    """Set5 as a network enlarges it, or bicubic interpolation, and the truth."""
    for name, small in set5(scale).items():
        truth, small = set5()[name].float(), small.float() / 255
        ours = bicubic(small, scale) if model is None else enlarge(model, small, tile=10_000)
        yield _eight_bit(ours), truth[:, : small.shape[1] * scale, : small.shape[2] * scale]


def _psnr(scale: int, model: CFSR | None = None) -> float:
    """Mean Y-PSNR on Set5 of a network, or of bicubic enlargement."""
    return statistics.fmean(psnr(ours, truth, scale) for ours, truth in _pairs(scale, model))


def _released_figures(scale: int) -> dict[str, float]:
    """Mean Y-PSNR and Y-SSIM on Set5 of the released weights."""
    pairs = list(_pairs(scale, create_model(f"cfsr_x{scale}", pretrained=True).eval()))
    return {
        "psnr": statistics.fmean(psnr(ours, truth, scale) for ours, truth in pairs),
        "ssim": statistics.fmean(ssim(ours, truth, scale) for ours, truth in pairs),
    }


def _network(branches: bool, seed: int, width: int, blocks: int) -> CFSR:
    """In training form, or with one plain kernel in the place of kernel and branches; all else starts alike."""
    torch.manual_seed(seed)
    model = CFSR(2, embed_dim=width, depths=(blocks,))
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            torch.nn.init.constant_(parameter, 0.1)
    for module in model.modules():
        if isinstance(module, EFN) and not branches:
            module.drop_branches()
    return model


def _arm(name: str, branches: bool, mode: str, device) -> kit.Arm:
    steps, _, _, width, blocks = SIZES[mode]

    def run(seed: int, rate: float, part: str) -> float:
        model = _network(branches, seed, width, blocks).to(device)
        pictures = {key: p.float().to(device) / 255 for key, p in photographs().items()}
        held = pictures.pop(HELD)
        train_restoration(model, list(pictures.values()), steps=steps, batch=4, patch=16, lr=rate, seed=seed)
        if part == "test":
            return _psnr(2, model)
        truth = held[:, : held.shape[1] // 2 * 2, : held.shape[2] // 2 * 2]
        small = _eight_bit(bicubic(truth, 0.5)) / 255
        return psnr(_eight_bit(enlarge(model, small)), truth.cpu() * 255, 2)

    merged = _network(branches, 0, width, blocks)
    merged.merge()
    return kit.Arm(name, run, kit.macs(merged))


def run(ctx) -> dict:
    _, seeds, rates, _, _ = SIZES[ctx.mode]
    scales = () if ctx.quick else tuple(s for s in (2, 3, 4) if _released(s))
    ctx.total(len(scales) + kit.steps(2, seeds, rates))
    figures: dict = {}
    for scale in scales:
        ctx.step(f"Set5 x{scale}, released weights")
        found = ctx.part(f"set5-{scale}", lambda s=scale: _released_figures(s))
        figures |= {f"set5_{key}_x{scale}": value for key, value in found.items()}
    arms = [_arm("one kernel", False, ctx.mode, ctx.device), _arm("edge branches", True, ctx.mode, ctx.device)]
    trained = kit.compare(ctx, arms, seeds=seeds, rates=rates)
    plain = _psnr(2)
    return {
        **figures,
        **trained.figures("psnr"),
        "gain_of_edge_branches": trained.effect("edge branches"),
        "gain_over_bicubic": kit.interval([v - plain for v in trained.scores["edge branches"]]),
        "data_digest": kit.digest(*photographs().values(), *set5().values()),
    }


def plot(figures: dict, figure) -> None:
    axis = figure.subplots()
    kit.bars(figures, axis, title="Set5 x2, trained here on two photographs", ylabel="PSNR on luma (dB)")


_EDGES = Effect(
    "gain_of_edge_branches", unit="dB", why="edge branches in training enhance what one kernel learns (Sec. III-C)"
)
_FULL = (
    Band("set5_psnr_x2", 38.06, 38.08, "dB", "38.07 in the paper's table", optional=True),
    Band("set5_psnr_x4", 32.32, 32.34, "dB", "32.33 in the repository's table", optional=True),
    Band("set5_ssim_x4", 0.8963, 0.8965, "", "0.8964 in the repository's table", optional=True),
    _EDGES,
)
PROOF = Proof(
    slug="cfsr",
    question="Do the released weights give the paper's figures on Set5, and does training with edge branches beat one kernel?",
    data="Set5, bundled; photographs of scikit-image (train: astronaut, coffee; for rates: chelsea)",
    baseline="the same network with one depth-wise kernel in the place of kernel and branches; same start, steps and patches",
    bands={"quick": (_EDGES,), "full": _FULL},
    run=run,
    plot=plot,
)
