"""Upsample, concatenate, convolve in one: what the decoder does, without storing the first two.

    y = conv3d([skip; up(coarse)], w, b),  up: nearest-neighbour, 2x2x2

A convolution is a sum over its input channels, so the part that reads `skip` is an ordinary one. In
the part that reads up(coarse), neighbouring taps often read the SAME coarse voxel, and their
weights can be added up beforehand. Along one axis, for the output 2i + p (the parity p is 0 or 1):

    p = 0 reads 2i-1, 2i, 2i+1   = coarse i-1, i, i     with w[0], w[1] + w[2]
    p = 1 reads 2i, 2i+1, 2i+2   = coarse i, i, i+1     with w[0] + w[1], w[2]

So each of the 8 parities is a convolution of the small tensor with 2x2x2 taps: 8 products per voxel
and pair of channels instead of 27. (In cpu.py's sweep kx keeps 3 taps, one of them zero, and both
parities in x are computed together: 12 instead of 27.) The trick is ours, not the paper's; the
result is the same up to rounding.

On a GPU the rungs on tensor cores do it as well (folded.cu); the others upsample, concatenate and
convolve step by step.
"""

import numpy as np

from weakunet.gpu import backend
from weakunet.layers.concat import (
    concat_backward,
    concat_backward_cuda,
    concat_forward,
    concat_forward_cuda,
)
from weakunet.layers.conv import cpu, tensor
from weakunet.layers.conv.conv3d import Conv3D
from weakunet.layers.conv.gpu import conv3d_backward_cuda, conv3d_forward_cuda
from weakunet.layers.conv.packed import STORED, is_packed, pack, unpack
from weakunet.layers.relu import relu_backward, relu_forward
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
    """The gradient with respect to w (O, C, 3, 3, 3) from that to `_fold`'s result."""
    o, c = len(dw) // 2, dw.shape[1]
    dw = dw.reshape(2, o, c, 12).transpose(1, 2, 0, 3).reshape(o * c, 24)
    return (dw @ FOLDS[parity].astype(dw.dtype)).reshape(o, c, 3, 3, 3)


def _parity(y, pz, py):
    """The voxels of y (N, O, 2D, 2H, 2W) of one parity in z and y: a view (N, 2, O, D, H, W)."""
    part = y[:, :, pz::2, py::2]
    return part.reshape(*part.shape[:4], -1, 2).transpose(0, 5, 1, 2, 3, 4)


def upsample_conv3d_forward(skip, coarse, w, b, kernel="tiled", relu=False, inside=None):
    """y (N, C_out, 2D, 2H, 2W) from skip (N, C_a, 2D, 2H, 2W) and coarse (N, C_b, D, H, W).

    w (C_out, C_a + C_b, 3, 3, 3), b (C_out,), as for the plain convolution of the two together.
    relu, inside: fused, as in Conv3D.forward. kernel: of a GPU.
    """
    if backend.is_cuda(skip):
        return _forward_cuda(skip, coarse, w, b, kernel, relu, inside)
    c_a = skip.shape[1]
    y = cpu.forward(skip, w[:, :c_a], b)
    for pz, py in PARITIES:
        folded = _fold(w[:, c_a:], (pz, py))
        # (N, C_b, D, H, W) -> (N, 2 C_out, D, H, W): both parities in x
        part, _ = cpu.sweep(coarse, folded, taps=(2, 2), origin=(pz - 1, py - 1))
        target = _parity(y, pz, py)
        target += part.reshape(target.shape)
    y = relu_forward(y) if relu else y
    return y if inside is None else y * inside


