"""Re-parameterisation: one convolution computes what its branches computed."""

import pytest
import torch
from torch import nn

from offprint.errors import OffprintError
from offprint.nn import reparam


def _norm(channels: int, kind=nn.BatchNorm2d) -> nn.Module:
    norm = kind(channels).double().eval()
    for tensor in (norm.weight.data, norm.running_var):
        tensor.uniform_(0.5, 2)
    for tensor in (norm.bias.data, norm.running_mean):
        tensor.normal_()
    return norm


@pytest.mark.parametrize(("conv", "norm", "ndim"), [(nn.Conv1d, nn.BatchNorm1d, 1), (nn.Conv2d, nn.BatchNorm2d, 2)])
@pytest.mark.parametrize(("kernel", "dilation", "groups"), [(3, 1, 1), (3, 2, 2), (1, 1, 4), (3, 3, 4)])
def test_a_branch_becomes_a_kernel(conv, norm, ndim, kernel, dilation, groups):
    torch.manual_seed(0)
    pad = dilation * (kernel - 1) // 2
    branch = conv(8, 12, kernel, padding=pad, dilation=dilation, groups=groups, bias=False).double()
    after = _norm(12, norm)
    x = torch.randn(2, 8, *(9, 11)[:ndim], dtype=torch.float64)
    weight, bias = reparam.fold(branch.weight, None, after)
    wide = reparam.centred(reparam.dilated(weight, dilation), (7,) * ndim)
    one = conv(8, 12, 7, padding=3).double()
    one.load_state_dict({"weight": reparam.regrouped(wide, groups, 1), "bias": bias})
    torch.testing.assert_close(one(x), after(branch(x)), rtol=1e-12, atol=1e-12)


def test_groups_meet_at_their_divisor():
    torch.manual_seed(0)
    x = torch.randn(1, 12, 5, 5, dtype=torch.float64)
    branches = [nn.Conv2d(12, 24, 1, groups=g, bias=False).double() for g in (2, 6, 4)]
    groups = reparam.common_groups(2, 6, 4)
    kernel = sum(reparam.regrouped(b.weight, b.groups, groups) for b in branches)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, groups=groups), sum(b(x) for b in branches))
    assert groups == 2


def test_a_norm_before_and_a_norm_alone():
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    before, conv = _norm(6), nn.Conv2d(6, 4, 1).double()
    weight, bias = reparam.fold_before(before, conv.weight, conv.bias)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias), conv(before(x)))
    kernel, shift = reparam.norm_kernel(before, 6, (3, 3), torch.float64)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, shift, padding=1, groups=6), before(x))


def test_what_cannot_be_is_refused():
    norm = _norm(6)
    with pytest.raises(OffprintError, match="padding comes between"):
        reparam.fold_before(norm, torch.zeros(4, 6, 3, 3), None)
    with pytest.raises(OffprintError, match="no place in the middle"):
        reparam.centred(torch.zeros(4, 1, 4, 4), (7, 7))
    with pytest.raises(OffprintError, match="must divide"):
        reparam.regrouped(torch.zeros(6, 1, 1, 1), 6, 4)
