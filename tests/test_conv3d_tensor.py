"""The convolution on tensor cores: what is rounded and what is not, and when it is not used.

That it agrees with the plain convolution on numbers that TF32 and bfloat16 hold exactly is in
test_kernels.py.
"""

import numpy as np
import pytest
from rounding import to_bf16, to_tf32

from weakunet.gpu import backend
from weakunet.layers.conv import conv3d, tensor
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.conv.packed import STORED, pack, unpack

# (N, C_in, D, H, W), C_out: around 8, 16 input and 32 output channels and tiles of 4 x 8 x 16
SHAPES = [((1, 8, 4, 8, 16), 32), ((2, 11, 5, 9, 17), 33), ((1, 16, 9, 3, 20), 8)]
SHAPES += [((1, 25, 2, 4, 9), 17)]
# rung -> how the factors are rounded, and the least and the most that a result is off by for it, of
# the largest one: bfloat16 has 3 bits fewer than TF32, so 8 times as much
ROUNDED = {"tensor": (to_tf32, 1e-4, 6e-4), "tensor_bf16": (to_bf16, 8e-4, 5e-3)}


def random_arrays(shape, c_out):
    """dy, x, w, b in float32, with more digits than TF32 or bfloat16 has."""
    rng = np.random.default_rng(4)
    shapes = (shape[0], c_out, *shape[2:]), shape, (c_out, shape[1], 3, 3, 3), (c_out,)
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def error(value, expected):
    return np.abs(value - expected).max() / np.abs(expected).max()


def off_by_a_rounding(value, expected, rung, times=1):
    """True if value is `expected`, of sums in float32, rounded `times` times by a rung."""
    half_a_step = {"tensor": 2.0**-11, "tensor_bf16": 2.0**-8}[rung]
    room = times * half_a_step * np.abs(expected) + 4e-6 * np.abs(expected).max()
    return (np.abs(value - expected) < room).all()


@pytest.mark.parametrize("rung", ROUNDED)
@pytest.mark.parametrize(("shape", "c_out"), SHAPES)
def test_only_factors_and_maps_are_rounded(shape, c_out, rung, request, monkeypatch):
    dy, x, w, b = random_arrays(shape, c_out)
    exact = [a.astype(np.float64) for a in (dy, x, w, b)]
    to_factor, least, most = ROUNDED[rung]
    rounded = [to_factor(a).astype(np.float64) for a in (dy, x, w)]
    expected = [
        (conv3d.conv3d_forward(x, w, b), *conv3d.conv3d_backward(dy, x, w)[:2])
        for dy, x, w, b in (exact, [*rounded, exact[3]])
    ]
    gpu = request.getfixturevalue("cuda_on_cpu")
    monkeypatch.setattr(tensor, "BLOCKS", 4)  # each sums several tiles
    for gpu.seed in range(2):
        y = conv3d_cuda.conv3d_forward_cuda(x, w, b, rung)
        dx, dw, db = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=rung)
        for value, full, same_rounding in zip((y, dx, dw), *expected, strict=True):
            assert least < error(value, full) < most
            if value is dw:
                assert error(value, same_rounding) < 2e-6  # sums are float32
            else:
                assert off_by_a_rounding(value, same_rounding, rung)
                np.testing.assert_array_equal(value, to_factor(value))
        assert error(db, rounded[0].sum(axis=(0, 2, 3, 4))) < 2e-6
    launched = {kernel for _, kernel in gpu.launched}
    assert {"conv3d_tensor", "conv3d_tensor_backward_weight"} <= launched
    assert not any("naive" in kernel or "_tiled" in kernel for kernel in launched)


@pytest.mark.parametrize("rung", ROUNDED)
def test_packed_maps_stay_packed_and_channels_that_are_not_there_are_0(rung, cuda_on_cpu):
    dy, x, w, b = random_arrays(*SHAPES[1])
    packed_dy, packed_x = (pack(a, STORED[rung]) for a in (dy, x))
    y = conv3d_cuda.conv3d_forward_cuda(packed_x, w, b, rung)
    dx, dw, _ = conv3d_cuda.conv3d_backward_cuda(packed_dy, packed_x, w, kernel=rung)
    plain = conv3d_cuda.conv3d_forward_cuda(x, w, b, rung)
    np.testing.assert_array_equal(unpack(y, len(w)), plain)
    plain = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=rung)
    np.testing.assert_array_equal(unpack(dx, w.shape[1]), plain[0])
    np.testing.assert_array_equal(dw, plain[1])
    for packed, channels in ((packed_dy, 33), (packed_x, 11), (y, 33), (dx, 11)):
        assert packed.dtype == STORED[rung] and packed.shape[5] * packed.itemsize == 32
        every = np.moveaxis(packed, 5, 2).reshape(len(x), -1, *x.shape[2:])
        assert (every[:, :channels] != 0).any(axis=(0, 2, 3, 4)).all()
        assert not every[:, channels:].any()


@pytest.mark.parametrize(
    ("c_in", "k", "dtype", "capability"),
    [(8, 1, "f4", 90), (8, 3, "f8", 90), (8, 3, "f4", 75)],
)
def test_falls_back_to_tiled(c_in, k, dtype, capability, cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(backend, "compute_capability", lambda: capability)
    rng = np.random.default_rng(0)
    shapes = (1, 4, 2, 3, 5), (1, c_in, 2, 3, 5), (4, c_in, k, k, k), (4,)
    dy, x, w, b = (rng.normal(size=s).astype(dtype) for s in shapes)
    results = []
    for kernel in ("tiled", *ROUNDED):
        backward = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel)
        results.append((conv3d_cuda.conv3d_forward_cuda(x, w, b, kernel), *backward))
    for tiled, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(tiled, other)
    files = {file for file, _ in cuda_on_cpu.launched}
    assert files and tensor.TENSOR not in files


@pytest.mark.parametrize("kernel", conv3d_cuda.KERNELS)
def test_relu_on_the_way_out_gives_the_bits_of_one_behind(kernel, cuda_on_cpu):
    dy, x, w, b = random_arrays(*SHAPES[1])
    x[1, 3, 2, 4, 6] = np.nan
    y, fused = (conv3d_cuda.conv3d_forward_cuda(x, w, b, kernel, relu) for relu in (False, True))
    np.testing.assert_array_equal(fused, np.maximum(y, 0))
    assert np.isnan(y).any() and (y < 0).any()
    inside = np.ones((2, 1, *x.shape[2:]), np.float32)
    inside[0, 0, 1:3, :, 3:16] = inside[1, 0, 4:, 5:] = 0
    roi = conv3d_cuda.conv3d_forward_cuda(x, w, b, kernel, True, inside)
    np.testing.assert_array_equal(roi, np.maximum(y, 0) * inside)
    plain, masked = (
        conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel, mask=mask)[0]
        for mask in (False, True)
    )
    np.testing.assert_array_equal(masked, np.where(x > 0, plain, 0))
