"""Every CUDA kernel, its own text run on the CPU, against its numpy pair in float64."""

import numpy as np
import pytest
from kernel_cases import CASES
from test_layers import LAYERS, distinct

from weakunet import cuda_source, loss
from weakunet.gradcheck import check_layer
from weakunet.layers import conv3d, conv3d_cuda, maxpool3d
from weakunet.model import WeakUNet
from weakunet.optim import Adadelta

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def results_of(function, args):
    """What `function` returns, always as a tuple of arrays."""
    result = function(*args)
    return tuple(np.asarray(r) for r in (result if isinstance(result, tuple) else (result,)))


def cast(args, dtype):
    """The arguments with all float arrays of type `dtype`; a transform's matrix stays float64."""
    return tuple(
        arg.astype(dtype)
        if isinstance(arg, np.ndarray) and arg.dtype.kind == "f" and arg.shape != (3, 4)
        else arg
        for arg in args
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_kernel_agrees_with_numpy_in_any_order_of_threads(name, dtype, request):
    on_cpu, on_gpu, args = CASES[name]
    expected = results_of(on_cpu, args)
    gpu = request.getfixturevalue("cuda_on_cpu")  # from here on the layers would run kernels
    args = cast(args, dtype)
    before = [np.array(arg) for arg in args]
    first = None
    for gpu.seed in (0, 1, 2):
        actual = results_of(on_gpu, args)
        first = first or actual
        for a, e, f in zip(actual, expected, first, strict=True):
            assert a.shape == e.shape and a.dtype == (dtype if e.dtype.kind == "f" else e.dtype)
            tolerance = TOLERANCE[dtype] * np.abs(e).max() if e.dtype.kind == "f" else 0
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance)
            np.testing.assert_array_equal(a, f, "the order of the threads changes the result")
    for arg, kept in zip(args, before, strict=True):
        np.testing.assert_array_equal(arg, kept, "an input was changed")


def test_cases_reach_every_kernel_of_every_cu_file(cuda_on_cpu):
    for _, on_gpu, args in CASES.values():
        on_gpu(*cast(args, np.float32))
    kernels = {
        (file, kernel) for file in cuda_source.cu_files() for kernel in cuda_source.kernels(file)
    }
    assert all("__global__" in cuda_source.source(file) for file in cuda_source.cu_files())
    assert kernels - cuda_on_cpu.launched == set()


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


def network_step(pooling):
    """Counts, heatmaps, gradients and updated weights of one training step, in float64."""
    rng = np.random.default_rng(3)
    model = WeakUNet((2, 3), pooling=pooling, block=3, rng=rng, dtype=np.float64)
    scans, counts = rng.uniform(0, 1, (2, 1, 4, 6, 10)), np.array([1.0, 4.0])
    predicted = model.forward(scans)
    model.backward(loss.mse_backward(predicted, counts))
    grads = {name: np.array(value) for name, value in model.grads.items()}
    Adadelta(model.params).step(model.grads)
    return [predicted, *grads.values(), *model.params.values(), *model.predict(scans)]


@pytest.mark.parametrize("pooling", ["max", "mean", "lmax"])
def test_training_step_on_kernels_agrees_with_numpy_and_repeats_bit_for_bit(pooling, request):
    expected = network_step(pooling)
    gpu = request.getfixturevalue("cuda_on_cpu")
    first, gpu.seed = network_step(pooling), 5
    for e, a, again in zip(expected, first, network_step(pooling), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=1e-10 * np.abs(e).max())
        np.testing.assert_array_equal(a, again)
    assert {"conv3d_forward_tiled_k3", "adadelta_update"} <= {kernel for _, kernel in gpu.launched}


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
