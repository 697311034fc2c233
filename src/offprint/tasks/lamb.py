"""LAMB, the optimizer of recipes with large batches (You et al. 2020)."""

from __future__ import annotations

import torch

from offprint.errors import OffprintError


class Lamb(torch.optim.Optimizer):
    r"""Adam whose step for each tensor has the length of that tensor,

    .. math:: u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda \theta, \qquad
              \theta \leftarrow \theta - \eta\, \frac{\lVert \theta \rVert}{\lVert u \rVert}\, u,

    after the gradients of all tensors together were brought to a length of at most ``max_grad_norm``. Tensors without weight decay
    (biases, norms) take the plain Adam step: their ratio of lengths is 1.

    Args:
        params: parameters, or groups of them.
        lr: :math:`\eta`.
        betas: decays of the first and the second moment.
        eps: :math:`\epsilon`.
        weight_decay: :math:`\lambda`.
        max_grad_norm: 0 for no limit.
    """

    def __init__(self, params, lr: float = 1e-3, betas=(0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.01,
                 max_grad_norm: float = 1.0):  # fmt: skip
        if lr <= 0 or eps <= 0 or not all(0 <= b < 1 for b in betas):
            raise OffprintError(f"lr={lr}, eps={eps}, betas={betas}; give rates above 0 and betas from 0 to below 1")
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        )

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return loss
        limit = self.param_groups[0]["max_grad_norm"]
        length = torch.stack([g.norm() for g in gradients]).norm()
        shrink = torch.clamp(length / limit, min=1.0) if limit else torch.ones_like(length)
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, gradient = self.state[p], p.grad / shrink
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                state["mean"].lerp_(gradient, 1 - first)
                state["square"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
                mean = state["mean"] / (1 - first ** state["step"])
                square = state["square"] / (1 - second ** state["step"])
                update = mean / (square.sqrt() + group["eps"])
                if group["weight_decay"]:
                    update = update + group["weight_decay"] * p
                    weight, change = p.norm(), update.norm()
                    update = update * torch.where((weight > 0) & (change > 0), weight / change, torch.ones_like(weight))
                p.sub_(update, alpha=group["lr"])
        return loss
