r"""Layers of Kolmogorov-Arnold networks: every pair of an input and an output has a learnt function of one variable,

.. math:: y_j = \sum_i \phi_{ji}(x_i),

and a layer is a family of such functions: splines, polynomials, radial bumps, wavelets. All take (..., in) and give (..., out); the forms
for maps unfold patches, (B, C, H, W) to rows of C k k numbers, ordered by channel, row and column of the kernel, and fold the rows back.
Padding pads with zeros *before* the functions, whose value at zero is not zero.

A family multiplies the numbers of an input by the size of its basis (8 and more), and a map's form those of its patches, k k times the
map. :meth:`Layer.set_chunks` bounds this: so many rows at a time, recomputed in the backward pass if wanted; the result is the same.

Parameter names are those of the first author's code, which are those of efficient-kan, fast-kan, ChebyKAN and the other projects it
gathers. Frozen grids are buffers under the names that these hold them by.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offprint.errors import OffprintError, unknown

WAVELETS = ("mexican_hat", "morlet", "dog", "meyer", "shannon")


def _kaiming(*shape: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(*shape))
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    return weight


def _xavier(*shape: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(*shape))
    nn.init.xavier_uniform_(weight)
    return weight


# -- bases: (..., in) to (..., in, size) ---------------------------------------------------------------------------------
def knots(grid_size: int, order: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """(grid_size + 2 order + 1,): even steps over [low, high] and ``order`` more at both ends."""
    step = (high - low) / grid_size
    return torch.arange(-order, grid_size + order + 1, device="cpu") * step + low


def bsplines(x: Tensor, grid: Tensor, order: int) -> Tensor:
    """B-splines by Cox and de Boor on half-open intervals; zero outside the knots, where equal knots meet as well, and never NaN.

    Args:
        x: (..., in).
        grid: knots in rising order, (knots,), or (in, knots).
        order: 1 or more; 3 is cubic.
    """
    inside = (x >= grid[..., 0]) & (x < grid[..., -1])
    x = torch.where(inside, x, grid[..., -1])[..., None]  # where all splines are zero
    basis = ((x >= grid[..., :-1]) & (x < grid[..., 1:])).to(x.dtype)
    for k in range(1, order + 1):
        span = grid[..., k:] - grid[..., :-k]
        rate = torch.where(span > 0, 1 / span.clamp_min(torch.finfo(span.dtype).tiny), 0)
        rise = (x - grid[..., : -k - 1]) * rate[..., :-1]
        fall = (grid[..., k + 1 :] - x) * rate[..., 1:]
        basis = rise * basis[..., :-1] + fall * basis[..., 1:]
    return basis


def chebyshev(x: Tensor, degree: int) -> Tensor:
    """T_0 to T_degree of x clamped to [-1, 1], by their recurrence: its gradient is finite at the clamp, that of arccos is not."""
    x = x.clamp(-1, 1)
    rows = [torch.ones_like(x), x][: degree + 1]
    for _ in range(2, degree + 1):
        rows.append(2 * x * rows[-1] - rows[-2])
    return torch.stack(rows, -1)


def gaussians(x: Tensor, centres: Tensor, width: float) -> Tensor:
    """exp(-((x - c) / width)^2) for every centre."""
    return torch.exp(-(((x[..., None] - centres) / width) ** 2))


def jacobi(x: Tensor, degree: int, a: float, b: float) -> Tensor:
    """Jacobi polynomials P^(a, b) of degree 0 to ``degree``."""
    rows = [torch.ones_like(x), ((a - b) + (a + b + 2) * x) / 2][: degree + 1]
    for i in range(2, degree + 1):
        s = 2 * i + a + b
        first = s * (s - 1) / (2 * i * (i + a + b))
        second = (s - 1) * (a * a - b * b) / (2 * i * (i + a + b) * (s - 2))
        third = (i + a - 1) * (i + b - 1) * s / (i * (i + a + b) * (s - 2))
        rows.append((first * x + second) * rows[-1] - third * rows[-2])
    return torch.stack(rows, -1)


def wavelet(z: Tensor, kind: str) -> Tensor:
    """The mother wavelet of this kind; ``shannon`` without its window, which runs along the inputs of a layer."""
    if kind == "mexican_hat":
        return 2 / (math.sqrt(3) * math.pi**0.25) * (z**2 - 1) * torch.exp(-0.5 * z**2)  # the sign is the authors'
    if kind == "morlet":
        return torch.cos(5 * z) * torch.exp(-0.5 * z**2)
    if kind == "dog":
        return -z * torch.exp(-0.5 * z**2)
    if kind == "meyer":
        v = z.abs()
        t = (2 * v - 1).clamp(0, 1)
        fall = torch.cos(math.pi / 2 * t**4 * (35 - 84 * t + 70 * t**2 - 20 * t**3))
        return torch.sin(math.pi * v) * torch.where(v >= 1, 0, fall)
    if kind == "shannon":
        return torch.sinc(z / math.pi)
    raise unknown("wavelet", kind, WAVELETS)


# -- dense layers --------------------------------------------------------------------------------------------------------
class Layer(nn.Module):
    """What the families share: rows of any leading shape, a few at a time where asked for.

    A subclass writes :meth:`edges` (each row by itself) and :meth:`finish` where there is a norm or an activation over all rows.

    Args:
        in_features, out_features: sizes.
    """

    dialects: ClassVar[tuple] = ()
    optional_state = r"(^|\.)arange$"  # a table of degrees in others' files

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        if min(in_features, out_features) < 1:
            raise OffprintError(f"in_features={in_features}, out_features={out_features}; both must be 1 or more")
        self.in_features, self.out_features = in_features, out_features
        self.chunk, self.recompute = 0, False

    def set_chunks(self, rows: int, recompute: bool = False) -> None:
        """Compute so many rows at a time (0: all at once), with ``recompute`` again in the backward pass; the result is the same."""
        if rows < 0:
            raise OffprintError(f"rows={rows}; give a number of rows, or 0 for all at once")
        self.chunk, self.recompute = rows, recompute

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if x.shape[-1] != self.in_features:
            raise OffprintError(
                f"{type(self).__name__} takes {self.in_features} features on the last axis, got {tuple(x.shape)}"
            )
        rows = x.reshape(-1, self.in_features)
        parts = rows.split(self.chunk) if self.chunk else (rows,)
        done = [self._some(part) for part in parts]
        y = self.finish(done[0] if len(done) == 1 else torch.cat(done))
        return y.view(*x.shape[:-1], self.out_features)

    def _some(self, rows: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.edges, rows, use_reentrant=False)
        return self.edges(rows)

    def edges(self, x: Tensor) -> Tensor:
        """Rows (N, in) to sums of functions (N, out)."""
        raise TypeError(f"{type(self).__name__} must define edges")

    def finish(self, y: Tensor) -> Tensor:
        """What follows the sums, over all rows (N, out)."""
        return y

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}"


class KANLinear(Layer):
    """B-splines and SiLU: y_j = sum_i b_ji SiLU(x_i) + s_ji sum_c w_jic B_c(x_i) (efficient-kan).

    Outside the extended grid the splines are zero and SiLU alone acts. One row of knots serves all inputs; a file with other knots for
    each input (a grid that was updated) is read as it is.

    Args:
        in_features, out_features: sizes.
        grid_size: intervals over [-1, 1].
        spline_order: 1 or more.
    """

    grid: Tensor

    def __init__(self, in_features: int, out_features: int, grid_size: int = 5, spline_order: int = 3):
        super().__init__(in_features, out_features)
        if grid_size < 1 or spline_order < 1:
            raise OffprintError(f"grid_size={grid_size}, spline_order={spline_order}; both must be 1 or more")
        self.grid_size, self.spline_order = grid_size, spline_order
        exact = knots(grid_size, spline_order)
        self.register_buffer("grid", exact.to(torch.get_default_device(), torch.get_default_dtype()))
        self.base_weight = _kaiming(out_features, in_features)
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + spline_order))
        self.spline_scaler = _kaiming(out_features, in_features)
        places = exact[spline_order:-spline_order]
        noise = (torch.rand(len(places), out_features * in_features, device="cpu") - 0.5) * 0.1 / grid_size
        start = torch.linalg.pinv(bsplines(places, exact, spline_order)) @ noise.to(exact)
        with torch.no_grad():
            self.spline_weight.copy_(start.t().reshape(self.spline_weight.shape))

    def edges(self, x: Tensor) -> Tensor:
        weight = self.spline_weight * self.spline_scaler[..., None]
        basis = bsplines(x, self.grid, self.spline_order)
        return F.linear(F.silu(x), self.base_weight) + F.linear(basis.flatten(1), weight.flatten(1))

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01, eps: float = 0.02) -> None:
        """Move the knots of each input to where its values lie, and fit the splines to what they were.

        Args:
            x: (N, in_features) with N at least ``grid_size + spline_order``.
            margin: beyond the least and largest value.
            eps: share of even steps; the rest follows the quantiles.

        Raises:
            OffprintError: fewer rows than the fit has unknowns, or values that are not finite.
        """
        need = self.grid_size + self.spline_order
        if x.ndim != 2 or x.shape[1] != self.in_features or len(x) < need or not torch.isfinite(x).all():
            raise OffprintError(
                f"update_grid fits {need} numbers for every function and needs as many finite rows of {self.in_features} features, got "
                f"{tuple(x.shape)}; give more samples"
            )
        order, size = self.spline_order, self.grid_size
        before = torch.einsum(
            "nic,oic->ino", bsplines(x, self.grid, order), self.spline_weight * self.spline_scaler[..., None]
        )
        ranked = x.sort(0)[0]
        step = (ranked[-1] - ranked[0] + 2 * margin) / size
        even = torch.arange(size + 1, device=x.device)[:, None] * step + ranked[0] - margin
        inner = eps * even + (1 - eps) * ranked[torch.linspace(0, len(x) - 1, size + 1, device=x.device).long()]
        ends = torch.arange(1, order + 1, device=x.device)[:, None] * step
        self.grid = torch.cat([inner[:1] - ends.flip(0), inner, inner[-1:] + ends]).t().contiguous()
        basis = bsplines(x, self.grid, order).transpose(0, 1)  # (in, N, c)
        found = torch.linalg.pinv(basis, rtol=1e-5) @ before  # the shortest solution where samples leave a choice
        self.spline_weight.copy_(found.permute(2, 0, 1))
        self.spline_scaler.fill_(1)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.grid.ndim == 1:  # a row for every input, as others keep it
            destination[prefix + "grid"] = self.grid.detach().expand(self.in_features, -1).contiguous()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state.get(prefix + "grid")
        if isinstance(given, Tensor) and given.ndim == 2:
            same = bool((given == given[:1]).all())
            state = {**state, prefix + "grid": given[0] if same else given}
            self.grid = self.grid.new_empty(state[prefix + "grid"].shape)
        super()._load_from_state_dict(state, prefix, *rest)


class KANLayer(Layer):
    """GELU and B-splines, LayerNorm over the outputs, one PReLU.

    Args:
        in_features, out_features, grid_size, spline_order: as in :class:`KANLinear`.
    """

    grid: Tensor

    def __init__(self, in_features: int, out_features: int, grid_size: int = 5, spline_order: int = 3):
        super().__init__(in_features, out_features)
        if grid_size < 1 or spline_order < 1:
            raise OffprintError(f"grid_size={grid_size}, spline_order={spline_order}; both must be 1 or more")
        self.spline_order, step = spline_order, 2 / grid_size
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + spline_order))
        for weight in (self.base_weight, self.spline_weight):
            nn.init.kaiming_uniform_(weight, nonlinearity="linear")
        self.layer_norm, self.prelu = nn.LayerNorm(out_features), nn.PReLU()
        ends = (-1 - step * spline_order, 1 + step * spline_order)
        self.register_buffer("grid", torch.linspace(*ends, grid_size + 2 * spline_order + 1), persistent=False)

    def edges(self, x: Tensor) -> Tensor:
        basis = bsplines(x, self.grid, self.spline_order).flatten(1)
        return F.linear(F.gelu(x), self.base_weight) + F.linear(basis, self.spline_weight.flatten(1))

    def finish(self, y: Tensor) -> Tensor:
        return self.prelu(self.layer_norm(y))


class _Centres(nn.Module):
    """Centres of radial functions, under the name that others' files hold them by."""

    grid: Tensor

    def __init__(self, low: float, high: float, count: int):
        super().__init__()
        self.register_buffer("grid", torch.linspace(low, high, count))
        self.width = (high - low) / (count - 1)


