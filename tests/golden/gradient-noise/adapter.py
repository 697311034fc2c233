"""How gradient-noise's records are called through the public interface."""

import torch
from reading import array, said

from offprint.methods.training.gradient_noise import GradientNoise, noise_std


def _memory(model, record, story, query):
    factor, modulus = said(record, "words = int(|array|*#) mod #")
    return model(*((x.abs() * factor).long() % modulus for x in (story, query)))


def _symbols(model, record, x):
    factor, modulus = said(record, "symbols = int(|array|*#) mod #")
    return model((x.abs() * factor).long() % modulus)


CALLS = {
    "custom: model(story, query) with word ids int(|array| * 1000) mod 19 made from the two inputs": _memory,
    "custom: model(symbols) with symbols int(|array| * 1000) mod 4; logits per position": _symbols,
}


def schedule(record):
    for label, rows in record["expected"].items():
        if not label.startswith("eta_"):
            continue
        gamma, eta = said(record, "variance = eta/(1+t)^#"), float(label.removeprefix("eta_"))
        std = [noise_std(t, eta, gamma) for t in record["inputs"]["t"]]
        yield f"{label} std", std, rows["std"], 1e-6
        yield f"{label} variance", [s * s for s in std], rows["variance"], 1e-6


def step(record):
    def arrays(key):
        return [array(record, spec) for spec in record["inputs"][key]]

    t, eta = said(record, "t=#, eta=#")
    weights = [torch.nn.Parameter(w) for w in arrays("weights")]
    for w, g in zip(weights, arrays("gradient_arrays"), strict=True):
        w.grad = said(record, "gradients = #*array") * g
    norm = torch.linalg.vector_norm(torch.cat([w.grad.flatten() for w in weights]))
    sgd = torch.optim.SGD(weights, lr=said(record, "w -= #*g"))
    wrapped = GradientNoise(sgd, eta=eta, clip_norm=said(record, "global norm of all gradients to #,"))
    wrapped.t = t
    yield "gradient_norm", norm, record["expected"]["gradient_norm"], 1e-5
    yield "std", wrapped.std, record["expected"]["std"], 1e-6
    wrapped.add_noise(arrays("z"))
    for w, expected in zip(weights, record["expected"]["noisy_gradients"], strict=True):
        yield "noisy gradient", w.grad, expected, 1e-5
    wrapped.optimizer.step()
    for w, expected in zip(weights, record["expected"]["new_weights"], strict=True):
        yield "new weight", w, expected, 1e-5


CASES = {"case_schedule": schedule, "case_noisy_sgd_step": step}
_MEMORY = {
    "(0 = nil": "the rule of the library",
    "6 words": "the size of the input",
    "A time word 19+(age, 0 = newest)": "the rule of the library, from the vocabulary in the arguments",
    "as 7th word": "one more than the size of the input",
    "C of hop k; embedding.0": "a name",
    "hop k+1": "a name",
    "29 logits": "the output's size",
}
WORDS = {
    "case_schedule": {"eta/(1+t)": "the rule of the library", "counted from 0": "the rule of the library"},
    "memn2n_3hop_pe": _MEMORY,
    "memn2n_3hop_pe_linear_start": _MEMORY,
    "neural_gpu_m6": {
        "(batch, 6 maps, width 4, length 9)": "in the arguments and the input; the width is the library's",
        "symbols in row 0": "the rule of the library",
        "9 steps of 2 CGRU": "as many as the input is long; the layers are the library's",
        "from row 0": "the rule of the library",
    },
}
