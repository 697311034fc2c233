"""Who holds which samples in a federation: every sample at exactly one client, drawn by a seed.

:func:`iid` deals samples out at random; :func:`dirichlet` gives each client its own mixture of classes; :func:`by_domain` gives each
client the samples of one domain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from offprint.errors import DataError


def iid(samples: int, clients: int, seed: int = 0) -> list[np.ndarray]:
    """Random parts of one size (or one apart): indices (n_k,) int64, ascending, one array for each client.

    Raises:
        DataError: fewer samples than clients.
    """
    _check(samples, clients)
    order = np.random.default_rng(seed).permutation(samples)
    return [np.sort(part) for part in np.array_split(order, clients)]


def dirichlet(labels: Sequence, clients: int, alpha: float, seed: int = 0, *, least: int = 1) -> list[np.ndarray]:
    r"""Parts with mixtures of classes of their own (Hsu et al. 2019, arXiv 1909.06335; in the form of Yurochkin et al. 2019).

    For each class the shares of the clients are drawn from :math:`\mathrm{Dir}(\alpha, \ldots, \alpha)`: small values of alpha leave a class with few
    clients, large ones come near to :func:`iid`.

    Args:
        labels: (n,) classes, of any kind.
        clients: how many.
        alpha: above 0; 0.1 to 1 is usual.
        seed: of the shares and of who gets which sample.
        least: samples that every client gets; where the draw leaves a client with fewer, it takes from whoever has most.

    Returns:
        Indices (n_k,) int64, ascending, one array for each client.

    Raises:
        DataError: an alpha that is none, or fewer samples than ``clients * least``.
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    _check(len(codes), clients, least)
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"alpha={alpha}: the concentration is a number above 0, such as 0.5")
    draw = np.random.default_rng(seed)
    owner = np.empty(len(codes), np.int64)
    for code in range(len(classes)):
        members = draw.permutation(np.flatnonzero(codes == code))
        shares = draw.dirichlet(np.full(clients, float(alpha)))
        ends = np.floor(np.cumsum(shares)[:-1] * len(members) + draw.random()).astype(np.int64).clip(0, len(members))
        for client, part in enumerate(np.split(members, ends)):
            owner[part] = client
    sizes = np.bincount(owner, minlength=clients)
    while sizes.min() < least:
        poor, rich = int(sizes.argmin()), int(sizes.argmax())
        owner[draw.choice(np.flatnonzero(owner == rich))] = poor
        sizes[rich], sizes[poor] = sizes[rich] - 1, sizes[poor] + 1
    return [np.flatnonzero(owner == client) for client in range(clients)]


def by_domain(
    domains: Sequence[Hashable], clients: int | None = None, seed: int = 0
) -> tuple[list[np.ndarray], list[Hashable]]:
    """Each client the samples of one domain (a hospital, a camera, a style).

    Args:
        domains: (n,) the domain of each sample.
        clients: default one for each domain. More are spread over the domains as evenly as can be, and those of one domain share its
            samples at random; fewer than domains are refused, since a client would hold two.
        seed: of that sharing.

    Returns:
        Indices (n_k,) int64, ascending, for each client; and the domain of each client.

    Raises:
        DataError: fewer clients than domains, or a domain with fewer samples than clients.
    """
    names = sorted(set(domains), key=lambda d: (str(type(d)), d))  # type: ignore[arg-type, return-value]
    clients = len(names) if clients is None else clients
    _check(len(domains), clients)
    if clients < len(names):
        raise DataError(
            f"{len(names)} domains and {clients} clients: a client would hold two; give {len(names)} clients or more"
        )
    draw, found, whose = np.random.default_rng(seed), [], []
    kinds = np.fromiter((names.index(d) for d in domains), np.int64, len(domains))
    for at, name in enumerate(names):
        share = clients // len(names) + (at < clients % len(names))
        members = draw.permutation(np.flatnonzero(kinds == at))
        if len(members) < share:
            raise DataError(f"domain {name!r} has {len(members)} samples for {share} clients; give fewer clients")
        found += [np.sort(part) for part in np.array_split(members, share)]
        whose += [name] * share
    return found, whose


def _check(samples: int, clients: int, least: int = 1) -> None:
    if clients < 1 or least < 0:
        raise DataError(f"clients={clients}, least={least}: give one client or more, and a number of samples")
    if samples < clients * least:
        raise DataError(f"{samples} samples are too few for {clients} clients with {least} or more each")


PARTITIONS: dict[str, Callable] = {"iid": iid, "dirichlet": dirichlet, "domain": by_domain}
