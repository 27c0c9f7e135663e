# %% [markdown]
# # 4. Pooling, upsampling and ties
#
# **Question.** A network must look at more than 3 x 3 x 3 voxels. It shrinks its maps by max
# pooling and later upsamples them. What do these two do to a gradient, and what if two voxels share
# the maximum?
#
# **You will see** both layers by hand, a bug that a careless test cannot find, and what a tie does
# to a derivative. The picture follows a gradient back through a pooling layer.
#
# **Takes** about 3 seconds on 2 cores. Lesson 3 explains numerical gradients.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from weakunet.data import phantom
from weakunet.figures.drawing import BLUE, RED
from weakunet.layers.conv.conv3d import conv3d_forward
from weakunet.layers.gradcheck import numerical_gradient, relative_error
from weakunet.layers.maxpool3d import maxpool3d_backward, maxpool3d_forward
from weakunet.layers.relu import relu_forward
from weakunet.layers.upsample3d import upsample3d_backward, upsample3d_forward

rng = np.random.default_rng(4)

# %% [markdown]
# ## Max pooling: the largest of eight
#
# Cut a map into blocks of 2 x 2 x 2 voxels and keep each block's maximum. A reshape gives the
# blocks an axis of their own. Backward, the maximum gets all of dy, because the output was a copy
# of it. The other seven get 0, because a small change of them changes nothing. So forward must
# remember which voxel won.


