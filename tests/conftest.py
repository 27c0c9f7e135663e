"""Fixtures for all tests."""

import functools

import numpy as np
import pytest
from cuda_on_cpu import harness

from weakunet.gpu import backend


@pytest.fixture
def cuda_on_cpu(monkeypatch):
    """Layers fed with numpy arrays run their CUDA kernels, on the CPU, through this CudaOnCpu.

    Arrays from np.empty are full of NaN (or of -1 or 255), so that what a kernel leaves out shows.
    Set its `seed` to shuffle the threads in another way.
    """
    gpu = harness.CudaOnCpu()
    reason = harness.reason_not_to_run(gpu.sanitize)
    if reason:
        pytest.skip(reason)
    monkeypatch.setattr(backend, "launch", gpu.launch)
    monkeypatch.setattr(backend, "is_cuda", lambda array: isinstance(array, np.ndarray))
    monkeypatch.setattr(backend, "to_host", np.asarray)
    monkeypatch.setattr(backend, "compute_capability", lambda: 90)
    for make in ("empty", "empty_like"):
        monkeypatch.setattr(np, make, _filled_with_ones(getattr(np, make)))
    return gpu


@pytest.fixture
def no_pictures(monkeypatch):
    """Prediction writes empty files for pictures, which take most of its time."""
    monkeypatch.setattr("weakunet.predict.overlay", lambda path, *_, **__: path.write_text(""))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that the test draws, instead of files."""
    kept = []
    for module in ("counts", "methods", "overlay", "preprocess", "training"):
        name = f"weakunet.figures.{module}.save_figure"
        monkeypatch.setattr(name, lambda figure, path: kept.append(figure))
    return kept


def _filled_with_ones(make):
    @functools.wraps(make)
    def make_poisoned(*args, **kwargs):
        array = make(*args, **kwargs)
        if array.dtype.kind in "fiu":
            array.fill(np.nan if array.dtype.kind == "f" else ~array.dtype.type(0))
        return array

    return make_poisoned
