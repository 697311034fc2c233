"""How UniRepLKNet sees what is no image (Sec. 3.4 of the paper): audio, video, point clouds and series as maps.

Functions and one module that turn each into a map of channels, height and width. Nothing here depends on the network that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.models.checkpoint import Dialect
from offprint.models.registry import IMAGENET
from offprint.nn.precision import wide

# -- audio ------------------------------------------------------------------------------------------------------------
SAMPLE_RATE = 16000
WINDOW, SHIFT, BINS = 400, 160, 512  # samples: 25 ms, 10 ms, and the transform they are padded to
MEL_BINS, FRAMES = 128, 128
SPEECH_MEAN, SPEECH_STD = -6.845978, 5.5654526  # of the spectrograms of Speech Commands V2
_FLOOR = torch.finfo(torch.float32).eps  # under the logarithm


@cache
def _mel_filters(count: int) -> Tensor:
    """Triangles between 20 Hz and half the rate, evenly spaced in mel, over the bins of the transform: (count, BINS / 2 + 1)."""

    def mel(frequency: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(frequency / 700.0)

    low, high = (float(mel(torch.tensor(f, dtype=torch.float64))) for f in (20.0, SAMPLE_RATE / 2))
    step = (high - low) / (count + 1)
    left = low + step * torch.arange(count, dtype=torch.float64)[:, None]
    at = mel(torch.arange(BINS // 2, dtype=torch.float64) * (SAMPLE_RATE / BINS))[None]
    triangles = torch.minimum((at - left) / step, (left + 2 * step - at) / step).clamp_min(0)
    return F.pad(triangles, (0, 1))  # the bin at half the rate belongs to none


def audio_fbank(waveform: Tensor, num_mel_bins: int = MEL_BINS, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Logarithms of mel energies as Kaldi computes them: Hanning windows of 25 ms every 10 ms, pre-emphasis 0.97, no dither.

    Args:
        waveform: (..., samples) at 16 kHz; its mean is taken off.
        num_mel_bins: filters.
        sample_rate: of the waveform, for the check.

    Returns:
        (..., frames, num_mel_bins); a frame is a window that lies in the waveform whole.

    Raises:
        OffprintError: another rate, less than one window, or samples that are not finite.
    """
    if sample_rate != SAMPLE_RATE:
        raise OffprintError(
            f"the waveform has {sample_rate} samples a second, the filters are for {SAMPLE_RATE}; resample it first, for example "
            f"torchaudio.functional.resample(waveform, {sample_rate}, {SAMPLE_RATE})"
        )
    if not waveform.is_floating_point():
        raise OffprintError(
            f"expected a floating-point waveform in [-1, 1], got {waveform.dtype}; divide whole numbers by their range"
        )
    if waveform.shape[-1] < WINDOW:
        raise OffprintError(f"the waveform has {waveform.shape[-1]} samples, less than one window of {WINDOW} (25 ms)")
    if not torch.compiler.is_compiling() and not torch.isfinite(waveform).all():
        raise OffprintError("the waveform holds samples that are not finite")
    x = wide(waveform)
    frames = (x - x.mean(-1, keepdim=True)).unfold(-1, WINDOW, SHIFT)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    window = torch.hann_window(WINDOW, periodic=False, dtype=torch.float64, device=x.device).to(x.dtype)
    power = torch.fft.rfft((frames - 0.97 * before) * window, BINS).abs().square()
    return (power @ _mel_filters(num_mel_bins).to(power).T).clamp_min(_FLOOR).log()


def audio_spectrogram(
    fbank: Tensor, frames: int = FRAMES, mean: float = SPEECH_MEAN, std: float = SPEECH_STD
) -> Tensor:
    """Filter banks (..., T, mel) padded with zeros or cut to ``frames``, and then normalised: (x - mean) / (2 std)."""
    missing = frames - fbank.shape[-2]
    fbank = F.pad(fbank, (0, 0, 0, missing)) if missing > 0 else fbank[..., :frames, :]
    return (fbank - mean) / (2 * std)


def audio_to_map(spectrogram: Tensor) -> Tensor:
    """Spectrograms (B, time, mel) as maps of one channel (B, 1, mel, time)."""
    if spectrogram.ndim != 3:
        raise OffprintError(f"expected spectrograms of shape (B, time, mel), got {tuple(spectrogram.shape)}")
    return spectrogram.transpose(1, 2)[:, None]


