"""Bounds beside what else holds, moves, freezes or prunes the weights."""

import pytest
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, BaseFinetuning, Callback, ModelCheckpoint, ModelPruning
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.utils import prune

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzCallback, stamped_certificates
from tests.callbacks.files import ALLOWED, BOUND, MESSAGES, METHODS, above, bound_of
from tests.modules import INPUTS, Classifier, Pair

pytestmark = [pytest.mark.filterwarnings(message) for message in MESSAGES]
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
X = torch.zeros(2, INPUTS)


def steps(folder, **options):
    return ModelCheckpoint(folder, save_top_k=-1, filename="{step}", every_n_train_steps=2, **options)


# Weights that are tied to something outside


class Listed(Classifier):
    """The same parameters a second time, after the network, so that they are loaded last."""

    def __init__(self):
        super().__init__()
        self.again = nn.ParameterList([self.net[0].weight, self.net[2].weight])


class Twin(Classifier):
    """A second module with the same layers."""

    def __init__(self):
        super().__init__()
        self.twin = nn.Sequential(self.net[0], nn.Tanh())


class Memory(Classifier):
    """Another parameter, and a buffer, in the same memory."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(self.net[2].weight.data, requires_grad=False)
        self.register_buffer("seen", self.net[0].weight.data)


class Decoder(Classifier):
    """The transpose of a weight, as a parameter of its own in the same memory."""

    def __init__(self, layer=0):
        super().__init__()
        self.decoder = nn.Linear(8, INPUTS, bias=False)
        self.decoder.weight = nn.Parameter(self.net[layer].weight.data.t())


@BOTH
@pytest.mark.parametrize("weights_only", [pytest.param(False, marks=pytest.mark.slow), True], ids=["whole", "weights"])
@pytest.mark.parametrize("make", [Listed, Twin, Memory])
def test_weights_tied_to_the_outside(make, weights_only, method, fit, tmp_path):
    """A file holds one value of a tensor, by whatever name it is loaded."""
    monitor = LipschitzCallback(method="closed-form", lower_bound=False, module="net")
    trainer = fit(make(), method(module="net"), monitor, steps(tmp_path, save_weights_only=weights_only))
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    bad, count = above(tmp_path, make, "net")
    assert (bad, count) == ([], 5)


def test_tied_training_weights_come_back(fit, tmp_path):
    torch.manual_seed(0)
    model = Listed()
    model.net[0].weight.data.mul_(20.0)  # far outside: every file differs from training
    fit(model, LipschitzADMM(BOUND, module="net", every_n_steps=3), steps(tmp_path), max_epochs=1)
    file = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    kept = file["admm"]["training_weights"]
    assert torch.equal(kept["again.0"], kept["net.0.weight"])
    assert not torch.equal(kept["again.0"], file["state_dict"]["again.0"])


@pytest.mark.parametrize(("name", "layer"), [("admm", 0), ("barrier", 0), ("admm", 2), ("barrier", 2), ("scale", 2)])
def test_memory_shared_in_two_forms_is_refused(name, layer, fit):
    words = rf"`net\.{layer}\.weight` and `decoder\.weight` share memory"
    with pytest.raises(ll.errors.ProjectionError, match=words):
        fit(Decoder(layer), METHODS[name](module="net"))


# Two bounds


@pytest.mark.parametrize("second", [LipschitzADMM, LipschitzBarrier])
@pytest.mark.parametrize(
    ("make", "names"),
    [(Classifier, ("", "net.0")), (Classifier, ("net", "")), (Twin, ("net", "twin")), (Pair, ("net", ""))],
)
def test_two_bounds_on_the_same_weights_are_refused(make, names, second, fit):
    with pytest.raises(MisconfigurationException, match=r"`LipschitzADMM.*and.*hold the same weights, `.*weight`"):
        fit(make(), LipschitzADMM(1.0, module=names[0]), second(2.0, module=names[1]))


def test_two_methods_on_the_same_module_are_refused(fit):
    with pytest.raises(MisconfigurationException, match=r"LipschitzBarrier\(module=''\)"):
        fit(Classifier(), LipschitzADMM(3.0), LipschitzBarrier(3.0))


@pytest.mark.parametrize("kinds", [(LipschitzADMM, LipschitzADMM), (LipschitzBarrier, LipschitzADMM)])
def test_two_bounds_on_two_parts(kinds, fit, tmp_path):
    parts = ("encoder", "net")
    callbacks = [kind(BOUND, module=part) for kind, part in zip(kinds, parts, strict=True)]
    fit(Pair(), *callbacks, steps(tmp_path)).save_checkpoint(tmp_path / "after.ckpt")
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) == 5
    for path in files:
        file = torch.load(path, weights_only=True)
        model = Pair()
        model.load_state_dict(file["state_dict"])
        stamps = stamped_certificates(file)
        keys = [f"{kind.base}/{part}" for kind, part in zip(kinds, parts, strict=True)]
        for key, part in zip(keys, parts, strict=True):
            stamp = stamps.get(key) or stamps[key.partition("/")[0]]
            assert ll.verify(stamp, model.get_submodule(part), X) <= ALLOWED


# Live weights under the barrier, in every loop


class Live(Classifier):
    """Notes the bound of the live weights after every batch."""

    def __init__(self, lr=0.5):
        super().__init__(lr=lr)
        self.bounds = []

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.bounds.append(ll.certify(self.net, X, rtol=1e-6).upper_bound)


class Raw(Live):
    """Manual optimization, with torch's own optimizer."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.move(self.optimizers(use_pl_optimizer=False), self._loss(batch))

    def move(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Own(Raw):
    """An optimizer that the Trainer has never seen, new in every step."""

    def configure_optimizers(self):
        return None

    def training_step(self, batch, batch_idx):
        self.move(torch.optim.SGD(self.net.parameters(), 2.0), self._loss(batch))


class Closure(Raw):
    """A raw optimizer that computes its loss in a closure."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)

        def closure():
            optimizer.zero_grad()
            loss = self._loss(batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure)


class ByHand(Raw):
    """No optimizer at all."""

    def configure_optimizers(self):
        return None

    def move(self, optimizer, loss):
        self.manual_backward(loss)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter -= 2.0 * parameter.grad
                parameter.grad = None

    def training_step(self, batch, batch_idx):
        self.move(None, self._loss(batch))


class Wrapped(Raw):
    """Manual optimization by Lightning's wrapper."""

    def training_step(self, batch, batch_idx):
        self.move(self.optimizers(), self._loss(batch))


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("make", [Live, Raw, Own, Closure, Wrapped])
def test_live_weights_stay_inside_in_every_loop(make, fit):
    torch.manual_seed(0)
    fit(module := make(), LipschitzBarrier(BOUND))
    assert len(module.bounds) == 8
    assert max(module.bounds) <= BOUND * (1 + 1e-6)


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_weights_moved_without_an_optimizer_are_brought_back(fit):
    class Known(ByHand):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx or self.current_epoch:  # the first step of any optimizer is what moves the weights inside
                super().on_train_batch_end(outputs, batch, batch_idx)

        def training_step(self, batch, batch_idx):
            if batch_idx or self.current_epoch:
                return super().training_step(batch, batch_idx)
            torch.optim.SGD(self.net.parameters(), 0.0).step()

    fit(module := Known(), LipschitzBarrier(BOUND))
    assert max(module.bounds) <= BOUND * (1 + 1e-6)


def test_no_hook_is_left_behind(fit):
    class Fails(Raw):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            if batch_idx == 2:
                raise ValueError("a mistake of the user's")

    from torch.optim import optimizer

    fit(Raw(), LipschitzBarrier(BOUND), max_epochs=1)
    with pytest.raises(ValueError, match="a mistake"):
        fit(Fails(), LipschitzBarrier(BOUND))
    assert not optimizer._global_optimizer_pre_hooks
    assert not optimizer._global_optimizer_post_hooks


# Frozen layers


class Thaws(BaseFinetuning):
    """Freezes some layers and trains them from the second epoch on."""

    def __init__(self, *paths, lr=1.0):
        super().__init__()
        self.paths, self.lr = paths, lr

    def freeze_before_training(self, pl_module):
        for path in self.paths:
            self.freeze(pl_module.get_submodule(path))

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            for path in self.paths:
                self.unfreeze_and_add_param_group(pl_module.get_submodule(path), optimizer, lr=self.lr)


class Tuned(Live):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))  # there is always something to train

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]) * self.scale, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.5)


