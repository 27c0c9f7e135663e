"""The convolution's variants against scipy, numerical gradients, the plain version and PyTorch."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage
from threadpoolctl import threadpool_info, threadpool_limits

from weakunet.layers.concat import concat_forward
from weakunet.layers.conv import conv3d
from weakunet.layers.conv import cpu as conv3d_fast
from weakunet.layers.conv.conv3d import Conv3D
from weakunet.layers.conv.folded import (
    UpsampleConv3D,
    upsample_conv3d_backward,
    upsample_conv3d_forward,
)
from weakunet.layers.gradcheck import check_layer
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward
from weakunet.util import threads

# (N, C_in, C_out, D, H, W): odd, unequal, one wide, one channel, larger than a product's columns
SIZES = [
    (2, 3, 4, 4, 5, 6),
    (1, 1, 1, 1, 1, 1),
    (1, 2, 3, 1, 7, 1),
    (3, 1, 5, 3, 1, 4),
    (1, 5, 2, 2, 30, 29),
    (1, 2, 2, 2, 2, 600),
    (2, 40, 3, 9, 24, 26),
]


@pytest.fixture
def one_then_many_threads():
    """Yields a function to set the number of threads; afterwards it is the default again."""
    yield threads.set_threads
    threads.set_threads()


def arrays(n, c_in, c_out, *size, k=3, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (n, c_in, *size), (c_out, c_in, k, k, k), (c_out,), (n, c_out, *size)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]  # x, w, b, dy


def scipy_forward(x, w, b):
    y = np.empty((len(x), len(w), *x.shape[2:]))
    for i, o in np.ndindex(*y.shape[:2]):
        y[i, o] = b[o] + sum(
            ndimage.correlate(x[i, c], w[o, c], mode="constant") for c in range(x.shape[1])
        )
    return y


def assert_close(value, reference, tolerance):
    assert value.shape == reference.shape
    np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * np.abs(reference).max())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("forward", [conv3d.conv3d_forward, conv3d_fast.forward])
def test_forward_equals_scipy(forward, k, size):
    x, w, b, _ = arrays(*size, k=k)
    assert_close(forward(x, w, b), scipy_forward(x, w, b), 1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 3])
def test_fast_backward_equals_the_plain_one(k, size):
    x, w, _, dy = arrays(*size, k=k)
    plain = conv3d.conv3d_backward(dy, x, w)
    for value, reference in zip(conv3d_fast.backward(dy, x, w), plain, strict=True):
        assert_close(value, reference, 1e-12)
    dx, dw, _ = conv3d_fast.backward(dy, x, w, needs_dx=False)
    assert dx is None
    assert_close(dw, plain[1], 1e-12)


def test_plain_backward_is_the_adjoint_of_scipys_correlation():
    x, w, b, dy = arrays(2, 3, 4, 3, 5, 4)
    dx, dw, db = conv3d.conv3d_backward(dy, x, w)
    rng = np.random.default_rng(1)
    vx, vw, vb = (rng.standard_normal(a.shape) for a in (x, w, b))
    moved = scipy_forward(vx, w, 0 * b) + scipy_forward(x, vw, vb)
    np.testing.assert_allclose((moved * dy).sum(), (vx * dx).sum() + (vw * dw).sum() + vb @ db)


def test_layer_keeps_its_input_only_from_forward_to_backward():
    layer = Conv3D(1, 1, rng=np.random.default_rng(6), dtype=np.float64)
    x = np.ones((1, 1, 2, 2, 2))
    y = layer.forward(x)
    assert layer.x is x
    assert layer.backward(y, needs_dx=False) is None
    assert layer.x is None
    layer.forward(x, keep=False)
    assert layer.x is None


@pytest.mark.parametrize("size", [(2, 2, 3, 2, 3, 4), (1, 1, 1, 1, 1, 1), (1, 3, 2, 3, 1, 17)])
def test_folded_equals_upsampling_concatenating_and_convolving(size):
    n, c_a, c_b, depth, height, width = size
    x, w, b, dy = arrays(n, c_a + c_b, 3, 2 * depth, 2 * height, 2 * width)
    skip = x[:, :c_a]
    coarse = np.ascontiguousarray(x[:, c_a:, :depth, :height, :width])
    together = concat_forward(skip, upsample3d_forward(coarse))
    assert_close(upsample_conv3d_forward(skip, coarse, w, b), scipy_forward(together, w, b), 1e-12)
    dx, dw, db = conv3d.conv3d_backward(dy, together, w)
    expected = dx[:, :c_a], upsample3d_backward(dx[:, c_a:]), dw, db
    for value, reference in zip(
        upsample_conv3d_backward(dy, skip, coarse, w), expected, strict=True
    ):
        assert_close(value, reference, 1e-12)


def test_gradients_of_the_folded_layer_are_right():
    rng = np.random.default_rng(4)
    layer = UpsampleConv3D(3, 2, rng=rng, dtype=np.float64)
    inputs = [rng.standard_normal((2, 1, 2, 4, 2)), rng.standard_normal((2, 2, 1, 2, 1))]
    errors = check_layer(layer, inputs, rng)
    assert set(errors) == {"x0", "x1", "w", "b"}
    assert max(errors.values()) < 1e-6, errors


def test_float32_is_accurate_and_stays_float32():
    x, w, b, dy = arrays(2, 24, 8, 8, 16, 16, dtype=np.float32)
    y = conv3d_fast.forward(x, w, b)
    gradients = conv3d_fast.backward(dy, x, w)
    x64, w64, b64, dy64 = (a.astype(np.float64) for a in (x, w, b, dy))
    references = conv3d.conv3d_forward(x64, w64, b64), *conv3d.conv3d_backward(dy64, x64, w64)
    for value, reference in zip((y, *gradients), references, strict=True):
        assert value.dtype == np.float32
        assert_close(value, reference, 2e-6)


def test_views_are_read_as_they_are_and_nothing_else_is_written():
    x, w, b, dy = arrays(2, 3, 4, 4, 5, 6)
    views = x[:, ::-1].swapaxes(3, 4), w[..., ::-1], b[::-1], dy[:, :, ::-1].swapaxes(3, 4)
    before = [view.copy() for view in views]
    for view in views:
        view.flags.writeable = False  # a write would raise
    vx, vw, vb, vdy = views
    assert_close(conv3d_fast.forward(vx, vw, vb), scipy_forward(*before[:3]), 1e-12)
    plain = conv3d.conv3d_backward(before[3], before[0], before[1])
    for value, reference in zip(conv3d_fast.backward(vdy, vx, vw), plain, strict=True):
        assert_close(value, reference, 1e-12)


def test_results_do_not_depend_on_threads_or_on_the_run(one_then_many_threads):
    x, w, b, dy = arrays(3, 16, 8, 12, 24, 24, dtype=np.float32)
    coarse = np.ascontiguousarray(x[:, 8:, :6, :12, :12])
    results = []
    for count in (1, 2, 3, 2):
        one_then_many_threads(count)
        results.append(
            [
                conv3d_fast.forward(x, w, b),
                *conv3d_fast.backward(dy, x, w),
                upsample_conv3d_forward(x[:, :8], coarse, w, b),
                *upsample_conv3d_backward(dy, x[:, :8], coarse, w),
            ]
        )
    for other in results[1:]:
        for value, reference in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(value, reference)


@pytest.mark.parametrize("size", [(2, 3, 4, 4, 5, 6), (1, 24, 8, 3, 9, 70)])
def test_forward_and_backward_equal_pytorch(size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, w, b, dy = arrays(*size)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, w, b)]
    y = torch.nn.functional.conv3d(*tensors, padding=1)
    y.backward(torch.from_numpy(dy))
    assert_close(conv3d_fast.forward(x, w, b), y.detach().numpy(), 1e-12)
    for value, tensor in zip(conv3d_fast.backward(dy, x, w), tensors, strict=True):
        assert_close(value, tensor.grad.numpy(), 1e-12)


def test_weights_start_gaussian_with_hes_variance_and_no_bias():
    layer = Conv3D(32, 64, rng=np.random.default_rng(5))
    w = layer.params["w"]
    assert w.dtype == np.float32
    assert abs(w.std() / np.sqrt(2 / (32 * 27)) - 1) < 0.02
    assert abs(w.mean()) < 1e-3
    assert not layer.params["b"].any()


def test_blas_has_its_threads_back_after_a_pass(one_then_many_threads):
    def blas_threads():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]

    before, during = blas_threads(), []
    with threadpool_limits(3, user_api="blas"):
        x, w, b, dy = arrays(1, 2, 3, 4, 5, 6)
        for k in (1, 3):
            conv3d_fast.backward(dy, x, w[..., :k, :k, :k])
        conv3d_fast.forward(x, w, b)
        threads.split_over_threads(lambda item: during.append(blas_threads()), range(2))
        assert blas_threads() == [3] * len(before)
        assert all(1 in found for found in during)  # numpy's; others may be loaded, too
    command = "import threadpoolctl as t, numpy; a = t.threadpool_info(); import weakunet.model"
    command += "; assert a and t.threadpool_info() == a"
    subprocess.run([sys.executable, "-c", command], check=True)
