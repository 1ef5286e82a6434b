"""Links in the written pages: relative ones lead to a file and a heading that exist; external ones are well-formed.

External addresses are not visited: the tests need no network.
"""

import re
import unicodedata
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
    ]
)
INLINE = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
SNIPPET = re.compile(r'^--8<-- "(.+)"$', flags=re.MULTILINE)
SCHEMES = {"http", "https"}


def prose(text):
    """Without code, in which brackets and parentheses are something else."""
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(text):
    """As GitHub and mkdocs name headings: lower case, no punctuation, hyphens for spaces."""
    found = set()
    for heading in re.findall(r"^#+ (.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.M):
        plain = unicodedata.normalize("NFKD", heading).lower()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-"))
    return found


def broken(page, text):
    """What is wrong with the links of a page, in words."""
    for target in INLINE.findall(prose(text)):
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            if parts.scheme not in SCHEMES or "." not in parts.netloc:
                yield f"{target}: not an address"
            continue
        file = (page.parent / parts.path).resolve() if parts.path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            yield f"{target}: no such file"
        elif parts.fragment and parts.fragment not in anchors(text if file == page else file.read_text()):
            yield f"{target}: no such heading"
    for target in SNIPPET.findall(text):
        if not (ROOT / target).is_file():
            yield f"{target}: no such file to include"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert list(broken(page, page.read_text())) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](missing.md)", "no such file"),
        ("![a](docs/missing.png)", "no such file"),
        ("[a](docs/clip.md#no-such)", "no such heading"),
        ("# Here\n[a](#there)", "no such heading"),
        ("[a](../outside.md)", "no such file"),
        ("[a](https://nowhere)", "not an address"),
        ("[a](htps://example.org)", "not an address"),
        ('--8<-- "benchmarks/results/missing.md"', "no such file to include"),
    ],
)
def test_a_broken_link_is_found(text, problem):
    (found,) = broken(ROOT / "README.md", text)
    assert found.endswith(problem)


@pytest.mark.parametrize(
    "text", ["# A b: c\n[a](#a-b-c)", "[a](docs/clip.md)", "[a](https://arxiv.org/abs/1)", "`[a](b)`"]
)
def test_what_is_no_broken_link(text):
    assert list(broken(ROOT / "README.md", text)) == []


def test_every_benchmark_is_in_the_list():
    listed = (ROOT / "benchmarks" / "README.md").read_text()
    shared = {"common", "methods", "ordered", "iris_and_attacks_plot"}
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - shared
    assert not {script for script in scripts if f"`{script}.py`" not in listed}
