# %% [markdown]
# # 3. The backward pass of a convolution
#
# **Question.** Training asks how the loss changes when a weight changes. How is that computed for
# all weights at once, and how do you know that what you wrote is right?
#
# **You will see** the backward pass as a transposed matrix, then tap by tap in 3D. The picture is
# the error of a numerical check against its step size: a V for a right backward pass, a flat line
# for a wrong one.
#
# **Takes** about 3 seconds on 2 cores. Lesson 2 explains the forward pass.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np

from weakunet.figures.drawing import LINES
from weakunet.layers.conv.conv3d import Conv3D, conv3d_backward, conv3d_forward
from weakunet.layers.gradcheck import check_layer

rng = np.random.default_rng(3)

# %% [markdown]
# ## One dimension: the transpose
#
# A convolution is y = T x (lesson 2). Let L be any loss computed from y, and write dy for dL/dy: a
# number for each element of y, which says how much L grows when that element grows. How much does L
# grow with x[s]? x[s] goes into y[t] with the factor T[t, s], so by the chain rule
#
#     dx[s] = sum_t T[t, s] dy[t],        that is,  dx = T^T dy
#
# Where forward gathers from the neighbours, backward sends back to them. T^T is a convolution
# again, with the kernel flipped.

# %%
w = np.array([0.5, 2.0, -1.0])
T = np.stack([np.correlate(unit, w, "same") for unit in np.eye(8)], axis=1)
dy = rng.standard_normal(8)
dx = T.T @ dy
assert np.allclose(dx, np.correlate(dy, w[::-1], "same"))
print("T =\n", T[:4, :6], "\nT^T =\n", T.T[:4, :6])

# %% [markdown]
# ## Three dimensions, tap by tap
#
# Forward was, for each of the 27 taps, `y += w_tap @ window`, where `window` is the padded x,
# shifted by that tap. So each tap has two things to say when dy comes back:
#
#     dw_tap         = dy window^T      a weight's gradient: its input times what came of it
#     window of dx  += w_tap^T dy       the matrix transposed, put back where it was read
#
# The bias was added to every voxel, so `db` is the sum of dy over all of them.


# %%
def backward_by_hand(dy, x, w):
    """dy (C_out, D, H, W), x (C_in, D, H, W), w (C_out, C_in, 3, 3, 3) -> dx, dw, db"""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (1, 1)))
    dpadded, dw = np.zeros_like(padded), np.empty_like(w)
    d, h, w_ = x.shape[1:]
    for i, j, m in np.ndindex(3, 3, 3):
        here = (slice(None), slice(i, i + d), slice(j, j + h), slice(m, m + w_))
        dw[:, :, i, j, m] = np.tensordot(dy, padded[here], axes=((1, 2, 3), (1, 2, 3)))
        dpadded[here] += np.tensordot(w[:, :, i, j, m], dy, axes=(0, 0))
    return dpadded[:, 1:-1, 1:-1, 1:-1], dw, dy.sum(axis=(1, 2, 3))


x, w = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((3, 2, 3, 3, 3))
b, dy = rng.standard_normal(3), rng.standard_normal((3, 4, 5, 6))
by_hand, library = backward_by_hand(dy, x, w), conv3d_backward(dy[None], x[None], w)
for name, ours, theirs in zip(("dx", "dw", "db"), by_hand, library, strict=True):
    theirs = theirs.reshape(ours.shape)  # the library's dx has the batch axis in front
    difference = np.abs(ours - theirs).max()
    print(f"{name} {ours.shape}: by hand and weakunet agree within {difference:.1e}")
    assert np.allclose(ours, theirs, rtol=0, atol=1e-12)

# %% [markdown]
# ## But are both right?
#
# Two programs by the same author may be wrong in the same way. The definition of a derivative asks
# nobody: change one weight by h, compute the loss again, and look at the slope,
#
#     dL/dw  =  (L(w + h) - L(w - h)) / 2h  +  O(h^2)
#
# Two forward passes for each weight: far too slow for training, just right for a test. The loss
# may be anything smooth. We take L = sum log(1 + e^y), so that dy = 1 / (1 + e^-y), which differs
# from voxel to voxel. That matters: with dy = 1 everywhere, a backward pass that sends gradients to
# the wrong places can pass the test (lesson 4 shows one).


