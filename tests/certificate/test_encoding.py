"""Every kind of proof survives files and checkpoints."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_lipschitz import Certificate, certify, verify
from lightning_lipschitz.certificate import Split, prove
from lightning_lipschitz.certificate.encoding import decode, encode
from lightning_lipschitz.certificate.pieces import pieces
from lightning_lipschitz.checkpoint_files import from_plain, to_plain
from tests.helpers import chain

NETWORK = chain((3, 4, 5, 4, 2))


def certificate(kind):
    if kind != "split":
        return certify(NETWORK, method=kind)
    first, second = pieces(NETWORK, (2,))
    proof = Split((2,), (certify(first).proof, certify(second, method="norm-product").proof))
    return replace(certify(NETWORK), proof=proof, upper_bound=prove(NETWORK, proof))


@pytest.mark.parametrize("kind", ["norm-product", "lipsdp-neuron", "split"])
def test_round_trips(kind, tmp_path):
    mine = certificate(kind)
    mine.save(tmp_path / "c.npz")
    buffer = io.BytesIO()
    torch.save(to_plain(mine), buffer)
    buffer.seek(0)
    for copy in (Certificate.load(tmp_path / "c.npz"), from_plain(torch.load(buffer, weights_only=True))):
        assert copy.summary() == mine.summary()
        assert verify(copy, NETWORK) == mine.upper_bound


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: [*a, np.ones(1)]])
@pytest.mark.parametrize("kind", ["norm-product", "lipsdp-neuron", "split"])
def test_missing_and_surplus_arrays_are_noticed(kind, change):
    description, arrays = encode(certificate(kind).proof)
    with pytest.raises(ValueError, match="arrays than the proof names"):
        decode(description, change(arrays))


def test_unknown_kinds_are_noticed():
    with pytest.raises(ValueError, match="unknown kind"):
        decode({"kind": "faith", "arrays": 0}, [])
