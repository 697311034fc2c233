"""Eigen-CAM against pytorch-grad-cam: the same network, layer and images, the same maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.compare import Row, race
from offprint.errors import OffprintError
from offprint.methods.understanding import eigen_cam


def _patches(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (14, 14))


def rows() -> Iterator[Row]:
    import pytorch_grad_cam as peer
    import timm
    import torchvision

    torch.manual_seed(0)
    images = torch.randn(4, 3, 224, 224)
    resnet, deit = torchvision.models.resnet50().eval(), timm.create_model("deit_tiny_patch16_224").eval()
    for network, name, layer, module, reshape in (
        (resnet, "resnet50", "layer4.2", resnet.layer4[2], None),
        (deit, "deit_tiny", "blocks.11.norm1", deit.blocks[11].norm1, _patches),
    ):
        for method, ours, theirs in (
            ("EigenCAM", eigen_cam.EigenCAM(network, layer), peer.EigenCAM),
            ("GradCAM", eigen_cam.GradCAM(network, layer), peer.GradCAM),
        ):
            other = theirs(network, [module], reshape_transform=reshape)
            expected = other(images, None)
            same = eigen_cam.EigenCAM(network, layer, sign="lapack") if method == "EigenCAM" else ours
            off = float(np.abs(same(images).numpy() - expected).max())
            if not off < 1e-3:
                raise OffprintError(
                    f"the maps of {method} on {name} differ by {off:.1e}; a benchmark of them says nothing"
                )
            a, b = race(lambda ours=ours: ours(images), lambda other=other: other(images, None), 10.0, rounds=2)
            yield Row("eigen-cam", f"{method} on {name}, 4 x 224 px, the network included", "pytorch-grad-cam", a, b)
            other.activations_and_grads.release()
