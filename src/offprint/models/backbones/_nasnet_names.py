"""Other people's names for NASNet's tensors: Cadene's port (and timm's), and the authors' TensorFlow variables."""

from __future__ import annotations

import re

from torch import Tensor, nn

from offprint.models.checkpoint import Dialect


def _renumber(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Cadene numbers six cells a resolution, also where there are four (cells 0-3, 6-9, 12-15)."""
    n = model.num_cells
    found = {int(m[1]) for name in state if (m := re.match(r"cell_(\d+)\.", name))}
    if n >= 6 or max(found, default=0) < 3 * n:
        return state

    def number(m: re.Match) -> str:
        stage, i = divmod(int(m[1]), 6)
        return f"cell_{stage * n + i}."

    return {re.sub(r"^cell_(\d+)\.", number, name): value for name, value in state.items()}


_TF_RENAMES = (
    (r"^conv0/weights", "conv0.conv.weight"),
    (r"^conv0_bn/", "conv0.bn/"),
    (r"/beginning_bn/", ".conv_1x1.bn/"),
    (r"/prev_1x1/", ".conv_prev_1x1.conv/"),
    (r"/prev_bn/", ".conv_prev_1x1.bn/"),
    (r"/cell_output/reduction_(\d)/path(\d)_conv/", r".cell_output_\1.path_\2.conv/"),
    (r"/cell_output/reduction_(\d)/path_conv/", r".cell_output_\1.conv/"),
    (r"/cell_output/reduction_(\d)/path_bn/", r".cell_output_\1.bn/"),
    (r"/cell_output/reduction_(\d)/final_path_bn/", r".cell_output_\1.final_path_bn/"),
    (r"^((?:reduction_)?cell_(?:stem_)?\d+)/path(\d)_conv/", r"\1.conv_prev_1x1.path_\2.conv/"),
    (r"^((?:reduction_)?cell_(?:stem_)?\d+)/final_path_bn/", r"\1.conv_prev_1x1.final_path_bn/"),
    (r"/comb_iter_(\d)/(left|right)/", r".comb_iter_\1_\2/"),
    (r"/separable_\dx\d_(\d)/depthwise_weights", r".separable_\1.depthwise_conv2d.weight"),
    (r"/separable_\dx\d_(\d)/pointwise_weights", r".separable_\1.pointwise_conv2d.weight"),
    (r"/bn_sep_\dx\d_(\d)/", r".bn_sep_\1/"),
    (r"^((?:reduction_)?cell_(?:stem_)?\d+)/1x1/", r"\1.conv_1x1.conv/"),
    (r"/1x1/", ".conv/"),
    (r"/bn_1/", ".bn/"),
    (r"^aux_\d+/aux_logits/FC/", "aux.fc/"),
    (r"^aux_\d+/aux_logits/Conv/", "aux.conv/"),
    (r"^aux_\d+/aux_logits/", "aux."),
    (r"^final_layer/FC/", "last_linear/"),
    (r"/weights$", ".weight"),
    (r"/biases$", ".bias"),
    (r"/gamma$", ".weight"),
    (r"/beta$", ".bias"),
    (r"/moving_mean$", ".running_mean"),
    (r"/moving_variance$", ".running_var"),
)  # the scopes of research/slim/nets/nasnet, without the averages' suffix


def _from_tensorflow(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Names and layouts of the authors' TensorFlow variables."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in _TF_RENAMES:
            name = re.sub(pattern, replacement, name)
        if value.ndim == 4:
            value = value.permute(2, 3, 0, 1) if "depthwise" in name else value.permute(3, 2, 0, 1)
        out[name] = (value.t() if value.ndim == 2 else value).contiguous()
    # a pool or identity that changes width: the pool's convolution is inside our pool
    ours = model.state_dict()
    return {
        name if name in ours else re.sub(r"(comb_iter_\d_(?:left|right))\.", r"\1.project.", name): value
        for name, value in out.items()
    }


DIALECTS = (
    Dialect(
        "cadene",  # timm's names are the same
        ((r"\.(path_[12]|final_path_bn)\.", r".conv_prev_1x1.\1."),),
        reshape=_renumber,
    ),
    Dialect("tensorflow", ignore=r"/(RMSProp|Momentum|Adam)(_\d)?$|^global_step$", reshape=_from_tensorflow),
)
