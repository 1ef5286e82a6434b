"""CLIPMixin: its term equals a hand-written loop's, whatever the Trainer does; it acts by inheritance alone."""

import copy
import pickle

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.functional import ascend, initial_pairs
from tests.loops import DTYPES, LOOPS, OnlyBatchOneIsSkipped, adam, by_hand, distance, fused, scaler
from tests.modules import INPUTS, Classifier, DictBatches, Manual, NoForward, Noisy, Pair, loader

WEIGHT = 0.3


class Net(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_climbing=None):
    def __init__(self, optimizer=None):
        super().__init__()
        self.make = optimizer or (lambda parameters: torch.optim.SGD(parameters, 0.1))

    def configure_optimizers(self):
        return self.make(self.parameters())


def clipped_by_hand(module, **options):
    """Its pairs are drawn from the first batch and climb once a batch."""
    generator = torch.Generator().manual_seed(hash((0, 0, 0)) % 2**63)
    first = next(iter(loader()))[0].to(next(module.parameters()).dtype)
    pairs = initial_pairs(first, 64, generator=generator)

    def term():
        nonlocal pairs
        pairs, _ = ascend(module.net, pairs)
        slopes = (module.net(pairs.u) - module.net(pairs.v)).norm(dim=1) / (pairs.u - pairs.v).norm(dim=1)
        return WEIGHT * slopes.max()

    return by_hand(module, in_loss=term, **options)


def twins(optimizer=None, dtype=torch.float32):
    torch.manual_seed(0)
    mine, theirs = Net(optimizer), Net(optimizer)
    theirs.load_state_dict(mine.state_dict())
    return mine.to(dtype), theirs.to(dtype)


CASES = [case for case in LOOPS if case != "bf16-true"]


