"""Tests run side by side, one process per core; each then computes on one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"

import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def plain_convolutions_for_nasnet(request):
    """NASNets train without oneDNN, whose backward pass corrupts the heap on some AMD processors when they are small."""
    if "nasnet" not in request.node.nodeid:
        yield
        return
    import torch

    with torch.backends.mkldnn.flags(enabled=False):
        yield
