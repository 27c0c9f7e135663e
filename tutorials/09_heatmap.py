# %% [markdown]
# # 9. From a count network to a heatmap
#
# **Question.** Nobody ever told the network where a lesion is, only how many there are. Why can one
# take its last layer apart and read off where?
#
# **You will see** the paper's equations 1 to 3 in a few lines; that the count is a sum over voxels,
# whatever the pooling; which voxels of a map a gradient reaches through the maximum, the mean and
# the mean of local maxima; and a small network, trained on counts, that points at lesions. The last
# picture shows where one scan's count comes from.
#
# **Takes** about 20 seconds on 2 cores, most of it training. Lesson 8 explains the training.

# %%
import lesson
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from weakunet.data import phantom
from weakunet.detection.detect import detect_lesions, whole_count
from weakunet.evaluation.metrics import count_hits, count_metrics
from weakunet.figures.drawing import BLUE, GREEN, RED
from weakunet.layers.globalpool3d import GlobalPool3D
from weakunet.layers.linear import linear_backward, linear_forward
from weakunet.layers.loss import mse_backward
from weakunet.layers.optim import Adadelta
from weakunet.model import WeakUNet
from weakunet.training.augment import draw_transform, warp

rng = np.random.default_rng(9)
POOLINGS = ("max", "mean", "lmax")

# %% [markdown]
# ## Equations 1 to 3
#
# Let f be the last feature maps of one scan, f_i the i-th. While training, each is pooled to one
# number, and the count is their weighted sum (eqs. 1 and 2, no activation):
#
#     y = sum_i w_i G(f_i) + b
#
# To get a heatmap, leave the pooling out and keep the weights (eq. 3):
#
#     M = sum_i w_i f_i
#
# The bias goes, too: it is the same everywhere. Nothing is cut off: a map with a negative weight
# speaks against a lesion.
#
# G may be the maximum of the map (the paper's example), its mean, or the mean of the maxima of its
# blocks of k x k x k voxels (`lmax`, weakunet's default).


# %%
print("\n## Equations 1 to 3")


