"""LipschitzMargin: the loop that anyone would write by hand, with raised logits in its loss and nowhere else."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_lightning import Callback, seed_everything
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzCallback, LipschitzMargin, LipschitzScale
from lightning_lipschitz.differentiable import DifferentiableBound
from lightning_lipschitz.functional import margin_cross_entropy
from tests.callbacks.test_unchanged import Witness
from tests.loops import LOOPS, by_hand
from tests.modules import INPUTS, Bypassed, Classifier, Manual, Noisy, body, loader

RADIUS = 0.4


class Made(Classifier):
    """With an optimizer of its own choice, for the loop by hand."""

    make = staticmethod(lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9))

    def configure_optimizers(self):
        return self.make(self.parameters())


class ByHand(Made):
    """The explicit form, as the documentation has it."""

    def __init__(self):
        super().__init__()
        self.bound = DifferentiableBound(self.net, torch.zeros(1, INPUTS))

    def _loss(self, batch):
        self.count = getattr(self, "count", -1) + 1
        return margin_cross_entropy(self(batch[0]), batch[1], self.bound.pairs(), RADIUS)


class Stepping(torch.optim.SGD):
    """Lets the multipliers follow, as `on_train_batch_end` does."""

    bound = None

    def step(self, closure=None):
        super().step(closure)
        self.bound.step()


def weights(module):
    return {name: value.clone() for name, value in module.net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", LOOPS)
def test_it_is_the_loop_by_hand(name, fit):
    by, options = LOOPS[name]
    seed_everything(1)
    attached = Made()
    seed_everything(1)
    mine = ByHand()
    if name in ("double", "bf16-true"):
        mine.to(torch.float64 if name == "double" else torch.bfloat16)

    def make(parameters):
        optimizer = Stepping(parameters, 0.1, momentum=0.9)
        optimizer.bound = mine.bound
        return optimizer

    mine.make = make
    fit(attached, LipschitzMargin(RADIUS, schedule="constant"), **options)
    by_hand(mine, **by)
    assert same(weights(attached), weights(mine))


@pytest.mark.parametrize("make", [Classifier, Noisy, Bypassed, Manual], ids=lambda make: make.__name__)
def test_training_sees_raised_logits_and_validation_does_not(make, fit):
    margin, free = LipschitzMargin(RADIUS), make()
    module = copy.deepcopy(free)
    trainer = fit(module, margin, max_epochs=1)
    batch = next(iter(loader()))
    whole = module.eval() if type(module).forward is not Bypassed.forward else module.net.eval()
    with torch.no_grad():
        plain = [F.cross_entropy(whole(x), y).item() for x, y in loader(8)]
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(sum(plain) / len(plain), rel=1e-5)
    assert {"lipschitz/margin_radius", "lipschitz/margin_bound"} <= trainer.callback_metrics.keys()
    assert margin.bound_in_loss.pairs().shape == (3, 3)
    fit(free, max_epochs=1)
    assert not same(weights(module), weights(free))
    assert F.cross_entropy(module.net(batch[0]), batch[1]) >= 0  # no mode is left behind
    assert module.state_dict().keys() == free.state_dict().keys()


def test_the_random_streams_and_flags_are_those_of_a_run_without_it(fit):
    def run(*callbacks):
        seed_everything(3)
        witness = Witness()
        fit(Noisy(), *callbacks, witness)
        return [[*seen[1:]] if isinstance(seen, tuple) else seen for seen in witness.seen[:-1]]

    plain, attached = run(), run(LipschitzMargin(RADIUS))
    flags = [entry for entry in plain if not entry or isinstance(entry[0], bool)]
    streams = [entry[-3:] for entry in plain if len(entry) == 4]
    assert flags == [entry for entry in attached if not entry or isinstance(entry[0], bool)]
    assert streams == [entry[-3:] for entry in attached if len(entry) == 4]
    assert streams


@pytest.mark.parametrize("schedule", ["over", "linear", lambda t: 1.0 + t])
def test_a_resumed_run_goes_on_exactly(schedule, trainer, tmp_path):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    seed_everything(5)
    module = Made()
    trainer(LipschitzMargin(RADIUS, schedule=schedule), Stop(), max_epochs=4).fit(module, loader())
    again = Made()
    trainer(LipschitzMargin(RADIUS, schedule=schedule), max_epochs=4).fit(
        again, loader(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert same(weights(module), weights(again))


class OtherLoss(Classifier):
    loss = staticmethod(lambda logits, y: F.nll_loss(logits.log_softmax(1), y))

    def _loss(self, batch):
        return self.loss(self(batch[0]), batch[1])


def soft(logits, y):
    return F.cross_entropy(logits, F.one_hot(y, 3).float())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (OtherLoss.loss, "it was not called"),
        (soft, r"logits of shape \(4, 3\) and a target of shape \(4, 3\)"),
        (lambda logits, y: F.cross_entropy(logits[..., None], y[:, None]), r"\(4, 3, 1\)"),
        (lambda logits, y: F.cross_entropy(logits[:, :2], y.clamp(max=1)), r"\(4, 2\)"),
    ],
    ids=["nll", "soft", "dense", "other classes"],
)
def test_it_is_never_silently_off(loss, said, fit):
    module = OtherLoss()
    module.loss = loss
    with pytest.raises(MisconfigurationException, match=said) as error:
        fit(module, LipschitzMargin(RADIUS))
    assert "margin_cross_entropy" in str(error.value)
    assert module.trainer.global_step <= 1


def test_losses_with_weights_and_smoothing_are_seen(fit):
    module = OtherLoss()
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    module.loss, seen = lambda logits, y: seen.append(criterion(logits, y)) or seen[-1], []
    torch.manual_seed(0)
    start = copy.deepcopy(module.net)
    fit(module, LipschitzMargin(RADIUS, schedule="constant"), max_epochs=1, limit_train_batches=1, val=False)
    x, y = next(iter(loader()))
    K = DifferentiableBound(start, x).pairs()
    expected = margin_cross_entropy(start(x), y, K, RADIUS, weight=criterion.weight, label_smoothing=0.1)
    assert seen[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_it_is_gone_after_an_exception(fit):
    class Broken(Classifier):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("in a step")

    with pytest.raises(RuntimeError, match="in a step"):
        fit(Broken(), LipschitzMargin(100.0))
    logits, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert F.cross_entropy(logits, y).item() == pytest.approx(torch.log(torch.tensor(3.0)).item())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_training_without_an_end_needs_a_constant_radius(trainer):
    with pytest.raises(MisconfigurationException, match="has no end"):
        trainer(LipschitzMargin(RADIUS), max_epochs=-1, max_time="00:00:00:01").fit(Classifier(), loader())
    trainer(LipschitzMargin(RADIUS, schedule="constant"), max_epochs=-1, max_steps=3).fit(Classifier(), loader())
    trainer(LipschitzMargin(RADIUS), max_epochs=-1, max_steps=3).fit(Classifier(), loader())


def test_the_schedule_runs_over_the_fit(fit):
    class Radii(Callback):
        def __init__(self, margin):
            self.margin, self.seen = margin, []

        def on_train_batch_end(self, *_):
            self.seen.append(self.margin._radius)

    margin = LipschitzMargin(1.0, schedule="over")
    radii = Radii(margin)
    fit(Classifier(), margin, radii, max_epochs=4)
    assert radii.seen[0] == 1.0
    assert radii.seen == sorted(radii.seen)
    assert radii.seen[8:] == [2.0] * 8
    assert [entry["margin_radius"] for entry in margin.history] == radii.seen[3::4]


class Silent(Classifier):
    """Lightning's own `log` does not compile."""

    def training_step(self, batch, batch_idx):
        return self._loss(batch)


