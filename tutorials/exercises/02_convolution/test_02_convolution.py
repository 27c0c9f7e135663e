"""Grades exercise 2; the oracle is scipy.ndimage.correlate."""

import numpy as np
from grading import compare
from scipy import ndimage

PADDED = "the border is not zero padded"
FLIPPED = "the kernel is flipped: here tap i multiplies x[t+i-p], a cross-correlation"
RNG = np.random.default_rng(2)
LINE, LINE_W = RNG.normal(size=9), RNG.normal(size=5)
X, W, B = RNG.normal(size=(3, 4, 5, 6)), RNG.normal(size=(3, 3, 3, 3, 3)), RNG.normal(size=3)


def _correlate(x, w, **settings):
    settings = settings or {"mode": "constant"}
    return np.stack(
        [sum(ndimage.correlate(a, b, **settings) for a, b in zip(x, row, strict=True)) for row in w]
    )


def test_conv1d(answer):
    right = ndimage.correlate(LINE, LINE_W, mode="constant")
    mistakes = [
        (right[2:-2], f"{PADDED}: y must be as long as x"),
        (ndimage.correlate(LINE, LINE_W, mode="wrap"), f"{PADDED}: it wraps around to the end"),
        (ndimage.correlate(LINE, LINE_W, mode="nearest"), f"{PADDED}: the last value is repeated"),
        (ndimage.correlate(LINE, LINE_W, mode="mirror"), f"{PADDED}: it is mirrored"),
        (ndimage.convolve(LINE, LINE_W, mode="constant"), FLIPPED),
        (ndimage.correlate(LINE, LINE_W, mode="constant", origin=2), "all zeros are put in front"),
        (ndimage.correlate(LINE, LINE_W, mode="constant", origin=-2), "all zeros are put behind"),
        (right / 5, "the sum is divided by k: a convolution is a sum"),
    ]
    compare("conv1d", answer.conv1d(LINE, LINE_W), right, mistakes)


def test_conv1d_matrix(answer):
    # column s is what comes out where only x[s] = 1
    right = np.stack([ndimage.correlate(e, LINE_W, mode="constant") for e in np.eye(7)], axis=1)
    wrapped = np.stack([ndimage.correlate(e, LINE_W, mode="wrap") for e in np.eye(7)], axis=1)
    mistakes = [
        (right.T, "the matrix is transposed (or the kernel flipped): row t makes y[t]"),
        (wrapped, f"{PADDED}: weights that fall off the row come back at its other end"),
        (right + np.triu(wrapped - right), f"{PADDED}: weights that fall off the row wrap"),
        (sum(LINE_W[i] * np.eye(7, k=i) for i in range(5)), "the padding p is missing"),
        (right * (np.arange(7) > 0), "the first column is empty: x[0] counts as well"),
        (right * (np.arange(7) < 6), "the last column is empty: x[n-1] counts as well"),
    ]
    for shift in (1, 3):
        shifted = sum(LINE_W[i] * np.eye(7, k=i - shift) for i in range(5))
        mistakes.append((shifted, "the taps are shifted: the middle one belongs on the diagonal"))
    compare("conv1d_matrix", answer.conv1d_matrix(LINE_W, 7), right, mistakes)


def test_conv3d(answer):
    bias = B[:, None, None, None]
    without = _correlate(X, W)
    right, last_tap = without + bias, np.zeros(W.shape)
    last_tap[..., 2, 2, 2] = W[..., 2, 2, 2]
    mistakes = [
        (without, "the bias is missing"),
        (_correlate(X, W.transpose(0, 1, 3, 2, 4)) + bias, "i and j of w are swapped"),
        (_correlate(X, W.transpose(0, 1, 2, 4, 3)) + bias, "j and m of w are swapped"),
        (_correlate(X, last_tap) + bias, "only the last tap is there: add up all 27"),
        (_correlate(X, W, mode="constant", origin=(-1, -1, -1)) + bias, "all zeros are put behind"),
        (right[:, 1:-1, 1:-1, 1:-1], f"{PADDED}: y must be as large as x"),
        (_correlate(X, W, mode="wrap") + bias, f"{PADDED}: it wraps around to the other side"),
        (_correlate(X, W, mode="nearest") + bias, f"{PADDED}: the outermost voxels are repeated"),
        (_correlate(X, W[:, :, ::-1, ::-1, ::-1]) + bias, FLIPPED),
        (_correlate(X, W.swapaxes(0, 1)) + bias, "w is read as (C_in, C_out): C_out comes first"),
        (_correlate(X, W.transpose(0, 1, 4, 3, 2)) + bias, "the taps' axes are (i, j, m): z, y, x"),
        (_correlate(X[:1], W[:, :1]) + bias, "only the first input channel is added up"),
        (without + 27 * bias, "the bias is added for every tap: it belongs there once"),
        (right + 27 * bias, "the bias is added for every tap: it belongs there once"),
    ]
    compare("conv3d", answer.conv3d(X, W, B), right, mistakes)
