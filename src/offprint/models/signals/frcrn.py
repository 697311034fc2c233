r"""FRCRN: Boosting Feature Representation using Frequency Recurrence for Monaural Speech Enhancement (ICASSP 2022;
arXiv 2206.07293).

A complex U-Net on the short-time spectrum predicts a complex ratio mask. With the convolutions, which see a few bins, goes a
feed-forward sequential memory network (FSMN) that runs along the FREQUENCY axis and so carries what it sees from low to high,

.. math:: h = \mathrm{ReLU}(Wx + b), \quad p = Ph, \quad m_k = p_k + \sum_{j=0}^{19} a_j \odot p_{k-j}, \quad y = x + m,

and at the bottleneck, where one bin is left, two of them along time. Every layer :math:`L` is a pair of real ones under the complex rule

.. math:: y_r = L_{re}(x_r) - L_{im}(x_i), \qquad y_i = L_{re}(x_i) + L_{im}(x_r).

As released (and recorded), two U-Nets follow one another: the second takes what the first gives, and their masks are added,

.. math:: M = \tanh(U_1(Y)) + \tanh(U_2(U_1(Y))), \qquad \hat S = M \cdot Y .

The text puts the FSMN after each convolution; the released network has it before the encoder's and after the decoder's. The paper's
attention in the skips is a squeeze-and-excitation there, and the paper's single U-Net is ``n_unets=1``.

Inside, maps are (2B, C, F, T), the real parts of a batch before the imaginary ones: each real layer is then called once for both parts.
:meth:`FRCRN.merge` gives the form for use: three real products in the place of four (:math:`y_i = (L_{re} + L_{im})(x_r + x_i) - L_{re}x_r - L_{im}x_i`), with the
BatchNorm folded to a scale and a shift.

Neither causal nor for other transforms: the decoder looks one frame ahead per level, the squeeze-and-excitation over the whole
input, and the seven strides bring 321 bins, and no other number, to one.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import CheckpointError, OffprintError
from offprint.models.registry import Weights, register

N_FFT = 640
ENCODER = ((5, 2),) * 6 + ((2, 2),)  # kernels (F, T); strides (2, 1), padding (0, 1)
DECODER = ((2, 2), (5, 2), (5, 2), (5, 2), (6, 2), (5, 2), (5, 2))
TAPS = 20  # of an FSMN: this position and the 19 before it


# -- transforms ------------------------------------------------------------------------------------------------------
def _full_precision(x: Tensor):
    """Autocast off; on the meta device, which has none, nothing."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Spectrum(nn.Module):
    """Short-time Fourier transform as a convolution, and its inverse as a transposed one; no centring, no padding.

    The window is the square root of a periodic Hann window, once on the way there and once on the way back. The first sample of a
    frame has weight 0, so that the outermost samples of a wave do not come back.

    Args:
        hop: samples from frame to frame.
    """

    def __init__(self, hop: int):
        super().__init__()
        self.hop = hop
        for name, table in self._tables().items():
            self.register_buffer(name, table.to(torch.get_default_dtype()), persistent=False)

    @staticmethod
    def _tables() -> dict[str, Tensor]:
        """Window (N,), kernels of analysis and synthesis (2 bins, 1, N), in double."""
        window = torch.hann_window(N_FFT, dtype=torch.float64).sqrt()
        unit = torch.eye(N_FFT, dtype=torch.float64)
        rows = torch.view_as_real(torch.fft.rfft(unit)).permute(2, 1, 0).flatten(0, 1)  # (2 bins, N)
        twice = torch.full((N_FFT // 2 + 1,), 2.0, dtype=torch.float64)
        twice[[0, -1]] = 1.0  # the bins at 0 and at half the rate stand for themselves alone
        back = rows * twice.repeat(2)[:, None] / N_FFT
        return {"window": window, "analysis": (rows * window)[:, None], "synthesis": (back * window)[:, None]}

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.window.dtype == torch.float64:  # in double from the start, not by way of float32
            for name, table in self._tables().items():
                getattr(self, name).copy_(table)
        return self

    def forward(self, wave: Tensor) -> Tensor:
        """(B, N) to (B, 2 * 321, T), real bins, then imaginary; T = floor((N - 640) / hop) + 1."""
        with _full_precision(wave):
            return F.conv1d(wave.to(self.window.dtype)[:, None], self.analysis, stride=self.hop)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """(B, 2 * 321, T) to (B, (T - 1) * hop + 640)."""
        with _full_precision(spectrum):
            spectrum = spectrum.to(self.window.dtype)
            wave = F.conv_transpose1d(spectrum, self.synthesis, stride=self.hop)
            squares = (self.window**2)[None, :, None].expand(1, N_FFT, spectrum.shape[-1])
            weight = F.fold(squares, (1, wave.shape[-1]), (1, N_FFT), stride=(1, self.hop))
            return (wave / (weight[:, 0] + 1e-8))[:, 0]


# -- complex layers on (2B, C, F, T), the real parts of a batch before the imaginary ones ----------------------------------
def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.chunk(2)  # type: ignore[return-value]


def _complex(re: Tensor, im: Tensor) -> Tensor:
    """The complex rule, of what the real layer gives for both parts and what the imaginary one gives for both."""
    (rr, ri), (ir, ii) = _parts(re), _parts(im)
    return torch.cat([rr - ii, ri + ir])


class ComplexConv(nn.Module):
    """Complex convolution: two real ones, each with its own bias."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int] = (1, 1), **how):
        super().__init__()
        self.conv_re = nn.Conv2d(inside, outside, kernel, **how)
        self.conv_im = nn.Conv2d(inside, outside, kernel, **how)

    def forward(self, x: Tensor) -> Tensor:
        return _complex(self.conv_re(x), self.conv_im(x))


class ComplexTransConv(nn.Module):
    """Complex transposed convolution."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int], **how):
        super().__init__()
        self.tconv_re = nn.ConvTranspose2d(inside, outside, kernel, **how)
        self.tconv_im = nn.ConvTranspose2d(inside, outside, kernel, **how)

    def forward(self, x: Tensor) -> Tensor:
        return _complex(self.tconv_re(x), self.tconv_im(x))


class ComplexNorm(nn.Module):
    """A BatchNorm of the real parts, and one of the imaginary ones."""

    def __init__(self, channels: int):
        super().__init__()
        self.bn_re, self.bn_im = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = _parts(x)
        return torch.cat([self.bn_re(real), self.bn_im(imaginary)])


class Merged(nn.Module):
    """A complex convolution and its norm for use: three real products, a scale and a shift.

    Args:
        re, im: the two real convolutions.
        norm: after them.
    """

    def __init__(self, re: nn.Conv2d | nn.ConvTranspose2d, im: nn.Conv2d | nn.ConvTranspose2d, norm: ComplexNorm):
        super().__init__()
        self.stride, self.padding, self.transposed = re.stride, re.padding, isinstance(re, nn.ConvTranspose2d)
        weights = torch.stack([re.weight, im.weight, re.weight + im.weight])
        scales, shifts = [], []
        for bn, bias in ((norm.bn_re, re.bias - im.bias), (norm.bn_im, re.bias + im.bias)):
            scale = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
            scales.append(scale)
            shifts.append((bias.double() - bn.running_mean.double()) * scale + bn.bias.double())
        self.weight = nn.Parameter(weights.detach())
        self.scale, self.shift = (
            nn.Parameter(torch.stack(v).detach().to(weights.dtype)[..., None, None]) for v in (scales, shifts)
        )

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = _parts(x)
        function = F.conv_transpose2d if self.transposed else F.conv2d
        a, b, c = (
            function(v, w, None, self.stride, self.padding)
            for v, w in zip((real, imaginary, real + imaginary), self.weight, strict=True)
        )
        parts = zip((a - b, c - a - b), self.shift, self.scale, strict=True)
        return torch.cat([torch.addcmul(shift, part, scale) for part, shift, scale in parts])


class FSMNUnit(nn.Module):
    """Memory network: (B, C, F, T) to the same shape, along one axis.

    Args:
        dim: channels C.
        along_time: over frames; otherwise over bins, from low to high.
    """

    def __init__(self, dim: int, along_time: bool):
        super().__init__()
        self.along_time = along_time
        self.linear = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, dim, bias=False)
        self.conv1 = nn.Conv2d(dim, dim, (TAPS, 1), groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        p = self.project(F.relu(self.linear(x.permute(0, 2, 3, 1)), inplace=True)).permute(0, 3, 1, 2)
        taps = self.conv1.weight.mT if self.along_time else self.conv1.weight
        # zeros on both sides, of which the later ones give positions that are not there; padding one side would copy the map
        ahead = (0, TAPS - 1) if self.along_time else (TAPS - 1, 0)
        m = F.conv2d(p, taps, None, 1, ahead, groups=taps.shape[0])[..., : x.shape[2], : x.shape[3]]
        return x + p + m


class ComplexFSMN(nn.Module):
    """Complex memory network: ``layers`` pairs of units that follow one another."""

    def __init__(self, dim: int, layers: int = 1, along_time: bool = False):
        super().__init__()
        self.layers = layers
        for i in range(1, layers + 1):
            setattr(self, f"fsmn_re_L{i}", FSMNUnit(dim, along_time))
            setattr(self, f"fsmn_im_L{i}", FSMNUnit(dim, along_time))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.layers + 1):
            x = _complex(getattr(self, f"fsmn_re_L{i}")(x), getattr(self, f"fsmn_im_L{i}")(x))
        return x


class ComplexSE(nn.Module):
    """Gates from the means of both parts over bins and frames; each part is multiplied by its own, element by element."""

    def __init__(self, dim: int, reduction: int = 8):
        super().__init__()
        for name in ("fc_r", "fc_i"):
            layers = (nn.Linear(dim, dim // reduction), nn.ReLU(), nn.Linear(dim // reduction, dim), nn.Sigmoid())
            setattr(self, name, nn.Sequential(*layers))

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        return x * _complex(self.fc_r(means), self.fc_i(means))[:, :, None, None]


class Encoder(nn.Module):
    """Convolution that halves the bins, norm, LeakyReLU."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int]):
        super().__init__()
        self.conv = ComplexConv(inside, outside, kernel, stride=(2, 1), padding=(0, 1))
        self.bn = ComplexNorm(outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), inplace=True)

    def merge(self) -> None:
        """Fold; a second time changes nothing."""
        if isinstance(self.bn, ComplexNorm):
            self.conv, self.bn = Merged(self.conv.conv_re, self.conv.conv_im, self.bn), nn.Identity()


class Decoder(nn.Module):
    """Transposed convolution that doubles the bins, norm, LeakyReLU."""

    def __init__(self, inside: int, outside: int, kernel: tuple[int, int]):
        super().__init__()
        self.transconv = ComplexTransConv(inside, outside, kernel, stride=(2, 1), padding=(0, 1))
        self.bn = ComplexNorm(outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.transconv(x)), inplace=True)

    def merge(self) -> None:
        """Fold; a second time changes nothing."""
        if isinstance(self.bn, ComplexNorm):
            pair = self.transconv.tconv_re, self.transconv.tconv_im
            self.transconv, self.bn = Merged(*pair, self.bn), nn.Identity()


# -- the networks -----------------------------------------------------------------------------------------------------
_TWICE = re.compile(r"(?:(?<=\.)|^)(encoder|decoder|fsmn_enc|fsmn_dec|se_layer_enc|se_layer_dec)(\d+)\.")
_LISTS = {
    "encoder": "encoders",
    "decoder": "decoders",
    "se_layer_enc": "se_layers_enc",
    "se_layer_dec": "se_layers_dec",
}


class _Authors(nn.Module):
    """What the released files ask for: every block is in them twice, and the transforms' tables as weights."""

    native = "authors"
    optional_state = r"^i?stft\."

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """One entry per block, whichever of its two names the file has; where it has both they must agree."""
        found = {name: value for name, value in state.items() if not _TWICE.search(name)}
        for name, value in state.items():
            ours = _TWICE.sub(lambda m: f"{_LISTS.get(m[1], m[1])}.{m[2]}.", name)
            if ours != name and not torch.equal(found.setdefault(ours, value), value):
                raise CheckpointError(f"{name} and {ours} are one block and differ; the file is damaged")
        return found


class UNet(_Authors):
    """One complex encoder-decoder: (B, 1, 321, T, 2), last axis real and imaginary, to the same shape, without activation.

    Args:
        width: channels of every level.
    """

    def __init__(self, width: int = 128):
        super().__init__()
        if width < 8 or width % 8:
            raise OffprintError(f"width={width}; give a multiple of 8 (the squeeze-and-excitation reduces it 8 times)")
        n = len(ENCODER)
        self.fsmn = ComplexFSMN(width, 2, along_time=True)
        self.encoders = nn.ModuleList(Encoder(width if i else 1, width, k) for i, k in enumerate(ENCODER))
        self.decoders = nn.ModuleList(
            Decoder(2 * width if j else width, width if j < n - 1 else 1, k) for j, k in enumerate(DECODER)
        )
        # the first FSMN of the encoder, the last of the decoder, and the gates of the innermost level are in the files, unused
        self.fsmn_enc = nn.ModuleList(ComplexFSMN(width) for _ in range(n))
        self.fsmn_dec = nn.ModuleList(ComplexFSMN(width) for _ in range(n))
        self.se_layers_enc = nn.ModuleList(ComplexSE(width) for _ in range(n))
        self.se_layers_dec = nn.ModuleList(ComplexSE(width) for _ in range(n - 1))
        self.linear = ComplexConv(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and (x.ndim != 5 or (*x.shape[1:3], x.shape[4]) != (1, N_FFT // 2 + 1, 2)):
            raise OffprintError(f"expected a spectrum of shape (B, 1, 321, T, 2), got {tuple(x.shape)}")
        return self.run(x[:, 0].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, None]

    def run(self, x: Tensor) -> Tensor:
        """(B, 2, 321, T) to (B, 2, 321, T)."""
        x, skips = x.transpose(0, 1).flatten(0, 1)[:, None], []
        for i, encoder in enumerate(self.encoders):
            x = encoder(self.fsmn_enc[i](x) if i else x).contiguous(memory_format=torch.channels_last)
            if i < len(self.encoders) - 1:
                skips.append(self.se_layers_enc[i](x))
        x, last = self.fsmn(x), len(self.decoders) - 1
        for j, decoder in enumerate(self.decoders):
            x = decoder(x)
            if j < last:
                x = self.fsmn_dec[j](x)
                x = torch.cat([self.se_layers_dec[j](x) if j < last - 1 else x, skips[last - 1 - j]], 1)
        return self.linear(x)[:, 0].unflatten(0, (2, -1)).transpose(0, 1)

    def example_input(self, batch: int = 1) -> Tensor:
        """A random spectrum."""
        like = self.linear.conv_re.weight
        return torch.randn(batch, 1, N_FFT // 2 + 1, 12, 2, device=like.device, dtype=like.dtype)

    def merge(self) -> None:
        """The form for use: every convolution with its norm; a second time changes nothing.

        Raises:
            OffprintError: in training mode, where a norm follows the batch.
        """
        if self.training:
            raise OffprintError("the network is in training mode; finish training, call eval(), and merge then")
        for block in (*self.encoders, *self.decoders):
            block.merge()


class Enhanced(NamedTuple):
    """What the network gives: spectrum (B, 642, T) and mask (B, 642, T), real bins before imaginary, and the wave (B, N)."""

    spec: Tensor
    wave: Tensor
    mask: Tensor


class FRCRN(_Authors):
    """Speech enhancement: waves (B, N) to :class:`Enhanced`; the wave has 640 + hop * (T - 1) samples, at most N.

    Args:
        n_unets: two as released, or the paper's one.
        width: channels; 128 in the paper.
        hop_length: samples from frame to frame.
        n_fft: of the transform; the network takes 640 alone.
        sample_rate: in Hz; the layers do not depend on it, weights do.
    """

    def __init__(
        self,
        n_unets: int = 2,
        width: int = 128,
        hop_length: int = 320,
        n_fft: int = N_FFT,
        sample_rate: int = 16_000,
    ):
        super().__init__()
        if n_fft != N_FFT:
            raise OffprintError(f"n_fft={n_fft}; the strides of FRCRN bring 321 bins to one, so it takes 640 alone")
        if n_unets not in (1, 2):
            raise OffprintError(f"n_unets={n_unets}; choose 1 (the paper's network) or 2 (the released one)")
        if not 1 <= hop_length <= N_FFT // 2:
            raise OffprintError(
                f"hop_length={hop_length}; frames of {N_FFT} samples must overlap by half: give 1 to 320"
            )
        self.hop_length, self.sample_rate = hop_length, sample_rate
        self.stft = Spectrum(hop_length)
        self.unet = UNet(width)
        self.unet2 = UNet(width) if n_unets == 2 else None

    def forward(self, wave: Tensor) -> Enhanced:
        if not torch.compiler.is_compiling() and (wave.ndim != 2 or wave.shape[1] < N_FFT):
            raise OffprintError(
                f"expected waves of shape (B, N) with N >= {N_FFT}, got {tuple(wave.shape)}; pad with zeros"
            )
        spec = self.stft(wave)
        noisy = spec.unflatten(1, (2, -1))
        first = self.unet.run(noisy)
        mask = torch.tanh(first)
        if self.unet2 is not None:
            mask = mask + torch.tanh(self.unet2.run(first))
        clean = masked(noisy, mask.to(noisy.dtype))
        spec = clean.flatten(1, 2)
        return Enhanced(spec, self.stft.inverse(spec), mask.flatten(1, 2))

    def example_input(self, batch: int = 1) -> Tensor:
        """Random waves."""
        window = self.stft.window
        return torch.randn(batch, 9600, device=window.device, dtype=window.dtype)

    def merge(self) -> None:
        """The form for use, in evaluation mode."""
        self.unet.merge()
        if self.unet2 is not None:
            self.unet2.merge()


def masked(spec: Tensor, mask: Tensor) -> Tensor:
    """The complex product of (B, 2, F, T) and (B, 2, F, T)."""
    (sr, si), (mr, mi) = spec.unbind(1), mask.unbind(1)
    return torch.stack([sr * mr - si * mi, sr * mi + si * mr], 1)


def _halves(spec: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary bins of (B, 2F, T)."""
    return spec.chunk(2, 1)  # type: ignore[return-value]


# -- training ---------------------------------------------------------------------------------------------------------
def cirm(clean: Tensor, noisy: Tensor, bound: float = 2.0, outlier: float | None = 1.0) -> Tensor:
    """The complex ideal ratio mask of spectra (B, 2F, T), real bins before imaginary.

    Args:
        bound: values beyond it, either way, are outliers; infinite for the mask as it is.
        outlier: what takes their place, with their sign (the paper's code: 1, not the bound); ``None`` for the bound.
    """
    (sr, si), (yr, yi) = _halves(clean), _halves(noisy)
    power = yr**2 + yi**2 + 1e-8
    mask = torch.cat([(sr * yr + si * yi) / power, (si * yr - sr * yi) / power], 1)
    return torch.where(mask.abs() > bound, mask.sign() * (bound if outlier is None else outlier), mask)


def si_snr(estimate: Tensor, clean: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale-invariant signal-to-noise ratio in dB, (B,), of waves (B, N), as the loss takes it (eps three times)."""
    estimate, clean = (v - v.mean(-1, keepdim=True) for v in (estimate, clean))
    share = (estimate * clean).sum(-1, keepdim=True) / ((clean**2).sum(-1, keepdim=True) + eps)
    target = share * clean
    ratio = (target**2).sum(-1) / (((estimate - target) ** 2).sum(-1) + eps)
    return 10 * torch.log10(ratio + eps)


class Losses(NamedTuple):
    """The loss and its two parts."""

    loss: Tensor
    mask: Tensor
    si_snr: Tensor


class FRCRNLoss(nn.Module):
    """Squared error of the mask (times 640) and negative SI-SNR of the wave.

    The target's spectra have a window of their own: a symmetric Hann, without the square root.

    Args:
        hop_length: of the network.
    """

    def __init__(self, hop_length: int = 320):
        super().__init__()
        self.hop_length = hop_length

    def spectrum(self, wave: Tensor) -> Tensor:
        window = torch.hann_window(N_FFT, periodic=False, dtype=wave.dtype, device=wave.device)
        spec = torch.stft(wave, N_FFT, self.hop_length, window=window, center=False, return_complex=True)
        return torch.cat([spec.real, spec.imag], 1)

    def forward(self, estimate: Tensor, mask: Tensor, clean: Tensor, noisy: Tensor) -> Losses:
        """Waves (B, N), N = 640 + hop * m, and the network's mask (B, 642, T)."""
        if estimate.shape != clean.shape or clean.shape != noisy.shape:
            raise OffprintError(
                f"estimate, clean and noisy waves have the shapes {tuple(estimate.shape)}, {tuple(clean.shape)} and "
                f"{tuple(noisy.shape)}; train on {N_FFT} + {self.hop_length} * m samples, so that the network returns them all"
            )
        error = (mask - cirm(self.spectrum(clean), self.spectrum(noisy))) ** 2
        of_mask = N_FFT * sum(half.mean() for half in _halves(error))
        of_wave = -si_snr(estimate, clean).mean()
        return Losses(of_mask + of_wave, of_mask, of_wave)


# -- variants ---------------------------------------------------------------------------------------------------------
VARIANTS: dict[str, dict] = {
    "frcrn_16k": {},
    "frcrn_paper_16k": {"n_unets": 1},  # one U-Net, as in the paper, with the released skips
    "frcrn_narrow_16k": {"n_unets": 1, "width": 32},  # ours, for one core
    "frcrn_48k": {
        "sample_rate": 48_000
    },  # ours: the same layers on the full band, frames of 13 ms; no weights are released
}
_RELEASED = Weights(
    "hf:alibabasglab/FRCRN_SE_16K/last_best_checkpoint.pt",
    "authors",
    "authors",
    "Apache-2.0",
    metrics={
        "voicebank-demand": {"pesq": 3.23, "stoi": 0.95, "si_sdr": 19.22},
        "dns-2020-no-reverb": {"pesq": 3.24, "stoi": 0.98, "si_sdr": 19.99},
    },
    metrics_source="ClearerVoice-Studio README",
)
RECIPE = {
    "optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-5, "epochs": 100, "batch_size": 12, "clip_grad": 10.0,
    "schedule": "constant", "warmup_epochs": 0,
}  # fmt: skip
_COMMON: dict = {"paper": "frcrn", "kind": "signal", "input_size": None, "preprocessing": {}}
register(
    **_COMMON,
    task="enhancement",
    build=FRCRN,
    variants=VARIANTS,
    weights={"frcrn_16k": {"released": _RELEASED}},
    recipes={"training": RECIPE, "finetuning": {**RECIPE, "lr": 1e-4, "start": "training"}},
)
register(**_COMMON, build=UNet, variants={"frcrn_unet": {}})