def pool_by_hand(f, mode, k=4):
    """f (C, D, H, W), sizes that divide by k -> (C,)"""
    if mode == "max":
        return f.max(axis=(1, 2, 3))
    if mode == "mean":
        return f.mean(axis=(1, 2, 3))
    c, d, h, w = f.shape
    blocks = f.reshape(c, d // k, k, h // k, k, w // k, k)
    return blocks.max(axis=(2, 4, 6)).mean(axis=(1, 2, 3))


f, w, b = rng.standard_normal((3, 4, 8, 12)), np.array([1.5, 0.4, -0.7]), 0.2
M = np.tensordot(w, f, axes=1)
for mode in POOLINGS:
    count = w @ pool_by_hand(f, mode) + b
    x = GlobalPool3D(mode, 4).forward(f[None])
    assert np.isclose(count, linear_forward(x, w, np.array([b]))[0])
    print(f"{mode:4s}: y = {count:6.3f}, and the pooled heatmap plus b is", end=" ")
    print(f"{pool_by_hand(M[None], mode)[0] + b:6.3f}")

network = WeakUNet(channels=(3, 4), rng=rng, dtype=np.float64)
network.load(network.params | {"linear.w": w, "linear.b": np.array([b])})
assert np.allclose(network.heatmap(f[None])[0, 0], M)  # there, M is a 1 x 1 x 1 convolution

# %% [markdown]
# ## Equation 2 is equation 3, pooled
#
# With the mean the two agree: the mean of a sum is the sum of the means, so the count is the mean
# of the heatmap plus b. The maximum of a sum is not the sum of the maxima (the maps have theirs at
# different places), and so the other two disagree above.
#
# But in one way all three are alike. Each takes a weighted mean of a map's voxels v, with weights
# a_i(v) >= 0 that add up to 1:
#
#     G(f_i) = sum_v a_i(v) f_i(v)       max:   a = 1 at the largest voxel, 0 elsewhere
#                                        mean:  a = 1 / voxels, everywhere
#                                        lmax:  a = 1 / blocks, at the largest voxel of each block
#
# Put that into eq. 2, and the count becomes a sum over voxels of the terms of eq. 3, each with its
# weight:
#
#     y - b = sum_v C(v),      C(v) = sum_i a_i(v) w_i f_i(v)
#
# C says where the count comes from; M is C before the pooling has chosen. And a_i(v) w_i is nothing
# new: it is the gradient dy/df_i(v), which backward computes.


# %%
print("\n## Equation 2 is equation 3, pooled")


def where_from(f, w, mode, k):
    """Gradients df (C, D, H, W) of the count with respect to f, and C (D, H, W)."""
    pool = GlobalPool3D(mode, k)
    x = pool.forward(f[None])
    dx, _, _ = linear_backward(np.ones(1, f.dtype), x, w)
    df = pool.backward(dx)[0]
    return df, (df * f).sum(axis=0)


for mode in POOLINGS:
    df, contributions = where_from(f, w, mode, 4)
    assert np.isclose(contributions.sum() + b, w @ pool_by_hand(f, mode) + b)
    assert np.allclose(df.sum(axis=(1, 2, 3)), w)  # each map spreads its w over voxels
assert np.allclose(where_from(f, w, "mean", 4)[1], M / M.size)

# %% [markdown]
# ## A network that counts
#
# A small one, on small scans: two voxels off each side of the tiny phantom leave all lesions
# inside. It sees 200 scans, each with one number, and takes 600 steps of Adadelta.

# %%
print("\n## A network that counts")
EDGE, STEPS, BATCH, POOLING, BLOCK = 2, 600, 4, "lmax", 8
cohort = phantom.simulate_cohort("tiny", {"train": 200, "test": 40}, seed=0)
volumes, counts = {}, {}
for split, scans in cohort.items():
    inner = (slice(EDGE, -EDGE),) * 3
    volumes[split] = np.stack([scan.volume.array[inner] for scan in scans])
    centres = np.concatenate([scan.centres_zyx for scan in scans]) - EDGE
    assert (centres >= 0).all() and (centres <= np.subtract(volumes[split].shape[1:], 1)).all()
    counts[split] = np.array([scan.count for scan in scans], np.float32)

# region=False: blocks side by side, as above; by default they overlap (globalpool3d.py)
shape = {"pooling": POOLING, "block": BLOCK, "region": False}
model = WeakUNet((8, 8, 8), **shape, rng=np.random.default_rng([0, 0]))
model.start((volumes["train"][i : i + 1, None] for i in range(32)), counts["train"].mean())
optimizer = Adadelta(model.params, eps=1e-6)
order = np.concatenate([rng.permutation(200) for _ in range(STEPS * BATCH // 200)])
for step, chosen in enumerate(order.reshape(STEPS, BATCH)):
    optimizer.lr = 1.0 if step < 0.7 * STEPS else 0.3 if step < 0.9 * STEPS else 0.1
    moved = [warp(scan, draw_transform(rng, scan.shape)) for scan in volumes["train"][chosen]]
    predicted = model.forward(np.stack(moved)[:, None])
    model.backward(mse_backward(predicted, counts["train"][chosen]))
    optimizer.step(model.grads)

predicted, heatmaps = model.predict(volumes["test"][:, None])
agreement = count_metrics(counts["test"], predicted)
print(f"40 scans it has not seen: r {agreement['count_r']:.2f}, R2 {agreement['count_r2']:.2f};")
print(f"squared error {agreement['count_mse']:.2f}, of the mean count {counts['test'].var():.2f}")
w, b = model.linear.params["w"], model.linear.params["b"][0]
print("w =", w.round(2), f"b = {b:.2f}")

# %% [markdown]
# ## Which voxels learn
#
# Its last maps on one of these scans, and the gradient of the count with respect to them, by all
# three poolings.
# The maximum sends each map's whole weight to ONE voxel: the network is corrected by what it made
# of that place, and of no other. The mean gives every voxel the same tiny push, lesion or not. The
# mean of local maxima gives a push to one voxel in each block, the best candidate of each
# neighbourhood. (Where a block is all zeros, the ReLU before it stops the push: lesson 4.)

# %%
print("\n## Which voxels learn")
chosen = int(np.argmin(abs(counts["test"] - 6)))
f = model.features(volumes["test"][chosen][None, None])[0]
reached, passed = {}, {}
for mode in POOLINGS:
    df, _ = where_from(f, w, mode, BLOCK)
    reached[mode], passed[mode] = df != 0, (df != 0) & (f > 0)
    print(f"{mode:4s}: {reached[mode].sum()} of {f.size} values in {len(f)} maps", end=" ")
    print(f"get a gradient, {passed[mode].sum()} of them behind an open ReLU")
_, contributions = where_from(f, w, POOLING, BLOCK)
assert np.isclose(contributions.sum() + b, predicted[chosen], rtol=1e-4)

# %% [markdown]
# ## Does the count come from the lesions?
#
# How much of the sum over C(v) lies within 3 voxels of a lesion, over all test scans; and how large
# a part of the scans that is.

# %%
print("\n## Does the count come from the lesions?")
near, whole, near_voxels = 0.0, 0.0, 0
for scan, volume in zip(cohort["test"], volumes["test"], strict=True):
    maps = model.features(volume[None, None])[0]
    own = where_from(maps, w, POOLING, BLOCK)[1]
    places = np.stack(np.indices(volume.shape), axis=-1)[..., None, :]
    apart = np.linalg.norm(places - (scan.centres_zyx - EDGE), axis=-1)
    inside = apart.min(axis=-1, initial=np.inf) <= 3
    near, whole = near + own[inside].sum(), whole + own.sum()
    near_voxels += inside.sum()
print(f"{near / whole:.0%} of the counts come from within 3 voxels of a lesion,")
print(f"in {near_voxels / volumes['test'].size:.0%} of the scans' voxels")

# %% [markdown]
# ## The picture
#
# One scan, seen along z, its lesions ringed (3 voxels). Top: the scan (mean along z); the heatmap M
# (highest along z); C, where the count comes from, a dot per voxel, the larger the more. Below:
# where a gradient arrives in any of the maps, by each of the three poolings; red where only closed
# ReLUs get one.

# %%
print("\n## The picture")
scan, volume = cohort["test"][chosen], volumes["test"][chosen]
_, dy, dx = scan.volume.spacing_mm
extent = (0, volume.shape[2] * dx, 0, volume.shape[1] * dy)
colours = np.array([(0, 0, 0), to_rgb(RED), (1, 1, 1)])  # nothing, stopped, passes
shown = {
    f"mean along z: {scan.count} lesions, {predicted[chosen]:.1f} counted": volume.mean(axis=0),
    "the heatmap M, highest along z": heatmaps[chosen, 0].max(axis=0),
    "C: where the count comes from": np.zeros(volume.shape[1:]),
}
for mode in POOLINGS:
    arrives = np.maximum(1 * reached[mode], 2 * passed[mode]).max(axis=(0, 1))
    shown[f"{mode}: {reached[mode].sum()} of {f.size} values get a gradient"] = colours[arrives]
figure, panels = plt.subplots(2, 3, figsize=(13, 9), layout="constrained")
for panel, (name, values) in zip(panels.flat, shown.items(), strict=True):
    panel.imshow(values, cmap="gray", extent=extent, origin="lower")
    for _, y, x in scan.centres_zyx - EDGE:
        middle = (x + 0.5) * dx, (y + 0.5) * dy
        panel.add_patch(plt.Circle(middle, 3 * dx, fill=False, color=GREEN, linewidth=2))
    panel.set(title=name, xlabel="x (mm)", ylabel="y (mm)")
_, y, x = np.nonzero(contributions)
area = 600 * abs(contributions[contributions != 0])
panels[0, 2].scatter((x + 0.5) * dx, (y + 0.5) * dy, area, c=BLUE, alpha=0.8, linewidths=0)
meanings = ("no gradient", "a gradient, but only where ReLUs are closed", "a gradient that passes")
boxes = [Patch(facecolor=c, edgecolor="black") for c in colours]
ring = Line2D([], [], linestyle="none", marker="o", markersize=12, color=GREEN, mfc="none", mew=2)
labels = ["lesion (3 voxels)", *(f"below: {text}" for text in meanings)]
figure.legend([ring, *boxes], labels, loc="outside lower center", ncols=4, frameon=False)

hits = [
    count_hits(detect_lesions(m[0], whole_count(c)).centres_zyx + EDGE, scan.centres_zyx)
    for m, c, scan in zip(heatmaps, predicted, cohort["test"], strict=True)
]
tp, fp, fn = np.sum(hits, axis=0)
print("cut so that they fall into as many pieces as were counted (lesson 10), the heatmaps show")
print(f"{tp} of {tp + fn} lesions ({tp / (tp + fn):.0%}), {fp / 40:.2f} false positives per scan")
lesson.save(figure, "09_heatmap")

# %% [markdown]
# **Try.** Add 10 to b: what becomes of the count, and of the heatmap's pieces? Train with
# `POOLING = "max"`: how many dots has C now, and do they sit on lesions? Then write the equations
# yourself: exercise set `09_heatmap`.
