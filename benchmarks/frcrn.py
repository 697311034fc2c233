"""FRCRN in its form for use against the complex layers as they are written down, and how fast a second of sound is done.

The plain formulation keeps parts on the last axis and calls each real layer twice, as the formula reads. Both have the same weights
and give the same wave.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Row, peak_memory, race
from offprint.models.deploy import deploy
from offprint.models.factory import create_model
from offprint.models.signals.frcrn import FRCRN, TAPS, Enhanced, UNet, masked

SECONDS = {"frcrn_16k": 1, "frcrn_narrow_16k": 4}


def _complex(re, im, x: Tensor) -> Tensor:
    real, imaginary = x[..., 0], x[..., 1]
    return torch.stack([re(real) - im(imaginary), re(imaginary) + im(real)], -1)


def _unit(unit: nn.Module, x: Tensor) -> Tensor:
    """A memory network on sequences (N, L, C)."""
    p = unit.project(F.relu(unit.linear(x)))
    padded = F.pad(p.mT[..., None], (0, 0, TAPS - 1, 0))
    return x + p + unit.conv1(padded)[..., 0].mT


def _memory(module: nn.Module, x: Tensor) -> Tensor:
    b, c, f, t, _ = x.shape
    along_time = module.fsmn_re_L1.along_time
    order, back = ((0, 2, 3, 1), (0, 3, 1, 2)) if along_time else ((0, 3, 2, 1), (0, 3, 2, 1))
    rows = b * (f if along_time else t)

    def along(unit):
        def run(v: Tensor) -> Tensor:
            moved = v.permute(order)
            return _unit(unit, moved.reshape(rows, -1, c)).reshape(moved.shape).permute(back)

        return run

    for i in range(1, module.layers + 1):
        x = _complex(along(getattr(module, f"fsmn_re_L{i}")), along(getattr(module, f"fsmn_im_L{i}")), x)
    return x


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return F.leaky_relu(torch.stack([module.bn_re(x[..., 0]), module.bn_im(x[..., 1])], -1))


def _gate(module: nn.Module, x: Tensor) -> Tensor:
    real, imaginary = x.mean((2, 3)).unbind(-1)
    gates = module.fc_r(real) - module.fc_i(imaginary), module.fc_r(imaginary) + module.fc_i(real)
    return x * torch.stack(gates, -1)[:, :, None, None]


def plain_unet(net: UNet, x: Tensor) -> Tensor:
    """(B, 1, 321, T, 2) to the same, as the formulas read."""
    skips = []
    for i, e in enumerate(net.encoders):
        x = _memory(net.fsmn_enc[i], x) if i else x
        x = _norm(e.bn, _complex(e.conv.conv_re, e.conv.conv_im, x))
        skips.append(_gate(net.se_layers_enc[i], x) if i < 6 else x)
    x = _memory(net.fsmn, x)
    for j, d in enumerate(net.decoders):
        x = _norm(d.bn, _complex(d.transconv.tconv_re, d.transconv.tconv_im, x))
        if j < 6:
            x = _memory(net.fsmn_dec[j], x)
            x = torch.cat([_gate(net.se_layers_dec[j], x) if j < 5 else x, skips[5 - j]], 1)
    return _complex(net.linear.conv_re, net.linear.conv_im, x)


def plain(model: FRCRN, wave: Tensor) -> Enhanced:
    spec = model.stft(wave)
    noisy = spec.unflatten(1, (2, -1))
    first = plain_unet(model.unet, noisy.permute(0, 2, 3, 1)[:, None])
    mask = torch.tanh(first)
    if model.unet2 is not None:
        mask = mask + torch.tanh(plain_unet(model.unet2, first))
    mask = mask[:, 0].permute(0, 3, 1, 2)
    spec = masked(noisy, mask).flatten(1, 2)
    return Enhanced(spec, model.stft.inverse(spec), mask.flatten(1, 2))


def rows() -> Iterator[Row]:
    for name, seconds in SECONDS.items():
        torch.manual_seed(0)
        model = create_model(name).eval()
        x = torch.randn(1, seconds * model.sample_rate)
        ours = deploy(model, x, tolerance=1e-3)  # weights drawn at random carry rounding further than trained ones
        with torch.inference_mode():
            a, b = race(lambda: ours(x), lambda: plain(model, x), seconds=20)  # noqa: B023
            used = peak_memory(lambda: ours(x)), peak_memory(lambda: plain(model, x))  # noqa: B023
        what = f"{name}, {seconds} s of sound (real-time factor {a / seconds:.2f} on {torch.get_num_threads()} threads)"
        yield Row("frcrn", what, "each complex layer as its real ones", a, b, used, 1.3)
