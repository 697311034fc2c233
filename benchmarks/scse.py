"""FC-DenseNet with channel and spatial excitation against the direct formulation (torch's own unpooling, one view and copy after the other),
the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, training
from offprint.errors import OffprintError

FILTERS, CLASSES = 32, 28


class Excite(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.cSE, self.sSE = nn.Module(), nn.Module()
        self.cSE.fc1, self.cSE.fc2 = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, channels)
        self.sSE.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        z = x.reshape(n, c, -1).mean(2)
        z = torch.sigmoid(self.cSE.fc2(torch.relu(self.cSE.fc1(z))))
        return torch.max(x * z.reshape(n, c, 1, 1), x * torch.sigmoid(self.sSE.conv(x)).reshape(n, 1, h, w))


class Dense(nn.Module):
    def __init__(self, cin: int, f: int):
        super().__init__()
        self.SELayer, self.prelu = Excite(f), nn.PReLU()
        self.batchnorm1, self.conv1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, f, 5, padding=2)
        self.batchnorm2, self.conv2 = nn.BatchNorm2d(cin + f), nn.Conv2d(cin + f, f, 5, padding=2)
        self.batchnorm3, self.conv3 = nn.BatchNorm2d(cin + 2 * f), nn.Conv2d(cin + 2 * f, f, 1)

    def forward(self, x: Tensor, excite: bool = True) -> Tensor:
        a = self.conv1(self.prelu(self.batchnorm1(x)))
        b = self.conv2(self.prelu(self.batchnorm2(torch.cat((x, a), 1))))
        y = self.conv3(self.prelu(self.batchnorm3(torch.cat((x, a, b), 1))))
        return self.SELayer(y) if excite else y


class Plain(nn.Module):
    def __init__(self, f: int = FILTERS):
        super().__init__()
        self.encode1, self.encode2, self.encode3, self.encode4 = Dense(1, f), Dense(f, f), Dense(f, f), Dense(f, f)
        self.bottleneck = Dense(f, f)
        self.decode1, self.decode2, self.decode3, self.decode4 = (Dense(2 * f, f) for _ in range(4))
        self.classifier = nn.Module()
        self.classifier.conv = nn.Conv2d(f, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for block in (self.encode1, self.encode2, self.encode3, self.encode4):
            skip = block(x)
            x, indices = F.max_pool2d(skip, 2, return_indices=True)
            kept.append((skip, indices))
        x = self.bottleneck(x, False)
        for block in (self.decode4, self.decode1, self.decode2, self.decode3):
            skip, indices = kept.pop()
            x = block(torch.cat((skip, F.max_unpool2d(x, indices, 2, output_size=skip.shape[-2:])), 1))
        return self.classifier.conv(x)


def _steps(net: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    target = torch.randint(CLASSES, (len(x), *x.shape[2:]), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), target).backward()
        optimizer.step()

    return step


def rows(size: int = 128, seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    theirs, x = Plain().eval(), torch.randn(1, 1, size, size)
    ours = offprint.create_model("fc_densenet_csse", num_filters=FILTERS, drop_rate=0.0).eval()
    offprint.load_weights(ours, dict(theirs.state_dict()))
    with torch.no_grad():
        off = float((ours(x) - theirs(x)).abs().max() / theirs(x).abs().max())
    if not off <= 1e-4:
        raise OffprintError(f"fc_densenet_csse and the plain network differ by {off:.1e} on the same weights")
    what = f"fc_densenet_csse, {FILTERS} filters"
    yield from forwards(
        "scse", f"{what} forward, 1 x {size} px", "plain eager PyTorch", ours, theirs, x, seconds=seconds
    )
    yield training(
        "scse", f"{what} training step, 1 x {size} px", "plain eager PyTorch", _steps, ours, theirs, x, seconds=seconds
    )