def _check_norm(layer: Layer, norm: bool) -> None:
    if norm and layer.in_features == 1:
        raise OffprintError(
            f"{type(layer).__name__} normalises its inputs over the features, and of one feature nothing but 0 is left; "
            "pass norm=False, or take RBFKANLayer"
        )


class FastKANLayer(Layer):
    """Gaussians of the normalised input, and SiLU of the input as it is (fast-kan).

    Args:
        in_features, out_features: sizes.
        num_grids: centres over [-2, 2].
        norm: LayerNorm before the Gaussians; not of a single feature, which it would make 0.
    """

    def __init__(self, in_features: int, out_features: int, num_grids: int = 8, norm: bool = True):
        super().__init__(in_features, out_features)
        _check_norm(self, norm)
        self.layernorm = nn.LayerNorm(in_features) if norm else nn.Identity()
        self.rbf = _Centres(-2, 2, num_grids)
        self.spline_linear = nn.Linear(in_features * num_grids, out_features, bias=False)
        nn.init.trunc_normal_(self.spline_linear.weight, std=0.1)
        self.base_linear = nn.Linear(in_features, out_features)

    def edges(self, x: Tensor) -> Tensor:
        basis = gaussians(self.layernorm(x), self.rbf.grid, self.rbf.width)
        return self.spline_linear(basis.flatten(1)) + self.base_linear(F.silu(x))


