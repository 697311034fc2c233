"""RMSProp as TensorFlow computes it, which recipes written for TensorFlow mean."""

from __future__ import annotations

import torch
from torch import Tensor

from offprint.errors import OffprintError


class RMSpropTF(torch.optim.Optimizer):
    r"""RMSProp with the epsilon inside the square root, an accumulator that starts at one, and the rate inside the momentum:

    .. math:: s \leftarrow \alpha s + (1 - \alpha) g^2, \qquad m \leftarrow \mu m + \eta\, g / \sqrt{s + \epsilon},
              \qquad \theta \leftarrow \theta - m.

    :class:`torch.optim.RMSprop` divides by :math:`\sqrt{s} + \epsilon`, starts at zero, and multiplies by the rate last. At the
    :math:`\epsilon = 1` of the Inception and MobileNet recipes these are different optimizers.

    Args:
        params: parameters, or groups of them.
        lr: :math:`\eta`.
        alpha: :math:`\alpha`.
        eps: :math:`\epsilon`.
        momentum: :math:`\mu`; 0 keeps no buffer.
        weight_decay: added to the gradient, times the parameter.
    """

    def __init__(
        self,
        params,
        lr: float = 0.01,
        alpha: float = 0.9,
        eps: float = 1e-10,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ):
        for name, value in (("lr", lr), ("eps", eps), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise OffprintError(f"RMSpropTF: {name}={value!r}; it must not be negative")
        if not 0 <= alpha < 1:
            raise OffprintError(f"RMSpropTF: alpha={alpha!r}; it must lie between 0 and 1")
        super().__init__(
            params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure=None):
        """One update; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["square_avg"] = torch.ones_like(p)
                    if group["momentum"]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            squares = [self.state[p]["square_avg"] for p in params]
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, grads, grads, 1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            if group["momentum"]:
                buffers = [self.state[p]["momentum_buffer"] for p in params]
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_addcdiv_(buffers, grads, roots, float(group["lr"]))
                torch._foreach_sub_(params, buffers)
            else:
                torch._foreach_addcdiv_(params, grads, roots, -float(group["lr"]))
        return loss
