"""CLIPMixin beside what else holds on to the weights: constraints, certificates, averages, compilation."""

import copy

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

import lightning_lipschitz as ll
from lightning_lipschitz.mixins._schedule import ClipSchedule
from tests.loops import distance
from tests.modules import INPUTS, Classifier, Manual, body

WEIGHT = 0.3


class Net(ll.CLIPMixin, Classifier, clip_weight=WEIGHT, clip_pairs=6, clip_climbing=4, clip_reset_every_n_steps=5):
    pass


class ScheduleFirst(Net):
    """The average comes after the mixin's own callback; elsewhere it comes before."""

    def configure_callbacks(self):
        return [ClipSchedule(), EMAWeightAveraging(decay=0.5)]


def seeded(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("kind", [Net, ScheduleFirst])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume_under_weight_averaging(kind, fit, tmp_path):
    def average():
        return [] if kind is ScheduleFirst else [EMAWeightAveraging(decay=0.5)]

    def kinds(trainer):
        return [
            type(callback) for callback in trainer.callbacks if type(callback) in (EMAWeightAveraging, ClipSchedule)
        ]

    straight, first, second = seeded(kind), seeded(kind), seeded(kind)
    whole = fit(straight, *average(), ModelCheckpoint(dirpath=tmp_path / "whole", filename="end"), max_epochs=4)
    fit(first, *average(), ModelCheckpoint(dirpath=tmp_path / "half", filename="half"), max_epochs=2)
    last = ModelCheckpoint(dirpath=tmp_path / "rest", filename="end")
    rest = fit(second, *average(), last, max_epochs=4, ckpt_path=tmp_path / "half" / "half.ckpt")
    assert kinds(rest) == (
        [ClipSchedule, EMAWeightAveraging] if kind is ScheduleFirst else [EMAWeightAveraging, ClipSchedule]
    )
    assert distance(straight, second) == 0.0
    assert rest.callback_metrics["clip/lower_bound"] == whole.callback_metrics["clip/lower_bound"]
    files = [torch.load(tmp_path / name / "end.ckpt", weights_only=True) for name in ("whole", "rest")]
    averages, live = ([file[key] for file in files] for key in ("state_dict", "current_model_state"))
    for (name, a), b in zip(averages[0].items(), averages[1].values(), strict=True):
        assert torch.equal(a, b), name
    assert any(not torch.equal(a, b) for a, b in zip(averages[0].values(), live[0].values(), strict=True))


def test_penalty_constraint_and_certificate_in_one_fit(fit, tmp_path):
    """Each does what it does alone: the penalty is logged, the certificate is of the file, the file meets the bound."""
    module, bound = seeded(Net), 0.8
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    certificate = ll.LipschitzCallback()
    metrics = fit(module, certificate, ll.LipschitzADMM(bound, every_n_steps=2), saver, max_epochs=4).callback_metrics
    assert metrics["clip/lower_bound"] > 0.0
    assert metrics["clip/lower_bound"] <= metrics["lipschitz/upper_bound"] * (1 + 1e-5)
    net = Classifier()
    net.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"])
    for each in net.net, module.net:
        assert ll.certify(each, torch.zeros(2, INPUTS)).upper_bound <= bound * (1 + 1e-6)


def test_the_penalty_lowers_the_certificate(fit):
    def bound(kind, weight):
        module = seeded(kind)
        module.clip_weight = weight
        metrics = fit(module, ll.LipschitzCallback(), max_epochs=8).callback_metrics
        return float(metrics["lipschitz/upper_bound"])

    bounds = [bound(Net, weight) for weight in (1e-30, 0.1, 0.3, 1.0)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.5 * bounds[0]


class Silent(Net):
    """Without `self.log`, which Lightning's compiled modules do not survive."""

    def training_step(self, batch, batch_idx):
        return self._loss(batch)


class SilentManual(ll.CLIPMixin, Manual, clip_weight=WEIGHT, clip_pairs=6, clip_climbing=4):
    pass


class CompiledPart(Silent):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(body(), backend="eager")


def compiled_whole():
    return torch.compile(Silent(), backend="eager")


def compiled_manual():
    return torch.compile(SilentManual(), backend="eager")


@pytest.mark.parametrize(
    ("make", "plain"), [(CompiledPart, Silent), (compiled_whole, Silent), (compiled_manual, SilentManual)]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated")  # compiling the optimizer's step does it
def test_compiled(make, plain, fit):
    theirs, unpenalised = seeded(plain), seeded(plain)
    unpenalised.clip_weight = 1e-30
    mine = seeded(make)
    mine.load_state_dict(rename(theirs.state_dict(), mine.state_dict()))
    traced = []
    torch._dynamo.reset()
    for module in mine, theirs, unpenalised:
        trainer = fit(module, val=False)
        traced.append(torch._dynamo.utils.counters["frames"]["ok"])
        assert "clip/lower_bound" in trainer.callback_metrics
    assert distance(mine, theirs) <= 1e-6
    assert distance(theirs, unpenalised) > 1e-3
    assert traced[0] > 0


def rename(state, like):
    return dict(zip(like, copy.deepcopy(list(state.values())), strict=True))