class _RBFLinear(_Centres):
    """Centres and weights (in * centres, out)."""

    def __init__(self, in_features: int, out_features: int, count: int):
        super().__init__(-2, 2, count)
        self.spline_weight = nn.Parameter(0.1 * torch.randn(in_features * count, out_features))


class RBFKANLayer(Layer):
    """Gaussians of the input, and SiLU.

    Args:
        in_features, out_features: sizes.
        num_grids: centres over [-2, 2].
    """

    def __init__(self, in_features: int, out_features: int, num_grids: int = 8):
        super().__init__(in_features, out_features)
        self.rbf_linear = _RBFLinear(in_features, out_features, num_grids)
        self.base_linear = nn.Linear(in_features, out_features)

    def edges(self, x: Tensor) -> Tensor:
        basis = gaussians(x, self.rbf_linear.grid, self.rbf_linear.width)
        return basis.flatten(1) @ self.rbf_linear.spline_weight + self.base_linear(F.silu(x))


class _Slower(torch.autograd.Function):
    """The input as it is, its gradient times a factor."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0], None


class FasterKANLayer(Layer):
    """1 - tanh(x - c)^2 of the normalised input (faster-kan).

    Args:
        in_features, out_features: sizes.
        num_grids: centres over [-1.2, 0.2].
        norm: LayerNorm before the functions; not of a single feature.
        half_gradient: the gradient of the original's own backward pass, which is the true one times ``rbf.inv_denominator`` (0.5).
    """

    def __init__(self, in_features: int, out_features: int, num_grids: int = 8, norm: bool = True, half_gradient: bool = False):  # fmt: skip
        super().__init__(in_features, out_features)
        _check_norm(self, norm)
        self.layernorm = nn.LayerNorm(in_features) if norm else nn.Identity()
        self.rbf = _Centres(-1.2, 0.2, num_grids)
        self.rbf.register_buffer("inv_denominator", torch.tensor(0.5))
        self.spline_linear = nn.Linear(in_features * num_grids, out_features, bias=False)
        nn.init.xavier_uniform_(self.spline_linear.weight)
        self.half_gradient = half_gradient

    def edges(self, x: Tensor) -> Tensor:
        x = self.layernorm(x)
        if self.half_gradient:
            x = _Slower.apply(x, self.rbf.inv_denominator)
        return self.spline_linear((1 - torch.tanh(x[..., None] - self.rbf.grid) ** 2).flatten(1))


class ChebyKANLayer(Layer):
    """Chebyshev polynomials of the input clamped to [-1, 1]; coefficients (in, out, degree + 1).

    Args:
        in_features, out_features: sizes.
        degree: of the polynomials.
    """

    def __init__(self, in_features: int, out_features: int, degree: int = 4):
        super().__init__(in_features, out_features)
        _check_degree(degree)
        self.degree = degree
        std = 1 / (in_features * (degree + 1))
        self.cheby_coeffs = nn.Parameter(std * torch.randn(in_features, out_features, degree + 1))

    def edges(self, x: Tensor) -> Tensor:
        return chebyshev(x, self.degree).flatten(1) @ self.cheby_coeffs.transpose(1, 2).flatten(0, 1)


def _check_degree(degree: int) -> None:
    if degree < 0:
        raise OffprintError(f"degree={degree}; a polynomial's degree is 0 or more")


class GRAMLayer(Layer):
    """Gram polynomials of tanh(x), with learnt recurrence, through SiLU; SiLU of the input; LayerNorm and SiLU over the outputs.

    Args:
        in_features, out_features: sizes.
        degree: of the polynomials.
    """

    def __init__(self, in_features: int, out_features: int, degree: int = 3):
        super().__init__(in_features, out_features)
        _check_degree(degree)
        self.degree = degree
        self.beta_weights = nn.Parameter(torch.randn(degree + 1) / (in_features * (degree + 1)))
        self.grams_basis_weights = _xavier(in_features, out_features, degree + 1)
        self.base_weights = _xavier(out_features, in_features)
        self.norm = nn.LayerNorm(out_features)

    def beta(self, n: int, m: int) -> Tensor:
        """Factor of the recurrence; the order of its operators is that of the authors' code."""
        return ((m + n) * (m - n) * n**2) / (m**2 / (4.0 * n**2 - 1.0)) * self.beta_weights[n]

    def edges(self, x: Tensor) -> Tensor:
        t = torch.tanh(x)
        rows = [torch.ones_like(t), t][: self.degree + 1]
        for i in range(2, self.degree + 1):
            rows.append(t * rows[-1] - self.beta(i - 1, i) * rows[-2])
        basis = F.silu(torch.stack(rows, -1)).flatten(1)
        weight = self.grams_basis_weights.transpose(1, 2).flatten(0, 1)
        return basis @ weight + F.linear(F.silu(x), self.base_weights)

    def finish(self, y: Tensor) -> Tensor:
        return F.silu(self.norm(y))