# %%
def loss(w):
    y = conv3d_forward(x.astype(w.dtype)[None], w, b.astype(w.dtype))
    return np.logaddexp(0, y).sum(dtype=w.dtype)


def slope(w, index, h, one_sided=False):
    """dL/dw[index] by (central) differences, in the precision of w."""
    above, below = w.copy(), w.copy()
    above[index] += h
    below[index] -= 0 if one_sided else h
    return float(loss(above) - loss(below)) / (h if one_sided else 2 * h)


dy = 1 / (1 + np.exp(-conv3d_forward(x[None], w, b)[0]))
_, dw, _ = backward_by_hand(dy, x, w)
index = (2, 1, 0, 2, 1)
print(f"dw{index}: backward {dw[index]:.8f}, slope {slope(w, index, 1e-6):.8f}")

# %% [markdown]
# ## Which h?
#
# Too large, and the slope is that of a chord: the error falls with h^2 (with h for one-sided
# differences). Too small, and L(w + h) and L(w - h) are equal but for their last digits: rounding,
# of relative size eps, is divided by h, and the error GROWS as 1 / h. The best h lies between. In
# float32 even that is bad; hence all gradient checks run in float64.
#
# A wrong backward pass has an error that no h removes. Ours forgets which axis is which: it swaps z
# and x of every kernel. Shapes fit and nothing crashes; only the numbers are wrong.

# %%
swapped = dw.transpose(0, 1, 4, 3, 2)
probes = [tuple(rng.integers(size) for size in w.shape) for _ in range(8)]
steps = 10.0 ** np.arange(-10, 0.5, 0.5)
curves = {
    "central, float64": (dw, w, False),
    "one-sided, float64": (dw, w, True),
    "central, float32": (dw, w.astype(np.float32), False),
    "wrong backward pass (axes swapped)": (swapped, w, False),
}
errors = {name: [] for name in curves}
for name, (claimed, weights, one_sided) in curves.items():
    for h in steps.astype(weights.dtype):
        wrong = [slope(weights, probe, h, one_sided) - claimed[probe] for probe in probes]
        errors[name].append(np.abs(wrong).max() / np.abs(dw).max())

# %% [markdown]
# ## The picture
#
# Read the slopes of the lines: 2 on the right (h^2), 1 for one-sided differences, -1 on the left
# (rounding / h). The flat line on top is the bug. (On the left float32 is flat as well: there
# L(w + h) and L(w - h) are the same number, the slope is 0, and all of dw is the error.)

# %%
figure, panel = plt.subplots(figsize=(9, 5.5), layout="constrained")
for (name, error), (colour, line, marker) in zip(errors.items(), LINES, strict=False):
    panel.loglog(steps, error, color=colour, linestyle=line, marker=marker, label=name)
panel.set(xlabel="step h", ylabel="largest error of 8 weights' gradients, relative to max |dw|")
panel.set_title("A numerical check of a convolution's backward pass")
panel.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.02, 0.88))

best = {name: (min(error), steps[np.argmin(error)]) for name, error in errors.items()}
for name, (error, h) in best.items():
    print(f"{name}: smallest error {error:.1e} at h = {h:.1e}")

# %% [markdown]
# `weakunet/layers/gradcheck.py` does this for every element of every input and parameter of a
# layer, with a random dy and h = 1e-6. The tests run it on every layer of the package.

# %%
layer = Conv3D(2, 3, rng=rng, dtype=np.float64)
checked = check_layer(layer, [x[None, :, :3, :4, :4].copy()], rng)
print("check_layer, relative errors:", {name: f"{error:.1e}" for name, error in checked.items()})
assert max(checked.values()) < 1e-6
lesson.save(figure, "03_backprop")

# %% [markdown]
# **Try.** Replace the loss by `y.sum()` (then dy = 1): what becomes of the V, and why? Then write
# the backward pass yourself: exercise set `03_backprop`.
