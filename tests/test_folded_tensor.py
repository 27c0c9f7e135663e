"""The decoder's convolution on tensor cores: what is rounded, when it runs, what it never stores.

That it agrees with upsampling, concatenating and convolving on numbers that TF32 and bfloat16 hold
exactly, in any order of threads, is in test_kernels.py.
"""

import numpy as np
import pytest
from test_conv3d_tensor import ROUNDED, error, off_by_a_rounding

from weakunet.gpu import backend
from weakunet.layers.concat import concat_backward, concat_forward
from weakunet.layers.conv import conv3d, folded, tensor
from weakunet.layers.conv import gpu as conv3d_cuda
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward

# N, C_a, C_b, (D, H, W) of coarse, C_out: around 8, 16, 32, 64 channels and tiles of 2 x 8 x 16
SIZES = [(2, 8, 9, (3, 9, 17), 17), (1, 9, 66, (2, 3, 4), 33)]


def random_arrays(n, c_a, c_b, volume, c_out, dtype=np.float32):
    """dy, skip, coarse, w, b, with more digits than TF32 or bfloat16 has."""
    rng = np.random.default_rng(5)
    fine = [2 * size for size in volume]
    shapes = (n, c_out, *fine), (n, c_a, *fine), (n, c_b, *volume)
    shapes += (c_out, c_a + c_b, 3, 3, 3), (c_out,)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def step_by_step(dy, skip, coarse, w, b, **rung):
    """y, dskip, dcoarse, dw, db by upsampling, concatenating and convolving; on a GPU by a rung."""
    x = concat_forward(skip, upsample3d_forward(coarse))
    if rung:
        y, gradients = (
            conv3d_cuda.conv3d_forward_cuda(x, w, b, **rung),
            conv3d_cuda.conv3d_backward_cuda(dy, x, w, **rung),
        )
    else:
        y, gradients = conv3d.conv3d_forward(x, w, b), conv3d.conv3d_backward(dy, x, w)
    dskip, dup = concat_backward(gradients[0], skip.shape[1])
    return y, dskip, upsample3d_backward(dup), *gradients[1:]


def of_rounded(to_factor, dy, skip, coarse, w, b):
    """y, dskip, dcoarse, dw, db in float64, of factors rounded by `to_factor`; the part of the
    coarse tensor as a transposed convolution of stride 2, whose weights are rounded after their
    folding.
    """
    c_a, volume = skip.shape[1], coarse.shape[2:]
    padded = np.pad(w[:, c_a:], ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1)))
    fold = np.zeros((*padded.shape[:2], 4, 4, 4), np.float32)
    corners = list(np.ndindex(2, 2, 2))
    for e in corners:  # fold[f] = w[2 - f] + w[3 - f] along each axis
        fold += padded[(..., *(slice(i, i + 4) for i in e))][..., ::-1, ::-1, ::-1]
    factors = dy, skip, coarse, w[:, :c_a], fold
    dy, skip, coarse, w_skip, fold = (to_factor(a).astype(np.float64) for a in factors)
    border = [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)]
    fine = np.pad(conv3d.conv3d_forward(skip, w_skip, b.astype(np.float64)), border)
    dskip, dw_skip, db = conv3d.conv3d_backward(dy, skip, w_skip)
    dy, dcoarse, dfold = np.pad(dy, border), np.zeros_like(coarse), np.zeros_like(fold)
    for f in np.ndindex(4, 4, 4):  # coarse voxel i reaches the outputs 2i - 1 + f
        reached = (..., *(slice(i, i + 2 * n, 2) for i, n in zip(f, volume, strict=True)))
        fine[reached] += np.einsum("oc,nczyx->nozyx", fold[(..., *f)], coarse)
        dcoarse += np.einsum("oc,nozyx->nczyx", fold[(..., *f)], dy[reached])
        dfold[(..., *f)] = np.einsum("nozyx,nczyx->oc", dy[reached], coarse)
    dw = sum(dfold[(..., *(slice(i, i + 3) for i in e))] for e in corners)[..., ::-1, ::-1, ::-1]
    y = fine[..., 1:-1, 1:-1, 1:-1]
    return y, dskip, dcoarse, np.concatenate((dw_skip, dw), axis=1), db


