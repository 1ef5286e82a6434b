"""Numbers that float64 holds exactly enter, whatever holds them; others are refused, and nothing is dropped."""

from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
import torch

import lightning_lipschitz as ll
from lightning_lipschitz.certificate import Multipliers, Norms
from lightning_lipschitz.errors import ArgumentError
from lightning_lipschitz.graph import Along, Convolution, Elementwise, Gather, Scaling, VectorUnits
from lightning_lipschitz.graph.network import Affine, Layer, Network, Term
from lightning_lipschitz.real import real_array, whole_array

EYE = torch.eye(2)
REFUSED = {
    "complex": 5j * np.eye(2),
    "complex, no imaginary part": np.eye(2).astype(np.complex64),
    "complex list": [[1j, 0.0], [0.0, 1.0]],
    "complex tensor": torch.eye(2, dtype=torch.complex64),
    "objects": np.array([[Fraction(1, 3), 0], [0, 1]], dtype=object),
    "strings": [["1", "0"], ["0", "1"]],
    "dates": np.zeros((2, 2), dtype="datetime64[s]"),
    "large integers": np.full((2, 2), 2**53 + 1),
    "large unsigned integers": np.full((2, 2), 2**64 - 1, dtype=np.uint64),
    "large integer tensor": torch.full((2, 2), 2**53 + 1),
    "integers beyond int64": [[2**70, 0], [0, 1]],
    "extended precision": np.full((2, 2), np.longdouble(1) + np.finfo(np.longdouble).eps),
    "sparse": scipy.sparse.eye_array(2),
    "sparse tensor": EYE.to_sparse(),
    "meta tensor": EYE.to("meta"),
    "ragged": [[1.0, 2.0], [1.0]],
    "masked": np.ma.masked_array(np.eye(2), mask=[[True, False], [False, False]]),
}
if np.finfo(np.longdouble).eps == np.finfo(np.float64).eps:
    del REFUSED["extended precision"]


@pytest.mark.parametrize("values", REFUSED.values(), ids=list(REFUSED))
def test_refused_by_type(values):
    with pytest.raises(ArgumentError):
        ll.certify([values])
    with pytest.raises(ArgumentError):
        Along(sources=(0,), matrix=values)
    with pytest.raises(ArgumentError):
        Multipliers(1.0, (values,))


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantized_tensors_are_refused():
    with pytest.raises(ArgumentError, match="qint8"):
        ll.certify([torch.quantize_per_tensor(EYE, 0.1, 0, torch.qint8)])


EXACT = {
    "half": np.eye(2, dtype=np.float16),
    "half tensor": EYE.half(),
    "bfloat16 tensor": EYE.bfloat16(),
    "float8 tensor": EYE.to(torch.float8_e4m3fn),
    "parameter": torch.nn.Parameter(EYE),
    "integers": np.eye(2, dtype=np.int64),
    "largest integers": np.eye(2, dtype=np.int64) * 2**60,
    "unsigned integers": np.eye(2, dtype=np.uint64) * np.uint64(2**63),
    "integer tensor": EYE.long(),
    "list": [[1, 0], [0, 1]],
    "negated view": torch._neg_view(EYE),
    "extended precision that fits": np.eye(2, dtype=np.longdouble),
    "big endian": np.eye(2, dtype=">f4"),
}


@pytest.mark.parametrize("values", EXACT.values(), ids=list(EXACT))
def test_exact_numbers_enter(values):
    array = real_array(values, "weights")
    assert array.dtype == np.float64
    assert ll.certify([values]).upper_bound == np.abs(array).max() > 0


COMPLEX, PLAIN = np.array([1j]), Affine((Term(0, np.eye(1)),), np.zeros(1))
ENTRANCES = {
    "bias": lambda: Affine((), COMPLEX),
    "biases": lambda: Network.from_weights([np.eye(1)], [COMPLEX]),
    "rounding": lambda: Term(0, np.eye(1), 1j),
    "slopes": lambda: Network.from_weights([np.eye(1)] * 2, slopes=(0.0, 1j)),
    "slopes of certify": lambda: ll.certify([np.eye(1)] * 2, slopes=(0.0, np.complex128(1 + 1j))),
    "alpha": lambda: Layer(PLAIN, COMPLEX, np.ones(1)),
    "group": lambda: Layer(PLAIN, 0.0, 1.0, group=np.array([0.5])),
    "indices": lambda: Gather(sources=(0,), indices=[0.7]),
    "factors": lambda: Scaling(sources=(0,), factors=COMPLEX),
    "relative": lambda: Scaling(sources=(0,), factors=[1.0], relative=1j),
    "beta": lambda: VectorUnits(sources=(0,), size=1, alpha=0.0, beta=1j, width=1),
    "slopes of a node": lambda: Elementwise(sources=(0,), size=1, alpha=0.0, beta=1j),
    "kernel": lambda: Convolution(
        sources=(0,), kernel=[[[1j]]], image=(1, 3), stride=(1,), padding=((0, 0),), dilation=(1,)
    ),
    "rho": lambda: Multipliers(1j, ()),
    "norms": lambda: Norms(((1j,),)),
    "pairs": lambda: ll.pairwise_bounds([np.eye(2) * 1j]),
}


@pytest.mark.parametrize("name", ENTRANCES)
def test_every_entrance_refuses_what_it_would_have_to_cut(name):
    with pytest.raises(ArgumentError):
        ENTRANCES[name]()


def test_whole_numbers():
    assert whole_array(np.array([3, -1], dtype=np.int32), "indices").dtype == np.int64
    for bad in ([0.5], [2.0**60], [np.nan], np.array([2**60]), np.array([-(2**63)])):
        with pytest.raises(ArgumentError):
            whole_array(bad, "indices")


class ComplexWeight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(5j * torch.eye(2))

    def forward(self, x):
        return torch.view_as_real(x.to(torch.complex64) @ self.weight).flatten(1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["auto", "composed"])
def test_a_model_with_complex_parameters_is_refused(method):
    with pytest.raises(ll.errors.LipschitzError):
        ll.certify(ComplexWeight(), torch.zeros(2, 2), method=method)
