"""The 3x3x3 convolution of conv3d.py at the speed of the processor's matrix products.

The 27 taps split into 9 (kz, ky), which only move whole rows of voxels, and 3 (kx), which move
inside a row. So, for a block of Z planes by h rows of one scan:

    gather    cols[kz, ky, c, :] = the block moved by (kz, ky): plain copies of contiguous rows
    multiply  P[kx, o, :] = W[kx, o, (kz, ky, c)] cols: ONE product, 3 C_out x 9 C_in x (h width)
    scatter   y[o, x] = P[0, o, x-1] + P[1, o, x] + P[2, o, x+1]

Why it is fast: the products are deep (9 C_in) and at least 24 rows high even for 8 maps; 3 copies
of a voxel feed all 27 taps (the planes z-1, z, z+1 are neighbours in `cols`, so the columns of the
next z are the same memory, one plane on); a block stays in the cache. The backward pass is the same
sweep over dy: with the weights flipped and transposed it gives dx, and cols(dy) times x^T moved by
kx gives dw. Blocks depend on the sizes alone and sums run in a fixed order: the result is the same
bit for bit with any number of threads.
"""

import threading

import numpy as np

from weakunet.util.threads import one_blas_thread, split_over_threads

# Voxels per matrix product and bytes of a block's columns, about a core's L2 (tuned on a Zen 5).
PRODUCT_COLUMNS, BLOCK_BYTES = 512, 1 << 20
TASKS = 16  # the largest number of pieces that a sweep is split into

_local = threading.local()


@one_blas_thread
def forward(x, w, b):
    """x (N, C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,) -> y (N, C_out, D, H, W)."""
    if w.shape[-1] == 1:
        return _pointwise(x, w[:, :, 0, 0, 0]) + b[:, None, None, None]
    return sweep(np.ascontiguousarray(x), w, b)[0]


@one_blas_thread
def backward(dy, x, w, needs_dx=True):
    """The gradients dx (None unless needs_dx), dw, db, from dy (N, C_out, D, H, W)."""
    db = dy.reshape(*dy.shape[:2], -1).sum(axis=2).sum(axis=0)  # (N, C_out) -> (C_out,)
    if w.shape[-1] == 1:
        dw = np.tensordot(dy, x, axes=((0, 2, 3, 4), (0, 2, 3, 4))).reshape(w.shape)
        return (_pointwise(dy, w[:, :, 0, 0, 0].T) if needs_dx else None), dw, db
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    if not needs_dx:
        # columns of x and rows of dy: dw[o, c, a, b, m] = r[a, b, c, 2-m, o]
        r = sweep(x, rows=dy)[1]
        return None, np.ascontiguousarray(r[:, :, :, ::-1].transpose(4, 2, 0, 1, 3)), db
    # columns of dy and rows of x: dw[o, c, a, b, m] = r[2-a, 2-b, o, m, c]
    flipped = w[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1)
    dx, r = sweep(dy, flipped, rows=x)
    return dx, np.ascontiguousarray(r[::-1, ::-1].transpose(2, 4, 0, 1, 3)), db


def _pointwise(x, w):
    """A 1x1x1 convolution: one matrix product per scan."""
    y = np.matmul(w, x.reshape(*x.shape[:2], -1))
    return y.reshape(len(x), len(w), *x.shape[2:])