class WavKANLayer(Layer):
    """A wavelet with a place and a scale of its own for every pair, and SiLU; BatchNorm over the outputs.

    Args:
        in_features, out_features: sizes.
        wavelet_type: of :data:`WAVELETS`.
    """

    def __init__(self, in_features: int, out_features: int, wavelet_type: str = "mexican_hat"):
        super().__init__(in_features, out_features)
        if wavelet_type not in WAVELETS:
            raise unknown("wavelet", wavelet_type, WAVELETS)
        self.wavelet_type = wavelet_type
        self.scale = nn.Parameter(torch.ones(out_features, in_features))
        self.translation = nn.Parameter(torch.zeros(out_features, in_features))
        self.weight1, self.wavelet_weights = _kaiming(out_features, in_features), _kaiming(out_features, in_features)
        self.bn = nn.BatchNorm1d(out_features)

    def edges(self, x: Tensor) -> Tensor:
        z = wavelet((x[:, None] - self.translation) / self.scale, self.wavelet_type)
        weight = self.wavelet_weights
        if self.wavelet_type == "shannon":
            weight = weight * torch.hamming_window(self.in_features, periodic=False, dtype=x.dtype, device=x.device)
        return (z * weight).sum(-1) + F.linear(F.silu(x), self.weight1)

    def finish(self, y: Tensor) -> Tensor:
        if self.training and len(y) < 2:
            raise OffprintError(
                "WavKANLayer normalises over the rows and cannot train on one; give two or more, or call eval()"
            )
        return self.bn(y)


