# %% [markdown]
# # 2. Convolution by hand
#
# **Question.** What does a convolution compute, and what can it see in a scan?
#
# **You will see** a convolution in one dimension as a sliding window and as a matrix, then in three
# dimensions as 27 shifted copies. The picture shows four kernels at work on a scan.
#
# **Takes** about 3 seconds on 2 cores.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from weakunet.data import phantom
from weakunet.figures.drawing import RED
from weakunet.layers.conv.conv3d import Conv3D, conv3d_forward

rng = np.random.default_rng(2)

# %% [markdown]
# ## One dimension: a window slides along
#
# Each output is a weighted sum of an input and its neighbours. With k weights, k odd, and
# p = (k - 1) / 2 neighbours on either side,
#
#     y[t] = sum_i w[i] x[t + i - p],        x = 0 outside
#
# The kernel is not flipped. Strictly, this is a cross-correlation, but in deep learning everybody
# says convolution.


# %%
def slide(x, w):
    p = (len(w) - 1) // 2
    padded = np.pad(x, p)
    return np.array([w @ padded[t : t + len(w)] for t in range(len(x))])


x = rng.normal(0, 0.15, 40).cumsum()
w = np.array([-1.0, 0.0, 1.0])  # the right neighbour minus the left one: where does x rise?
y = slide(x, w)
assert np.allclose(y, ndimage.correlate(x, w, mode="constant"))
print("x ", x[:6].round(2), "...\ny ", y[:6].round(2), "...")

# %% [markdown]
# ## A convolution is a matrix
#
# y is linear in x, so there is a matrix T with y = T x. Slide over the unit vectors to get its
# columns. Most of it is 0. Each row holds the same k numbers, one place further to the right than
# the row above: that is what "the same weights everywhere" means. (At the ends, those that reach
# beyond x are cut off. Lesson 3 needs the transpose of T.)

# %%
T = np.stack([slide(unit, w) for unit in np.eye(len(x))], axis=1)
assert np.allclose(T @ x, y)
print(f"T is {T.shape[0]} x {T.shape[1]}; {np.count_nonzero(T)} of {T.size} numbers are not 0")

# %% [markdown]
# ## Three dimensions, and channels
#
# A layer has C_in input maps and C_out output maps, and a k x k x k kernel for each pair of them:
# `w` is `(C_out, C_in, k, k, k)`. Take the taps (i, j, m) one by one. Each adds the input, shifted
# by that tap and with its channels mixed by the C_out x C_in matrix `w[:, :, i, j, m]`.


# %%
def conv3d_by_hand(x, w, b):
    """x (C_in, D, H, W), w (C_out, C_in, k, k, k), b (C_out,) -> y (C_out, D, H, W)."""
    k, (d, h, w_) = w.shape[-1], x.shape[1:]
    p = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (p, p)))
    y = np.zeros((len(w), d, h, w_)) + b[:, None, None, None]
    for i, j, m in np.ndindex(k, k, k):
        shifted = padded[:, i : i + d, j : j + h, m : m + w_]
        y += np.tensordot(w[:, :, i, j, m], shifted, axes=(1, 0))
    return y


x3 = rng.standard_normal((2, 5, 6, 7))
w3, b3 = rng.standard_normal((3, 2, 3, 3, 3)), rng.standard_normal(3)
y3 = conv3d_by_hand(x3, w3, b3)
with_scipy = [
    b3[o] + sum(ndimage.correlate(x3[c], w3[o, c], mode="constant") for c in range(2))
    for o in range(3)
]
layer = Conv3D(2, 3, rng=rng, dtype=np.float64)
layer.params["w"][:], layer.params["b"][:] = w3, b3
difference = max(
    np.abs(y3 - other).max()
    for other in (conv3d_forward(x3[None], w3, b3)[0], layer.forward(x3[None])[0], with_scipy)
)
print(f"by hand, weakunet's reference and fast layer, scipy: within {difference:.1e}")
assert difference < 1e-12

# %% [markdown]
# `weakunet/layers/conv/conv3d.py` has the same lines for a batch of scans (with an axis N in
# front). The layer that training uses computes the same numbers in an order that suits the
# computer's caches: lesson 7.
#
# What does it cost? Each output takes C_in k^3 multiplications and as many additions.

