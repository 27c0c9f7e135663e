"""Upsample, concatenate, convolve in one: what the decoder does, without storing the first two.

    y = conv3d([skip; up(coarse)], w, b),  up: nearest-neighbour, 2x2x2

A convolution is a sum over its input channels, so the part that reads `skip` is an ordinary one. In
the part that reads up(coarse), neighbouring taps often read the SAME coarse voxel, and their
weights can be added up beforehand. Along one axis, for the output 2i + p (the parity p is 0 or 1):

    p = 0 reads 2i-1, 2i, 2i+1   = coarse i-1, i, i     with w[0], w[1] + w[2]
    p = 1 reads 2i, 2i+1, 2i+2   = coarse i, i, i+1     with w[0] + w[1], w[2]

So each of the 8 parities is a convolution of the small tensor with 2x2x2 taps: 8 products for a
voxel and a pair of channels instead of 27. (As cpu.py's sweep goes, kx keeps 3 taps, one of
them zero, and both parities in x are computed together: 12 instead of 27.) The paper has neither
the trick nor a need for it: the result is the same up to rounding.

On a GPU the rungs on tensor cores do it, too (folded_tensor.py); the others upsample, concatenate
and convolve step by step.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.concat import concat_backward, concat_forward
from weakunet.layers.conv import cpu as conv3d_fast
from weakunet.layers.conv import folded_tensor as upconv3d_tensor
from weakunet.layers.conv.conv3d import Conv3D
from weakunet.layers.conv.gpu import conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward

PARITIES = [(0, 0), (0, 1), (1, 0), (1, 1)]  # in z and y
# FOLD[p] (2, 3): the two coarse taps of parity p from the three fine ones; the first lies at p - 1
FOLD = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
# FOLD_X[p] (3, 3): the same with all three coarse taps -1, 0, 1, one of them zero
FOLD_X = np.array(
    [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]], np.float32
)
# all three axes at once, for each parity in z and y: (px, z, y, x) from 27 taps, (24, 27)
FOLDS = {
    (pz, py): np.einsum("za,yb,pxc->pzyxabc", FOLD[pz], FOLD[py], FOLD_X).reshape(24, 27)
    for pz, py in PARITIES
}


def _fold(w, parity):
    """w (O, C, 3, 3, 3) -> (2 O, C, 2, 2, 3), the weights that make the outputs (px, o)."""
    o, c = w.shape[:2]
    folded = w.reshape(o * c, 27) @ FOLDS[parity].T.astype(w.dtype)
    return folded.reshape(o, c, 2, 12).transpose(2, 0, 1, 3).reshape(2 * o, c, 2, 2, 3)


def _unfold(dw, parity):
    """The gradient in w (O, C, 3, 3, 3) from that in `_fold`'s result: the transposed map."""
    o, c = len(dw) // 2, dw.shape[1]
    dw = dw.reshape(2, o, c, 12).transpose(1, 2, 0, 3).reshape(o * c, 24)
    return (dw @ FOLDS[parity].astype(dw.dtype)).reshape(o, c, 3, 3, 3)


def _parity(y, pz, py):
    """The voxels of y (N, O, 2D, 2H, 2W) of one parity in z and y: a view (N, 2, O, D, H, W)."""
    part = y[:, :, pz::2, py::2]
    return part.reshape(*part.shape[:4], -1, 2).transpose(0, 5, 1, 2, 3, 4)


