"""Concatenation of feature maps: the skip connections (paper, section 2.2; concatenation is ours).

y = [a; b] along the channels; backward cuts dy at the same place.
"""

import numpy as np


def concat_forward(a, b):
    """a (N, C_a, D, H, W) and b (N, C_b, D, H, W) -> (N, C_a + C_b, D, H, W)."""
    return np.concatenate((a, b), axis=1)


def concat_backward(dy, c_a):
    """da (the first `c_a` channels of dy) and db (the rest)."""
    return dy[:, :c_a], dy[:, c_a:]


class Concat:
    """Concatenation that remembers how many channels came first."""

    def forward(self, a, b, keep=True):
        self.c_a = a.shape[1]
        return concat_forward(a, b)

    def backward(self, dy):
        return concat_backward(dy, self.c_a)
