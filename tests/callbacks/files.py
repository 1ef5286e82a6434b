"""What is in a file, seen with nothing but the file: its weights in a fresh module, certified anew."""

from pathlib import Path

import torch
from pytorch_lightning import Callback

import lightning_lipschitz as ll
from lightning_lipschitz.callbacks import LipschitzADMM, LipschitzBarrier, LipschitzScale, stamped_certificates
from tests.modules import INPUTS, Classifier

BOUND = 0.4
ALLOWED = BOUND * (1 + 1e-9)
MESSAGES = (
    "ignore:.*the training weights did not come to meet",
    "ignore:.*optimizer steps would have broken",
    "ignore:.*the weights were outside",
    "ignore:Checkpoint directory",
    "ignore:Swapping scheduler",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:The dirpath has changed",
    "ignore:You're using the WeightAveraging",
)


class Failing(Callback):
    """An error of the user's in the middle of a fit."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            raise self.error


def admm(**options):
    return LipschitzADMM(BOUND, **({"every_n_steps": 3} | options))


def barrier(**options):
    return LipschitzBarrier(BOUND, **options)


def scale(**options):
    return LipschitzScale(BOUND, **options)


METHODS = {"admm": admm, "barrier": barrier, "scale": scale}


def bound_of(path, make=Classifier, module=""):
    """Of a fresh module with the weights of a file, by ``certify`` alone; every stamp is of these weights."""
    file = torch.load(path, weights_only=True)
    fresh = make()
    fresh.load_state_dict(file["state_dict"])
    target, x = fresh.get_submodule(module), torch.zeros(2, INPUTS)
    stamps = stamped_certificates(file)
    assert stamps, f"{path} has no certificate"
    for stamp in stamps.values():
        ll.verify(stamp, target, x)
    # a search stops a little above what some multipliers prove, and a stamp that was just verified is one such proof
    return min(ll.certify(target, x, rtol=1e-8).upper_bound, *(stamp.upper_bound for stamp in stamps.values()))


def above(folder, make=Classifier, module=""):
    """The files whose weights break the bound, and the number of all."""
    files = sorted(Path(folder).rglob("*.ckpt"))
    return [path.name for path in files if bound_of(path, make, module) > ALLOWED], len(files)
