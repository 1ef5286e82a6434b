"""The product bound as a differentiable number: its value, its gradient, its pairs, and what may happen to it."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import time

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations

from lightning_lipschitz.certificate.composition import claimed, propagate
from lightning_lipschitz.certificate.operators import node_norm
from lightning_lipschitz.differentiable.distances import distances
from lightning_lipschitz.differentiable.form import Form
from lightning_lipschitz.differentiable.product import ProductForm
from lightning_lipschitz.errors import ArgumentError, ExtractionError, UnsupportedModuleError
from lightning_lipschitz.extraction import GraphExtractor
from tests.models.building import randomized_norm
from tests.models.operators import OPERATORS
from tests.models.small import AFFINE, CONVOLUTIONS, SHAPES, STRUCTURES
from tests.models.zoo import ZOO

DOUBLE = torch.float64


def chain(*activations, sizes=(5, 7, 6, 3)):
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    pairs = zip(layers, [*activations, nn.Identity()], strict=True)
    return nn.Sequential(*(module for pair in pairs for module in pair))


def spectral(weight):
    return torch.linalg.matrix_norm(weight, 2)


class Residual(nn.Module):
    """x + g(x) between two layers; what is summed goes on to a unit and to the next sum."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.outer, self.head = (nn.Linear(n, m) for n, m in ((4, 5), (5, 6), (6, 5), (5, 3)))

    def forward(self, x):
        y = self.first(x)
        y = y + self.outer(torch.relu(self.inner(y)))
        return self.head(y + torch.tanh(y))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(torch.tanh(self.a(x)))


class Joined(nn.Module):
    """Both parts beside each other, read by one layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(torch.cat([torch.relu(self.a(x)), torch.sigmoid(self.b(x))], 1))


def normed_cnn():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        randomized_norm(nn.BatchNorm2d, 4),
        nn.AvgPool2d(2),
        nn.LeakyReLU(2.5),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def gained(norm):
    """With gains that differ: at two largest ones the bound has no gradient."""
    nn.init.normal_(norm.weight)
    return norm


MODELS = {
    "chain": (lambda: chain(nn.ReLU(), nn.Tanh()), (5,)),
    "steep": (lambda: chain(nn.LeakyReLU(3.0), nn.LeakyReLU(-2.0)), (5,)),
    "residual": (Residual, (4,)),
    "joined": (Joined, (4,)),
    "shared": (Shared, (4,)),
    "normed CNN": (normed_cnn, (2, 8, 8)),
    "weight norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), parametrizations.weight_norm(nn.Linear(5, 3))),
        (4,),
    ),
    "PReLU": (lambda: chain(nn.PReLU(init=-1.7), nn.PReLU(init=0.3)), (5,)),
    "layer norm": (lambda: chain(gained(nn.LayerNorm(7, eps=0.1)), nn.ReLU()), (5,)),
    "softmax": (lambda: nn.Sequential(chain(nn.ReLU(), nn.ReLU()), nn.Softmax(1)), (5,)),
}


def build(name, dtype=torch.float32):
    torch.manual_seed(len(name))
    make, shape = MODELS[name]
    return make().to(dtype), torch.zeros(1, *shape)


def settled(form, evaluations=150):
    for _ in range(evaluations):
        form.whole()
    return form


def composed(model, x):
    """The bound of the kernel's rules, node by node, with nothing folded: no power iteration, and other cuts."""
    graph = GraphExtractor(model, x).unfolded()
    return propagate(graph, {number: node_norm(graph.nodes[number]) for number in claimed(graph)}, {})[-1]


def test_of_a_chain_it_is_the_product_of_the_norms():
    model = chain(nn.ReLU(), nn.LeakyReLU(1.5))
    form: Form = settled(ProductForm(model, torch.zeros(1, 5)))
    expected = 1.5 * math.prod(spectral(layer.weight).item() for layer in model if isinstance(layer, nn.Linear))
    assert form.whole().item() == pytest.approx(expected, rel=1e-4)
    assert form.multipliers() is None


