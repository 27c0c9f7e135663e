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
kx gives dw. Behind a global max pooling almost all of dy is zero, and then only the other voxels
are worked on. Blocks depend on the sizes alone and sums run in a fixed order: the result is the
same bit for bit with any number of threads.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

# Voxels per matrix product and bytes of a block's columns, about a core's L2 (tuned on a Zen 5).
PRODUCT_COLUMNS, BLOCK_BYTES = 512, 1 << 20
TASKS = 16  # a sweep is shared out in at most so many pieces
# dy counts as sparse when at most this share of its voxels is not zero
SPARSE = 0.08

_blas = ThreadpoolController()
_local = threading.local()
_pool = None
_threads = 0


def set_threads(count=None):
    """Use `count` threads from now on (default: the cores this process may run on)."""
    global _pool, _threads
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if _pool is not None:
        _pool.shutdown()
    _threads = count or cores or 1
    _pool = ThreadPoolExecutor(_threads - 1) if _threads > 1 else None


def get_threads():
    """How many threads the convolutions use."""
    return _threads


set_threads()


def forward(x, w, b):
    """x (N, C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,) -> y (N, C_out, D, H, W)."""
    if w.shape[-1] == 1:
        return _pointwise(x, w[:, :, 0, 0, 0]) + b[:, None, None, None]
    return _sweep(np.ascontiguousarray(x), w, b)[0]


def backward(dy, x, w, needs_dx=True):
    """Gradients dx (None unless needs_dx), dw, db of `forward`, from dy (N, C_out, D, H, W)."""
    db = dy.reshape(*dy.shape[:2], -1).sum(axis=2).sum(axis=0)
    if w.shape[-1] == 1:
        dw = np.tensordot(dy, x, axes=((0, 2, 3, 4), (0, 2, 3, 4))).reshape(w.shape)
        return (_pointwise(dy, w[:, :, 0, 0, 0].T) if needs_dx else None), dw, db
    x, dy = np.ascontiguousarray(x), np.ascontiguousarray(dy)
    voxels = _nonzero_voxels(dy)
    if voxels is not None:
        return *_sparse_backward(dy, x, w, voxels, needs_dx), db
    if not needs_dx:
        # columns of x and rows of dy: dw[o, c, a, b, m] = r[a, b, c, 2-m, o]
        r = _sweep(x, rows=dy)[1]
        return None, np.ascontiguousarray(r[:, :, :, ::-1].transpose(4, 2, 0, 1, 3)), db
    # columns of dy and rows of x: dw[o, c, a, b, m] = r[2-a, 2-b, o, m, c]
    flipped = w[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1)
    dx, r = _sweep(dy, flipped, np.zeros(x.shape[1], x.dtype), rows=x)
    return dx, np.ascontiguousarray(r[::-1, ::-1].transpose(2, 4, 0, 1, 3)), db


def _pointwise(x, w):
    """A 1x1x1 convolution: one matrix product per scan."""
    y = np.matmul(w, x.reshape(*x.shape[:2], -1))
    return y.reshape(len(x), len(w), *x.shape[2:])