@BOTH
@pytest.mark.parametrize("paths", [["net.0"], pytest.param(["net.2"], marks=pytest.mark.slow), ["net"]], ids=str)
def test_frozen_layers_stay_and_are_trained_later(paths, method, fit, tmp_path):
    torch.manual_seed(1)
    module, mine = Tuned(), method(module="net")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, Thaws(*paths), mine, steps(tmp_path), max_epochs=3)
    bad, count = above(tmp_path, Tuned, "net")
    assert (bad, count) == ([], 6)
    if isinstance(mine, LipschitzBarrier):
        assert max(module.bounds) <= BOUND * (1 + 1e-6)
    file = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]
    for path in paths if paths != ["net"] else ():
        assert torch.equal(file[f"{path}.weight"], before[f"{path}.weight"])
        assert not torch.equal(module.state_dict()[f"{path}.weight"], before[f"{path}.weight"])


class Headed(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone, self.net = nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x):
        return self.net(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.5)


@BOTH
@pytest.mark.filterwarnings("ignore:.*")
def test_a_backbone_is_tuned_late_and_resumed(method, fit, tmp_path):
    """Also from a file of the first epochs, when the backbone was frozen."""
    torch.manual_seed(1)
    for tune, resumed in ((lambda: BackboneFinetuning(1, verbose=False), ()), (lambda: Thaws("backbone"), (2, 6))):
        folder = tmp_path / f"{len(resumed)}"
        fit(Headed(), tune(), method(), steps(folder))
        bad, count = above(folder, Headed)
        assert (bad, count) == ([], 4)
        for step in resumed:
            trainer = fit(Headed(), tune(), method(), ckpt_path=folder / f"step={step}.ckpt", max_epochs=3)
            trainer.save_checkpoint(tmp_path / "after.ckpt")
            assert bound_of(tmp_path / "after.ckpt", Headed) <= ALLOWED