class JacobiKANLayer(Layer):
    """Jacobi polynomials of tanh(x), and SiLU; LayerNorm and SiLU over the outputs.

    Args:
        in_features, out_features: sizes.
        degree: of the polynomials.
        a, b: their exponents.
    """

    def __init__(self, in_features: int, out_features: int, degree: int = 4, a: float = 1.0, b: float = 1.0):
        super().__init__(in_features, out_features)
        _check_degree(degree)
        self.degree, self.a, self.b = degree, a, b
        self.base_weights = _xavier(out_features, in_features)
        std = 1 / (in_features * (degree + 1))
        self.jacobi_coeffs = nn.Parameter(std * torch.randn(in_features, out_features, degree + 1))
        self.norm = nn.LayerNorm(out_features)

    def edges(self, x: Tensor) -> Tensor:
        basis = jacobi(torch.tanh(x), self.degree, self.a, self.b).flatten(1)
        return basis @ self.jacobi_coeffs.transpose(1, 2).flatten(0, 1) + F.linear(F.silu(x), self.base_weights)

    def finish(self, y: Tensor) -> Tensor:
        return F.silu(self.norm(y))


class ReLUKANLayer(Layer):
    """Bumps (ReLU(x - low) ReLU(high - x) r)^2 with learnt ends, and one weight for each.

    The weight is that of a convolution as large as the bumps, (out, 1, g + k, in), over bumps that lie as (in, g + k): the authors'
    code reshapes and does not transpose, so that a weight's last two axes do not say which input and bump it is for.

    Args:
        in_features: inputs.
        g, k: g + k bumps, each (k + 1) / g wide.
        out_features: outputs.
    """

    def __init__(self, in_features: int, g: int = 5, k: int = 3, out_features: int = 1):
        super().__init__(in_features, out_features)
        if g < 1 or k < 0:
            raise OffprintError(f"g={g}, k={k}; g must be 1 or more, and k 0 or more")
        self.r = 4 * g * g / (k + 1) ** 2
        low = (torch.arange(-k, g) / g).expand(in_features, -1)
        self.phase_low, self.phase_height = nn.Parameter(low.clone()), nn.Parameter(low + (k + 1) / g)
        self.equal_size_conv = nn.Conv2d(1, out_features, (g + k, in_features))

    def edges(self, x: Tensor) -> Tensor:
        x = x[..., None]
        bumps = (F.relu(x - self.phase_low) * F.relu(self.phase_height - x) * self.r) ** 2
        return F.linear(bumps.flatten(1), self.equal_size_conv.weight.flatten(1), self.equal_size_conv.bias)


