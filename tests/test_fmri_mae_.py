"""The masked autoencoder of scans takes its encoder's arguments without naming them a second time."""

import inspect

import pytest
import torch

import offprint
from offprint.errors import OffprintError
from offprint.models.graphs.fmri_ssl import BrainEncoder, SpatioTemporalMAE

SMALL = {"num_regions": 6, "hidden_dim": 8, "num_layers": 2, "sparsity": 40, "window": 8, "stride": 2, "length": 30}


def test_every_argument_of_the_encoder_reaches_it():
    encoder = SpatioTemporalMAE(**SMALL).encoder
    assert set(SMALL) == set(inspect.signature(BrainEncoder).parameters)
    assert {name: getattr(encoder, name) for name in SMALL} == SMALL
    assert not set(SMALL) & set(inspect.signature(SpatioTemporalMAE).parameters)
    assert offprint.create_model("brain_mae", num_regions=7, hidden_dim=4).node_decoder[-1].out_features == 7


def test_an_unknown_argument_is_refused():
    for build in (SpatioTemporalMAE, lambda **options: offprint.create_model("brain_mae", **options)):
        with pytest.raises(
            OffprintError, match="unknown argument of SpatioTemporalMAE 'hidden_dims'; nearest: hidden_dim"
        ):
            build(num_regions=6, hidden_dims=3)


def test_a_whole_pretraining_file_gives_the_encoder():
    """The decoders of the pre-training have no place in an encoder, and the report says so."""
    torch.manual_seed(0)
    source, target = SpatioTemporalMAE(**SMALL), BrainEncoder(**SMALL)
    report = offprint.load_weights(target, source.state_dict())
    left = {n for n in source.state_dict() if not n.startswith("encoder.")}
    assert set(report.dropped) == left and not report.fresh
    assert all(torch.equal(v, source.encoder.state_dict()[k]) for k, v in target.state_dict().items())
