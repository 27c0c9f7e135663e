"""Grades exercise 6.

Arrays lie in the middle of larger ones full of NaN, so that what a kernel writes beside its output
is seen, and what it reads there is NaN.
"""

import numpy as np
from grading import Between, compare, fail, launch
from scipy import ndimage

BESIDE = 512  # elements of NaN before and behind an array, more than a block of threads
RNG = np.random.default_rng(6)


def _between_nans(values):
    around = np.full(values.size + 2 * BESIDE, np.nan)
    around[BESIDE : BESIDE + values.size] = values.ravel()
    return Between(around, BESIDE, BESIDE + values.size)


def _run(answer, kernel, inputs, n, numbers, before=np.nan):
    """Run a kernel over inputs, with a thread per output (n); return the outputs."""
    output = _between_nans(np.full(n, before))
    args = *(_between_nans(values) for values in inputs), output, *numbers
    launch(answer, kernel, n, args)  # in blocks of 256
    around, y = output.around, output.around[BESIDE : BESIDE + n]
    if not np.isnan(around[BESIDE + n :]).all():
        fail(f"{kernel} writes beyond y[n-1]: threads with a number >= n must do nothing")
    if not np.isnan(around[:BESIDE]).all():
        fail(f"{kernel} writes before y[0]")
    if np.isnan(y).all():
        if _run(answer, kernel, inputs, n, numbers, before=0).any():
            fail(f"{kernel} reads y: y holds NaN before (on a GPU anything). Write y[...] = once")
        fail(f"{kernel} writes nothing into y: it is yours to write")
    if n > 256 and not np.isnan(y[:256]).any() and np.isnan(y[256:]).all():
        fail(
            f"only the first block's outputs of {kernel} are written: thread {256} is number 0 of "
            "block 1, so its i is blockIdx.x * blockDim.x + threadIdx.x"
        )
    return y.copy()


def test_blocks_needed(answer):
    ns = [0, 1, 255, 256, 257, 1000]
    right = [0, 1, 1, 1, 2, 4]
    mistakes = [
        ([0, 0, 0, 1, 1, 3], "rounded down: the last elements get no thread"),
        ([1, 1, 1, 2, 2, 4], "n // threads + 1 starts one block too many where n is a multiple"),
        ([0, 1, 255, 256, 257, 1000], "a block has `threads` threads: fewer blocks than elements"),
        ([1, 1, 1, 1, 2, 4], "there is none for n = 0"),
        ([0, 0, 1, 1, 1, 4], "rounded to the nearest: the last elements get no thread"),
        ([0, 256, 256, 256, 512, 1024], "these are threads: divide by `threads`"),
        (np.divide(ns, 256), "a fraction of a block: round up"),
    ]
    compare("blocks_needed", [answer.blocks_needed(n, 256) for n in ns], right, mistakes)


def test_relu(answer):
    x = RNG.normal(size=300)
    x[7] = 0
    mistakes = [
        (x, "relu copies x: negative values must become 0"),
        (np.abs(x), "this is the absolute value: negative values must become 0"),
        (np.minimum(x, 0), "the comparison is the wrong way round: positive values are kept"),
        (x > 0, "this is 1 where x > 0: y is x itself there"),
        (np.r_[np.maximum(x, 0)[:-1], np.nan], "the last element is left out: i < n, not i < n-1"),
        (np.r_[np.nan, np.maximum(x, 0)[1:]], "the first element is left out: i = 0 is one, too"),
    ]
    compare("relu's y", _run(answer, "relu", [x], 300, (300,)), np.maximum(x, 0), mistakes)


def test_conv3d(answer):
    x, w = RNG.normal(size=(5, 7, 9)), RNG.normal(size=(3, 3, 3))
    right = ndimage.correlate(x, w, mode="constant")
    one_voxel = {"mode": "constant", "origin": (-1, -1, -1)}
    far = ndimage.correlate(np.pad(x, ((0, 0), (0, 4), (0, 0))), w, mode="constant")
    z, y, x_ = (np.arange(x.size) // 63, np.arange(x.size) // 7 % 9, np.arange(x.size) % 7)
    no_zeros = [x * (np.indices(x.shape)[axes,] > 0).all(axis=0) for axes in ([0], [0, 1, 2])]
    mistakes = [
        (_flat_reads(x, w, np.nan), "the border is not zero padded: outside voxels are read"),
        (_flat_reads(x, w, 0), "the border is not zero padded: left of a row is the row before"),
        (ndimage.correlate(x, w, mode="nearest"), "the border is not zero padded but repeated"),
        (_inner(right, 0), "border voxels stay 0: their neighbours INSIDE the volume still count"),
        (_inner(right, np.nan), "border voxels are not written: leave out the tap, not the output"),
        (ndimage.convolve(x, w, mode="constant"), "the kernel is flipped: tap i reads x[z+i-1]"),
        (ndimage.correlate(x, w.T, mode="constant"), "w's axes are swapped: m is the fastest"),
        (ndimage.correlate(x, w, **one_voxel), "the taps are shifted by one: z+i-1, not z+i"),
        (far[z, y, x_].reshape(x.shape), "height and width are swapped where t is taken apart"),
        (ndimage.correlate(x, w.transpose(1, 0, 2), mode="constant"), "i and j of w are swapped"),
        (ndimage.correlate(x, w.transpose(0, 2, 1), mode="constant"), "j and m of w are swapped"),
    ]
    for zeroed in no_zeros:
        wrong = ndimage.correlate(zeroed, w, mode="constant")
        mistakes.append((wrong, "voxels with an index of 0 are left out: they are inside, >= 0"))
    y = _run(answer, "conv3d", [x, w], x.size, (*x.shape, x.size))
    compare("conv3d's y", y.reshape(x.shape), right, mistakes)


def _flat_reads(x, w, beside):
    """What comes out when no tap asks whether its voxel exists; `beside` lies around x."""
    _, height, width = x.shape
    reach = height * width + width + 1
    flat, y = np.pad(x.ravel(), reach, constant_values=beside), np.zeros(x.size)
    for i, j, m in np.ndindex(3, 3, 3):
        start = reach + ((i - 1) * height + j - 1) * width + m - 1
        y += w[i, j, m] * flat[start : start + x.size]
    return y.reshape(x.shape)


def _inner(y, border):
    """y with its outermost voxels replaced."""
    return np.pad(y[1:-1, 1:-1, 1:-1], 1, constant_values=border)