def mask_fbank(fbank: Tensor, mel: int = 48, time: int = 48) -> Tensor:
    """For training: a random band of up to ``mel`` filters and one of up to ``time`` frames set to 0, another for each example.

    It comes before :func:`audio_spectrogram` normalises (as in the authors' training).
    """
    out = fbank
    for axis, most in ((-2, time), (-1, mel)):
        size = fbank.shape[axis]
        shape = (*fbank.shape[:-2], 1, 1)
        length = torch.rand(shape, device=fbank.device) * min(most, size)
        start = torch.rand(shape, device=fbank.device) * (size - length)
        place = torch.arange(size, device=fbank.device)
        place = place[:, None] if axis == -2 else place
        out = out.masked_fill((place >= start.floor()) & (place < (start + length).floor()), 0)
    return out


def mix_waveforms(waveforms: Tensor, targets: Tensor, rate: float = 0.6, alpha: float = 10.0) -> tuple[Tensor, Tensor]:
    """For training: each of a batch mixed with another one by a share from Beta(alpha, alpha), with probability ``rate``.

    Args:
        waveforms: (B, samples).
        targets: (B, classes), one-hot; they are mixed by the same share, for a binary cross-entropy on each class.
    """
    count, like = len(waveforms), waveforms
    other = torch.randperm(count, device=like.device)
    share = torch.distributions.Beta(alpha, alpha).sample((count, 1)).to(like)
    share = torch.where(torch.rand(count, 1, device=like.device) < rate, share, torch.ones_like(share))
    centred = waveforms - waveforms.mean(-1, keepdim=True)
    mixed = share * centred + (1 - share) * centred[other]
    return mixed - mixed.mean(-1, keepdim=True), share * targets + (1 - share) * targets[other]


def jitter_spectrogram(spectrogram: Tensor, shift: int = 10) -> Tensor:
    """For training: uniform noise of a random strength up to 0.1, and a roll of up to ``shift`` frames, each example its own."""
    lead, steps = spectrogram.shape[:-2], spectrogram.shape[-2]
    strength = torch.rand((*lead, 1, 1), device=spectrogram.device, dtype=spectrogram.dtype) / 10
    noisy = spectrogram + torch.rand_like(spectrogram) * strength
    by = torch.randint(-shift, shift + 1, (*lead, 1), device=spectrogram.device)
    order = (torch.arange(steps, device=spectrogram.device) - by) % steps
    return torch.gather(noisy, -2, order[..., None].expand_as(noisy))


# -- video ------------------------------------------------------------------------------------------------------------
def video_to_map(video: Tensor) -> Tensor:
    """Clips (B, C, T, H, W) as maps (B, C, sqrt(T) H, sqrt(T) W), the paper's 16 frames as four times the sides.

    The memory is read anew: a row of the map is sqrt(T) rows of one frame behind each other, and frames lie one below the other. It
    is no mosaic.
    """
    if video.ndim != 5:
        raise OffprintError(f"expected clips of shape (B, C, T, H, W), got {tuple(video.shape)}")
    batch, channels, frames, height, width = video.shape
    side = math.isqrt(frames)
    if side * side != frames:
        raise OffprintError(
            f"{frames} frames make no square; give 16 as in the paper, or another square number of frames"
        )
    return video.reshape(batch, channels, side * height, side * width)


# -- points -----------------------------------------------------------------------------------------------------------
# Euler angles of the views in units of pi
VIEWS = (
    (0, 0, 0.5), (0.5, 0, 0.5), (1, 0, 0.5), (1.5, 0, 0.5), (1.25, -0.25, 0.5), (1.25, 0.25, 0.5), (1.75, -0.25, 0.5),
    (1.75, 0.25, 0.5), (0, -0.5, 0.5), (0, 0.5, 0.5),
)  # fmt: skip
TRANSLATION = (0.0, 0.0, -1.4)


def euler_rotation(angles: Tensor) -> Tensor:
    """Rotations (V, 3, 3) about x, then y, then z of axes that turn along: R = Rx Ry Rz, of angles (V, 3) in radians."""
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    zero, one = torch.zeros_like(sx), torch.ones_like(sx)

    def matrix(*rows: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.stack(list(row), -1) for row in rows], -2)

    x = matrix((one, zero, zero), (zero, cx, -sx), (zero, sx, cx))
    y = matrix((cy, zero, sy), (zero, one, zero), (-sy, zero, cy))
    z = matrix((cz, -sz, zero), (sz, cz, zero), (zero, zero, one))
    return x @ y @ z


