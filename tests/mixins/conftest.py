from pathlib import Path

import pytest

from tests.callbacks.conftest import fit, trainer
from tests.modules import UNAVOIDABLE

__all__ = ["fit", "trainer"]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            for message in UNAVOIDABLE:
                item.add_marker(pytest.mark.filterwarnings(message))
