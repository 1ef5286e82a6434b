"""``python -m tests.fuzz FROM TO``: try the programs of these seeds; print what is wrong and a summary."""

from __future__ import annotations

import argparse
import collections
import time
import warnings

from tests.fuzz.programs import generate
from tests.fuzz.trial import attempt, smallest


def _kind(finding):
    return finding.split(" ")[0:3]


def main():
    """Run, and return the number of findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int)
    parser.add_argument("--auto", type=int, default=20, help='try "auto" on every so-manieth program')
    parser.add_argument("--refusals", action="store_true", help="print what was refused, with its sentence")
    parser.add_argument("--show", action="store_true", help="print the programs only")
    options = parser.parse_args()
    counts, begin, findings = collections.Counter(), time.perf_counter(), 0
    warnings.simplefilter("ignore")
    for seed in range(options.first, options.end):
        program = generate(seed)
        if options.show:
            print(f"# {seed}: {program.dtype} {program.shape}\n{program.source()}")
            continue
        outcome = attempt(program, tightest=options.auto > 0 and seed % options.auto == 0)
        _count(counts, outcome)
        if outcome.findings:
            findings += 1
            least = smallest(program, lambda each: bool(attempt(each).findings))
            told = "\n".join(outcome.findings)
            print(f"=== seed {seed}, {program.dtype}, shape {program.shape}\n{program.source()}{told}", flush=True)
            if least != program:
                print(f"--- the least of it\n{least.source()}", flush=True)
        if options.refusals and outcome.refusals:
            lines = "\n".join(step.line for step in program.steps)
            for route, (kind, sentence) in outcome.refusals.items():
                print(f"--- {seed} {route} {kind}: {sentence}\n{lines}", flush=True)
        if outcome.skipped:
            lines = "\n".join(step.line for step in program.steps)
            print(f"--- {seed} skipped: {outcome.skipped}\n{lines}", flush=True)
        if (seed + 1) % 500 == 0:
            print(_summary(seed + 1 - options.first, counts, findings, begin), flush=True)
    print(_summary(options.end - options.first, counts, findings, begin))
    return findings


def _count(counts, outcome):
    for route in outcome.bounds:
        counts[f"certified {route}"] += 1
    for route, (kind, _) in outcome.refusals.items():
        counts[f"refused {route} {kind}"] += 1
    counts["certified by some route"] += bool(outcome.bounds)
    counts["not sampled"] += bool(outcome.skipped)
    counts["within 1 % of a bound"] += outcome.largest > 0.99


def _summary(number, counts, findings, begin):
    told = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return f"{number} programs, {findings} with findings, {time.perf_counter() - begin:.0f} s: {told}"


if __name__ == "__main__":
    raise SystemExit(min(main(), 1))
