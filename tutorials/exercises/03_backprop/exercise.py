"""Exercise 3: the backward pass of a convolution, and how to know that it is right. About 1 hour.

For a loss L, dy means dL/dy: backward gets dy and returns dx, dw, db, of the shapes of x, w, b.
"""

import numpy as np  # noqa: F401


def relu_backward(dy, y):
    """dx of y = max(x, 0), from dy and the OUTPUT y, all of one shape; 0 where y is 0.

    Hint: where y > 0 the layer did nothing, so the gradient passes; elsewhere y does not depend
    on x at all.
    """
    raise NotImplementedError("relu_backward is yours to write")


def numerical_gradient(loss, x, h=1e-6):
    """dL/dx of x's shape by central differences, (L(x + h) - L(x - h)) / 2h, one element at a time.

    loss: a function without arguments, which looks at x when it is called: change x[index] in
    place, call loss(), and put the old value back. Hint: for index in np.ndindex(x.shape).
    """
    raise NotImplementedError("numerical_gradient is yours to write")


def conv3d_backward(dy, x, w):
    """dx, dw, db of the convolution of lesson 2, for a batch.

    dy (N, C_out, D, H, W), x (N, C_in, D, H, W), w (C_out, C_in, k, k, k); zero padded by p.

    Hint: the forward pass went tap by tap, y += w_tap @ window, where `window` is a view of the
    padded x, moved by that tap. So, tap by tap again,
        dw_tap (C_out, C_in) = sum over scans and voxels of dy times window
        window of dx        += w_tap^T @ dy      (a padded dx; its margin is cut off at the end)
    np.tensordot(dy, window, axes=((0, 2, 3, 4), (0, 2, 3, 4))) is the first of the two.
    b went into every voxel of every scan: db is a sum over all of them.
    """
    raise NotImplementedError("conv3d_backward is yours to write")
