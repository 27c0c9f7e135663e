"""Exercise 8: what a regression network learns from a count. About 40 minutes."""

import numpy as np  # noqa: F401


def mse(y, t):
    """The mean squared error of counts y (N,), with true counts t (N,), and its gradient dy.

    Returns loss (a number) and dy (N,). Hint: L = 1/N sum (y - t)^2; what is dL/dy_n?
    """
    raise NotImplementedError("mse is yours to write")


def globalmax_backward(dy, x):
    """dx (C, D, H, W) of y[c] = max over all voxels of x[c], from dy (C,).

    Of several equal maxima the first in memory gets the gradient.
    Hint: x.reshape(C, -1).argmax(axis=1), and np.unravel_index or a reshaped view of dx.
    """
    raise NotImplementedError("globalmax_backward is yours to write")


def adadelta_step(w, g, avg_g2, avg_s2, rho=0.95, eps=1e-6):
    """One step of Adadelta for weights w with gradient g, all (n,):

        G <- rho G + (1 - rho) g^2             G = avg_g2, starts at 0
        s  = -sqrt(S + eps) / sqrt(G + eps) g  with the NEW G and the OLD S = avg_s2
        S <- rho S + (1 - rho) s^2
        w <- w + s

    Returns the new w, G, S; the arguments stay as they are.
    """
    raise NotImplementedError("adadelta_step is yours to write")
