"""LipschitzADMM: the pull equals a hand-written loop, rounds converge, and what cannot work is refused."""

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier
from lightning_lipschitz.training import Consensus
from tests.loops import CLIP, DTYPES, LOOPS, OnlyBatchOneIsSkipped, adam, by_hand, distance, fused, scaler
from tests.modules import CLASSES, INPUTS, Bypassed, Classifier, DictBatches, Manual, NoForward, Uncertifiable, loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the training weights did not come to meet"),
    pytest.mark.filterwarnings("ignore:.*the weights were outside"),
    pytest.mark.filterwarnings("ignore:Attribute 'optimizer' removed from hparams"),
]

PENALTY = 0.3
ULPS = 2e-7  # a few roundings of float32 weights near one


def consensus(module):
    """A pull that matters, towards weights of another seed."""
    generator = torch.Generator().manual_seed(3)
    shapes = [layer.weight.shape for layer in module.net if isinstance(layer, nn.Linear)]
    weights, duals = ([torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes] for _ in range(2))
    return Consensus(weights, [0.1 * y for y in duals], PENALTY)


class Frozen(LipschitzADMM):
    """Without rounds: the pull stays what it is."""

    def __init__(self):
        super().__init__(5.0, every_n_steps=None, every_n_epochs=100, penalty=PENALTY)

    def on_train_start(self, trainer, pl_module):
        self._consensus = consensus(pl_module)


class Known(Classifier):
    """Its input is known from the start, so that the first step is pulled too; any optimizer."""

    def __init__(self, optimizer=None):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS)
        self.make = optimizer or (lambda parameters: torch.optim.SGD(parameters, 0.1))

    def configure_optimizers(self):
        return self.make(self.parameters())


def matrices(module):
    return [layer.weight for layer in module.net if isinstance(layer, nn.Linear)]


def bound(module):
    return ll.certify(module.net, torch.zeros(2, INPUTS), rtol=1e-8).upper_bound


def term(module, pull):
    """The augmented Lagrangian's, written as a loss."""
    triples = zip(matrices(module), pull.weights, pull.duals, strict=True)
    return sum((y * (w - v)).sum() + PENALTY / 2 * (w - v).square().sum() for w, v, y in triples)


def pulled_by_hand(module, **options):
    pull = consensus(module)
    return by_hand(module, before_step=lambda: term(module, pull), **options)


TOLERANCES = {"bf16-mixed": 1e-6, "double": 1e-14, "bf16-true": 1e-2}


@pytest.mark.parametrize("optimizer", [None, adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("case", LOOPS)
def test_gradient_is_that_of_a_hand_written_loop(case, optimizer, fit):
    (hand, options), tolerance = LOOPS[case], TOLERANCES.get(case, ULPS)
    dtype = DTYPES.get(case, torch.float32)
    torch.manual_seed(0)
    theirs = Known(optimizer)
    mine = Known(optimizer)
    mine.load_state_dict(theirs.state_dict())
    pulled_by_hand(theirs.to(dtype), **hand)
    fit(mine.to(dtype), Frozen(), val=False, **options)
    assert distance(mine, theirs) <= tolerance
    assert distance(mine, unpulled(theirs, fit)) > 10 * tolerance


def unpulled(like, fit):
    torch.manual_seed(0)
    module = Known(like.make)
    fit(module, val=False)
    return module


@pytest.mark.parametrize("optimizer", [adam, fused])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, "norm"])
def test_gradient_under_loss_scaling(clip, accumulate, optimizer, fit):
    if clip and optimizer is fused:
        pytest.skip("Lightning does not clip gradients of fused optimizers under loss scaling")
    torch.manual_seed(0)
    theirs = Known(adam)
    mine = Known(optimizer)
    mine.load_state_dict(theirs.state_dict())
    pulled_by_hand(theirs, accumulate=accumulate, clip=clip and CLIP[clip], autocast=torch.float16, scaler=scaler())
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    options = {"gradient_clip_val": 0.2} if clip else {}
    fit(mine, Frozen(), val=False, plugins=[plugin], accumulate_grad_batches=accumulate, **options)
    assert distance(mine, theirs) <= 1e-6


