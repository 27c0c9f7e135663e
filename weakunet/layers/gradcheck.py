"""Numerical gradients: is a backward pass really the derivative of its forward pass?

For a layer y = f(x, params) and a RANDOM dy, the scalar L = sum(dy * y) has the gradient that
backward(dy) claims. Central differences, (L(a + h) - L(a - h)) / 2h, approximate it with an error
of order h^2 plus rounding / h, so all of this is done in float64 with h = 1e-6. Random dy matters:
with all-ones dy, errors that only swap or move gradients cancel out in the sum. Inputs must stay
away from kinks (ReLU at 0, ties in a max).
"""

import numpy as np

H = 1e-6


def numerical_gradient(loss, array, h=H):
    """Central differences of the scalar function `loss()` with respect to every element of `array`.

    `array` (float64) is changed in place while probing and restored; returns an array of its shape.
    """
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + h
        above = loss()
        array[index] = value - h
        below = loss()
        array[index] = value
        gradient[index] = (above - below) / (2 * h)
    return gradient


def relative_error(a, b):
    """Largest difference of two arrays over their largest magnitude; 0 when both are all zero."""
    scale = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0) / scale) if scale else 0.0


def check_layer(layer, inputs, rng):
    """Relative error of backward for every input and every parameter of `layer`.

    Parameters
    ----------
    layer: has forward(*inputs), backward(dy) and, where it learns, the dicts `params` and `grads`.
    inputs: list of float64 arrays. rng: draws the random dy.

    Returns {'x0': error, ..., 'w': error, ...}; a shape that does not fit counts as an infinite
    error.
    """
    dy = rng.standard_normal(layer.forward(*inputs).shape)
    dx = layer.backward(dy)
    claimed = {f"x{i}": d for i, d in enumerate(dx if isinstance(dx, tuple) else (dx,))}
    probed = {f"x{i}": x for i, x in enumerate(inputs)}
    for name, value in getattr(layer, "params", {}).items():
        claimed[name], probed[name] = layer.grads[name], value
    claimed = {name: np.array(value) for name, value in claimed.items()}

    def loss():
        return float((dy * layer.forward(*inputs)).sum())

    errors = {}
    for name, value in probed.items():
        errors[name] = np.inf
        if claimed[name].shape == value.shape:
            errors[name] = relative_error(claimed[name], numerical_gradient(loss, value))
    return errors


def check_direction(loss, params, grads, rng):
    """Relative error of a directional derivative of a whole network.

    Moves all `params` (dict of float64 arrays, changed in place and restored) along one random
    direction v and compares (L(p + hv) - L(p - hv)) / 2h with sum(grads * v). `loss` takes no
    arguments.
    """
    direction = {name: rng.standard_normal(value.shape) for name, value in params.items()}
    claimed = sum(float((grads[name] * v).sum()) for name, v in direction.items())
    before = {name: value.copy() for name, value in params.items()}
    losses = []
    for sign in (1, -1):
        for name, value in params.items():
            value[...] = before[name] + sign * H * direction[name]
        losses.append(loss())
    for name, value in params.items():
        value[...] = before[name]
    numerical = (losses[0] - losses[1]) / (2 * H)
    return abs(numerical - claimed) / max(abs(numerical), abs(claimed), 1e-300)
