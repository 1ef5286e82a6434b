"""CLIPMixin with several optimizers: every parameter gets the term once in a training step."""

import pytest
import torch
from torch import nn

import lightning_lipschitz as ll
from lightning_lipschitz.functional import ascend, initial_pairs
from tests.loops import distance
from tests.modules import CLASSES, Classifier, body, loader

WEIGHT, RATE = 0.3, 0.2


class One(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_climbing=None):
    def __init__(self):
        super().__init__(lr=RATE)


class OneALayer(One):
    """One loss, an optimizer for each layer: `global_step` runs twice as fast."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(self._loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[k].parameters(), RATE) for k in (0, 2)]


@pytest.mark.parametrize("every", [1, 2, 3])
def test_as_with_one_optimizer(every, fit):
    modules = []
    for kind in One, OneALayer:
        torch.manual_seed(0)
        module = kind()
        module.clip_every_n_steps, module.clip_reset_every_n_steps = every, 4
        fit(module, val=False)
        modules.append(module)
    assert distance(*modules) <= 1e-7
    assert modules[0]._clip._draws == modules[1]._clip._draws == 2


class Adversaries(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_climbing=None, clip_module="net"):
    """Two networks against each other, each trained with the other one frozen."""

    toggles, first = True, "critic"

    def __init__(self):
        super().__init__(lr=RATE)
        self.critic = nn.Linear(CLASSES, 1)
        self.automatic_optimization = False

    def loss(self, part, batch):
        judged = self.critic(self.net(batch[0])).mean()
        return self._loss(batch) - judged if part == "net" else judged.square()

    def training_step(self, batch, batch_idx):
        optimizers = dict(zip(("net", "critic"), self.optimizers(), strict=True))
        for part in ("critic", "net") if self.first == "critic" else ("net", "critic"):
            optimizer = optimizers[part]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            self.manual_backward(self.loss(part, batch))
            optimizer.step()
            for each in [optimizer] if self.toggles else optimizers.values():
                each.zero_grad()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), RATE) for part in (self.net, self.critic)]


def adversaries_by_hand(module):
    """The penalty is of `net`, so that it is in the gradient of its optimizer alone."""
    pairs = None
    for _ in range(2):
        for batch in loader():
            for part in ("critic", "net") if module.first == "critic" else ("net", "critic"):
                parameters = list(getattr(module, part).parameters())
                loss = module.loss(part, batch)
                if part == "net":
                    generator = torch.Generator().manual_seed(hash((0, 0, 0)) % 2**63)
                    pairs = pairs or initial_pairs(batch[0], 64, generator=generator)
                    pairs, _ = ascend(module.net, pairs)
                    u, v = pairs.u, pairs.v
                    loss = loss + WEIGHT * ((module.net(u) - module.net(v)).norm(dim=1) / (u - v).norm(dim=1)).max()
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                        parameter -= RATE * gradient
    return module


def adversaries(first, toggles=True):
    torch.manual_seed(0)
    module = Adversaries()
    module.first, module.toggles = first, toggles
    return module


@pytest.mark.parametrize("first", ["net", "critic"])
def test_optimizers_that_take_turns(first, fit):
    mine, theirs = adversaries(first), adversaries_by_hand(adversaries(first))
    fit(mine, val=False)
    assert distance(mine, theirs) <= 1e-6


class Whole(Adversaries, clip_module=""):
    """The penalty is of both, one after the other."""

    def forward(self, x):
        return self.critic(self.net(x))

    def _loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def test_each_part_gets_the_term_in_its_turn(fit):
    def trained(weight):
        torch.manual_seed(0)
        module = Whole()
        module.clip_weight = weight
        fit(module, val=False, max_epochs=1, limit_train_batches=1)
        return module

    with_term, without = trained(WEIGHT), trained(1e-30)
    for part in "net", "critic":
        assert distance(getattr(with_term, part), getattr(without, part)) > 1e-4, part


class OwnAccumulation(One):
    """Two batches a step, each loss divided by two; the penalty is not, being added to both."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(self._loss(batch) / 2)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_own_accumulation_doubles_the_penalty_as_documented(fit):
    class Halved(One, clip_weight=2 * WEIGHT):
        pass

    torch.manual_seed(0)
    mine = OwnAccumulation()
    fit(mine, val=False)
    torch.manual_seed(0)
    theirs = Halved()
    fit(theirs, val=False, accumulate_grad_batches=2)
    assert distance(mine, theirs) <= 1e-6


def test_spare_submodules_stay(fit):
    """A frozen target: nothing to pull, and no error."""

    class FrozenTarget(One, clip_module="spare"):
        def __init__(self):
            super().__init__()
            self.spare = body().requires_grad_(False)

    module = FrozenTarget()
    fit(module, val=False)
    assert module._clip._pairs is None
