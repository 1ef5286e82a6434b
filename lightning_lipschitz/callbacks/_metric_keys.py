"""Names of what is logged, and when a name would say something that is not so."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning_lipschitz._lightning import Trainer, rank_zero_warn
from lightning_lipschitz.callbacks._measurement import LOGGED
from lightning_lipschitz.lightning_tools.submodule import Choice


def checked_prefix(mine: Any, trainer: Trainer) -> str:
    """The prefix of the keys that ``mine`` logs; warns of whatever would make one of them, or a file, lie."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    prefix = choose_prefix(mine, trainer, "lipschitz")
    warn_of_stale_labels(prefix, mine.every_n_epochs, callbacks)
    warn_of_late_averaging(mine, callbacks, trainer.max_epochs)
    warn_of_raw_weights(callbacks)
    return prefix


def choose_prefix(mine: Any, trainer: Trainer, base: str) -> str:
    """``base`` for the instance on the whole model, or the first one; ``base/<module>`` for the others, with the input
    and the output in it where these are named.

    Args:
        mine: one of the Trainer's callbacks. The Trainer refuses two of its kind on the same part.
        trainer: whose callbacks are asked, in order.
        base: prefix of this kind of callback.
    """
    siblings = [callback for callback in trainer.callbacks if isinstance(callback, type(mine))]  # type: ignore[attr-defined]
    names = [Choice.of(callback).label for callback in siblings]
    plain = "" if "" in names else names[0]
    mine_is = Choice.of(mine).label
    return base if mine_is == plain else f"{base}/{mine_is}"


def warn_of_stale_labels(prefix: str, every_n_epochs: int, callbacks: Iterable[Any]) -> None:
    """Between two measurements the last value stands, and whoever monitors it judges other weights by it."""
    if every_n_epochs == 1:
        return
    monitored = {getattr(callback, "monitor", None): type(callback).__name__ for callback in callbacks}
    for key in sorted({f"{prefix}/{name}" for name in LOGGED} & monitored.keys()):
        rank_zero_warn(
            f"`{monitored[key]}(monitor={key!r})` reads a value that is renewed in the first epoch and then in every"
            f" {every_n_epochs}th; in between it belongs to older weights. Use `ModelCheckpoint(every_n_epochs="
            f"{every_n_epochs})`, choose the patience of `EarlyStopping` as so many times longer, or set"
            " `LipschitzCallback(every_n_epochs=1)`."
        )


def warn_of_late_averaging(mine: Any, callbacks: list[Any], max_epochs: int | None) -> None:
    """Weight averaging once an epoch, after us in the list: the file then holds an average we have not seen."""
    for callback in callbacks[callbacks.index(mine) + 1 :]:
        if _is_weight_averaging(callback) and _averages_at_epoch_end(callback, max_epochs):
            name = type(callback).__name__
            rank_zero_warn(
                f"`{name}` updates its average at the end of an epoch and comes after `LipschitzCallback`, whose bound"
                " then belongs to the average before the update. List it first:"
                f" `Trainer(callbacks=[{name}(...), LipschitzCallback(...)])`."
            )


def warn_of_raw_weights(callbacks: Iterable[Any]) -> None:
    """Files without callback state hold the live weights even under weight averaging; the bound is the average's."""
    callbacks = list(callbacks)
    if any(map(_is_weight_averaging, callbacks)) and any(getattr(c, "save_weights_only", False) for c in callbacks):
        rank_zero_warn(
            "`ModelCheckpoint(save_weights_only=True)` saves the live weights, not the averaged ones, which are what"
            " `LipschitzCallback` certifies: these files carry no certificate. Use `save_weights_only=False`."
        )


def _is_weight_averaging(callback: Any) -> bool:
    # by name: there is one such class in each of the two Lightning packages
    return any(cls.__name__ == "WeightAveraging" for cls in type(callback).__mro__)


def _averages_at_epoch_end(callback: Any, max_epochs: int | None) -> bool:
    last = max_epochs - 1 if max_epochs is not None and max_epochs > 0 else 0
    return any(callback.should_update(epoch_idx=epoch) for epoch in {0, last})
