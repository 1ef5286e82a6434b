"""The examples run as they stand, and show what they say they show."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
PNG = b"\x89PNG\r\n\x1a\n"


def test_regression_with_clip(tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / "clip_regression.py"), "--figure", str(figure)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.replace(",", "").split() for line in done.stdout.splitlines()]
    (plain, plain_lower, plain_upper), (clip, clip_lower, clip_upper) = (
        (float(row[2]), float(row[6]), float(row[8])) for row in rows
    )
    assert clip < 0.8 * plain
    assert clip_upper < 0.6 * plain_upper
    assert plain_lower <= plain_upper
    assert clip_lower <= clip_upper
    assert figure.read_bytes().startswith(PNG)
