r"""Fields of the two-dimensional wave equation, solved by finite elements, and fields from files.

.. math:: u_{tt} = c^2 (u_{xx} + u_{yy}) \;\text{in}\; [0, L_x] \times [0, L_y], \qquad u \;\text{given on the boundary},

with bilinear quadrilaterals (assembled by scikit-fem) and Newmark's scheme. With beta = 1/4 it is stable at any time step and keeps the
energy; with beta = 0 and lumped mass it is explicit, and stable below a limit that is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offprint.errors import DataError, OffprintError, need
from offprint.files import atomic_write

GAMMA = 0.5


@dataclass(frozen=True)
class Wave:
    """A solved wave.

    Attributes:
        displacement: (steps + 1, nx + 1, ny + 1), the first the initial one.
        energy: (steps + 1,), (v M v + u c^2 K u) / 2 over the nodes inside.
        stiffness, mass: sparse matrices of the nodes inside; the stiffness includes c^2.
    """

    displacement: np.ndarray
    energy: np.ndarray
    stiffness: Any
    mass: Any


def pulse(
    x: np.ndarray, y: np.ndarray, centre: tuple[float, float], width: float, amplitude: float = 1.0
) -> np.ndarray:
    """A Gaussian pulse: amplitude * exp(-distance^2 / width), ``width`` a squared length."""
    return amplitude * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / width)


class WaveSolver:
    """A grid, its matrices and their factors, for any number of waves on it.

    Args:
        nx, ny: elements a side.
        lx, ly: sides of the rectangle.
        c: speed of the waves.
        dt: time step.
        beta: of Newmark's scheme: 0.25 (implicit, stable), or 0 with ``lumped`` (explicit).
        lumped: row sums of the mass matrix in its place, taken before the boundary is removed.

    Raises:
        OffprintError: a grid without inner nodes, beta = 0 without lumped mass, or an explicit time step above the limit of the mesh.
        MissingExtra: scikit-fem is not installed.
    """

    def __init__(
        self, nx: int, ny: int, lx: float = 1.0, ly: float = 1.0, c: float = 1.0, dt: float = 0.04, beta: float = 0.25,
        lumped: bool = False,
    ):  # fmt: skip
        skfem = need("skfem", "fields", "solving the wave equation")
        import scipy.sparse as sp
        from scipy.sparse.linalg import splu
        from skfem.models.poisson import laplace, mass

        if nx < 2 or ny < 2:
            raise OffprintError(f"a grid of {nx} x {ny} elements has no nodes inside; give 2 or more a side")
        for name, value in (("lx", lx), ("ly", ly), ("c", c), ("dt", dt)):
            if not (math.isfinite(value) and value > 0):
                raise OffprintError(f"{name}={value}; it must be a finite number above 0")
        if beta < 0 or (beta == 0 and not lumped):
            raise OffprintError(f"beta={beta} with lumped={lumped}; the explicit scheme (beta 0) needs the lumped mass")
        self.nx, self.ny, self.lx, self.ly, self.c, self.dt, self.beta = nx, ny, lx, ly, c, dt, beta
        mesh = skfem.MeshQuad.init_tensor(np.linspace(0, lx, nx + 1), np.linspace(0, ly, ny + 1))
        basis = skfem.Basis(mesh, skfem.ElementQuad1())
        row, column = (np.rint(mesh.p[i] / side * n).astype(int) for i, side, n in ((0, lx, nx), (1, ly, ny)))
        order = np.empty(mesh.p.shape[1], int)
        order[row * (ny + 1) + column] = np.arange(len(order))  # our node → theirs
        k, m = ((w * form.assemble(basis)).tocsr()[order][:, order] for form, w in ((laplace, c**2), (mass, 1.0)))
        if lumped:
            m = sp.diags(np.asarray(m.sum(1)).ravel()).tocsr()
        border = np.ones((nx + 1, ny + 1), bool)
        border[1:-1, 1:-1] = False
        self.inside, self.border = np.flatnonzero(~border), np.flatnonzero(border)
        self.stiffness, self.mass = (a[self.inside][:, self.inside].tocsc() for a in (k, m))
        self._k_border, self._m_border = (a[self.inside][:, self.border].tocsc() for a in (k, m))
        if beta < 0.25:
            self._stable()
        self._first = splu(self.mass)
        self._step = splu((self.mass + beta * dt**2 * self.stiffness).tocsc())
        self.x, self.y = np.meshgrid(np.linspace(0, lx, nx + 1), np.linspace(0, ly, ny + 1), indexing="ij")

    def limit(self) -> float:
        """The largest stable time step: 2 / sqrt((1 - 4 beta) * largest eigenvalue); infinite from beta = 1/4 on."""
        if self.beta >= 0.25:
            return math.inf
        from scipy.sparse.linalg import eigsh

        highest = float(eigsh(self.stiffness, 1, self.mass, which="LM", return_eigenvectors=False)[0])
        return 2 / math.sqrt((1 - 4 * self.beta) * highest)

    def _stable(self) -> None:
        limit = self.limit()
        if self.dt > limit:
            cells = f"{self.lx / self.nx:.3g} x {self.ly / self.ny:.3g}"
            raise OffprintError(
                f"dt={self.dt} is above the limit {limit:.4g} of elements of {cells} at c={self.c}: the explicit scheme would blow up; "
                "give a smaller dt, a coarser mesh, or beta=0.25"
            )

    def check_pulse(self, width: float) -> None:
        """Refuse a pulse that the mesh cannot carry: its radius, the root of ``width``, under one and a half elements."""
        cell, radius = max(self.lx / self.nx, self.ly / self.ny), math.sqrt(width)
        if radius < 1.5 * cell:
            least = math.ceil(1.5 * max(self.lx, self.ly) / radius)
            raise OffprintError(
                f"a pulse of radius {radius:.3g} on elements of {cell:.3g}: the mesh is too coarse for it, its waves would be those of "
                f"the grid; give {least} or more elements a side, or a pulse of width {(1.5 * cell) ** 2:.3g} or more"
            )

    def solve(
        self,
        initial: np.ndarray,
        steps: int,
        velocity: np.ndarray | None = None,
        boundary: np.ndarray | None = None,
    ) -> Wave:
        """Solve ``steps`` steps.

        Args:
            initial: (nx + 1, ny + 1), displacement at the start; on the boundary what ``boundary`` says, or 0.
            steps: time steps.
            velocity: (nx + 1, ny + 1) at the start; default 0.
            boundary: (steps + 1, nx + 1, ny + 1), of which the border is prescribed (the sub-model of a larger field); default 0.

        Raises:
            OffprintError: arrays of another shape.
        """
        shape = (self.nx + 1, self.ny + 1)
        for name, array, wanted in (
            ("initial", initial, shape), ("velocity", velocity, shape), ("boundary", boundary, (steps + 1, *shape)),
        ):  # fmt: skip
            if array is not None and np.shape(array) != wanted:
                raise OffprintError(f"{name} has the shape {np.shape(array)}; expected {wanted}")
        dt, beta, inside, border = self.dt, self.beta, self.inside, self.border
        u = np.asarray(initial, np.float64).ravel()[inside]
        v = np.zeros_like(u) if velocity is None else np.asarray(velocity, np.float64).ravel()[inside]
        edge = (
            np.zeros((steps + 1, len(border))) if boundary is None else np.reshape(boundary, (steps + 1, -1))[:, border]
        )
        edge_a = np.zeros_like(edge)
        if boundary is not None and steps > 1:  # second differences, one-sided at the ends
            edge_a[1:-1] = (edge[2:] - 2 * edge[1:-1] + edge[:-2]) / dt**2
            edge_a[0], edge_a[-1] = edge_a[1], edge_a[-2]
        pull = lambda n: -self._k_border @ edge[n] - self._m_border @ edge_a[n]  # noqa: E731
        a = self._first.solve(pull(0) - self.stiffness @ u)
        fields, energy = np.zeros((steps + 1, shape[0] * shape[1])), np.zeros(steps + 1)
        fields[:, border] = edge
        for n in range(steps + 1):
            if n:
                u = u + dt * v + dt**2 * (0.5 - beta) * a
                v = v + dt * (1 - GAMMA) * a
                a = self._step.solve(pull(n) - self.stiffness @ u)
                u, v = u + beta * dt**2 * a, v + GAMMA * dt * a
            fields[n, inside] = u
            energy[n] = 0.5 * (v @ (self.mass @ v) + u @ (self.stiffness @ u))
        return Wave(fields.reshape(steps + 1, *shape), energy, self.stiffness, self.mass)


def solve_wave(
    nx: int,
    ny: int,
    lx: float = 1.0,
    ly: float = 1.0,
    c: float = 1.0,
    dt: float = 0.04,
    steps: int = 20,
    initial: Callable[[np.ndarray, np.ndarray], np.ndarray] | np.ndarray | None = None,
    **options: Any,
) -> Wave:
    """One wave that is 0 on the boundary; arguments as of :class:`WaveSolver` and its ``solve``.

    Args:
        initial: displacement at the start, an array or a function of (x, y); default a pulse in the middle.
    """
    solver = WaveSolver(nx, ny, lx, ly, c, dt, **options)
    start = pulse(solver.x, solver.y, (lx / 2, ly / 2), 0.05 * lx * ly) if initial is None else initial
    start = np.array(start(solver.x, solver.y) if callable(start) else start, np.float64)
    if start.shape == solver.x.shape:
        start[[0, -1]] = 0
        start[:, [0, -1]] = 0
    return solver.solve(start, steps)


@dataclass(frozen=True)
class PulseLaw:
    """From what pulses are drawn, uniformly: centre (shares of the sides), squared width, amplitude, speed."""

    centre: tuple[float, float] = (0.3, 0.7)
    width: tuple[float, float] = (0.006, 0.02)
    amplitude: tuple[float, float] = (0.5, 1.5)
    speed: tuple[float, float] = (1.0, 1.0)


def wave_fields(
    count: int,
    *,
    seed: int = 0,
    elements: int = 20,
    dt: float = 0.04,
    steps: int = 17,
    zone: int = 16,
    law: PulseLaw = PulseLaw(),
    progress: Callable[[], Any] | None = None,
) -> np.ndarray:
    """Waves of random pulses on the unit square, seen in a zone in its middle.

    Args:
        count: pulses.
        seed: of the draws: other seeds give other pulses of the same law.
        elements: a side.
        dt, steps: of time.
        zone: nodes a side of what is kept.
        law: what pulses are drawn from.
        progress: called after each.

    Returns:
        (count, 1, zone, zone, steps + 1) in double.
    """
    if not 2 <= zone <= elements + 1:
        raise OffprintError(f"zone={zone}; the square has {elements + 1} nodes a side")
    draw = np.random.default_rng(seed)
    solver: WaveSolver | None = None
    first = (elements + 1 - zone) // 2
    kept = slice(first, first + zone)
    out = np.empty((count, 1, zone, zone, steps + 1))
    for i in range(count):
        x, y = draw.uniform(*law.centre, 2)
        width, amplitude, speed = (float(draw.uniform(*ends)) for ends in (law.width, law.amplitude, law.speed))
        if solver is None or solver.c != speed:
            solver = WaveSolver(elements, elements, c=speed, dt=dt)
        solver.check_pulse(width)
        start = pulse(solver.x, solver.y, (x, y), width, amplitude)
        start[[0, -1]] = 0
        start[:, [0, -1]] = 0
        out[i, 0] = solver.solve(start, steps).displacement[:, kept, kept].transpose(1, 2, 0)
        if progress:
            progress()
    return out


def save_fields(path: str | Path, fields: np.ndarray) -> Path:
    """Write fields (samples, 1, x, y, t) as ``.npy``, whole or not at all."""
    import io

    stream = io.BytesIO()
    np.save(stream, np.asarray(fields), allow_pickle=False)
    return atomic_write(Path(path), stream.getvalue())


def read_fields(path: str | Path, name: str = "") -> np.ndarray:
    """Fields that a solver saved: ``.npy``, or one array of an ``.npz``, as (samples, 1, x, y, t) in double.

    Args:
        path: the file.
        name: of the array in an ``.npz``; default its only one.

    Raises:
        DataError: no such file, another number of axes (the file's shape is told), or values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file of fields at {str(path)!r}")
    try:
        held = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read as an array: {error}") from error
    if not isinstance(held, np.ndarray):
        names = list(held)
        if name not in names and len(names) != 1:
            raise DataError(f"{path} holds the arrays {', '.join(names)}; say which one")
        held = held[name or names[0]]
    if held.ndim == 4:
        held = held[:, None]
    if held.ndim != 5 or held.shape[1] != 1:
        raise DataError(f"{path} has the shape {held.shape}; expected (samples, x, y, t), or (samples, 1, x, y, t)")
    if not np.isfinite(held).all():
        raise DataError(f"{path} holds {int((~np.isfinite(held)).sum())} values that are not finite")
    return held.astype(np.float64)