@pytest.mark.parametrize("whole", [False, True], ids=["network", "with its loss"])
def test_compiled(whole, fit):
    module = Silent()
    if whole:
        module = torch.compile(module, backend="eager")
    else:
        module.net = torch.compile(module.net, backend="eager")
    margin, said = LipschitzMargin(RADIUS), ""
    try:
        fit(module, margin, max_epochs=1)
    except MisconfigurationException as error:  # where the compiler took the loss along
        said = str(error)
    if whole and said:
        assert "compile the network instead" in said
    else:
        assert not said
        assert margin.history[0]["margin_bound"] > 0


def test_copies_in_the_middle_of_a_fit(fit):
    class Copying(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            copy.deepcopy(trainer.callbacks[0])
            pickle.loads(pickle.dumps(trainer.callbacks[0]))
            copy.deepcopy(pl_module)

    fit(Classifier(), LipschitzMargin(RADIUS), Copying(), max_epochs=1)


def test_what_it_trained_for_is_what_is_proved(fit):
    """More is certified than by plain training, and the loss's own multipliers prove the loss's bound."""
    (x, y), certified = loader().dataset.tensors, []
    for callbacks in ([], [LipschitzMargin(0.2)]):
        torch.manual_seed(0)
        module = Made()
        watch = LipschitzCallback(certified_radii=[0.2], method="closed-form", lower_bound=False, every_n_epochs=40)
        trainer = fit(module, *callbacks, watch, max_epochs=40, val=loader())
        multipliers = callbacks[0].multipliers if callbacks else None
        bounds = ll.pairwise_bounds(module.net.eval(), x, refine=False, warm_start=multipliers)
        if callbacks:
            K = callbacks[0].bound_in_loss.pairs().detach().numpy()
            assert (bounds.matrix <= K * (1 + 1e-6)).all()
        with torch.no_grad():
            radii = ll.functional.certified_radius(module.net(x), torch.from_numpy(bounds.matrix.copy()), y)
        logged = trainer.callback_metrics["lipschitz/certified_accuracy_0.2"].item()
        assert logged == pytest.approx(
            float((radii > 0.2).double().mean()), abs=0.13
        )  # two of sixteen, by other bounds
        by_the_whole = ll.functional.certified_radius(module.net(x).detach(), watch.certificate.upper_bound, y)
        assert logged >= float((by_the_whole > 0.2).double().mean()) - 1e-6
        certified.append(logged)
    assert certified[1] > certified[0]


def test_a_named_module_and_output(fit):
    class Several(Classifier):
        def __init__(self):
            super().__init__()
            self.net = Head()

        def forward(self, x):
            return self.net(x)["logits"]

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = body()

        def forward(self, x):
            return {"logits": self.inner(x), "features": x}

    margin = LipschitzMargin(RADIUS, module="net", output="logits")
    fit(Several(), margin, max_epochs=1)
    assert margin.bound_in_loss.pairs().shape == (3, 3)


@pytest.mark.parametrize("make", [LipschitzMargin, LipschitzScale])
def test_no_hook_stays_on_the_batch_norms(make, fit):
    module = Noisy()
    fit(module, make(0.5, bound="product"), max_epochs=1)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())