def on_tensor_cores(dy, skip, coarse, w, b, rung="tensor"):
    y = folded.upsample_conv3d_forward(skip, coarse, w, b, rung)
    return y, *folded.upsample_conv3d_backward(dy, skip, coarse, w, rung)


@pytest.mark.parametrize("rung", ROUNDED)
@pytest.mark.parametrize("size", SIZES)
def test_factors_and_maps_are_rounded_the_folded_weights_after_their_sum(
    size, rung, request, monkeypatch
):
    arrays = random_arrays(*size)
    to_factor, least, most = ROUNDED[rung]
    full = step_by_step(*(a.astype(np.float64) for a in arrays))
    expected = of_rounded(to_factor, *arrays)
    skip, w_skip = (to_factor(a).astype(np.float64) for a in (arrays[1], arrays[3][:, : size[1]]))
    skip = conv3d.conv3d_forward(skip, w_skip, arrays[4].astype(np.float64))
    gpu = request.getfixturevalue("cuda_on_cpu")
    monkeypatch.setattr(tensor, "BLOCKS", 8)  # each sums several tiles
    for gpu.seed in range(2):
        results = on_tensor_cores(*arrays, rung)
        y, dskip, dcoarse, dw, db = results
        for value, exact in zip(results[:-1], full, strict=False):
            assert least / 2 < error(value, exact) < most
        # what the skip contributes to y is rounded before the rest is added
        assert off_by_a_rounding(y, expected[0], rung, times=1 + np.abs(skip / expected[0]))
        assert off_by_a_rounding(dskip, expected[1], rung)
        assert off_by_a_rounding(dcoarse, expected[2], rung)
        assert error(dw, expected[3]) < 2e-6  # sums are float32
        assert error(dw[:, size[1] :], expected[3][:, size[1] :]) < 2e-6
        assert error(db, to_factor(arrays[0]).astype("f8").sum(axis=(0, 2, 3, 4))) < 2e-6
    launched = {kernel for _, kernel in gpu.launched}
    assert {"folded_tensor_forward", "folded_tensor_backward_coarse"} <= launched
    assert "folded_tensor_backward_weight" in launched
    assert not any("upsample" in kernel or "tiled" in kernel for kernel in launched)


@pytest.mark.parametrize(
    ("c_a", "c_b", "dtype", "capability"),
    [(8, 8, "f8", 90), (8, 8, "f4", 75)],
)
def test_falls_back_to_step_by_step(c_a, c_b, dtype, capability, cuda_on_cpu, monkeypatch):
    monkeypatch.setattr(backend, "compute_capability", lambda: capability)
    arrays = random_arrays(1, c_a, c_b, (1, 2, 3), 4, dtype)
    for rung in ROUNDED:
        expected = step_by_step(*arrays, kernel=rung)
        for value, plain in zip(on_tensor_cores(*arrays, rung), expected, strict=True):
            np.testing.assert_array_equal(value, plain)
    assert not any("folded" in kernel for _, kernel in cuda_on_cpu.launched)


@pytest.mark.parametrize("width", [4, 5])
def test_relu_on_the_way_out_gives_the_bits_of_one_behind(width, cuda_on_cpu):
    _, skip, coarse, w, b = random_arrays(1, 8, 8, (2, 3, width), 9)
    coarse[0, 3, 1, 2, 3] = np.nan
    y, fused = (
        folded.upsample_conv3d_forward(skip, coarse, w, b, "tensor", relu) for relu in (False, True)
    )
    np.testing.assert_array_equal(fused, np.maximum(y, 0))
    assert np.isnan(y).any() and (y < 0).any()
    inside = np.ones((1, 1, *y.shape[2:]), np.float32)
    inside[0, 0, 0, 2:, : width + 1] = 0
    roi = folded.upsample_conv3d_forward(skip, coarse, w, b, "tensor", True, inside)
    np.testing.assert_array_equal(roi, np.maximum(y, 0) * inside)
