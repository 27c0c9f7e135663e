"""python -m weakunet.bench --check: does the GPU compute what numpy does?

Says what is installed, then runs one training step and one prediction of a small network, the
augmentation's warp, every rung of the convolution and the decoder's convolution on tensor cores on
the GPU and in numpy, with the same random data (the convolutions' are numbers that TF32 and
bfloat16 hold exactly, so that tensor cores agree, too): in
float64 they must agree to 1e-10 and in float32 to 1e-4 of the largest value, and two runs on the
GPU must give the same bits.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward
from weakunet.layers.conv.folded import upsample_conv3d_backward, upsample_conv3d_forward
from weakunet.layers.conv.gpu import KERNELS, conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.layers.conv.tensor import PAIR
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training import augment
from weakunet.util.cli import InputError

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}


def check():
    """Print what is installed and a line per comparison; returns one row (dict) per comparison.

    Raises InputError when there is no GPU, or one that computes something else.
    """
    print_installation()
    if backend.pick_device() != "cuda":
        raise InputError("no usable GPU here, so nothing to compare; all runs with --device cpu")
    rows = []
    for dtype, tolerance in TOLERANCE.items():
        for pooling in ("max", "mean", "lmax"):
            expected, first, again = (
                results(pooling, dtype, device) for device in ("cpu", "cuda", "cuda")
            )
            worst = max(_difference(first[name], expected[name]) for name in expected)
            same = all(np.array_equal(first[name], again[name]) for name in first)
            row = {"dtype": str(np.dtype(dtype)), "pooling": pooling}
            rows.append(row | {"error": worst, "repeats": same})
            what = f"{np.dtype(dtype)}, pooling {pooling}: off by {worst:.1e} of the maximum"
            print(f"{what}, repeats {'bit for bit' if same else 'NOT bit for bit'}")
            if not (worst <= tolerance and same):
                raise InputError(
                    f"the GPU does not agree with numpy ({what}); update its driver, or use "
                    "--device cpu and report this"
                )
    print("the GPU agrees with numpy")
    return rows


def print_installation():
    """Print the versions of numpy, CuPy and NVRTC, and the GPU, whatever of them is there."""
    print(f"numpy {np.__version__}")
    try:
        import cupy
    except ImportError as error:
        print(f"CuPy: not there ({error})")
        return
    print(f"CuPy {cupy.__version__}")
    try:
        print("NVRTC {}.{}".format(*cupy.cuda.nvrtc.getVersion()))
    except Exception as error:  # whatever a library says that is missing or broken
        print(f"NVRTC: not there ({error})")
    if backend.pick_device("auto") == "cuda":
        driver = cupy.cuda.runtime.driverGetVersion()
        print(
            f"GPU {backend.device_name('cuda')}, driver for CUDA {driver // 1000}.{driver % 1000}"
        )


def results(pooling, dtype, device):
    """name -> array on the host: what one training step, a prediction and more gave on `device`."""
    rng = np.random.default_rng(3)
    model = WeakUNet((9, 17), pooling=pooling, block=3, rng=rng, dtype=dtype).to(device)
    scans, counts = rng.uniform(0, 1, (2, 1, 6, 10, 18)), np.array([1.0, 4.0])
    matrix = augment.draw_transform(rng, scans.shape[2:], rotate_deg=20, scale=0.1)
    scans, counts = (backend.to_device(a.astype(dtype), device) for a in (scans, counts))
    predicted = model.forward(scans)
    model.backward(mse_backward(predicted, counts))
    found = {"count": predicted, "loss": mse_forward(predicted, counts)}
    found |= {f"d {name}": np.array(backend.to_host(g)) for name, g in model.grads.items()}
    Adadelta(model.params).step(model.grads)
    found |= model.params
    found["count after the step"], found["heatmap"] = model.predict(scans)
    found["warp"] = augment.warp(scans[0, 0], matrix)
    shapes = (1, 17, 4, 5, 6), (1, 9, 4, 5, 6), (17, 9, 3, 3, 3), (17,)
    exact = [(rng.integers(-64, 65, shape) / 32).astype(dtype) for shape in shapes]
    dy, x, w, b = (backend.to_device(array, device) for array in exact)
    for kernel in KERNELS:
        if device == "cuda":
            y = conv3d_forward_cuda(x, w, b, kernel)
            gradients = conv3d_backward_cuda(dy, x, w, kernel=kernel)
        else:
            y, gradients = conv3d_forward(x, w, b), conv3d_backward(dy, x, w)
        results = zip(("y", "dx", "dw", "db"), (y, *gradients), strict=True)
        found |= {f"{kernel} {name}": value for name, value in results}
    for rung in PAIR:
        found |= _upconvolution(rng, dtype, device, rung)
    return {name: backend.to_host(value) for name, value in found.items()}


def _upconvolution(rng, dtype, device, rung):
    """name -> array: the decoder's convolution, of whole numbers: no sum of 8 is rounded either."""
    shapes = (1, 17, 4, 6, 8), (1, 9, 4, 6, 8), (1, 8, 2, 3, 4), (17, 17, 3, 3, 3), (17,)
    whole = [rng.integers(-16, 17, shape).astype(dtype) for shape in shapes]
    dy, skip, coarse, w, b = (backend.to_device(array, device) for array in whole)
    y = upsample_conv3d_forward(skip, coarse, w, b, rung)
    gradients = upsample_conv3d_backward(dy, skip, coarse, w, rung)
    names = "y", "dskip", "dcoarse", "dw", "db"
    return {f"{rung} upconv {name}": a for name, a in zip(names, (y, *gradients), strict=True)}


def _difference(value, expected):
    return float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30))