# -- layers for maps -----------------------------------------------------------------------------------------------------
class PatchLayer(nn.Module):
    """A dense layer over the patches of a map, in the place of a convolution.

    Args:
        in_channels, out_channels: of the map.
        kernel_size, stride, padding: whole numbers.
        kanlayer: takes in_channels * kernel_size^2 numbers and gives out_channels.
    """

    dialects: ClassVar[tuple] = ()
    optional_state = Layer.optional_state

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, kanlayer: nn.Module):  # fmt: skip
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.kanlayer = kanlayer

    def set_chunks(self, rows: int, recompute: bool = False) -> None:
        """As :meth:`Layer.set_chunks`; a row is a place of the output."""
        self.kanlayer.set_chunks(rows, recompute)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W') with H' = (H + 2 padding - kernel_size) // stride + 1."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise OffprintError(
                f"{type(self).__name__} takes maps (B, {self.in_channels}, H, W), got a tensor of {tuple(x.shape)}"
            )
        sides = [(side + 2 * self.padding - self.kernel_size) // self.stride + 1 for side in x.shape[-2:]]
        if min(sides) < 1:
            raise OffprintError(
                f"{type(self).__name__}: a map of {tuple(x.shape[-2:])} with padding {self.padding} is smaller than the kernel of "
                f"{self.kernel_size}"
            )
        patches = F.unfold(x, self.kernel_size, stride=self.stride, padding=self.padding).transpose(1, 2)
        return self.kanlayer(patches).transpose(1, 2).unflatten(2, sides)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, {self.kernel_size}, stride={self.stride}, padding={self.padding}"
        )


