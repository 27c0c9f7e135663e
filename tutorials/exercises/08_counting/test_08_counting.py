import numpy as np
from grading import compare, parts

from weakunet.layers.gradcheck import numerical_gradient
from weakunet.layers.optim import adadelta_update

RNG = np.random.default_rng(8)


def test_mse(answer):
    y, t = RNG.normal(3, 2, size=5), RNG.integers(0, 9, size=5).astype(float)
    loss, dy = parts("mse", answer.mse(y, t), "loss, dy")
    off = y - t
    mistakes = [
        ((off**2).sum(), "the loss is a sum: divide by the number of scans"),
        (abs(off).mean(), "this is the mean ABSOLUTE error"),
        (np.sqrt((off**2).mean()), "this is the root of the mean squared error"),
        ((off**2).mean() / 2, "this is half of the mean squared error"),
        (off.mean() ** 2, "this is the square of the mean error: square first"),
    ]
    compare("mse's loss", loss, (off**2).mean(), mistakes)
    right = numerical_gradient(lambda: float(((y - t) ** 2).mean()), y)
    mistakes = [
        (2 * off, "dy is not divided by N: the loss is a MEAN over the scans"),
        (off / 5, "dy lacks the factor 2 of the square's derivative"),
        (off, "dy is only the difference: the derivative of 1/N sum d^2 is 2 d / N"),
        (-2 * off / 5, "dy has the wrong sign: it is y - t, where y too large means downhill is -"),
    ]
    compare("mse's dy", dy, right, mistakes, tolerance=1e-6)


def test_globalmax_backward(answer):
    x, dy = RNG.normal(size=(3, 2, 3, 4)), RNG.normal(size=3)
    x[1, 0, 2, 1] = x[1, 1, 1, 1] = 9  # a tie
    x[2] -= 10  # negative everywhere
    flat, spread = x.reshape(3, -1), dy[:, None, None, None]
    first, last, overall, magnitude, smallest = (np.zeros(flat.shape) for _ in range(5))
    magnitude[range(3), abs(flat).argmax(axis=1)] = dy
    smallest[range(3), flat.argmin(axis=1)] = dy
    first[range(3), flat.argmax(axis=1)] = dy
    last[range(3), 23 - flat[:, ::-1].argmax(axis=1)] = dy
    overall.flat[flat.argmax()] = dy[1]
    mistakes = [
        (last.reshape(x.shape), "the tie went to the last maximum: the first in memory must win"),
        (spread * (x == x.max((1, 2, 3), keepdims=True)), "every voxel of the tie got all of dy"),
        (np.broadcast_to(spread / 24, x.shape), "this is the backward of the global MEAN"),
        (np.broadcast_to(spread, x.shape), "every voxel got dy: only the maximum moved y"),
        (overall.reshape(x.shape), "one maximum for all maps: every map c has its own"),
        ((first != 0).reshape(x.shape), "dy is missing: the chain rule multiplies the 1 with it"),
        ((first * flat).reshape(x.shape), "dy is multiplied with the maximum: the slope is 1"),
        (magnitude.reshape(x.shape), "the largest magnitude got dy: the maximum may be negative"),
        (smallest.reshape(x.shape), "the smallest voxel got dy"),
    ]
    result = answer.globalmax_backward(dy, x)
    compare("globalmax_backward", result, first.reshape(x.shape), mistakes)


def test_adadelta_step(answer):
    w, g, old_g2, old_s2 = RNG.normal(size=4), RNG.normal(size=4), np.full(4, 0.3), np.full(4, 0.02)
    rho, eps = 0.9, 1e-3
    result = parts("adadelta_step", answer.adadelta_step(w, g, old_g2, old_s2, rho, eps), "w, G, S")
    right = [a.copy() for a in (w, g, old_g2, old_s2)]
    adadelta_update(right[0], g, right[2], right[3], 1.0, rho, eps)
    new_g2, root = right[2], np.sqrt(old_s2 + eps)
    mistakes = [
        (old_g2 + (1 - rho) * g**2, "G does not forget: the old average is multiplied by rho"),
        ((1 - rho) * old_g2 + rho * g**2, "rho and 1 - rho are swapped: the PAST weighs rho"),
        (rho * old_g2 + (1 - rho) * g, "G averages the gradient itself, not its square"),
        (right[3], "G and S are swapped: return w, G, S"),
    ]
    compare("adadelta_step's G", result[1], new_g2, mistakes)
    step = -root / np.sqrt(new_g2 + eps) * g
    mistakes = [
        (w - step, "w goes uphill: the step is minus the gradient's direction"),
        (w - root / np.sqrt(old_g2 + eps) * g, "the step uses the old G: update G first"),
        (w - root / (new_g2 + eps) * g, "the root over G is missing"),
        (w - g / np.sqrt(new_g2 + eps), "sqrt(S + eps) is missing: this is RMSprop, in no unit"),
        (w - np.sqrt(right[3] + eps) / np.sqrt(new_g2 + eps) * g, "the step uses the new S"),
        (w - np.sqrt(old_s2 / new_g2) * g, "eps is missing: with S = 0 nothing would move"),
    ]
    compare("adadelta_step's w", result[0], right[0], mistakes)
    mistakes = [
        (rho * old_s2 + (1 - rho) * g**2, "S averages the gradient's square: it is the STEP's"),
        (old_s2, "S is not updated"),
    ]
    compare("adadelta_step's S", result[2], right[3], mistakes)
