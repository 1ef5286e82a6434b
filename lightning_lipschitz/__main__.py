"""``python -m lightning_lipschitz``."""

import sys

from lightning_lipschitz.cli import main

sys.exit(main())
