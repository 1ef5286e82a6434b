"""Docstrings name others by roles and write formulas in TeX; the site shows links and MathML, which needs no script."""

from __future__ import annotations

import html
import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_MATH = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(r"^( *)\.\. math::\n\n((?:\1 +\S.*\n|\s*\n)+)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|mod|meth|attr|exc|data):`(~?)([\w.]+)`")


class Markup(griffe.Extension):
    """Roles become links where the site has the target, formulas MathML, and ``Example:`` a section with its code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring in the Markdown of the site."""
    text = _DISPLAY.sub(lambda found: f"{found[1]}{_formula(found[2], 'block')}\n\n", text + "\n")
    # At the start of a line Markdown takes an element that it does not know for a block; a span it knows.
    text = _MATH.sub(lambda found: f"<span>{_formula(found[1], 'inline')}</span>", text)
    text = _ROLE.sub(_link, text)
    return re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE).rstrip()


def _formula(tex: str, display: str) -> str:
    return convert(" ".join(tex.split()), display=display)


def _link(found: re.Match[str]) -> str:
    """The last part of a name that starts with ``~``, else all of it; plain code where the site has no such page."""
    name = found[2].rpartition(".")[2] if found[1] else found[2]
    return f'<autoref identifier="{found[2]}" optional><code>{html.escape(name)}</code></autoref>'
