"""The HTML report at the end of a fit: one page, and its figures for loggers that take figures. Rank 0 only."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_lipschitz._lightning import Trainer, isolated_rng, rank_zero_warn
from lightning_lipschitz.callbacks._certified_accuracy import ValidationAccuracy
from lightning_lipschitz.lightning_tools.arguments import require
from lightning_lipschitz.report import Content, Subject, draw_all, gather, require_libraries, write_page
from lightning_lipschitz.report.figures import LIGHT

_SECONDS = 60.0  # for the searches that only the report needs; the other ranks may be waiting at the end of the fit


def check_path(owner: str, path: Any) -> None:
    """Refuse what is neither the path of a page nor None.

    Raises:
        MisconfigurationException: it is no path of a file.
        MissingExtraError: a library that the page takes is not installed.
    """
    if path is not None:
        named = isinstance(path, (str, os.PathLike)) and str(path) != "" and not Path(path).is_dir()
        require(named, owner, "report", path, "the path of an HTML file to write, or None")
        require_libraries()


def check_siblings(mine: Any, trainer: Trainer) -> None:
    """Two callbacks must not write the same file.

    Raises:
        MisconfigurationException: they would.
    """
    if mine.report is None:
        return
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    siblings = [each for each in callbacks if isinstance(each, type(mine)) and each is not mine]
    taken = [Path(each.report).absolute() for each in siblings if each.report is not None]
    free = Path(mine.report).absolute() not in taken
    require(free, type(mine).__name__, "report", mine.report, "another file for each instance")


def write_report(
    trainer: Trainer, path: str | os.PathLike[str], subject: Callable[[], Subject], accuracy: ValidationAccuracy
) -> None:
    """Write the page and hand its figures to the loggers. What fails is warned of: the model is trained already.

    Args:
        trainer: the Trainer whose fit ends.
        path: file for the page.
        subject: makes what the report is about.
        accuracy: predictions of the last validation.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    try:
        with isolated_rng():
            content = gather(_with_predictions(subject(), accuracy, trainer.world_size), time_limit=_SECONDS)
            write_page(content, path)
            _log_figures(trainer, content)
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        rank_zero_warn(f"`LipschitzCallback(report={os.fspath(path)!r})` could not finish its report: {told}")


def _with_predictions(subject: Subject, accuracy: ValidationAccuracy, processes: int) -> Subject:
    """The subject with the predictions of the last validation, if they are of the network that is reported."""
    found = accuracy.predictions
    if found is not None and found.digest == subject.certificate.network_digest:
        share = f" of one of {processes} processes" if processes > 1 else ""
        return replace(subject, predictions=replace(found, whose=found.whose + share))
    return replace(subject, why_not={**subject.why_not, "curve": _no_predictions(subject, accuracy)})


def _no_predictions(subject: Subject, accuracy: ValidationAccuracy) -> str:
    if accuracy.trouble is not None:
        return f"The validation batches are no pairs (x, y) of a classification. {accuracy.trouble}"
    if not accuracy.keeps:
        return f"Whether the validation batches hold inputs of `{subject.module}` is said by `certified_radii` only."
    return "No validation was run and certified with these weights."


def _log_figures(trainer: Trainer, content: Content) -> None:
    """Hand the figures to every logger with an ``add_figure``, as TensorBoard's."""
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    takers = [getattr(experiment, "add_figure", None) for experiment in experiments]
    for add_figure in filter(callable, takers):
        for section, figure in draw_all(content, LIGHT):
            add_figure(f"{content.subject.key}/report/{section}", figure, global_step=trainer.global_step)
    for logger in trainer.loggers:
        logger.save()