def test_where_paths_meet_it_is_the_norm_of_all_that_is_read():
    """A skip connection can always be in step with what it skips; two matrices beside each other seldom can."""
    torch.manual_seed(1)
    model = Residual().double()
    found = settled(ProductForm(model, torch.zeros(1, 4)), 400).whole().item()
    first, inner, outer, head = (spectral(each.weight).item() for each in model.children())
    assert found == pytest.approx(2 * head * first * (1 + inner * outer), rel=1e-4)

    model = Joined().double()
    found = settled(ProductForm(model, torch.zeros(1, 4)), 400).whole().item()
    with torch.no_grad():
        bounds = spectral(model.a.weight).item(), 0.25 * spectral(model.b.weight).item()
        blocks = model.c.weight.split([3, 5], 1)
        total = sum(L * spectral(W).item() for L, W in zip(bounds, blocks, strict=True))
        expected = largest_sum(blocks, bounds)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found < 0.999 * total


def largest_sum(matrices, bounds):
    """max |sum of L_j W_j e_j| over unit vectors, by ascent from many starts."""
    best = 0.0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        e = [F.normalize(torch.randn(W.shape[1], dtype=DOUBLE, generator=generator), dim=0) for W in matrices]
        for _ in range(500):
            r = sum(L * W @ each for L, W, each in zip(bounds, matrices, e, strict=True))
            e = [F.normalize(W.mT @ r, dim=0) for W in matrices]
        best = max(best, float(r.norm()))
    return best


def test_convolution_batch_norm_and_pooling_are_one_operator():
    model, x = build("normed CNN", DOUBLE)
    model.eval()
    affine, head = model[:3], model[-1].weight
    origin = affine(x.double())
    columns = torch.stack([(affine(e.reshape(1, 2, 8, 8)) - origin).flatten() for e in torch.eye(128, dtype=DOUBLE)], 1)
    windows = 4  # one entry is in as many windows of the maxima
    expected = spectral(columns) * 2.5 * math.sqrt(windows) * spectral(head)
    assert settled(ProductForm(model, x)).whole().item() == pytest.approx(expected.item(), rel=1e-4)


def some(table, names):
    return {name: table[name] for name in names}


TABLES = {
    "affine": some(AFFINE, ("two_linear", "batch_norm_1d_channels", "scale_and_shift", "addmm", "centred", "filled")),
    "shapes": SHAPES,
    "structures": STRUCTURES,
    "convolutions": CONVOLUTIONS,
    "operators": OPERATORS,
    "zoo": some(ZOO, ("softmax classifier", "margin", "LeNet", "digits CNN", "MaxMin network")),
}


@pytest.mark.parametrize("table", TABLES)
def test_it_is_never_above_the_composed_bound(table):
    """And has a gradient, and pairs that agree with it, over what the extraction reads."""
    judged = 0
    for name, (make, shape) in TABLES[table].items():
        torch.manual_seed(0)
        model, x = make(), torch.zeros(1, *shape)
        if not list(model.parameters()):
            model.register_parameter("unused", nn.Parameter(torch.zeros(1)))
        if name.partition("_")[0] in ("gru", "lstm", "rnn"):  # refused, see below
            continue
        form = ProductForm(model, x)
        bound = composed(model, x)
        value = settled(form, 3).whole()
        assert 0.0 <= value.item() <= bound * (1 + 1e-5) + 1e-7, name
        pairs = form.pairs()
        assert torch.all(pairs.diagonal() == 0), name
        assert pairs.max() <= 1.01 * math.sqrt(2.0) * bound + 1e-6, name
        if value.requires_grad:
            value.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), name
        judged += 1
    assert judged >= 5


