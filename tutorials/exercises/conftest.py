"""`python -m pytest tutorials/exercises/03_backprop` grades exercise.py of that folder;
with `--answers DIR` it grades DIR/03_backprop/exercise.py instead."""

from pathlib import Path

import pytest
from grading import Answer


def pytest_addoption(parser):
    parser.addoption("--answers", metavar="DIR", help="grade the answers in DIR/NN_name/")


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


@pytest.fixture
def answer(request):
    """The functions to grade."""
    folder, answers = request.path.parent, request.config.getoption("--answers")
    with Answer(Path(answers) / folder.name if answers else folder) as functions:
        yield functions
