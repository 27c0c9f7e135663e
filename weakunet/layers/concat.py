"""Concatenation of feature maps: the skip connections (paper, section 2.2; concatenation is ours).

y = [a; b] along the channels; backward cuts dy at the same place.
"""

import math

import numpy as np

from weakunet.gpu import backend


def concat_forward(a, b):
    """a (N, C_a, D, H, W) and b (N, C_b, D, H, W) -> (N, C_a + C_b, D, H, W)."""
    if backend.is_cuda(a):
        return concat_forward_cuda(a, b)
    return np.concatenate((a, b), axis=1)


def concat_backward(dy, c_a):
    """da (the first `c_a` channels of dy) and db (the rest)."""
    if backend.is_cuda(dy):
        return concat_backward_cuda(dy, c_a)
    return dy[:, :c_a], dy[:, c_a:]


def concat_forward_cuda(a, b):
    y = backend.array_module(a).empty((len(a), a.shape[1] + b.shape[1], *a.shape[2:]), a.dtype)
    args = a, b, y, math.prod(a.shape[1:]), math.prod(b.shape[1:]), y.size
    backend.launch("layers/concat", "concat_forward", y.size, args)
    return y


def concat_backward_cuda(dy, c_a):
    """The numpy pair returns views; a kernel cannot take a view, so here both parts are copies."""
    (n, c), volume, xp = dy.shape[:2], dy.shape[2:], backend.array_module(dy)
    da = xp.empty((n, c_a, *volume), dy.dtype)
    db = xp.empty((n, c - c_a, *volume), dy.dtype)
    args = dy, da, db, math.prod(da.shape[1:]), math.prod(db.shape[1:]), dy.size
    backend.launch("layers/concat", "concat_backward", dy.size, args)
    return da, db