# %%
def pool_by_hand(x):
    """x (D, H, W), even -> y (D/2, H/2, W/2), winner: 0..7, z first, then y, then x."""
    d, h, w = (n // 2 for n in x.shape)
    blocks = x.reshape(d, 2, h, 2, w, 2).transpose(0, 2, 4, 1, 3, 5).reshape(d, h, w, 8)
    return blocks.max(axis=-1), blocks.argmax(axis=-1)


def pool_backward_by_hand(dy, winner):
    d, h, w = dy.shape
    blocks = dy[..., None] * (winner[..., None] == np.arange(8))
    return blocks.reshape(d, h, w, 2, 2, 2).transpose(0, 3, 1, 4, 2, 5).reshape(2 * d, 2 * h, 2 * w)


x = rng.standard_normal((4, 6, 8))
dy = rng.standard_normal((2, 3, 4))
y, winner = pool_by_hand(x)
dx = pool_backward_by_hand(dy, winner)
library_y, library_winner = maxpool3d_forward(x[None, None])
assert np.array_equal(y, library_y[0, 0]) and np.array_equal(winner, library_winner[0, 0])
assert np.array_equal(dx, maxpool3d_backward(dy[None, None], library_winner)[0, 0])
numerical = numerical_gradient(lambda: (dy * pool_by_hand(x)[0]).sum(), x)
print(f"pooling: by hand and weakunet equal; numerical check {relative_error(dx, numerical):.1e}")

# %% [markdown]
# ## Upsampling: copy, so add
#
# On the way up each voxel is repeated along z, y and x: eight copies. All of them come from this
# voxel, so its gradient is the sum of theirs.
#
# Here is the bug. Somebody adds the copies up and then, by mistake, swaps two axes of equal size.
# A test with dy = 1 everywhere does not see it: every sum is 8, wherever it goes. Only a random dy
# tells right from wrong.

# %%
coarse, dfine = rng.standard_normal((3, 4, 4)), rng.standard_normal((6, 8, 8))
fine = coarse.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
dcoarse = dfine.reshape(3, 2, 4, 2, 4, 2).sum(axis=(1, 3, 5))
assert np.array_equal(fine, upsample3d_forward(coarse[None, None])[0, 0])
assert np.allclose(dcoarse, upsample3d_backward(dfine[None, None])[0, 0])

for name, dy_test in (("dy = 1   ", np.ones_like(dfine)), ("random dy", dfine)):
    right = dy_test.reshape(3, 2, 4, 2, 4, 2).sum(axis=(1, 3, 5))
    wrong = right.swapaxes(1, 2)
    numerical = numerical_gradient(
        lambda dy=dy_test: (dy * upsample3d_forward(coarse[None, None])[0, 0]).sum(), coarse
    )
    errors = relative_error(right, numerical), relative_error(wrong, numerical)
    print(f"upsampling, {name}: right {errors[0]:.1e}, axes swapped {errors[1]:.1e}")

# %% [markdown]
# ## Ties
#
# Two voxels of a block share the maximum. Raise one of them a little, and the output follows. Lower
# it, and the other one keeps the output where it is. The slope is 1 on one side and 0 on the other,
# so there is no derivative. A numerical check finds 1/2 and calls every backward pass wrong, which
# is why checks avoid ties. A program must still choose. In ours the FIRST voxel in memory order
# gets all of the gradient, on the CPU and on the GPU alike.

# %%
tied = np.zeros((2, 2, 2))
tied[0, 1, 0] = tied[1, 0, 1] = 1.0
_, winner = pool_by_hand(tied)
given = pool_backward_by_hand(np.ones((1, 1, 1)), winner)
central = numerical_gradient(lambda: pool_by_hand(tied)[0].sum(), tied)
print("places", *np.flatnonzero(tied == 1), "tie; backward gives", given[tied == 1], end=", ")
print("central differences", central[tied == 1].round(3))

# %% [markdown]
# Are ties rare? Not after a ReLU, which makes many voxels exactly 0, and not outside the region of
# interest, where a prepared scan is exactly 0. Take an untrained convolution and its ReLU on a
# scan:

# %%
scan = phantom.simulate_cohort("standard", {"test": 1}, seed=2)["test"][0]
image = scan.volume.array
w = rng.normal(0, np.sqrt(2 / 27), (1, 1, 3, 3, 3))
features = relu_forward(conv3d_forward((image[None, None] - 0.4) * 4.0, w, np.zeros(1)))
pooled, winner = maxpool3d_forward(features)
blocks = upsample3d_forward(pooled)
ties = upsample3d_backward((features == blocks).astype(float))[0, 0]  # how many share the maximum
of_zeros, of_others = (ties > 1) & (pooled[0, 0] == 0), (ties > 1) & (pooled[0, 0] > 0)
print(f"{of_zeros.mean():.1%} of the blocks are all zeros, {of_others.mean():.1%} tie otherwise")

# %% [markdown]
# A block of zeros does no harm: its gradient goes to a voxel at which the ReLU stops it. (It would
# do harm if the ReLU's derivative at 0 were taken as 1.) The other ties are in the flat background.
# Those voxels see the same input, so dw is the same whichever of them gets the gradient.
#
# ## The picture
#
# Send a gradient of 1 into every pooled voxel and look where it arrives: at one voxel of each
# block. In the red blocks, which are all zeros, the gradient goes to the first voxel, and the
# ReLU's backward pass stops it. (The bright rim of the map comes from the zero padding, which
# differs from the background.)

# %%
dfeatures = maxpool3d_backward(np.ones_like(pooled), winner)
through_relu = dfeatures * (features > 0)
colours = np.array([(0, 0, 0), to_rgb(RED), (1, 1, 1)])  # nothing, stopped, passes
z = 2 * (len(image) // 4)  # an even slice holds the first voxel of its blocks
figure, panels = plt.subplots(2, 3, figsize=(12, 8.2), layout="constrained")
maps = {
    f"feature map, slice z = {z}": features[0, 0, z],
    "max pooled: half the size": pooled[0, 0, z // 2],
    "pooled, then upsampled": blocks[0, 0, z],
    "where the gradient arrives": colours[(dfeatures + through_relu)[0, 0, z].astype(int)],
    "the same, after the ReLU's backward pass": through_relu[0, 0, z],
}
for panel, (name, axial) in zip(panels.flat, maps.items(), strict=False):
    panel.imshow(axial, cmap="gray", vmin=0, origin="lower")
    panel.set(title=name, xlabel="x (voxels)", ylabel="y (voxels)")

raised = np.linspace(-0.5, 0.5, 101)
panel = panels[1, 2]
panel.plot(raised, np.maximum(1 + raised, 1), color="black", label="max(a + change, b), a = b = 1")
panel.plot([-0.5, 0], [1, 1], color=BLUE, linewidth=6, alpha=0.4, label="slope 0")
panel.plot([0, 0.5], [1, 1.5], color=RED, linewidth=6, alpha=0.4, label="slope 1")
panel.plot(raised, 1 + raised / 2, ":", color="grey", label="central difference: 1/2")
panel.set(title="a tie: no derivative", xlabel="change of one of the two", ylabel="their maximum")
panel.legend(frameon=False)
names = ("no gradient", "a gradient, in a block of zeros", "a gradient that passes")
boxes = [Patch(facecolor=c, edgecolor="black") for c in colours]
figure.legend(boxes, names, loc="outside lower left", ncols=3, frameon=False)

arrived, kept = np.count_nonzero(dfeatures), np.count_nonzero(through_relu)
print(f"{(ties > 1).mean():.1%} of the blocks tie; of {arrived} gradients {kept} pass the ReLU")
lesson.save(figure, "04_pooling")

# %% [markdown]
# **Try.** Replace `argmax` by one that takes the LAST maximum: which line above fails first? Then
# write both backward passes yourself: exercise set `04_pooling`.
