"""The page: one HTML file that needs nothing else, written whole or not at all."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lipschitz.certificate import Multipliers
from lightning_lipschitz.errors import MissingExtraError
from lightning_lipschitz.graph.network import Network
from lightning_lipschitz.report import numbers
from lightning_lipschitz.report.content import Content, Subject
from lightning_lipschitz.report.figures import DARK, LIGHT, draw_all, png
from lightning_lipschitz.written import written_whole

_EMBEDDED = 20_000_000  # bytes of a certificate that still goes into the page
_ROWS = 40  # of the history


@dataclass(frozen=True)
class Picture:
    """PNG files for a light and a dark page, base64, and their width in CSS pixels, of which 96 make an inch."""

    light: str
    dark: str
    width: int


def require_libraries() -> None:
    """Refuse to begin where jinja2 or matplotlib is missing, before long work starts.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError("The report", " and ".join(missing), "report")


def write_page(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write the page, and its folder if there is none.

    Args:
        content: what the page says, see :func:`~lightning_lipschitz.report.gather`.
        path: file for the page; an older one is replaced when the new one is complete.

    Returns:
        The path.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        OutputError: it cannot be written there.
    """
    require_libraries()
    text, target = render(content), Path(path)
    with written_whole(target, make_folder=True) as part:
        part.write_text(text, encoding="utf-8")
    return target


def render(content: Content) -> str:
    """The HTML text. Whatever a user named is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {name: getattr(numbers, name) for name in ("upper", "lower", "near", "percent")}
    return environment.get_template("page.html").render(_facts(content))


def _facts(content: Content) -> dict[str, Any]:
    """What the template sees."""
    subject, history, slopes = content.subject, list(content.subject.history), _slopes(content)
    return {
        "content": content,
        "subject": subject,
        "certificate": subject.certificate,
        "figures": _figures(content),
        "history": history[-_ROWS:],
        "left_out": max(len(history) - _ROWS, 0),
        "download": _download(content),
        "checkable": slopes,
        "commands": _commands(subject, slopes),
        "factors": all(layer.factor is not None for layer in content.layers),
    }


def _commands(subject: Subject, slopes: tuple[float, float] | None) -> dict[str, str]:
    """What a reader copies into a shell or into Python, where the name of a file is a name and nothing else."""
    name, module = (json.dumps(text, ensure_ascii=False) for text in (subject.checkpoint, subject.module))
    file = f"./{subject.checkpoint}" if subject.checkpoint.startswith("-") else subject.checkpoint
    options = [] if slopes is None or slopes == (0.0, 1.0) else ["--slopes", *map(str, slopes)]
    copy = (
        f'import numpy, torch; state = torch.load({name}, weights_only=True)["state_dict"]; '
        'numpy.savez("weights.npz", *(w.double().numpy() for w in state.values() if w.ndim == 2))'
    )
    return {
        "verify": shlex.join(["lightning-lipschitz", "verify", "certificate.npz", file, *options]),
        "matrices": shlex.join(["python", "-c", copy]),
        "file": name,
        "module": module,
    }


def _figures(content: Content) -> Mapping[str, Picture]:
    light, dark = (dict(draw_all(content, theme)) for theme in (LIGHT, DARK))
    return {
        name: Picture(_base64(png(figure)), _base64(png(dark[name])), round(96 * figure.get_figwidth()))
        for name, figure in light.items()
    }


def _download(content: Content) -> str | None:
    """The certificate's file, base64; None where it is too large for a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "certificate.npz"
        content.subject.certificate.save(file)
        return _base64(file.read_bytes()) if file.stat().st_size <= _EMBEDDED else None


def _slopes(content: Content) -> tuple[float, float] | None:
    """What the units of a plain chain share: those are the certificates that the NumPy-only program reads."""
    network, proof = content.subject.network, content.subject.certificate.proof
    if not (isinstance(network, Network) and network.is_chain and isinstance(proof, Multipliers) and network.layers):
        return None
    exact = all(term.rounding == 0.0 for affine in network.affines for term in affine.terms)
    slopes = {pair for layer in network.layers for pair in zip(layer.alpha.tolist(), layer.beta.tolist(), strict=True)}
    alone = all(layer.elementwise for layer in network.layers)
    return next(iter(slopes)) if exact and alone and len(slopes) == 1 else None


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
