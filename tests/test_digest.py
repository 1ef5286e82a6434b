"""Networks of the same numbers and another structure have digests of their own."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_lipschitz.digest import digest
from lightning_lipschitz.graph import (
    Along,
    Concatenation,
    Convolution,
    Elementwise,
    Extremum,
    Gather,
    Graph,
    Input,
    Scaling,
    Sum,
    VectorUnits,
)
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term


def network(reads, output, groups=None):
    """Layers of two units that read these sources; all matrices are the same."""
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    affines = [Affine(tuple(Term(j, matrix) for j in sources), np.zeros(2)) for sources in (*reads, output)]
    groups = groups or [None] * len(reads)
    layers = tuple(Layer(affine, 0.0, 1.0, group) for affine, group in zip(affines[:-1], groups, strict=True))
    return Network(2, layers, affines[-1])


def test_borders_of_affine_maps():
    """All ways to share out terms over three maps, the sources of which ascend."""
    subsets = [[s for size in range(k + 1) for s in itertools.combinations(range(k), size)] for k in (1, 2, 3)]
    digests = [network((first, second), last).digest for first, second, last in itertools.product(*subsets)]
    assert len(set(digests)) == len(digests) == 64


def test_groups_and_depth():
    grouped = [network([[0]], [1], [group]) for group in (None, [0, 0], [0, 1])]
    assert grouped[0].digest == grouped[2].digest != grouped[1].digest
    assert len({network([[k] for k in range(depth)], [depth]).digest for depth in range(5)}) == 5


ONES = np.ones(4)
KERNEL = {"kernel": np.ones((2, 2, 1)), "image": (2, 2), "stride": (1,), "dilation": (1,), "padding": ((0, 0),)}
NODES = [
    Along(sources=(0,), matrix=np.eye(4)),
    Along(sources=(0,), matrix=np.eye(2), before=2),
    Along(sources=(0,), matrix=np.eye(2), after=2),
    Along(sources=(0,), matrix=np.eye(4), rounding=1e-9),
    Scaling(sources=(0,), factors=ONES),
    Scaling(sources=(0,), factors=ONES, relative=1e-9),
    Gather(sources=(0,), indices=[0, 1, 2, 3]),
    Gather(sources=(0,), indices=[0, 1, 3, 2]),
    Elementwise(sources=(0,), size=4, alpha=0.0, beta=1.0),
    Elementwise(sources=(0,), size=4, alpha=0 * ONES, beta=1.0),
    Elementwise(sources=(0,), size=4, alpha=0.0, beta=ONES),
    VectorUnits(sources=(0,), size=4, alpha=0.0, beta=1.0, width=2),
    VectorUnits(sources=(0,), size=4, alpha=0.0, beta=2.0, width=2),
    VectorUnits(sources=(0,), size=4, alpha=-1.0, beta=1.0, width=2),
    VectorUnits(sources=(0,), size=4, alpha=0.0, beta=1.0, width=4),
    VectorUnits(sources=(0,), size=4, alpha=0.0, beta=1.0, width=1, scalar=True),
    Extremum(sources=(0, 0), size=4),
    Extremum(sources=(0, 0), size=4, smallest=True),
    Sum(sources=(0,), size=4),
    Sum(sources=(0, 0), size=4),
    Concatenation(sources=(0,), size=4),
    Convolution(sources=(0,), **KERNEL),
    Convolution(sources=(0,), **KERNEL, rounding=1e-9),
    Convolution(sources=(0,), **KERNEL, circular=True),
    Convolution(sources=(0,), **KERNEL, transposed=True),
    Convolution(sources=(0,), **KERNEL | {"kernel": np.ones((2, 1, 1))}, groups=2),
    Convolution(sources=(0,), **KERNEL | {"padding": ((0, 1),)}),
    Convolution(sources=(0,), **KERNEL | {"padding": ((1, 0),)}),
]


def test_every_kind_of_node_and_every_field():
    graphs = [Graph((Input(size=4), node)) for node in NODES]
    graphs += [Graph((Input(size=4), NODES[0], node)) for node in NODES]
    graphs.append(Graph((Input(size=4), NODES[0], Sum(sources=(0, 1), size=4))))
    graphs.append(Graph((Input(size=4), NODES[0], Sum(sources=(1, 0), size=4))))
    assert len({graph.digest for graph in graphs}) == len(graphs)


parts = st.lists(
    st.text(max_size=4) | st.binary(max_size=8).map(lambda b: np.frombuffer(b, dtype=np.uint8)), max_size=4
)


def plain(sequence):
    return [part if isinstance(part, str) else part.tolist() for part in sequence]


@given(parts, parts)
def test_only_equal_sequences_share_a_digest(one, other):
    assert (digest(one) == digest(other)) == (plain(one) == plain(other))


@given(st.lists(st.text("a1 \n", max_size=6), min_size=1, max_size=4))
def test_borders_of_parts_count(sequence):
    joined = ["".join(sequence)]
    assert (digest(sequence) == digest(joined)) == (sequence == joined)
