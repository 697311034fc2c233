"""How concept-pruning's cases are computed through the public interface."""

import golden
import numpy as np
from reading import said

from offprint.methods.curation.concept_pruning import allocate_budgets, density_based_pruning, semdedup


def allocation(record):
    for i, (given, want) in enumerate(zip(record["inputs"]["problems"], record["expected"]["solutions"], strict=True)):
        got = allocate_budgets(
            given["d"], given["sizes"], given["keep"], temperature=given["temperature"], balance=given["balance"]
        )
        yield f"{i} probabilities", got.probabilities, want["probabilities"], 1e-5
        yield f"{i} lower", got.lower, want["lower"], 0
        yield f"{i} real_valued", got.real_valued, want["real_valued"], 1e-5
        yield f"{i} rounded", np.rint(got.real_valued), want["rounded"], 0
        yield f"{i} total", int(got.budgets.sum()), given["keep"], 0
        yield f"{i} budgets", bool((np.abs(got.budgets - got.real_valued) < 1).all()), True, 0


def _unit(spec):
    rows = golden.array(spec["shape"], spec["seed"])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distances(record):
    given, want = record["inputs"], record["expected"]
    for mode in ("hard", "easy"):
        got = density_based_pruning(
            _unit(given["embeddings"]), keep=given["keep"], centroids=_unit(given["centroids"]), keep_mode=mode,
            num_neighbors=given["num_neighbors"], temperature=given["temperature"], balance=said(record, "balance #"),
        )  # fmt: skip
        yield f"keep_{mode}", got.kept, want[f"keep_{mode}"], 0
    yield "assignment", got.assignment, want["assignment"], 0
    yield "distance", got.distance, want["distance"], 1e-5
    yield "d_inter", got.d_inter, want["d_inter"], 1e-5
    yield "d_intra", got.d_intra, [np.nan if v is None else v for v in want["d_intra"]], 1e-5
    yield "complexity", got.complexity, want["complexity"], 1e-5
    yield "allocated", got.budgets, want["allocated"], 0


def dedup(record):
    given, want = record["inputs"], record["expected"]
    base, noise = (golden.array(given[n]["shape"], given[n]["seed"]).astype(np.float64) for n in ("base", "noise"))
    parts, start = [base], 0
    for words in ("base[:n//#] + #*noise[:n//#]", "base[:n//#] + #*noise[n//2:n//2+n//#]"):
        divisor, factor, _ = said(record, words)
        count = len(base) // divisor
        parts.append(base[:count] + factor * noise[start : start + count])
        start += count
    points = np.concatenate(parts)
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    for mode in ("hard", "easy"):
        for eps in given["eps"]:
            got = semdedup(points, eps, clusters=1, keep_mode=mode)
            yield f"kept_{mode}_eps_{eps}", got.kept, want[f"kept_{mode}_eps_{eps}"], 0
        yield f"order_{mode}", got.order, want[f"order_{mode}"], 0
        yield f"M_{mode}", got.similarity, want[f"M_{mode}"], 1e-5
    yield "distance", got.distance, want["distance"], 1e-5


CASES = {"allocation": allocation, "distances": distances, "semdedup": dedup}
WORDS = {
    "allocation": {
        "lower bound min(m, size-1)": "the rule of the library",
        "when balance > 0 else 1": "the rule of the library",
        "real_valued to 1e-3": "looser than what is asked of ours",
    },
    "distances": {
        "distance = 1 - inner": "the rule of the library",
        "other centroids of 1 - inner": "the rule of the library",
        "softmax at 0.1": "in the inputs, as temperature",
        "lower bound max(0, min(1, size-1))": "the rule of the library",
        "their L2 norm": "a name",
    },
    "semdedup": {
        "noise[:n//2]": "as many rows as of base",
        "noise[n//2:n//2+n//4]": "the rows after those used before",
        "L2-normalised in float64 then float32": "how the library keeps rows",
        "distance = 1 - cosine": "the rule of the library",
        "(0 for the first, and at least 0)": "the rule of the library",
        "M > 1 - eps": "the rule of the library",
    },
}
