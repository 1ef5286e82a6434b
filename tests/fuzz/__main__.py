"""``python -m tests.fuzz FROM TO``: try the programs of these seeds; print what is wrong and a summary."""

from __future__ import annotations

import argparse
import collections
import time
import warnings

from tests.fuzz.programs import generate
from tests.fuzz.trial import attempt, smallest


def main():
    """Run, and return the number of findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--auto", type=int, default=20, help='try "auto" on every so-manieth program')
    parser.add_argument("--reweighed", type=int, default=2, help="models of other weights a program")
    parser.add_argument("--refusals", action="store_true", help="print what was refused, with its sentence")
    parser.add_argument("--show", action="store_true", help="print the programs only")
    options = parser.parse_args()
    counts, begin = collections.Counter(), time.perf_counter()
    warnings.simplefilter("ignore")
    for seed in range(options.first, options.end):
        program = generate(seed)
        if options.show:
            print(f"# {seed}: {program.dtype} {program.shape}\n{program.source()}")
            continue
        tightest = options.auto > 0 and seed % options.auto == 0
        outcomes = attempt(program, tightest=tightest, reweighed=options.reweighed)
        for outcome in outcomes:
            _count(counts, outcome)
        _tell(seed, program, outcomes, options)
        if (seed + 1) % 500 == 0:
            print(_summary(seed + 1 - options.first, counts, begin), flush=True)
    print(_summary(options.end - options.first, counts, begin))
    return counts["with findings"]


def _wrong(program, reweighed):
    return any(outcome.findings for outcome in attempt(program, reweighed=reweighed))


def _tell(seed, program, outcomes, options):
    """Print what is wrong with a program, or was not tried, with its source."""
    findings = [each for outcome in outcomes for each in outcome.findings]
    lines = "\n".join(step.line for step in program.steps)
    if findings:
        told = "\n".join(findings)
        print(f"=== seed {seed}, {program.dtype}, shape {program.shape}\n{program.source()}{told}", flush=True)
        least = smallest(program, lambda each: _wrong(each, options.reweighed))
        if least != program:
            print(f"--- the least of it\n{least.source()}", flush=True)
    for route, (kind, sentence) in outcomes[0].refusals.items():
        if options.refusals:
            print(f"--- {seed} {route} {kind}: {sentence}\n{lines}", flush=True)
    if outcomes[0].skipped:
        print(f"--- {seed} skipped: {outcomes[0].skipped}\n{lines}", flush=True)


def _count(counts, outcome):
    counts["models"] += 1
    counts["with findings"] += bool(outcome.findings)
    for route in outcome.bounds:
        counts[f"certified {route}"] += 1
    for route, (kind, _) in outcome.refusals.items():
        counts[f"refused {route} {kind}"] += 1
    counts["certified by some route"] += bool(outcome.bounds)
    counts["not sampled"] += bool(outcome.skipped)
    counts["within 1 % of a bound"] += outcome.largest > 0.99


def _summary(number, counts, begin):
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{number} programs, {counts['models']} models, {time.perf_counter() - begin:.0f} s: {told}"


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
