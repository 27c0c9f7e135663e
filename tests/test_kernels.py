"""Every CUDA kernel, its own text run on the CPU, against its numpy pair in float64.

Whole training steps on kernels are in test_bench_gpu.py. Where there is a GPU, all cases run there,
too (`compute-sanitizer python -m pytest tests/test_kernels.py -k on_the_gpu` looks for faults).
"""

import numpy as np
import pytest
from kernel_cases import CASES
from test_layers import LAYERS, distinct

from weakunet.gpu import backend, cuda_source
from weakunet.layers import maxpool3d
from weakunet.layers.conv import conv3d
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.gradcheck import check_layer

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def results_of(function, args):
    """What `function` returns, always as a tuple of arrays."""
    return tuple(np.asarray(result) for result in as_tuple(function(*args)))


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def cast(args, dtype):
    """The arguments with all float arrays of type `dtype`; a transform's matrix stays float64."""
    return tuple(
        arg.astype(dtype)
        if isinstance(arg, np.ndarray) and arg.dtype.kind == "f" and arg.shape[-2:] != (3, 4)
        else arg
        for arg in args
    )


def require_close(actual, expected, dtype, what):
    """Same shapes and dtypes, values close to `expected`, NaN not among them."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == (dtype if e.dtype.kind == "f" else e.dtype), what
        tolerance = TOLERANCE[dtype] * np.abs(e).max() if e.dtype.kind == "f" else 0
        np.testing.assert_allclose(a, e, rtol=0, atol=tolerance, err_msg=what)


def test_every_kernel_of_every_cu_file_agrees_with_numpy(request):
    expected = {name: results_of(on_cpu, args) for name, (on_cpu, _, args) in CASES.items()}
    gpu = request.getfixturevalue("cuda_on_cpu")  # from here on the layers would run kernels
    gpu.seed = 1
    for name, (_, on_gpu, args) in CASES.items():
        dtype = np.float32 if "tensor" in name else np.float64
        require_close(results_of(on_gpu, cast(args, dtype)), expected[name], dtype, name)
    files = cuda_source.cu_files()
    kernels = {(file, kernel) for file in files for kernel in cuda_source.kernels(file)}
    assert all("__global__" in cuda_source.source(file) for file in files)
    assert kernels - gpu.launched == set()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_numpy_in_any_order_of_threads(name, dtype, request):
    on_cpu, on_gpu, args = CASES[name]
    expected = results_of(on_cpu, args)
    gpu = request.getfixturevalue("cuda_on_cpu")
    args = cast(args, dtype)
    before = [np.array(arg) for arg in args]
    first = None
    for gpu.seed in (0, 1, 2):
        actual = results_of(on_gpu, args)
        first = first or actual
        require_close(actual, expected, dtype, name)
        for a, f in zip(actual, first, strict=True):
            np.testing.assert_array_equal(a, f, "the order of the threads changes the result")
    for arg, kept in zip(args, before, strict=True):
        np.testing.assert_array_equal(arg, kept, "an input was changed")


def test_parser_finds_every_global_function_of_every_cu_file():
    for file in cuda_source.cu_files():
        assert cuda_source.source(file).count("__global__") == len(cuda_source.kernels(file))


@pytest.mark.parametrize("name", LAYERS)
def test_backward_kernels_agree_with_numerical_gradients(name, cuda_on_cpu):
    rng = np.random.default_rng(7)
    layer, shapes = LAYERS[name](rng)
    errors = check_layer(layer, [distinct(rng, shape) for shape in shapes], rng)
    assert max(errors.values()) < 1e-6, errors
    assert cuda_on_cpu.launched


def test_maxpool_kernels_refuse_an_odd_size(cuda_on_cpu):
    with pytest.raises(ValueError, match="H = 3 is odd"):
        maxpool3d.maxpool3d_forward(np.zeros((1, 1, 2, 3, 4)))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_weight_gradient_agrees_when_a_block_sums_several_tiles(dtype, request, monkeypatch):
    rng = np.random.default_rng(2)
    dy, x, w = (
        rng.normal(size=s).astype(dtype)
        for s in ((2, 9, 3, 9, 20), (2, 5, 3, 9, 20), (9, 5, 3, 3, 3))
    )
    expected = conv3d.conv3d_backward(*(array.astype(np.float64) for array in (dy, x, w)))[1]
    gpu = request.getfixturevalue("cuda_on_cpu")
    monkeypatch.setattr(conv3d_cuda, "BLOCKS", 4)
    for gpu.seed in range(4):
        dw = conv3d_cuda.conv3d_backward_cuda(dy, x, w)[1]
        np.testing.assert_allclose(
            dw, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max()
        )


@pytest.mark.skipif(backend.pick_device() == "cpu", reason="no GPU here")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_all_kernels_agree_with_numpy_on_the_gpu(dtype):
    for name, (on_cpu, on_gpu, args) in CASES.items():
        expected = results_of(on_cpu, args)
        args = [
            backend.to_device(arg, "cuda") if isinstance(arg, np.ndarray) else arg
            for arg in cast(args, dtype)
        ]
        first, again = ([backend.to_host(r) for r in as_tuple(on_gpu(*args))] for _ in "12")
        require_close(first, expected, dtype, name)
        for a, repeated in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, repeated, err_msg=name)
