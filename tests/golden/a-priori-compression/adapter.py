"""How a-priori-compression's cases are computed through the public interface."""

import re

import numpy as np
import torch
from reading import array, said

from offprint.methods.training.a_priori_compression import OneWayConv2d, OneWayConv3d, solve_wave


def _each(record, word):
    """The number, or the numbers in brackets, that follow a word of the notes."""
    found = re.search(rf"{word} (\((?P<many>[\d, ]+)\)|(?P<one>\d+))", record["notes"])
    return tuple(int(n) for n in found["many"].split(",")) if found["many"] else int(found["one"])


def one_way(record):
    given, expected = record["inputs"], record["expected"]
    v = {name: array(record, spec).double() for name, spec in given.items()}
    factors = [v[name] for name in sorted(n for n in v if n.startswith("factor_"))]
    out, into, rank = factors[0].shape[:3]
    kind = OneWayConv2d if len(factors) == 2 else OneWayConv3d
    for sequential in (False, True):
        layer = kind(into, out, [f.shape[3] for f in factors], rank, stride=_each(record, "stride"),
                     padding=_each(record, "padding"), sequential=sequential).double()  # fmt: skip
        with torch.no_grad():
            for own, factor in zip(layer.filters(), factors, strict=True):
                own.copy_(factor)
            layer.bias.copy_(v["bias"])
        got = layer(v["x"])
        got.backward(v["grad_output"])
        yield "output", got.detach(), expected["output"], 1e-6
        for axis, own in enumerate(layer.filters()):
            yield f"grad_factor_{axis}", own.grad, expected[f"grad_factor_{axis}"], 1e-6
        yield "kernel_of_first_pair", layer.kernel().detach()[0, 0], expected["kernel_of_first_pair"], 1e-6
        yield "parameters", sum(p.numel() for p in layer.parameters()), expected["parameters"], 0
        yield "dense_parameters", layer.kernel().numel() + out, expected["dense_parameters"], 0


def layouts(record):
    v = {name: array(record, spec).double() for name, spec in record["inputs"].items()}
    divisor = said(record, "Zero padding k//#")
    chain = [v[n] for n in "abc"]
    sizes = [w.shape[-1] for w in chain]
    layer = OneWayConv3d(chain[0].shape[1], chain[-1].shape[0], sizes, layout="chain", mid=chain[0].shape[0],
                         padding=[k // divisor for k in sizes], bias=False).double()  # fmt: skip
    with torch.no_grad():
        for own, weight in zip(layer.filters(), chain, strict=True):
            own.copy_(weight)
        yield "chain", layer(v["x"]), record["expected"]["chain"], 1e-6
    filters = [v[f"f{i}"] for i in (1, 2, 3)]
    sizes = [w.shape[-1] for w in filters]
    layer = OneWayConv3d(v["u"].shape[1], v["v"].shape[0], sizes, v["u"].shape[0], "cp",
                         padding=[k // divisor for k in sizes], bias=False).double()  # fmt: skip
    with torch.no_grad():
        for own, weight in zip(
            (layer.weight_in, *layer.filters(), layer.weight_out), (v["u"], *filters, v["v"]), strict=True
        ):
            own.copy_(weight)
        yield "cp", layer(v["x"]), record["expected"]["cp"], 1e-6


def wave_fe(record):
    given, expected = record["inputs"], record["expected"]
    left, down, spread = said(record, "u0 = exp(-((x-#Lx)^2+(y-#Ly)^2)/#)")
    start = lambda x, y: np.exp(-((x - left * given["Lx"]) ** 2 + (y - down * given["Ly"]) ** 2) / spread)  # noqa: E731
    top, bottom = said(record, "Newmark beta #/#, gamma")
    solve = lambda lumped: solve_wave(  # noqa: E731
        given["nx"], given["ny"], given["Lx"], given["Ly"], given["c"], given["dt"], given["steps"], start,
        beta=top / bottom, lumped=lumped,
    )  # fmt: skip
    wave = solve(False)
    for step, field in expected["displacement_at_steps"].items():
        yield f"step {step}", wave.displacement[int(step)], field, 1e-6
    yield "lumped", solve(True).displacement[-1], expected["displacement_lumped_last"], 1e-6
    yield "energy", [wave.energy[0], wave.energy[-1]], expected["energy_first_last"], 1e-6
    middle = wave.stiffness.shape[0] // 2
    yield "stiffness", wave.stiffness.diagonal()[middle], expected["stiffness_diagonal_interior"], 1e-6
    yield "mass", wave.mass.diagonal()[middle], expected["mass_diagonal_interior"], 1e-6


CASES = {"one_way_2d": one_way, "one_way_3d": one_way, "layouts_3d": layouts, "wave_fe": wave_fe}
WORDS = {
    "layouts_3d": {
        "one-way convolutions (k1,1,1) then (1,k2,1) then (1,1,k3)": "the definition of the layout",
        "b (out,mid,k2), c (out,out,k3)": "names of sizes; the arrays have them",
        "weights a (mid,in,k1)": "names of sizes; the arrays have them",
        "1x1x1 to rank channels": "the definition of the layout",
        "depthwise one-way convolutions (f1,f2,f3), 1x1x1 to out": "the definition of the layout",
    },
    "wave_fe": {
        "grid of [0,Lx]x[0,Ly]": "the rectangle, which begins at the origin",
        "u_tt = c^2 (u_xx+u_yy)": "the equation",
        "u = 0 on the boundary": "the boundary condition of solve_wave",
        "-((x-0.4Lx)^2+(y-0.55Ly)^2)": "squares; the centre is read",
        "set to 0 on the boundary": "the boundary condition of solve_wave",
        "initial velocity 0": "how solve_wave begins",
        "gamma 1/2": "of the scheme, which the library holds",
        "includes c^2": "the equation",
        "(v M v + u c^2 K u)/2": "the definition of the energy",
    },
}
