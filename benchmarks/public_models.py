"""Models that other people published, with random weights: read, certified, or refused with the reason.

Every model is tried in a process of its own under a limit. `--only TEXT` takes the models whose line holds the text;
`--attach` trains the small ones for two epochs with `LipschitzCallback` and `CLIPMixin` in place of certifying them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from common import markdown, parser, publish
from zoo import ENTRIES, attach
from zoo.entry import Entry, reason

import lightning_lipschitz as ll
from lightning_lipschitz.errors import LipschitzError

#: Seconds that the search for a bound may take, and those after which a model counts as too slow.
LIMIT, TOO_SLOW = 60.0, 240.0

HEADER = ("model", "bound", "steepest pair found", "ratio", "method", "seconds", "refused, because")


def certified(entry: Entry) -> dict[str, Any]:
    """One line of the table."""
    torch.manual_seed(0)
    model, x = entry.make()
    model.eval()
    start = time.perf_counter()
    try:
        certificate = ll.certify(model, x, time_limit=LIMIT, throw=False, **entry.arguments)
    except LipschitzError as error:
        return {"refusal": str(error), "kind": type(error).__name__, "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    found = ll.lower_bound(model, x, steps=10, pairs=2, time_limit=LIMIT, **entry.arguments).value
    return {
        "bound": certificate.upper_bound,
        "slope": found,
        "method": certificate.method,
        "status": certificate.status.value,
        "seconds": seconds,
    }


def alone(index: int, *options: str) -> dict[str, Any]:
    """What a process of its own answers for one model."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--one", str(index), *options],
            capture_output=True,
            text=True,
            timeout=TOO_SLOW,
        )
    except subprocess.TimeoutExpired:
        return {"crash": f"no answer after {TOO_SLOW:.0f} s", "seconds": time.perf_counter() - start}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"crash": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1], "seconds": 0.0}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def row(entry: Entry, answer: dict[str, Any]) -> list[str]:
    name = f"{entry.package}: {entry.name}"
    if "bound" in answer:
        bound, slope = answer["bound"], answer["slope"]
        ratio = f"{bound / slope:.3g}" if slope else ""
        return [name, f"{bound:.4g}", f"{slope:.4g}", ratio, answer["method"], f"{answer['seconds']:.1f}", ""]
    return [name, "", "", "", "", f"{answer['seconds']:.1f}", reason(answer)]


def versions(entries: Sequence[Entry]) -> str:
    found = []
    for package in sorted({entry.package for entry in entries}):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return f"Versions: {', '.join(found)}."


def summary(entries: Sequence[Entry], answers: Sequence[dict[str, Any]]) -> str:
    bounded = [a for e, a in zip(entries, answers, strict=True) if not e.unbounded]
    proved = sum("bound" in a for a in bounded)
    above = sum(a["slope"] > a["bound"] for a in answers if "bound" in a)
    return (
        f"{len(entries)} models; {proved} of the {len(bounded)} without attention and products of unbounded values are"
        f" certified; {above} slopes above their bounds."
    )


def answer_one(entry: Entry, training: bool) -> None:
    """Prints a line of JSON, whatever happens in the package or the library."""
    warnings.simplefilter("ignore")
    try:
        print(json.dumps(attach.attached(entry) if training else certified(entry)))
    except Exception as error:
        print(json.dumps({"crash": f"{type(error).__name__}: {error}"[:400], "seconds": 0.0}))
        traceback.print_exc()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--one", type=int, help="only the model of this number; answers as JSON")
    arguments.add_argument("--only", default="", help="models whose package and name hold this text")
    arguments.add_argument("--jobs", type=int, default=1, help="models tried at once, each with the threads of one")
    arguments.add_argument("--attach", action="store_true", help="train the small models with callback and mixin")
    chosen = arguments.parse_args()
    if chosen.one is not None:
        return answer_one(ENTRIES[chosen.one], chosen.attach)
    picked = [(k, e) for k, e in enumerate(ENTRIES) if chosen.only in f"{e.package}: {e.name}"]
    if chosen.attach:
        picked = [(k, e) for k, e in picked if e.small]
    line, options = (attach.row, ["--attach"]) if chosen.attach else (row, [])
    answers = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for (_, entry), answer in zip(picked, pool.map(lambda one: alone(one[0], *options), picked), strict=True):
            answers.append(answer)
            print(" | ".join(line(entry, answer)), flush=True)
    entries = [entry for _, entry in picked]
    rows = [line(entry, answer) for entry, answer in zip(entries, answers, strict=True)]
    if chosen.attach:
        name, title, header, note = (
            "public_models_attached",
            "Public models in training",
            attach.HEADER,
            attach.summary(answers),
        )
    else:
        name, title, header, note = "public_models", "Public models", HEADER, summary(entries, answers)
    publish(name, markdown(title, header, rows, f"{note} {versions(entries)}"), chosen.write)


if __name__ == "__main__":
    main()
