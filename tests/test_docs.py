"""The site builds without a warning, its code runs, and a certificate is checked by the program that stands on it."""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import lightning_lipschitz as ll
from tests.helpers import chain
from tests.modules import UNAVOIDABLE

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{k}")
    for page in PAGES
    for k, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
]
VERIFIER = ROOT / "examples" / "verify_with_numpy.py"


@pytest.mark.parametrize("code", BLOCKS)
@pytest.mark.filterwarnings(*UNAVOIDABLE)
def test_code_blocks_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, "docs", "exec"), {"__name__": "docs"})


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "site" / "reference" / "index.html").read_text()
    assert all(f"lightning_lipschitz.{name}" in reference for name in ("certify", "verify", "Certificate.save"))
    for page in (tmp_path / "site").rglob("*.html"):
        assert not raw_markup(page.read_text()), page
        assert "doc-module-name" not in page.read_text(), f"{page}: a module in the place of a function of its name"


def raw_markup(page):
    """Roles, directives, TeX and prompts of docstrings that a reader of a page would see as they were typed."""
    seen = re.sub(r"<(pre|annotation|script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    markers = (
        r":[a-z]+:(?=`|<code)",
        r"\.\. [a-z]+::",
        r"&gt;&gt;&gt;",
        r"<blockquote>\s*<blockquote>",  # what Markdown makes of a prompt
        r"\\[A-Za-z]{2,}",
        r"<p>(?:Examples?|Args|Returns|Raises|Attributes):(?=\s*(?:<|&gt;))",
    )
    return re.findall("|".join(markers), seen)


RAW = {
    "class": ("see :class:`Certificate`", [":class:"]),
    "class, rendered": ("<p>see :class:<code>~lightning_lipschitz.Certificate</code></p>", [":class:"]),
    "function": ("of :func:`certify`, and :func:`verify`", [":func:", ":func:"]),
    "method": ("by :meth:`Certificate.load`", [":meth:"]),
    "module": ("see :mod:`lightning_lipschitz.certificate.lmi`", [":mod:"]),
    "role of Sphinx": ("see :ref:`theorem` and :pep:`8`", [":ref:", ":pep:"]),
    "formula": (r"<p>:math:<code>|f(x)|_2 \le L</code></p>", [":math:", r"\le"]),
    "displayed formula": (r"<p>.. math:: M(\rho) \succeq 0</p>", [".. math::", r"\rho", r"\succeq"]),
    "directive": ("<p>.. note:: not a bound</p>", [".. note::"]),
    "TeX": (r"with \lambda, \beta, \mathrm{loss}", [r"\lambda", r"\beta", r"\mathrm"]),
    "TeX in dollars": (r"<p>$\bar W$ and $\frac{1}{2}$</p>", [r"\bar", r"\frac"]),
    "prompt": ("<p>then &gt;&gt;&gt; certify(model)</p>", ["&gt;&gt;&gt;"]),
    "prompt as a quotation": (
        "<blockquote>\n<blockquote>\n<blockquote>\n<p>x</p>",
        ["<blockquote>\n<blockquote>"],
    ),
    "section": ("<p>Example:\n&gt;&gt;&gt; x</p>", ["<p>Example:", "&gt;&gt;&gt;"]),
    "section of arguments": ("<p>Args:</p><p>model: one</p>", ["<p>Args:"]),
    "beside code": ("<pre>&gt;&gt;&gt; 1</pre><p>:class:`x`</p><pre>\\rho</pre>", [":class:"]),
}
PLAIN = (
    "<pre>&gt;&gt;&gt; 1\n.. math::</pre>",
    '<pre class="a"><code>:class:`x` \\rho</code></pre>',
    r'<math><mi>λ</mi><annotation encoding="TeX">\lambda \le 1</annotation></math>',
    "<script>s = ':class:`x`'</script>",
    "<p>For example: a ratio of 3:4:5, at 10:30:</p>",
    "<p>Example: two layers.</p>",
    "<p>Examples of arguments: Args</p>",
    "<p>a bound: <code>upper_bound</code>, a key: <code>a::b</code></p>",
    "<p>and so on ... math: x &gt;= 3 &gt;&gt; 1</p>",
    "<p>a new line, <code>\\n</code>, and digits, <code>\\d</code></p>",
    "<blockquote><p>a sentence of a paper</p></blockquote><blockquote><p>another</p></blockquote>",
    '<span class="doc-section-title">Examples:</span>',
)


