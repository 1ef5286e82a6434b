"""CLIPMixin on one of several inputs and outputs: critics Q(s, a), models that return dictionaries."""

import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lipschitz as ll


class Critic(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, state, action):
        return {"q": self.net(torch.cat([state, action], 1)), "norm": action.norm(dim=1)}

    def training_step(self, batch, batch_idx):
        state, action, target = batch
        return (self(state, action)["q"] - target).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Clipped(ll.CLIPMixin, Critic, clip_input="action", clip_output="q", clip_weight=1.0):
    pass


class ByPosition(ll.CLIPMixin, Critic, clip_input=1, clip_output=lambda outputs: outputs["q"], clip_weight=1.0):
    pass


class Misnamed(ll.CLIPMixin, Critic, clip_input="velocity", clip_output="q"):
    pass


class WithoutOutput(ll.CLIPMixin, Critic, clip_input="action"):
    pass


def loader():
    generator = torch.Generator().manual_seed(0)
    state, action = (torch.randn(64, width, generator=generator) for width in (4, 2))
    return DataLoader(TensorDataset(state, action, 3 * action[:, :1] + state[:, :1]), 16)


def fitted(kind, trainer, *callbacks, epochs=4, **options):
    torch.manual_seed(0)
    module = kind()
    made = trainer(*callbacks, max_epochs=epochs)
    made.fit(module, loader(), loader(), **options)
    return module, made


def test_the_slope_towards_the_chosen_input_falls(trainer):
    watch = {"input": "action", "output": "q"}
    (clipped, made), (plain, _) = (fitted(kind, trainer, ll.LipschitzCallback(**watch)) for kind in (Clipped, Critic))
    state, action, _ = next(iter(loader()))
    before, after = (ll.certify(each, (state, action), **watch).upper_bound for each in (plain, clipped))
    assert after < 0.8 * before
    assert 0 < float(made.callback_metrics["clip/lower_bound"]) <= after
    clip = clipped._clip
    u, v = clip._pairs.u, clip._pairs.v
    with torch.no_grad():
        held = clip._held[0].expand(len(u), -1)
        rise = (clipped(held, u)["q"] - clipped(held, v)["q"]).norm(dim=1)
    assert float((rise / (u - v).norm(dim=1)).max()) == pytest.approx(clip.lower_bound(clipped), rel=1e-5)


def test_positions_and_functions_name_the_same(trainer):
    ours, theirs = (fitted(kind, trainer)[0] for kind in (Clipped, ByPosition))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_resumed_run_goes_on_exactly(trainer, tmp_path):
    whole, _ = fitted(Clipped, trainer)
    _, half = fitted(Clipped, trainer, epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    resumed, _ = fitted(Clipped, trainer, ckpt_path=tmp_path / "half.ckpt")
    for mine, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert resumed._clip.lower_bound(resumed) == whole._clip.lower_bound(whole)


@pytest.mark.parametrize(("kind", "says"), [(Misnamed, "'velocity'"), (WithoutOutput, "clip_output")])
def test_what_cannot_be_meant_is_told(kind, says, trainer):
    with pytest.raises(MisconfigurationException, match=says):
        fitted(kind, trainer)
