"""What a convolution's backward kernels leave out because dy is 0 there.

Seen in the bits, and in what a NaN beside a zero does.
"""

import shutil

import numpy as np
import pytest

from weakunet.gpu import cuda_source
from weakunet.layers.conv import folded, tensor
from weakunet.layers.conv import gpu as conv3d_cuda

pytestmark = pytest.mark.slow
RUNGS = ("tiled", *tensor.PAIR)
# module and name of each file of kernels that leave out what is 0
FILES = [(conv3d_cuda, "TILED"), (tensor, "TENSOR"), (tensor, "FOLDED")]


def arrays(seed=0):
    """dy, zero but in few voxels and in all of maps 16-31; x and w without zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, 9, 5, 9, 33)).astype(np.float32)
    w = rng.normal(size=(33, 9, 3, 3, 3)).astype(np.float32)
    dy = np.zeros((1, 33, 5, 9, 33), np.float32)
    dy[0, :16, 1, 2, 3:9] = rng.normal(size=(16, 6))
    dy[0, 32, 4, 8, 32] = -1
    dy[0, 2, 3, 7, 20] = -0.0
    return dy, x, w


def never_skipping(folder, monkeypatch):
    """From now on kernels run from copies of their files that work through every tile."""
    for path in cuda_source.cu_path("layers/conv/tiled").parent.glob("*.cu*"):
        shutil.copy(path, folder)
    for module, name in [*FILES, (tensor, "BF16")]:
        copy = folder / f"{getattr(module, name).rpartition('/')[2]}.cu"
        text = copy.read_text()
        skips = 0 if name == "BF16" else 2  # that one includes the others
        assert text.count("__syncthreads_or(any)") == skips
        copy.write_text(text.replace("__syncthreads_or(any)", "__syncthreads_or(true)"))
        monkeypatch.setattr(module, name, str(copy.with_suffix("")))


@pytest.mark.parametrize("kernel", RUNGS)
def test_leaving_zeros_out_changes_no_bit(kernel, cuda_on_cpu, monkeypatch, tmp_path):
    monkeypatch.setattr(conv3d_cuda, "BLOCKS", 4)
    monkeypatch.setattr(tensor, "BLOCKS", 4)
    skipping = conv3d_cuda.conv3d_backward_cuda(*arrays(), kernel=kernel)
    never_skipping(tmp_path, monkeypatch)
    every_tile = conv3d_cuda.conv3d_backward_cuda(*arrays(), kernel=kernel)
    for some, all_, name in zip(skipping, every_tile, ("dx", "dw", "db"), strict=True):
        np.testing.assert_array_equal(some.view(np.uint32), all_.view(np.uint32), err_msg=name)
    files = {str(file) for file, _ in cuda_on_cpu.launched}
    assert any(str(tmp_path) in file for file in files)


@pytest.mark.parametrize("kernel", RUNGS)
def test_what_is_left_out_is_not_multiplied(kernel, cuda_on_cpu, monkeypatch, tmp_path):
    dy, x, w = arrays()
    w[16:32] = np.nan  # of maps whose dy is 0 everywhere
    x[..., 18:30] = np.nan  # two voxels and more from where dy is not 0
    dx, dw, _ = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel)
    assert np.isfinite(dx).all() and np.isfinite(dw).all()
    never_skipping(tmp_path, monkeypatch)
    dx, dw, _ = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel)
    assert np.isnan(dx).any() and np.isnan(dw).any()


@pytest.mark.parametrize("kernel", RUNGS)
def test_a_nan_in_the_gradient_is_not_taken_for_zero(kernel, cuda_on_cpu):
    dy, x, w = arrays()
    dy[:] = 0
    dy[0, 5, 3, 7, 16] = np.nan
    dx, dw, _ = conv3d_cuda.conv3d_backward_cuda(dy, x, w, kernel=kernel)
    assert np.isnan(dx).sum() == 27 * 9 and np.isnan(dw[5]).all() and not np.isnan(dw[:5]).any()


@pytest.mark.parametrize("rung", tensor.PAIR)
def test_leaving_zeros_out_behind_an_upsampling_changes_no_bit_and_is_not_multiplied(
    rung, cuda_on_cpu, monkeypatch, tmp_path
):
    monkeypatch.setattr(tensor, "BLOCKS", 8)
    rng = np.random.default_rng(0)
    dy = np.zeros((1, 33, 6, 18, 34), np.float32)
    dy[0, :16, 2, 4, 2:6] = rng.normal(size=(16, 4))
    dy[0, 32, 5, 17, 33] = -1
    dy[0, 3, 1, 12, 32] = 1  # in a tile where the other parity in x is 0 everywhere
    dy[0, 2, 4, 15, 20] = -0.0
    skip, coarse, w = (
        rng.normal(size=s).astype(np.float32)
        for s in ((1, 8, 6, 18, 34), (1, 9, 3, 9, 17), (33, 17, 3, 3, 3))
    )
    w_nan, coarse_nan = w.copy(), coarse.copy()
    w_nan[16:32] = np.nan  # of maps whose dy is 0 everywhere
    coarse_nan[..., 5:7, 8:15] = np.nan  # a row of tiles and more from where dy is not 0

    def gradients():
        exact = folded.upsample_conv3d_backward(dy, skip, coarse, w, rung)
        beside_nan = folded.upsample_conv3d_backward(dy, skip, coarse_nan, w_nan, rung)
        return exact[1:3], beside_nan[1:3]

    (skipping, beside_nan), _ = gradients(), never_skipping(tmp_path, monkeypatch)
    every_tile, multiplied = gradients()
    for some, all_ in zip(skipping, every_tile, strict=True):
        np.testing.assert_array_equal(some.view(np.uint32), all_.view(np.uint32))
    assert all(np.isfinite(gradient).all() for gradient in beside_nan)
    assert all(np.isnan(gradient).any() for gradient in multiplied)
