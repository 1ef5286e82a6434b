"""Random programs: no sampled slope is above a bound, every refusal is typed, and no operator is left out."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from lightning_lipschitz.extraction import registry
from lightning_lipschitz.extraction.patterns import fuse, operator_name
from lightning_lipschitz.extraction.trace import trace
from lightning_lipschitz.extraction.undisturbed import quiet_export, tensors_of, undisturbed
from tests.fuzz import bounded, layers, steps
from tests.fuzz.draw import Draw, lines_of
from tests.fuzz.programs import Program, Step, generate, widened
from tests.fuzz.quotients import sample
from tests.fuzz.trial import attempt

UNREACHED = {  # names that are read and that no line leads to, and why
    "_adaptive_avg_pool2d _prelu_kernel _softmax _log_softmax": "of a graph that was decomposed further",
    "constant_pad_nd _unsafe_view alias": "of a graph that was decomposed further",
    "_fused_rms_norm _safe_softmax native_batch_norm native_layer_norm norm": "of other releases of the exporter",
    "cudnn_batch_norm miopen_batch_norm": "of a GPU",
    "_conj": "nothing that is real is conjugated",
    "lift lift_fresh add_": "the exporter writes another name for them",
    "sym_numel": "the exporter multiplies the lengths itself",
    "item _local_scalar_dense": "a Python number from a tensor ends the export",
}
SHAPES = [(4, 6), (6,), (4, 2, 2), (2, 4, 4), (2, 3, 3, 3)]


def assert_bounds_hold(seed, **options):
    program = generate(seed)
    findings = [each for outcome in attempt(program, reweighed=2, **options) for each in outcome.findings]
    assert not findings, "\n".join([program.source(), *findings])


@pytest.mark.parametrize("seed", range(50))
def test_no_slope_is_above_a_bound(seed):
    assert_bounds_hold(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100_000, 102_000, 100))
def test_no_slope_of_many_is_above_a_bound(first):
    for seed in range(first, first + 100):
        assert_bounds_hold(seed, tightest=seed % 20 == 0)


def runs(line, shape, count, in_place):
    """The step of a line, its modules numbered from ``count``, if it runs on such a shape."""
    draw = Draw(random.Random(line), shape, count)
    text = draw.line(line)
    step = Step(tuple(draw.setup), text if in_place else f"x = {text}")
    try:
        made = Program(0, shape, "float32", 2, (step,)).model()(torch.randn(2, *shape))
    except Exception:
        return None
    return step if isinstance(made, torch.Tensor) and made.is_floating_point() and len(made) == 2 else None


def program_of_all(lines, shape, in_place, done):
    """One program that carries out all lines that run on ``shape``, each on the input; those are then ``done``."""
    setup, forward = [], ["start = x", "results = []"]
    for line in lines:
        step = None if line in done else runs(line, shape, len(setup), in_place)
        if step is not None:
            setup.extend(step.setup)
            forward += ["x = start * 1", "h = x", step.line, "results.append(x.reshape(len(start), -1).sum(1))"]
            done |= set() if "{r}" in line else {line}  # the others are for every number of dimensions
    if len(forward) > 2:
        forward.append("x = torch.stack(results, 1)")
    whole = Step(tuple(setup), "; ".join(forward))
    return Program(0, shape, "float32", 2, (whole,))


def operators_of(program):
    """Names of the operators in the program's graph, before it is made functional."""
    model = program.model()
    with undisturbed(model), quiet_export():
        free = ({0: torch.export.Dim.AUTO},)
        graph = torch.export.export(model, (program.example(),), dynamic_shapes=free, strict=False).graph
    fuse(graph, [node for node in graph.nodes if node.op == "placeholder"][-1])
    return {operator_name(node.target) for node in graph.nodes if node.op == "call_function"}


def test_every_operator_that_is_read_stands_in_some_line():
    read = set(registry._RULES)
    tables = [steps.POINTWISE, steps.ARITHMETIC, steps.MATRIX, steps.SHAPE, steps.CASTS, layers.IMAGES, layers.NORMS]
    tables += [bounded.BOUNDED, bounded.RECURRENT, bounded.SCATTERED]
    seen, done = operators_of(program_of_all(["x.view(x.size(0), -1)"], (6,), False, set())), set()
    for shape, table in itertools.product(SHAPES, tables):
        seen |= operators_of(program_of_all(lines_of(table), shape, False, done))
    decomposed = [f"x = {line}" for table in (layers.NORMS, steps.CASTS) for line in lines_of(table)]
    written = program_of_all([*lines_of(steps.IN_PLACE), *decomposed], (4, 6), True, done)
    model = written.model()
    with undisturbed(model):
        graph = trace(model, written.example(), tensors_of(model))
    seen |= {operator_name(node.target) for node in graph.nodes if node.op == "call_function"}
    reasons = {name for names in UNREACHED for name in names.split()}
    assert read - seen - reasons == set()


def pairs_of(function):
    return sample(function, (3,), torch.Generator().manual_seed(0))


def test_a_slope_above_a_bound_is_seen():
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]

    def steep(x):
        return x @ torch.diag(torch.tensor([1.0, 0.3, 0.1]).double()) @ turn

    assert pairs_of(steep).above(steep, 0.999) is not None
    assert pairs_of(steep).above(steep, 1.0) is None


def test_a_jump_is_seen():
    for jump in (lambda x: x.half().double(), lambda x: x + 1e-6 * torch.sign(x), lambda x: x.float().double()):
        assert pairs_of(jump).above(jump, 1.0) is not None


CANCELLED = {
    "in a difference": (lambda x: (x + 1e9) - 1e9, 1.0),
    "in a sum": (lambda x: x.mean(1, keepdim=True) * 3**0.5, 1.0),
    "in a product": (lambda x: x @ torch.full((3, 3), 1 / 3, dtype=x.dtype), 1.0 + 2**-52),
    "in place": (lambda x: x.clone().add_(1e6).sub_(1e6), 1.0),
}


@pytest.mark.parametrize("name", CANCELLED)
def test_rounding_is_no_slope(name):
    function, constant = CANCELLED[name]
    pairs = pairs_of(function)
    assert (pairs.rise > pairs.run * constant).any()
    assert pairs.above(function, constant) is None


def test_what_stays_of_a_conversion_in_double():
    source = "x.float(); x.to(torch.bfloat16); torch.float16; x.half(); torch.float64"
    assert widened(source, "float64") == source
    assert widened(source, "float32") == source.replace(".float()", ".double()")
    assert "torch.float16; x.half()" in widened(source, "bfloat16")
    assert "to(torch.bfloat16)" in widened(source, "float16")
