"""Taking noise out of sounds: arrays of any shape and rate, a stream in chunks, files of any length in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.data.sounds import Header, Resampler, Writer, blocks, header, resample, sounds_in
from offprint.errors import DataError, OffprintError, unknown
from offprint.files import local_path

LEVEL = 10 ** (-25 / 20)  # to which sounds are brought before the network
ONE_PASS = 120.0  # seconds that are done at once; longer sounds go by windows
LOUDNESS = ("active", "given")
_N_FFT = 640


def gain_to_level(wave: Tensor) -> Tensor:
    """What brings waves (..., N) to -25 dB, (..., 1): first all samples, then those whose power is above the mean. 1 for silence."""
    power = wave.double() ** 2
    mean = power.mean(-1, keepdim=True)
    loud = power > mean
    count = loud.sum(-1, keepdim=True)
    return _gain(mean, torch.where(loud, power, 0.0).sum(-1, keepdim=True), count).to(wave.dtype)


def _gain(mean: Tensor, loud: Tensor, count: Tensor) -> Tensor:
    """From the mean power, and the power and number of the samples above it."""
    first = LEVEL / (mean.sqrt() + 1e-6)
    active = torch.where(count > 0, loud / count.clamp(min=1), mean)
    return torch.where(mean > 0, first * LEVEL / (active.sqrt() * first + 1e-6), 1.0)


def _network(model: nn.Module, wave: Tensor) -> Tensor:
    """(B, N) to (B, N) in one pass; zeros fill up the last frame."""
    n, hop = wave.shape[1], model.hop_length
    more = -(max(n, _N_FFT) - _N_FFT) % hop + max(0, _N_FFT - n)
    return model(F.pad(wave, (0, more))).wave[:, :n]


def _whole(model: nn.Module, wave: Tensor) -> Tensor:
    """One pass with the zeros that the authors put behind a sound: to 1 s, to 1.75 s, or (by their formula) a second and more."""
    n, window = wave.shape[1], model.sample_rate
    stride = window * 3 // 4
    if n < window + stride:
        more = (window if n < window else window + stride) - n
    else:
        more = n - (n - window) // stride * stride if (n - window) % stride else 0
    return _network(model, F.pad(wave, (0, more)))[:, :n]


def _windows(model: nn.Module, wave: Tensor, batch: int, progress: Callable[..., None] | None = None) -> Tensor:
    """Windows of 1 s every 0.75 s, of which the inner 0.75 s count, several at once."""
    rows, n = wave.shape
    window = model.sample_rate
    stride, edge = window * 3 // 4, window // 8
    count = max(1, -(-(n - window + edge) // stride) + 1)
    padded = F.pad(wave, (0, (count - 1) * stride + window - n)) if (count - 1) * stride + window > n else wave
    frames = padded.unfold(1, window, stride)[:, :count].transpose(0, 1)  # (count, rows, window)
    out = []
    for at in range(0, count, batch):
        part = frames[at : at + batch]
        done = _network(model, part.reshape(-1, window)).unflatten(0, (-1, rows))
        out += [done[i, :, 0 if at + i == 0 else edge : window - edge] for i in range(len(done))]
        if progress:
            progress(seconds=len(part) * stride / window)
    return torch.cat(out, 1)[:, :n]


class Stream:
    """Enhancement of a sound that comes in chunks of any size.

    The network looks both ways, so a sound goes through it in windows of 1 s every 0.75 s, of which the inner 0.75 s count. A sample comes
    out when the window that it counts in is full: at most 0.875 s after it went in (``delay``, in samples), and those of the first window
    when that is full, the very first after 1 s. What comes out together is what :func:`enhance` with ``windows=True`` gives, at the same gain.

    Args:
        model: with ``sample_rate`` and ``hop_length``, in evaluation mode.
        channels: of the sound; each is enhanced by itself.
        gain: of the sound before the network, a number or (channels, 1), taken back after it; ``None``: what brings everything heard so
            far to -25 dB, which a whole file, known in advance, does better.
    """

    def __init__(self, model: nn.Module, channels: int = 1, gain: float | Tensor | None = 1.0):
        self.model, self.channels, self.gain = model, channels, gain
        self.window = model.sample_rate
        self.stride, self.edge = self.window * 3 // 4, self.window // 8
        self.delay = self.window - self.edge
        self._held = torch.empty(channels, 0)
        self._given = self._taken = self._windows = 0
        self._power, self._heard = torch.zeros(channels, 1, dtype=torch.float64), 0

    @torch.no_grad()
    def feed(self, chunk: Tensor) -> Tensor:
        """The next samples (channels, n) at the model's rate; returns those that are ready, (channels, m)."""
        if chunk.ndim != 2 or chunk.shape[0] != self.channels:
            raise OffprintError(f"expected a chunk of shape ({self.channels}, n), got {tuple(chunk.shape)}")
        self._taken += chunk.shape[1]
        self._held = torch.cat([self._held.to(chunk), chunk], 1)
        out = [chunk[:, :0]]
        while self._held.shape[1] >= self.window:
            out.append(self._next())
        return torch.cat(out, 1)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The samples that are still held; together as many came out as went in."""
        out = [self._held[:, :0]]
        while self._given < self._taken:
            left = self._taken - self._given
            self._held = F.pad(self._held, (0, max(0, self.window - self._held.shape[1])))
            out.append(self._next()[:, :left])
        return torch.cat(out, 1)

    def _next(self) -> Tensor:
        frame = self._held[:, : self.window]
        gain = self._running(frame) if self.gain is None else torch.as_tensor(self.gain, dtype=frame.dtype)
        device = next(self.model.parameters()).device
        done = _network(self.model, (frame * gain).to(device)).to(frame) / gain
        done = done[:, 0 if self._windows == 0 else self.edge : self.window - self.edge]
        self._held = self._held[:, self.stride :]
        self._windows += 1
        self._given += done.shape[1]
        return done

    def _running(self, frame: Tensor) -> Tensor:
        new = frame if self._windows == 0 else frame[:, self.window - self.stride :]
        self._power += (new.double() ** 2).sum(1, keepdim=True)
        self._heard += new.shape[1]
        mean = self._power / self._heard
        return torch.where(mean > 0, LEVEL / (mean.sqrt() + 1e-6), 1.0).to(frame.dtype)


@torch.no_grad()
def enhance(
    model: nn.Module,
    wave: Any,
    rate: int | None = None,
    *,
    loudness: str = "active",
    windows: bool | None = None,
    batch: int = 4,
    progress: Callable[..., None] | None = None,
) -> Any:
    """Take the noise out of a sound in memory.

    Args:
        model: an FRCRN, in evaluation mode.
        wave: array or tensor (N,), (channels, N) or (B, N): every row by itself. The same kind comes back, of the same length.
        rate: samples per second; default the model's.
        loudness: ``active`` brings each row to -25 dB before the network and takes that back after it (ClearerVoice); ``given`` leaves
            it as it is (ModelScope).
        windows: in windows of 1 s, as in a :class:`Stream`; default for more than 120 s.
        batch: windows at once.
        progress: called with ``seconds=`` that are done, where windows are used.

    Raises:
        OffprintError: no samples, values that are no numbers, or a shape that is none of these.
    """
    if loudness not in LOUDNESS:
        raise unknown("loudness", loudness, LOUDNESS)
    given = wave
    sound = wave.detach() if isinstance(wave, Tensor) else torch.from_numpy(np.asarray(wave))
    if sound.ndim not in (1, 2) or not sound.is_floating_point():
        raise OffprintError(
            f"expected a wave (N,), (channels, N) or (B, N) of floats in [-1, 1], got {sound.dtype} of shape {tuple(sound.shape)}"
        )
    if not sound.shape[-1]:
        raise OffprintError("the wave holds no samples")
    if not torch.isfinite(sound).all():
        raise OffprintError("the wave holds values that are no numbers (NaN or infinite); mend it first")
    like = next(model.parameters())
    rows = sound.reshape(-1, sound.shape[-1])
    own = model.sample_rate
    if rate is not None and rate != own:
        rows = torch.from_numpy(resample(rows.float().cpu().numpy(), rate, own))
    rows = rows.to(like.device, like.dtype)
    gain = gain_to_level(rows) if loudness == "active" else torch.ones_like(rows[:, :1])
    long = rows.shape[1] > ONE_PASS * own if windows is None else windows
    done = (_windows(model, rows * gain, batch, progress) if long else _whole(model, rows * gain)) / gain
    if rate is not None and rate != own:
        done = torch.from_numpy(resample(done.float().cpu().numpy(), own, rate))
    done = _length(done, sound.shape[-1]).reshape(sound.shape)
    return done.to(sound) if isinstance(given, Tensor) else done.cpu().numpy().astype(sound.numpy().dtype)


def _length(rows: Tensor, n: int) -> Tensor:
    """Cut, or filled up with zeros (resampling there and back may lose a sample), to this length."""
    return F.pad(rows, (0, max(0, n - rows.shape[1])))[:, :n]


# -- files ------------------------------------------------------------------------------------------------------------
@dataclass
class Denoised:
    """A file that was written.

    Attributes:
        seconds: of sound. took: seconds of work.
        notes: what its reader should know (clipping, silence, what lies above the network's band).
    """

    source: Path
    file: Path
    seconds: float
    channels: int
    rate: int
    took: float
    notes: list[str] = field(default_factory=list)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of sound."""
        return self.took / self.seconds


def _at(rate: int, head: Header) -> Iterator[Tensor]:
    """A file's samples in blocks (channels, n) at another rate."""
    there = Resampler(head.rate, rate, head.channels)
    for block in blocks(head):
        yield torch.from_numpy(np.ascontiguousarray(there(block)))
    yield torch.from_numpy(there(np.zeros((head.channels, 0), np.float32), last=True))


def _gain_of(head: Header, rate: int) -> Tensor:
    """:func:`gain_to_level` of a file, (channels, 1), read twice in blocks."""
    power, n = torch.zeros(head.channels, 1, dtype=torch.float64), 0
    for block in _at(rate, head):
        power += (block.double() ** 2).sum(1, keepdim=True)
        n += block.shape[1]
    mean = power / n
    loud, count = torch.zeros_like(mean), torch.zeros_like(mean)
    for block in _at(rate, head):
        squares = block.double() ** 2
        above = squares > mean
        loud += torch.where(above, squares, 0.0).sum(1, keepdim=True)
        count += above.sum(1, keepdim=True)
    return _gain(mean, loud, count).float()


@torch.no_grad()
def denoise_file(
    model: nn.Module,
    source: str | Path,
    target: str | Path,
    *,
    stream: bool = False,
    loudness: str = "active",
    progress: Callable[..., None] | None = None,
) -> Denoised:
    """Take the noise out of a sound file: its rate, channels, length and depth stay.

    Args:
        model: an FRCRN, in evaluation mode.
        source, target: files; the target's ending says its format.
        stream: in windows of 1 s (see :class:`Stream`), as files of more than 120 s always are; memory does not grow with the file.
        loudness: as in :func:`enhance`.
        progress: called with ``total=`` seconds once and ``seconds=`` as they are done.

    Raises:
        DataError: a file that cannot be read, without samples, or with values that are no numbers; nothing was written.
    """
    if loudness not in LOUDNESS:
        raise unknown("loudness", loudness, LOUDNESS)
    head, own, began = header(source), model.sample_rate, time.perf_counter()
    if progress:
        progress(total=head.seconds)
    notes, peak, full = [], 0.0, 0
    with Writer(target, head) as out:
        for block in blocks(head):
            peak, full = max(peak, float(np.abs(block).max())), full + int((np.abs(block) >= 1 - 2**-15).sum())
        if stream or head.seconds > ONE_PASS:
            gain = _gain_of(head, own) if loudness == "active" else torch.ones(head.channels, 1)
            through, back = Stream(model, head.channels, gain), Resampler(own, head.rate, head.channels)
            for block in _at(own, head):
                _put(out, head, back(through.feed(block).numpy()))
                if progress:
                    progress(seconds=block.shape[1] / own)
            _put(out, head, back(through.finish().numpy(), last=True))
            _put(out, head, np.zeros((head.channels, head.frames - out.frames), np.float32))
        else:
            whole = np.concatenate(list(blocks(head)), 1)
            _put(out, head, enhance(model, whole, head.rate, loudness=loudness, windows=False))
            if progress:
                progress(seconds=head.seconds)
    if peak == 0:
        notes.append("holds silence alone; silence was written")
    if full:
        notes.append(f"{full} samples at full scale: the recording was clipped before it came here")
    if out.clipped:
        notes.append(
            f"{out.clipped} samples of the result were beyond full scale and were cut off; a float WAV would hold them"
        )
    if out.subtype != head.subtype:
        notes.append(f"written as {out.subtype}, read as {head.subtype}")
    if head.rate > own:
        notes.append(f"the network hears up to {own // 2} Hz; what lay above is not in the result")
    took = time.perf_counter() - began
    return Denoised(head.path, out.path, head.seconds, head.channels, head.rate, took, notes)


def _put(out: Writer, head: Header, block: np.ndarray) -> None:
    """Write, but never more than was read."""
    out.write(block[:, : head.frames - out.frames])


def planned(source: str | Path, output: str | Path) -> list[tuple[Path, Path]]:
    """Which files are read and which are written: a sound, or every sound under a folder.

    Raises:
        DataError: nothing there, or a sound that would overwrite its input.
    """
    source, output = local_path(source), local_path(output, "a sound that is written")
    if source.is_dir():
        if output.is_file() or output.resolve() == source.resolve():
            raise DataError(f"--out {output}: give a folder of its own for the sounds of {source}")
        inside = output.resolve()
        pairs = [
            (p, output / p.relative_to(source)) for p in sounds_in(source) if not p.resolve().is_relative_to(inside)
        ]
    else:
        pairs = [(source, output / source.name if output.is_dir() else output)]
    for read, write in pairs:
        if write.resolve() == read.resolve() or (write.exists() and read.exists() and write.samefile(read)):
            raise DataError(f"{write} would be written over the sound that is read; give another --out")
    return pairs
