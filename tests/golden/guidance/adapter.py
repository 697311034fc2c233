"""How guidance's records are computed through the public interface: similarities, the pairing of layers, the whole loss, its networks."""

import re
from collections import OrderedDict
from pathlib import Path

import golden
import torch
import torch.nn.functional as F
from reading import array, precision, said
from torch import nn

from offprint.methods.training.guidance import Guidance, kept_pairs, linear_cka, map_layers, rsa

HERE = Path(__file__).parent


def similarity(record):
    given, expected = record["inputs"], record["expected"]
    x = array(record, given["X"])
    y, share = array(record, given["Y"]), said(record, "plus # times X")
    width = min(x.shape[1], y.shape[1])
    y = y + share * F.pad(x[:, :width], (0, y.shape[1] - width))
    for name, function in (("cka", linear_cka), ("rsa", rsa)):
        own = x.clone().requires_grad_()
        found = function(own, y)
        (1 - found).backward()
        yield name, found, expected[name], 2e-5
        yield f"gradient of {name}", own.grad, expected[f"grad_one_minus_{name}"], 1e-4


def layer_mapping(record):
    for g, t in record["inputs"]["pairs"]:
        rows = record["expected"].get(f"{g}->{t}")
        if rows is None:
            raise ValueError(f"the record expects nothing of {g} and {t} layers")
        yield f"{g}->{t}", map_layers(g, t), rows["target_of_each_guide_layer"], 0
        kept = {str(a): b for a, b in kept_pairs(g, t).items()}
        yield f"{g}->{t} kept", kept, rows["guide_layer_kept_per_target"], 0


class _Flat(nn.Module):
    def __init__(self, inputs, depth, width, classes):
        super().__init__()
        widths = [inputs, *[width] * depth]
        self.layers = nn.Sequential(
            *(m for a, b in zip(widths, widths[1:], strict=False) for m in (nn.Linear(a, b), nn.ReLU()))
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.layers(x.flatten(1)))


class _Maps(nn.Module):
    def __init__(self, channels, depth, width, kernel, padding, size, classes):
        super().__init__()
        widths = [channels, *[width] * depth]
        self.convs = nn.Sequential(
            *(
                m
                for a, b in zip(widths, widths[1:], strict=False)
                for m in (nn.Conv2d(a, b, kernel, padding=padding), nn.ReLU())
            )
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(size), nn.Linear(width * size**2, classes)

    def forward(self, x):
        return self.fc(self.pool(self.convs(x)).flatten(1))


def guidance_loss(record):
    given, expected = record["inputs"], record["expected"]
    x, labels = array(record, given["x"]), torch.tensor(given["labels"])
    depth, width, into, classes = said(record, "target: flatten, # x (Linear(.,#), ReLU), Linear(#,#)")
    n, maps, kernel, padding, size, flat, guessed = said(
        record, "guide: # x (Conv2d(.,#,#,padding #), ReLU), AdaptiveAvgPool2d(#), Linear(#,#)"
    )
    if into != width or flat != maps * size**2:
        raise ValueError("the widths in the notes do not fit each other")
    target = _Flat(x[0].numel(), depth, width, classes)
    guide = _Maps(x.shape[1], n, maps, kernel, padding, size, guessed)
    gain = said(record, "shape, #) and golden.tensor")
    names = {"target": re.search(r"names layers\.0, layers\.2, \.\.\., head", record["notes"]), "guide": True}
    for prefix, net in (("target", target), ("guide", guide)):
        state = OrderedDict(
            (name, torch.from_numpy(golden.tensor(f"{prefix}.{name}", list(p.shape), gain)).to(precision(record)))
            for name, p in net.named_parameters()
        )
        net.to(precision(record)).load_state_dict(state)
    if names["target"] is None:
        raise ValueError("the notes name the target's parameters otherwise")
    guided = Guidance(target, guide, said(record, "alpha #."))
    logits = target(x)
    yield "target layers", list(guided.of_target.found)[:-1], expected["target_layers"], 0
    term, task = guided(x), F.cross_entropy(logits, labels)
    guide(x)
    yield "guide layers", list(guided.of_guide.found)[:-1], expected["guide_layers"], 0
    for name, value in expected["one_minus_cka_per_target_layer"].items():
        yield name, 1 - guided.similarity[name], value, 2e-5
    yield "layers with a term", list(guided.similarity), list(expected["one_minus_cka_per_target_layer"]), 0
    yield "guidance loss", term, expected["guidance_loss"], 2e-5
    yield "cross-entropy", task, expected["cross_entropy"], 2e-5
    yield "total", task + term, expected["total"], 2e-5
    (task + term).backward()
    yield "gradient of the first bias", target.layers[0].bias.grad, expected["grad_first_layer_bias"], 1e-4
    yield "gradient of the head", target.head.weight.grad, expected["grad_head_weight"], 1e-4


def _ids(model, record, t):
    factor, call = said(record, "floor(|t|*#)"), record["api"]["calls"][0]
    vocabulary = record["api"]["kwargs"]["vocab_size"]
    if f"Vocabulary {vocabulary}." not in record["notes"] or re.findall(r"\d+", call)[:2] != [
        str(factor),
        str(vocabulary),
    ]:
        raise ValueError("the notes, the call and the arguments say different vocabularies")
    return model((t.abs() * factor).floor().long() % vocabulary)


class _Calls(dict):
    def get(self, call, default=None):
        return _ids if re.match(r"custom: model\(ids\) with ids = floor\(\|t\| \* \d+\) mod \d+", call) else default


CALLS = _Calls(
    (call, _ids)
    for path in HERE.glob("*.json")
    for call in golden.load(path).get("api", {}).get("calls", ())
    if call.startswith("custom")
)
CASES = {"similarity": similarity, "layer_mapping": layer_mapping, "guidance_loss": guidance_loss}
WORDS = {
    "guidance_loss": {"Linear(6,5), names": "the guide's logits, which have no part in the loss"},
    "similarity": {"Gradients of 1 - similarity": "a constant, which has no gradient"},
    "layer_mapping": {"i*(t-1)/(g-1)), t-1": "the rule of the library"},
    "transformer_decoder_small": {"decoder.0; decoder.1 and decoder.2": "names"},
    "transformer_lm_small": {"(batch, length, 29)": "the output's size"},
}
