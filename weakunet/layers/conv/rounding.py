"""What a GPU's tensor cores do to the factors of a convolution, in numpy.

A float32 has 23 bits of mantissa. Tensor cores multiply numbers that have fewer, and add up the
exact products in float32:

    TF32       10 bits: a factor is off by at most 2^-11 of itself
    bfloat16    7 bits: by at most 2^-8; half the bits, so twice the products at a time

Rounded like this beforehand, numpy's products are those of a tensor core: so a CPU can show how a
network learns in `--precision tf32` or `bf16`.
"""

import numpy as np


def to_tf32(x):
    """float32 array rounded to TF32, to the nearest, halves away from zero (cvt.rna.tf32.f32)."""
    return ((_bits(x) + 0x1000) & 0xFFFFE000).view(np.float32)


def to_bf16(x):
    """float32 array rounded to bfloat16, to the nearest, halves to even (cvt.rn.bf16.f32)."""
    bits = _bits(x)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def _bits(x):
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


ROUNDINGS = {"fp32": None, "tf32": to_tf32, "bf16": to_bf16}  # of a precision
