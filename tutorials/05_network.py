# %% [markdown]
# # 5. The network and its receptive field
#
# **Question.** A count comes out of the network. Which voxels of the scan can influence it, and how
# far does one voxel of its maps see?
#
# **You will see** the network's shapes and parameters, and the receptive field, worked out in 15
# lines and then measured by a gradient. The picture shows how much each voxel really matters inside
# that field.
#
# **Takes** about 5 seconds on 2 cores. Lessons 2 to 4 explain the layers.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np

from weakunet.data import phantom
from weakunet.figures.drawing import BLUE, RED
from weakunet.model import WeakUNet

# %% [markdown]
# ## The network
#
# It has three levels with 8, 16 and 32 maps. Down: a 3 x 3 x 3 convolution and a ReLU on each
# level, max pooling between them. Up: upsample, concatenate with the encoder's maps of the same
# size (the skip connection), convolve, ReLU. The last 8 maps are as large as the scan. Each is
# pooled to one number, and the count is a weighted sum of those (lesson 9).

# %%
scan = phantom.simulate_cohort("tiny", {"test": 1}, seed=4)["test"][0]
image = scan.volume.array.astype(np.float64)
model = WeakUNet(rng=np.random.default_rng(0), dtype=np.float64)
count, heatmap = model.predict(image[None, None])
print(f"scan {image.shape} -> features {model.features(image[None, None]).shape[1:]} -> count")
print(f"untrained, it counts {count[0]:.2f}; there are {scan.count}")
for name, value in model.params.items():
    print(f"{name:16s} {str(value.shape):20s} {value.size:6d}")
print("in all", sum(value.size for value in model.params.values()))

# %% [markdown]
# ## The receptive field, by hand
#
# Walk back from ONE voxel of the last maps, along one axis. At each layer, ask which voxels
# first..last of its input are needed. A convolution needs one more on either side. Pooled voxel i
# comes from 2i and 2i + 1. Upsampled voxel i is a copy of i // 2. The skip connections see less
# than the path through the bottom, so that path decides.


# %%
def field_by_hand(i, levels=3):
    """First and last voxel of the scan, along one axis, that voxel i of the last maps can see."""
    first, last = i, i
    for _ in range(levels - 1):  # the decoder, from the end
        first, last = first - 1, last + 1  # convolution
        first, last = first // 2, last // 2  # upsampling
    for level in range(levels):  # the encoder, from the bottom
        first, last = first - 1, last + 1  # convolution
        if level < levels - 1:
            first, last = 2 * first, 2 * last + 1  # pooling
    return first, last


for i in range(16, 21):
    first, last = field_by_hand(i)
    print(f"voxel {i} sees {first}..{last}: {last - first + 1} voxels")

# %% [markdown]
# The width is 22 to 26 voxels, depending on where the voxel lies in its block of four. With voxels
# of 0.49 x 0.49 x 0.8 mm that is about 12 mm in the plane and 20 mm across it, much more than a
# lesion. So the network can see what surrounds a bright spot.
#
# ## The receptive field, measured
#
# A voxel is in the field if changing it can change the output, that is, if it has a gradient. So we
# send a 1 into one voxel of the last maps and let backward go all the way to the image. (Training
# omits that last step; `to_image` asks for it.) In one scan many paths are closed, by a ReLU at 0
# or because a voxel did not win its block. So we add up |gradient| over many scans of noise and
# several random networks.

# %%
size, centre, networks, batch = 40, 18, 6, 4
total = np.zeros((size, size, size))
for seed in range(networks):
    rng = np.random.default_rng([5, seed])
    network = WeakUNet(rng=rng)
    for _ in range(2):
        noise = rng.uniform(0, 1, (batch, 1, size, size, size)).astype(np.float32)
        network.forward(noise)
        df = np.zeros((batch, 8, size, size, size), np.float32)
        df[:, :, centre, centre, centre] = 1
        total += np.abs(network.backward_features(df, to_image=True)).sum(axis=(0, 1))
seen = np.argwhere(total > 0)
measured = [(int(first), int(last)) for first, last in zip(seen.min(0), seen.max(0), strict=True)]
print("by hand ", field_by_hand(centre), "along each axis")
print("measured", *measured, "along z, y, x")
assert measured == [field_by_hand(centre)] * 3

