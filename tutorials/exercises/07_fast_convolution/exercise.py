"""Exercise 7: why a convolution is slow, and what makes it fast. About 1 hour, with kernels.cu."""

import numpy as np  # noqa: F401


def count_work(c_in, c_out, shape, k):
    """(FLOP, bytes) of a k x k x k convolution in float32, on a volume of `shape` (D, H, W).

    FLOP: a multiplication and an addition each count. Bytes: the least possible, x and w read once
    and y written once, 4 bytes per number (without padding and bias).
    Hint: every output number is a sum over C_in k^3 products.
    """
    raise NotImplementedError("count_work is yours to write")


def im2col(x, k):
    """The matrix (C_in k^3, D H W) whose columns are what each output voxel sees of x.

    x is (C_in, D, H, W), zero padded. Then w.reshape(C_out, C_in k^3) @ im2col(x, k) is the whole
    convolution in ONE matrix product, which computers do best. The price is a copy of x that is k^3
    times as large. Rows must be in w's order: channel, then tap i, j, m.
    Hint: row (c, i, j, m) is padded[c, i:i+D, j:j+H, m:m+W], ravelled.
    """
    raise NotImplementedError("im2col is yours to write")
