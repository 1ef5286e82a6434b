"""Sub-networks: their constants multiply, the kernel proves the product, and the work can be shared."""

from dataclasses import replace

import numpy as np
import pytest

from lightning_lipschitz import Certificate, Status, certify, verify
from lightning_lipschitz.bounds import cost
from lightning_lipschitz.bounds.splitting import every
from lightning_lipschitz.bounds.workers import map_in_processes
from lightning_lipschitz.certificate import Split, prove
from lightning_lipschitz.certificate.pieces import pieces, possible_cuts
from lightning_lipschitz.errors import SolverError
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from tests.helpers import NETWORKS, chain, lipsdp_weights, residual


def bottleneck():
    """A residual block, a layer that everything passes, and a residual block."""
    rng = np.random.default_rng(0)

    def layer(*terms):
        return Layer(
            Affine(tuple(Term(j, rng.normal(size=(3, 3))) for j in terms), np.zeros(3)), np.zeros(3), np.ones(3)
        )

    output = Affine(tuple(Term(j, rng.normal(size=(2, 3))) for j in (2, 3)), np.zeros(2))
    return Network(3, (layer(0), layer(0, 1), layer(2)), output)


def test_the_published_split():
    certificate = certify(lipsdp_weights("random"), split_size=2)
    assert certificate.upper_bound == pytest.approx(37.66814, rel=2e-6)
    assert certificate.status is Status.SOLVED
    assert isinstance(certificate.proof, Split)
    assert verify(certificate, lipsdp_weights("random")) == certificate.upper_bound


@pytest.mark.parametrize("name", [name for name in NETWORKS if possible_cuts(NETWORKS[name]())])
def test_a_split_is_never_tighter_than_the_whole(name):
    network = NETWORKS[name]()
    whole = certify(network, method="lipsdp-neuron").upper_bound
    assert certify(network, method="lipsdp-neuron", split_size=2).upper_bound >= whole * (1 - 2e-6)


def test_cuts_are_where_everything_passes():
    assert possible_cuts(chain((2, 3, 4, 5))) == (1, 2)
    assert possible_cuts(residual()) == ()
    assert possible_cuts(bottleneck()) == (2,)
    assert every(chain((2,) * 8), 3) == (3, 6)
    assert pieces(bottleneck(), (1,)) is None
    assert pieces(chain((2, 3, 4, 5)), (2, 1)) is None


def test_pieces_are_the_network():
    network = chain((2, 3, 4, 5))
    first, second = pieces(network, (2,))
    assert first.sizes == (2, 3)
    assert second.sizes == (4,)
    assert (second.output.terms[0].matrix == network.output.terms[0].matrix).all()


def test_a_split_proof_needs_all_its_parts():
    network = bottleneck()
    proof = certify(network, split_size=1, method="lipsdp-neuron").proof
    if not isinstance(proof, Split):  # the closed form was lower
        proof = Split((2,), tuple(certify(part).proof for part in pieces(network, (2,))))
    assert prove(network, proof) is not None
    assert prove(network, replace(proof, parts=proof.parts[:1])) is None
    assert prove(network, replace(proof, parts=proof.parts[::-1])) is None
    assert prove(network, replace(proof, cuts=(1,))) is None
    assert prove(network, replace(proof, cuts=())) is None


def test_a_split_certificate_survives_its_file(tmp_path):
    network = chain((3, 4, 4, 4, 2))
    proof = Split((2,), tuple(certify(part).proof for part in pieces(network, (2,))))
    certificate = replace(certify(network), proof=proof, upper_bound=prove(network, proof))
    certificate.save(tmp_path / "c.npz")
    assert verify(Certificate.load(tmp_path / "c.npz"), network) == certificate.upper_bound


def test_workers_give_the_same_bound():
    network = chain((3, *[4] * 6, 2), gain=2.0)
    alone, shared = (certify(network, split_size=3, workers=workers) for workers in (1, 2))
    assert shared.upper_bound == alone.upper_bound


def test_workers_map_in_order_and_raise():
    assert map_in_processes(abs, [-3, 2, -1], workers=2) == [3, 2, 1]
    with pytest.raises(TypeError):
        map_in_processes(abs, [1, "x"], workers=2)
    with pytest.raises(SolverError, match="worker process ended"):
        map_in_processes(exit, [3, 3], workers=2)


@pytest.mark.parametrize(("depth", "parts"), [(1, 1), (24, 1), (25, 2), (40, 2), (72, 3), (100, 5)])
def test_deep_networks_are_split_evenly(depth, parts):
    network = chain((3, *[2] * depth, 1))
    found = pieces(network, cost.cuts(network, None))
    assert len(found) == parts
    layers = [len(part.layers) for part in found]
    assert max(layers) <= cost.DEEPEST
    assert max(layers) - min(layers) <= 2


def test_the_cost_model_splits_what_is_too_large():
    assert cost.cuts(chain((5, 50, 50, 2)), None) == ()
    deep = chain((2, *[60] * 100, 2))
    cuts = cost.cuts(deep, None)
    assert cuts
    assert max(part.num_units for part in pieces(deep, cuts)) <= cost.PIECE_UNITS
    assert cost.cuts(chain((2, *[60] * 20, 2)), time_limit=1.0)
    assert cost.cuts(residual(), time_limit=1e-9) == ()
    assert cost.memory(deep) > cost.memory(chain((5, 50, 50, 2))) > 0
