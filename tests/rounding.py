"""What a tensor core does to its factors, in numpy: the oracle for tests of TF32 and bfloat16.

TF32 has 10 bits of mantissa (relative rounding error at most 2^-11), bfloat16 has 7 (2^-8).
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
