"""Tokens that can be hidden: what masked-image pre-training asks of a backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offprint.errors import OffprintError


class MaskedTokens:
    """Mixed into a backbone whose patches can be hidden.

    The backbone sets ``patch_size`` (pixels), calls ``self.register_parameter("mask_token", None)``, and takes ``mask`` in
    ``forward_features(x, mask=None)``, where it passes its embedded patches through :meth:`hide`. A model has no mask token,
    and its state dict no such name, until :meth:`add_mask_token` is called.
    """

    patch_size: int
    mask_token: nn.Parameter | None

    def add_mask_token(self) -> None:
        """Give the model a learnt token (1, 1, C) that takes the place of hidden ones (truncated normal, 0.02)."""
        reference = next(self.parameters())
        token = torch.zeros(1, 1, self.pyramid_channels[0], device=reference.device, dtype=reference.dtype)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=0.02))

    def hide(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Put the mask token where ``mask`` is 1.

        Args:
            x: embedded patches (B, H, W, C).
            mask: (B, H, W), or ``None`` to hide nothing.
        """
        if mask is None:
            return x
        if self.mask_token is None:
            raise OffprintError(f"{type(self).__name__} has no mask token yet; call add_mask_token() first")
        if tuple(mask.shape) != tuple(x.shape[:3]):
            raise OffprintError(
                f"expected a mask of shape {tuple(x.shape[:3])}, one value for each patch of {self.patch_size} pixels, "
                f"got {tuple(mask.shape)}"
            )
        w = mask.to(x.dtype)[..., None]
        return x * (1 - w) + self.mask_token.to(x.dtype) * w
