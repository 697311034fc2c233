"""Sound files: any rate, number of channels and depth, read and written in blocks, resampled on the way, and the bundled speech."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from offprint.data import samples
from offprint.errors import DataError, OffprintError, need
from offprint.files import local_path

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".aiff", ".aif", ".w64", ".rf64", ".caf", ".mp3")
RATES = (8_000, 192_000)
_INTEGER = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32")
_LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")
_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG", ".aiff": "AIFF", ".aif": "AIFF", ".w64": "W64",
            ".rf64": "RF64", ".caf": "CAF", ".mp3": "MP3"}  # fmt: skip


def _soundfile():
    return need("soundfile", "audio", "reading and writing sound files")


def _soxr():
    return need("soxr", "audio", "resampling")


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself.

    Attributes:
        rate: samples per second of a channel.
        frames: samples of each channel.
        format, subtype: as libsndfile names them (``WAV``, ``PCM_24``).
    """

    path: Path
    rate: int
    channels: int
    frames: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def header(path: str | Path) -> Header:
    """Read a file's header.

    Raises:
        DataError: no such file, none of sound, without samples, or of a rate outside 8 to 192 kHz.
    """
    path = local_path(path, "a sound file")
    if not path.is_file():
        raise DataError(f"cannot read the sound {path}: there is no such file")
    try:
        found = _soundfile().info(str(path))
    except (RuntimeError, OSError) as error:  # libsndfile's own error is a RuntimeError
        reason = str(error).rsplit(":", 1)[-1].strip() or type(error).__name__
        raise DataError(
            f"cannot read the sound {path}: {reason}; give {', '.join(EXTENSIONS[:4])} or another sound file"
        ) from error
    if not found.frames:
        raise DataError(f"{path} holds no samples")
    if not RATES[0] <= found.samplerate <= RATES[1]:
        raise DataError(f"{path} has {found.samplerate} samples per second; 8000 to 192000 are taken")
    return Header(path, found.samplerate, found.channels, found.frames, found.format, found.subtype)


def blocks(head: Header, seconds: float = 10.0) -> Iterator[np.ndarray]:
    """The samples of a file in blocks (channels, n), float32, in [-1, 1] where the file holds integers.

    Raises:
        DataError: a value that is no number (with its time), or a file that ends before its header says.
    """
    try:
        with _soundfile().SoundFile(str(head.path)) as file:
            at = 0
            while at < head.frames:
                block = file.read(int(seconds * head.rate), dtype="float32", always_2d=True)
                if not len(block):
                    raise DataError(f"{head.path} ends after {at} of {head.frames} samples; the file is cut short")
                bad = ~np.isfinite(block).all(1)
                if bad.any():
                    when = (at + int(bad.argmax())) / head.rate
                    raise DataError(
                        f"{head.path} holds {int(bad.sum())} samples that are no numbers, the first at {when:.3f} s; mend the file"
                    )
                at += len(block)
                yield block.T
    except RuntimeError as error:
        raise DataError(f"cannot read the sound {head.path}: {error}") from error


def read(path: str | Path, rate: int | None = None) -> tuple[np.ndarray, int]:
    """(samples (channels, N) float32, rate) of a whole file, resampled where a rate is given."""
    head = header(path)
    whole = np.concatenate(list(blocks(head)), 1)
    return (whole, head.rate) if rate is None else (resample(whole, head.rate, rate), rate)


def resample(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    """(channels, N) at another rate; (channels, round(N * to / rate)) but for a sample."""
    if rate == to:
        return wave
    return np.ascontiguousarray(_soxr().resample(np.ascontiguousarray(wave.T), rate, to).T)


class Resampler:
    """Resampling in blocks: what they give together is what the whole gives."""

    def __init__(self, rate: int, to: int, channels: int):
        self.stream = None if rate == to else _soxr().ResampleStream(rate, to, channels, dtype="float32")

    def __call__(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """The next block (channels, n); the last one may be empty."""
        if self.stream is None:
            return block
        done = self.stream.resample_chunk(np.ascontiguousarray(block.T, dtype=np.float32), last=last)
        return np.ascontiguousarray(done.reshape(-1, block.shape[0]).T)


class Writer:
    """A sound file that is written in blocks, whole or not at all; used with ``with``.

    The depth is that of the file that was read where the new format has it. Integers cannot hold samples beyond [-1, 1]: they are
    cut off there, and ``clipped`` counts them.

    Args:
        path: its ending says the format.
        like: the file that was read.
    """

    def __init__(self, path: str | Path, like: Header):
        self.path, self.clipped, self.frames = local_path(path, "a sound that is written"), 0, 0
        kind = _FORMATS.get(self.path.suffix.lower())
        if kind is None:
            raise OffprintError(f"{self.path}: sounds are written as {' '.join(_FORMATS)}; choose one by its ending")
        sf = _soundfile()
        wanted = (like.subtype, "OPUS" if self.path.suffix.lower() == ".opus" else "PCM_24", sf.default_subtype(kind))
        self.format, self.rate, self.channels = kind, like.rate, like.channels
        self.subtype = next(s for s in wanted if sf.check_format(kind, s))
        if kind in ("MP3", "OGG") and self.subtype == "OPUS" and self.rate not in (8000, 12000, 16000, 24000, 48000):
            raise OffprintError(f"{self.path}: Opus has no rate of {self.rate}; write .wav, .flac or .ogg")

    def __enter__(self) -> Writer:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, self._temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        os.close(handle)
        try:
            self._file = _soundfile().SoundFile(
                self._temporary, "w", self.rate, self.channels, self.subtype, format=self.format
            )
        except RuntimeError as error:
            Path(self._temporary).unlink(missing_ok=True)
            raise OffprintError(
                f"{self.path}: {self.format} ({self.subtype}) cannot hold {self.channels} channels at {self.rate} Hz; write .wav or .flac"
            ) from error
        return self

    def write(self, block: np.ndarray) -> None:
        """The next samples (channels, n)."""
        if self.subtype in _INTEGER + _LOSSY:
            self.clipped += int((np.abs(block) > 1).sum())
            block = block.clip(-1, 1)
        self.frames += block.shape[1]
        self._file.write(np.ascontiguousarray(block.T))

    def __exit__(self, kind, error, trace) -> None:
        self._file.close()
        if kind is None:
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        else:
            Path(self._temporary).unlink(missing_ok=True)


def sounds_in(folder: str | Path) -> list[Path]:
    """The sound files of a folder at any depth, by name.

    Raises:
        DataError: it is no folder, or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no folder at {str(folder)!r}; give one of sounds")
    hidden = lambda p: any(part.startswith(".") for part in p.relative_to(folder).parts)  # noqa: E731
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in EXTENSIONS and p.is_file() and not hidden(p)]
    if not found:
        raise DataError(f"{folder} holds no sounds (extensions looked for: {' '.join(EXTENSIONS)})")
    return found


@cache
def noisy_speech() -> dict[str, np.ndarray]:
    """The bundled sample at 16 kHz: ``clean/NAME``, ``noise/NAME``, ``pairs/clean/NAME`` and ``pairs/noisy/NAME`` → (N,) float32."""
    found = {}
    with zipfile.ZipFile(samples.path("noisy_speech.zip")) as z:
        for name in sorted(z.namelist()):
            wave, _ = _soundfile().read(io.BytesIO(z.read(name)), dtype="float32")
            found[name.removesuffix(".flac")] = wave
    return found
