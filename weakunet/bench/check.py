"""python -m weakunet.bench --check: does the GPU compute what numpy does?

Says what is installed, then runs a training step and a prediction of a small network, the
augmentation's warp and every rung of the convolution on the GPU and in numpy, with the same random
data. In float64 they must agree to 1e-10, in float32 to 1e-4 of the largest value, and two runs on
the GPU must give the same bits. The convolutions' numbers are -1, 0 and 1: TF32 and bfloat16 hold
them and what they add up to exactly, so tensor cores must agree, too.
"""

import itertools

import numpy as np

from weakunet.bench.convolution import arrays_of, convolve, moved
from weakunet.bench.counts import Layer
from weakunet.gpu import backend
from weakunet.layers.conv.gpu import KERNELS
from weakunet.layers.loss import mse_backward, mse_forward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training import augment
from weakunet.util.cli import InputError

TOLERANCE = {np.float64: 1e-10, np.float32: 1e-4}
LAYERS = [Layer("conv3d", 9, 17, (1, 4, 5, 6)), Layer("upsample_conv3d", 9, 17, (1, 4, 6, 8), 8)]


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
            exact, first, again = (results(pooling, dtype, d) for d in ("cpu", "cuda", "cuda"))
            worst = max(_difference(first[name], exact[name]) for name in exact)
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
        version = "{}.{}".format(*divmod(cupy.cuda.runtime.driverGetVersion() // 10, 100))
        print(f"GPU {backend.device_name('cuda')}, driver for CUDA {version}")


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

    def draw(shape):
        return rng.integers(-1, 2, shape)

    for kernel, layer in itertools.product(KERNELS, LAYERS):
        arrays = moved(arrays_of(layer, draw), dtype, device)
        values = convolve("forward", kernel, *arrays), *convolve("backward", kernel, *arrays)
        found |= {f"{kernel} {layer.kind} {i}": value for i, value in enumerate(values)}
    return {name: backend.to_host(value) for name, value in found.items()}


def _difference(value, expected):
    return float(np.abs(value - expected).max() / max(np.abs(expected).max(), 1e-30))
