"""Grades exercise 3; the oracle is the package, which is itself checked numerically."""

import numpy as np
from grading import WeightedCubes, compare, parts

from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward

RNG = np.random.default_rng(3)


def test_relu_backward(answer):
    x, dy = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
    x[0, 0] = 0
    y = np.maximum(x, 0)
    mistakes = [
        (dy, "the gradient passes everywhere: it must stop where y is 0 (y > 0, not y >= 0)"),
        (y > 0, "this is the ReLU's derivative; the chain rule multiplies it with dy"),
        (np.maximum(dy, 0), "the ReLU is applied to dy: what decides is the output y, not dy"),
        (dy * y, "dy is multiplied with y itself: the slope is 1 where y > 0, not y"),
        (dy * (y <= 0), "the wrong half: the gradient passes where y > 0"),
        (abs(dy) * (y > 0), "the sign of dy is lost: a gradient may be negative"),
        (np.maximum(dy, 0) * (y > 0), "the ReLU is applied to dy as well: it may be negative"),
    ]
    compare("relu_backward", answer.relu_backward(dy, y), dy * (y > 0), mistakes)


def test_numerical_gradient(answer):
    x, a = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    h = 1e-2  # a large step, so that the formulas differ visibly
    actual = answer.numerical_gradient(WeightedCubes(a, x), x, h)
    right = a * (3 * x**2 + h**2)  # ((x+h)^3 - (x-h)^3) / 2h
    mistakes = [
        (2 * right, "twice too large: the two points are 2h apart, so divide by 2h"),
        (a * (3 * x**2 + 3 * x * h + h**2), "a one-sided difference: its error is of order h"),
        (a * (3 * x**2 - 3 * x * h + h**2), "a one-sided difference: its error is of order h"),
        (-right, "the sign is wrong: it is L(x + h) - L(x - h)"),
        (h * right, "not divided by h: the two points are 2h apart, so divide by 2h"),
        (3 * a * x**2, "h is not used: the step is an argument"),
        (np.trunc(right), "the gradient is cut to whole numbers: make an array of floats"),
        (np.full(x.shape, right[-1, -1]), "every element has the same gradient: gradient[index]"),
    ]
    for sign in (1, -1):
        half = a * (3 * x**2 + sign * 3 * x * h + h**2) / 2
        mistakes.append((half, "a difference over h, divided by 2h: move x[index] BOTH ways"))
    compare("numerical_gradient", actual, right, mistakes, tolerance=1e-7)


def _case(c_in, c_out):
    rng = np.random.default_rng(c_out)
    x, w = rng.normal(size=(2, c_in, 4, 5, 3)), rng.normal(size=(c_out, c_in, 3, 3, 3))
    dy = rng.normal(size=(2, c_out, 4, 5, 3))
    return dy, x, w


def test_conv3d_backward(answer):
    for dy, x, w in (_case(3, 3), _case(2, 4)):  # with as many channels out as in, and with more
        result = parts("conv3d_backward", answer.conv3d_backward(dy, x, w), "dx, dw, db")
        dx, dw, db = conv3d_backward(dy, x, w)
        compare("dw", result[1], dw, _dw_mistakes(dy, x, w, dw))
        compare("dx", result[0], dx, _dx_mistakes(dy, x, w))
        mistakes = [
            (dy.sum(axis=(2, 3, 4)), "db is summed per scan: b serves all scans, sum over N too"),
            (dy.mean(axis=(0, 2, 3, 4)), "db is a mean: every voxel adds its full gradient"),
            (dy.sum(axis=(0, 1, 3, 4)), "db is summed over the channels: it needs one per C_out"),
        ]
        compare("db", result[2], db, mistakes)


def _dw_mistakes(dy, x, w, dw):
    inner = dy.copy()  # without padding, only voxels whose whole neighbourhood exists count
    inner[:, :, [0, -1]] = inner[:, :, :, [0, -1]] = inner[..., [0, -1]] = 0
    return [
        (dw.swapaxes(0, 1), "dw is transposed: axes C_out and C_in are swapped"),
        (dw[:, :, ::-1, ::-1, ::-1], "dw's taps are flipped: dw_tap needs that tap's own window"),
        (conv3d_backward(dy[:1], x[:1], w)[1], "dw is that of the first scan: sum over the batch"),
        (dw / len(x), "dw is averaged over the scans: sum them (the loss holds its own 1/N)"),
        (conv3d_backward(inner, x, w)[1], "dw misses the border: pad x with zeros, as forward did"),
    ]


def _dx_mistakes(dy, x, w):
    none, margin = np.zeros(w.shape[1]), ((0, 0), (0, 0), (1, 1), (1, 1), (1, 1))
    padded = conv3d_backward(np.pad(dy, margin), np.pad(x, margin), w)[0]  # dx with its margin
    last = np.zeros(padded.shape)
    for i, j, m in np.ndindex(3, 3, 3):
        d, h, w_ = dy.shape[2:]
        tap = np.tensordot(w[:, :, i, j, m], dy, axes=(0, 1)).swapaxes(0, 1)
        last[:, :, i : i + d, j : j + h, m : m + w_] = tap
    unflipped = conv3d_forward(dy, w.swapaxes(0, 1), none)
    mistakes = [
        (unflipped, "dx uses the kernel as it is: tap i sent x[t+i] to y[t], so back with -i"),
        (padded[:, :, :-2, :-2, :-2], "dx is shifted: cut the margin off on BOTH sides"),
        (last[:, :, 1:-1, 1:-1, 1:-1], "dx keeps only the last tap that came by: add them up, +="),
    ]
    if w.shape[0] == w.shape[1]:
        swapped = conv3d_forward(dy, w[:, :, ::-1, ::-1, ::-1], none)
        mistakes.append((swapped, "dx mixes the channels the wrong way: w_tap must be transposed"))
    return mistakes