def upconv3d_forward(skip, coarse, w, b, kernel="tiled", relu=False, rounding=None):
    """y (N, C_out, 2D, 2H, 2W) from skip (N, C_a, 2D, 2H, 2W) and coarse (N, C_b, D, H, W).

    w (C_out, C_a + C_b, 3, 3, 3), b (C_out,), as for the plain convolution of the two together.
    kernel, relu: as of conv3d_forward_cuda, for a GPU. rounding: what a CPU does to factors.
    """
    if backend.is_cuda(skip):
        if upconv3d_tensor.runs(kernel, skip, coarse, w):
            return upconv3d_tensor.forward(kernel, skip, coarse, w, b, relu)
        x = concat_forward(skip, upsample3d_forward(coarse))
        return conv3d_forward_cuda(x, w, b, kernel, relu)
    c_a, rounding = skip.shape[1], rounding or _as_it_is
    y = conv3d_fast.forward(rounding(skip), rounding(w[:, :c_a]), b)
    coarse = rounding(coarse)
    for pz, py in PARITIES:
        folded, origin = rounding(_fold(w[:, c_a:], (pz, py))), (pz - 1, py - 1)
        part, _ = conv3d_fast.sweep(coarse, folded, taps=(2, 2), origin=origin)
        target = _parity(y, pz, py)
        target += part.reshape(target.shape)
    return y


def upconv3d_backward(dy, skip, coarse, w, kernel="tiled", rounding=None):
    """Gradients dskip, dcoarse, dw, db of `upconv3d_forward` from dy (N, C_out, 2D, 2H, 2W)."""
    if backend.is_cuda(dy) and upconv3d_tensor.runs(kernel, skip, coarse, w):
        return upconv3d_tensor.backward(kernel, dy, skip, coarse, w)
    c_a, rounding = skip.shape[1], rounding or _as_it_is
    dy, skip, coarse = rounding(dy), rounding(skip), rounding(coarse)
    few = rounding is _as_it_is and conv3d_fast.nonzero_voxels(dy) is not None
    if backend.is_cuda(dy) or few:
        # step by step; when few voxels of dy are not zero, that is the faster way
        args = dy, concat_forward(skip, upsample3d_forward(coarse)), w
        if backend.is_cuda(dy):
            dx, dw, db = conv3d_backward_cuda(*args, kernel=kernel)
        else:
            dx, dw, db = conv3d_fast.backward(*args)
        dskip, dup = concat_backward(dx, c_a)
        return dskip, upsample3d_backward(dup), dw, db
    dskip, dw_skip, db = conv3d_fast.backward(dy, skip, rounding(w[:, :c_a]))
    dcoarse, dw_coarse = 0, 0
    for pz, py in PARITIES:
        part = _parity(dy, pz, py)
        part = part.reshape(len(part), -1, *part.shape[3:])  # (N, 2 C_out, D, H, W), a copy
        folded = rounding(_fold(w[:, c_a:], (pz, py)))
        flipped = folded[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1)
        dpart, r = conv3d_fast.sweep(part, flipped, rows=coarse, taps=(2, 2), origin=(-pz, -py))
        dcoarse += dpart
        dw_coarse += _unfold(r[::-1, ::-1].transpose(2, 4, 0, 1, 3), (pz, py))
    return dskip, dcoarse, np.concatenate((dw_skip, dw_coarse), axis=1), db


def _as_it_is(factor):
    return factor


class UpConv3D(Conv3D):
    """The first convolution of a decoder level; parameters as Conv3D's with c_in = C_a + C_b."""

    def forward(self, skip, coarse, keep=True):
        """skip (N, C_a, 2D, 2H, 2W), coarse (N, C_b, D, H, W) -> y (N, C_out, 2D, 2H, 2W)."""
        self.x = (skip, coarse) if keep else None
        w, b = self.params["w"], self.params["b"]
        return upconv3d_forward(skip, coarse, w, b, self.kernel, self.relu, self.rounding)

    def backward(self, dy):
        """dy -> dskip, dcoarse; sets grads, lets go of what forward kept."""
        x, self.x = self.x, None
        dskip, dcoarse, dw, db = upconv3d_backward(
            dy, *x, self.params["w"], self.kernel, self.rounding
        )
        if self.rounding:
            db = conv3d_fast.bias_gradient(dy)
        self.grads["w"], self.grads["b"] = dw, db
        return dskip, dcoarse