def check_patches(in_channels: int, kernel_size: int, stride: int, padding: int) -> int:
    """Numbers of a patch.

    Raises:
        OffprintError: what should be a whole number is none, or too small.
    """
    for name, value, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0)):
        if not isinstance(value, int) or value < least:
            raise OffprintError(f"{name}={value!r}; patches take a whole number from {least}, the same for both axes")
    return in_channels * kernel_size**2


class _KANConv(PatchLayer):
    """The map's form of a family; further arguments are its own.

    Args:
        in_channels, out_channels: of the map.
        kernel_size, stride, padding: whole numbers.
        **options: of the dense layer.
    """

    layer: ClassVar[type[Layer]]

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, **options: Any):  # fmt: skip
        size = check_patches(in_channels, kernel_size, stride, padding)
        made = self.layer(in_features=size, out_features=out_channels, **options)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, made)


class KANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`KANLinear`"), KANLinear


class FastKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`FastKANLayer`"), FastKANLayer


class RBFKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`RBFKANLayer`"), RBFKANLayer


class FasterKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`FasterKANLayer`"), FasterKANLayer


class ChebyKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`ChebyKANLayer`"), ChebyKANLayer


class GRAMKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`GRAMLayer`"), GRAMLayer


class WavKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`WavKANLayer`"), WavKANLayer


class JacobiKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`JacobiKANLayer`"), JacobiKANLayer


class ReLUKANConv2d(_KANConv):
    __doc__, layer = (_KANConv.__doc__ or "").replace("a family", ":class:`ReLUKANLayer`"), ReLUKANLayer


DENSE: dict[str, type[Layer]] = {
    "bspline": KANLinear, "bspline_norm": KANLayer, "fast": FastKANLayer, "rbf": RBFKANLayer, "rswaf": FasterKANLayer,
    "cheby": ChebyKANLayer, "gram": GRAMLayer, "wavelet": WavKANLayer, "jacobi": JacobiKANLayer, "relu": ReLUKANLayer,
}  # fmt: skip
PATCHES: dict[str, type[_KANConv]] = {
    "bspline": KANConv2d, "fast": FastKANConv2d, "rbf": RBFKANConv2d, "rswaf": FasterKANConv2d, "cheby": ChebyKANConv2d,
    "gram": GRAMKANConv2d, "wavelet": WavKANConv2d, "jacobi": JacobiKANConv2d, "relu": ReLUKANConv2d,
}  # fmt: skip
