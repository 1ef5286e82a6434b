"""Run a function over items in worker processes that are started for it and end with it.

Each worker is a fresh Python that runs :func:`serve` and speaks pickle over its standard input and output: unlike a
spawned ``multiprocessing`` pool it does not import the user's script (which need not guard its main block), and unlike
a forked one it inherits neither locks nor CUDA.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Event, Timer
from typing import Any, TypeVar

from lightning_lipschitz.bounds.settings import MapLike
from lightning_lipschitz.errors import SolverError, TimeLimitError

Item = TypeVar("Item")
Result = TypeVar("Result")


def mapping(workers: int | MapLike, time_limit: float | None = None) -> MapLike:
    """``workers`` itself if it maps, else :func:`map_in_processes` with so many."""
    return partial(map_in_processes, workers=workers, time_limit=time_limit) if isinstance(workers, int) else workers


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, time_limit: float | None = None
) -> list[Result]:
    """``[function(item) for item in items]``, in this process if one worker is enough.

    Raises:
        TimeLimitError: the workers had not finished after ``time_limit`` seconds, and were ended.
        SolverError: a worker died.
        Exception: what ``function`` raised, as it raised it.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        return [function(item) for item in items]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    started = [_Worker(max(1, (os.cpu_count() or 1) // workers)) for _ in range(workers)]
    late = Event()
    timer = Timer(TIMEOUT_MAX if time_limit is None else time_limit, _end, (late, started))
    timer.daemon = True
    try:
        timer.start()
        for worker in started:
            idle.put(worker)
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda item: _run_on_idle(idle, function, item), items))
    except SolverError as error:
        if late.is_set():
            raise TimeLimitError from error
        raise
    finally:
        timer.cancel()
        for worker in started:
            worker.close()


def _end(late: Event, workers: Sequence[_Worker]) -> None:
    late.set()
    for worker in workers:
        worker.kill()


def _run_on_idle(idle: SimpleQueue[_Worker], function: Callable[[Item], Result], item: Item) -> Result:
    worker = idle.get()
    try:
        result: Result = worker(function, item)
    finally:
        idle.put(worker)
    return result


class _Worker:
    """One process; calls are made one after the other."""

    def __init__(self, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {serve.__module__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(names, str(threads))},
        )

    def __call__(self, function: Callable[..., Any], item: Any) -> Any:
        ask, answer = self._process.stdin, self._process.stdout
        try:
            pickle.dump((function, item), ask)  # type: ignore[arg-type]
            ask.flush()  # type: ignore[union-attr]
            raised, value = pickle.load(answer)  # type: ignore[arg-type]
        except (OSError, EOFError) as error:
            raise SolverError(f"a worker process ended with status {self._process.poll()}.") from error
        if raised:
            raise value
        return value

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self.kill()
        self._process.communicate()


def serve() -> None:
    """Answer calls until the input ends. What the function prints goes to the standard error."""
    ask, answer = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    while True:
        try:
            function, item = pickle.load(ask)
        except EOFError:
            return
        try:
            reply = (False, function(item))
        except Exception as error:  # it is raised again by the caller
            reply = (True, error)
        pickle.dump(reply, answer)
        answer.flush()