def upsample_conv3d_backward(dy, skip, coarse, w, kernel="tiled", mask=False):
    """The gradients dskip, dcoarse, dw, db, from dy (N, C_out, 2D, 2H, 2W).

    mask: dcoarse is also taken through the backward of the ReLU whose output is coarse.
    """
    if backend.is_cuda(dy):
        return _backward_cuda(dy, skip, coarse, w, kernel, mask)
    c_a = skip.shape[1]
    dskip, dw_skip, db = cpu.backward(dy, skip, w[:, :c_a])
    dcoarse, dw_coarse = 0, 0
    for pz, py in PARITIES:
        part = _parity(dy, pz, py)
        part = part.reshape(len(part), -1, *part.shape[3:])  # (N, 2 C_out, D, H, W), a copy
        flipped = _fold(w[:, c_a:], (pz, py))[:, :, ::-1, ::-1, ::-1].swapaxes(0, 1)
        dpart, r = cpu.sweep(part, flipped, rows=coarse, taps=(2, 2), origin=(-pz, -py))
        dcoarse += dpart
        dw_coarse += _unfold(r[::-1, ::-1].transpose(2, 4, 0, 1, 3), (pz, py))
    dcoarse = relu_backward(dcoarse, coarse) if mask else dcoarse
    return dskip, dcoarse, np.concatenate((dw_skip, dw_coarse), axis=1), db


def _packed(kernel, skip, coarse, w):
    """skip and coarse packed, or as they are where tensor cores cannot run; how many maps skip has.

    Packed arrays do not tell: theirs come from model.py, where skip has as many as the output.
    """
    c_a = len(w) if is_packed(skip) else skip.shape[1]
    return *(x if is_packed(x) else pack(x, STORED.get(kernel)) for x in (skip, coarse)), c_a


def _forward_cuda(skip, coarse, w, b, kernel, relu, inside):
    packed_skip, packed_coarse, c_a = _packed(kernel, skip, coarse, w)
    if not is_packed(packed_skip):
        x = concat_forward(skip, upsample3d_forward(coarse))
        return conv3d_forward_cuda(x, w, b, kernel, relu, inside)
    w_skip, w_coarse = concat_backward_cuda(w, c_a)
    y = tensor.forward(packed_skip, w_skip, b)
    tensor.add_folded(y, packed_coarse, w_coarse, relu, inside)
    return y if is_packed(skip) else unpack(y, len(w))


def _backward_cuda(dy, skip, coarse, w, kernel, mask):
    packed_skip, packed_coarse, c_a = _packed(kernel, skip, coarse, w)
    if not is_packed(packed_skip):
        x = concat_forward(skip, upsample3d_forward(coarse))
        dx, dw, db = conv3d_backward_cuda(dy, x, w, kernel=kernel)
        dskip, dup = concat_backward(dx, c_a)
        dcoarse = upsample3d_backward(dup)
        return dskip, relu_backward(dcoarse, coarse) if mask else dcoarse, dw, db
    w_skip, w_coarse = concat_backward_cuda(w, c_a)
    dy = pack(dy, packed_skip.dtype)
    dskip, dw_skip, db = conv3d_backward_cuda(dy, packed_skip, w_skip, kernel=kernel)
    dw_coarse = tensor.backward_weight_folded(dy, packed_coarse, *w_coarse.shape[:2])
    dcoarse = tensor.backward_coarse(dy, w_coarse, packed_coarse if mask else None)
    if not is_packed(skip):
        dskip, dcoarse = unpack(dskip, c_a), unpack(dcoarse, w_coarse.shape[1])
    return dskip, dcoarse, concat_forward_cuda(dw_skip, dw_coarse), db


class UpsampleConv3D(Conv3D):
    """The first convolution of a decoder level; parameters as Conv3D's with c_in = C_a + C_b."""

    def forward(self, skip, coarse, keep=True, relu=False, inside=None):
        """skip (N, C_a, 2D, 2H, 2W), coarse (N, C_b, D, H, W) -> y (N, C_out, 2D, 2H, 2W)."""
        self.x = (skip, coarse) if keep else None
        w, b = self.params["w"], self.params["b"]
        return upsample_conv3d_forward(skip, coarse, w, b, self.kernel, relu, inside)

    def backward(self, dy, mask=False):
        """dy -> dskip, dcoarse; sets grads, releases what forward kept.

        mask: coarse came out of a ReLU, whose backward is computed as well.
        """
        x, self.x = self.x, None
        dskip, dcoarse, self.grads["w"], self.grads["b"] = upsample_conv3d_backward(
            dy, *x, self.params["w"], self.kernel, mask
        )
        return dskip, dcoarse