def point_views(points: Tensor, angles: Tensor | None = None, translation: Sequence[float] = TRANSLATION) -> Tensor:
    """Point clouds seen from several sides: p' = p R^T - translation.

    Args:
        points: (B, N, 3).
        angles: (V, 3) in radians; default those of the ten :data:`VIEWS`.

    Returns:
        (B V, N, 3), the views of a cloud one after the other.
    """
    if angles is None:
        angles = math.pi * torch.tensor(VIEWS, dtype=torch.float64)
    turned = euler_rotation(angles.to(points)).transpose(1, 2)
    moved = points[:, None] @ turned - points.new_tensor(list(translation))
    return moved.flatten(0, 1)


def view_cells(points: Tensor, side: int) -> Tensor:
    """Cells of an image that points (B, N, 3) fall into, seen along z: (B, N, 9), each its own and the eight around it, x * side + y.

    The larger of the ranges in x and y spans ``side - 3`` cells, and the box that is filled lies in the middle.
    """
    flat = points[..., :2]
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    cell = ((high - low).amax(-1, keepdim=True) / (side - 3)).clamp_min(torch.finfo(flat.dtype).tiny)
    # the farthest point lies on the border of a cell to the last bit: a millionth keeps it on one side of it everywhere
    index = ((flat - low) / cell * (1 + 1e-6)).floor().long() + 1
    middle = (index.amax(1, keepdim=True) + index.amin(1, keepdim=True)) // 2
    index = index + side // 2 - middle - 1
    around = torch.arange(-1, 2, device=points.device)
    x, y = index[..., :1] + around, index[..., 1:] + around
    return (x[..., :, None] * side + y[..., None, :]).flatten(-2)