@pytest.mark.parametrize("optimizer", [None, adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_is_that_of_a_hand_written_loop(case, optimizer, fit):
    (hand, options), tolerance = LOOPS[case], 1e-13 if case == "double" else 1e-6
    mine, theirs = twins(optimizer, DTYPES.get(case, torch.float32))
    plain = Classifier()
    plain.load_state_dict(mine.state_dict())
    clipped_by_hand(theirs, **hand)
    fit(mine, val=False, **options)
    assert distance(mine, theirs) <= tolerance
    fit(plain, val=False, **options)
    assert distance(mine, plain) > 100 * tolerance


@pytest.mark.parametrize("optimizer", [adam, fused])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradient_under_loss_scaling(accumulate, optimizer, fit):
    mine, theirs = twins(adam)
    mine.make = optimizer
    clipped_by_hand(theirs, accumulate=accumulate, autocast=torch.float16, scaler=scaler())
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    fit(mine, val=False, plugins=[plugin], accumulate_grad_batches=accumulate)
    assert distance(mine, theirs) <= 1e-6


def test_bf16_true_runs(fit):
    module = Net().to(torch.bfloat16)
    fit(module, val=False, precision="bf16-true")
    assert all(p.isfinite().all() for p in module.parameters())


def trained(kind, fit, **options):
    """Weights after a short fit."""
    torch.manual_seed(0)
    module = kind()
    trainer = fit(module, val=False, **options)
    return module, trainer


class Plain(Classifier):
    pass


class Dict(Classifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "more": 1}


class Super(ll.CLIPMixin, Classifier, clip_weight=WEIGHT):
    """Twice wrapped, were it not for the count."""


class SuperSuper(Super):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class Hooked(ll.CLIPMixin, Classifier, clip_weight=WEIGHT):
    """Hooks of the user's own, without `super()`."""

    def on_train_epoch_end(self):
        pass

    def configure_callbacks(self):
        return []

    def on_validation_start(self):
        pass


class WrongOrder(Plain, ll.CLIPMixin, clip_weight=WEIGHT):
    pass


class Existing(ll.CLIPMixin, Plain, clip_weight=WEIGHT):
    pass


class ExistingDict(ll.CLIPMixin, Dict, clip_weight=WEIGHT):
    pass


class ByAttribute(ll.CLIPMixin, Plain):
    clip_weight = WEIGHT


class ByInstance(ll.CLIPMixin, Plain):
    def __init__(self):
        super().__init__()
        self.clip_weight = WEIGHT


class ByMethod(ll.CLIPMixin, Plain):
    def configure_clip(self):
        return {"weight": WEIGHT}


class InManual(ll.CLIPMixin, Manual, clip_weight=WEIGHT):
    pass


KINDS = [Super, SuperSuper, Hooked, WrongOrder, Existing, ExistingDict, ByAttribute, ByInstance, ByMethod, InManual]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_just_inherit(kind, fit):
    """Every spelling is the same run, and another one than without."""
    module, trainer = trained(kind, fit)
    same, _ = trained(Super, fit)
    other, _ = trained(Plain, fit)
    assert distance(module, same) == 0.0 if kind is not InManual else distance(module, same) <= 1.0
    assert distance(module, other) > 1e-3
    assert module.state_dict().keys() == other.state_dict().keys()
    assert {"clip/lower_bound", "clip/weight", "clip/penalty"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["clip/weight"] == pytest.approx(WEIGHT)


def test_manual_optimization_is_the_automatic_one(fit):
    class Automatic(ll.CLIPMixin, Classifier, clip_weight=WEIGHT):
        def configure_optimizers(self):
            return Manual.configure_optimizers(self)

    class ByHand(Automatic):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self._loss(batch))
            self.optimizers().step()

    one, _ = trained(Automatic, fit)
    other, _ = trained(ByHand, fit)
    assert distance(one, other) == 0.0


class Recorded(ll.CLIPMixin, Classifier, clip_weight=WEIGHT):
    """Logs in `forward` too."""

    def forward(self, x):
        if self._trainer is not None and self.trainer.training:
            self.log("rows", float(len(x)), on_epoch=True)
        return super().forward(x)


def test_what_is_logged_is_the_users(fit):
    _, trainer = trained(Recorded, fit)
    assert trainer.callback_metrics["rows"] == 4.0


def test_train_loss_is_the_plain_loss(fit, tmp_path):
    class Frozen(ll.CLIPMixin, Classifier, clip_weight=100.0):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    module, trainer = trained(Frozen, fit, max_epochs=1)
    losses = [module._loss(batch).item() for batch in loader()]
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(losses[-1], rel=1e-6)


class NoisyNet(ll.CLIPMixin, Noisy, clip_weight=1e-30):
    """A weight that changes nothing: whatever differs from the plain run was disturbed."""


def test_random_streams_buffers_and_flags_are_left_alone(fit):
    def run(kind):
        pl.seed_everything(1, verbose=False)
        module = kind()
        trainer = fit(module, val=False)
        return module, trainer, torch.rand(1)

    (mine, trainer, after), (theirs, other, after_theirs) = run(NoisyNet), run(Noisy)
    assert torch.equal(after, after_theirs)
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for key in ("train_loss", "frozen"):
        assert torch.equal(trainer.callback_metrics[key], other.callback_metrics[key])
    assert [m.training for m in mine.modules()] == [m.training for m in theirs.modules()]


class Skipping(ll.CLIPMixin, Classifier, clip_weight=WEIGHT):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_no_step_without_a_loss(fit):
    fit(Skipping(), OnlyBatchOneIsSkipped(), val=False)


def test_outside_of_fit_it_does_nothing(trainer):
    module, batch = Net(), next(iter(loader()))
    expected = Classifier._loss(module, batch)
    module._trainer = None
    module.log = lambda *args, **kwargs: None
    assert torch.equal(module.training_step(batch, 0), expected)


class ValidateOnly(ll.CLIPMixin, pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(INPUTS, 3)

    def forward(self, x):
        return self.net(x)

    def validation_step(self, batch, batch_idx):
        self.log("val", self(batch[0]).sum())


def test_a_module_that_is_never_trained(trainer):
    made = trainer()
    made.validate(ValidateOnly(), loader(), verbose=False)
    assert "val" in made.callback_metrics
    with pytest.raises(MisconfigurationException, match="training_step"):
        trainer().fit(ValidateOnly(), loader())


class OfChild(ll.CLIPMixin, NoForward, clip_weight=WEIGHT):
    pass


class OfEncoder(ll.CLIPMixin, Pair, clip_weight=WEIGHT, clip_module="encoder"):
    pass


class OfDict(ll.CLIPMixin, DictBatches, clip_weight=WEIGHT):
    def clip_inputs(self, batch):
        return batch["x"]


@pytest.mark.parametrize("kind", [OfChild, OfEncoder, OfDict])
def test_which_part_and_which_inputs(kind, fit):
    module, trainer = trained(kind, fit)
    part = module.encoder if kind is OfEncoder else module.net
    bound = ll.certify(part, torch.zeros(2, INPUTS)).upper_bound
    assert 0.0 < trainer.callback_metrics["clip/lower_bound"] <= bound * (1 + 1e-5)


class Careless(ll.CLIPMixin, DictBatches):
    pass


class Nowhere(ll.CLIPMixin, Classifier, clip_module="encoder"):
    pass


class Unlogged(ll.CLIPMixin, Classifier, clip_metric="train_acc", clip_target=0.9):
    pass


@pytest.mark.parametrize(
    ("kind", "message"), [(Careless, "clip_inputs"), (Nowhere, "encoder"), (Unlogged, "train_acc.*was not logged")]
)
def test_what_cannot_work_says_so(kind, message, fit):
    with pytest.raises(MisconfigurationException, match=message):
        fit(kind(), val=False)


class Generator(ll.CLIPMixin, Manual):
    """Its forward takes noise, and the batches are data."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(INPUTS - 1, INPUTS)

    def forward(self, noise):
        return self.generator(noise)

    def _loss(self, batch):
        return self.net(batch[0]).square().mean() + self(batch[0][:, 1:]).square().mean()


class Critic(ll.CLIPMixin, Classifier):
    def forward(self, state, action):
        return self.net(state + action)

    def _loss(self, batch):
        return self(batch[0], batch[0]).square().mean()


class Heads(ll.CLIPMixin, Classifier):
    def forward(self, x):
        return {"y": self.net(x), "x": x}

    def _loss(self, batch):
        return self(batch[0])["y"].square().mean()


class Pairwise(Heads):
    def forward(self, x):
        return {"y": self.net(x), "x": x} if self.training else (self.net(x), x)


class Mean(ll.CLIPMixin, Classifier):
    def forward(self, x):
        return self.net(x).mean()

    def _loss(self, batch):
        return self(batch[0])


class Chosen(ll.CLIPMixin, Classifier):
    def forward(self, x):
        return self.net(x).argmax(1)

    def _loss(self, batch):
        return self.net(batch[0]).square().mean()


class OfNet(Critic, clip_module="net"):
    pass


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Generator, r"forward\(noise\)`, which failed: RuntimeError: mat1 and mat2"),
        (Critic, r"forward\(state, action\)`, which failed: TypeError: .*missing 1 required"),
        (Heads, r"forward\(x\)`, which returned a dict"),
        (Pairwise, r"forward\(x\)`, which returned a tuple"),
        (Mean, r"which returned shape \(\)"),
        (Chosen, r"which returned a tensor of torch.int64"),
    ],
)
def test_inputs_and_outputs_that_do_not_fit_are_told_in_one_sentence(kind, found, fit):
    with pytest.raises(
        MisconfigurationException, match=rf"inputs of shape \({INPUTS},\).*{found}.*clip_inputs.*clip_module"
    ):
        fit(kind(), val=False)


def test_the_advice_can_be_followed(fit):
    trainer = fit(OfNet(), val=False)
    assert (trainer[-1] if isinstance(trainer, tuple) else trainer).callback_metrics["clip/lower_bound"] > 0


BAD = {
    "weight": -1.0,
    "pairs": 0,
    "climbing": 0,
    "every_n_steps": 1.5,
    "worst": 1,
    "squared": "yes",
    "start": "data",
    "noise": 0.0,
    "reset_every_n_steps": 0,
    "p_in": 0.5,
    "p_out": "two",
    "within": (1.0, 0.0),
    "module": None,
    "input": -1,
    "output": 1.5,
    "metric": "acc",
    "target": 0.9,
    "mode": "up",
    "factor": 1.0,
    "warmup_epochs": -1,
    "cooldown_epochs": 0.5,
    "seed": -1,
    "prog_bar": None,
}


@pytest.mark.parametrize("name", ll.ClipConfig.__dataclass_fields__)
def test_bad_settings(name):
    with pytest.raises(MisconfigurationException, match="clip_target" if name == "metric" else name):
        ll.ClipConfig(**{name: BAD[name]})


def test_settings_that_do_not_exist(fit):
    with pytest.raises(MisconfigurationException, match=r"lambda.*there are weight"):
        type("Bad", (ll.CLIPMixin, Classifier), {}, clip_lambda=0.1)

    class Bad(ll.CLIPMixin, Classifier):
        def configure_clip(self):
            return {"lamda": 0.1}

    with pytest.raises(MisconfigurationException, match="lamda"):
        fit(Bad(), val=False)


class Scheduled(
    ll.CLIPMixin,
    Classifier,
    clip_weight=1.0,
    clip_metric="accuracy",
    clip_target=0.5,
    clip_factor=2.0,
    clip_warmup_epochs=2,
    clip_cooldown_epochs=1,
):
    accuracies = (0.9, 0.9, 0.9, 0.9, 0.1, 0.1)

    def training_step(self, batch, batch_idx):
        self.log("accuracy", self.accuracies[self.current_epoch], on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_weight_follows_the_metric(mode, fit):
    weights = []

    class Witness(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            weights.append(pl_module._clip.weight)

    module = Scheduled()
    module.clip_mode = mode
    fit(module, Witness(), val=False, max_epochs=6)
    weights.append(module._clip.weight)
    rises = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 2.0]
    assert weights == (rises if mode == "max" else [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.5])


@pytest.mark.parametrize("validate", [True, False])
def test_the_lower_bound_is_of_these_weights(validate, fit, tmp_path):
    module, checkpoint = Super(), ModelCheckpoint(dirpath=tmp_path / "files", save_top_k=-1)
    trainer = fit(module, checkpoint, val=validate, logger=CSVLogger(tmp_path))
    pairs = module._clip._pairs
    slopes = (module(pairs.u) - module(pairs.v)).norm(dim=1) / (pairs.u - pairs.v).norm(dim=1)
    assert float(trainer.callback_metrics["clip/lower_bound"]) == pytest.approx(slopes.max().item(), rel=1e-5)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resume_is_exact(every, fit, tmp_path):
    class Resumed(Super, clip_every_n_steps=every, clip_reset_every_n_steps=5, clip_pairs=6, clip_climbing=4):
        pass

    def module():
        torch.manual_seed(0)
        return Resumed()

    straight, first, second = module(), module(), module()
    whole = fit(straight, max_epochs=4)
    fit(first, ModelCheckpoint(dirpath=tmp_path, filename="half"), max_epochs=2)
    path = tmp_path / "half.ckpt"
    torch.load(path, weights_only=True)
    rest = fit(second, max_epochs=4, ckpt_path=path)
    assert distance(straight, second) == 0.0
    assert rest.callback_metrics["clip/lower_bound"] == whole.callback_metrics["clip/lower_bound"]
    plain = Classifier()
    plain.load_state_dict(torch.load(path, weights_only=True)["state_dict"], strict=True)


def test_fit_twice_copies_and_pickles(fit):
    module = Super()
    fit(module, val=False, max_epochs=1)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.trainer = None
        fit(twin, val=False, max_epochs=1)
    fit(module, val=False, max_epochs=1)


def test_every_n_steps_pulls_as_much_on_average():
    inputs, module = torch.randn(8, INPUTS), Super()

    def terms(every):
        module.clip_every_n_steps = every
        regulariser = module._start_clip(0)
        return [regulariser.term(module, inputs, step) for step in range(8)]

    always, sometimes = terms(1), terms(4)
    assert [term is None for term in sometimes] == [False, True, True, True] * 2
    assert sometimes[0].item() == pytest.approx(4 * always[0].item())
