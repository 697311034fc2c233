"""Partitions for federations: every sample at exactly one client, whatever the draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offprint.data.partitions import by_domain, dirichlet, iid
from offprint.errors import DataError

LABELS = np.repeat(np.arange(10), 100)


def whole(parts, n):
    return sorted(np.concatenate(parts).tolist()) == list(range(n)) and all((np.diff(p) > 0).all() for p in parts)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcd"), min_size=12, max_size=80),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_every_sample_exactly_once(labels, clients, alpha, seed):
    for parts in (iid(len(labels), clients, seed), dirichlet(labels, clients, alpha, seed)):
        assert len(parts) == clients and whole(parts, len(labels)) and min(map(len, parts)) >= 1
    domains = len(set(labels))
    parts, whose = by_domain(labels, domains, seed)
    assert whole(parts, len(labels)) and whose == sorted(set(labels))
    for part, name in zip(parts, whose, strict=True):
        assert {labels[i] for i in part} == {name}


def test_iid_parts_are_even_and_seeded():
    parts = iid(103, 4, 1)
    assert sorted(map(len, parts)) == [25, 26, 26, 26]
    assert all(np.array_equal(a, b) for a, b in zip(parts, iid(103, 4, 1), strict=True))
    assert not np.array_equal(parts[0], iid(103, 4, 2)[0])


def mixtures(parts):
    """(clients, classes) shares of each client's classes."""
    counts = np.stack([np.bincount(LABELS[p], minlength=10) for p in parts])
    return counts / counts.sum(1, keepdims=True)


def test_alpha_says_how_unlike_the_clients_are():
    spread = [
        np.mean([mixtures(dirichlet(LABELS, 8, alpha, seed)).max(1).mean() for seed in range(5)])
        for alpha in (0.05, 1.0, 1000.0)
    ]
    assert spread[0] > 0.6 and spread[0] > spread[1] > spread[2] and spread[2] < 0.15
    again = dirichlet(LABELS, 8, 0.5, 3)
    assert all(np.array_equal(a, b) for a, b in zip(again, dirichlet(LABELS, 8, 0.5, 3), strict=True))
    assert any(len(a) != len(b) for a, b in zip(again, dirichlet(LABELS, 8, 0.5, 4), strict=True))


def test_shares_follow_the_dirichlet_law():
    """Mean and variance of a client's share of a class are those of Dir(alpha): 1/K and (K - 1) / (K² (K alpha + 1))."""
    labels, alpha, clients = np.zeros(2000, int), 0.7, 4
    shares = np.array([[len(p) / 2000 for p in dirichlet(labels, clients, alpha, s, least=0)] for s in range(800)])
    assert np.abs(shares.mean(0) - 0.25).max() < 0.03
    assert np.abs(shares.var(0) - 3 / (16 * (4 * alpha + 1))).max() < 0.008


def test_everyone_gets_the_least():
    parts = dirichlet(LABELS, 20, 0.01, 0, least=10)
    assert min(map(len, parts)) >= 10 and whole(parts, 1000)


def test_domains_shared_by_several_clients():
    domains = ["art"] * 10 + ["photo"] * 31
    parts, whose = by_domain(domains, 5, 0)
    assert whose == ["art"] * 3 + ["photo"] * 2 and sorted(map(len, parts)) == [3, 3, 4, 15, 16] and whole(parts, 41)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: iid(3, 4), "3 samples are too few for 4 clients"),
        (lambda: iid(3, 0), "give one client or more"),
        (lambda: dirichlet(LABELS, 4, 0.0), "alpha=0.0: the concentration is a number above 0"),
        (lambda: dirichlet(LABELS, 4, float("nan")), "alpha=nan"),
        (lambda: dirichlet(LABELS, 4, 1.0, least=300), "1000 samples are too few for 4 clients with 300"),
        (lambda: by_domain("aab", 1), "2 domains and 1 clients: a client would hold two; give 2 clients"),
        (lambda: by_domain("aab", 3, 0) and by_domain("abbb", 4, 0), "domain 'a' has 1 samples for 2 clients"),
    ],
)
def test_partitions_that_cannot_be(call, said):
    with pytest.raises(DataError, match=said):
        call()