@pytest.mark.parametrize("name", MODELS)
def test_its_gradient_is_that_of_the_converged_number(name):
    model, x = build(name, DOUBLE)
    form = settled(ProductForm(model, x), 600)
    form.whole().backward()
    checked = 0
    for parameter in model.parameters():
        direction = torch.randn(parameter.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
        values = []
        for factor in (1.0, -2.0, 1.0):
            parameter.data.add_(factor * 1e-5 * direction)
            values.append(settled(form, 60).whole().item())
        slope = (values[0] - values[1]) / 2e-5
        found = 0.0 if parameter.grad is None else torch.sum(parameter.grad * direction).item()
        assert found == pytest.approx(slope, rel=1e-3, abs=1e-6 * values[2])
        checked += abs(slope) > 1e-3
    assert checked >= (1 if name == "shared" else 2)


@pytest.mark.parametrize("name", ["chain", "joined", "normed CNN"])
def test_pairs_are_the_distances_of_the_last_rows(name):
    model, x = build(name, DOUBLE)
    head = model.c if name == "joined" else model[-2 if name == "chain" else -1]
    form = settled(ProductForm(model, x), 400)
    pairs = form.pairs()
    blocks = [(form.whole() / spectral(head.weight), head.weight)]
    if name == "joined":
        bounds = [spectral(model.a.weight), 0.25 * spectral(model.b.weight)]
        blocks = list(zip(bounds, model.c.weight.split([3, 5], 1), strict=True))
    expected = sum(L * torch.linalg.vector_norm(W[:, None] - W[None], dim=-1) for L, W in blocks)
    assert torch.allclose(pairs, expected, rtol=1e-4)
    x, y = torch.randn(2, 500, *x.shape[1:], dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    model.eval()
    change, moved = model(x) - model(y), (x - y).flatten(1).norm(dim=1)
    steepest = ((change[:, :, None] - change[:, None]).abs() / moved[:, None, None]).amax(0)
    assert torch.all(steepest <= pairs * (1 + 1e-4) + 1e-12)
    pairs.sum().backward()
    assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())
    assert head.weight.grad.abs().max() > 0


def test_pairs_of_equal_rows_and_of_a_softmax():
    layer = nn.Linear(3, 3)
    layer.weight.data[1] = layer.weight.data[0]
    pairs = ProductForm(layer, torch.zeros(1, 3)).pairs()
    assert pairs[0, 1] == 0
    pairs.sum().backward()
    assert layer.weight.grad.isfinite().all()
    assert layer.weight.grad[0].norm() < 3  # of the two distances to the third row, and of no zero
    model, x = build("softmax")
    form = settled(ProductForm(model, x))
    assert torch.allclose(form.pairs(), math.sqrt(2.0) * form.whole() * (1 - torch.eye(3)))


def test_distances_of_many_rows_are_those_of_few(monkeypatch):
    """By a product of matrices, which loses digits where rows are close."""
    rows = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)) + 100.0
    rows[1], rows[2] = rows[0], rows[0] + 1e-1 * rows[3].sub(100.0)
    found = []
    for limit in (10**8, 0):
        monkeypatch.setattr("lightning_lipschitz.differentiable.distances._DIRECT", limit)
        given = rows.clone().requires_grad_()
        value = distances(given)
        value.sum().backward()
        assert torch.all(value.diagonal() == 0)
        assert value[0, 1] == 0
        found.append((value.detach(), given.grad))
    (exact, slope), (fast, other) = found
    assert torch.allclose(fast, exact, rtol=1e-4)
    assert torch.allclose(other, slope, rtol=1e-3, atol=1e-3)


def test_pairs_are_for_classifiers():
    with pytest.raises(ArgumentError, match=r"1000.*for classifiers"):
        ProductForm(nn.Linear(2, 1001), torch.zeros(1, 2)).pairs()


def test_a_vector_that_died_is_drawn_anew():
    model = chain(nn.ReLU(), nn.ReLU())
    form = settled(ProductForm(model, torch.zeros(1, 5)))
    alive = form.whole().item()
    kept = model[2].weight.detach().clone()
    for spoilt in (0.0, float("nan")):
        model[2].weight.data.fill_(spoilt)
        value = form.whole()
        assert not value.item() > 0
        if spoilt == 0.0:
            value.backward()
            assert all(each.grad is None or each.grad.isfinite().all() for each in model.parameters())
        form.whole()
        model[2].weight.data.copy_(kept)
        assert settled(form).whole().item() == pytest.approx(alive, rel=1e-4)