class Overflowing(Known):
    """Its second batch has gradients that are not finite."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (float("inf") if batch_idx == 1 else 1.0)


def test_skipped_steps_move_nothing(fit):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    fit(Overflowing(adam), Frozen(), OnlyBatchOneIsSkipped(), val=False, plugins=[plugin])


class Skipping(Known):
    """No loss in the second batch."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_no_step_without_a_loss(fit):
    fit(Skipping(), Frozen(), OnlyBatchOneIsSkipped(), val=False)


class KnownManual(Manual):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.zeros(2, INPUTS)
        self.make = lambda parameters: torch.optim.SGD(parameters, 0.5)


class TwoOptimizers(KnownManual):
    """One a layer; each is pulled once."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.manual_backward(self._loss(batch))
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[k].parameters(), 0.5) for k in (0, 2)]


@pytest.mark.parametrize("kind", [KnownManual, TwoOptimizers])
def test_manual_optimization(kind, fit):
    torch.manual_seed(0)
    theirs, mine = KnownManual(), kind()
    mine.load_state_dict(theirs.state_dict())
    pulled_by_hand(theirs)
    fit(mine, Frozen(), val=False)
    assert distance(mine, theirs) <= 3e-7


class Normed(Known):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            parametrizations.weight_norm(nn.Linear(INPUTS, 8)),
            nn.ReLU(),
            parametrizations.weight_norm(nn.Linear(8, CLASSES)),
        )


def test_weight_norm_is_pulled_and_projected_through(fit):
    torch.manual_seed(0)
    theirs, mine = Normed(), Normed()
    mine.load_state_dict(theirs.state_dict())
    pulled_by_hand(theirs)
    fit(mine, Frozen(), val=False)
    assert distance(mine, theirs) <= 3e-7
    module = Normed()
    fit(module, LipschitzADMM(0.3, every_n_steps=2))
    assert bound(module) <= 0.3 * (1 + 1e-6)


def test_the_logged_loss_is_the_users(fit):
    torch.manual_seed(0)
    module = Known()
    losses = []

    class Witness(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            losses.append(pl_module._loss(batch).item())

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert outputs["loss"].item() == losses[-1] == trainer.callback_metrics["train_loss"].item()

    fit(module, Frozen(), Witness(), val=False)


# Rounds


class TrainingBound(Callback):
    """Of the weights in training, before they are projected in the end."""

    def on_train_end(self, trainer, pl_module):
        self.bound = bound(pl_module)


def test_enforce_meets_the_bound_and_pulls_training_towards_it(fit):
    bounds = []
    for callbacks in [], [LipschitzADMM(0.3, every_n_steps=4, penalty=0.3)]:
        torch.manual_seed(0)
        module, seen = Classifier(lr=0.1), TrainingBound()
        trainer = fit(module, *callbacks, seen, max_epochs=15)
        bounds.append(seen.bound)
    free, pulled = bounds
    assert pulled < 0.6 * free
    assert bound(module) <= 0.3 + 1e-6
    assert trainer.callback_metrics["admm/upper_bound"].item() == callbacks[0].certificate.upper_bound <= 0.3
    keys = {key for key in trainer.callback_metrics if key.startswith("admm/")}
    assert keys == {f"admm/{name}" for name in ("upper_bound", "primal_residual", "dual_residual", "seconds")}


def test_regularize_trades_loss_for_the_bound(fit):
    bounds = []
    for weight in (1e-3, 1.0):
        torch.manual_seed(0)
        module = Classifier(lr=0.1)
        callback = LipschitzADMM(mode="regularize", weight=weight, penalty=0.05, every_n_steps=8)
        fit(module, callback, max_epochs=8)
        assert callback.certificate.upper_bound >= bound(module)
        bounds.append(callback.certificate.upper_bound)
    assert bounds[1] < 0.8 * bounds[0]


@pytest.mark.parametrize("penalty", [1e-5, 1e-4, 1e-3, 1.0, 3.0])
def test_a_penalty_that_is_far_off_comes_back(penalty, fit):
    """Doubled while weights are far from certified ones, halved while certified weights run after nothing."""
    torch.manual_seed(0)
    callback = LipschitzADMM(0.2, penalty=penalty, every_n_steps=1)
    fit(Classifier(), callback, max_epochs=4)
    last = callback.history[-1]["penalty"]
    assert last >= 4 * penalty if penalty < 1e-2 else last <= penalty / 4


DEFAULTS = {"near": 0.5, "far below": 0.1}  # of the bound that training without one ends with


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*optimizer steps would have broken")  # the barrier far below: it says so
@pytest.mark.parametrize("share", DEFAULTS.values(), ids=DEFAULTS)
def test_defaults_keep_most_of_what_the_barrier_keeps(share, trainer):
    """On scikit-learn's digits; both hold the bound strictly, and neither is tuned."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    train, test = slice(0, 1400), slice(1400, None)

    class Digits(Classifier):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    def fitted(*callbacks):
        module = Digits()
        torch.manual_seed(1)
        data = DataLoader(TensorDataset(x[train], y[train]), 32, shuffle=True)
        trainer(*callbacks, max_epochs=12).fit(module, data)
        accuracy = (module.eval()(x[test]).argmax(1) == y[test]).float().mean()
        return float(accuracy), ll.certify(module.net, x[:1], rtol=1e-3).upper_bound

    _, free = fitted()
    accuracies = []
    for callback in (LipschitzADMM(share * free), LipschitzBarrier(share * free)):
        accuracy, found = fitted(callback)
        assert found <= share * free * (1 + 1e-3)
        accuracies.append(accuracy)
    assert accuracies[0] >= accuracies[1] - 0.05