def _blocks(shape, itemsize):
    """Cut (N, C, D, H, W) into blocks (n, z0, z1, y0, y1); the sizes alone decide where."""
    n, c, depth, height, width = shape
    strips = -(-height // max(1, PRODUCT_COLUMNS // width))
    h = -(-height // strips)
    planes = max(2, BLOCK_BYTES // (3 * c * h * width * itemsize) - 2)
    chunks = -(-depth // planes)
    cuts_z = [depth * i // chunks for i in range(chunks + 1)]
    cuts_y = [height * i // strips for i in range(strips + 1)]
    return [
        (i, cuts_z[j], cuts_z[j + 1], cuts_y[k], cuts_y[k + 1])
        for i in range(n)
        for j in range(chunks)
        for k in range(strips)
    ]


def _run(work, items):
    """[work(item) for item in items], shared out over the threads; the caller is one of them."""
    results, todo = [None] * len(items), iter(range(len(items)))  # next() is atomic

    def worker():
        for i in todo:
            results[i] = work(items[i])

    # numpy lets go of the interpreter's lock; the products themselves must not start threads
    with _blas.limit(limits=1, user_api="blas"):
        helpers = [_pool.submit(worker) for _ in range(min(_threads, len(items)) - 1)]
        worker()
        for helper in helpers:
            helper.result()
    return results


def _sweep(a, w=None, b=None, rows=None):
    """Gather the columns of `a` (N, C, D, H, W) block by block, and multiply them

    with w (C_out, C, 3, 3, 3), plus b: y (N, C_out, D, H, W), and
    with `rows` (N, R, D, H, W): r[kz, ky, c, kx, i], the sum over the scans and voxels of
        a[n, c, z+kz-1, y+ky-1, x] rows[n, i, z, y, x+kx-1].
    """
    n, c, depth, height, width = a.shape
    y = None
    if w is not None:
        c_out = len(w)
        # (kx, o) x (kz, ky, c)
        matrix = np.ascontiguousarray(w.transpose(4, 0, 2, 3, 1)).reshape(3 * c_out, 9 * c)
        y = np.empty((n, c_out, depth, height, width), a.dtype)

    def work(blocks):
        total = 0
        for i, z0, z1, y0, y1 in blocks:
            cols = _gather(a[i], z0, z1, y0, y1)
            if w is not None:
                target = y[i, :, z0:z1, y0:y1].reshape(c_out, z1 - z0, -1).swapaxes(0, 1)
                _multiply(cols, matrix, b, target, width)
            if rows is not None:
                total = total + _correlate(cols, rows[i, :, z0:z1, y0:y1])
        return total

    blocks = _blocks(a.shape, a.itemsize)
    share = -(-len(blocks) // TASKS)
    totals = _run(work, [blocks[i : i + share] for i in range(0, len(blocks), share)])
    return y, None if rows is None else sum(totals).reshape(3, 3, c, 3, -1)


def _scratch(name, shape, dtype):
    """An uninitialised array that this thread keeps for its next call."""
    size = int(np.prod(shape))
    array = getattr(_local, name, None)
    if array is None or array.dtype != dtype or array.size < size:
        array = np.empty(size, dtype)
        setattr(_local, name, array)
    return array[:size].reshape(shape)


def _gather(a, z0, z1, y0, y1):
    """Columns (Z, 9 C, h W) of a (C, D, H, W): row (kz, ky, c) is a[c, z+kz-1, y+ky-1, :], or 0."""
    c, depth, height, width = a.shape
    planes, h = z1 - z0, y1 - y0
    cols = _scratch("cols", (planes + 2, 3, c, h, width), a.dtype)
    first, last = max(z0 - 1, 0), min(z1 + 1, depth)
    inside = slice(first - z0 + 1, last - z0 + 1)
    cols[: inside.start] = 0
    cols[inside.stop :] = 0
    for ky in range(3):
        top, bottom = max(y0 + ky - 1, 0), min(y1 + ky - 1, height)
        at = slice(top - (y0 + ky - 1), bottom - (y0 + ky - 1))
        cols[inside, ky, :, at] = a[:, first:last, top:bottom].swapaxes(0, 1)
        cols[inside, ky, :, : at.start] = 0
        cols[inside, ky, :, at.stop :] = 0
    # plane z sees planes z-1, z, z+1: overlapping windows of 9 C rows, one plane (3 C rows) apart
    return np.lib.stride_tricks.as_strided(
        cols,
        (planes, 9 * c, h * width),
        (cols.strides[0], h * width * a.itemsize, a.itemsize),
        writeable=False,
    )


def _multiply(cols, matrix, b, y, width):
    """y (Z, C_out, h W) = matrix (3 C_out, 9 C) times cols (Z, 9 C, h W), over kx, plus b."""
    planes, c_out, voxels = y.shape
    p = np.matmul(matrix, cols, out=_scratch("p", (planes, 3 * c_out, voxels), cols.dtype))
    p = p.reshape(planes, 3, c_out, voxels)
    # one voxel on in the flat block is, at the end of a row, the next row: nothing comes from there
    p[:, 0, :, width - 1 :: width] = 0
    p[:, 2, :, ::width] = 0
    middle = p[:, 1]
    middle += b[:, None]
    middle[..., 1:] += p[:, 0, :, :-1]
    np.add(middle[..., :-1], p[:, 2, :, 1:], out=y[..., :-1])
    y[..., -1] = middle[..., -1]


def _correlate(cols, rows):
    """sum over the block of cols (Z, 9 C, h W) times rows (R, Z, h, W) moved by kx: (9 C, 3 R)."""
    c, planes, h, width = rows.shape
    moved = _scratch("moved", (planes, 3, c, h, width), rows.dtype)
    moved[:, 1] = rows.swapaxes(0, 1)
    flat = moved.reshape(planes, 3, c, h * width)
    flat[:, 0, :, 1:] = flat[:, 1, :, :-1]
    flat[:, 2, :, :-1] = flat[:, 1, :, 1:]
    moved[:, 0, ..., 0] = 0
    moved[:, 2, ..., -1] = 0
    flat = flat.reshape(planes, 3 * c, h * width)
    total = cols[0] @ flat[0].T
    part = _scratch("part", total.shape, rows.dtype)
    for z in range(1, planes):
        total += np.matmul(cols[z], flat[z].T, out=part)
    return total


def _nonzero_voxels(dy):
    """Where (N, D, H, W) dy is not 0 in every channel; None when that is more than a few voxels."""
    sample = dy.reshape(-1)[:: max(1, dy.size // 4096)]
    if np.count_nonzero(sample) > SPARSE * sample.size:
        return None
    voxels = (dy != 0).any(axis=1)
    return voxels if np.count_nonzero(voxels) <= SPARSE * voxels.size else None


def _sparse_backward(dy, x, w, voxels, needs_dx):
    """dx (or None) and dw when dy is zero but for `voxels` (N, D, H, W).

    Channels come last here and the scan has a border of zeros, so that a voxel's 27 neighbours are
    27 short rows to pick up, and a tap is one offset, the same for all voxels.
    """
    n, c, depth, height, width = x.shape
    dx = np.empty_like(x) if needs_dx else None
    taps = np.ascontiguousarray(w.reshape(len(w), c, 27).swapaxes(1, 2)).reshape(len(w), 27 * c)
    shape = depth + 2, height + 2, width + 2
    offsets = np.ravel_multi_index(np.indices((3, 3, 3)), shape).ravel()

    def work(i):
        padded = np.zeros((*shape, c), x.dtype)
        padded[1:-1, 1:-1, 1:-1] = x[i].transpose(1, 2, 3, 0)
        dpadded = np.zeros_like(padded) if needs_dx else None
        dw = np.zeros_like(taps)
        at = np.nonzero(voxels[i])
        corner = np.ravel_multi_index(at, shape)
        at = np.ravel_multi_index(at, x.shape[2:])
        for part in (slice(j, j + 1024) for j in range(0, len(at), 1024)):
            dy_part = dy[i].reshape(len(w), -1)[:, at[part]].T  # (voxels, C_out)
            near = corner[part] + offsets[:, None]  # (27, voxels)
            cols = padded.reshape(-1, c)[near.T].reshape(-1, 27 * c)
            dw += dy_part.T @ cols
            if needs_dx:
                dcols = (dy_part @ taps).reshape(-1, 27, c)
                for tap in range(27):  # no voxel twice in a tap, so += adds all
                    dpadded.reshape(-1, c)[near[tap]] += dcols[:, tap]
        if needs_dx:
            dx[i] = dpadded[1:-1, 1:-1, 1:-1].transpose(3, 0, 1, 2)
        return dw

    dw = sum(_run(work, range(n)))
    return dx, np.ascontiguousarray(dw.reshape(len(w), 27, c).swapaxes(1, 2)).reshape(w.shape)
