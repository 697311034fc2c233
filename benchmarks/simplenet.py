"""SimpleNet against the same layers as a plain nn.Sequential: no library that is installed has it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from benchmarks.compare import Row, classifiers
from offprint.models.backbones.simplenet import NETWORKS, STRIDED


class Plain(nn.Module):
    """The authors' layout, written out: every unit, every dropout, the pooling by ``max_pool2d``.

    Args:
        network: row of :data:`NETWORKS`.
        mode: row of :data:`STRIDED`.
    """

    def __init__(self, network: int, mode: int, num_classes: int = 1000):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, entry in enumerate(NETWORKS[network].split()):
            if entry == "P":
                layers += [nn.MaxPool2d(2, 2), nn.Dropout2d(0.0)]
                continue
            width, size = int(entry.removesuffix("k1").removesuffix("d")), 1 if entry.endswith("k1") else 3
            layers += [
                nn.Conv2d(channels, width, size, 2 if i in STRIDED[mode] else 1, size // 2),
                nn.BatchNorm2d(width, momentum=0.05),
                nn.ReLU(inplace=True),
            ]
            if "d" in entry:
                layers.append(nn.Dropout2d(0.0))
            channels = width
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(nn.functional.max_pool2d(x, x.shape[2:]).flatten(1))


def rows() -> Iterator[Row]:
    for name, network, mode, size, batch in (("simplenetv1_5m_m1", 0, 1, 224, 4), ("simplenet_cifar_5m", 4, 0, 32, 32)):
        yield from classifiers("simplenet", name, "its layers in a row", Plain(network, mode), size=size, batch=batch)
