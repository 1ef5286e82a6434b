"""LipschitzScale: the loss sees the multiplied output, and nothing else changes; what leaves the run is certified."""

import copy
import io
import math
import pickle
import random
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll
from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.callbacks import LipschitzScale, stamped_certificates
from lightning_lipschitz.callbacks import scale as room
from lightning_lipschitz.callbacks._training_factor import TrainingFactor, multiplied
from lightning_lipschitz.errors import ProjectionError
from tests.callbacks.files import BOUND, MESSAGES
from tests.loops import DTYPES, LOOPS, adam, by_hand, distance
from tests.models import Lambda
from tests.modules import CLASSES, INPUTS, Bypassed, Classifier, NoForward, Noisy, body, loader

pytestmark = [pytest.mark.filterwarnings(message) for message in MESSAGES]

X = torch.zeros(2, INPUTS)
LIMIT = 0.1  # far below what training tends to


class ProductOfNorms:
    """A stand-in for a bound: the product of the spectral norms of all matrices; it counts what is asked of it."""

    def __init__(self, model, example_input, *, method="auto"):
        self.model, self.method = model, method
        self.calls = self.steps = 0

    def __call__(self):
        self.calls += 1
        weights = [m.weight.flatten(1) for m in self.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        return torch.stack([torch.linalg.matrix_norm(w.float(), 2) for w in weights]).prod()

    def step(self):
        self.steps += 1

    def close(self):
        """Nothing listens."""

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


@pytest.fixture
def product(monkeypatch):
    """All stand-ins that are made."""
    made = []

    def make(*args, **kwargs):
        made.append(ProductOfNorms(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(room, "DifferentiableBound", make)
    return made


# Training


class Known(Classifier):
    """With an optimizer that a loop by hand can make too."""

    def __init__(self, make=None):
        super().__init__()
        self.make = make or (lambda parameters: torch.optim.SGD(parameters, 0.5))
        self.example_input_array = X

    def configure_optimizers(self):
        return self.make(self.parameters())


class MultipliedByHand(Known):
    """What anyone would write in place of the callback."""

    def _loss(self, batch):
        if "bound" not in self.__dict__:
            self.__dict__["bound"] = ll.DifferentiableBound(self.net, X.to(batch[0].dtype))
        output = self.net(batch[0])
        b = self.bound()
        factor = BOUND / b if b > BOUND else torch.ones(())
        return nn.functional.cross_entropy(output * factor.to(output.dtype), batch[1])

    def followed(self):
        self.bound.step()
        return torch.zeros((), requires_grad=True)


TOLERANCES = {"bf16-mixed": 1e-6, "double": 1e-12, "bf16-true": 1e-2}


@pytest.mark.parametrize("optimizer", [None, adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("case", LOOPS)
def test_training_is_that_of_a_hand_written_loop(case, optimizer, fit):
    (hand, options), tolerance = LOOPS[case], TOLERANCES.get(case, 1e-6)
    dtype = DTYPES.get(case, torch.float32)
    torch.manual_seed(0)
    theirs, mine, free = MultipliedByHand(optimizer), Known(optimizer), Known(optimizer)
    mine.load_state_dict(theirs.state_dict())
    free.load_state_dict(theirs.state_dict())
    by_hand(theirs.to(dtype), before_step=theirs.followed, **hand)
    by_hand(free.to(dtype), **hand)
    fit(mine.to(dtype), Still(), val=False, **options)
    assert distance(mine, theirs) <= tolerance
    assert distance(free, theirs) > 5 * tolerance


class Still(LipschitzScale):
    """Leaves the training weights in the module at the end."""

    def __init__(self):
        super().__init__(BOUND)

    def on_fit_end(self, trainer, pl_module):
        pass


class Watched(Classifier):
    """What its training step saw."""

    def __init__(self):
        super().__init__(lr=0.1)
        self.example_input_array = X
        self.seen = []

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            self.eval()
            raw = self(batch[0])
            self.train()
            self.seen.append((raw, self(batch[0]), self(batch[0])))
        return super().training_step(batch, batch_idx)


def test_every_call_of_a_training_batch_is_multiplied(product, fit):
    torch.manual_seed(0)
    module = Watched()
    fit(module, LipschitzScale(BOUND), max_epochs=1)
    (bound,) = product
    assert len(module.seen) == bound.steps == 4
    assert bound.calls == 3 * 4
    norms = []
    for raw, first, second in module.seen:
        assert torch.equal(first, second)
        norms.append((first / raw).mean().item())
        assert torch.allclose(first, norms[-1] * raw)
    assert all(0 < each < 0.9 for each in norms)
    assert len(set(norms)) == 4


def test_nothing_is_multiplied_below_the_bound(fit, tmp_path):
    torch.manual_seed(0)
    free, mine, callback = Classifier(), Classifier(), LipschitzScale(1e4)
    mine.load_state_dict(free.state_dict())
    fit(free)
    saver = ModelCheckpoint(tmp_path, filename="one")
    fit(mine, callback, saver)
    assert all(torch.equal(a, b) for a, b in zip(free.parameters(), mine.parameters(), strict=True))
    assert [entry["factor"] for entry in callback.history] == [1.0] * 3
    assert not torch.load(tmp_path / "one.ckpt", weights_only=True)["scale"]["training_weights"]


class Streams(Callback):
    """What a user could see of a run, beside the loss."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        streams = torch.random.get_rng_state().sum().item(), np.random.get_state()[2], random.getstate()[1][-1]
        self.seen.append((batch[0].sum().item(), *streams, [module.training for module in pl_module.modules()]))


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=str)
def test_nothing_else_changes(options, fit):
    runs = []
    for callbacks in ([], [LipschitzScale(BOUND, module="net")]):
        pl.seed_everything(3, verbose=False)
        streams, module = Streams(), Noisy()
        fit(module, *callbacks, streams, **options)
        runs.append((streams.seen, list(module.state_dict()), torch.rand(1).item(), random.random()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_bound_follows_once_an_optimizer_step(accumulate, product, fit):
    trainer = fit(Classifier(), LipschitzScale(BOUND), val=False, accumulate_grad_batches=accumulate)
    assert product[0].calls == 8
    assert product[0].steps == trainer.global_step


class TwoOptimizers(Classifier):
    """Manual, one of the optimizers is for something else, and two backward passes a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(INPUTS, INPUTS)

    def training_step(self, batch, batch_idx):
        mine, others = self.optimizers()
        for _ in range(2):
            mine.zero_grad()
            self.manual_backward(self._loss(batch))
            mine.step()
        others.zero_grad()
        self.manual_backward(self.other(batch[0]).square().mean())
        others.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.5), torch.optim.SGD(self.other.parameters(), 0.5)


def test_two_optimizers(product, fit):
    module = TwoOptimizers()
    trainer = fit(module, LipschitzScale(BOUND, module="net"), val=False)
    assert trainer.global_step == 24
    assert product[0].calls == product[0].steps == 16
    assert ll.certify(module.net, X).upper_bound <= BOUND


class Closures(Classifier):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


def test_closures_are_fine(fit):
    module = Closures()
    fit(module, LipschitzScale(BOUND))
    assert ll.certify(module, X).upper_bound <= BOUND


class ZeroHead(Classifier):
    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)


def test_a_head_that_begins_with_zeros(fit):
    module, callback = ZeroHead(), LipschitzScale(BOUND)
    fit(module, callback)
    assert callback.history[-1]["factor"] < 1.0
    assert 0.9 * BOUND < ll.certify(module, X).upper_bound <= BOUND


# What is logged and written


def test_what_is_logged_is_what_is_written(fit, tmp_path):
    torch.manual_seed(1)
    module, callback = Classifier(lr=1.0), LipschitzScale(LIMIT)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = fit(module, callback, saver, max_epochs=3)
    assert {"scale/upper_bound", "scale/factor", "scale/training_bound"} <= trainer.callback_metrics.keys()
    for epoch, entry in enumerate(callback.history[:3]):
        file = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        raw, written = file["scale"]["training_weights"], file["state_dict"]
        assert set(raw) == {"net.2.weight", "net.2.bias"}
        assert 0 < entry["factor"] < 1
        for name, value in raw.items():
            assert torch.equal(written[name], (value.double() * entry["factor"]).float())
        fresh = Classifier.load_from_checkpoint(tmp_path / f"epoch={epoch}.ckpt")
        assert entry["upper_bound"] == ll.verify(stamped_certificates(file)["scale"], fresh, X) <= LIMIT
        x = torch.randn(200, INPUTS)
        decided = fresh(x).argmax(1)
        fresh.load_state_dict({**written, **raw})
        assert torch.equal(fresh(x).argmax(1), decided)
        assert entry["training_bound"] > 0
    assert callback.certificate.upper_bound == callback.history[-1]["upper_bound"]
    assert callback.history[-1]["factor"] == callback.history[-2]["factor"]


def batches(shape, samples=16):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, *shape, generator=generator)
    return DataLoader(TensorDataset(x, torch.randint(3, (samples,), generator=generator)), 4)


SHAPE = (3, 12, 12)


class Around(Classifier):
    """Any network."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.02)


IMAGES = torch.zeros(2, *SHAPE)


def around(make, example=IMAGES):
    module = Around()
    module.net, module.example_input_array = make(), example
    return module


def convolutional():
    """More than 4000 units: 4608 at the first activation."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 3)),
    )


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_one, self.norm_two = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(x + self.norm_two(self.two(torch.relu(self.norm_one(self.one(x))))))


def residual():
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(32, 4, 1), nn.ReLU(), Block(4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


def fully_convolutional():
    """The last layer is a batch norm behind a convolution."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, stride=3), nn.BatchNorm2d(3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (convolutional, "bf16-mixed"),
        (fully_convolutional, "32-true"),
        (residual, "32-true"),
        pytest.param(convolutional, "32-true", marks=pytest.mark.slow),
        pytest.param(convolutional, "bf16-true", marks=pytest.mark.slow),
        pytest.param(residual, "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_large_networks(make, precision, trainer, tmp_path):
    torch.manual_seed(0)
    module, callback = around(make), LipschitzScale(LIMIT)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1, save_last=True)
    average = [EMAWeightAveraging(decay=0.5)] if precision == "32-true" else []
    run = trainer(callback, *average, saver, precision=precision)
    run.fit(module, batches(SHAPE), batches(SHAPE))
    run.save_checkpoint(tmp_path / "after.ckpt", weights_only=True)
    files = sorted(Path(tmp_path).rglob("*.ckpt"))
    assert len(files) == 4
    assert callback.state_dict()["bound"]["method"] == "product"
    x = next(iter(batches(SHAPE, 64)))[0]
    for path in files:
        file = torch.load(path, weights_only=True)
        fresh = around(make).eval()
        fresh.load_state_dict(file["state_dict"])
        found = ll.certify(fresh, fresh.example_input_array)
        assert found.method == "composed"  # no explicit matrices
        assert 0.99 * LIMIT < found.upper_bound <= LIMIT
        assert ll.verify(stamped_certificates(file)["scale"], fresh, fresh.example_input_array) <= LIMIT
        if raw := file["scale"].get("training_weights"):
            decided = fresh(x).argmax(1)
            fresh.load_state_dict({**file["state_dict"], **raw})
            assert ll.certify(fresh, fresh.example_input_array).upper_bound > LIMIT
            if precision == "32-true":
                assert torch.equal(fresh(x).argmax(1), decided)


def test_beyond_the_others(trainer):
    """What holds all weights to the bound needs explicit matrices."""
    with pytest.raises(ProjectionError, match="explicit matrices"):
        trainer(ll.LipschitzADMM(0.3)).fit(around(convolutional), batches(SHAPE))


# Several outputs


class Heads(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(INPUTS, 8), nn.Linear(8, CLASSES), nn.Linear(8, 2)
        self.pack = pack

    def forward(self, x):
        h = torch.relu(self.trunk(x))
        return self.pack(self.first(h), self.second(h))


Fields = namedtuple("Fields", ["logits", "value"])
PACKS = {
    "tuple": (lambda *each: each, 0, 1),
    "list": (lambda *each: [*each], 0, 1),
    "dict": (lambda logits, value: {"logits": logits, "value": value}, "logits", "value"),
    "fields": (Fields, "logits", "value"),
    "fields by position": (Fields, 0, 1),
}


class TwoHeads(Classifier):
    @classmethod
    def of(cls, pack, wanted, other):
        module = cls()
        module.net, module.wanted, module.other = Heads(pack), wanted, other
        module.example_input_array, module.ratios = X, []
        return module

    def part(self, outputs, key):
        return outputs[key] if isinstance(outputs, dict) or isinstance(key, int) else getattr(outputs, key)

    def _loss(self, batch):
        outputs = self(batch[0])
        if self.training:
            with torch.no_grad():
                raw = self.net.eval()(batch[0])
                self.net.train()
            self.ratios.append(
                [(self.part(outputs, k) / self.part(raw, k)).mean().item() for k in (self.wanted, self.other)]
            )
            assert type(outputs) is type(raw)
        return nn.functional.cross_entropy(self.part(outputs, self.wanted), batch[1])


@pytest.mark.parametrize("name", PACKS)
def test_one_of_several_outputs(name, fit, tmp_path):
    torch.manual_seed(0)
    module = TwoHeads.of(*PACKS[name])
    callback = LipschitzScale(0.1, output=module.wanted)
    fit(module, callback, ModelCheckpoint(tmp_path, filename="one"))
    assert all(ratio < 0.9 and other == pytest.approx(1.0) for ratio, other in module.ratios)
    file = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(file["scale"]["training_weights"]) == {"net.first.weight", "net.first.bias"}
    assert ll.certify(module, X, output=module.wanted).upper_bound <= 0.1
    assert ll.certify(module, X, output=module.other).upper_bound > 0.1


def test_parts_that_have_no_single_last_layer():
    with pytest.raises(MisconfigurationException, match="`output` must be the position"):
        LipschitzScale(1.0, output=lambda y: y[0])
    assert multiplied((torch.ones(1), torch.ones(1)), "all", torch.tensor(2.0)) == (2.0, 2.0)


# Refusals


REFUSED = {
    "softmax": (lambda: nn.Sequential(body(), nn.Softmax(1)), r"2` \(Linear.*such as a softmax"),
    "skip": (
        lambda: Lambda(lambda m, x: (x - m.g(x))[:, :3], g=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))),
        r"g\.2` .*skip connection",
    ),
    "spectral norm": (
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.utils.parametrizations.spectral_norm(nn.Linear(8, CLASSES))
        ),
        "_SpectralNorm",
    ),
    "frozen": (lambda: nn.Sequential(*body()[:2], body()[2].requires_grad_(False)), "is frozen"),
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_last_affine_layer_is_refused(name, known, trainer, tmp_path):
    make, words = REFUSED[name]
    module, run = around(make, X if known else None), trainer(LipschitzScale(BOUND, module="net" if not known else ""))
    with pytest.raises(ProjectionError, match=words):
        run.fit(module, loader(), loader(8))
    assert run.global_step == 0
    assert run.fit_loop.epoch_loop.batch_progress.total.ready == (0 if known else 1)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.net.modules() if m is not module)


def test_a_part_with_a_last_affine_layer_does(fit):
    module = around(REFUSED["softmax"][0], X)
    fit(module, LipschitzScale(BOUND, module="net.0"))
    assert ll.certify(module.net[0], X).upper_bound <= BOUND


class Elsewhere(Bypassed):
    """`forward` is never called, and its layers are."""


@pytest.mark.parametrize("known", [True, False])
def test_never_silently_off(known, trainer):
    module = Elsewhere()
    if known:
        module.example_input_array = X
    with pytest.raises(MisconfigurationException, match=r"has not called it in training mode.*name the submodule"):
        trainer(LipschitzScale(BOUND)).fit(module, loader())
    trainer(LipschitzScale(BOUND, module="net"), max_epochs=1).fit(Elsewhere(), loader())


def test_no_forward_stands_for_the_only_child(fit):
    module = NoForward()
    fit(module, LipschitzScale(BOUND))
    assert ll.certify(module.net, X).upper_bound <= BOUND


def test_sharding_is_refused(trainer):
    run = trainer(LipschitzScale(1.0))
    run.strategy.__class__ = type("FSDPStrategy", (type(run.strategy),), {})
    with pytest.raises(MisconfigurationException, match="`LipschitzScale` does not support `FSDPStrategy` yet"):
        run.fit(Classifier(), loader())


BAD = {
    "max_lipschitz": (0.0, -1.0, math.nan, math.inf, "1", True),
    "bound": ("certified", None),
    "module": (None,),
    "prog_bar": ("yes",),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_arguments(name, value):
    with pytest.raises(MisconfigurationException, match=f"`{name}` must be"):
        LipschitzScale(**{"max_lipschitz": 1.0, name: value})


# Hooks


class Copier(Callback):
    """Copies of the module and of the callback in the middle of a batch's work."""

    def __init__(self):
        self.copies = []

    def on_before_backward(self, trainer, pl_module, loss):
        file = io.BytesIO()
        torch.save(pl_module, file)
        file.seek(0)
        self.copies += [copy.deepcopy(pl_module), torch.load(file, weights_only=False)]
        mine = next(c for c in trainer.callbacks if isinstance(c, LipschitzScale))
        assert copy.deepcopy(mine).history == pickle.loads(pickle.dumps(mine)).history


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_copies_are_inert_and_nothing_stays(product, fit):
    copier, module = Copier(), Classifier()
    fit(module, LipschitzScale(BOUND), copier, max_epochs=1)
    assert hooks(module) == 0
    x = torch.randn(5, INPUTS)
    calls = product[0].calls
    for each in copier.copies:
        assert hooks(each) == 2
        assert torch.equal(each.train()(x), each.net[2](torch.relu(each.net[0](x))))
    assert product[0].calls == calls


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()], ids=["error", "keyboard"])
@pytest.mark.parametrize("hook", ["on_before_backward", "on_train_batch_start", "on_validation_start"])
def test_nothing_stays_after_an_error(hook, error, trainer):
    module, breaks = Classifier(), Callback()

    def fail(*_):
        if module.global_step == 2:
            raise error

    setattr(breaks, hook, fail)
    with pytest.raises((RuntimeError, SystemExit)):
        trainer(LipschitzScale(BOUND), breaks, limit_train_batches=2).fit(module, loader(), loader(8))
    assert hooks(module) == 0
    raw = module.train()(X + 1.0)
    assert torch.equal(raw, module.net(X + 1.0))


