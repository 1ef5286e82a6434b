import math
from types import SimpleNamespace

import pytest

from lightning_lipschitz._lightning import MisconfigurationException
from lightning_lipschitz.callbacks import LipschitzCallback
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.lightning_tools.ranks import refuse_sharded
from tests.modules import Classifier, DictBatches, Idle, Pair, Uncertifiable, UncertifiableWithExample

BAD = [
    ("every_n_epochs", 0, "an int >= 1"),
    ("every_n_epochs", -2, "an int >= 1"),
    ("every_n_epochs", 1.5, "an int >= 1"),
    ("every_n_epochs", True, "an int >= 1"),
    ("every_n_epochs", "2", "an int >= 1"),
    ("module", None, "the dotted name of a submodule"),
    ("method", "lipsdp", "'auto', 'norm-product', 'closed-form', 'sweep', 'lipsdp-layer', 'lipsdp-neuron'"),
    ("method", "lipsdp-network", "'auto', 'norm-product', 'closed-form', 'sweep', 'lipsdp-layer', 'lipsdp-neuron'"),
    ("method", None, "'auto'"),
    ("solver", "mosek", "'auto', 'native', 'clarabel', 'scs'"),
    ("rtol", 0.0, "a number between 0 and 1"),
    ("rtol", 1.0, "a number between 0 and 1"),
    ("rtol", math.nan, "a number between 0 and 1"),
    ("rtol", "small", "a number between 0 and 1"),
    ("time_limit", 0, "a number of seconds > 0, or None"),
    ("time_limit", math.inf, "a number of seconds > 0, or None"),
    ("lower_bound", 1, "True or False"),
    ("max_lipschitz", 0, "a finite number > 0 or None"),
    ("max_lipschitz", -3.0, "a finite number > 0 or None"),
    ("prog_bar", "yes", "True or False"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), BAD)
def test_bad_argument(name, value, accepted):
    with pytest.raises(MisconfigurationException) as caught:
        LipschitzCallback(**{name: value})
    sentence = str(caught.value)
    assert f"`{name}`" in sentence
    assert accepted in sentence
    assert repr(value) in sentence


@pytest.mark.parametrize("name", ["nets", "net.7", "net.0.weight"])
def test_submodule_that_does_not_exist(name, fit):
    with pytest.raises(
        MisconfigurationException, match=rf"module='{name}'\).*no submodule of `Classifier`.*'net', 'net.0'"
    ):
        fit(Classifier(), LipschitzCallback(module=name))


def test_two_instances_on_one_submodule(fit):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LipschitzCallback`"):
        fit(Pair(), LipschitzCallback(module="net", method="closed-form"), LipschitzCallback(module="net", rtol=0.1))


def test_no_forward_and_several_children(fit):
    class Two(Pair):
        forward = Classifier.__mro__[1].forward

    with pytest.raises(MisconfigurationException, match=r"stands for the forward of `Two`, which has none.*'net'"):
        fit(Two(), LipschitzCallback())


def count_batches(module):
    module.batches = 0

    def count(*_):
        module.batches += 1

    module.on_train_batch_start = count
    return module


@pytest.mark.parametrize(("make", "batches"), [(UncertifiableWithExample, 0), (Uncertifiable, 0)])
@pytest.mark.parametrize("sanity", [0, 2])
def test_model_that_cannot_be_certified_fails_at_the_start(make, batches, sanity, fit):
    module = count_batches(make())
    with pytest.raises(LipschitzError, match=r"pow|square|mul"):
        fit(module, LipschitzCallback(), num_sanity_val_steps=sanity)
    assert module.batches == (1 if make is Uncertifiable and sanity == 0 else batches)


def test_no_example_input_fails_in_the_first_batch(fit):
    module = count_batches(DictBatches())
    with pytest.raises(MisconfigurationException, match=r"of type `dict`, does not start with a tensor\. Set"):
        fit(module, LipschitzCallback())
    assert module.batches == 1


def test_submodule_that_is_never_called(fit):
    with pytest.raises(
        MisconfigurationException, match=r"module='spare'\)`: the submodule was not called in 4 batches"
    ):
        fit(Idle(), LipschitzCallback(module="spare"))


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_sharded_weights_are_refused(name):
    strategy = type("Mine", (type(name, (), {}),), {})()
    with pytest.raises(
        MisconfigurationException, match="does not support `Mine` yet: no process holds the whole weights"
    ):
        refuse_sharded(SimpleNamespace(strategy=strategy), "LipschitzCallback")
