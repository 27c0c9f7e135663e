"""`python -m pytest tutorials/exercises/03_backprop` grades exercise.py of that folder;
with `--answers DIR` it grades DIR/03_backprop/exercise.py instead."""

from pathlib import Path

import pytest
from grading import load_answer


def pytest_addoption(parser):
    parser.addoption("--answers", metavar="DIR", help="grade the answers in DIR/NN_name/")


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


@pytest.fixture(scope="module")
def answer(request):
    """The module with the functions to grade."""
    folder, answers = request.path.parent, request.config.getoption("--answers")
    return load_answer(Path(answers) / folder.name if answers else folder)
