"""Networks that other people published as packages, with random weights: what "any existing model" is tried on."""

from __future__ import annotations

from zoo import control, imaging, other, vision

ENTRIES = [*vision.ENTRIES, *imaging.ENTRIES, *control.ENTRIES, *other.ENTRIES]
