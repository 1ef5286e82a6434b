"""The tables of the demo."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_lipschitz import api
from lightning_lipschitz.demo.training import MAX_LIPSCHITZ, RADII, RADIUS, Epoch, Trained
from lightning_lipschitz.errors import MissingExtraError
from lightning_lipschitz.report.numbers import hundredths_down, hundredths_up

try:
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise MissingExtraError("The demo", "rich", "demo") from error

_EPOCHS = 12  # rows of the table, or a few more


def print_tables(rows: Sequence[Epoch], outcomes: Sequence[Trained], picture: Path, output: Path) -> None:
    """Print both tables, save a certificate for each training, and prove it again from its file."""
    console = Console(file=sys.stdout)
    console.print(_epochs(rows))
    console.print(_side_by_side(outcomes))
    for outcome in outcomes:
        file = output / f"{outcome.name}.lipschitz.npz"
        outcome.certificate.save(file)
        proved = api.verify(type(outcome.certificate).load(file), outcome.model)
        console.print(f"Proved again from {file}: |f(x) - f(y)| <= {proved!r} |x - y| for all x, y.", soft_wrap=True)
    console.print(f"picture      {picture}\ntensorboard  --logdir {output / 'tensorboard'}", soft_wrap=True)


def _epochs(rows: Sequence[Epoch]) -> Table:
    """Not every one of many; the last one always."""
    table = Table(title="Plain training: Lipschitz constant (l2) of the classifier")
    for column in ("epoch", "accuracy", "sampled: L >=", "certified: L <=", "product of norms"):
        table.add_column(column, justify="right", no_wrap=True)
    step = max(1, len(rows) // _EPOCHS)
    for row in rows[::-step][::-1]:
        bounds = hundredths_down(row.lower), hundredths_up(row.certified), hundredths_up(row.product)
        table.add_row(str(row.epoch), f"{row.accuracy:.1%}", *bounds)
    return table


def _side_by_side(outcomes: Sequence[Trained]) -> Table:
    caption = (
        f"within r: the share of test images that are right and, proved, so is every input within the l2 distance r."
        f" margin: LipschitzMargin({RADIUS:g}); scale: LipschitzScale({MAX_LIPSCHITZ:g}). Seconds: those of training."
    )
    table = Table(title="The same network, trained in four ways", caption=caption)
    table.add_column("training")
    for column in ("accuracy", "L >=", "L <=", *(f"within {radius:g}" for radius in RADII), "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for outcome in outcomes:
        certified = (f"{outcome.certified_accuracy(radius):.1%}" for radius in RADII)
        bounds = hundredths_down(outcome.lower), hundredths_up(outcome.certificate.upper_bound)
        table.add_row(outcome.name, f"{outcome.accuracy:.1%}", *bounds, *certified, f"{outcome.seconds:.1f}")
    return table
