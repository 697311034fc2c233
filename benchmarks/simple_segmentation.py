"""FFNet against the same network written plainly (separate layers, nothing in place), the same weights; no library has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offprint
from benchmarks.compare import Row, forwards, training
from offprint.errors import OffprintError

NAME, DEPTHS, WIDTHS = "ffnet_seg_40s_dbbb_mobile", (4, 5, 6, 4), (64, 128, 192, 320)


class ConvNormReLU(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int):
        super().__init__()
        conv = nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(cout), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.downsample = nn.Identity()
        if stride > 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class Plain(nn.Module):
    """FFNet-40S dBBB mobile in the authors' names."""

    def __init__(self, classes: int = 19):
        super().__init__()
        net = self.backbone_model = nn.Module()
        net.conv0, net.bn0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        net.conv1, net.bn1 = nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64)
        cin = 64
        for i, (depth, width) in enumerate(zip(DEPTHS, WIDTHS, strict=True), 1):
            blocks = [Block(cin if not j else width, width, 1 if j else 2) for j in range(depth)]
            setattr(net, f"layer{i}", nn.Sequential(*blocks))
            cin = width
        adapter, up, last = nn.Module(), nn.Module(), nn.Module()
        between, outputs = (64, 128, 128, 256), (96, 96, 64, 32)
        adapter.adapter_conv = nn.ModuleList(ConvNormReLU(a, b, 1) for a, b in zip(WIDTHS, between, strict=True))
        up.fam_4 = ConvNormReLU(64, 96, 3)
        for i in (1, 2, 3):
            setattr(up, f"fam_{4 * 2**i}_sm", ConvNormReLU(between[i], outputs[i], 3))
            setattr(up, f"fam_{4 * 2**i}_up", ConvNormReLU(between[i], between[i - 1], 1))
        last.last_layer = nn.Sequential(
            nn.Conv2d(sum(outputs), 256, 3, padding=1),
            nn.BatchNorm2d(256),
            nn.ReLU(),
            nn.Conv2d(256, classes, 3, padding=1),
        )
        self.head = nn.Module()
        self.head.layers = nn.ModuleList([adapter, up, nn.Identity(), last])

    def forward(self, x: Tensor) -> Tensor:
        net, (adapter, up, _, last) = self.backbone_model, self.head.layers
        x = torch.relu(net.bn0(net.conv0(x)))
        x = torch.relu(net.bn1(net.conv1(x)))
        maps = []
        for i in range(1, 5):
            x = getattr(net, f"layer{i}")(x)
            maps.append(adapter.adapter_conv[i - 1](x))
        x, found = maps[3], []
        for i in (3, 2, 1):
            found.insert(0, getattr(up, f"fam_{4 * 2**i}_sm")(x))
            x = F.interpolate(getattr(up, f"fam_{4 * 2**i}_up")(x), scale_factor=2, mode="nearest") + maps[i - 1]
        found.insert(0, up.fam_4(x))
        found = [F.interpolate(y, scale_factor=2**i, mode="nearest") if i else y for i, y in enumerate(found)]
        return last.last_layer(torch.cat(found, 1))


def _steps(net: nn.Module, x: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with torch.no_grad():
        shape = net(x).shape
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), target).backward()
        optimizer.step()

    return step


def rows(size: tuple[int, int] = (256, 512), seconds: float = 8.0) -> Iterator[Row]:
    torch.manual_seed(0)
    theirs, x = Plain().eval(), torch.randn(1, 3, *size)
    ours = offprint.create_model(NAME).eval()
    offprint.load_weights(ours, dict(theirs.state_dict()))
    with torch.no_grad():
        off = float((ours(x) - theirs(x)).abs().max() / theirs(x).abs().max())
    if not off <= 1e-4:
        raise OffprintError(f"{NAME} and the plain network differ by {off:.1e} on the same weights")
    shape = f"1 x {size[0]}x{size[1]} px"
    yield from forwards(
        "simple-segmentation", f"{NAME} forward, {shape}", "plain eager PyTorch", ours, theirs, x, seconds=seconds
    )
    yield training("simple-segmentation", f"{NAME} training step, {shape}", "plain eager PyTorch", _steps, ours, theirs, x,
                   seconds=seconds)  # fmt: skip
