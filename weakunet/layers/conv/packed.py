"""How feature maps lie in memory between layers on tensor cores: channels in groups of 32 bytes.

    plain    (N, C, D, H, W)          one map after the other, float32
    packed   (N, C/8, D, H, W, 8)     8 channels of a voxel side by side, in TF32
             (N, C/16, D, H, W, 16)   16 channels, in bfloat16: half the bytes

    a row of voxels, W = 4           a0 is map a at voxel 0
    plain    a0 a1 a2 a3  b0 b1 b2 b3  c0 c1 c2 c3  ...
    packed   a0 b0 c0 d0 e0 f0 g0 h0 | a1 b1 c1 d1 e1 f1 g1 h1 | a2 ...
             one voxel, 32 bytes       its neighbour

The GPU's memory moves 32 bytes at a time, a sector. A convolution's tile starts one voxel before
its block does: in plain rows that costs a sector of which one number is used, in each map. Of a
packed array nothing is moved in vain, and 16 bytes at a time are copied to shared memory, where
they lie as tensor cores take them. Numbers are rounded when they are written, once, and not by
every block that reads them.

The first layer's scan is packed, and the global pooling takes its maxima from packed maps; all
between them is packed. Layers on the CPU and in fp32 see plain arrays only. numpy knows neither
format, so the bits lie in integers (STORED): a kernel that expects floats refuses them, and an
expression that was meant for floats fails on their sixth axis. A packed array does not tell how
many of its last channels are there: those that are not hold 0.
"""

import math

import numpy as np

from weakunet.gpu import backend, cuda_source

MIN_SM = cuda_source.constants("layers/conv/packed")["MIN_SM"]
STORED = {"tensor": np.uint32, "tensor_bf16": np.uint16}  # rung -> what holds the bits


def is_packed(x):
    """True of a packed array."""
    return x.dtype.kind == "u"


def pack(x, dtype):
    """x (N, C, D, H, W) packed as `dtype`, one of STORED; x itself for any other dtype.

    Also x itself where tensor cores cannot run: in float64, and on cards older than Ampere.
    """
    if dtype not in STORED.values() or x.dtype != np.float32:
        return x
    if backend.compute_capability() < MIN_SM:
        return x
    (scans, channels, *volume), inner = x.shape, 32 // np.dtype(dtype).itemsize
    shape = scans, -(-channels // inner), *volume, inner
    y = backend.array_module(x).empty(shape, dtype)
    args = x, y, channels, math.prod(volume), y.size
    backend.launch("layers/conv/packed", "pack", y.size, args)
    return y


def unpack(x, channels):
    """The plain array (N, channels, D, H, W) of a packed one; a plain one itself."""
    if not is_packed(x):
        return x
    volume = x.shape[2:5]
    y = backend.array_module(x).empty((len(x), channels, *volume), np.float32)
    args = x, y, channels, math.prod(volume), y.size
    backend.launch("layers/conv/packed", "unpack", y.size, args)
    return y