# %% [markdown]
# ## Not all of the field matters equally
#
# Few paths lead from the rim of the field to the voxel, and very many from its middle. Sum
# |gradient| over cubes around the voxel: how large is the cube that holds half of it?

# %%
distance = np.abs(np.indices(total.shape) - centre).max(axis=0)  # of cubes: the largest of three
inside = np.array([total[distance <= r].sum() for r in range(size // 2)]) / total.sum()
half = int(np.argmax(inside >= 0.5))

# %% [markdown]
# ## From the count to the image
#
# `backward` with dcount = 1 is the gradient of the count itself. It says how the (untrained) count
# would change if a voxel of this scan became brighter. Through the default pooling, the sum of
# local maxima, it starts from one voxel of each block of 8 x 8 x 8 voxels in each map. The blocks
# overlap, and only those that touch the region of interest (the scan > 0) count.

# %%
model.forward(image[None, None])
dimage = model.backward(np.ones(1), to_image=True)[0, 0]
voxel = np.unravel_index(np.abs(dimage).argmax(), image.shape)  # the most influential one
h = 1e-6
brighter, darker = image.copy(), image.copy()
brighter[voxel] += h
darker[voxel] -= h
counts = model.predict(np.stack([brighter, darker])[:, None])[0]
slope = (counts[0] - counts[1]) / (2 * h)
print(f"backward says {dimage[voxel]:.6f}, a central difference says {slope:.6f}")
assert np.isclose(dimage[voxel], slope, rtol=1e-5)

# %% [markdown]
# ## The picture
#
# Left: the fraction of the gradient in each voxel of the plane z = 18, on a log scale, with the
# field worked out by hand (dashed) and the cube that holds half of it (solid). Middle: how it adds
# up. Right: the gradient of the count in a scan. Red: brighter raises the count; blue: lowers it.

# %%
figure, panels = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
plane = np.log10(np.maximum(total[centre] / total.sum(), 1e-12))
shown = panels[0].imshow(plane, cmap="viridis", vmin=-8, origin="lower")
figure.colorbar(shown, ax=panels[0], label="log10, fraction of |gradient|", shrink=0.8)
first, last = field_by_hand(centre)
for low, width, style, name in (
    (first, last - first + 1, "--", "the field, by hand"),
    (centre - half, 2 * half + 1, "-", "half of the gradient"),
):
    box = plt.Rectangle((low - 0.5, low - 0.5), width, width, fill=False, color="white")
    box.set(linestyle=style, linewidth=2, label=name)
    panels[0].add_patch(box)
panels[0].legend(loc="upper left", labelcolor="white", facecolor="black", framealpha=0.6)
panels[0].set(title=f"what voxel ({centre}, {centre}, {centre}) sees")
panels[0].set(xlabel="x (voxels)", ylabel="y (voxels)")

panels[1].plot(2 * np.arange(len(inside)) + 1, 100 * inside, color=RED, marker="o")
panels[1].axhline(50, color="grey", linestyle=":")
panels[1].axvline(last - first + 1, color=BLUE, linestyle="--", label="the field's width")
panels[1].set(title="the gradient inside a cube", xlabel="edge of the cube (voxels)")
panels[1].set(ylabel="fraction of |gradient| (%)", ylim=(0, 103))
panels[1].legend(frameon=False, loc="lower right")

z = int(np.abs(dimage).sum(axis=(1, 2)).argmax())
title, limit = f"gradient of the count, slice z = {z}", np.percentile(np.abs(dimage[z]), 99)
lesson.show(panels[2], image[z], scan, title)
style = {"cmap": "coolwarm", "vmin": -limit, "vmax": limit, "alpha": 0.6}
gradient = lesson.show(panels[2], dimage[z], scan, title, **style)
figure.colorbar(gradient, ax=panels[2], label="count per unit of brightness", shrink=0.8)

cube = (2 * half + 1) ** 3 / (last - first + 1) ** 3
print(f"the field is {last - first + 1} voxels wide; half of the gradient lies in a cube of")
print(f"{2 * half + 1} voxels, {100 * cube:.1f} % of the field's volume")
lesson.save(figure, "05_network")

# %% [markdown]
# **Try.** Give the network four levels, `channels=(8, 16, 32, 64)`, and `field_by_hand` `levels=4`.
# How wide is the field, and is the cube that holds half of it wider too? Then do exercise set
# `05_network`.
