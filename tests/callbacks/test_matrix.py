"""No file is above the bound: a slice of the matrix, and all of it among the slow tests."""

import itertools

import pytest

from tests.callbacks.files import METHODS
from tests.callbacks.matrix import BESIDE, MODELS, SAVES, is_out_of_reach, tried

pytestmark = pytest.mark.filterwarnings("ignore:.*")

TURNS = zip(itertools.cycle(MODELS), itertools.cycle(SAVES), itertools.product(BESIDE, METHODS))  # all of each


@pytest.mark.parametrize(("model", "save", "beside"), [(*turn[:2], turn[2]) for turn in TURNS], ids=str)
def test_some_files_meet_the_bound(model, save, beside, tmp_path):
    bad, count = tried(model, beside[1], beside[0], save, tmp_path)
    assert bad == []
    assert count >= 2 or is_out_of_reach(model, beside[1], beside[0])


@pytest.mark.slow
@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_all_files_meet_the_bound(model, method, beside, tmp_path):
    for number, save in enumerate(SAVES):
        (folder := tmp_path / str(number)).mkdir()
        bad, count = tried(model, method, beside, save, folder)
        assert (save, bad) == (save, [])
        assert count >= 2 or is_out_of_reach(model, method, beside)
