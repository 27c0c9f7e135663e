"""Grades exercise 7. The kernel runs in several orders of its threads: a missing barrier shows."""

import numpy as np
from grading import Between, compare, fail, launch, parts
from scipy import ndimage

from weakunet.layers.conv.conv3d import conv3d_forward

RNG = np.random.default_rng(7)
ORDERS = range(6)


def test_count_work(answer):
    c_in, c_out, shape, k = 16, 32, (4, 6, 10), 3
    result = parts("count_work", answer.count_work(c_in, c_out, shape, k), "FLOP, bytes")
    products = c_in * c_out * k**3 * 240  # one for each weight and voxel
    mistakes = [
        (products, "a multiply-add counts as one: it is two FLOP, a product and a sum"),
        (2 * products // 27 * 3, "the kernel has k^3 taps, not k"),
        (2 * products // c_in, "the sum over the input channels is missing"),
        (2 * products // c_out, "the output channels are missing"),
    ]
    compare("count_work's FLOP", result[0], 2 * products, mistakes)
    x, w, y = 4 * c_in * 240, 4 * c_in * c_out * 27, 4 * c_out * 240
    mistakes = [
        ((x + w + y) // 4, "these are numbers, not bytes: a float32 has 4"),
        ((x + w + y) * 2, "a float32 has 4 bytes, not 8"),
        (x + y, "the weights are missing: they are read, too"),
        (x + w, "the output is missing: writing moves bytes as well"),
        (27 * x + w + y, "x is counted once per tap: at the least it is read once"),
        (x + w // c_out + y, "w holds one kernel for each pair of an input and an output channel"),
    ]
    compare("count_work's bytes", result[1], x + w + y, mistakes)


def test_im2col(answer):
    x, w = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(3, 2, 3, 3, 3))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), (1, 2, 3))
    right = windows.transpose(0, 4, 5, 6, 1, 2, 3)  # c, i, j, m, z, y, x
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)), "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), (1, 2, 3))
    repeated = windows.transpose(0, 4, 5, 6, 1, 2, 3)
    wrapped = np.stack(
        [
            np.roll(x[c], (1 - i, 1 - j, 1 - m), (0, 1, 2)).ravel()
            for c, i, j, m in np.ndindex(2, 3, 3, 3)
        ]
    )
    by_taps = right.transpose(1, 2, 3, 0, 4, 5, 6).reshape(54, 60)
    flipped = right[:, ::-1, ::-1, ::-1].reshape(54, 60)
    by_x, right = right.swapaxes(4, 6), right.reshape(54, 60)
    mistakes = [
        (right.T, "the matrix is transposed: a column is what one output voxel sees"),
        (by_taps, "rows go by taps, then channels: w's order is channel first, then i, j, m"),
        (flipped, "the taps run backwards: row (c, 0, 0, 0) sees x[c, z-1, y-1, x-1]"),
        (wrapped, "the border is not zero padded: it wraps around"),
        (repeated.reshape(54, 60), "not zero padded: the outermost voxels are repeated"),
        (right[:27], "only the first channel is there: C_in k^3 rows"),
        (by_x.reshape(54, 60), "the columns are in the wrong order: x runs fastest"),
    ]
    for order in ((0, 1, 3, 2), (0, 2, 1, 3), (0, 3, 2, 1), (0, 2, 3, 1), (0, 3, 1, 2)):
        rows = right.reshape(2, 3, 3, 3, 60).transpose(*order, 4).reshape(54, 60)
        mistakes.append((rows, "a channel's taps are in the wrong order: i, then j, then m"))
    columns = answer.im2col(x, 3)
    compare("im2col", columns, right, mistakes)
    y = (w.reshape(3, -1) @ columns).reshape(1, 3, 3, 4, 5)
    compare("w @ im2col", y, conv3d_forward(x[None], w, np.zeros(3)))


def test_conv2d_tiled(answer):
    c_in, height, width = 3, 21, 35  # no multiples of the tile
    x, w = RNG.normal(size=(c_in, height, width)), RNG.normal(size=(c_in, 3, 3))
    right = _correlate(x, w)
    for seed in ORDERS:
        output = Between(np.full(height * width + 2000, np.nan), 1000, 1000 + height * width)
        grid, block = (-(-width // 16), -(-height // 16)), (16, 16)
        launch(answer, "conv2d_tiled", (grid, block), (x, w, output, c_in, height, width), seed)
        y = output.around[1000:-1000].reshape(height, width)
        if not np.isnan(output.around[[*range(1000), *range(-1000, 0)]]).all():
            fail("conv2d_tiled writes outside the slice: only where row < height, column < width")
        if np.isnan(y).all():
            fail("conv2d_tiled writes nothing into y: it is yours to write")
        if seed == ORDERS[0]:
            first = y
        if not np.array_equal(first, y, equal_nan=True):
            _say_which_barrier(y)
    compare("conv2d_tiled's y", first, right, _mistakes(x, w, right))


def _say_which_barrier(y):
    """Shared memory is NaN before a block writes it: who reads too early, reads NaN."""
    if np.isnan(y).any():
        fail(
            "y depends on the order of the threads, and is NaN in places: a thread reads the tile "
            "before the others have filled it. A __syncthreads() is missing after filling"
        )
    fail(
        "y depends on the order of the threads: one fills the tile with the next channel while "
        "others still read the last. A __syncthreads() is missing after the sum"
    )


def _correlate(x, w):
    return sum(ndimage.correlate(a, b, mode="constant") for a, b in zip(x, w, strict=True))


def _mistakes(x, w, right):
    no_halo, short = np.zeros(right.shape), right.copy()
    for top, left in np.ndindex(2, 3):
        tile = np.s_[:, 16 * top : 16 * top + 16, 16 * left : 16 * left + 16]
        no_halo[tile[1:]] = _correlate(x[tile], w)
    unfilled = _unfilled()[: right.shape[0], : right.shape[1]]
    short[unfilled] = np.nan
    return [
        (no_halo, "the halo is zero: voxels of the neighbouring tiles must be copied, too"),
        (short, "the end of the tile is never filled: 324 voxels, so a thread takes more than one"),
        (_correlate(x, w[:, ::-1, ::-1]), "the kernel is flipped: tap j reads x[row+j-1]"),
        (_correlate(x[-1:], w[-1:]), "only the last channel is there: keep one sum for all"),
        (_correlate(x, np.broadcast_to(w[:1], w.shape)), "every channel takes channel 0's weights"),
        (_correlate(np.broadcast_to(x[:1], x.shape), w), "every channel reads channel 0 of x"),
        (_correlate(x, w.swapaxes(1, 2)), "j and m of w are swapped"),
    ]


def _unfilled():
    """Outputs that see one of the tile's voxels 256 ... 323, in a slice of 2 x 3 tiles."""
    e = np.arange(18 * 18).reshape(18, 18) >= 256
    sees = ndimage.maximum_filter(e, 3)[1:-1, 1:-1]
    return np.tile(sees, (2, 3))
