"""How gradient-noise's records are called through the public interface."""

import golden
import torch

from offprint.methods.training.gradient_noise import GradientNoise, noise_std


def _words(x, modulus):
    return (x.abs() * 1000).int().long() % modulus


def _memory(model, record, story, query):
    return model(_words(story, 19), _words(query, 19))


CALLS = {
    "memn2n_3hop_pe": _memory,
    "memn2n_3hop_pe_linear_start": _memory,
    "neural_gpu_m6": lambda model, record, x: model(_words(x, 4)),
}


def schedule(record):
    for label, rows in record["expected"].items():
        if not label.startswith("eta_"):
            continue
        std = [noise_std(t, float(label.removeprefix("eta_"))) for t in record["inputs"]["t"]]
        yield f"{label} std", std, rows["std"], 1e-6
        yield f"{label} variance", [s * s for s in std], rows["variance"], 1e-6


def step(record):
    def arrays(key):
        return [torch.from_numpy(golden.array(a["shape"], a["seed"])) for a in record["inputs"][key]]

    weights = [torch.nn.Parameter(w) for w in arrays("weights")]
    for w, g in zip(weights, arrays("gradient_arrays"), strict=True):
        w.grad = 5 * g
    norm = torch.linalg.vector_norm(torch.cat([w.grad.flatten() for w in weights]))
    wrapped = GradientNoise(torch.optim.SGD(weights, lr=0.1), eta=0.01, clip_norm=1.0)
    yield "gradient_norm", norm, record["expected"]["gradient_norm"], 1e-5
    yield "std", wrapped.std, record["expected"]["std"], 1e-6
    wrapped.add_noise(arrays("z"))
    for w, expected in zip(weights, record["expected"]["noisy_gradients"], strict=True):
        yield "noisy gradient", w.grad, expected, 1e-5
    wrapped.optimizer.step()
    for w, expected in zip(weights, record["expected"]["new_weights"], strict=True):
        yield "new weight", w, expected, 1e-5


CASES = {"case_schedule": schedule, "case_noisy_sgd_step": step}
