"""Every kernel's own text once under AddressSanitizer and once under ThreadSanitizer.

That the sanitizers find faults is shown in test_cuda_on_cpu.py, that the results are right in
test_kernels.py. An access out of bounds, an integer overflow or a race raises a KernelError here.
"""

import numpy as np
import pytest
from cuda_on_cpu.harness import reason_not_to_run
from kernel_cases import CASES
from test_folded_tensor import random_arrays
from test_kernels import cast

from weakunet.layers.conv import folded, tensor
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.conv.packed import STORED

pytestmark = pytest.mark.slow
FUNCTIONS = sorted({name.split()[0] for name in CASES})


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_kernels_have_no_invalid_access_and_no_race(sanitize, function, cuda_on_cpu, monkeypatch):
    if reason_not_to_run(sanitize):
        pytest.skip(reason_not_to_run(sanitize))
    cuda_on_cpu.sanitize = sanitize
    for name, (_, on_gpu, args) in CASES.items():
        if sanitize == "thread" and "bf16" in name:
            continue  # its barriers are TF32's, and it is slow; a few below
        if name.split()[0] == function:
            on_gpu(*cast(args, np.float32 if "tensor" in name else np.float64))
    if function == "conv3d_backward":  # few blocks, so that each works through several tiles
        monkeypatch.setattr(conv3d_cuda, "BLOCKS", 4)
        monkeypatch.setattr(tensor, "BLOCKS", 4)
        rng = np.random.default_rng(0)
        few = {"tiled": ("f8", 2)} | dict.fromkeys(STORED, ("f4", 9))
        for kernel, (dtype, c_in) in few.items():
            shapes = (1, 3, 5, 9, 17), (1, c_in, 5, 9, 17), (3, c_in, 3, 3, 3)
            dy, x, w = (rng.normal(size=shape).astype(dtype) for shape in shapes)
            conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel, mask=True)
    if function == "upsample_conv3d_backward":
        monkeypatch.setattr(tensor, "BLOCKS", 4)
        for rung in STORED:
            folded.upsample_conv3d_backward(*random_arrays(1, 8, 9, (2, 3, 17), 3)[:4], rung)
    assert cuda_on_cpu.launched
