"""The site builds without a warning, its code runs, and a certificate is checked by the program that stands on it."""

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


def raw_markup(page):
    """Roles, TeX and prompts of docstrings that a reader of a page would see as they were typed."""
    seen = re.sub(r"<(pre|annotation)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.findall(
        r":(?:math|class|func|mod|meth|attr|exc|data):|\.\. math|&gt;&gt;&gt;|\\(?:lambda|rho|le|bar)\b", seen
    )


def test_raw_markup_is_found():
    assert raw_markup("<p>see :class:`x`</p><pre>&gt;&gt;&gt; 1</pre>") == [":class:"]
    assert raw_markup("<p>Example: &gt;&gt;&gt; 1, with \\lambda</p>") == ["&gt;&gt;&gt;", "\\lambda"]


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