@pytest.mark.parametrize("name", RAW)
def test_raw_markup_is_found(name):
    page, found = RAW[name]
    assert raw_markup(page) == found
    assert raw_markup(f"<p>before</p><pre>code</pre>{page}<pre>code</pre>") == found


@pytest.mark.parametrize("page", PLAIN)
def test_plain_text_is_no_markup(page):
    assert raw_markup(page) == []
    assert raw_markup(page + page) == []


TYPED = (
    "See :class:`~lightning_lipschitz.Certificate`.",
    ":func:`certify` and :meth:`Certificate.save`",
    r"Bounds :math:`|f(x)|_2 \\le L`.",
    ".. math::\n\n    x \\le y\n",
    "Text.\n\nExample:\n\n>>> 1 + 1\n2",
    "Example:\n>>> 1 + 1\n2",
)


@pytest.mark.parametrize("text", TYPED)
def test_docstrings_as_they_are_typed_would_be_found(text):
    markdown = pytest.importorskip("markdown")
    assert raw_markup(markdown.markdown(text))
    assert not raw_markup(markdown.markdown("A sentence, `code` and\n\n    >>> 1 + 1\n"))


def site_markup():
    for name in ("griffe", "latex2mathml"):
        pytest.importorskip(name)
    spec = importlib.util.spec_from_file_location("site_markup", ROOT / "docs" / "_markup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.markdown


def test_what_the_site_makes_of_public_docstrings_has_no_raw_markup():
    """But for the examples, which another program sets."""
    rewrite, typed = site_markup(), 0
    for text in (inspect.getdoc(getattr(ll, name)) for name in ll.__all__):
        typed += len(re.findall(r":[a-z]+:`|\.\. math::", text))
        rewritten = rewrite(text)
        assert not re.search(r"^ *Example:$", rewritten, flags=re.MULTILINE)
        shown = re.sub(r"^ *(>>>|\.\.\.) .*$", "", rewritten, flags=re.MULTILINE)
        assert not raw_markup(shown), shown
    assert typed > 20


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    assert {page.name for page in PAGES} == set(re.findall(r"[\w-]+\.md", text))


def test_every_public_name_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES)
    assert not [name for name in ll.__all__ if f"::: lightning_lipschitz.{name}\n" not in text]


def test_the_recipe_for_the_command_line_is_yaml_that_lightning_reads():
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), flags=re.DOTALL)
    for callback in yaml.safe_load(block)["trainer"]["callbacks"]:
        name = callback["class_path"].removeprefix("lightning_lipschitz.")
        assert getattr(ll, name)(**callback["init_args"])


# The program that checks certificates with NumPy alone


def check(folder, weights, slopes=(0.0, 1.0)):
    np.savez(folder / "weights.npz", *weights)
    command = [sys.executable, str(VERIFIER), "model.npz", "weights.npz", *map(str, slopes)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def weights_of(network):
    return [affine.terms[0].matrix for affine in network.affines]


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.0, 0.25), (-0.5, 1.0), (0.1, 1.0)])
@pytest.mark.parametrize("method", ["lipsdp-neuron", "closed-form"])
def test_numpy_alone_proves_a_certificate(method, slopes, tmp_path):
    weights = weights_of(chain((6, 9, 8, 3), seed=1))
    certificate = ll.certify(weights, method=method, slopes=slopes)
    certificate.save(tmp_path / "model.npz")
    done = check(tmp_path, weights, slopes)
    assert done.stdout == f"proved: |f(x) - f(y)| <= {certificate.upper_bound!r} |x - y|\n", done.stderr


def test_numpy_alone_refuses_what_is_not_proved(tmp_path):
    weights = weights_of(chain((6, 9, 8, 3), seed=1))
    certificate = ll.certify(weights)
    certificate.save(tmp_path / "model.npz")
    assert "another network" in check(tmp_path, [2 * w for w in weights]).stderr
    arrays = dict(np.load(tmp_path / "model.npz"))
    np.savez(tmp_path / "model.npz", **arrays | {"values_0": 0.9 * arrays["values_0"]})
    assert "LinAlgError" in check(tmp_path, weights).stderr
    header = arrays["header"].tobytes().decode()
    lower = header.replace(repr(certificate.upper_bound), repr(0.9 * certificate.upper_bound))
    np.savez(tmp_path / "model.npz", **arrays | {"header": np.frombuffer(lower.encode(), dtype=np.uint8)})
    assert "do not prove" in check(tmp_path, weights).stderr


def test_the_program_is_short_and_needs_numpy_only():
    text = VERIFIER.read_text()
    assert len(text.splitlines()) < 60
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, flags=re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