@pytest.mark.parametrize("make", [NoForward, Bypassed, Classifier])
def test_where_the_input_comes_from(make, fit):
    module = make()
    fit(module, LipschitzADMM(0.3, every_n_steps=1))
    assert bound(module) <= 0.3 + 1e-6


@pytest.mark.parametrize("method", [LipschitzADMM, LipschitzBarrier])
def test_a_bound_that_leaves_no_room(method, trainer):
    """Nothing is NaN, the bound holds, and it is said that training did not come to meet it."""
    torch.manual_seed(0)
    module, callback = Classifier(), method(1e-6)
    expected = "did not come to meet" if isinstance(callback, LipschitzADMM) else "were outside"
    with pytest.warns(UserWarning, match=expected):
        trainer(callback, max_epochs=4).fit(module, loader(), loader(8))
    assert all(p.isfinite().all() for p in module.parameters())
    assert callback.certificate.upper_bound <= 1e-6


def test_a_round_that_fails_costs_the_round(trainer, monkeypatch):
    def broken(*_):
        raise RuntimeError("no solver")

    monkeypatch.setattr("lightning_lipschitz.callbacks.admm.advance", broken)
    module = Classifier()
    with pytest.warns(UserWarning, match="a round failed in epoch 0, training goes on: RuntimeError: no solver"):
        trainer(LipschitzADMM(0.3, every_n_steps=2)).fit(module, loader(), loader(8))
    assert bound(module) <= 0.3 + 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"limit_train_batches": 1},
        {"limit_train_batches": 0},
        {"max_epochs": 0},
        {"max_steps": 3},
        {"limit_val_batches": 0},
        {"barebones": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", [LipschitzADMM, LipschitzBarrier])
@pytest.mark.filterwarnings("ignore:.*barebones")
@pytest.mark.filterwarnings("ignore:.*limit_train_batches")
def test_short_runs(method, options, trainer):
    module = Known()
    defaults = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    trainer(method(0.3), **{**(defaults if "barebones" in options else {}), **options}).fit(module, loader(), loader(8))
    assert bound(module) <= 0.3 + 1e-6


def test_only_fits_are_touched(trainer):
    module, callback = Known(), LipschitzADMM(0.3)
    before = [p.detach().clone() for p in module.parameters()]
    mine = trainer(callback)
    mine.validate(module, loader(8), verbose=False)
    mine.test(module, loader(8), verbose=False)
    mine.predict(module, loader(8))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# Refusals


class Lbfgs(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


METHODS = pytest.mark.parametrize("method", [LipschitzADMM, LipschitzBarrier])


@METHODS
def test_lbfgs_is_refused(method, trainer):
    with pytest.raises(MisconfigurationException, match=rf"`{method.__name__}` does not support `LBFGS`"):
        trainer(method(1.0)).fit(Lbfgs(), loader())


@METHODS
@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharding_is_refused(name, method, trainer):
    mine = trainer(method(1.0))
    mine.strategy.__class__ = type(name, (type(mine.strategy),), {})
    with pytest.raises(MisconfigurationException, match=f"`{method.__name__}` does not support `{name}` yet"):
        mine.fit(Classifier(), loader())


class Spectral(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(INPUTS, 8)), nn.ReLU(), nn.Linear(8, CLASSES))


class Orthogonal(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(parametrizations.orthogonal(nn.Linear(INPUTS, 8)), nn.ReLU(), nn.Linear(8, CLASSES))


class Normalised(Classifier):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(INPUTS, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES))


@METHODS
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Spectral, "SpectralNorm|spectral_norm"),
        (Orthogonal, "Orthogonal"),
        (Normalised, "LayerNorm.*cannot be projected yet"),
        (Uncertifiable, "cannot be certified"),
    ],
)
def test_layers_that_cannot_be_projected(make, message, method, trainer):
    with pytest.raises(ll.errors.LipschitzError, match=message):
        trainer(method(1.0)).fit(make(), loader())