def _blocks(shape, row_bytes):
    """Cut (N, C, D, H, W) into blocks (n, z0, z1, y0, y1); the sizes alone decide where."""
    n, _, depth, height, width = shape
    strips = -(-height // max(1, PRODUCT_COLUMNS // width))
    h = -(-height // strips)
    planes = max(2, BLOCK_BYTES // (h * row_bytes) - 2)
    chunks = -(-depth // planes)
    cuts_z = [depth * i // chunks for i in range(chunks + 1)]
    cuts_y = [height * i // strips for i in range(strips + 1)]
    return [
        (i, cuts_z[j], cuts_z[j + 1], cuts_y[k], cuts_y[k + 1])
        for i in range(n)
        for j in range(chunks)
        for k in range(strips)
    ]


def sweep(a, w=None, b=None, rows=None, taps=(3, 3), origin=(-1, -1)):
    """Gather the columns of `a` (N, C, D, H, W) block by block, and multiply them by w or rows.

    Given w (C_out, C, kz, ky, 3): y (N, C_out, D, H, W), plus b.
    Given rows (N, R, D, H, W): r[i, j, c, m, k], the sum over the scans n and all voxels of
        a[n, c, z+i+oz, y+j+oy, x] rows[n, k, z, y, x+m-1].
    taps are (kz, ky), origin is (oz, oy), where the first tap lies: (3, 3) and (-1, -1) in an
    ordinary convolution. Returns y, r; None for the one that was not asked for.
    """
    n, c, depth, height, width = a.shape
    y, k = None, taps[0] * taps[1] * c
    if w is not None:
        # rows (m, o), columns (i, j, c)
        matrix = np.ascontiguousarray(w.transpose(4, 0, 2, 3, 1)).reshape(-1, k)
        y = np.empty((n, len(w), depth, height, width), a.dtype)

    def work(blocks):
        total = 0
        for i, z0, z1, y0, y1 in blocks:
            cols = _gather(a[i], z0, z1, y0, y1, taps, origin)
            if w is not None:
                target = y[i, :, z0:z1, y0:y1].reshape(len(w), z1 - z0, -1).swapaxes(0, 1)
                _multiply(cols, matrix, b, target, width)
            if rows is not None:
                total = total + _correlate(cols, rows[i, :, z0:z1, y0:y1])
        return total

    blocks = _blocks(a.shape, taps[1] * c * width * a.itemsize)
    share = -(-len(blocks) // TASKS)
    pieces = [blocks[i : i + share] for i in range(0, len(blocks), share)]
    totals = split_over_threads(work, pieces)
    return y, None if rows is None else sum(totals).reshape(*taps, c, 3, -1)


def _scratch(name, shape, dtype):
    """An uninitialised array that this thread keeps for its next call."""
    size = int(np.prod(shape))
    array = getattr(_local, name, None)
    if array is None or array.dtype != dtype or array.size < size:
        array = np.empty(size, dtype)
        setattr(_local, name, array)
    return array[:size].reshape(shape)


def _gather(a, z0, z1, y0, y1, taps, origin):
    """Columns (Z, kz ky C, h W) of a (C, D, H, W): row (i, j, c) is a[c, z+i+oz, y+j+oy], or 0."""
    c, depth, height, width = a.shape
    kz, ky = taps
    planes, h = z1 - z0, y1 - y0
    cols = _scratch("cols", (planes + kz - 1, ky, c, h, width), a.dtype)
    into_z, from_z = _overlap(z0 + origin[0], planes + kz - 1, depth)
    cols[: into_z.start] = 0
    cols[into_z.stop :] = 0
    for j in range(ky):
        into_y, from_y = _overlap(y0 + origin[1] + j, h, height)
        cols[into_z, j, :, into_y] = a[:, from_z, from_y].swapaxes(0, 1)
        cols[into_z, j, :, : into_y.start] = 0
        cols[into_z, j, :, into_y.stop :] = 0
    # plane z sees planes z, z+1, ...: windows of kz ky C rows that overlap, one plane apart
    strides = cols.strides[0], h * width * a.itemsize, a.itemsize
    shape = planes, kz * ky * c, h * width
    return np.lib.stride_tricks.as_strided(cols, shape, strides, writeable=False)


def _overlap(start, length, size):
    """Slices of a window [start, start + length) and of an axis [0, size) where the two overlap."""
    first = min(max(start, 0), size)
    last = max(min(start + length, size), first)
    into = min(max(first - start, 0), length)
    return slice(into, into + last - first), slice(first, last)


def _multiply(cols, matrix, b, y, width):
    """y (Z, C_out, h W) = matrix (3 C_out, K) times cols (Z, K, h W), summed over kx, plus b."""
    planes, c_out, voxels = y.shape
    p = np.matmul(matrix, cols, out=_scratch("p", (planes, 3 * c_out, voxels), cols.dtype))
    p = p.reshape(planes, 3, c_out, voxels)
    # at the end of a row the next voxel of the flat block is the next row's: it contributes nothing
    p[:, 0, :, width - 1 :: width] = 0
    p[:, 2, :, ::width] = 0
    middle = p[:, 1]
    if b is not None:
        middle += b[:, None]
    middle[..., 1:] += p[:, 0, :, :-1]
    np.add(middle[..., :-1], p[:, 2, :, 1:], out=y[..., :-1])
    y[..., -1] = middle[..., -1]


def _correlate(cols, rows):
    """Sum over the block of cols (Z, K, h W) times rows (R, Z, h, W) moved by kx: (K, 3 R)."""
    c, planes, h, width = rows.shape
    moved = _scratch("moved", (planes, 3, c, h, width), rows.dtype)
    moved[:, 1] = rows.swapaxes(0, 1)
    flat = moved.reshape(planes, 3, c, h * width)
    flat[:, 0, :, 1:] = flat[:, 1, :, :-1]
    flat[:, 2, :, :-1] = flat[:, 1, :, 1:]
    moved[:, 0, ..., 0] = 0
    moved[:, 2, ..., -1] = 0
    flat = flat.reshape(planes, 3 * c, h * width)
    return np.matmul(cols, flat.swapaxes(1, 2)).sum(axis=0)
