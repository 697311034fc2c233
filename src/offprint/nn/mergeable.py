"""A convolution that is trained as branches and, merged, is one with a bias: both forms of one layer under one name.

In training form the branches are children; in merged form the layer has a ``weight`` and a ``bias`` of its own, where a plain
convolution in its place would have them. :func:`to_one_form` brings a model and a file to the same form.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offprint.errors import OffprintError
from offprint.nn import reparam


class Mergeable(nn.Module):
    """Base of such layers. A subclass writes :meth:`build`, :meth:`apart` and :meth:`kernel`.

    Args:
        in_channels, out_channels: of the map.
        kernel_size: of the merged kernel, odd: a number for a square, (rows, columns), or (length,) of a series.
        stride, groups: of the convolution; its padding keeps the size at stride 1.
        deploy: in merged form from the start.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 1,
        stride: int = 1,
        groups: int = 1,
        deploy: bool = False,
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.stride, self.groups = stride, groups
        self.padding = tuple(size // 2 for size in self.kernel_size)
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if deploy:
            self.drop_branches()
        else:
            self.build()

    def build(self) -> None:
        """Make the branches, as children."""
        raise TypeError(f"{type(self).__name__} must define build")

    def apart(self, x: Tensor) -> Tensor:
        """What the branches give together."""
        raise TypeError(f"{type(self).__name__} must define apart")

    def kernel(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the merged form; exact in evaluation mode."""
        raise TypeError(f"{type(self).__name__} must define kernel")

    @property
    def merged(self) -> bool:
        """Whether the branches are gone."""
        return self.weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) or series (B, in_channels, T) to ``out_channels``."""
        if self.weight is None:
            return self.apart(x)
        conv = F.conv1d if len(self.kernel_size) == 1 else F.conv2d
        return conv(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)

    def merge(self) -> None:
        """Become one convolution, in place; merging again changes nothing.

        Raises:
            OffprintError: in training mode, where a BatchNorm follows the batch and is no fixed scale.
        """
        if self.merged:
            return
        if self.training:
            raise OffprintError(
                f"{type(self).__name__} is in training mode; finish training, call eval(), and merge then (the branches are "
                "gone afterwards)"
            )
        with torch.no_grad():
            weight, bias = self.kernel()
        self._become(weight, bias)

    def drop_branches(self) -> None:
        """Take the merged form without merging: weights at random, for a file in that form."""
        if self.merged:
            return
        old = next(self.parameters(), None)
        like = torch.empty(0) if old is None else old
        weight = like.new_empty(self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        nn.init.trunc_normal_(weight, std=0.02)
        self._become(weight, like.new_zeros(self.out_channels))

    def _become(self, weight: Tensor, bias: Tensor) -> None:
        for name in list(self._modules):
            delattr(self, name)
        self.weight, self.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())

    def unmerged(self) -> Mergeable:
        """A fresh one in training form, in evaluation mode."""
        twin = copy.deepcopy(self)
        twin.weight = twin.bias = None
        twin.build()
        return twin.eval()


class ConvNorm(Mergeable):
    """A convolution without bias (``c``) and a BatchNorm (``bn``)."""

    def build(self) -> None:
        self.c = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            groups=self.groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(self.out_channels)

    def apart(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))

    def kernel(self) -> tuple[Tensor, Tensor]:
        return reparam.fold(self.c.weight, None, self.bn)


def to_one_form(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring the layers of a model and the tensors of a file to one form: what either has merged is merged in both afterwards."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, Mergeable):
            continue
        prefix = f"{name}." if name else ""
        if f"{prefix}weight" in state:
            layer.drop_branches()
        elif layer.merged:
            inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            twin = layer.unmerged()
            if all(key in inner for key in twin.state_dict() if not key.endswith("num_batches_tracked")):
                _fill(twin, inner)
                state = {key: value for key, value in state.items() if not key.startswith(prefix)}
                with torch.no_grad():
                    state[f"{prefix}weight"], state[f"{prefix}bias"] = twin.kernel()
    return state


def _fill(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """Put tensors into a layer as they are, of whatever size: what does not fit the model is told by who reads the file."""
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        inner = layer.get_submodule(owner)
        table = inner._parameters if leaf in inner._parameters else inner._buffers
        if leaf in table:
            table[leaf] = nn.Parameter(value, False) if table is inner._parameters else value
