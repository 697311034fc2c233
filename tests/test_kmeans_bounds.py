"""k-means with bounds: the labels of a full search, from fewer products."""

from __future__ import annotations

import numpy as np
import pytest

from offprint.methods.curation import _kmeans
from offprint.methods.curation._kmeans import Bounds, normalise, spherical_kmeans


def points(rows: int, dim: int, clusters: int, noise: float) -> np.ndarray:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(clusters, dim))
    return normalise(centres[draw.integers(0, clusters, rows)] + noise * draw.normal(size=(rows, dim)))[0]


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_labels_are_those_of_a_full_search(noise):
    unit, draw = points(5000, 16, 40, noise), np.random.default_rng(1)
    centroids = unit[:40]
    bounds, labels = Bounds(unit), np.zeros(len(unit), np.int32)
    bounds.worth = True
    for step in range(12):  # most centroids creep, some leap
        bounds.assign(centroids, labels)
        products = unit.astype(np.float64) @ centroids.T.astype(np.float64)
        best = np.sort(products, 1)
        clear = best[:, -1] - best[:, -2] > 1e-6
        assert np.array_equal(labels[clear], products.argmax(1)[clear])
        moved = centroids + 0.3 ** (step % 6) * 0.1 * draw.normal(size=centroids.shape)
        moved[step] = unit[draw.integers(len(unit))]
        centroids = normalise(moved)[0]


def test_centroids_are_those_of_plain_iterations(monkeypatch):
    unit = points(6000, 24, 30, 0.8)
    ours = spherical_kmeans(unit, 30, iterations=20)
    monkeypatch.setattr(_kmeans, "SETTLED", 0.0)  # never bounds
    assert np.array_equal(ours, spherical_kmeans(unit, 30, iterations=20))


def test_bounds_save_most_products(monkeypatch):
    unit, seen = points(20_000, 32, 64, 0.5), [0]
    plain = _kmeans._tiles

    def counted(rows, centroids, *which):
        for tile in plain(rows, centroids, *which):
            seen[0] += tile[2].size
            yield tile

    monkeypatch.setattr(_kmeans, "_tiles", counted)
    spherical_kmeans(unit, 64, iterations=15)
    with_bounds, seen[0] = seen[0], 0
    monkeypatch.setattr(_kmeans, "SETTLED", 0.0)
    spherical_kmeans(unit, 64, iterations=15)
    assert with_bounds < 0.75 * seen[0]
