"""`--precision`: how a network's 3x3x3 convolutions multiply, and what there is on a device.

fp32 is float32. In tf32 and bf16 a GPU's tensor cores do it, which round the factors (rounding.py);
a CPU imitates them. `auto`, the default, is fp32 on a CPU, and tf32 on a GPU that has tensor cores
and computes right on them: from counts, networks learn in tf32 as they do in fp32 (README). In bf16
they did, too, on the three seeds that were tried; it is faster, and yours to ask for.
"""

import numpy as np

from weakunet.gpu import backend, cuda_source
from weakunet.layers.conv.gpu import KERNEL_OF, conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.util.cli import InputError

PRECISIONS = ("auto", *KERNEL_OF)
# How far a convolution may be off float32's, of its largest value; its rounding is an eighth of it.
TOLERANCE = {"tf32": 2e-3, "bf16": 1.6e-2}


def pick_precision(name, device):
    """'fp32', 'tf32' or 'bf16' for a user's choice of PRECISIONS, on `device` ('cpu' or 'cuda').

    Prints a note where it is not what was asked for. Raises InputError where tensor cores were
    asked for and compute wrong.
    """
    wanted = {"cpu": "fp32", "cuda": "tf32"}[device] if name == "auto" else name
    if wanted == "fp32":
        return wanted
    if device == "cpu":
        print(f"note: a CPU imitates {name}: it rounds as a GPU does, and is slower", flush=True)
        return wanted
    if backend.compute_capability() < cuda_source.constants("layers/conv/tensor")["MIN_SM"]:
        print("note: this GPU has no tensor cores for tf32, so it computes in fp32", flush=True)
        return "fp32"
    if computes_right(wanted):
        return wanted
    wrong = f"a convolution in {wanted} comes out wrong on this GPU (see weakunet.bench --check)"
    if name != "auto":
        raise InputError(f"{wrong}; use --precision fp32")
    print(f"note: {wrong}, so it computes in fp32", flush=True)
    return "fp32"


def computes_right(precision):
    """True if a small convolution, forward and backward, is as in float32 but for the rounding."""
    rng, size = np.random.default_rng(0), (1, 16, 6, 10, 20)
    arrays = (rng.standard_normal(shape, np.float32) for shape in (size, size, (16, 16, 3, 3, 3)))
    dy, x, w = (backend.to_device(array, "cuda") for array in arrays)
    b = w[:, 0, 0, 0, 0].copy()
    results = []
    for kernel in (KERNEL_OF[precision], KERNEL_OF["fp32"]):
        found = conv3d_forward_cuda(x, w, b, kernel), *conv3d_backward_cuda(dy, x, w, kernel=kernel)
        results.append([backend.to_host(array) for array in found])
    return all(
        np.abs(found - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()
        for found, expected in zip(*results, strict=True)
    )