# %%
flop = 2 * 27 * 8 * 16 * (8 * 16 * 16)
print(f"8 -> 16 maps of 8 x 16 x 16 voxels, 3 x 3 x 3: {flop / 1e6:.0f} million operations")

# %% [markdown]
# ## Kernels on a scan
#
# Here are four kernels of 5 x 5 x 5 weights, made by hand. (A network has 3 x 3 x 3 weights, but in
# several layers, and it learns them.) The Gaussian blurs. Multiplied by the step along x, it
# subtracts what lies to the left from what lies to the right, and responds to borders. The spot
# kernel is a narrow Gaussian minus a wide one, in millimetres. Its weights sum to 0, so a flat
# region gives 0, and among equally bright things those of its own size give most. The random kernel
# is what an untrained layer looks like.

# %%
scans = phantom.simulate_cohort("standard", {"test": 10}, seed=3)["test"]
scan = max(scans, key=lambda scan: scan.count)
image = scan.volume.array
step = np.indices((5, 5, 5)) - 2
step_mm = step * np.reshape(scan.volume.spacing_mm, (3, 1, 1, 1))
square_mm2 = (step_mm**2).sum(axis=0)


def gaussian(sd_mm):
    weights = np.exp(-0.5 * square_mm2 / sd_mm**2)
    return weights / weights.sum()


kernels = {
    "Gaussian, 0.8 mm: blurs": gaussian(0.8),
    "difference along x: borders": gaussian(0.6) * step[2],
    "narrow minus wide: spots": gaussian(0.45) - gaussian(1.2),
    "random: an untrained layer": rng.normal(0, np.sqrt(2 / 125), (5, 5, 5)),
}
filtered = conv3d_by_hand(image[None], np.stack(list(kernels.values()))[:, None], np.zeros(4))

# %% [markdown]
# ## The picture
#
# Rings mark the true lesions of this slice and its two neighbours. The spot kernel responds to
# them, but also to the ventricle and to a thin sheet on the right. The last lines below count such
# places. One linear kernel is not enough: a network has many, in layers, with a ReLU between them.

# %%
lesions = scan.centres_zyx
z = max(range(len(image)), key=lambda z: (np.abs(lesions[:, 0] - z) <= 1).sum())
near = lesions[np.abs(lesions[:, 0] - z) <= 1]
figure, panels = plt.subplot_mosaic(
    [["line", "line", "matrix", "scan"], [*kernels]], figsize=(14, 7.5), layout="constrained"
)
panels["line"].plot(x, color="black", label="x")
panels["line"].plot(y, color=RED, linestyle="--", label="y[t] = x[t+1] - x[t-1]")
panels["line"].set(title="1D: a window that looks for a rise", xlabel="t")
panels["line"].legend(frameon=False)
panels["matrix"].imshow(T, cmap="RdBu", vmin=-1, vmax=1)
panels["matrix"].set(
    title="T, with y = T x: red -1, blue 1", xlabel="place in x", ylabel="place in y"
)

for name, volume in {"scan": image, **dict(zip(kernels, filtered, strict=True))}.items():
    low, high = np.percentile(volume, [1, 99.7])
    lesson.show(panels[name], volume[z], scan, name, near, vmin=low, vmax=high)

spots = filtered[2]
weakest = spots[tuple(lesions.round().astype(int).T)].min()
answering = np.argwhere(spots >= weakest)
apart_mm = np.linalg.norm((answering[:, None] - lesions) * scan.volume.spacing_mm, axis=2)
elsewhere = (apart_mm.min(axis=1) > 2).sum()
print(f"{len(lesions)} lesions; at {len(answering)} voxels the spot kernel responds at least as it")
print(f"does at the faintest lesion; {elsewhere} of them are over 2 mm away from every lesion")
lesson.save(figure, "02_convolution")

# %% [markdown]
# **Try.** Make the spot kernel narrower or wider and watch the last number. Shift it by one voxel:
# where do the bright spots go, and why to that side? Then do exercise set `02_convolution`.
