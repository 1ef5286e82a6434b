"""Training loops written by hand, which a Trainer with a callback or a mixin of ours has to equal."""

import torch
from pytorch_lightning import Callback
from torch import nn

from tests.modules import loader


def adam(parameters):
    return torch.optim.Adam(parameters, 0.01)


def fused(parameters):
    return torch.optim.Adam(parameters, 0.01, fused=True)


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=128.0)


CLIP = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.2),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 0.05),
}

# What the loop below is told, and the Trainer.
LOOPS = {
    "plain": ({}, {}),
    "accumulate 2": ({"accumulate": 2}, {"accumulate_grad_batches": 2}),
    "partial window": ({"accumulate": 3}, {"accumulate_grad_batches": 3}),
    "clip by norm": ({"clip": CLIP["norm"]}, {"gradient_clip_val": 0.2}),
    "clip by value": ({"clip": CLIP["value"]}, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": ({"autocast": torch.bfloat16}, {"precision": "bf16-mixed"}),
    "double": ({}, {"precision": "64-true"}),
    "bf16-true": ({}, {"precision": "bf16-true"}),
}
DTYPES = {"double": torch.float64, "bf16-true": torch.bfloat16}


def by_hand(module, *, in_loss=None, before_step=None, accumulate=1, clip=None, autocast=None, scaler=None, epochs=2):
    """The training loop that anyone would write.

    ``in_loss()`` is added to every batch's loss; ``before_step()`` to the gradients, once an optimizer step.
    """
    optimizer = module.make(module.parameters())
    batches = [(x.to(next(module.parameters()).dtype), y) for x, y in loader()]
    for _ in range(epochs):
        for k, batch in enumerate(batches):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = module._loss(batch)
            loss = (loss if in_loss is None else loss + in_loss()) / accumulate
            (loss if scaler is None else scaler.scale(loss)).backward()
            if (k + 1) % accumulate and k + 1 < len(batches):
                continue
            if scaler is not None:
                scaler.unscale_(optimizer)
            if before_step is not None:
                before_step().backward()
            if clip is not None:
                clip(module.parameters())
            optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            optimizer.zero_grad()
    return module


def distance(one, other):
    """The largest difference of two modules' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


class OnlyBatchOneIsSkipped(Callback):
    """Every batch but that of index 1 moves the weights."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        same = [torch.equal(a, b) for a, b in zip(self.before, pl_module.parameters(), strict=True)]
        assert all(same) == (batch_idx == 1)
