"""How concept-pruning's cases are computed through the public interface."""

import golden
import numpy as np

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
            num_neighbors=given["num_neighbors"], temperature=given["temperature"],
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
    n = len(base)
    half, quarter = base[: n // 2] + 0.25 * noise[: n // 2], base[: n // 4] + 0.08 * noise[n // 2 : n // 2 + n // 4]
    points = np.concatenate([base, half, quarter])
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    for mode in ("hard", "easy"):
        for eps in given["eps"]:
            got = semdedup(points, eps, clusters=1, keep_mode=mode)
            yield f"kept_{mode}_eps_{eps}", got.kept, want[f"kept_{mode}_eps_{eps}"], 0
        yield f"order_{mode}", got.order, want[f"order_{mode}"], 0
        yield f"M_{mode}", got.similarity, want[f"M_{mode}"], 1e-5
    yield "distance", got.distance, want["distance"], 1e-5


CASES = {"allocation": allocation, "distances": distances, "semdedup": dedup}