class ForwardRedirection:
    """How a distributed strategy calls a training step in the name of the module's `forward`."""

    def __call__(self, module, x):
        real = module.forward

        def wrapped_forward(x):
            del module.forward
            return module(x).sum()

        assert module.forward == real
        module.forward = wrapped_forward
        return module(x)


def test_a_training_step_in_the_name_of_forward_is_not_multiplied():
    module = nn.Identity()
    factor = TrainingFactor(None, lambda *_: torch.tensor(0.5))
    factor.attach(module)
    factor.open()
    assert ForwardRedirection()(module, torch.ones(4)) == 2.0
    assert factor.calls == 1


class Silent(Classifier):
    """Without `self.log`, which Lightning's compiled modules do not survive."""

    def training_step(self, batch, batch_idx):
        return self._loss(batch)

    def validation_step(self, batch, batch_idx):
        pass


class CompiledPart(Silent):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["part", "part in place", "whole"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks
def test_compiled(kind, known, fit):
    weights = []
    for compiled in (False, True):
        torch.manual_seed(2)
        torch._dynamo.reset()
        module = CompiledPart() if kind == "part" and compiled else Silent()
        if known:
            module.example_input_array = X
        if kind == "part in place" and compiled:
            module.net.compile(backend="eager")
        name = "net" if kind != "whole" else ""
        mine = torch.compile(module, backend="eager") if kind == "whole" and compiled else module
        fit(mine, LipschitzScale(BOUND, module=name), val=False)
        assert ll.certify(module.net, X).upper_bound <= BOUND
        weights.append([p.detach() for p in module.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_resume_goes_on_with_what_the_bound_knows(product, fit, tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(Classifier(), LipschitzScale(BOUND), saver, max_epochs=1, val=False)
    state = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["callbacks"]["LipschitzScale{'module': ''}"]
    assert state["bound"] == {"steps": 2}
    assert state["training_bound"] > 0
    fit(Classifier(), LipschitzScale(BOUND), val=False, max_epochs=1, ckpt_path=tmp_path / "step=2.ckpt")
    assert [each.steps for each in product] == [4, 4]
    assert product[1].calls == 2
