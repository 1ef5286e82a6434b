"""The trials of tests/devices on the pretend device, in a process of their own: it is there for a whole process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_on_the_pretend_device():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rs", "tests/devices"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["LIGHTNING_LIPSCHITZ_DEVICE"] = "pretend"
    found = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    if "needs torch 2.9" in found.stdout:
        pytest.skip("the pretend device needs torch 2.9")
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    assert "passed" in found.stdout
    assert "skipped" not in found.stdout
