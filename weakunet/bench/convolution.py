"""One convolution of the network on given arrays: as the network computes it, and step by step."""

from weakunet.gpu import backend
from weakunet.layers.concat import concat_backward, concat_forward
from weakunet.layers.conv import cpu, folded, gpu
from weakunet.layers.conv.conv3d import conv3d_backward, conv3d_forward
from weakunet.layers.conv.packed import STORED, pack
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward


def arrays_of(layer, draw):
    """dy, x, coarse (None: nothing is upsampled), w, b of a counts.Layer, each draw(shape)."""
    _, c_in, c_out, (n, *size), c_coarse = layer
    dy, x = draw((n, c_out, *size)), draw((n, c_in, *size))
    coarse = draw((n, c_coarse, *(edge // 2 for edge in size))) if c_coarse else None
    return dy, x, coarse, draw((c_out, c_in + c_coarse, 3, 3, 3)), draw((c_out,))


def moved(arrays, dtype, device):
    """`arrays_of` as `dtype` on `device`."""
    return [a if a is None else backend.to_device(a.astype(dtype), device) for a in arrays]


def packed(arrays, kernel):
    """`arrays_of` with their maps as they lie between a rung's layers (conv/packed.py)."""
    *maps, w, b = arrays
    return [*(a if a is None else pack(a, STORED.get(kernel)) for a in maps), w, b]


def convolve(direction, kernel, dy, x, coarse, w, b):
    """y, or dx (None for a network's first convolution), dcoarse where there is one, dw, db."""
    if coarse is not None and direction == "forward":
        return folded.upsample_conv3d_forward(x, coarse, w, b, kernel)
    if coarse is not None:
        return folded.upsample_conv3d_backward(dy, x, coarse, w, kernel)
    needs_dx = w.shape[1] > 1
    if backend.is_cuda(x) and direction == "forward":
        return gpu.conv3d_forward_cuda(x, w, b, kernel)
    if backend.is_cuda(x):
        return gpu.conv3d_backward_cuda(dy, x, w, needs_dx, kernel)
    return cpu.forward(x, w, b) if direction == "forward" else cpu.backward(dy, x, w, needs_dx)


def step_by_step(direction, dy, x, coarse, w, b):
    """The same by the plain pair, from x and the upsampled coarse maps behind it."""
    joined = x if coarse is None else concat_forward(x, upsample3d_forward(coarse))
    if direction == "forward":
        return conv3d_forward(joined, w, b)
    dx, dw, db = conv3d_backward(dy, joined, w)
    if coarse is None:
        return dx if x.shape[1] > 1 else None, dw, db
    dskip, dup = concat_backward(dx, x.shape[1])
    return dskip, upsample3d_backward(dup), dw, db
