"""Which device holds an array, and how it gets there.

The ARRAY decides: a numpy array is worked on by numpy on the CPU, a CuPy array by the CUDA kernels
on the GPU that holds it. No other file imports CuPy, and there is no global device flag.
"""

import numpy as np

from weakunet.cli import InputError


def is_cuda(array):
    """True if `array` lives on a GPU (a CuPy array)."""
    return type(array).__module__.partition(".")[0] == "cupy"


def array_module(array):
    """The library that holds `array`: numpy, or CuPy for an array on the GPU."""
    if is_cuda(array):
        import cupy

        return cupy
    return np


def pick_device(name="auto"):
    """'cpu' or 'cuda' for a user's `auto | cpu | cuda`; `auto` takes the GPU when there is one.

    Raises
    ------
    InputError: `cuda` was asked for and no GPU (or no CuPy) is there.
    """
    if name == "cpu":
        return "cpu"
    problem = _no_gpu_because()
    if problem is None:
        return "cuda"
    if name == "cuda":
        raise InputError(
            f"--device cuda: {problem}; use --device cpu, or auto to take what is there"
        )
    return "cpu"


def _no_gpu_because():
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        if cupy.cuda.runtime.getDeviceCount() > 0:
            return None
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no usable GPU ({error})"
    return "no GPU was found"


def to_device(array, device):
    """`array` on `device` ('cpu' or 'cuda'); no copy when it is there already."""
    if device == "cuda":
        import cupy

        return cupy.asarray(array)
    return to_host(array)


def to_host(array):
    """`array` as a numpy array; no copy when it is one already."""
    return array.get() if is_cuda(array) else np.asarray(array)