class _BasicBlock(nn.Module):
    """The residual block of ResNet-18: two 3x3 convolutions with BatchNorms."""

    fold_pairs = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ViewFusion(nn.Module):
    """The views of a cloud see each other: patches of all of them in one sequence through one transformer layer.

    Args:
        dim: channels of the maps.
        num_views: maps of a cloud.
    """

    patch, width, heads, head_width, hidden = 7, 128, 8, 128, 256

    def __init__(self, dim: int, num_views: int):
        super().__init__()
        self.num_views = num_views
        width, inner = self.width, self.heads * self.head_width
        self.conv1 = nn.Conv2d(dim, width, self.patch, self.patch, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, self.hidden), nn.GELU(), nn.Linear(self.hidden, width))
        self.conv2 = nn.Sequential(nn.Conv2d(width, dim, 3, padding=1), nn.GELU())
        self.conv3 = nn.Sequential(nn.Conv2d(2 * dim, dim, 1), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B V, dim, n, n) to maps of the same shape."""
        y = self.conv1(x)
        tokens = y.flatten(2).transpose(1, 2).unflatten(0, (-1, self.num_views)).flatten(1, 2)  # (B, V S, width)
        heads = self.qkv(self.norm1(tokens)).unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        tokens = tokens + self.mlp(self.norm2(tokens))
        y = tokens.unflatten(1, (self.num_views, -1)).flatten(0, 1).transpose(1, 2).unflatten(2, tuple(y.shape[2:]))
        y = self.conv2(F.interpolate(y, x.shape[2:], mode="nearest"))
        return self.conv3(torch.cat([y, x], 1))


FUSION_RENAMES = (
    (r"fusion\.transformer\.layers\.0\.0\.norm\.", "fusion.norm1."),
    (r"fusion\.transformer\.layers\.0\.0\.fn\.to_qkv\.", "fusion.qkv."),
    (r"fusion\.transformer\.layers\.0\.0\.fn\.to_out\.0\.", "fusion.proj."),
    (r"fusion\.transformer\.layers\.0\.1\.norm\.", "fusion.norm2."),
    (r"fusion\.transformer\.layers\.0\.1\.fn\.net\.0\.", "fusion.mlp.0."),
    (r"fusion\.transformer\.layers\.0\.1\.fn\.net\.3\.", "fusion.mlp.2."),
)


class PointProjection(nn.Module):
    """Point clouds to images, one a view, by learnt features of the points that fall into each cell (after P2P, NeurIPS 2022).

    Each point of the cloud as it was given has features from its nearest neighbours (an edge convolution); each view scatters them
    to the cells of its image and sums. Convolutions and a sigmoid make three colours of them.

    Args:
        img_size: side of the images, even.
        num_views: the first so many of :data:`VIEWS`.
        local_size: neighbours of a point, itself among them.
        trans_dim: features of a point before its neighbours are looked at.
        graph_dim: features of a point and of a cell.
        fusion: let the views see each other before they become colours (on in the released ModelNet40 network).
    """

    native = "offprint"
    dialects = (Dialect("authors", ((r"^enc\.", ""), *FUSION_RENAMES)),)

    def __init__(
        self,
        img_size: int = 224,
        num_views: int = 4,
        local_size: int = 32,
        trans_dim: int = 8,
        graph_dim: int = 64,
        fusion: bool = False,
    ):
        super().__init__()
        if not 1 <= num_views <= len(VIEWS):
            raise OffprintError(f"num_views={num_views}; there are 1 to {len(VIEWS)} views")
        if img_size % 2 or img_size < 8:
            raise OffprintError(f"img_size={img_size}; the side of the images must be even and 8 or more")
        self.img_size, self.num_views, self.local_size = img_size, num_views, local_size
        self.input_trans = nn.Conv1d(3, trans_dim, 1)
        self.graph_layer = nn.Sequential(
            nn.Conv2d(2 * trans_dim, graph_dim, 1, bias=False), nn.GroupNorm(4, graph_dim), nn.LeakyReLU(0.2)
        )
        self.proj_layer = nn.Conv1d(graph_dim, graph_dim, 1)
        self.img_block = nn.Sequential(_BasicBlock(graph_dim), nn.Conv2d(graph_dim, graph_dim, 1))
        self.fusion = ViewFusion(graph_dim, num_views) if fusion else None
        self.img_layer = nn.Conv2d(graph_dim, 3, 1)

    def point_features(self, points: Tensor) -> Tensor:
        """Clouds (B, N, 3) to features of their points (B, N, graph_dim)."""
        with torch.no_grad():
            if torch.compiler.is_compiling():  # cdist is no operator of other runtimes
                far = torch.stack([(a[:, :, None] - a[:, None]).square() for a in points.unbind(-1)]).sum(0)
            else:
                far = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
            near = far.topk(self.local_size, dim=-1, largest=False).indices
        own = self.input_trans(points.transpose(1, 2))  # (B, C, N)
        around = torch.gather(
            own[..., None].expand(-1, -1, -1, self.local_size), 2, near[:, None].expand(-1, own.shape[1], -1, -1)
        )
        edges = torch.cat([around - own[..., None], own[..., None].expand_as(around)], 1)
        return self.proj_layer(self.graph_layer(edges).amax(-1)).transpose(1, 2)

    def forward(self, points: Tensor) -> Tensor:
        """Clouds (B, N, 3) to normalised images (B V, 3, img_size, img_size), the views of a cloud one after the other.

        Raises:
            OffprintError: another shape, fewer points than neighbours, or coordinates that are not finite.
        """
        self.check(points)
        side, features = self.img_size, self.point_features(points)
        angles = math.pi * torch.tensor(VIEWS[: self.num_views], dtype=torch.float64)
        cells = view_cells(point_views(wide(points), angles), side)  # (B V, N, 9)
        spread = features.repeat_interleave(self.num_views, 0)[:, :, None].expand(-1, -1, 9, -1).flatten(1, 2)
        index = cells.flatten(1)[..., None].expand_as(spread)
        image = spread.new_zeros(spread.shape[0], side * side, spread.shape[-1]).scatter_add(1, index, spread)
        maps = self.img_block(image.transpose(1, 2).unflatten(2, (side, side)))
        if self.fusion is not None:
            maps = self.fusion(maps)
        colours = self.img_layer(maps).sigmoid()
        mean, std = (colours.new_tensor(IMAGENET[k])[:, None, None] for k in ("mean", "std"))
        return (colours - mean) / std

    def check(self, points: Tensor) -> None:
        """Refuse clouds that cannot be projected, saying why."""
        if points.ndim != 3 or points.shape[-1] != 3 or not points.is_floating_point():
            raise OffprintError(f"expected points of shape (B, N, 3), got {points.dtype} of {tuple(points.shape)}")
        if points.shape[1] < self.local_size:
            raise OffprintError(
                f"the clouds have {points.shape[1]} points, fewer than the {self.local_size} neighbours of each; give more points, or "
                "build the model with a smaller local_size"
            )
        if not torch.compiler.is_compiling() and not torch.isfinite(points).all():
            bad = int((~torch.isfinite(points)).any(-1).sum())
            raise OffprintError(
                f"{bad} of the points have coordinates that are not finite (NaN or infinite); remove them first"
            )