def test_a_branch_that_is_zero_at_the_start_can_grow():
    """As residual blocks are often started: the last gain of the branch is zero, and has a gradient."""
    torch.manual_seed(0)
    block = Block(4)
    block.body[-1].weight.data.zero_()
    form = ProductForm(block, torch.zeros(1, 4, 5, 5))
    for _ in range(3):
        assert form.whole().item() == pytest.approx(1.0, rel=1e-5)
        assert all(each.isfinite().all() for each in form.state_dict().values())
        assert all(each.isfinite().all() for each in copy.deepcopy(form)._vectors[2])
    form.whole().backward()
    gradient = block.body[-1].weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_an_unlucky_vector_gives_less_and_proves_nothing():
    """One in the null space of the matrix is found dead; one that sees another singular vector alone stays there."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.diag(torch.tensor([3.0, 1.0]))
    form = settled(ProductForm(layer, torch.zeros(1, 2)), 1)
    name = next(iter(form.state_dict()))
    unlucky = {name: torch.tensor([[0.0, 1.0], [0.0, 0.0]])}
    form.load_state_dict(unlucky)
    assert settled(form, 5).whole().item() == pytest.approx(1.0)
    layer.weight.data[1, 1] = 0.0
    assert form.whole().item() == 0.0
    assert settled(form).whole().item() == pytest.approx(3.0, rel=1e-4)


def test_random_numbers_of_others_are_left_alone_and_ranks_start_alike():
    model, x = build("normed CNN")
    state = torch.get_rng_state()
    first, second = (ProductForm(model, x).whole() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)


def test_state_goes_round():
    model, x = build("residual")
    form = settled(ProductForm(model, x), 3)
    file = io.BytesIO()
    torch.save(form.state_dict(), file)
    file.seek(0)
    other = ProductForm(model, x)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.whole(), form.whole())
    assert torch.equal(other.pairs(), form.pairs())
    for state in ({"0.0": torch.zeros(7, 7)}, form.state_dict() | {"90.0": torch.zeros(1)}):
        with pytest.raises(ArgumentError, match="power vectors of this model"):
            other.load_state_dict(state)


def test_one_step_an_evaluation_after_the_first():
    model, x = build("chain", DOUBLE)
    first = ProductForm(model, x, iterations=1)
    values = [first.whole().item() for _ in range(20)]
    assert ProductForm(model, x).whole().item() == pytest.approx(values[-1], rel=1e-2)
    assert values[0] < values[5] <= values[-1]
    for count in (0, 2.5, True):
        with pytest.raises(ArgumentError, match="iterations"):
            ProductForm(model, x, iterations=count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_computes_in_the_dtype_of_the_parameters_and_in_no_less_than_float32(dtype):
    model, x = build("joined", dtype)
    form = settled(ProductForm(model, x.to(dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, pairs = form.whole(), form.pairs()
    assert value.dtype == pairs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = settled(ProductForm(copy.deepcopy(model).double(), x.double())).whole()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    value.backward()
    assert model.c.weight.grad.dtype == dtype
    model.double()
    assert form.whole().dtype == torch.float64


def test_the_live_parameters_count():
    model, x = build("weight norm")
    model[0].weight.requires_grad_(False)
    form = settled(ProductForm(model, x))
    before = form.whole()
    before.backward()
    assert model[0].weight.grad is None
    gain = model[2].parametrizations.weight.original0
    assert gain.grad.abs().max() > 0
    gain.data.mul_(3.0)
    assert form.whole().item() == pytest.approx(3.0 * before.item(), rel=1e-3)
    with torch.inference_mode():
        value = form.whole()
    assert not value.requires_grad
    with torch.no_grad():
        assert not form.pairs().requires_grad
    assert form.whole().requires_grad


def test_a_forward_between_the_bound_and_its_backward_pass_does_no_harm():
    """It writes over the running statistics and the vectors of a spectral norm."""
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 5)), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)
    )
    form = ProductForm(model, torch.zeros(1, 4), batch_statistics=False)
    loss = form.whole() + form.pairs().sum()
    loss = loss + model(torch.randn(6, 4)).sum()
    loss.backward()
    assert model[0].parametrizations.weight.original.grad.isfinite().all()


def trained(model, x):
    model.train()
    return model(x)


def test_in_training_the_batch_counts_and_the_scale_before_a_batch_norm_does_not():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double()
    x = torch.randn(10, 1, 6, 6, dtype=DOUBLE)
    form, running = (settled(ProductForm(model, x, batch_statistics=each), 200) for each in (True, False))
    before = form.whole().item()
    assert before == running.whole().item()
    output = trained(model, x)
    value, other = settled(form).whole(), settled(running).whole()
    gain = 1 / torch.sqrt(model[0](x).var([0, 2, 3], correction=0) + 1e-5)
    still = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)).double()
    still[0].weight.data = (model[0].weight * gain[:, None, None, None]).detach()
    still[3].weight.data = model[4].weight.data
    assert value.item() == pytest.approx(settled(ProductForm(still, x)).whole().item(), rel=1e-4)
    (output.sum() * 0.0 + value + form.pairs().sum()).backward()
    weight = model[0].weight
    assert weight.grad.abs().max() > 1e-3
    assert abs(torch.sum(weight.grad * weight)) < 1e-4 * weight.grad.norm() * weight.norm()  # eps apart
    model.zero_grad()
    other.backward()
    assert torch.sum(weight.grad * weight) > 0.1 * other  # with running statistics the bound is believed to scale


def test_the_batch_is_forgotten():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(10, 3, dtype=DOUBLE)
    form = settled(ProductForm(model, x), 300)

    def counts_the_batch():
        gain = model[1].running_var
        found = settled(form, 200).whole().item()
        model[1].running_var = gain * 4.0
        same = form.whole().item() == pytest.approx(found, rel=1e-6)
        model[1].running_var = gain
        return same

    trained(model, x)
    assert counts_the_batch()
    trained(model, x).sum().backward()  # the graph is used up
    assert not counts_the_batch()
    trained(model, x)
    model.eval()
    assert not counts_the_batch()
    model.train()
    form.step()
    assert not counts_the_batch()
    with torch.no_grad():
        model(x)
    assert not counts_the_batch()
    form.close()
    trained(model, x)
    assert not counts_the_batch()
    assert not model[1]._forward_pre_hooks


def test_copies_have_their_own_hooks_and_vectors():
    model, x = build("normed CNN")
    form = settled(ProductForm(model, x), 3)
    both = {"model": model, "form": form}
    other = copy.deepcopy(both)
    file = io.BytesIO()
    torch.save(both, file)
    file.seek(0)
    for each in (other, torch.load(file, weights_only=False)):
        trained(each["model"], torch.randn(4, 2, 8, 8))
        form._built[2]._inputs.clear()
        assert each["form"].whole() != form.whole()
        each["model"].load_state_dict(model.state_dict())
        each["form"].load_state_dict(form.state_dict())
        each["form"].step()
        assert torch.equal(each["form"].whole(), copy.deepcopy(form).whole())
    hooks = model[1]._forward_pre_hooks
    assert len(hooks) == 1
    del form, both
    gc.collect()
    assert not hooks


def test_refusals():
    with pytest.raises(ArgumentError, match="a module with parameters"):
        ProductForm(nn.ReLU(), torch.zeros(1, 3))
    with pytest.raises(ArgumentError, match="whose output depends on its input"):
        ProductForm(nn.Sequential(nn.Linear(2, 2), Constant()), torch.zeros(1, 2))
    with pytest.raises(UnsupportedModuleError, match="between its own units"):
        ProductForm(Recurrent(), torch.zeros(1, 3, 2))
    with pytest.raises(ExtractionError):
        ProductForm(nn.Sequential(nn.Linear(2, 2), Squared()), torch.zeros(1, 2))


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(x.shape[0], 2)


class Squared(nn.Module):
    def forward(self, x):
        return x * x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.RNN(2, 3, batch_first=True)

    def forward(self, x):
        return self.a(x)[0]


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


def test_a_residual_network_of_ten_blocks_takes_seconds():
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    model = nn.Sequential(*stem, *(Block(16) for _ in range(10)), *head)
    x = torch.randn(8, 3, 32, 32)
    start = time.process_time()
    form = ProductForm(model, x)
    loss = F.cross_entropy(trained(model, x) / form.whole(), torch.arange(8)) + form.pairs().mean().log()
    loss.backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in model.parameters())
    assert time.process_time() - start < 60
    bounds = [stage.end for stage in form._built[0].stages if hasattr(stage, "end")]
    assert len(bounds) == 1 + 2 * 10 + 1  # the sum of a block, both paths of it, is one operator
