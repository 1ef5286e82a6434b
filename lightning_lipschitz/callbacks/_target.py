"""Which weights are certified: the submodule that was named, inside the model that ends up in the checkpoint."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_lipschitz._lightning import LightningModule, MisconfigurationException, Trainer

_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}  # by name: there are two packages
_NO_FORWARD = ("LightningModule.forward", "_forward_unimplemented")


def find_target(root: nn.Module, name: str, owner: str = "LipschitzCallback") -> nn.Module:
    """The submodule called ``name``; for ``""`` the model itself, or its only child if it has no ``forward``.

    Args:
        root: the LightningModule, or a copy of it that holds averaged weights.
        name: dotted, as in ``root.named_modules()``.
        owner: the class whose argument ``module`` this is, for the message.

    Raises:
        MisconfigurationException: no such submodule, or none that could be meant by ``""``.
    """
    if name:
        return _named(root, name, owner)
    if type(root).forward.__qualname__ not in _NO_FORWARD:
        return root
    children = [child for child in root.children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        return children[0]
    raise MisconfigurationException(
        f"`{owner}(module='')` stands for the forward of `{type(root).__name__}`, which has none. Define `forward`, or"
        f" name the submodule to certify: `module` can be {_choices(root)}."
    )


def _named(root: nn.Module, name: str, owner: str) -> nn.Module:
    try:
        return root.get_submodule(name)
    except AttributeError:
        raise MisconfigurationException(
            f"`{owner}(module={name!r})` names no submodule of `{type(root).__name__}`."
            f" `module` can be {_choices(root)}."
        ) from None


def _choices(root: nn.Module, limit: int = 8) -> str:
    names = [repr(name) for name, _ in root.named_modules() if name]
    listed = ", ".join(names[:limit]) or "''"
    return listed if len(names) <= limit else f"{listed}, ... ({len(names)} in all)"


def refuse_sharded(trainer: Trainer, owner: str) -> None:
    """Weights that no process holds whole cannot be read here.

    Raises:
        MisconfigurationException: the strategy shards parameters.
    """
    strategy = type(trainer.strategy)
    if _SHARDING & {cls.__name__ for cls in strategy.__mro__}:
        raise MisconfigurationException(
            f"`{owner}` does not support `{strategy.__name__}` yet: no process holds the whole weights."
            " Use `strategy='ddp'`, or certify a consolidated checkpoint with `lightning_lipschitz.certify`."
        )


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the module itself."""
    original = getattr(module, "_orig_mod", None)
    return original if isinstance(original, nn.Module) else module


def averaged_model(trainer: Trainer) -> AveragedModel | None:
    """The average that a ``WeightAveraging`` callback writes into checkpoints in place of the live weights."""
    models = [getattr(callback, "_average_model", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    averages = [model for model in models if isinstance(model, AveragedModel)]
    return averages[-1] if averages else None  # the last one writes last


def deployed(trainer: Trainer, pl_module: LightningModule) -> nn.Module:
    """The model whose weights a full checkpoint of this moment holds under ``state_dict``."""
    average = averaged_model(trainer)
    return pl_module if average is None else average.module