# Pruning


def by_size(layers):
    for layer in layers:
        prune.l1_unstructured(layer, "weight", 0.5)


def whole_rows(layers):
    prune.ln_structured(layers[0], "weight", amount=3, n=2, dim=0)
    prune.ln_structured(layers[1], "weight", amount=0.5, n=float("inf"), dim=1)


def over_all_layers(layers):
    pairs = [(layer, "weight") for layer in layers]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.5)


def biases_too(layers):
    for layer in layers:
        prune.random_unstructured(layer, "weight", 0.25)
        prune.random_unstructured(layer, "bias", 0.5)


def twice(layers):
    by_size(layers)
    whole_rows(layers)


def for_good(layers):
    by_size(layers)
    for layer in layers:
        prune.remove(layer, "weight")


def one_for_good(layers):
    twice(layers)
    prune.remove(layers[1], "weight")


PRUNINGS = [by_size, whole_rows, over_all_layers, biases_too, twice, for_good, one_for_good]


@BOTH
@pytest.mark.parametrize("cut", PRUNINGS)
def test_pruned_before_the_fit_stays_pruned(cut, method, fit, tmp_path):
    """Where a mask says so; zeros that were made permanent are weights like others."""

    def pruned():
        torch.manual_seed(1)
        module = Classifier()
        cut([module.net[0], module.net[2]])
        return module

    fit(module := pruned(), method(), steps(tmp_path), max_epochs=1).save_checkpoint(tmp_path / "after.ckpt")
    bad, count = above(tmp_path, pruned)
    assert (bad, count) == ([], 3)
    module(X)
    file = torch.load(tmp_path / "after.ckpt", weights_only=True)["state_dict"]
    masks = {name: mask for name, mask in pruned().named_buffers() if name.endswith("_mask")}
    assert bool(masks) == (cut is not for_good)
    for name, mask in masks.items():
        assert torch.equal(file[name], mask)
        assert torch.equal(module.get_buffer(name), mask)
        layer, _, which = name.removesuffix("_mask").rpartition(".")
        assert not getattr(module.get_submodule(layer), which)[mask == 0].any()


