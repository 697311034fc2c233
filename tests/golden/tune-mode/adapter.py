"""How tune-mode's records are computed through the public interface: single blocks with their gradients, and whole networks."""

import re
from pathlib import Path

import golden
import torch
from reading import NUMBER, array, precision, said
from torch import nn

from offprint.methods.training.tune_mode import TuneConvBN, fold, fuse_report

HERE = Path(__file__).parent


def _arguments(text):
    """``"3,4,(3,1),stride 2,no bias"`` → ([3, 4, (3, 1)], {"stride": 2, "bias": False}); ``name=value`` is read too."""
    plain, named = [], {}
    for item in re.findall(r"(?:[^,(]|\([^)]*\))+", text):
        name, value = re.fullmatch(r"\s*([a-z_]+ ?)?=?\s*(.*)", item).groups()
        if name and name.strip() in ("no", "with"):
            named["bias"] = name.strip() == "with"
        elif value in ("True", "False"):
            named[name.strip()] = value == "True"
        else:
            numbers = [float(n) if re.search(r"[.e]", n) else int(n) for n in re.findall(NUMBER, value)]
            made = tuple(numbers) if "(" in value else numbers[0]
            plain.append(made) if not name else named.__setitem__(name.strip(), made)
    return plain, named


def block(record):
    given, expected = record["inputs"], record["expected"]
    modules = []
    for kind, text in re.findall(r"(\w+)\(((?:[^()]|\([^()]*\))*)\)", record["notes"].partition(" in eval mode")[0]):
        plain, named = _arguments(text)
        if "Norm" in kind and named.setdefault("eps", given["eps"]) != given["eps"]:
            raise ValueError("the notes and the inputs say different eps")
        modules.append(getattr(nn, kind)(*plain, **named))
    gain, tolerance = said(record, "golden.tensor(name, shape, #)"), said(record, "Compare to # of")
    made = TuneConvBN(*modules).to(precision(record)).eval()
    state = {
        name: torch.from_numpy(golden.tensor(name, shape, gain)).to(precision(record))
        for name, shape in given["state"].items()
    }
    left = made.load_state_dict(state, strict=False)
    if left.unexpected_keys or any("num_batches" not in key for key in left.missing_keys):
        raise ValueError(f"the record's names do not fit: {left}")
    x = array(record, given["x"]).requires_grad_()
    output = made(x)
    output.backward(array(record, given["grad_output"]))
    weight, bias = fold(made.conv, made.bn)
    found = {"output": output, "grad_input": x.grad, "folded_weight": weight, "folded_bias": bias}
    for name, parameter in made.named_parameters():
        found[f"grad_{name.replace('.', '_')}"] = parameter.grad
    for name, value in expected.items():
        yield name, found[name], value, tolerance


def network(model, record, *inputs):
    """The output, where as many norms are folded as the record says."""
    report, notes = fuse_report(model), record["notes"]
    fused, whole = len(report.fused), len(report.fused) + len(report.left)
    (call,) = record["api"]["calls"]
    if [fused, whole] != [int(n) for n in re.search(r"(\d+) of (\d+) BatchNorms fused", call).groups()]:
        raise ValueError(f"{fused} of {whole} norms were folded")
    if "BatchNorms fused" in notes:
        agree = said(record, "# of # BatchNorms fused") == [fused, whole]
    else:
        agree = said(record, "Of # BatchNorms # follow a convolution") == [whole, fused]
        after_first = sum(name.endswith("norm2") for _, name in report.fused)
        agree = agree and said(record, "(# stem + # conv1-norm2)") == [fused - after_first, after_first]
    if not agree:
        raise ValueError("the notes say other numbers of norms")
    return model(*inputs)


class _Calls(dict):
    """The call of every network, whatever numbers of norms it names."""

    def get(self, call, default=None):
        return network if call.startswith("custom: fill that library's own network in eval mode") else default


CALLS = _Calls((call, network) for path in HERE.glob("*.json") for call in golden.load(path)["api"].get("calls", ()))
CASES = {path.stem: block for path in HERE.glob("*.json") if "case" in golden.load(path)}
