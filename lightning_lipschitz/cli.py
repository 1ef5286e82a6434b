"""Command line: ``lightning-lipschitz demo``, ``certify WEIGHTS``, ``verify CERTIFICATE WEIGHTS``, ``report CKPT``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, get_args

from lightning_lipschitz import api
from lightning_lipschitz.bounds.settings import Method, Solver
from lightning_lipschitz.certificate import Certificate
from lightning_lipschitz.errors import LipschitzError
from lightning_lipschitz.weight_files import described, read_matrices, read_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, or 2 with one line on stderr for what the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        command: Any = options.run
        command(options)
    except (LipschitzError, OSError) as error:
        sys.stderr.write(f"lightning-lipschitz: {_printable(str(error))}\n")
        return 2
    return 0


def _printable(text: str) -> str:
    """One line that moves no cursor, whatever a file put into it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-lipschitz", description="Lipschitz constants, proved.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_certify(commands)
    _add_verify(commands)
    _add_report(commands)
    _add_demo(commands)
    return parser


def _add_certify(commands: Any) -> None:
    command = commands.add_parser("certify", help="bound the Lipschitz constant of the network in a weight file")
    command.add_argument("weights", metavar="WEIGHTS", help=".npz, .mat, .pt, .ckpt or .safetensors; first layer first")
    command.add_argument("--method", choices=[name for name in get_args(Method) if name != "composed"], default="auto")
    command.add_argument("--solver", choices=get_args(Solver), default="auto")
    _add_slopes(command)
    command.add_argument("--rtol", type=float, default=1e-6, help="relative gap to reach")
    command.add_argument("--time-limit", type=float, metavar="SECONDS")
    command.add_argument("--split-size", type=int, metavar="LAYERS", help="layers a sub-network (LipSDP's splitting)")
    command.add_argument("--workers", type=int, default=1, help="sub-networks solved at once")
    command.add_argument("--output", metavar="FILE", help="write the certificate, to be checked by `verify`")
    command.add_argument("--json", action="store_true", help="print all fields")
    command.set_defaults(run=_certify)


def _add_verify(commands: Any) -> None:
    command = commands.add_parser("verify", help="prove a certificate again, on the weights at hand")
    command.add_argument("certificate", metavar="CERTIFICATE", help="of `certify`; or a checkpoint that holds its own")
    command.add_argument("weights", metavar="WEIGHTS", nargs="?", help="by default, those of the checkpoint")
    _add_slopes(command)
    command.set_defaults(run=_verify)


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="write a page about a checkpoint and the certificate in it")
    command.add_argument("checkpoint", metavar="CKPT", help="written under one of the callbacks")
    command.add_argument("--output", default="report.html", metavar="FILE")
    command.add_argument("--model", metavar="PACKAGE.MODULE:CLASS", help="the LightningModule, loaded from CKPT")
    command.add_argument("--data", metavar="PACKAGE.MODULE:NAME", help="what makes batches (x, y), or a datamodule")
    command.add_argument("--key", help="of the certificate, where there are several: lipschitz, admm, barrier, ...")
    command.add_argument("--module", help="the submodule that is certified, where the file does not say it")
    command.add_argument("--pairs", action="store_true", default=None, help="bound all differences of two outputs")
    _add_slopes(command)
    command.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS", help="for its own searches")
    command.set_defaults(run=_report)


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="train on real digits in three ways and certify each")
    command.add_argument("--data-dir", metavar="DIR", help="MNIST in IDX files instead of scikit-learn's digits")
    command.add_argument("--epochs", type=int, default=30, help="of each training")
    command.add_argument(
        "--output",
        default="demo_output",
        metavar="DIR",
        help="for the picture, the TensorBoard logs and the certificates",
    )
    command.set_defaults(run=_demo)


def _add_slopes(command: Any) -> None:
    metavar = ("ALPHA", "BETA")
    command.add_argument(
        "--slopes", nargs=2, type=float, default=(0.0, 1.0), metavar=metavar, help="of the activations"
    )


def _certify(options: argparse.Namespace) -> None:
    weights, slopes = read_weights(options.weights), tuple(options.slopes)
    chosen = _chosen(options, "method", "solver", "rtol", "time_limit", "split_size", "workers")
    certificate = api.certify(weights, slopes=slopes, **chosen)
    of = described(weights, slopes)
    if options.output:
        certificate.save(options.output)
    told = json.dumps(certificate.summary() | {"of": of}, indent=2) if options.json else certificate.sentence(of)
    (sys.stderr if _is_stdout(options.output) else sys.stdout).write(told + "\n")


def _chosen(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _is_stdout(output: str | None) -> bool:
    """Whether the certificate itself goes there."""
    try:
        return output is not None and os.path.samestat(os.stat(output), os.fstat(1))
    except OSError:  # closed
        return False


def _verify(options: argparse.Namespace) -> None:
    if options.weights is None:
        _verify_checkpoint(options)
        return
    certificate, slopes = Certificate.load(options.certificate), tuple(options.slopes)
    weights = read_matrices(options.weights)
    bound = api.verify(certificate, weights, slopes=slopes)
    sys.stdout.write(f"proved: {bound!r} is an upper bound of {_CONSTANT} {described(weights, slopes)}\n")


_CONSTANT = "the Lipschitz constant of"


def _verify_checkpoint(options: argparse.Namespace) -> None:
    from lightning_lipschitz.checkpoint_files import prove_checkpoint

    for found in prove_checkpoint(options.certificate, tuple(options.slopes)):
        bound, of = found.certificate.upper_bound, found.described(tuple(options.slopes))
        told = f"{found.key}: proved: {bound!r} is an upper bound of {_CONSTANT} {of}"
        sys.stdout.write(_printable(told) + "\n")


def _report(options: argparse.Namespace) -> None:
    from lightning_lipschitz.checkpoint_report import report_checkpoint

    chosen = _chosen(options, "model", "data", "key", "module", "pairs", "time_limit")
    written = report_checkpoint(options.checkpoint, options.output, slopes=tuple(options.slopes), **chosen)
    sys.stdout.write(f"{written}\n")


def _demo(options: argparse.Namespace) -> None:
    from lightning_lipschitz.demo import run

    run(data_dir=options.data_dir, epochs=options.epochs, output=options.output)