class Anew(Callback):
    """Certifies the module anew whenever the other callback has."""

    def __init__(self):
        self.bounds = []

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.bounds.append(ll.certify(pl_module, X, method="closed-form").upper_bound)


LATER = {
    "by size": {"pruning_fn": "l1_unstructured", "amount": 0.3},
    "weights alone": {"pruning_fn": "l1_unstructured", "amount": 0.3, "parameter_names": ["weight"]},
    "random, of each layer": {
        "pruning_fn": "random_unstructured",
        "amount": 0.2,
        "use_global_unstructured": False,
    },
    "whole rows": {
        "pruning_fn": "ln_structured",
        "amount": 1,
        "pruning_norm": 2,
        "pruning_dim": 0,
        "parameter_names": ["weight"],
        "use_global_unstructured": False,
    },
    "reset to the start": {"pruning_fn": "l1_unstructured", "amount": 0.3, "use_lottery_ticket_hypothesis": True},
    "in one epoch": {"pruning_fn": "l1_unstructured", "amount": 0.5, "apply_pruning": lambda epoch: epoch == 1},
    "after validation": {"pruning_fn": "l1_unstructured", "amount": 0.3, "prune_on_train_epoch_end": False},
    "and kept as masks": {"pruning_fn": "l1_unstructured", "amount": 0.3, "make_pruning_permanent": False},
}


def held(path):
    """The module that a file holds, masks and all, and its certificates."""
    file, module = torch.load(path, weights_only=True), Classifier()
    for name in file["state_dict"]:
        if name.endswith("_mask"):
            layer, _, which = name.removesuffix("_mask").rpartition(".")
            prune.identity(module.get_submodule(layer), which)
    module.load_state_dict(file["state_dict"])
    return module, stamped_certificates(file).values()


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", LATER)
def test_watched_while_it_is_pruned(name, first, fit, tmp_path):
    """Every entry is the bound of the module of that moment, and a file has no certificate but of what it holds."""
    torch.manual_seed(0)
    monitor, pruning = LipschitzCallback(method="closed-form", lower_bound=False), ModelPruning(**LATER[name])
    module, anew = Classifier(), Anew()
    callbacks = (monitor, pruning) if first else (pruning, monitor)
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(module, *callbacks, anew, saver, max_epochs=3).save_checkpoint(tmp_path / "after.ckpt")
    logged = [record["upper_bound"] for record in monitor.history]
    assert all(record["solver_ok"] for record in monitor.history)
    assert len(logged) in (3, 4)  # where it is pruned after the last entry, there is one more
    assert logged[:3] == pytest.approx(anew.bounds, rel=1e-9)
    assert logged[-1] == pytest.approx(ll.certify(module, X, method="closed-form").upper_bound, rel=1e-9)
    assert ll.verify(monitor.certificate, module, X) == logged[-1]
    stamps = {path.stem: held(path) for path in tmp_path.glob("*.ckpt")}
    assert len(stamps) == 4
    for again, certificates in stamps.values():
        assert all(ll.verify(certificate, again, X) == certificate.upper_bound for certificate in certificates)
    assert stamps["after"][1]


def test_a_file_of_pruned_weights_has_their_certificate(fit, tmp_path):
    """Pruned in the second epoch of three, so that the third entry is of what the third file holds."""
    monitor = LipschitzCallback(method="closed-form", lower_bound=False)
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    fit(Classifier(), monitor, ModelPruning(**LATER["in one epoch"]), saver, max_epochs=3)
    files = [held(tmp_path / f"epoch={epoch}.ckpt") for epoch in (0, 2)]
    bounds = [ll.certify(module, X, method="closed-form").upper_bound for module, _ in files]
    assert bounds == pytest.approx([monitor.history[epoch]["upper_bound"] for epoch in (0, 2)], rel=1e-9)
    assert [[certificate.epoch for certificate in certificates] for _, certificates in files] == [[0], [2]]


@BOTH
def test_pruning_in_the_middle_is_refused_at_the_start(method, fit):
    with pytest.raises(MisconfigurationException, match=r"does not support `ModelPruning`.*Prune before the fit"):
        fit(Classifier(), method(), ModelPruning("l1_unstructured", amount=0.2))