@METHODS
def test_a_batch_that_tells_nothing(method, trainer):
    with pytest.raises(MisconfigurationException, match=f"`{method.__name__}` needs an example input"):
        trainer(method(1.0)).fit(DictBatches(), loader())


@METHODS
def test_unknown_submodule(method, trainer):
    with pytest.raises(MisconfigurationException, match=rf"`{method.__name__}\(module='nett'\)` names no submodule"):
        trainer(method(1.0, module="nett")).fit(Classifier(), loader())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "max_lipschitz"),
        ({"max_lipschitz": 0.0}, "max_lipschitz"),
        ({"max_lipschitz": float("nan")}, "max_lipschitz"),
        ({"max_lipschitz": 1.0, "weight": 1.0}, "weight"),
        ({"mode": "regularize"}, "weight"),
        ({"mode": "regularize", "weight": 1.0, "max_lipschitz": 1.0}, "max_lipschitz"),
        ({"max_lipschitz": 1.0, "mode": "soft"}, "mode"),
        ({"max_lipschitz": 1.0, "penalty": -1.0}, "penalty"),
        ({"max_lipschitz": 1.0, "every_n_steps": 0}, "every_n_steps"),
        ({"max_lipschitz": 1.0, "every_n_epochs": 0}, "every_n_epochs"),
        ({"max_lipschitz": 1.0, "module": None}, "module"),
        ({"max_lipschitz": 1.0, "balance": 1}, "balance"),
    ],
    ids=str,
)
def test_arguments(options, name):
    with pytest.raises(MisconfigurationException, match=f"`{name}` must be"):
        LipschitzADMM(**options)


def test_average_and_rounds_together(fit):
    module = Classifier()
    fit(module, LipschitzADMM(0.3, every_n_steps=2), EMAWeightAveraging(decay=0.9), max_epochs=3)
    assert bound(module) <= 0.3 + 1e-6
