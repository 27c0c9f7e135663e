"""Adadelta, the paper's optimizer (section 3; Zeiler 2012): every weight sets its own step size.

For a gradient g it keeps two running averages per weight, of g^2 and of the squared steps s^2:

    G <- rho G + (1 - rho) g^2
    s  = -sqrt(S + eps) / sqrt(G + eps) * g
    S <- rho S + (1 - rho) s^2
    w <- w + lr s

The paper gives no rho, eps or learning rate. The defaults are Zeiler's rho, lr = 1, and an eps
smaller than his 1e-6: it sets the size of the first steps.
"""

import numpy as np

from weakunet.gpu import backend


def adadelta_update(w, g, avg_g2, avg_s2, lr, rho, eps):
    """One step for one array of weights; w, avg_g2 and avg_s2 are changed in place."""
    if backend.is_cuda(w):
        adadelta_update_cuda(w, g, avg_g2, avg_s2, lr, rho, eps)
        return
    avg_g2 *= rho
    avg_g2 += (1 - rho) * g * g
    step = -np.sqrt((avg_s2 + eps) / (avg_g2 + eps)) * g
    avg_s2 *= rho
    avg_s2 += (1 - rho) * step * step
    w += lr * step


def adadelta_update_cuda(w, g, avg_g2, avg_s2, lr, rho, eps):
    args = w, g, avg_g2, avg_s2, lr, rho, eps, w.size
    backend.launch("layers/optim", "adadelta_update", w.size, args)


class Adadelta:
    """Adadelta over a dict of parameters (name -> array, updated in place)."""

    def __init__(self, params, lr=1.0, rho=0.95, eps=1e-7):
        self.params, self.lr, self.rho, self.eps = params, lr, rho, eps
        self.state = {
            f"{name}.{average}": value * 0
            for name, value in params.items()
            for average in ("avg_g2", "avg_s2")
        }

    def step(self, grads):
        """Update every parameter from `grads` (same names and shapes)."""
        for name, w in self.params.items():
            averages = self.state[f"{name}.avg_g2"], self.state[f"{name}.avg_s2"]
            adadelta_update(w, grads[name], *averages, self.lr, self.rho, self.eps)
